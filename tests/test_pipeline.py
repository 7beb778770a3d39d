"""Cells through devices with memory of their own: no race, no deadlock, the same voxels."""

import inspect
import sys
import weakref
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from contracts.executors import ExecutorContract, grid_of, near
from simulated_device import (
    RaceError,
    SimulatedDevice,
    SimulatedDeviceLost,
    SimulatedOutOfMemory,
)
from simulated_executor import SimulatedExecutor, uneven
from simulated_threads import DeadlockError, SimulatedThreads

from gpublocks import io, pipeline, recovery, slots
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRefused,
    CellRetried,
    CellSplit,
    CellStarted,
)
from gpublocks.errors import BlockError, DeviceError, DeviceMemoryError, PlanError, text_of
from gpublocks.job import Job

SHAPE = (60, 5, 24)
GRID = grid_of(SHAPE, (0, 2), 18, 4)

STEADY = [(policy, count, 0) for policy in ("eager", "lazy") for count in (1, 2, 3)]
RANDOM = [("random", 1 + seed % 3, seed) for seed in range(20)]


def volume(order="C"):
    """Return an array of distinct numbers."""
    return np.asarray(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), order=order)


def label(world):
    policy, count, seed = world
    return f"{policy}{seed if policy == 'random' else ''}-{count}"


class SimulatedContract(ExecutorContract):
    @pytest.fixture
    def executor(self, world):
        policy, count, seed = world
        self.made = SimulatedExecutor(uneven(policy, count, seed), seed)
        return self.made

    def make(self, workers):
        return self.made


class TestSteadySchedules(SimulatedContract):
    """Every operation at once, or as late as possible."""

    @pytest.fixture(params=STEADY, ids=label)
    def world(self, request):
        return request.param


class TestRandomSchedules(SimulatedContract):
    """Operations and threads in any order."""

    @pytest.fixture(params=RANDOM, ids=label)
    def world(self, request):
        return request.param

    # They wait for real time to pass, which no schedule changes.
    test_a_slow_consumer_holds_the_cells_back = None
    test_cancelled_from_another_thread = None
    test_cancelled_before_it_begins = None
    test_nothing_goes_on_after_the_consumer_left = None


def make_job(function=near, sink=None, **changes):
    """Return a job on a volume, and the sink's array."""
    array = np.full(SHAPE, -1, np.float32) if sink is None else sink
    given = {
        "function": function,
        "sources": (io.as_source(volume()),),
        "sinks": (io.as_sink(array),),
        "grid": GRID,
        "outputs": 1,
        "divisible": True,
    }
    return Job(**{**given, **changes}), array


def outcome(executor, job):
    """Return how often each event came, and the error that ended the run."""
    seen, error = Counter(), None
    try:
        for event in executor.run(job, job.grid):
            seen[type(event)] += 1
    except Exception as caught:
        error = caught
    return seen, error


def check_complete(array, seen, error):
    assert error is None, error
    np.testing.assert_array_equal(array, near(volume()))
    assert seen[CellStarted] == seen[CellDone] == len(GRID)


worlds = pytest.mark.parametrize("world", STEADY + RANDOM[:6], ids=label)


