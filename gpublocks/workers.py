"""Worker processes and the warm pool of them: how they start and end. Touches processes."""

import atexit
import mmap
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from gpublocks import cgroups
from gpublocks.contracts import Stage
from gpublocks.wire import Wire

__all__ = [
    "STAGES",
    "STATUS",
    "STATUS_BYTES",
    "Death",
    "Slot",
    "WorkerProcess",
    "leased",
    "nesting",
    "release_workers",
]

STAGES: tuple[Stage, ...] = ("load", "compute", "store")

STATUS = struct.Struct("<qB")
"""What a worker is at: number of the cell plus one, 0 for none; and the index of its stage."""

STATUS_BYTES = mmap.PAGESIZE
"""The status is the first page of the worker's log; text follows."""

IDLE_SECONDS = 60.0
"""How long a worker stays warm without work."""

_DEPTH = "GPUBLOCKS_DEPTH"
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLOSC_NTHREADS",
    "TIFFFILE_NUM_THREADS",
)
# Nothing may be imported before the path is that of the parent: the current folder comes first
# in the path of `python -c`, and a file in it could take the place of a standard module.
_BOOT = """\
import sys
sys.path[:] = sys.argv[1].split("\\n")
from gpublocks.executors._worker import main
main(*map(int, sys.argv[2:]))
"""
_LAST_WORDS_BYTES = 4096
_EXIT_SECONDS = 0.2
_LEAVE_SECONDS = 1.0
_QUEUE_SECONDS = 0.05


