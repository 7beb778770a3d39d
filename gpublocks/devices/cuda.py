"""A GPU as a device: memory, streams and events of CUDA. Touches the GPU, through CuPy.

Nothing here makes one operation wait for another, but for what the methods say: the order of
things is that of the streams, and of the events that the engine records and waits for.
"""

import gc
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np

from gpublocks.arrays import is_device_array
from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Order, Trouble
from gpublocks.errors import BlockError, DeviceMemoryError, chain_of, text_of
from gpublocks.machine import memory_limit

__all__ = ["CudaDevice", "release_pinned", "retired"]

_PIECE_BYTES = 16 << 20
"""What is copied at once. A copy that the function asks for, of a few filter weights, queues behind
the piece under way and not behind a whole block: 0.3 ms at 50 GB/s."""

_STORE_BYTES = 4 << 30
"""Most page-locked memory that is kept for later runs. It takes 0.14 to 0.5 s per GiB to lock, thus
2 s for all of it."""
_STORE_PART = 8
"""But not more than this part of the host's memory, which can give it to nobody else."""

_OUT_OF_MEMORY = {
    "CUDARuntimeError": (2, 701),
    "CUDADriverError": (2, 701),
    "CUBLASError": (3,),
    "CUSOLVERError": (2,),
    "CuSparseError": (2, 11),
    "CuFFTError": (2,),
    "CURANDError": (102,),
    "CuTensorError": (3,),
}
"""Codes of failed allocations by the class of CuPy's error; 701 is a launch without resources."""

_LOST = frozenset(
    (46, 100, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999)
)
"""Codes of CUDA's runtime and driver after which a process gets nothing but errors from a device:
all that are documented so, and those of devices, links and memory that fail. Not 101, an invalid
device: a function that names one that does not exist has done no harm."""

_retired: dict[int, str] = {}
_abandoned: list[Any] = []
"""What belonged to lost devices. To free it would fail, and each failure be printed."""


def retired() -> dict[int, str]:
    """Return the devices that this process is not to use again, with the reasons."""
    return dict(_retired)


@contextmanager
def _on(index: int) -> Iterator[None]:
    """Make a device current in this thread, and then the one that was.

    Not back in threads of the device's own: they begin on device 0, which may be one that is not
    to be used, and would start there. Nor to a lost one, which fails.
    """
    import cupy

    runtime = cupy.cuda.runtime
    own = threading.current_thread().name.startswith(f"cuda:{index} ")
    before = index if own else runtime.getDevice()
    if own:
        runtime.setDevice(index)
    if before != index:
        runtime.setDevice(index)
    try:
        yield
    finally:
        if runtime.getDevice() != before and before not in _retired:
            with suppress(runtime.CUDARuntimeError):
                runtime.setDevice(before)


class _PinnedStore:
    """Page-locked memory that closed devices gave back, for all devices."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Any:
        """Return the smallest piece that holds `nbytes`, if it is not more than twice as large."""
        with self._lock:
            sizes = [(piece.size(), n) for n, piece in enumerate(self._pieces)]
            fitting = [(size, n) for size, n in sizes if nbytes <= size <= 2 * nbytes]
            return self._pieces.pop(min(fitting)[1]) if fitting else None

    def give(self, pieces: list[Any]) -> None:
        """Keep pieces, and let go of the oldest that are too many."""
        with self._lock:
            self._pieces += pieces
            most = min(_STORE_BYTES, memory_limit().bytes // _STORE_PART)
            while sum(piece.size() for piece in self._pieces) > most:
                del self._pieces[0]

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._pieces = []


_store = _PinnedStore()


def release_pinned() -> None:
    """Free the page-locked memory that is kept for later runs."""
    _store.clear()


@dataclass(slots=True)
class _Memory:
    """Memory of a device, until the device is closed, whoever else still refers to it."""

    pointer: Any


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a computation, between the events `start` and `end`; `before` ended another."""

    index: int
    value: Any
    peak_bytes: int
    outside_bytes: int
    before: Any
    start: Any
    end: Any

    @property
    def seconds(self) -> float:
        """Time that the device took for it."""
        return self._between(self.start, self.end)

    @property
    def idle_seconds(self) -> float | None:
        """How long the device had nothing to compute before it."""
        return None if self.before is None else max(0.0, self._between(self.before, self.start))

    def result(self) -> Any:
        """Return what the function returned."""
        return self.value

    def _between(self, start: Any, end: Any) -> float:
        import cupy

        with _on(self.index):
            return float(cupy.cuda.get_elapsed_time(start, end)) / 1000


