"""What every executor promises: a test class that those of each executor inherit."""

import itertools
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpublocks import io
from gpublocks.contracts import CellDone, CellFailed, CellStarted, Reach
from gpublocks.errors import BlockError, RunCancelledError
from gpublocks.executors import SerialExecutor
from gpublocks.grid import Grid
from gpublocks.job import Job, spans_of
from gpublocks.splitting import split_axis

STEPS = ["read", "copy in", "compute", "copy out", "write"]
SHAPE = (12, 11, 9)
OVERLAP = 4


def volume(order="C"):
    """Return an array of distinct numbers."""
    return np.asarray(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), order=order)


def grid_of(shape=SHAPE, axes=(0, 2), size_max=7, overlap=OVERLAP):
    """Return a grid of overlapping blocks."""
    splits = [split_axis(shape[axis], size_max=size_max, overlap=overlap) for axis in axes]
    return Grid(shape, axes, tuple(splits))


def tiny_cells(count):
    """Return a job-less grid of many cells, and the array that it splits."""
    return grid_of((count, 2), (0,), 1, 0), np.zeros((count, 2), np.float32)


def near(array, at=None):
    """Sum up each voxel and those one and two places off along all axes: a halo of 2."""
    padded = np.pad(array, 2, mode="edge").astype(np.float64)
    inner = [slice(2, 2 + n) for n in array.shape]
    total = np.zeros(array.shape)
    for axis in range(array.ndim):
        for step in (-2, -1, 0, 1, 2):
            moved = list(inner)
            moved[axis] = slice(2 + step, 2 + step + array.shape[axis])
            total += padded[tuple(moved)]
    return total.astype(np.float32)


def near_source(source):
    """Do the same to a source."""
    return near(source[:])


def near_block(source, sink):
    """Write the result."""
    sink[source.valid.slicing] = near(source[:])[source.valid.slicing]


def careless_block(source, sink):
    """Write the result, and nonsense beyond the valid region."""
    sink[:] = -1
    near_block(source, sink)


def add_to_block(source, sink):
    """Add to what the sink holds already."""
    sink.valid[:] = sink.valid[:] + source.valid[:]


def destroy(array):
    """Change the input."""
    array += 1
    return array


def grow(array, seen):
    """Change a keyword argument, and return how long it has become."""
    seen.append(0)
    return len(seen)


def say(array):
    """Print something."""
    print(f"voxel {array.flat[0]:g}")
    print("no end of line", end="")
    return array


class OddError(ValueError):
    """An error of the user's own."""


def refuse(array, voxel):
    """Raise where a voxel is in the block."""
    if voxel in array:
        raise OddError(f"voxel {voxel}")
    return array


def leave(array, voxel):
    """Try to end the interpreter."""
    if voxel in array:
        raise SystemExit(5)
    return array


def nothing(array):
    """Return no array."""


def wrong_shape(array):
    """Return something smaller."""
    return array[1:]


def note(array, path, seconds=0.0):
    """Leave a mark in a file for each call."""
    mark = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(mark, b"x")
    os.close(mark)
    time.sleep(seconds)


class Broken(io.npy.Source):
    """An array in memory that cannot be read, or not be written, at a voxel."""

    __slots__ = ("at",)

    def __init__(self, array, at):
        super().__init__(array)
        self.at = at

    def read(self, region, out=None):
        if self.at == "read" and region.start[0]:
            raise OddError("cannot read")
        return super().read(region, out)

    def write(self, region, array):
        if self.at == "write" and region.start[0]:
            raise OddError("cannot write")
        super().write(region, array)


def stored(array, folder, name):
    """Return the path of an .npy file with an array."""
    path = Path(folder) / f"{name}.npy"
    np.save(path, array)
    return path


def settled(path):
    """Return how many marks there are in a file once no more of them come."""
    marks = -1
    while marks != (marks := os.path.getsize(path) if os.path.exists(path) else 0):
        time.sleep(0.2)
    return marks


def left_behind():
    """Return the names of the threads that a run must not leave; those of warm workers may stay."""
    return {t.name for t in threading.enumerate() if not t.name.startswith("gpublocks worker")}