def nesting() -> int:
    """Return how many worker processes lie between this process and the user's own: 0 for that."""
    text = os.environ.get(_DEPTH, "0")
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker process ended.

    Parameters
    ----------
    code : int
        Its exit code, or the negative number of the signal that killed it.
    number : int or None
        The cell that it had begun last.
    stage : {'load', 'compute', 'store'}
        The stage of that cell.
    oom_kills : int
        How many processes the kernel has killed for want of memory since the worker started.
    last_words : str
        The end of what it wrote before it was ready, and in a crash.
    """

    code: int
    number: int | None
    stage: Stage
    oom_kills: int
    last_words: str

    @property
    def reason(self) -> str:
        """The code in words: ``'exited with code 3'``."""
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = "a signal"
        text = f"was killed by {name} (signal {-self.code})"
        if -self.code != signal.SIGKILL:
            return text
        text += ", most often the kernel's out-of-memory killer"
        return f"{text} ({self.oom_kills} such kills meanwhile)" if self.oom_kills else text


class WorkerProcess:
    """A worker process, started by the thread that will outlive it.

    The kernel ends the worker when that thread ends, whatever happened to it.

    Raises
    ------
    OSError
        If it cannot be started.

    Attributes
    ----------
    pid : int
    wire : Wire
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reaped = False
        self._oom_kills = cgroups.oom_kills()
        near, far = socket.socketpair()
        with ExitStack() as undoing, far:
            undoing.callback(near.close)
            # Where the worker says what it is at, and writes its last words; it has no name, so
            # that nothing is left of it however both processes end.
            self._log = os.memfd_create("gpublocks-worker", os.MFD_CLOEXEC)
            undoing.callback(os.close, self._log)
            os.ftruncate(self._log, STATUS_BYTES)
            os.lseek(self._log, 0, os.SEEK_END)
            self._status = mmap.mmap(self._log, STATUS_BYTES)
            undoing.callback(self._status.close)
            self._process = _started(far.fileno(), self._log)
            undoing.pop_all()
        self.pid = self._process.pid
        self.wire = Wire(near)

    def rest(self) -> None:
        """Note that an idle worker has begun no cell."""
        STATUS.pack_into(self._status, 0, 0, 0)

    def kill(self) -> None:
        """End the process and what it started, at once. May be called from any thread."""
        with self._lock:
            if not self._reaped:
                self._signal()

    def leave(self) -> None:
        """Let an idle worker end by itself, so that its libraries clean up behind them."""
        self.wire.close()
        self.reap(_LEAVE_SECONDS)

    def reap(self, patience: float = _EXIT_SECONDS) -> Death:
        """End the process if it does not end by itself soon, and wait for it."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not self._exited():
            time.sleep(0.001)
        with self._lock:
            self._signal()
            code = self._process.wait()
            self._reaped = True
        self.wire.close()
        number, stage = STATUS.unpack_from(self._status)
        size = os.fstat(self._log).st_size
        start = max(STATUS_BYTES, size - _LAST_WORDS_BYTES)
        words = os.pread(self._log, size - start, start).decode("utf-8", "replace").strip()
        self._status.close()
        os.close(self._log)
        kills = max(0, cgroups.oom_kills() - self._oom_kills)
        return Death(code, number - 1 if number else None, STAGES[stage], kills, words)

    def forget(self) -> None:
        """Drop all ties without touching the process: for a forked child, whose it is not."""
        self._reaped = True
        self._process.returncode = 0
        self.wire.close()

    def _signal(self) -> None:
        # Before the process is waited for, its number cannot be another one's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _exited(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True


def _started(wire: int, diary: int) -> "subprocess.Popen[bytes]":
    flags = cast(Any, subprocess)._args_from_interpreter_flags()
    path = "\n".join([p for p in sys.path if isinstance(p, str)])
    stderr = _standard(2)
    try:
        arguments = [str(number) for number in (wire, diary, stderr, os.getpid())]
        return subprocess.Popen(
            [sys.executable, *flags, "-c", _BOOT, path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=None if _is_open(1) else subprocess.DEVNULL,
            stderr=diary,
            pass_fds=[wire, diary, stderr],
            env=_environment(),
            process_group=0,
        )
    finally:
        os.close(stderr)


def _environment() -> dict[str, str]:
    """Return the environment of a worker: one thread for each of its libraries."""
    return {**os.environ, **dict.fromkeys(_THREADS, "1"), _DEPTH: str(nesting() + 1)}


def _standard(number: int) -> int:
    """Return a duplicate of a standard stream, or of the null device where it is closed."""
    return os.dup(number) if _is_open(number) else os.open(os.devnull, os.O_WRONLY)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


class Slot:
    """A thread that lives as long as this process, and the worker process that it tends.

    Workers are started by this thread, since the kernel ends them with it.

    Parameters
    ----------
    name : str

    Attributes
    ----------
    worker : WorkerProcess or None
        Set by `start`, and to None by the task that finds it dead.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: WorkerProcess | None = None
        self._tasks: queue.SimpleQueue[Callable[[Slot], None] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        threading.Thread(target=self._live, name=f"gpublocks {name}", daemon=True).start()

    def give(self, task: "Callable[[Slot], None]") -> None:
        """Let the thread call a function, which must not raise, when it is done with others."""
        self._tasks.put(task)

    def start(self) -> WorkerProcess:
        """Start the worker. Called in the thread of the slot.

        Raises
        ------
        OSError
            If it cannot be started.
        """
        with _starting:
            self.worker = WorkerProcess()
        return self.worker

    def kill(self) -> None:
        """End the worker at once. May be called from any thread."""
        worker = self.worker
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        """End thread and worker once the tasks are done."""
        self._tasks.put(None)

    def closed(self, seconds: float) -> bool:
        """Wait until the slot has ended after `close`, for at most so long."""
        return self._ended.wait(seconds)

    def retire(self) -> None:
        """Let the idle worker end. Called in the thread of the slot."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.leave()

    def _live(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=IDLE_SECONDS if self.worker else None)
            except queue.Empty:
                self.retire()
                continue
            if task is None:
                self.retire()
                self._ended.set()
                return
            task(self)
            del task


class _Pool:
    """Slots that one run at a time may use."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.lock = threading.Lock()
        self.owner: int | None = None

    def take(self, count: int) -> list[Slot]:
        """Return slots, those with a worker first."""
        while len(self.slots) < count:
            self.slots.append(Slot(f"worker {len(self.slots) + 1}"))
        return sorted(self.slots, key=lambda slot: slot.worker is None)[:count]

    def close(self) -> None:
        """End all slots, unless a run uses them."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            slots, self.slots = self.slots, []
            for slot in slots:
                slot.close()
            for slot in slots:
                slot.closed(2 * _LEAVE_SECONDS)
        finally:
            self.lock.release()


@contextmanager
def leased(count: int, stopped: Callable[[], bool]) -> Iterator[list[Slot]]:
    """Give slots to the caller alone, which are warm if others have used them before.

    Runs in different threads wait for each other. One that begins while another of the same
    thread is not finished gets slots of its own, since waiting would never end.

    Parameters
    ----------
    count : int
        How many slots.
    stopped : callable
        Asked now and then while waiting; if it returns True, no slots are given.
    """
    thread = threading.get_ident()
    with _starting:
        pool = next((pool for pool in _pools if pool.owner != thread), None)
        if pool is None:
            pool = _Pool()
            _pools.append(pool)
    while not pool.lock.acquire(timeout=_QUEUE_SECONDS):
        if stopped():
            yield []
            return
    try:
        pool.owner = thread
        yield pool.take(count)
    finally:
        pool.owner = None
        pool.lock.release()


def release_workers() -> None:
    """End the warm workers that no run is using, instead of letting them idle out."""
    for pool in tuple(_pools):
        pool.close()


def _shut_down() -> None:
    release_workers()
    for pool in tuple(_pools):
        for slot in pool.slots:
            slot.kill()


def _forget() -> None:
    """Drop the parent's workers in a forked child: they are not its own, nor are the threads."""
    try:
        for pool in _pools:
            for slot in pool.slots:
                if slot.worker is not None:
                    slot.worker.forget()
        _pools.clear()
    finally:
        _starting.release()


_pools: list[_Pool] = []
_starting = threading.Lock()
"""Held while a worker starts: a child that is forked meanwhile would inherit the worker's end of
the wire, and its death would go unnoticed as long as the child lives."""

atexit.register(_shut_down)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_forget
    )
