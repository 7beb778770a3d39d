"""The stream engine under simulated threads: the same promises for every order of events."""

import inspect
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, product
from types import ModuleType

import numpy as np
import pytest
from simulated_threads import DeadlockError, LeftRunningError, SimulatedThreads

from gpublocks import feed
from gpublocks.contracts import CellDone, CellFailed, CellStarted
from gpublocks.devices.host import HostDevice
from gpublocks.errors import RunCancelledError
from gpublocks.executors import stream
from gpublocks.executors.stream import StreamExecutor
from gpublocks.grid import Grid
from gpublocks.io.npy import Source
from gpublocks.job import Job
from gpublocks.splitting import split_axis

DEVICES = [
    [HostDevice(1)],
    [HostDevice(3)],
    [HostDevice(1, "cpu:a"), HostDevice(2, "cpu:b")],
    [HostDevice(1, "cpu:a"), HostDevice(1, "cpu:b"), HostDevice(2, "cpu:c")],
]
SEEDS = range(40)
worlds = pytest.mark.parametrize("devices", DEVICES, ids=lambda devices: f"{len(devices)} devices")


def make_job(function, cells=9, **changes):
    values = np.arange(2.0 * cells + 2)
    split = split_axis(len(values), size_max=4, size_min="fixed", overlap=2)
    assert len(split) == cells
    sink = Source(np.full(len(values), -1.0))
    given = {
        "function": function,
        "sources": (Source(values),),
        "sinks": (sink,),
        "grid": Grid(values.shape, (0,), (split,)),
        "outputs": 1,
    }
    return Job(**{**given, **changes})


class Feed:
    """Cells handed out one by one, by a generator in which others may go on."""

    def __init__(self, world, grid, error_at=None):
        self.handed_out = []
        self._world, self._grid, self._error_at = world, grid, error_at

    def __iter__(self):
        return self._cells()

    def _cells(self):
        for cell in self._grid:
            self._world.pause("next cell")
            if cell.number == self._error_at:
                raise LookupError(f"no cell {cell.number}")
            self.handed_out.append(cell.number)
            yield cell


def doubling(world):
    def double(array):
        world.pause("compute")
        return 2 * array

    return double


def collect(run, events, after=lambda: None):
    for event in run:
        events.append(event)
        after()


def check_events(events, cells, executor):
    """Check that events are those of whole cells: each begun, then done by the same worker."""
    names = {f"{d.name}:{n}" for d in executor.devices for n in range(d.lanes)}
    seen = {}
    for event in events:
        assert event.worker in names
        seen.setdefault(event.cell.number, []).append(event)
    for number, own in seen.items():
        assert [type(event) for event in own] == [CellStarted, CellDone], number
        assert own[0].worker == own[1].worker
    assert sorted(seen) == list(range(cells))


@worlds
def test_every_cell_is_done_once(devices):
    check_complete(StreamExecutor, devices)


def check_complete(engine, devices):
    for seed, count in product(SEEDS, (1, 2, 9)):
        with SimulatedThreads(seed) as world:
            job = make_job(doubling(world), count)
            executor = engine(devices, concurrency=world)
            run = executor.run(job, Feed(world, job.grid))
            check_events(list(run), count, executor)
            assert np.array_equal(job.sinks[0].array, 2 * job.sources[0].array)


@worlds
def test_no_cells_are_no_events(devices):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            job = make_job(doubling(world))
            assert list(StreamExecutor(devices, concurrency=world).run(job, [])) == []


class FailureError(Exception):
    pass


@dataclass
class Breaking:
    """A source or sink that fails at a voxel."""

    source: Source
    voxel: int
    feed: Feed
    begun: int | None = None

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, region, out=None):
        self._check(region)
        return self.source.read(region, out)

    def write(self, region, array):
        self._check(region)
        self.source.write(region, array)

    def _check(self, region):
        if region.start[0] <= self.voxel < region.stop[0]:
            self.fail()

    def fail(self):
        if self.begun is None:
            self.begun = len(self.feed.handed_out)
        raise FailureError(f"voxel {self.voxel}")


@worlds
@pytest.mark.parametrize("stage", ["load", "compute", "store"])
def test_a_failure_ends_the_run(devices, stage):
    check_failure(StreamExecutor, devices, stage)