class CudaDevice:
    """A GPU, or a part of one, that computes with CuPy.

    What the function allocates comes from a memory pool of the device's own. Memory for copies
    does not: it goes from stream to stream, and a pool would hand it on too early. A GPU with one
    copy engine copies in one direction at a time; nothing is to be done about it.

    Parameters
    ----------
    index : int
        CUDA's number.
    memory_bytes : int, optional
        Most bytes to take, those for copies and those of the function together.
    """

    def __init__(self, index: int, memory_bytes: int | None = None) -> None:
        import cupy

        self._index = index
        self._memory_bytes = memory_bytes
        self._pool = cupy.cuda.MemoryPool()
        self._lock = threading.Lock()
        self._allocated = 0
        self._memory: list[_Memory] = []
        self._pinned: list[Any] = []
        self._streams: list[Any] = []
        self._others: list[Any] = []
        # The events of the latest cells, more than are ever under way.
        self._timing: deque[Any] = deque(maxlen=128)
        self._clock: tuple[Any, float] | None = None
        self._ended: Any = None
        self._peak: int | None = None

    @property
    def name(self) -> str:
        """For messages: ``'cuda:0'``."""
        return f"cuda:{self._index}"

    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes, as CUDA tells them."""
        import cupy

        with _on(self._index):
            free, total = cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def allocate(self, nbytes: int) -> Any:
        """Return memory of the device, its bytes not set. Kept until `close`.

        Raises
        ------
        DeviceMemoryError
            If it is more than may be taken.
        """
        import cupy

        self._reserve(nbytes)
        try:
            with _on(self._index):
                memory = _Memory(cupy.cuda.MemoryPointer(cupy.cuda.Memory(max(1, nbytes)), 0))
        except BaseException:
            self._reserve(-nbytes)
            raise
        self._memory.append(memory)
        return memory

    def _reserve(self, nbytes: int) -> None:
        limit = self._memory_bytes
        with self._lock:
            if limit is not None and self._allocated + nbytes > limit:
                asked, taken, most = map(format_bytes, (nbytes, self._allocated, limit))
                raise DeviceMemoryError(
                    f"{self.name} has no {asked} for copies left: {taken} of {most} are taken; "
                    "allow more memory, or use smaller blocks"
                )
            self._allocated += nbytes

    def allocate_pinned(self, nbytes: int) -> Array:
        """Return page-locked host memory as a 1-D array of uint8. Kept until `close`.

        Where none can be locked, as systems and containers may limit it, the memory is plain. CUDA
        then copies through memory of its own and the call waits for it: slower, in the same order.

        Raises
        ------
        DeviceMemoryError
            If there is no such memory at all.
        """
        piece = _store.take(nbytes)
        if piece is None:
            # What does not fit is not to be locked beside what is used.
            release_pinned()
            piece = self._pin(nbytes)
        if piece is None:
            return self._plain(nbytes)
        self._pinned.append(piece)
        return np.frombuffer(piece, np.uint8, nbytes)

    def _plain(self, nbytes: int) -> Array:
        try:
            array = np.empty(nbytes, np.uint8)
        except MemoryError as error:
            raise DeviceMemoryError(
                f"the host has no {format_bytes(nbytes)} for copies to and from {self.name}; "
                "use smaller blocks"
            ) from error
        self._others.append(array)
        return array

    def _pin(self, nbytes: int) -> Any:
        import cupy

        runtime = cupy.cuda.runtime
        try:
            with _on(self._index):
                # Not from CuPy's pool, which rounds up to powers of two; usable by all devices.
                memory = cupy.cuda.PinnedMemory(max(1, nbytes), runtime.hostAllocPortable)
        except runtime.CUDARuntimeError as error:
            if self.classify(error) == "fatal":
                raise
            return None
        return cupy.cuda.PinnedMemoryPointer(memory, 0)

    def stream(self, *, default: bool = False) -> Any:
        """Return a new stream, which waits for what was asked of others before.

        Arrays that the function has from elsewhere may still be under way on streams of the user's.
        For what is asked of them from now on it does not wait, but for the default stream if told
        to: that of other libraries, of CuPy in other threads.
        """
        import cupy

        with _on(self._index):
            cupy.cuda.runtime.deviceSynchronize()
            stream = cupy.cuda.Stream(non_blocking=not default)
        self._streams.append(stream)
        self._others.append(stream)
        return stream

    def event(self) -> Any:
        """Return a new event, recorded once. A thread that waits for it sleeps."""
        import cupy

        with _on(self._index):
            event = cupy.cuda.Event(block=True, disable_timing=True)
            event.record(cupy.cuda.Stream.null)
        self._others.append(event)
        return event

    def record(self, event: Any, stream: Any) -> None:
        """Let an event be reached when all that was asked of a stream so far is done."""
        with _on(self._index):
            event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream go on only when an event, as recorded last, is reached."""
        with _on(self._index):
            stream.wait_event(event)

    def sync(self, event: Any) -> None:
        """Return when an event, as recorded last, is reached; raise if the device is lost."""
        with _on(self._index):
            event.synchronize()

    def mark(self, stream: Any) -> Any:
        """Return an event that tells when all that was asked of a stream is done."""
        import cupy

        with _on(self._index):
            if self._clock is None:
                self._clock = self._synchronised()
            event = cupy.cuda.Event(block=True)
            event.record(stream)
        self._timing.append(event)
        return event

    def _synchronised(self) -> tuple[Any, float]:
        """Return an event, and when it was reached by the clock of the host."""
        import cupy

        event = cupy.cuda.Event(block=True)
        event.record(self._streams[0])
        event.synchronize()
        self._others.append(event)
        return event, perf_counter()

    def moment(self, mark: Any) -> float:
        """Return when a mark was reached, by `time.perf_counter`.

        The clocks were compared when the first mark was made, to some 10 us; they may drift apart.
        """
        import cupy

        assert self._clock is not None
        event, seconds = self._clock
        with _on(self._index):
            return seconds + float(cupy.cuda.get_elapsed_time(event, mark)) / 1000

    def upload(self, target: Any, source: Array, stream: Any) -> None:
        """Copy page-locked bytes to the first bytes of device memory."""
        address = source.__array_interface__["data"][0]
        with _on(self._index):
            for start, size in _pieces(source.nbytes):
                (target.pointer + start).copy_from_host_async(address + start, size, stream)

    def download(self, target: Array, source: Any, stream: Any) -> None:
        """Copy the first bytes of device memory to page-locked ones."""
        address = target.__array_interface__["data"][0]
        with _on(self._index):
            for start, size in _pieces(target.nbytes):
                (source.pointer + start).copy_to_host_async(address + start, size, stream)

    def host_access(self, array: Array, mode: Literal["r", "w"]) -> None:
        """Note nothing."""

    def view(
        self, memory: Any, offset: int, shape: tuple[int, ...], dtype: DType, order: Order
    ) -> Any:
        """Return an array in device memory, from a byte offset on."""
        import cupy

        return cupy.ndarray(shape, dtype, memptr=memory.pointer + offset, order=order)

    def compute(
        self,
        call: Callable[[], Any],
        stream: Any,
        *,
        reads: tuple[Any, ...],
        writes: tuple[Any, ...],
        measure: bool = False,
    ) -> _Outcome:
        """Call a function at once; its array operations go to a stream.

        Its `peak_bytes` are those of the memory pool, which has never more than it needed once,
        when the user's function was done. To `measure` it takes time: the pool begins empty, and
        what is taken beside it is known when all is done.
        """
        import cupy

        runtime, pool = cupy.cuda.runtime, self._pool
        # What a computation that fails takes is not idle time of the next one.
        before, self._ended = self._ended, None
        self._peak = None
        free = taken = outside = 0
        with _on(self._index):
            if self._memory_bytes is not None:
                pool.set_limit(size=max(1, self._memory_bytes - self._allocated))
            if measure:
                pool.free_all_blocks()
                free, taken = runtime.memGetInfo()[0], pool.total_bytes()
            start, end = cupy.cuda.Event(block=True), cupy.cuda.Event(block=True)
            self._timing += start, end
            with stream, cupy.cuda.using_allocator(pool.malloc):
                start.record(stream)
                # A function may leave another device current, on which no stream could be left.
                with _on(self._index):
                    value = call()
                end.record(stream)
            peak = pool.total_bytes() if self._peak is None else self._peak
            if measure:
                stream.synchronize()
                grown = pool.total_bytes() - taken
                outside = max(0, free - runtime.memGetInfo()[0] - grown)
        self._ended = end
        return _Outcome(self._index, value, peak, outside, before, start, end)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call the user's function, and let what follows come after all that it asked for.

        It may leave another stream or device current.
        """
        import cupy

        ours = cupy.cuda.get_current_stream()
        try:
            with ours, _on(self._index):
                value = function()
                theirs = cupy.cuda.get_current_stream(self._index)
                if theirs.ptr != ours.ptr:
                    with _on(self._index):
                        ours.wait_event(theirs.record())
        finally:
            self._peak = self._pool.total_bytes()
        return value

    def copy(self, target: Any, array: Any) -> None:
        """Copy an array of the device or the host to a view of the same shape, cast to its type.

        As NumPy assigns: of complex numbers the real part goes to real ones. What is not in memory
        of CuPy takes longer: it is sent first, or computed on streams that are not known.

        Raises
        ------
        BlockError
            If the array lies on another GPU.
        ValueError
            If it is of another shape.
        """
        import cupy

        if tuple(array.shape) != target.shape:
            raise ValueError(f"the array has the shape {array.shape}, expected {target.shape}")
        ordered = False
        if isinstance(array, cupy.ndarray):
            if array.device.id != self._index:
                raise BlockError(
                    f"returned an array on cuda:{array.device.id}, expected one on {self.name}; "
                    "compute on the device of the input"
                )
            known = (cupy.cuda.memory.PooledMemory, cupy.cuda.Memory)
            ordered = isinstance(array.data.mem, known)
        with _on(self._index):
            if not ordered and is_device_array(array):
                cupy.cuda.runtime.deviceSynchronize()
            source = cupy.asarray(array)
            real = source.dtype.kind == "c" and target.dtype.kind in "iuf"
            target[...] = source.real if real else source
            if not ordered:
                # Its memory may be used for something else as soon as nobody refers to it.
                cupy.cuda.get_current_stream().synchronize()

    def to_host(self, value: Any) -> Any:
        """Return a value with each array of CuPy in it replaced by a NumPy array.

        Looks into tuples, lists and dicts. Waits for the current stream.
        """
        import cupy

        if isinstance(value, cupy.ndarray):
            with _on(value.device.id):
                return cupy.asnumpy(value, order="A")
        if type(value) is tuple or type(value) is list:
            return type(value)(map(self.to_host, value))
        if type(value) is dict:
            return {key: self.to_host(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(map(self.to_host, value))
        return value

    def classify(self, error: BaseException) -> Trouble:
        """Tell what an error means for this device, or one that it was raised from or after."""
        kinds = set(map(_kind, chain_of(error)))
        if "fatal" in kinds:
            return "fatal"
        return "memory" if "memory" in kinds else "user"

    def trim(self) -> None:
        """Give back memory that is kept for later: of plans, of our pool, and of CuPy's own.

        For the thread that computes, whose plans of Fourier transforms these are.
        """
        import cupy

        if self._index in _retired:
            return
        with _on(self._index):
            gc.collect()
            if "cupy.cuda.cufft" in sys.modules:
                cupy.fft.config.get_plan_cache().clear()
            self._pool.free_all_blocks()
            cupy.get_default_memory_pool().free_all_blocks()

    def rest(self) -> None:
        """Let go of this thread's plans of Fourier transforms, which hold memory of our pool."""
        import cupy

        if self._index not in _retired and "cupy.cuda.cufft" in sys.modules:
            with _on(self._index):
                cupy.fft.config.get_plan_cache().clear()

    def retire(self, reason: str) -> None:
        """Note that this process is not to use the device again."""
        _retired[self._index] = reason

    def close(self) -> None:
        """Wait for what is under way and give everything back; of a lost device nothing.

        The device may be used again. Page-locked memory is kept for that, or for other devices.
        """
        if self._drain():
            with _on(self._index):
                self._forget()
                self._pool.free_all_blocks()
                _store.give(self._pinned)
        else:
            pointers = [memory.pointer for memory in self._memory]
            _abandoned.append((pointers, self._pinned, self._others, [*self._timing], self._pool))
            self._forget()
        self._pinned = []

    def _drain(self) -> bool:
        """Wait for the streams; return whether the device is still there."""
        import cupy

        if self._index in _retired:
            return False
        try:
            with _on(self._index):
                for stream in self._streams:
                    stream.synchronize()
        except cupy.cuda.runtime.CUDARuntimeError:
            return False
        return True

    def _forget(self) -> None:
        """Refer no more to what was handed out; of memory nobody else does either."""
        for memory in self._memory:
            memory.pointer = None
        self._memory, self._streams, self._others = [], [], []
        self._timing.clear()
        self._allocated, self._ended, self._clock = 0, None, None


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of each piece of a copy."""
    for start in range(0, nbytes, _PIECE_BYTES):
        yield start, min(_PIECE_BYTES, nbytes - start)


def _kind(error: BaseException) -> Trouble:
    """Tell what one error means, by names: CuPy's modules that define it may not be importable."""
    if isinstance(error, DeviceMemoryError):
        return "memory"
    if isinstance(error, MemoryError) and text_of(error).startswith("std::bad_alloc"):
        return "memory"  # of Thrust, which CuPy sorts and labels with, or of another allocator
    name = type(error).__name__
    if type(error).__module__.partition(".")[0] not in ("cupy", "cupy_backends"):
        return "user"
    if name == "OutOfMemoryError":
        return "memory"
    code = getattr(error, "status", getattr(error, "result", None))
    if code in _OUT_OF_MEMORY.get(name, ()):
        return "memory"
    lost = name in ("CUDARuntimeError", "CUDADriverError") and code in _LOST
    return "fatal" if lost else "user"
