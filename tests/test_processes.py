"""Worker processes that die, hang, cannot start or cannot be talked to, and their parents."""

import ctypes
import gc
import importlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpublocks import cgroups, flow, io, wire, workers
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRetried,
    CellStarted,
    OutputWritten,
)
from gpublocks.errors import (
    ArgumentTypeError,
    BlockError,
    DeviceError,
    RunCancelledError,
    SourceError,
    WorkerDiedError,
)
from gpublocks.executors import (
    ProcessExecutor,
    SerialExecutor,
    _worker,
    processes,
    release_workers,
)
from gpublocks.grid import Grid
from gpublocks.job import Job
from gpublocks.splitting import split_axis

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

ROOT = Path(__file__).parents[1]
CELLS = 10


def make_job(function, cells=CELLS, **options):
    """Return a job over an array in memory; cell n begins with a voxel of value n."""
    array = np.arange(2.0 * cells).reshape(2, cells).T.copy()
    grid = Grid(array.shape, (0,), (split_axis(cells, size_max=1),))
    sink = io.as_sink(np.zeros_like(array))
    options = {"outputs": 1, "sinks": (sink,)} | options
    return Job(function, (io.as_source(array),), grid=grid, **options)


def events_of(job, count=2, **options):
    """Run a job; return its events and its error, if any."""
    events = []
    try:
        for event in ProcessExecutor(count, **options).run(job, job.grid):
            events.append(event)
    except Exception as error:
        return events, error
    return events, None


def value_of(function, **options):
    """Return what a function returns in a worker process."""
    job = make_job(function, 1, outputs=0, sinks=(), return_result=True, **options)
    events, error = events_of(job, 1)
    if error is not None:
        raise error
    return next(event.value for event in events if isinstance(event, CellDone))


def text_of(error):
    """Return a message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def kinds(events):
    """Return how many events there are of each kind."""
    return Counter(type(event) for event in events)


def assert_complete(job, events, expected):
    """Check that each cell was done once, and that the result is right."""
    done = Counter(event.cell.number for event in events if isinstance(event, CellDone))
    assert done == dict.fromkeys(range(len(job.grid)), 1)
    np.testing.assert_array_equal(job.sinks[0].array, expected(job.sources[0].array))


def alive(pid):
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds=30.0):
    """Wait for something; return whether it came."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def is_slot(thread):
    """Tell whether a thread tends a worker."""
    return thread.name.startswith("gpublocks worker")


def open_files():
    """Return what the descriptors of this process point to."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return sorted(name.partition(":")[0] for name in found)


def run_script(code, *arguments, check=True, **options):
    """Run a script in a fresh interpreter; return its standard output."""
    done = start_script(code, *arguments, **options)
    output, errors = done.communicate(timeout=60)
    assert not check or done.returncode == 0, errors
    return output


def start_script(code, *arguments, **options):
    """Start a script in a fresh interpreter."""
    command = [sys.executable, *options.pop("how", ["-c"]), textwrap.dedent(code), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


BEGIN = """
import os, sys, time, signal, threading
import numpy as np
from gpublocks import io
from gpublocks.contracts import CellDone
from gpublocks.executors import ProcessExecutor
from gpublocks.grid import Grid
from gpublocks.job import Job
from gpublocks.splitting import split_axis

def make_job(function, cells=10, **options):
    array = np.arange(2.0 * cells).reshape(2, cells).T.copy()
    grid = Grid(array.shape, (0,), (split_axis(cells, size_max=1),))
    return Job(function, (io.as_source(array),), (), grid, return_result=True, **options)

def values(job, workers=2):
    events = list(ProcessExecutor(workers).run(job, job.grid))
    done = {e.cell.number: e.value for e in events if isinstance(e, CellDone)}
    return [done[number] for number in sorted(done)]