def check_failure(engine, devices, stage="compute"):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            failing = seed % 9
            job = make_job(doubling(world))
            feed = Feed(world, job.grid)
            breaking = Breaking(job.sources[0], 2 * failing + 1, feed)
            job = make_job(**{"function": doubling(world), **planned_failure(stage, breaking)})
            events = []
            with pytest.raises(FailureError, match=f"voxel {2 * failing + 1}") as caught:
                collect(engine(devices, concurrency=world).run(job, feed), events)
            assert isinstance(events[-1], CellFailed)
            assert events[-1].stage == stage
            assert events[-1].error is caught.value
            assert f"failed in stage '{stage}'" in caught.value.__notes__[0]
            assert events[-1].cell.number in (failing, failing - 1)
            started = [event.cell.number for event in events if isinstance(event, CellStarted)]
            assert events[-1].cell.number in started
            # One other lane may have passed the check and be about to take a cell.
            assert len(feed.handed_out) <= breaking.begun + 1


def planned_failure(stage, breaking):
    """Return how a job fails in a stage where the cell with a voxel is."""
    if stage == "load":
        return {"sources": (breaking,)}
    if stage == "store":
        breaking.source = Source(np.zeros(breaking.source.shape))
        return {"sinks": (breaking,)}

    def function(array):
        if breaking.voxel in array:
            breaking.fail()
        return array

    return {"function": function}


@worlds
@pytest.mark.parametrize("by", ["consumer", "lane", "another thread"])
def test_a_cancelled_run_begins_no_cell(devices, by):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            check_cancelled(world, devices, by, seed % 9)


def check_cancelled(world, devices, by, when):
    begun = []

    def cancel():
        begun.append(len(feed.handed_out))
        run.cancel()

    def function(array):
        world.pause("compute")
        if by == "lane" and 2 * when in array:
            cancel()
        return array

    job = make_job(function)
    feed = Feed(world, job.grid)
    run = StreamExecutor(devices, concurrency=world).run(job, feed)
    others = [world.start(cancel, "canceller")] if by == "another thread" else []
    events = []
    with pytest.raises(RunCancelledError):
        collect(run, events, lambda: by == "consumer" and len(events) == 1 + when and cancel())
    for other in others:
        other.join()
    # One lane may have passed the check and be about to take a cell.
    assert len(feed.handed_out) <= begun[0] + 1
    started = [event.cell.number for event in events if isinstance(event, CellStarted)]
    done = [event.cell.number for event in events if isinstance(event, CellDone)]
    assert sorted(started) == sorted(done) == sorted(feed.handed_out)


@worlds
def test_a_run_that_is_given_up_leaves_no_thread(devices):
    check_close(StreamExecutor, devices)


def check_close(engine, devices):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            job = make_job(doubling(world))
            feed = Feed(world, job.grid)
            run = iter(engine(devices, concurrency=world).run(job, feed))
            for _ in range(seed % 12):
                next(run)
            begun = len(feed.handed_out)
            run.close()
            assert len(feed.handed_out) <= begun + 1
            assert len(world._alive) == 1


@worlds
def test_an_error_of_the_cells_is_the_error_of_the_run(devices):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            number = seed % 9
            job = make_job(doubling(world))
            feed = Feed(world, job.grid, error_at=number)
            run = StreamExecutor(devices, concurrency=world).run(job, feed)
            with pytest.raises(LookupError, match=f"no cell {number}"):
                list(run)
            assert feed.handed_out == list(range(number))


@worlds
def test_an_interrupt_in_a_lane_ends_the_run(devices):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:

            def function(array, when=2 * (seed % 9)):
                if when in array:
                    raise KeyboardInterrupt
                return array

            job = make_job(function)
            with pytest.raises(KeyboardInterrupt):
                list(StreamExecutor(devices, concurrency=world).run(job, job.grid))


@worlds
def test_a_slow_consumer_holds_the_lanes_back(devices):
    check_pressure(StreamExecutor, devices)


def check_pressure(engine, devices):
    for seed in SEEDS:
        with SimulatedThreads(seed) as world:
            job = make_job(doubling(world), 60)
            feed = Feed(world, job.grid)
            executor = engine(devices, concurrency=world)
            taken = 0
            with closing(iter(executor.run(job, feed))) as run:
                for more in (1, 5, 10):
                    taken += len(list(islice(run, more)))
                    world.rest()
                    # Each lane has at most two events that wait and one cell in hand.
                    assert len(feed.handed_out) <= taken / 2 + 2 * executor.workers