class ExecutorContract:
    """Subclasses say how an executor is made."""

    most_ahead = 300
    """Cells that may begin beyond those whose events were taken."""

    def make(self, workers):
        """Return the executor under test."""
        raise NotImplementedError

    @pytest.fixture
    def executor(self):
        """The executor under test, with two workers."""
        return self.make(2)

    @pytest.fixture(params=["memory", "file"])
    def place(self, request):
        """Where the voxels are."""
        return request.param

    @pytest.fixture(params=["C", "F"])
    def order(self, request):
        """Memory order of source and sink."""
        return request.param

    def opened(self, array, place, folder, name, *, sink=False):
        """Return an array as a source or a sink."""
        opened = io.as_sink if sink else io.as_source
        return opened(array if place == "memory" else str(stored(array, folder, name)))

    def test_results_equal_those_of_the_whole(self, executor, place, order, tmp_path):
        self.check_results(executor, place, order, tmp_path, near, "array")

    def check_results(self, executor, place, order, folder, function, kind):
        """Compare a sink with what the function does to a whole array."""
        array = volume(order)
        source = self.opened(array, place, folder, "source")
        sink = self.opened(np.zeros_like(array), place, folder, "sink", sink=True)
        grid = grid_of()
        outputs = 0 if kind == "block" else 1
        job = Job(function, (source,), (sink,), grid, function_type=kind, outputs=outputs)
        done = [e for e in executor.run(job, grid) if isinstance(e, CellDone)]
        np.testing.assert_array_equal(np.asarray(sink), near(array))
        assert {event.cell for event in done} == set(grid)
        assert len(done) == len(grid)
        assert all(min(event.seconds) >= 0 and event.read_bytes > 0 for event in done)

    def test_steps_of_cells_are_recorded(self, executor, place, tmp_path):
        array = volume()
        source = self.opened(array, place, tmp_path, "source")
        sink = self.opened(np.zeros_like(array), place, tmp_path, "sink", sink=True)
        job = Job(near, (source,), (sink,), grid_of(), outputs=1, recorded=True)
        begun = time.perf_counter()
        done = [e for e in executor.run(job, grid_of()) if isinstance(e, CellDone)]
        ended = time.perf_counter()
        lanes = {}
        for event in done:
            spans = spans_of(event)
            # A cell that was done in parts has the steps of each.
            assert set(STEPS) - {"copy in", "copy out"} <= {span.step for span in spans}
            for span in spans:
                assert begun - 0.001 <= span.start <= span.start + span.seconds <= ended + 0.001
                lanes.setdefault(span.lane, []).append((span.start, span.start + span.seconds))
            if len(spans) <= len(STEPS):
                order = [STEPS.index(span.step) for span in spans]
                assert order == sorted(set(order))
                for before, after in itertools.pairwise(spans):
                    assert after.start >= before.start + before.seconds - 0.001
            for step, nbytes in (("read", event.read_bytes), ("write", event.written_bytes)):
                assert sum(span.nbytes for span in spans if span.step == step) == nbytes
        for spans in lanes.values():
            spans.sort()
            for (_, stop), (start, _) in itertools.pairwise(spans):
                assert start >= stop - 0.001, "a lane does one thing at a time"

    def test_several_sources_and_sinks_of_other_shapes(self, executor, place, tmp_path):
        array = volume()
        sources = [self.opened(array + n, place, tmp_path, f"source{n}") for n in range(2)]
        pairs = self.opened(np.zeros((*SHAPE, 2)), place, tmp_path, "pairs", sink=True)
        sums = self.opened(np.zeros((12, 1, 9), "f4"), place, tmp_path, "sums", sink=True)
        grid = grid_of()

        def both(one, two):
            return np.stack([one, two], -1), one.sum(1, keepdims=True), "ignored"

        job = Job(both, tuple(sources), (pairs, sums), grid, outputs=2)
        list(executor.run(job, grid))
        np.testing.assert_array_equal(np.asarray(pairs), np.stack([array, array + 1], -1))
        np.testing.assert_array_equal(np.asarray(sums), array.sum(1, keepdims=True))

    def test_functions_get_copies(self, executor, place, tmp_path):
        array = volume()
        source = self.opened(array, place, tmp_path, "source")
        before = np.array(np.asarray(source))
        sink = io.as_sink(np.zeros_like(array))
        list(executor.run(Job(destroy, (source,), (sink,), grid_of(), outputs=1), grid_of()))
        np.testing.assert_array_equal(np.asarray(source), before)
        np.testing.assert_array_equal(sink.array, array + 1)

    def test_functions_may_keep_what_they_got(self, executor):
        grid, array = tiny_cells(40)
        array[:] = np.arange(40)[:, None]
        kept = []

        def keep(array):
            kept.append(array)
            return [float(array[0, 0]) for array in kept]

        job = Job(keep, (io.as_source(array),), (), grid, return_result=True)
        for event in executor.run(job, grid):
            if isinstance(event, CellDone):
                assert event.cell.number in event.value
                assert len(set(event.value)) == len(event.value)

    def test_values_come_whole_and_keyword_arguments_are_fresh(self, executor):
        job = Job(grow, (io.as_source(volume()),), (), grid_of(), {"seen": []}, return_result=True)
        values = [e.value for e in executor.run(job, job.grid) if isinstance(e, CellDone)]
        assert values == [1] * len(job.grid)
        job = Job(near, (io.as_source(volume()),), (), grid_of(), return_result=True)
        for event in executor.run(job, job.grid):
            if isinstance(event, CellDone):
                region = event.cell.read_in(SHAPE)
                np.testing.assert_array_equal(event.value, near(volume()[region.slices]))
                event.value[:] = 0

    def test_outputs_are_kept_instead_of_stored(self, executor):
        sink = io.as_sink(np.zeros(SHAPE, "f4"))
        grid = grid_of()
        job = Job(near, (io.as_source(volume()),), (), grid, outputs=1, keep_outputs=True)
        for event in executor.run(job, grid[:2]):
            if isinstance(event, CellDone):
                sink.write(event.cell.valid_in(SHAPE), event.outputs[0])
        for cell in grid[:2]:
            valid = cell.valid_in(SHAPE).slices
            np.testing.assert_array_equal(sink.array[valid], near(volume())[valid])

    @pytest.mark.parametrize(
        "pick",
        [
            lambda grid: iter(grid),
            lambda grid: reversed(grid),
            lambda grid: (cell for cell in grid if cell.number % 2),
            lambda grid: [],
            lambda grid: [grid[1]],
        ],
        ids=["iterator", "backwards", "generator", "none", "one"],
    )
    def test_cells_may_be_any_iterable(self, executor, pick):
        sink = io.as_sink(np.full(SHAPE, -1.0, "f4"))
        grid = grid_of()
        expected = sink.array.copy()
        for cell in pick(grid):
            valid = cell.valid_in(SHAPE).slices
            expected[valid] = near(volume())[valid]
        job = Job(near, (io.as_source(volume()),), (sink,), grid, outputs=1)
        list(executor.run(job, pick(grid)))
        np.testing.assert_array_equal(sink.array, expected)

    def test_each_cell_begins_before_it_is_done(self, executor):
        job = Job(near, (io.as_source(volume()),), (), grid_of())
        seen = Counter()
        for event in executor.run(job, job.grid):
            if isinstance(event, CellStarted):
                assert seen[event.cell] == 0
                seen[event.cell] = 1
            elif isinstance(event, CellDone):
                assert seen[event.cell] == 1
                seen[event.cell] = 2
        assert seen == dict.fromkeys(job.grid, 2)

    def test_a_slow_consumer_holds_the_cells_back(self, executor, tmp_path):
        grid, array = tiny_cells(3000)
        path = str(tmp_path / "marks")
        job = Job(note, (io.as_source(array),), (), grid, {"path": path})
        events = iter(executor.run(job, iter(grid)))
        for _ in range(10):
            next(events)
        assert settled(path) <= 10 + self.most_ahead
        events.close()
        assert settled(path) <= 10 + self.most_ahead

    @pytest.mark.parametrize("function", [refuse, leave])
    def test_failures_name_block_and_stage(self, executor, function):
        messages = []
        for tested in (executor, SerialExecutor()):
            job = Job(function, (io.as_source(volume()),), (), grid_of(), {"voxel": 0.0}, outputs=0)
            events = []
            with pytest.raises((OddError, BlockError)) as caught:
                events.extend(tested.run(job, job.grid))
            assert type(caught.value) is (OddError if function is refuse else BlockError)
            text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
            assert f"block 0/{len(job.grid)}<(0, 0, 0)/" in text
            messages.append(str(caught.value))
        assert messages[0] == messages[1]

    def test_failures_are_the_last_event(self, executor):
        job = Job(refuse, (io.as_source(volume()),), (), grid_of(), {"voxel": 0.0})
        events = []
        with pytest.raises(OddError) as caught:
            events.extend(executor.run(job, job.grid))
        assert isinstance(events[-1], CellFailed)
        assert events[-1].error is caught.value
        assert events[-1].stage == "compute"
        assert events[-1].cell.number == 0

    @pytest.mark.parametrize("function", [nothing, wrong_shape])
    def test_results_that_cannot_be_stored(self, executor, function):
        messages = []
        for tested in (executor, SerialExecutor()):
            sink = io.as_sink(np.zeros(SHAPE, "f4"))
            job = Job(function, (io.as_source(volume()),), (sink,), grid_of(), outputs=1)
            with pytest.raises(BlockError, match="block 0/") as caught:
                list(tested.run(job, job.grid[:1]))
            assert (caught.value.block, caught.value.stage) == (0, "compute")
            assert not sink.array.any()
            messages.append(str(caught.value))
        assert messages[0] == messages[1]

    @pytest.mark.parametrize(("at", "stage"), [("read", "load"), ("write", "store")])
    def test_failures_of_arrays(self, executor, at, stage):
        source, sink = Broken(volume(), at), Broken(np.zeros(SHAPE, "f4"), at)
        job = Job(near, (source,), (sink,), grid_of(), outputs=1)
        events = []
        with pytest.raises(OddError, match=f"cannot {at}") as caught:
            events.extend(executor.run(job, job.grid))
        assert events[-1].stage == stage
        assert f"failed in stage '{stage}'" in "\n".join(caught.value.__notes__)

    @pytest.mark.parametrize("kind", [EOFError, StopIteration, OddError])
    def test_cells_that_cannot_be_had(self, executor, kind):
        grid = grid_of()

        class Cells:
            def __init__(self):
                self.rest = list(grid[:2])

            def __iter__(self):
                return self

            def __next__(self):
                if self.rest:
                    return self.rest.pop()
                raise kind("no more")

        job = Job(near, (io.as_source(volume()),), (), grid)
        if kind is StopIteration:
            assert len(list(executor.run(job, Cells()))) == 4
        else:
            with pytest.raises(kind):
                list(executor.run(job, Cells()))

    @pytest.mark.parametrize("how", ["cancel", "shutdown"])
    def test_cancelled_from_another_thread(self, executor, tmp_path, how):
        grid, array = tiny_cells(1000)
        path = str(tmp_path / "marks")
        job = Job(note, (io.as_source(array),), (), grid, {"path": path, "seconds": 0.05})
        run = executor.run(job, grid)

        def stop():
            while not os.path.exists(path):
                time.sleep(0.01)
            run.cancel() if how == "cancel" else run.shutdown(cancel_futures=True)
            run.cancel()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(RunCancelledError):
            list(run)
        thread.join()
        marks = settled(path)
        assert 0 < marks < 200
        self.still_works(executor)

    def test_cancelled_before_it_begins(self, executor, tmp_path):
        path = str(tmp_path / "marks")
        job = Job(note, (io.as_source(volume()),), (), grid_of(), {"path": path})
        run = executor.run(job, job.grid)
        run.cancel()
        with pytest.raises(RunCancelledError):
            list(run)
        assert settled(path) == 0

    def test_nothing_goes_on_after_the_consumer_left(self, executor, tmp_path):
        before = left_behind()
        grid, array = tiny_cells(1000)
        path = str(tmp_path / "marks")
        job = Job(note, (io.as_source(array),), (), grid, {"path": path, "seconds": 0.02})
        events = iter(executor.run(job, grid))
        next(events)
        events.close()
        marks = os.path.getsize(path) if os.path.exists(path) else 0
        assert settled(path) == marks
        assert left_behind() == before
        self.still_works(executor)

    def test_runs_in_many_threads(self, executor):
        sums = {}

        def total(number):
            job = Job(np.sum, (io.as_source(volume() + number),), (), grid_of(), return_result=True)
            events = executor.run(job, job.grid)
            sums[number] = sum(e.value for e in events if isinstance(e, CellDone))

        threads = [threading.Thread(target=total, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        voxels = sum(cell.read_in(SHAPE).size for cell in grid_of())
        assert [sums[n] - sums[0] for n in range(4)] == [n * voxels for n in range(4)]

    def still_works(self, executor):
        """Do something simple."""
        sink = io.as_sink(np.zeros(SHAPE, "f4"))
        job = Job(near, (io.as_source(volume()),), (sink,), grid_of(), outputs=1)
        list(executor.run(job, job.grid))
        np.testing.assert_array_equal(sink.array, near(volume()))
        assert sink.reach == Reach.PROCESS


class HostExecutorContract(ExecutorContract):
    """Executors that compute in host memory call functions of blocks too."""

    @pytest.mark.parametrize(("function", "kind"), [(near_source, "source"), (near_block, "block")])
    def test_functions_of_blocks(self, executor, place, order, tmp_path, function, kind):
        self.check_results(executor, place, order, tmp_path, function, kind)

    def test_blocks_in_memory_write_their_valid_region_only(self, executor):
        sink = io.as_sink(np.zeros(SHAPE, "f4"))
        job = Job(careless_block, (io.as_source(volume()),), (sink,), grid_of())
        job = replace(job, function_type="block")
        list(executor.run(job, job.grid))
        np.testing.assert_array_equal(sink.array, near(volume()))

    def test_blocks_show_what_the_sink_holds(self, executor, place, tmp_path):
        array = volume()
        source = self.opened(array, place, tmp_path, "source")
        sink = self.opened(array * 10, place, tmp_path, "sink", sink=True)
        job = Job(add_to_block, (source,), (sink,), grid_of(), function_type="block")
        list(executor.run(job, job.grid))
        np.testing.assert_array_equal(np.asarray(sink), array * 11)