class TestOracle:
    """What the engine waits for is needed, all of it."""

    def sites(self, monkeypatch, method):
        """Return the lines from which the engine calls a method of the device."""
        found = set()
        real = getattr(SimulatedDevice, method)

        def noted(device, *args):
            found.add(sys._getframe(1).f_lineno)
            return real(device, *args)

        monkeypatch.setattr(SimulatedDevice, method, noted)
        job, array = make_job()
        check_complete(array, *outcome(SimulatedExecutor(uneven("lazy", 1)), job))
        monkeypatch.undo()
        return sorted(found)

    @pytest.mark.parametrize("policy", ["eager", "lazy", "random"])
    def test_every_wait_that_is_left_out_is_a_race(self, monkeypatch, policy):
        left_out = 0
        for method in ("wait", "sync"):
            for line in self.sites(monkeypatch, method):
                self.leave_out(monkeypatch, method, line)
                job, _ = make_job()
                _, error = outcome(SimulatedExecutor(uneven(policy, 1)), job)
                assert isinstance(error, RaceError), f"{method} in line {line} is not needed"
                monkeypatch.undo()
                left_out += 1
        assert left_out == 6

    def leave_out(self, monkeypatch, method, line):
        real = getattr(SimulatedDevice, method)

        def without(device, *args):
            if sys._getframe(1).f_lineno != line:
                real(device, *args)

        monkeypatch.setattr(SimulatedDevice, method, without)

    def test_every_record_that_is_left_out_is_a_race(self, monkeypatch):
        for line in self.sites(monkeypatch, "record"):
            self.leave_out(monkeypatch, "record", line)
            job, _ = make_job()
            _, error = outcome(SimulatedExecutor(uneven("eager", 1)), job)
            assert isinstance(error, RaceError), f"record in line {line} is not needed"
            monkeypatch.undo()

    def test_every_token_that_is_forgotten_is_a_deadlock(self, monkeypatch):
        lines, first = inspect.getsourcelines(pipeline)
        sites = [
            first + n
            for n, line in enumerate(lines, 1)
            if "_in.put(" in line or "_out.put(" in line
        ]
        assert len(sites) == 6
        real = SimulatedThreads.queue
        for site in sites:

            def queue(world, maxsize, site=site):
                made = real(world, maxsize)
                put = made.put
                made.put = lambda item: put(item) if sys._getframe(1).f_lineno != site else None
                return made

            monkeypatch.setattr(SimulatedThreads, "queue", queue)
            job, _ = make_job()
            _, error = outcome(SimulatedExecutor(uneven("eager", 1)), job)
            assert isinstance(error, DeadlockError), f"token of line {site}"
            monkeypatch.undo()

    def test_a_slot_too_few_is_a_race(self, monkeypatch):
        monkeypatch.setattr(
            slots.HostSlot,
            "of",
            lambda device, nbytes, made={}: made.setdefault(
                (id(device), nbytes),
                slots.HostSlot(device.allocate_pinned(nbytes), device.event()),
            ),
        )
        job, _ = make_job()
        _, error = outcome(SimulatedExecutor(uneven("eager", 1)), job)
        assert isinstance(error, RaceError)

    @pytest.mark.parametrize("seed", range(4))
    def test_seeds_reproduce(self, seed):
        traces = []
        for _ in range(2):
            job, array = make_job()
            executor = SimulatedExecutor(uneven("random", 2, seed), seed)
            check_complete(array, *outcome(executor, job))
            traces.append((list(executor.trace), [device.done for device in executor.devices]))
        assert traces[0] == traces[1]


def pausing(function):
    """Return a function in which others may go on, that notes what they did."""

    def slow(array):
        trace = slow.executor.trace
        begun = len(trace)
        for _ in range(30):
            slow.executor.devices[0]._world.pause("computing")
        slow.meanwhile |= {doing for _, doing in trace[begun:]}
        return function(array)

    slow.meanwhile = set()
    return slow


