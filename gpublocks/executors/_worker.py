"""The worker process: does the cells whose numbers it is sent. Touches its own process only."""

import ctypes
import faulthandler
import gc
import importlib
import io
import mmap
import os
import signal
import site
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, cast

from gpublocks.contracts import CellDone, CellFailed, Stage
from gpublocks.geometry import Cell
from gpublocks.io.staged import Ring, Staged
from gpublocks.job import Job, execute, explained
from gpublocks.wire import (
    Packed,
    Wire,
    WireClosedError,
    described,
    pack_anything,
    portable,
    unpack,
)
from gpublocks.workers import STAGES, STATUS, STATUS_BYTES

__all__ = ["main"]

_LOAD, _COMPUTE, _STORE = range(len(STAGES))
_STAGE = STATUS.size - 1
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OOM_SCORE = "500"
# Memory of blocks up to this size is kept for the next block instead of being given back: its
# pages would be mapped and zeroed anew each time (twice the time for sums of 64 MiB arrays).
_KEPT_BYTES = 256 << 20
_TIDY_SECONDS = 0.1


def main(wire: int, log: int, stderr: int, parent: int) -> None:
    """Serve one parent until it closes the wire.

    Parameters
    ----------
    wire, log, stderr : int
        File descriptors: the connection; status page and last words; the true standard error,
        which takes the place of the log once the worker is up.
    parent : int
        Process that the worker must not outlive.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    _keep_memory(libc)
    faulthandler.enable(log)
    connection = Wire(socket.socket(fileno=wire))
    os.set_inheritable(wire, False)
    os.set_inheritable(log, False)
    streams = _Forward(connection, "stdout", 1), _Forward(connection, "stderr", 2)
    sys.stdout, sys.stderr = map(_as_text, streams)
    os.register_at_fork(after_in_child=lambda: _become_stranger(connection))
    os.dup2(stderr, 2)
    os.close(stderr)
    with suppress(WireClosedError):
        _Worker(connection, mmap.mmap(log, STATUS_BYTES), libc, streams).serve()


class _Worker:
    """Does what the messages of a wire say.

    ``('job', …)`` is what to do with a cell, ``('cells', …)`` are some to do, ``('end',)``
    says that no more of this job will come.
    """

    def __init__(
        self, wire: Wire, status: mmap.mmap, libc: ctypes.CDLL, streams: "tuple[_Forward, ...]"
    ) -> None:
        self._wire = wire
        self._status = status
        self._libc = libc
        self._streams = streams
        self._job: Job | None = None
        self._staged: list[tuple[Staged, int]] = []
        self._place_bytes = 0
        self._ring: Ring | None = None
        self._data_limit: tuple[int, int] | None = None
        self._untidy = False
        self._modules: dict[str, tuple[int, int]] = {}
        self._began = 0

    def serve(self) -> None:
        while True:
            if self._untidy and not self._wire.ready(_TIDY_SECONDS):
                self._tidy()
            message = self._wire.receive()
            if message[0] == "cells":
                for number, place in message[1]:
                    self._do(number, place)
            elif message[0] == "job":
                self._begin(*message[1:])
            else:
                self._end()

    def _begin(
        self,
        packed: Packed,
        folder: str | None,
        path: list[str],
        limit: int | None,
        offsets: list[int],
        place_bytes: int,
        ring_bytes: int,
    ) -> None:
        if ring_bytes:
            self._ring = Ring.attach(self._wire.descriptors.pop(), ring_bytes)
        if any(_stamp(path) != stamp for path, stamp in self._modules.items()):
            self._wire.send(("stale",))
            return
        importlib.invalidate_caches()
        self._began = time.time_ns()
        try:
            if folder is not None:
                os.chdir(folder)
            sys.path[:] = path
            job = unpack(packed)
            arrays = [a for a in (*job.sources, *job.sinks) if isinstance(a, Staged)]
            self._staged = list(zip(arrays, offsets, strict=True))
            self._place_bytes = place_bytes
            if job.keep_outputs:
                # The first cell is measured: memory that it uses again would not be seen.
                self._tidy()
            if limit is not None:
                self._data_limit = _limit_data(limit)
            self._job = job
        except BaseException as error:
            self._wire.send(("unloadable", *portable(error)))
        else:
            self._wire.send(("loaded",))

    def _do(self, number: int, place: int) -> None:
        job = self._job
        if job is None:
            return
        cell = job.grid[number]
        STATUS.pack_into(self._status, 0, number + 1, _LOAD)
        if self._ring is not None:
            for staged, offset in self._staged:
                offset += place * self._place_bytes
                staged.bind(self._ring.buffer, offset, cell.read_in(staged.shape))
        try:
            event = execute(job, cell, "", self._call)
        except BaseException as error:
            event = _failed(error, job, cell, STAGES[self._status[_STAGE]])
        for stream in self._streams:
            if stream.pending:
                stream.flush()
        self._reply(job, event)

    def _call(self, function: Callable[[], Any]) -> Any:
        self._status[_STAGE] = _COMPUTE
        value = function()
        self._status[_STAGE] = _STORE
        return value

    def _reply(self, job: Job, event: CellDone | CellFailed) -> None:
        if isinstance(event, CellDone):
            try:
                self._send_done(event)
                return
            except WireClosedError:
                raise
            except BaseException as error:
                event = _failed(_unsendable(error), job, event.cell, "compute")
        self._lift_limit()
        self._wire.send(("failed", event.stage, *portable(event.error)))

    def _send_done(self, event: CellDone) -> None:
        packed = None
        if event.value is not None or event.outputs:
            packed = pack_anything((event.value, event.outputs))
        sizes = event.read_bytes, event.written_bytes
        self._wire.send(("done", event.started, event.seconds, *sizes, packed))

    def _end(self) -> None:
        self._job = None
        if self._ring is not None:
            for staged, _ in self._staged:
                staged.release()
            self._ring.close()
            self._ring = None
        self._staged = []
        self._lift_limit()
        self._untidy = True
        self._modules = dict(_modules_of_the_user(self._began)) | self._modules

    def _lift_limit(self) -> None:
        if self._data_limit is not None:
            _set_data_limit(self._data_limit)
            self._data_limit = None

    def _tidy(self) -> None:
        """Give back memory that was kept for the next block."""
        self._untidy = False
        gc.collect()
        with suppress(AttributeError):
            self._libc.malloc_trim(0)


def _modules_of_the_user(since: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the files of loaded modules that are not installed, with their stamps.

    A worker that has loaded a module goes on with it when its file is edited; so a change means
    that a new worker is needed. Files that are younger than the job may have been edited after
    they were loaded, and get a stamp that they never have.

    Parameters
    ----------
    since : int
        When the job began, in nanoseconds.
    """
    installed = _installed()
    for module in tuple(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and not path.startswith(installed):
            stamp = _stamp(path)
            yield path, stamp if stamp[0] < since else (-1, -1)


@cache
def _installed() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    folders = [os.path.dirname(os.__file__), site.getusersitepackages()]
    folders += site.getsitepackages([sys.prefix, sys.base_prefix])
    return tuple([os.path.join(folder, "") for folder in folders])


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _failed(error: BaseException, job: Job, cell: Cell, stage: Stage) -> CellFailed:
    return CellFailed(cell, "", stage, explained(error, job, cell, stage))


def _unsendable(error: BaseException) -> Exception:
    if isinstance(error, MemoryError):
        return MemoryError(
            "what the function returned does not fit in the memory of the worker a second time, "
            "as a message; return less, or allow more memory"
        )
    return TypeError(f"what the function returned cannot be pickled: {described(error)}")


def _as_text(raw: "_Forward") -> io.TextIOWrapper:
    return io.TextIOWrapper(cast(Any, raw), "utf-8", "backslashreplace", write_through=True)


class _Forward(io.RawIOBase):
    """A standard stream whose lines go to the parent."""

    def __init__(self, wire: Wire, name: str, number: int) -> None:
        self._wire = wire
        self._name = name
        self._number = number
        self.pending: deque[bytes] = deque()
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        with self._lock:
            text = bytes(data)
            self.pending.append(text)
            if b"\n" in text:
                complete, line, rest = self._taken().rpartition(b"\n")
                if rest:
                    self.pending.appendleft(rest)
                self._send(complete + line)
        return len(text)

    def flush(self) -> None:
        super().flush()
        with self._lock:
            self._send(self._taken())

    def _taken(self) -> bytes:
        """Take what is pending; each piece once, even if a signal handler prints meanwhile."""
        pieces = []
        with suppress(IndexError):
            while True:
                pieces.append(self.pending.popleft())
        return b"".join(pieces)

    def _send(self, text: bytes) -> None:
        if text:
            with suppress(WireClosedError, OSError):
                self._wire.send(("out", self._name, text.decode("utf-8", "replace")))


def _become_stranger(wire: Wire) -> None:
    """Cut a forked child of the worker off: its parent's messages are not its own."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    wire.close()


def _keep_memory(libc: ctypes.CDLL) -> None:
    with suppress(AttributeError):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def _limit_data(nbytes: int) -> tuple[int, int]:
    """Let the private memory of this process grow by so much; return the limits before."""
    import resource

    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(fields["VmData"].split()[0]) * 1024 + nbytes
    for ceiling in (soft, hard):
        if ceiling != resource.RLIM_INFINITY:
            limit = min(limit, ceiling)
    _set_data_limit((limit, hard))
    return soft, hard


def _set_data_limit(limits: tuple[int, int]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, limits)
