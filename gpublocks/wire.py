"""Messages between a process and its worker: pickled tuples over a socket. Touches sockets."""

import array
import pickle
import select
import socket
import struct
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "Packed",
    "Wire",
    "WireClosedError",
    "described",
    "noted",
    "pack",
    "pack_anything",
    "portable",
    "revived",
    "unpack",
]

Packed = tuple[bytes | pickle.PickleBuffer, list[pickle.PickleBuffer]]
"""A pickled value and the large buffers that it refers to, which are never copied into it."""

_HEAD = struct.Struct("<QI")
_BUFFER_BYTES = 1 << 16
_MOST_DESCRIPTORS = 4
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS) if hasattr(socket, "CMSG_SPACE") else 0
_SEND = getattr(socket, "MSG_NOSIGNAL", 0)
_RECEIVE = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def pack(value: Any, *, by_value: bool = False) -> Packed:
    """Pickle a value apart from the buffers of its arrays.

    Parameters
    ----------
    by_value : bool
        Whether functions and classes of the main module, and those without a name, are pickled
        with their code, for a process that cannot import them.
    """
    buffers: list[pickle.PickleBuffer] = []
    dumps: Any = pickle.dumps
    if by_value:
        import cloudpickle

        dumps = cloudpickle.dumps
    data = dumps(value, protocol=5, buffer_callback=buffers.append)
    # A message that carries much does not copy it.
    return (data if len(data) <= _BUFFER_BYTES else pickle.PickleBuffer(data)), buffers


def pack_anything(value: Any) -> Packed:
    """Pickle a value, with the code it needs if it does need some."""
    try:
        return pack(value)
    except Exception:
        return pack(value, by_value=True)


def unpack(packed: tuple[Any, Sequence[Any]]) -> Any:
    """Return the value that `pack` was given."""
    return pickle.loads(packed[0], buffers=packed[1])


def portable(error: BaseException) -> tuple[Packed | None, str, list[str]]:
    """Take an error apart for another process.

    Returns
    -------
    packed : Packed or None
        The error, if it survives pickling both ways.
    text : str
        Its type and message.
    notes : list of str
        Its notes, and last its traceback, which no pickle carries.
    """
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    try:
        trace = traceback.TracebackException.from_exception(error)
        trace.__notes__ = None
        notes.append("in a worker process:\n" + "".join(trace.format()).rstrip())
    except BaseException as problem:
        notes.append(f"its traceback cannot be shown: {type(problem).__name__}")
    return _surviving(error), described(error), notes


def _surviving(error: BaseException) -> Packed | None:
    try:
        packed = pack_anything(error)
        again = unpack((packed[0], [bytes(buffer) for buffer in packed[1]]))
        same = type(again) is type(error) and str(again) == str(error)
    except BaseException:
        return None
    return packed if same else None


def revived(packed: Packed | None, notes: list[str]) -> BaseException | None:
    """Return the error that `portable` took apart; None if it does not survive here."""
    if packed is None:
        return None
    try:
        error = unpack(packed)
    except BaseException:
        return None
    return noted(error, notes) if isinstance(error, BaseException) else None


def noted(error: BaseException, notes: list[str]) -> BaseException:
    """Return an error with notes, as far as it does not have them."""
    for note in notes:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def described(error: BaseException) -> str:
    """Return type and message of an error, whose ``__str__`` may itself raise."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:
        message = "its message cannot be shown"
    return f"{name}: {message}" if message else name


class WireClosedError(EOFError):
    """The other end of a wire is closed, or its process is gone."""


class Wire:
    """One end of a connected stream socket that carries messages.

    A message is a tuple of anything that pickles; a `Packed` value inside it travels without
    being copied into the message. One thread receives; any thread may send.

    Attributes
    ----------
    descriptors : list of int
        File descriptors that came with the messages received so far; the receiver takes them out.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.descriptors: list[int] = []
        self._socket = connection
        self._lock = threading.RLock()
        self._outgoing: deque[tuple[list[Any], Sequence[int]]] = deque()
        self._sending = False
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0
        self._stop = 0

    def close(self) -> None:
        """Close this end; the other one then reads the end of the stream."""
        self._socket.close()

    def send(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of file descriptors with it.

        A signal handler or a finalizer may call this while its thread is amid another message:
        the one follows the other.

        Raises
        ------
        WireClosedError
            If the other end is closed.
        MemoryError, PicklingError, TypeError, ...
            If the message cannot be pickled; nothing of it has been sent then.
        """
        self._outgoing.append((_frame(message), descriptors))
        while self._outgoing:
            with self._lock:
                if self._sending:
                    return
                self._sending = True
                try:
                    while self._outgoing:
                        self._put(*self._outgoing.popleft())
                finally:
                    self._sending = False

    def _put(self, pieces: list[Any], descriptors: Sequence[int]) -> None:
        try:
            if descriptors:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
                sent = self._socket.sendmsg(pieces[:1], [rights], _SEND)
                pieces[0] = pieces[0][sent:]
            for piece in pieces:
                self._socket.sendall(piece, _SEND)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WireClosedError("the other end of the wire is closed") from error

    def receive(self) -> Any:
        """Wait for the next message.

        Raises
        ------
        WireClosedError
            If the other end was closed, or its process died, perhaps within a message.
        """
        size, count = _HEAD.unpack(self._take(_HEAD.size))
        if not count:
            return pickle.loads(self._take(size))
        sizes = struct.unpack(f"<{count}Q", self._take(8 * count))
        data = bytes(self._take(size))
        buffers = [np.empty(n, np.uint8) for n in sizes]
        for buffer in buffers:
            self._fill(buffer.data)
        return pickle.loads(data, buffers=buffers)

    @property
    def pending(self) -> bool:
        """Whether the next message has arrived, at least in part."""
        return self._stop > self._start

    def ready(self, seconds: float) -> bool:
        """Tell whether something can be received, waiting for at most so long."""
        if self.pending:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _take(self, size: int) -> memoryview | bytearray:
        """Return the next bytes; a view that is valid until the next call."""
        if size > _BUFFER_BYTES:
            whole = bytearray(size)
            self._fill(memoryview(whole))
            return whole
        start, stop = self._start, self._stop
        if stop - start < size:
            self._buffer[: stop - start] = self._buffer[start:stop]
            start, stop = 0, stop - start
            while stop < size:
                stop += self._receive(self._buffer[stop:])
        self._start, self._stop = start + size, stop
        return self._buffer[start : start + size]

    def _fill(self, view: memoryview) -> None:
        """Fill a view from what was received already, then from the socket."""
        ready = min(self._stop - self._start, len(view))
        view[:ready] = self._buffer[self._start : self._start + ready]
        self._start += ready
        while ready < len(view):
            ready += self._receive(view[ready:])

    def _receive(self, view: memoryview) -> int:
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into([view], _ANCILLARY_BYTES, _RECEIVE)
        except ConnectionResetError:
            size, ancillary = 0, []
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                self.descriptors.extend(descriptors)
        if not size:
            raise WireClosedError("the other end of the wire is closed")
        return size


def _frame(message: tuple[Any, ...]) -> list[Any]:
    """Return the pieces of what crosses the wire; only small ones are put together."""
    data, buffers = pack(message)
    views = [buffer.raw() for buffer in buffers]
    head = _HEAD.pack(size := memoryview(data).nbytes, len(views))
    if views:
        head += struct.pack(f"<{len(views)}Q", *[view.nbytes for view in views])
    return [head + data, *views] if size <= _BUFFER_BYTES else [head, data, *views]
