"""A stand-in for CuPy on GPUs that compute in host memory, at once, and complain as CUDA does.

Signatures are those of CuPy; `tests/test_cuda_device.py` holds them against the wheel. Everything
that real CUDA would have to be asked goes through `FakeCuda.asked`, where a test can plant errors.
It is stricter than CUDA in one thing: what works on a device needs it to be current.
"""

import ctypes
import functools
import gc
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.fft
from host_kernels import HostKernel
from numpy.lib.mixins import NDArrayOperatorsMixin

_UNIT = 512
_POISON = 0xA5
_TEXTS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    304: "cudaErrorOperatingSystem: OS call failed or operation not supported on this OS",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
}


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status: int) -> None:
        super().__init__(_TEXTS.get(status, f"cudaError{status}"))
        self.status = status


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,}).")


class PerformanceWarning(RuntimeWarning):
    pass


class FakeCuda:
    """GPUs, and what was done with them.

    Parameters
    ----------
    totals : tuple of int
        Memory of each GPU in bytes.

    Attributes
    ----------
    faults : dict
        Names of CUDA's functions, and the errors that they raise from now on.
    lost : set of int
        GPUs of which every function says that the device is lost.
    done : list
        Names of CUDA's functions that were called, each with its device and stream.
    outside : list of int
        Bytes of each GPU that something else takes.
    complaints : list of str
        What destructors would have printed.
    """

    def __init__(self, *totals: int) -> None:
        self.totals = totals or (1 << 30, 1 << 30)
        self.taken = [0] * len(self.totals)
        self.outside = [0] * len(self.totals)
        self.faults: dict[str, Exception] = {}
        self.lost: set[int] = set()
        self.done: list[tuple[str, int, int | None]] = []
        self.complaints: list[str] = []
        self.locked: dict[int, int] = {}
        self.unlocked: list[np.ndarray] = []
        self.lockable = 1 << 30
        self.local = threading.local()
        self.numbers = itertools.count(1)
        self.default_pool = MemoryPool()
        self.cupy = _module()

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return getattr(self.local, "device", 0)

    def asked(self, name: str, device: int | None = None, stream: int | None = None) -> None:
        """Note that a function of CUDA is called; raise what it raises."""
        device = self.device if device is None else device
        self.done.append((name, device, stream))
        if name in self.faults:
            raise self.faults[name]
        if not 0 <= device < len(self.totals):
            raise CUDARuntimeError(101)
        if device in self.lost:
            raise CUDARuntimeError(700)

    def worked(self, name: str, device: int, stream: "Stream") -> None:
        """Note work on a stream, for which the device must be current."""
        self.on(device)
        assert stream.device_id in (-1, device), f"{name} on a stream of device {stream.device_id}"
        self.asked(name, device, stream.ptr)

    def on(self, device: int) -> None:
        assert device == self.device, f"device {self.device} is current, but {device} is used"

    def destroyed(self, name: str, device: int) -> None:
        if device in self.lost:
            self.complaints.append(f"{name} on device {device}")

    def names(self) -> list[str]:
        return [name for name, _, _ in self.done]

    def host(self, address: int, size: int) -> None:
        """Check host memory that is copied: not unlocked, and not beyond a locked piece."""
        stop = address + size
        for first, length in list(self.locked.items()):
            if first < stop and address < first + length:
                inside = first <= address and stop <= first + length
                assert inside, "beyond page-locked memory"
                return
        for block in self.unlocked:
            first = block.ctypes.data
            assert not (first < stop and address < first + block.nbytes), "memory was unlocked"
        self.done.append(("pageable", self.device, None))

    def streams(self) -> tuple[dict[int, "Stream"], dict[int, list["Stream"]], list[int]]:
        """Return current streams, stacks of them, and in which order devices were entered."""
        if not hasattr(self.local, "streams"):
            self.local.streams = (
                dict.fromkeys(range(len(self.totals)), Stream.null),
                {n: [Stream.null] for n in range(len(self.totals))},
                [],
            )
        return self.local.streams


state = FakeCuda.__new__(FakeCuda)
"""The one in use; set by `install`."""


# --- devices, streams, events --------------------------------------------------------------------


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = state.device if device is None else int(getattr(device, "id", device))
        self._cuda = state

    def __enter__(self) -> "Device":
        self._cuda.local.__dict__.setdefault("entered", []).append(self._cuda.device)
        setDevice(self.id)
        return self

    def __exit__(self, *args: object) -> None:
        setDevice(self._cuda.local.entered.pop())

    def use(self) -> "Device":
        setDevice(self.id)
        return self