"""


class TestDeath:
    """Of the worker, by the function or from outside."""

    @pytest.mark.parametrize(
        ("fatal", "ending"),
        [
            (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL (signal 9), most"),
            (lambda: ctypes.string_at(0), "killed by SIGSEGV (signal 11)"),
            (lambda: os.abort(), "killed by SIGABRT (signal 6)"),
            (lambda: os._exit(3), "exited with code 3"),
        ],
        ids=["kill", "segfault", "abort", "exit"],
    )
    def test_a_poison_cell_fails_the_run_after_one_retry(self, fatal, ending):
        def poison(array):
            if array[0, 0] == 4:
                fatal()
            return array

        events, error = events_of(make_job(poison))
        assert type(error) is WorkerDiedError
        assert (error.block, error.stage) == (4, "compute")
        assert str(error).startswith("block 4/10<(4, 0)/(10, 1)>: worker ")
        assert ending in str(error)
        assert [e.cell.number for e in events if isinstance(e, CellRetried)] == [4]
        assert isinstance(events[-1], CellFailed)
        if "SEGV" in ending or "ABRT" in ending:
            assert "in poison" in text_of(error)

    def test_one_death_costs_one_retry(self, tmp_path):
        def once(array, path):
            if array[0, 0] == 4 and not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return array + 1

        job = make_job(once, kwargs={"path": str(tmp_path / "once")})
        events, error = events_of(job)
        assert error is None
        assert_complete(job, events, lambda array: array + 1)
        (retried,) = [event for event in events if isinstance(event, CellRetried)]
        assert retried.cell.number == 4
        assert retried.worker in retried.reason
        assert "SIGKILL (signal 9), most often the kernel's out-of-memory" in retried.reason

    def test_sys_exit_is_an_error_of_the_block(self):
        def leave(array):
            sys.exit(5)

        events, error = events_of(make_job(leave))
        assert type(error) is BlockError
        assert "function raised SystemExit: 5" in str(error)
        assert kinds(events)[CellRetried] == 0

    def test_random_kills(self, tmp_path):
        cells, kills = 1500, 12
        paths = [tmp_path / name for name in ("source.npy", "sink.npy")]
        array = np.arange(2.0 * cells).reshape(cells, 2)
        for path in paths:
            np.save(path, array)
        grid = Grid(array.shape, (0,), (split_axis(cells, size_max=1),))
        source, sink = io.as_source(str(paths[0])), io.as_sink(str(paths[1]))
        dice = random.Random(1)

        def slow(array):
            time.sleep(0.0005)
            return array + 0.5

        done, retried = Counter(), set()
        moments = set(dice.sample(range(cells // 2), kills))
        for event in ProcessExecutor(2).run(Job(slow, (source,), (sink,), grid, outputs=1), grid):
            if isinstance(event, CellRetried):
                retried.add(event.cell.number)
            elif isinstance(event, CellDone):
                done[event.cell.number] += 1
                retried.discard(event.cell.number)
                # A cell that is done again must not be killed again: that would end the run.
                if moments and not retried and sum(done.values()) > min(moments):
                    slots = [s for pool in workers._pools for s in pool.slots if s.worker]
                    if slots:
                        moments.remove(min(moments))
                        dice.choice(slots).kill()
                        time.sleep(0.003 * dice.random())
        assert done == dict.fromkeys(range(cells), 1)
        np.testing.assert_array_equal(np.load(paths[1]), array + 0.5)
        assert not moments

    def test_death_while_idle_costs_nothing(self):
        (before,) = {value_of(lambda array: os.getpid())}
        os.kill(before, signal.SIGKILL)
        assert wait_until(lambda: not alive(before))
        events, error = events_of(make_job(lambda array: array), 1)
        assert error is None
        assert kinds(events)[CellRetried] == 0
        assert kinds(events)[CellDone] == CELLS

    def test_work_in_place_is_not_done_twice(self, tmp_path):
        path = str(tmp_path / "both.npy")
        np.save(path, np.zeros((4, 2)))
        grid = Grid((4, 2), (0,), (split_axis(4, size_max=1),))

        def increment(source, sink):
            sink[:] = source[:] + 1
            os.kill(os.getpid(), signal.SIGKILL)

        job = Job(increment, (io.as_source(path),), (io.as_sink(path),), grid)
        job = Job(job.function, job.sources, job.sinks, grid, function_type="block")
        events, error = events_of(job, 1)
        assert type(error) is WorkerDiedError
        assert "perhaps after changing what it reads" in str(error)
        assert kinds(events)[CellRetried] == 0
        np.testing.assert_array_equal(np.load(path)[:, 0], [1, 0, 0, 0])

        def die_before(array):
            os.kill(os.getpid(), signal.SIGKILL)

        job = Job(die_before, (io.as_source(path),), (io.as_sink(path),), grid, outputs=1)
        events, error = events_of(job, 1)
        assert "for the second time" in str(error)
        assert kinds(events)[CellRetried] == 1

    def test_blocks_that_change_a_file_are_not_done_twice(self, tmp_path):
        def add(source, sink, path):
            sink[:] = sink[:] + 1
            if source[0, 0] == 4 and not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

        path = str(tmp_path / "sums.npy")
        np.save(path, np.zeros((CELLS, 2)))
        options = {"function_type": "block", "outputs": 0}
        job = make_job(
            add, sinks=(io.as_sink(path),), kwargs={"path": str(tmp_path / "file")}, **options
        )
        events, error = events_of(job)
        assert type(error) is WorkerDiedError
        assert (error.block, kinds(events)[CellRetried]) == (4, 0)
        assert np.load(path).max() == 1
        job = make_job(add, kwargs={"path": str(tmp_path / "memory")}, **options)
        events, error = events_of(job)
        assert error is None
        assert kinds(events)[CellRetried] == 1
        assert_complete(job, events, np.ones_like)

    def in_place(self, tmp_path, monkeypatch):
        """Return a job whose cells queue, in place in a file; cell 5 kills its worker once."""
        monkeypatch.setattr(processes, "_FAST_SECONDS", 100.0)
        monkeypatch.setattr(processes, "_QUEUED_SECONDS", 100.0)
        folder, cells = str(tmp_path), 100
        path = os.path.join(folder, "both.npy")
        np.save(path, np.zeros((cells, 2)))

        def add(array, numbers):
            deadline = time.monotonic() + 30
            while numbers[0, 0] == 4 and time.monotonic() < deadline:
                if os.path.exists(os.path.join(folder, "go")):
                    break
                time.sleep(0.001)
            mark = os.path.join(folder, "once")
            if numbers[0, 0] == 5 and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return array + 1

        job = make_job(add, cells)
        sources = (io.as_source(path), *job.sources)
        return Job(add, sources, (io.as_sink(path),), job.grid, outputs=1), path

    def let_die(self, tmp_path):
        """Let cell 4 end and wait for the death of the worker in cell 5."""
        (pid,) = [s.worker.pid for p in workers._pools for s in p.slots if s.worker]
        (tmp_path / "go").touch()
        assert wait_until(lambda: not alive(pid))

    def test_deaths_that_are_noticed_when_sending(self, tmp_path, monkeypatch):
        release_workers()
        send, waited = wire.Wire.send, []

        def send_late(self_, message, *descriptors):
            if message[0] == "cells" and message[1][0][0] > 5 and not waited:
                waited.append(message)
                self.let_die(tmp_path)
            send(self_, message, *descriptors)

        monkeypatch.setattr(wire.Wire, "send", send_late)
        job, path = self.in_place(tmp_path, monkeypatch)
        events, error = events_of(job, 1)
        assert error is None
        assert waited
        np.testing.assert_array_equal(np.load(path), np.ones((100, 2)))
        assert [e.cell.number for e in events if isinstance(e, CellRetried)] == [5]

    def test_cells_that_may_be_done_unheard_are_not_done_again_in_place(
        self, tmp_path, monkeypatch
    ):
        release_workers()
        receive, heard = wire.Wire.receive, []

        def lose(self_):
            message = receive(self_)
            heard.append(message[0])
            if heard.count("done") == 4:
                self.let_die(tmp_path)
                raise wire.WireClosedError
            return message

        monkeypatch.setattr(wire.Wire, "receive", lose)
        job, path = self.in_place(tmp_path, monkeypatch)
        events, error = events_of(job, 1)
        assert type(error) is WorkerDiedError
        assert error.block == 5
        assert "perhaps after changing what it reads" in str(error)
        assert kinds(events)[CellRetried] == 0
        assert np.load(path).max() == 1

    def test_out_of_memory_kills_are_named(self, monkeypatch):
        release_workers()
        counts = iter([3, 5, 5, 6])
        monkeypatch.setattr(cgroups, "oom_kills", lambda: next(counts))
        events, error = events_of(make_job(lambda array: os.kill(os.getpid(), 9), 1))
        assert "out-of-memory killer (1 such kills meanwhile)" in str(error)
        reasons = [event.reason for event in events if isinstance(event, CellRetried)]
        assert "out-of-memory killer (2 such kills meanwhile)" in reasons[0]
        monkeypatch.undo()

    def test_what_a_worker_started_ends_with_it(self, tmp_path):
        path = tmp_path / "pid"

        def start(array, path):
            child = subprocess.Popen(["sleep", "1000"])
            Path(path).write_text(str(child.pid))
            time.sleep(1000)

        job = make_job(start, 1, kwargs={"path": str(path)})
        run = ProcessExecutor(1).run(job, job.grid)
        threading.Thread(target=lambda: (wait_until(path.exists), run.cancel())).start()
        with pytest.raises(RunCancelledError):
            list(run)
        assert wait_until(lambda: not alive(int(path.read_text())))

    def test_children_forked_by_a_function_do_not_keep_it_alive(self, tmp_path):
        path = tmp_path / "once"

        def fork_and_die(array, path):
            if not os.path.exists(path):
                child = os.fork()
                if child == 0:
                    os.setsid()
                    print("lost")
                    time.sleep(1000)
                Path(path).write_text(str(child))
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)
            return array

        job = make_job(fork_and_die, 1, kwargs={"path": str(path)})
        events, error = events_of(job, 1)
        child = int(path.read_text())
        assert error is None
        assert kinds(events) == {CellStarted: 2, CellRetried: 1, CellDone: 1}
        assert alive(child)
        os.kill(child, signal.SIGKILL)


class TwoArgumentsError(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class GarbledError(Exception):
    """Unpickles to another text."""

    def __init__(self, code):
        super().__init__(f"code {code}")


class UnpicklableError(Exception):
    """Does not pickle."""

    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


class SpeechlessError(Exception):
    """Has no text."""

    def __str__(self):
        raise RuntimeError("no words")


class PlainError(KeyError):
    """Is fine."""


class TestErrors:
    """Of the function: their types and texts."""

    @pytest.mark.parametrize(
        ("make", "kind", "text"),
        [
            (lambda: PlainError("key"), PlainError, "key"),
            (lambda: MemoryError("too much"), MemoryError, "too much"),
            (lambda: BlockError("told", 3, "compute"), BlockError, "told"),
            (
                lambda: TwoArgumentsError(1, 2),
                BlockError,
                "raised TwoArgumentsError: 1 and 2",
            ),
            (lambda: GarbledError(7), BlockError, "function raised GarbledError: code 7"),
            (lambda: UnpicklableError(), BlockError, "function raised UnpicklableError: locked"),
            (
                lambda: SpeechlessError(),
                BlockError,
                "raised SpeechlessError: its message",
            ),
            (lambda: KeyboardInterrupt(), BlockError, "function raised KeyboardInterrupt"),
            (lambda: GeneratorExit(), BlockError, "function raised GeneratorExit"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_errors_keep_their_type_or_become_block_errors(self, make, kind, text):
        def fail(array):
            raise make()

        events, error = events_of(make_job(fail))
        assert type(error) is kind
        assert text in str(error)
        assert "in fail" in text_of(error)
        assert kinds(events)[CellRetried] == 0
        events, error = events_of(make_job(lambda array: array))
        assert error is None

    def test_errors_of_the_main_module_keep_their_type(self):
        code = """
        class Mine(ValueError):
            pass
        def fail(array):
            raise Mine("hello")
        try:
            values(make_job(fail))
        except Mine as error:
            print("caught", error)
        """
        assert run_script(BEGIN + textwrap.dedent(code)) == "caught hello\n"

    def test_results_that_cannot_be_pickled(self):
        job = make_job(lambda array: threading.Lock(), outputs=0, sinks=(), return_result=True)
        events, error = events_of(job)
        assert type(error) is TypeError
        assert "what the function returned cannot be pickled" in str(error)
        assert "failed in stage 'compute'" in text_of(error)
        assert kinds(events)[CellRetried] == 0

    def test_functions_that_cannot_be_sent(self):
        lock = threading.Lock()

        def locked(array):
            with lock:
                return array

        begun = []
        executor = ProcessExecutor(2)
        job = make_job(locked)
        message = r"cannot send function 'locked' to .*'_thread.lock'.*; use executor='threads'"
        with pytest.raises(ArgumentTypeError, match=message):
            executor.run(job, begun)
        job = make_job(lambda array, value: array, kwargs={"value": lock})
        with pytest.raises(ArgumentTypeError, match="cannot send argument 'value' of function"):
            executor.run(job, begun)

    def test_functions_that_cannot_be_loaded(self):
        class Unloadable:
            def __reduce__(self):
                return eval, ("no_such_name",)

            def __call__(self, array):
                return array

        pids = {value_of(lambda array: os.getpid()) for _ in range(2)}
        events, error = events_of(make_job(Unloadable()))
        assert type(error) is ArgumentTypeError
        assert "cannot load function 'Unloadable': NameError" in str(error)
        assert kinds(events)[CellDone] == 0
        assert value_of(lambda array: os.getpid()) in pids

    def test_files_that_are_gone(self, tmp_path):
        path = tmp_path / "gone.npy"
        np.save(path, np.zeros((4, 2)))
        source = io.as_source(str(path))
        grid = Grid((4, 2), (0,), (split_axis(4, size_max=1),))
        path.unlink()
        events, error = events_of(Job(lambda array: None, (source,), (), grid))
        assert isinstance(error, SourceError)
        assert kinds(events)[CellDone] == 0

    def test_failures_do_not_wait_for_slow_cells(self, tmp_path):
        def sleep_or_fail(array, path):
            try:
                open(path, "x").close()
            except FileExistsError:
                raise ValueError("failed") from None
            time.sleep(1000)

        _, error = events_of(make_job(sleep_or_fail, kwargs={"path": str(tmp_path / "first")}))
        assert "failed" in str(error)
        _, error = events_of(make_job(lambda array: array))
        assert error is None


class TestInterrupts:
    """At any moment; the next run goes on as if nothing had been."""

    def still_works(self):
        """Run something in another thread, which would wait for slots that never come free."""
        found = []
        thread = threading.Thread(
            target=lambda: found.extend(events_of(make_job(np.negative))), daemon=True
        )
        thread.start()
        thread.join(30)
        assert found
        assert found[1] is None

    def test_when_the_slots_are_given_their_task(self, monkeypatch):
        give, given = workers.Slot.give, []

        def interrupt(slot, task):
            given.append(slot)
            if len(given) == 2:
                raise KeyboardInterrupt
            give(slot, task)

        with monkeypatch.context() as patch:
            patch.setattr(workers.Slot, "give", interrupt)
            with pytest.raises(KeyboardInterrupt):
                events_of(make_job(np.negative))
        self.still_works()

    def test_when_the_run_is_stopped(self, monkeypatch):
        close, closed = flow.Events.close, []

        def interrupt(events):
            closed.append(events)
            if len(closed) == 1:
                raise KeyboardInterrupt
            close(events)

        put, queues = flow.Events.put, []

        def put_noted(events, *arguments, **options):
            queues.append(events)
            put(events, *arguments, **options)

        monkeypatch.setattr(flow.Events, "put", put_noted)
        job = make_job(np.negative, 1000)
        events = iter(ProcessExecutor(2).run(job, job.grid))
        next(events)
        assert wait_until(lambda: len(queues[0]._batches) == queues[0]._limit)
        with monkeypatch.context() as patch:
            patch.setattr(flow.Events, "close", interrupt)
            with pytest.raises(KeyboardInterrupt):
                events.close()
        self.still_works()

    def test_cancelled_while_a_worker_starts(self, tmp_path, monkeypatch):
        path = str(tmp_path / "called")

        def late(array):
            open(path, "w").close()
            time.sleep(1)

        job = make_job(late, outputs=0, sinks=())
        run = ProcessExecutor(1).run(job, job.grid)
        started = workers._started

        def cancel_first(*arguments):
            run.cancel()
            return started(*arguments)

        release_workers()
        with monkeypatch.context() as patch:
            patch.setattr(workers, "_started", cancel_first)
            with pytest.raises(RunCancelledError):
                list(run)
        assert not os.path.exists(path)

    def test_garbage_collected_by_a_slot(self, monkeypatch):
        done, go, closed = processes._Lane._done, threading.Event(), threading.Event()
        job = make_job(np.negative, 100)
        events = iter(ProcessExecutor(2).run(job, job.grid))

        def collect(lane, *message):
            go.wait(30)
            if not closed.is_set():
                events.close()
                closed.set()
            done(lane, *message)

        with monkeypatch.context() as patch:
            patch.setattr(processes._Lane, "_done", collect)
            next(events)
            threading.Thread(target=go.set).start()
            assert closed.wait(30)
        self.still_works()


class TestQueue:
    """Cells that wait at a worker."""

    def test_slow_cells_do_not_wait_while_others_are_idle(self, tmp_path):
        folder, cells, slow = str(tmp_path), 200, 12

        def meet(array):
            """Wait until two workers are at slow cells."""
            if array[0, 0] >= cells - slow:
                open(os.path.join(folder, str(os.getpid())), "w").close()
                deadline = time.monotonic() + 10
                while len(os.listdir(folder)) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

        job = make_job(meet, cells, outputs=0, sinks=())
        assert events_of(job)[1] is None

    def test_a_slow_cell_is_remembered(self):
        job = make_job(np.negative, 1000)
        work = processes._Work(job, processes.Parcel.of(job, None))
        lane = processes._Lane(work, types.SimpleNamespace(name="worker 1"))
        depths = []
        for seconds in (1e-5, 1e-5, 1.0, 1e-5, 1e-5):
            lane._flight.append(processes._Loaded(job.grid[0], lane._places.pop(), 0.0, 0.0))
            lane._store = lambda cell, number: time.perf_counter()
            lane._done(0.0, (0.0, seconds, 0.0), 0, 0, None)
            depths.append(lane._depth)
        assert depths[1] > 8
        assert depths[2:] == [1, 1, 1]


class TestFunctions:
    """Whatever can be called can be sent."""

    def test_lambdas_closures_partials_and_ufuncs(self):
        offset = 3
        for function in (lambda array: array + offset, np.negative, np.poly1d([2, 1])):
            job = make_job(function)
            events, error = events_of(job)
            assert error is None
            assert_complete(job, events, function)

    @pytest.mark.parametrize("how", ["file", "command", "input"])
    def test_scripts_without_a_guard(self, tmp_path, how):
        code = """
        SCALE = 2
        def twice(array):
            return helped(array) * SCALE
        def helped(array):
            return float(array[0, 0])
        print(values(make_job(twice)))
        """
        code = BEGIN + textwrap.dedent(code)
        expected = f"{[2.0 * n for n in range(10)]}\n"
        path = tmp_path / "script.py"
        path.write_text(code)
        if how == "command":
            assert run_script(code) == expected
        elif how == "file":
            assert run_script("", how=[str(path)]) == expected
        else:
            with open(path) as stdin:
                assert run_script("", how=["-"], stdin=stdin) == expected

    def test_modules_beside_the_script(self, tmp_path):
        (tmp_path / "beside.py").write_text("def add(array):\n    return float(array[0, 0]) + 1\n")
        path = tmp_path / "script.py"
        path.write_text(BEGIN + "import beside\nprint(values(make_job(beside.add)))\n")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "json.py").write_text("raise RuntimeError('the wrong json')\n")
        (elsewhere / "struct.py").write_text("raise RuntimeError('the wrong struct')\n")
        expected = f"{[n + 1.0 for n in range(10)]}\n"
        assert run_script("", how=[str(path)], cwd=elsewhere) == expected

    def test_modules_that_were_edited(self, tmp_path, monkeypatch):
        path = tmp_path / "edited.py"
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        answers = []
        for number in (1, 20, 300):
            path.write_text(f"def answer(array):\n    return {number}\n")
            sys.modules.pop("edited", None)
            importlib.invalidate_caches()
            answers.append(value_of(importlib.import_module("edited").answer))
        assert answers == [1, 20, 300]

    def test_files_beside_installed_ones_are_watched(self, monkeypatch):
        folders = [sys.prefix + "-mine", os.path.join(sys.prefix, "src"), "/usr/src/app"]
        mine = {os.path.join(folder, "mine.py") for folder in folders}
        for path in mine:
            module = types.ModuleType("mine")
            module.__file__ = path
            monkeypatch.setitem(sys.modules, path, module)
        watched = {path for path, _ in _worker._modules_of_the_user(0)}
        assert mine <= watched
        assert not watched & {np.__file__, pytest.__file__, textwrap.__file__}

    def test_the_current_folder_is_that_of_the_parent(self, tmp_path, monkeypatch):
        value_of(lambda array: None)
        monkeypatch.chdir(tmp_path)
        assert value_of(lambda array: os.getcwd()) == str(tmp_path)

    def test_libraries_use_one_thread(self):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        assert value_of(lambda array: [os.environ[name] for name in names]) == ["1"] * 3

    def test_large_values(self):
        def large(array):
            return {"large": np.full((3000, 1000), array[0, 0]), "text": "x" * 3_000_000}

        value = value_of(large)
        assert value["large"].shape == (3000, 1000)
        assert len(value["text"]) == 3_000_000
        value["large"][:] = 1

    def test_large_arguments(self):
        table = np.arange(3_000_000.0)
        assert value_of(lambda array, table: table.sum(), kwargs={"table": table}) == table.sum()

    def test_daemonic_parents(self):
        code = """
        import multiprocessing
        def work(queue):
            queue.put(values(make_job(lambda array: float(array[0, 0]))))
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            queue = context.SimpleQueue()
            process = context.Process(target=work, args=(queue,), daemon=True)
            process.start()
            print(queue.get())
            process.join()
        """
        assert run_script(BEGIN + textwrap.dedent(code)) == f"{[float(n) for n in range(10)]}\n"

    def test_nested_runs(self):
        def outer(array):
            job = make_job(lambda block: float(block[0, 0]), 3, outputs=0, sinks=())
            job = Job(job.function, job.sources, (), job.grid, return_result=True)
            events = ProcessExecutor(1).run(job, job.grid)
            return [event.value for event in events if isinstance(event, CellDone)]

        assert value_of(outer) == [0.0, 1.0, 2.0]

    def test_a_run_within_a_run(self):
        job = make_job(lambda array: array + 1)
        events = []
        for event in ProcessExecutor(2).run(job, job.grid):
            events.append(event)
            if len(events) == 3:
                assert value_of(lambda array: float(array[0, 1])) == 1.0
        assert_complete(job, events, lambda array: array + 1)

    def test_forks_after_the_start(self):
        parents = {value_of(lambda array: os.getpid())}
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def child():
            answers.put(value_of(lambda array: (os.getpid(), os.getppid())))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = context.Process(target=child)
            process.start()
        worker, parent = answers.get()
        process.join()
        assert parent == process.pid
        assert worker not in parents
        assert wait_until(lambda: not alive(worker))
        assert value_of(lambda array: os.getpid()) in parents


class TestWarmth:
    """Workers stay, and go."""

    def test_workers_are_used_again(self):
        first = {value_of(lambda array: os.getpid()) for _ in range(3)}
        assert len(first) == 1
        assert value_of(lambda array: os.getpid()) in first

    def test_slots_with_a_worker_come_first(self):
        release_workers()
        events_of(make_job(lambda array: array))
        first, second = workers._pools[0].slots
        cold = threading.Event()
        first.give(lambda slot: (slot.retire(), cold.set()))
        assert cold.wait(30)
        warm = second.worker.pid
        assert value_of(lambda array: os.getpid()) == warm

    def test_idle_workers_end(self, monkeypatch):
        release_workers()
        monkeypatch.setattr(workers, "IDLE_SECONDS", 0.1)
        pid = value_of(lambda array: os.getpid())
        assert wait_until(lambda: not alive(pid))
        assert value_of(lambda array: os.getpid()) != pid
        release_workers()

    def test_workers_are_released(self):
        pid = value_of(lambda array: os.getpid())
        release_workers()
        assert not alive(pid)
        assert wait_until(lambda: not any(map(is_slot, threading.enumerate())))

    def test_nothing_is_left_open(self):
        release_workers()
        gc.collect()
        before = open_files()
        for function in (lambda array: array, lambda array: os._exit(1)):
            events_of(make_job(function))
        release_workers()
        gc.collect()
        assert open_files() == before

    @pytest.mark.parametrize("what", ["memfd_create", "ftruncate", "mmap", "Popen"])
    def test_nothing_is_left_open_when_a_worker_cannot_be_started(self, monkeypatch, what):
        def refuse(*arguments, **options):
            raise OSError(24, "Too many open files")

        place = {"mmap": workers.mmap, "Popen": subprocess}.get(what, os)
        before = open_files()
        with monkeypatch.context() as patch:
            patch.setattr(place, what, refuse)
            with pytest.raises(OSError, match="Too many"):
                workers.WorkerProcess()
        assert open_files() == before
        with monkeypatch.context() as patch:
            patch.setattr(workers.mmap, "mmap", refuse)
            with pytest.raises(OSError, match="Too many"):
                io.staged.Ring(1000)
        assert open_files() == before

    def test_only_as_many_workers_as_cells(self):
        release_workers()
        job = make_job(lambda array: array, 2)
        assert events_of(job, 8)[1] is None
        assert sum(slot.worker is not None for p in workers._pools for slot in p.slots) == 2

    def test_libraries_clean_up_behind_them(self, tmp_path):
        path = str(tmp_path / "left")

        def leave_note(array):
            import atexit

            atexit.register(lambda: open(path, "w").close())

        release_workers()
        value_of(leave_note)
        release_workers()
        assert os.path.exists(path)

    def test_workers_die_with_their_parent(self):
        code = """
        def hang(array):
            print(os.getpid(), flush=True)
            while True:
                pass
        from gpublocks.contracts import OutputWritten
        job = make_job(hang)
        for event in ProcessExecutor(2).run(job, job.grid):
            if isinstance(event, OutputWritten):
                print(event.text, end="", flush=True)
        """
        shared = set(os.listdir("/dev/shm"))
        parent = start_script(BEGIN + textwrap.dedent(code))
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        parent.kill()
        parent.communicate()
        assert wait_until(lambda: not any(map(alive, pids)), 10)
        # Others of this machine come and go there too.
        assert wait_until(lambda: set(os.listdir("/dev/shm")) <= shared, 10)

    def test_interrupts_end_a_script(self):
        code = """
        def hang(array):
            time.sleep(1000)
        from gpublocks.contracts import CellStarted
        job = make_job(hang)
        pids = []
        try:
            for event in ProcessExecutor(2).run(job, job.grid):
                from gpublocks import workers
                pids += [s.worker.pid for p in workers._pools for s in p.slots if s.worker]
                print("begun", flush=True)
        except KeyboardInterrupt:
            print("interrupted", [os.path.exists(f"/proc/{pid}") for pid in pids], flush=True)
        """
        parent = start_script(BEGIN + textwrap.dedent(code))
        assert parent.stdout.readline() == "begun\n"
        parent.send_signal(signal.SIGINT)
        output, _ = parent.communicate(timeout=10)
        assert "interrupted [False" in output
        assert "True" not in output

    def test_scripts_that_end_amid_a_run(self):
        code = """
        def hang(array):
            time.sleep(1000)
        job = make_job(hang)
        events = iter(ProcessExecutor(2).run(job, job.grid))
        next(events)
        sys.modules["__main__"].kept = events
        print("leaving", flush=True)
        """
        assert run_script(BEGIN + textwrap.dedent(code)) == "leaving\n"


class TestStart:
    """Workers that do not come up."""

    def test_an_interpreter_that_does_not_exist(self, monkeypatch):
        release_workers()
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        _, error = events_of(make_job(lambda array: array))
        assert isinstance(error, DeviceError)
        assert "/no/such/python" in text_of(error)

    def test_an_interpreter_that_does_not_start(self, monkeypatch, tmp_path):
        release_workers()
        counter = tmp_path / "starts"
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\necho start >> {counter}\necho no such module >&2\nexit 7\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        _, error = events_of(make_job(lambda array: array), 1)
        assert isinstance(error, DeviceError)
        assert "exited with code 7" in str(error)
        assert "no such module" in text_of(error)
        assert counter.read_text().split() == ["start"] * 2

    def test_a_path_without_the_package(self, monkeypatch):
        release_workers()
        monkeypatch.setattr(sys, "path", ["/nowhere"])
        monkeypatch.setenv("PYTHONPATH", "")
        _, error = events_of(make_job(lambda array: array), 1)
        assert isinstance(error, DeviceError)
        assert "ModuleNotFoundError" in text_of(error)

    def test_a_function_that_crashes_when_it_is_loaded(self):
        class Crash:
            def __reduce__(self):
                return os._exit, (9,)

            def __call__(self, array):
                return array

        release_workers()
        _, error = events_of(make_job(Crash()))
        assert isinstance(error, DeviceError)
        assert "exited with code 9" in str(error)


class TestMemory:
    """Limits and measurements."""

    def test_the_limit_is_a_memory_error(self):
        def hungry(array, nbytes):
            return float(np.ones(nbytes, np.uint8)[-1])

        job = make_job(hungry, 1, outputs=0, sinks=(), kwargs={"nbytes": 400 << 20})
        _, error = events_of(job, 1, memory_limit=100 << 20)
        assert isinstance(error, MemoryError)
        assert "block 0/1" in text_of(error)
        job = make_job(hungry, 1, outputs=0, sinks=(), kwargs={"nbytes": 20 << 20})
        assert events_of(job, 1, memory_limit=100 << 20)[1] is None
        limits = value_of(lambda array: resource.getrlimit(resource.RLIMIT_DATA))
        assert limits == resource.getrlimit(resource.RLIMIT_DATA)

    def test_results_that_do_not_fit_twice_are_a_memory_error(self):
        def large(array, nbytes):
            return b"x" * nbytes

        for nbytes, kind in ((70 << 20, MemoryError), (20 << 20, type(None))):
            job = make_job(
                large, 1, outputs=0, sinks=(), return_result=True, kwargs={"nbytes": nbytes}
            )
            events, error = events_of(job, 1, memory_limit=100 << 20)
            assert type(error) is kind
            assert error is None or "block 0/1<(0, 0)/(1, 1)> failed" in text_of(error)
            assert kinds(events)[CellRetried] == 0

    def test_the_first_cell_is_measured(self):
        def spread(array, nbytes):
            voxels = np.ones(nbytes, np.uint8)
            time.sleep(0.1)
            return array + voxels[:1]

        for nbytes in (100 << 20, 30 << 20):
            job = make_job(spread, sinks=(), keep_outputs=True, kwargs={"nbytes": nbytes})
            events = list(ProcessExecutor(2).run(job, job.grid[:1]))
            (done,) = [event for event in events if isinstance(event, CellDone)]
            assert 0.9 * nbytes < done.peak_bytes < 1.5 * nbytes
            np.testing.assert_array_equal(done.outputs[0], [[1, CELLS + 1]])
        events, _ = events_of(make_job(lambda array: array))
        assert {e.peak_bytes for e in events if isinstance(e, CellDone)} == {None}


class TestOutput:
    """What workers print."""

    def test_lines_are_forwarded(self, capfd):
        def talk(array):
            print("one", array[0, 0])
            print("two\nthree ", end="")
            print("\N{GREEK SMALL LETTER ALPHA}", file=sys.stderr)
            sys.stdout.buffer.write(b"bytes\n")
            assert sys.stdout.fileno() == 1

        job = make_job(talk, 1, outputs=0, sinks=())
        events, error = events_of(job, 1)
        assert error is None
        written = [event for event in events if isinstance(event, OutputWritten)]
        text = {"stdout": "", "stderr": ""}
        for event in written:
            assert event.worker.startswith("worker ")
            text[event.stream] += event.text
        assert text == {"stdout": "one 0.0\ntwo\nthree bytes\n", "stderr": "\u03b1\n"}
        assert isinstance(events[-1], CellDone)
        assert capfd.readouterr() == ("", "")

    def test_many_threads_may_print(self):
        def talk(array):
            def lines():
                for n in range(200):
                    print(f"line {n}")

            threads = [threading.Thread(target=lines) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        events, error = events_of(make_job(talk, 2, outputs=0, sinks=()))
        assert error is None
        text = "".join(event.text for event in events if isinstance(event, OutputWritten))
        assert text.count("\n") == 1600
        assert text.count("line ") == 1600

    def test_whatever_is_printed_amid_a_line_comes_once(self):
        def interrupted(at):
            """Print; at one of the instructions meanwhile, print something else."""
            sent, steps = [], iter(range(10_000))
            wire = types.SimpleNamespace(send=lambda message: sent.append(message[2]))
            forward = _worker._Forward(wire, "stdout", 1)

            def trace(frame, event, argument):
                frame.f_trace_opcodes = True
                if event == "opcode" and next(steps) == at:
                    sys.settrace(None)
                    forward.write(b"tick\n")
                return trace

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                forward.write(b"one\ntw")
                forward.write(b"o\n")
                forward.flush()
            finally:
                sys.settrace(before)
            forward.flush()
            return "".join(sent), next(steps)

        _, instructions = interrupted(-1)
        assert instructions > 100
        for at in range(instructions):
            text = interrupted(at)[0]
            assert sorted(text) == sorted("one\ntwo\ntick\n"), at

    def test_timers_may_print(self):
        def tick(array):
            if not signal.getitimer(signal.ITIMER_REAL)[1]:
                signal.signal(signal.SIGALRM, lambda *_: print("tick"))
                signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)

        found = []
        job = make_job(tick, 2000, outputs=0, sinks=())
        thread = threading.Thread(target=lambda: found.extend(events_of(job, 1)), daemon=True)
        thread.start()
        thread.join(30)
        release_workers()
        assert found
        assert found[1] is None

    def test_output_between_runs_does_not_block(self):
        def talk_later(array):
            def lines():
                time.sleep(0.1)
                for _ in range(20):
                    print("x" * 50_000)

            threading.Thread(target=lines, daemon=True).start()

        job = make_job(talk_later, 1, outputs=0, sinks=())
        assert events_of(job, 1)[1] is None
        time.sleep(0.3)
        for _ in range(3):
            events, error = events_of(make_job(lambda array: array), 1)
            assert error is None
            assert kinds(events)[CellDone] == CELLS


def test_serial_agrees_on_everything_here():
    job = make_job(np.negative)
    list(SerialExecutor().run(job, job.grid))
    np.testing.assert_array_equal(job.sinks[0].array, -job.sources[0].array)