class TestStreaming:
    """What a device's pipeline is for."""

    def test_copies_and_computation_of_different_cells_overlap(self):
        job, array = make_job(near_slowly := pausing(near))
        executor = SimulatedExecutor(uneven("random", 1, 3), 3)
        near_slowly.executor = executor
        check_complete(array, *outcome(executor, job))
        assert near_slowly.meanwhile & {"upload to", "download from"}
        assert "go on computing" not in near_slowly.meanwhile

    def test_every_device_takes_part_and_the_slow_one_does_less(self):
        grid = grid_of((60, 11, 9), (0,), 5)
        source = np.arange(60 * 99, dtype=np.float32).reshape(60, 11, 9)

        def make(world):
            return [
                SimulatedDevice(world, f"cuda:{n}", policy="random", speed=1 + 20 * n)
                for n in range(2)
            ]

        job, _ = make_job(
            sources=(io.as_source(source),), sinks=(io.as_sink(source * 0),), grid=grid
        )
        executor = SimulatedExecutor(make, 3)
        assert outcome(executor, job)[1] is None
        fast, slow = (device.computes for device in executor.devices)
        assert fast > slow > 0
        assert fast + slow == len(grid)

    def test_types_orders_and_several_arrays(self):
        big = np.asarray(volume("F"), ">f4")
        small = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
        sinks = [np.zeros(SHAPE, ">i4", order="F"), np.zeros(SHAPE, "f8"), np.zeros(SHAPE, "?")]
        layouts = []

        def three(a, b):
            layouts.append((a.dtype.isnative, a.flags.f_contiguous, b.flags.c_contiguous))
            return a + b, a - b, b > 7

        job, _ = make_job(
            three,
            sources=(io.as_source(big), io.as_source(small)),
            sinks=tuple(map(io.as_sink, sinks)),
            outputs=3,
        )
        assert outcome(SimulatedExecutor(uneven("lazy", 1)), job)[1] is None
        np.testing.assert_array_equal(sinks[0], (big + small).astype(">i4"))
        np.testing.assert_array_equal(sinks[1], big - small)
        np.testing.assert_array_equal(sinks[2], small > 7)
        assert set(layouts) == {(True, True, True)}

    @worlds
    @pytest.mark.parametrize(
        "function",
        [lambda a: a, lambda a: a[::-1][::-1], lambda a: np.asfortranarray(a), lambda a: a.T.T],
        ids=["the argument", "a view", "another order", "transposed"],
    )
    def test_results_that_are_views(self, world, function):
        policy, count, seed = world
        job, array = make_job(function)
        assert outcome(SimulatedExecutor(uneven(policy, count, seed), seed), job)[1] is None
        np.testing.assert_array_equal(array, volume())

    def test_values_that_the_sink_cannot_hold_are_refused(self):
        job, array = make_job(lambda a: a * 1e6, sink=np.zeros(SHAPE, np.uint8))
        _, error = outcome(SimulatedExecutor(uneven("lazy", 1)), job)
        assert isinstance(error, BlockError)
        assert "uint8 holds 0 to 255" in str(error)
        assert not array.any()

    def test_a_sink_with_one_writer_has_one(self):
        class Alone(io.npy.Source):
            __slots__ = ()
            single_writer = True
            writers = 0

            def write(self, region, array):
                type(self).writers += 1
                assert self.writers == 1
                world.pause("write")
                super().write(region, array)
                type(self).writers -= 1

        array = np.zeros(SHAPE, np.float32)
        job, _ = make_job(sinks=(Alone(array),))
        with SimulatedThreads(5) as world:
            devices = uneven("random", 3, 5)(world)
            from gpublocks.executors.stream import StreamExecutor

            list(StreamExecutor(devices, "cuda", world, copiers=4).run(job, job.grid))
        np.testing.assert_array_equal(array, near(volume()))


def failing(policy, numbers, *, count=1, seed=0, memory_bytes=1 << 18, taking=0):
    """Return an executor whose first device has no memory for some allocations."""

    def make(world):
        made = [
            SimulatedDevice(
                world,
                f"cuda:{n}",
                policy=policy,
                seed=seed,
                memory_bytes=memory_bytes,
                raises="compute" if seed % 2 else "outcome",
            )
            for n in range(count)
        ]
        made[0].fail_allocation(*numbers)
        return made

    return SimulatedExecutor(make, seed)


def taking(executor):
    """Return a function that takes memory of the device that it runs on."""

    def hungry(array):
        executor.devices[0].take(array.nbytes)
        result = near(array)
        executor.devices[0].take(array.nbytes)
        return result

    return hungry