def test_threads_that_cannot_start_leave_none_behind():
    class Exhausted(SimulatedThreads):
        def start(self, target, name):
            if len(self._alive) == 3:
                raise RuntimeError("can't start new thread")
            return super().start(target, name)

    for seed in SEEDS:
        with Exhausted(seed) as world:
            job = make_job(doubling(world))
            with pytest.raises(RuntimeError, match="can't start"):
                list(StreamExecutor(DEVICES[1], concurrency=world).run(job, job.grid))
            assert len(world._alive) == 1


def compiled(module, old, new):
    """Return a module with a bug in its source, if that is where the bug belongs."""
    made = ModuleType("planted")
    # Dataclasses look for their module.
    sys.modules["planted"] = made
    exec(compile(inspect.getsource(module).replace(old, new), "planted", "exec"), made.__dict__)
    return made


def planted(old, new):
    """Return the engine with a bug in its source, or in that of the feed."""
    assert sum(inspect.getsource(module).count(old) for module in (stream, feed)) == 1
    engine = compiled(stream, old, new)
    engine.Feed = compiled(feed, old, new).Feed
    return engine.StreamExecutor


@pytest.mark.parametrize(
    ("old", "new", "check", "symptom"),
    [
        ("        put(None)\n", "        pass\n", check_complete, DeadlockError),
        (
            "        with self._condition:\n            while",
            "        if True:\n            while",
            check_complete,
            (ValueError, RuntimeError),
        ),
        ("        put(event)\n", "        pass\n", check_complete, AssertionError),
        ("2 * self.workers", "0", check_pressure, AssertionError),
        ("running -= events.get() is None", "running = 0", check_close, DeadlockError),
        (
            "            feed.stop()\n            while running",
            "            while running",
            check_close,
            AssertionError,
        ),
        ("                thread.join()\n", "                pass\n", check_close, AssertionError),
        (
            "            feed.stop()\n            feed.give_back(work)\n",
            "            feed.give_back(work)\n",
            check_failure,
            AssertionError,
        ),
        (
            "return self._stopped or self._run.cancelled",
            "return self._run.cancelled",
            check_failure,
            AssertionError,
        ),
    ],
)
def test_planted_bugs_are_found(old, new, check, symptom):
    engine = planted(old, new)
    with pytest.raises(symptom):
        check(engine, DEVICES[2])


@worlds
def test_with_real_threads(devices):
    job = make_job(lambda array: 2 * array, 40)
    executor = StreamExecutor(devices)
    assert executor.workers == sum(device.lanes for device in devices)
    before = threading.active_count()
    check_events(list(executor.run(job, iter(job.grid))), 40, executor)
    assert np.array_equal(job.sinks[0].array, 2 * job.sources[0].array)
    assert threading.active_count() == before


def numbers_by_turns(seed):
    with SimulatedThreads(seed) as world:
        queue = world.queue(2)
        threads = [
            world.start(lambda n=n: [queue.put((n, k)) for k in range(4)], f"{n}") for n in range(3)
        ]
        numbers = [queue.get() for _ in range(12)]
        for thread in threads:
            thread.join()
        return numbers, world.trace


def test_a_seed_repeats_a_simulation():
    assert [numbers_by_turns(seed) for seed in SEEDS] == [numbers_by_turns(s) for s in SEEDS]
    assert len({str(numbers_by_turns(seed)[0]) for seed in SEEDS}) > 30
    assert all(sorted(numbers_by_turns(s)[0]) == list(product(range(3), range(4))) for s in SEEDS)


def locks_in_opposite_order(seed):
    with SimulatedThreads(seed) as world:
        one, two = world.lock(), world.lock()

        def cross(first, second):
            with first, second:
                pass

        there = world.start(lambda: cross(one, two), "there")
        back = world.start(lambda: cross(two, one), "back")
        there.join()
        back.join()


def test_a_deadlock_names_who_waits_for_what():
    waiting = "main: join there, there: acquire, back: acquire"
    with pytest.raises(DeadlockError, match=waiting):
        list(map(locks_in_opposite_order, range(100)))


def test_threads_that_are_left_are_reported():
    with pytest.raises(LeftRunningError, match="forgotten"), SimulatedThreads(0) as world:
        world.start(world.queue(1).get, "forgotten")


def test_an_error_in_a_thread_is_raised_at_the_end():
    def fail():
        raise FailureError("here")

    with pytest.raises(FailureError, match="here"), SimulatedThreads(0) as world:
        world.start(fail, "failing").join()