def getDevice() -> int:  # noqa: N802
    return state.device


def setDevice(device: int) -> None:  # noqa: N802
    state.asked("setDevice", device)
    state.local.device = device


def deviceSynchronize() -> None:  # noqa: N802
    state.asked("deviceSynchronize")


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    state.asked("memGetInfo")
    n = state.device
    return state.totals[n] - state.taken[n] - state.outside[n], state.totals[n]


class Stream:
    null: "Stream"

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self.ptr, self.device_id = 0, -1
        if not null:
            state.asked("streamCreate")
            self._cuda = state
            self.ptr, self.device_id = next(state.numbers), state.device
        self.non_blocking = non_blocking

    def __del__(self) -> None:
        if self.ptr:
            self._cuda.destroyed("streamDestroy", self.device_id)

    def __enter__(self) -> "Stream":
        current = state.device
        if self.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) "
                f"does not match with the current device ({current})"
            )
        _, stacks, entered = state.streams()
        stacks[current].append(self)
        entered.append(current)
        self._become_current()
        return self

    def __exit__(self, *args: object) -> None:
        _, stacks, entered = state.streams()
        device = entered.pop()
        stacks[device].pop()
        stacks[device][-1]._become_current()

    def use(self) -> "Stream":
        self._become_current()
        return self

    def _become_current(self) -> None:
        device = state.device if self.device_id == -1 else self.device_id
        state.streams()[0][device] = self

    def synchronize(self) -> None:
        state.asked("streamSynchronize", None if self.device_id == -1 else self.device_id, self.ptr)

    def record(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        assert event.recorded is not None, "waits for an event that was never recorded"
        state.worked("streamWaitEvent", self.device_id, self)


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    return state.streams()[0][state.device if device_id == -1 else device_id]


class Event:
    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        state.asked("eventCreate")
        self._cuda, self.device_id = state, state.device
        self.block, self.timed = block, not disable_timing
        self.recorded: float | None = None

    def __del__(self) -> None:
        if hasattr(self, "device_id"):
            self._cuda.destroyed("eventDestroy", self.device_id)

    def record(self, stream: Stream | None = None) -> None:
        stream = get_current_stream() if stream is None else stream
        if stream.device_id not in (-1, self.device_id):
            raise CUDARuntimeError(400)
        state.worked("eventRecord", self.device_id, stream)
        self.recorded = time.perf_counter()

    def synchronize(self) -> None:
        state.on(self.device_id)
        state.asked("eventSynchronize", self.device_id)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    state.on(end_event.device_id)
    state.asked("eventElapsedTime", end_event.device_id)
    first, last = start_event.recorded, end_event.recorded
    if not (start_event.timed and end_event.timed) or first is None or last is None:
        raise CUDARuntimeError(400)
    return (last - first) * 1000


# --- memory --------------------------------------------------------------------------------------


def _aligned(size: int) -> np.ndarray:
    block = np.full(size + _UNIT, _POISON, np.uint8)
    start = -block.ctypes.data % _UNIT
    return block[start : start + size]


class Memory:
    def __init__(self, size: int) -> None:
        self._cuda, self.size, self.device_id, self.ptr = state, size, state.device, 0
        self.block = np.empty(0, np.uint8)
        if size > 0:
            state.asked("malloc")
            if size > memGetInfo()[0]:
                raise CUDARuntimeError(2)
            state.taken[self.device_id] += size
            self.block = _aligned(size)
            self.ptr = self.block.ctypes.data

    def __del__(self) -> None:
        if self.ptr:
            self._cuda.taken[self.device_id] -= self.size
            self._cuda.destroyed("free", self.device_id)


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        assert mem.ptr or not offset
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __add__(self, x: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + x)

    def copy_from_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        self._copy("memcpyHtoD", mem, size, stream)
        ctypes.memmove(self.ptr, mem, size)

    def copy_to_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        self._copy("memcpyDtoH", mem, size, stream)
        ctypes.memmove(mem, self.ptr, size)

    def _copy(self, name: str, address: int, size: int, stream: Stream | None) -> None:
        assert type(address) is int
        start = self.ptr - self.mem.ptr
        assert 0 <= start <= start + size <= self.mem.size, "beyond memory"
        state.worked(name, self.device_id, get_current_stream() if stream is None else stream)
        state.host(address, size)


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner = ptr, size, owner
        self.device_id = state.device if device_id < 0 else device_id
        self.block = np.frombuffer((ctypes.c_uint8 * size).from_address(ptr), np.uint8)


class _PooledMemory:
    def __init__(self, memory: Memory, blocks: "_Blocks") -> None:
        self.block, self.ptr, self.size = memory.block, memory.ptr, memory.size
        self.device_id = memory.device_id
        self._blocks = blocks

    def __del__(self) -> None:
        self._blocks.free.append(self._blocks.used.pop(self.ptr))


class _Blocks:
    """What a pool has of one device. Blocks are not split."""

    def __init__(self) -> None:
        self.free: list[Memory] = []
        self.used: dict[int, Memory] = {}
        self.limit = 0

    @property
    def in_use(self) -> int:
        return sum(memory.size for memory in self.used.values())

    @property
    def total(self) -> int:
        return self.in_use + sum(memory.size for memory in self.free)

    def malloc(self, size: int) -> MemoryPointer:
        if not size:
            return MemoryPointer(Memory(0), 0)
        size = -(-size // _UNIT) * _UNIT
        memory = min(
            (memory for memory in self.free if memory.size >= size),
            key=lambda memory: memory.size,
            default=None,
        )
        if memory is None:
            memory = self._new(size)
        else:
            self.free.remove(memory)
        self.used[memory.ptr] = memory
        return MemoryPointer(_PooledMemory(memory, self), 0)

    def _new(self, size: int) -> Memory:
        for attempt in range(3):
            if attempt:
                self.free.clear()
                gc.collect()
            if not self.limit or self.total + size <= self.limit:
                try:
                    return Memory(size)
                except CUDARuntimeError as error:
                    if error.status != 2:
                        raise
        raise OutOfMemoryError(size, self.total, self.limit)


class MemoryPool:
    def __init__(self, allocator: Callable[..., Any] | None = None) -> None:
        self._blocks: dict[int, _Blocks] = {}

    def _here(self) -> _Blocks:
        return self._blocks.setdefault(state.device, _Blocks())

    def malloc(self, size: int) -> MemoryPointer:
        return self._here().malloc(size)

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        self._here().free.clear()

    def used_bytes(self) -> int:
        return self._here().in_use

    def free_bytes(self) -> int:
        return self._here().total - self._here().in_use

    def total_bytes(self) -> int:
        return self._here().total

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        assert fraction is None
        self._here().limit = size or 0

    def get_limit(self) -> int:
        return self._here().limit


def get_default_memory_pool() -> MemoryPool:
    return state.default_pool


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(state.local, "allocator", None)
    state.local.allocator = allocator
    try:
        yield
    finally:
        state.local.allocator = before


def _alloc(size: int) -> MemoryPointer:
    return (getattr(state.local, "allocator", None) or state.default_pool.malloc)(size)


class PinnedMemory:
    def __init__(self, size: int, flags: int = 0) -> None:
        self._cuda, self.size, self.ptr = state, size, 0
        state.asked("hostAlloc")
        if sum(state.locked.values()) + size > state.lockable:
            raise CUDARuntimeError(2)
        self.block, self._on, self.flags = _aligned(size), state.device, flags
        self.ptr = self.block.ctypes.data
        state.locked[self.ptr] = size

    def __del__(self) -> None:
        if self.ptr:
            del self._cuda.locked[self.ptr]
            self._cuda.unlocked.append(self.block)
            self._cuda.destroyed("freeHost", self._on)


class PinnedMemoryPointer:
    """Makes an array of ctypes: other classes have no buffers before Python 3.12."""

    def __new__(cls, mem: PinnedMemory, offset: int) -> Any:
        bytes_ = ctypes.c_byte * (mem.size - offset)
        kind = type(cls.__name__, (bytes_,), {"size": cls.size})
        pointer = kind.from_address(mem.ptr + offset)
        pointer.mem, pointer.ptr = mem, mem.ptr + offset
        return pointer

    def size(self: Any) -> int:
        return len(self)


# --- arrays --------------------------------------------------------------------------------------


class ndarray(NDArrayOperatorsMixin):  # noqa: N801
    """An array of a device, which NumPy cannot look into."""

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "?biufc" or self.dtype.itemsize > 16:
            raise ValueError(f"Unsupported dtype {self.dtype}")
        if memptr is None:
            nbytes = int(np.prod(shape, dtype=int)) * self.dtype.itemsize
            memptr = _alloc(nbytes)
        self.data = memptr
        offset = memptr.ptr - memptr.mem.ptr
        block = memptr.mem.block[: memptr.mem.size]
        self._host = np.ndarray(shape, self.dtype, block, offset, strides, order)

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: self._view(self._host.T))
    real = property(lambda self: self._view(self._host.real))
    device = property(lambda self: self.data.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def _view(self, host: np.ndarray) -> "ndarray":
        """Return an array of memory that lies in this one's."""
        if not host.size:
            return ndarray(host.shape, host.dtype)
        start = host.__array_interface__["data"][0]
        memptr = MemoryPointer(self.data.mem, start - self.data.mem.ptr)
        return ndarray(host.shape, host.dtype, memptr, host.strides)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", ())
        result = getattr(ufunc, method)(*map(_operand, inputs), **kwargs)
        if not out:
            return _new(result)
        out[0][...] = _new(result)
        return out[0]

    def __getitem__(self, slices: Any) -> "ndarray":
        found = self._host[_operand(slices)]
        inside = isinstance(found, np.ndarray) and np.shares_memory(found, self._host)
        return self._view(found) if inside else _new(found)

    def __setitem__(self, slices: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _used(self)
        state.worked("copy", self.data.device_id, get_current_stream())
        self._host[slices] = _operand(value)

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def get(
        self,
        stream: Stream | None = None,
        order: str = "C",
        out: np.ndarray | None = None,
        blocking: bool = True,
    ) -> np.ndarray:
        assert out is None
        assert blocking
        used = get_current_stream() if stream is None else stream
        _used(self)
        state.worked("memcpyDtoH", self.data.device_id, used)
        used.synchronize()
        fortran = self.flags.f_contiguous and not (order == "C" and self.flags.c_contiguous)
        order = order if order != "A" else "F" if fortran else "C"
        return np.array(self._host, order=order)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: Any = True
    ) -> "ndarray":
        return _new(_operand(self).astype(dtype, order), "K")

    def copy(self, order: str = "C") -> "ndarray":
        return _new(_operand(self), order)

    def view(self, dtype: Any = None, type: Any = None) -> "ndarray":
        return self._view(self._host.view(dtype))

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> "ndarray":
        found = self._host.reshape(*shape, order=order)
        return self._view(found) if np.shares_memory(found, self._host) else _new(found)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> "ndarray":
        return _out(_operand(self).clip(min, max), out)

    def repeat(self, repeats: int, axis: int | None = None) -> "ndarray":
        return _new(_operand(self).repeat(repeats, axis))

    def max(self) -> "ndarray":
        return _new(_operand(self).max())

    def min(self) -> "ndarray":
        return _new(_operand(self).min())

    def sum(self) -> "ndarray":
        return _new(_operand(self).sum())


def _used(array: ndarray) -> None:
    if array.data.device_id != state.device:
        warnings.warn("The device where the array resides is another", PerformanceWarning, 3)


def _operand(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, ndarray):
        _used(value)
        return value._host
    return value


def _new(host: Any, order: str = "C") -> ndarray:
    """Return a new array in the memory of the current allocator."""
    host = np.asarray(host)
    state.asked("launchKernel", stream=get_current_stream().ptr)
    kept = "F" if order == "K" and host.flags.fnc else "C"
    array = ndarray(host.shape, host.dtype, order=kept)
    array._host[...] = host
    return array


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    if isinstance(a, ndarray):
        same = dtype in (None, a.dtype) and a.data.device_id == state.device
        return a if same else _new(a._host.astype(dtype or a.dtype))
    if hasattr(a, "__cuda_array_interface__"):
        told = a.__cuda_array_interface__
        count = int(np.prod(told["shape"], dtype=int)) * np.dtype(told["typestr"]).itemsize
        memory = UnownedMemory(told["data"][0], count, a)
        return ndarray(told["shape"], told["typestr"], MemoryPointer(memory, 0))
    return _new(np.asarray(a, dtype), order or "K")


def asnumpy(
    a: Any,
    stream: Stream | None = None,
    order: str = "C",
    out: np.ndarray | None = None,
    *,
    blocking: bool = True,
) -> np.ndarray:
    return a.get(stream=stream, order=order, out=out, blocking=blocking)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    state.asked("launchKernel", stream=get_current_stream().ptr)
    np.copyto(dst._host, _operand(src), casting, where=True if where is None else _operand(where))


def rfftn(a: ndarray, s: Any = None, axes: Any = None, norm: str | None = None) -> ndarray:
    return _new(scipy.fft.rfftn(_operand(a), s, axes, norm))


def irfftn(a: ndarray, s: Any = None, axes: Any = None, norm: str | None = None) -> ndarray:
    return _new(scipy.fft.irfftn(_operand(a), s, axes, norm))


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    return _new(np.full(shape, fill_value, dtype, order), "K")


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    array = ndarray(shape, dtype, order=order)
    array._host[...] = 0
    return array


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else _new(a._host, "C")


class RawKernel:
    """A kernel that is compiled as C++ and run in host memory."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: Any = None,
    ) -> None:
        self._kernel = HostKernel(code, name, options)

    def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
        assert not kwargs
        state.asked("launchKernel", stream=get_current_stream().ptr)
        self._kernel(grid, block, tuple(map(_operand, args)))


def _out(result: Any, out: ndarray | None) -> ndarray:
    """Return what a function gives, in a new array or in that of its argument `out`."""
    found = _new(result, "K")
    if out is None:
        return found
    out[...] = found
    return out


def _like(function: Callable[..., Any]) -> Callable[..., ndarray]:
    """Return CuPy's namesake of a function of NumPy's, which gives new arrays."""

    def on_device(*args: Any, out: ndarray | None = None, **kwargs: Any) -> ndarray:
        return _out(function(*map(_operand, args), **kwargs), out)

    if not isinstance(function, np.ufunc):
        functools.update_wrapper(on_device, function)
    return on_device


ALIKE = (
    "conjugate",
    "divide",
    "greater",
    "greater_equal",
    "isfinite",
    "isnan",
    "maximum",
    "minimum",
    "nan_to_num",
    "rint",
    "roll",
    "sqrt",
    "subtract",
    "where",
)
"""Functions that take and give what those of NumPy do, but for where the voxels lie."""


def bincount(x: ndarray, weights: Any = None, minlength: Any = None) -> ndarray:
    return _new(np.bincount(_operand(x), weights, minlength or 0))


def stack(
    tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    assert out is None
    return _new(np.stack([_operand(item) for item in tup], axis, dtype=dtype, casting=casting))


def searchsorted(a: ndarray, v: Any, side: str = "left", sorter: Any = None) -> ndarray:
    assert sorter is None
    # CuPy compares as C++ does, for which -1 and an unsigned 0 are in another order.
    assert a.dtype == v.dtype
    return _new(np.searchsorted(_operand(a), _operand(v), side))


def get_plan_cache() -> Any:
    return SimpleNamespace(clear=lambda: state.asked("clearPlans"))


# --- the module ----------------------------------------------------------------------------------


def _module() -> Any:
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        cudaDevAttrIntegrated=18,
        deviceGetAttribute=lambda attrib, device: 0,
        deviceSynchronize=deviceSynchronize,
        driverGetVersion=lambda: 13000,
        getDevice=getDevice,
        getDeviceCount=lambda: len(state.totals),
        getDeviceProperties=lambda device: {
            "name": b"NVIDIA Fake",
            "uuid": bytes(15) + bytes([device]),
            "totalGlobalMem": state.totals[device],
        },
        hostAllocPortable=1,
        is_hip=False,
        memGetInfo=memGetInfo,
        runtimeGetVersion=lambda: 13000,
        setDevice=setDevice,
    )
    cuda = SimpleNamespace(
        Device=Device,
        Event=Event,
        Memory=Memory,
        MemoryPointer=MemoryPointer,
        MemoryPool=MemoryPool,
        PinnedMemory=PinnedMemory,
        PinnedMemoryPointer=PinnedMemoryPointer,
        Stream=Stream,
        get_current_stream=get_current_stream,
        get_elapsed_time=get_elapsed_time,
        UnownedMemory=UnownedMemory,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError, PooledMemory=_PooledMemory),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        runtime=runtime,
        using_allocator=using_allocator,
    )
    return SimpleNamespace(
        **{name: _like(getattr(np, name)) for name in ALIKE},
        RawKernel=RawKernel,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        asnumpy=asnumpy,
        bincount=bincount,
        copyto=copyto,
        cuda=cuda,
        empty=empty,
        fft=SimpleNamespace(
            config=SimpleNamespace(get_plan_cache=get_plan_cache),
            irfftn=irfftn,
            rfftn=rfftn,
        ),
        full=full,
        searchsorted=searchsorted,
        stack=stack,
        get_default_memory_pool=get_default_memory_pool,
        ndarray=ndarray,
        zeros=zeros,
    )


def install(monkeypatch: pytest.MonkeyPatch, *totals: int) -> FakeCuda:
    """Let it be imported as cupy, with GPUs of so many bytes."""
    cuda = FakeCuda(*totals)
    monkeypatch.setattr(sys.modules[__name__], "state", cuda)
    monkeypatch.setitem(sys.modules, "cupy", cuda.cupy)
    return cuda