class TestOutOfMemory:
    """The ladder: once more, in halves, elsewhere, an error."""

    def undisturbed(self):
        executor = failing("eager", ())
        job, array = make_job(taking(executor))
        check_complete(array, *outcome(executor, job))
        return executor.devices[0].allocations

    @pytest.mark.parametrize("policy", ["eager", "lazy", "random"])
    @pytest.mark.parametrize("times", [1, 2, 3])
    def test_at_every_allocation(self, policy, times):
        for number in range(1, self.undisturbed() + 1):
            executor = failing(policy, range(number, number + times), seed=number)
            job, array = make_job(taking(executor))
            seen, error = outcome(executor, job)
            check_complete(array, seen, error)
            assert seen[CellRetried] + seen[CellSplit] > 0 or number <= 8

    @pytest.mark.parametrize("number", [1, 5, 9, 14, 20])
    def test_for_good(self, number):
        executor = failing("lazy", range(number, 10_000))
        job, array = make_job(taking(executor))
        seen, error = outcome(executor, job)
        assert isinstance(error, DeviceMemoryError)
        assert "cuda:0 has not enough memory" in str(error)
        assert "use a smaller size_max" in str(error)
        assert seen[CellFailed] == 1
        assert executor.devices[0].retired is None
        done = array != -1
        np.testing.assert_array_equal(array[done], near(volume())[done])

    def test_memory_is_trimmed_before_the_cell_is_tried_again(self):
        executor = failing("eager", [10])
        job, array = make_job(taking(executor))
        seen, error = outcome(executor, job)
        check_complete(array, seen, error)
        assert seen[CellRetried] == 1
        assert seen[CellSplit] == 0
        assert executor.devices[0].trims == 1

    def test_what_does_not_fit_is_halved_and_so_are_those_after_it(self):
        executor = failing("eager", ())
        limits = []

        def hungry(array):
            device = executor.devices[0]
            limits.append(array.size)
            if array.size > 1000:
                device.take(1 << 30)
            return near(array)

        job, array = make_job(hungry)
        seen, error = outcome(executor, job)
        check_complete(array, seen, error)
        assert seen[CellSplit] >= len(GRID)
        assert sum(size > 1000 for size in limits) <= 6

    def test_slots_for_smaller_blocks_where_there_is_no_memory_for_the_largest(self):
        job, array = make_job()
        executor = failing("eager", (), memory_bytes=15_000)
        seen, error = outcome(executor, job)
        check_complete(array, seen, error)
        assert seen[CellSplit] >= len(GRID)

    def test_what_must_not_be_halved_is_not(self):
        executor = failing("eager", [9, 10, 11, 12])
        job, _ = make_job(taking(executor), divisible=False)
        seen, error = outcome(executor, job)
        assert isinstance(error, DeviceMemoryError)
        assert seen[CellSplit] == 0

    def test_units_of_the_sink_stay_whole(self):
        class Units(io.npy.Source):
            def __init__(self, array):
                super().__init__(array)
                self.unit = (2, 1, 1)

            def write(self, region, array):
                lo, hi = region.start[0], region.stop[0]
                assert lo % 2 == 0
                assert hi % 2 == 0 or hi == SHAPE[0]
                super().write(region, array)

        array = np.zeros(SHAPE, np.float32)
        grid = grid_of(SHAPE, (0,), 20)
        executor = failing("eager", [9, 10, 11, 12])
        job, _ = make_job(taking(executor), sinks=(Units(array),), grid=grid)
        seen, error = outcome(executor, job)
        assert error is None
        assert seen[CellSplit] >= 2
        np.testing.assert_array_equal(array, near(volume()))

    @worlds
    def test_a_device_without_memory_leaves_its_cells_to_the_others(self, world):
        policy, count, seed = world
        executor = failing(policy, range(1, 10_000), count=count, seed=seed)
        job, array = make_job()
        seen, error = outcome(executor, job)
        if count == 1:
            assert isinstance(error, DeviceMemoryError)
        else:
            check_complete(array, seen, error)

    def test_free_memory_that_falls_after_the_plan(self):
        executor = failing("lazy", ())

        def hungry(array):
            device = executor.devices[0]
            if device.computes == 3:
                device.set_other_usage(device.memory()[0] - 20_000)
            device.take(4 * array.nbytes)
            return near(array)

        job, array = make_job(hungry)
        seen, error = outcome(executor, job)
        check_complete(array, seen, error)
        assert seen[CellSplit] > 0


class TestLostDevices:
    """Sticky errors: the device is retired, its cells are done elsewhere."""

    def losing(self, policy, at, *, count, seed=0, when="issue", refuse=False):
        def make(world):
            made = uneven(policy, count, seed)(world)
            for device, number in zip(made, at, strict=False):
                device.fail_sticky_at(number, when)
            return made

        return SimulatedExecutor(make, seed, refuse=refuse)

    @worlds
    @pytest.mark.parametrize("when", ["issue", "sync"])
    @pytest.mark.parametrize("number", [1, 2, 4])
    def test_the_others_finish(self, world, when, number):
        policy, count, seed = world
        executor = self.losing(policy, [number], count=count, seed=seed, when=when)
        job, array = make_job()
        seen, error = outcome(executor, job)
        if executor.devices[0].computes < number:
            check_complete(array, seen, error)
        elif count == 1:
            assert isinstance(error, DeviceError)
            assert "cuda:0 is lost for this process" in str(error)
            assert seen[CellDone] <= number
        else:
            check_complete(array, seen, error)
            assert executor.devices[0].retired

    def test_a_block_that_takes_two_devices_along_is_at_fault(self):
        executor = SimulatedExecutor(uneven("eager", 3))

        def deadly(array):
            if 0.0 in array:
                for device in executor.devices:
                    if device.memory and device.retired is None and device._computing.__dict__:
                        device.lose()
                        raise SimulatedDeviceLost("an illegal memory access was encountered")
            return near(array)

        job, _ = make_job(deadly)
        _, error = outcome(executor, job)
        assert isinstance(error, DeviceError)
        assert "2 devices were lost" in str(error)
        assert "block 0/" in "".join(error.__notes__)

    @pytest.mark.parametrize("seed", range(10))
    def test_what_is_left_is_announced_if_somebody_else_may_do_it(self, seed):
        count = 1 + seed % 2
        executor = self.losing("random", [3], count=count, seed=seed, refuse=True)
        job, array = make_job()
        cells = iter(job.grid)
        events = list(executor.run(job, cells))
        done = {event.cell for event in events if isinstance(event, CellDone)}
        refused = [event.cell for event in events if isinstance(event, CellRefused)]
        rest = list(cells)
        if all(device.retired for device in executor.devices):
            assert refused
        assert len(refused) == len(set(refused))
        assert done.isdisjoint(refused)
        assert done.isdisjoint(rest)
        assert done | set(refused) | set(rest) == set(job.grid)
        for cell in done:
            where = cell.valid_in(SHAPE).slices
            np.testing.assert_array_equal(array[where], near(volume())[where])

    def test_out_of_memory_is_announced_too(self):
        executor = failing("eager", range(1, 10_000))
        executor._options["refuse"] = True
        job, _ = make_job()
        cells = iter(job.grid)
        events = list(executor.run(job, cells))
        assert [type(event) for event in events] == [CellRefused]
        assert isinstance(events[0].error, DeviceMemoryError)
        assert len(list(cells)) == len(job.grid) - 1

    def test_errors_of_the_function_are_no_fault_of_the_device(self):
        def wrong(array):
            raise ZeroDivisionError("mine")

        for policy in ("eager", "lazy"):
            job, _ = make_job(wrong)
            executor = SimulatedExecutor(uneven(policy, 2), refuse=True)
            seen, error = outcome(executor, job)
            assert isinstance(error, ZeroDivisionError)
            assert seen[CellFailed] == 1
            assert not seen[CellRefused]
            assert not any(device.retired for device in executor.devices)


def test_outputs_that_are_kept_come_from_the_device():
    job, _ = make_job(sinks=(), keep_outputs=True)
    job = replace(job, return_result=True)
    events = list(SimulatedExecutor(uneven("lazy", 1)).run(job, job.grid[:2]))
    done = [event for event in events if isinstance(event, CellDone)]
    for event in done:
        where = event.cell.valid_in(SHAPE).slices
        np.testing.assert_array_equal(event.outputs[0], near(volume())[where])
        assert event.value.shape == event.cell.read_in(SHAPE).shape
        assert event.peak_bytes is not None


class OwnBlockError(BlockError):
    def __init__(self):
        super().__init__("mine")


@dataclass(frozen=True)
class FrozenError(Exception):
    text: str = "mine"


class DumbError(MemoryError):
    def __str__(self):
        raise ValueError("no text")


class TestTheUnexpected:
    """Whatever goes wrong where nothing should: the run fails, and nobody waits for ever."""

    @worlds
    @pytest.mark.parametrize("error", [OwnBlockError, FrozenError, DumbError, SystemExit])
    @pytest.mark.parametrize("where", ["load", "compute", "store"])
    def test_errors_that_cannot_be_told_more(self, world, error, where):
        policy, count, seed = world

        class Faulty(io.npy.Source):
            __slots__ = ()

            def read(self, region, out=None):
                if where == "load" and region.start[0]:
                    raise error
                return super().read(region, out)

            def write(self, region, array):
                if where == "store" and region.start[0]:
                    raise error
                super().write(region, array)

        def function(array):
            if where == "compute" and 0.0 not in array:
                raise error
            return near(array)

        array = np.zeros(SHAPE, np.float32)
        job, _ = make_job(function, sources=(Faulty(volume()),), sinks=(Faulty(array),))
        executor = SimulatedExecutor(uneven(policy, count, seed), seed)
        with pytest.raises((error, BlockError)) as caught:
            list(executor.run(job, job.grid))
        assert "block " in "".join([text_of(caught.value), *getattr(caught.value, "__notes__", ())])

    @worlds
    @pytest.mark.parametrize("method", ["classify", "trim", "rest", "retire", "memory"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_a_device_whose_methods_fail(self, world, method, number):
        policy, count, seed = world
        calls = []

        def make(world):
            made = uneven(policy, count, seed)(world)
            made[0].fail_allocation(9, 10)
            made[0].fail_sticky_at(6)
            for device in made:
                setattr(device, method, faulty(getattr(device, method)))
            return made

        def faulty(real):
            def fail(*args):
                calls.append(args)
                if len(calls) == number:
                    raise LookupError(f"{method} fails")
                return real(*args)

            return fail

        executor = SimulatedExecutor(make, seed)
        job, array = make_job(taking(executor))
        calls.clear()
        seen, error = outcome(executor, job)
        if error is None:
            check_complete(array, seen, error)

    @pytest.mark.parametrize("method", ["note", "settle", "takes", "divide"])
    def test_a_recovery_that_fails(self, monkeypatch, method):
        def fail(*args):
            raise LookupError(f"{method} fails")

        monkeypatch.setattr(recovery.Recovery, method, fail)
        executor = failing("eager", range(9, 20))
        job, _ = make_job(taking(executor))
        _, error = outcome(executor, job)
        assert isinstance(error, LookupError)

    def test_memory_that_a_wrapped_error_holds_is_let_go(self):
        executor = failing("eager", [9])
        gone = []

        def hungry(array):
            large = Large()
            gone.append(weakref.ref(large))
            try:
                inner(large)
            except MemoryError as error:
                raise SimulatedOutOfMemory("wrapped") from error
            return near(array)

        def inner(large):
            executor.devices[0].take(100)

        class Large:
            pass

        trimmed = []
        real = SimulatedDevice.trim
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setattr(
            SimulatedDevice, "trim", lambda device: (trimmed.append(gone[0]()), real(device))
        )
        job, array = make_job(hungry)
        check_complete(array, *outcome(executor, job))
        monkeypatch.undo()
        assert trimmed == [None]


@pytest.mark.parametrize("kind", ["source", "block"])
def test_functions_of_blocks_are_refused_before_anything_runs(kind):
    job, array = make_job(function_type=kind)
    with pytest.raises(
        PlanError, match=f"function_type='{kind}' is for CPUs, and cuda:0 was given"
    ):
        SimulatedExecutor(uneven("eager", 1)).run(job, job.grid)
    assert (array == -1).all()
