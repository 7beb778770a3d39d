"""All that is asked of CUDA, on one GPU, through CuPy and NVML. Touches the GPU.

The other modules use it through `benchmarks.gpu.lab.Lab.cuda`, so that tests put another in its
place. It is imported when that is asked for, and where CuPy is installed.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu.boxcopy import Parms
from benchmarks.gpu.watching import Meter
from gpublocks.contracts import Array

__all__ = ["PIECE_BYTES", "Cuda"]

PIECE_BYTES = 16 << 20
"""Copies are issued in pieces of this size, lest small ones wait long behind them."""


class Cuda:
    """One GPU.

    Parameters
    ----------
    uuid : str
        By which NVML knows it; empty where that is not known.
    index : int
        CUDA's number of it.
    """

    def __init__(self, uuid: str = "", index: int = 0) -> None:
        self._device: Any = cupy.cuda.Device(index)
        self._device.use()
        self._nvml, self._handle = _nvml_handle(uuid)

    # --- memory ---

    def memory_info(self) -> tuple[int, int]:
        """Return free and total memory in bytes, as CUDA tells."""
        free, total = cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def used_bytes(self) -> int:
        """Return the memory of the GPU in use, by all processes and the driver."""
        if self._nvml is not None:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        free, total = self.memory_info()
        return total - free

    def pinned(self, nbytes: int) -> Array:
        """Return page-locked memory, not rounded up to a power of two, as bytes."""
        memory = cupy.cuda.PinnedMemory(nbytes, cupy.cuda.runtime.hostAllocPortable)
        pointer = cupy.cuda.PinnedMemoryPointer(memory, 0)
        return np.frombuffer(pointer, np.uint8, nbytes)

    def memory(self, nbytes: int) -> Any:
        """Return device memory that no pool has a part in."""
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(nbytes), 0)

    def register(self, array: Array, flags: int = 1) -> None:
        """Lock the pages of an array (1: for all GPUs, 8: that are only read)."""
        cupy.cuda.runtime.hostRegister(array.ctypes.data, array.nbytes, flags)

    def unregister(self, array: Array) -> None:
        """Undo `register`."""
        cupy.cuda.runtime.hostUnregister(array.ctypes.data)

    @contextmanager
    def pool(self, kind: str = "pool") -> Iterator[Any]:
        """Let a new memory pool serve this thread: CuPy's ('pool') or the driver's ('async')."""
        pool = cupy.cuda.MemoryPool() if kind == "pool" else cupy.cuda.MemoryAsyncPool()
        with cupy.cuda.using_allocator(pool.malloc):
            yield pool

    def meter(self) -> Meter:
        """Return a counter of what the pools of CuPy hand out to this thread."""
        return Meter(_Hook)

    def trim(self) -> None:
        """Give back what the default pools of device and host memory keep."""
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()

    # --- streams and copies ---

    def stream(self) -> Any:
        """Return a stream that does not wait for the default one."""
        return cupy.cuda.Stream(non_blocking=True)

    def event(self, *, block: bool = True, timing: bool = False) -> Any:
        """Return an event; `block` lets waiting threads sleep."""
        return cupy.cuda.Event(block=block, disable_timing=not timing)

    def elapsed(self, first: Any, last: Any) -> float:
        """Return the seconds between two events that were reached."""
        return float(cupy.cuda.get_elapsed_time(first, last)) / 1000

    def upload(
        self, target: Any, source: Array, stream: Any, piece_bytes: int = PIECE_BYTES
    ) -> None:
        """Copy page-locked bytes to device memory, in pieces."""
        start = source.ctypes.data
        for offset in range(0, source.nbytes, piece_bytes):
            size = min(piece_bytes, source.nbytes - offset)
            (target + offset).copy_from_host_async(start + offset, size, stream)

    def download(
        self, target: Array, source: Any, stream: Any, piece_bytes: int = PIECE_BYTES
    ) -> None:
        """Copy device memory to page-locked bytes, in pieces."""
        start = target.ctypes.data
        for offset in range(0, target.nbytes, piece_bytes):
            size = min(piece_bytes, target.nbytes - offset)
            (source + offset).copy_to_host_async(start + offset, size, stream)

    def copy_box(self, parms: Parms, stream: Any) -> None:
        """Copy a box between registered host memory and the device."""
        cupy.cuda.runtime.memcpy3DAsync(ctypes.addressof(parms), stream.ptr)

    def synchronize(self) -> None:
        """Wait for all that was asked of the GPU."""
        self._device.synchronize()

    # --- arrays ---

    def array(self, memory: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array in device memory, which it does not own."""
        return cupy.ndarray(shape, dtype, memptr=memory)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array of the current pool, its voxels not set."""
        return cupy.empty(shape, dtype)

    def asarray(self, array: Array) -> Any:
        """Return a copy on the device, made as CuPy makes it."""
        return cupy.asarray(array)

    def get(self, array: Any, out: Array | None = None) -> Array:
        """Return a copy on the host, made as CuPy makes it; in `out` if that is given."""
        found: Array = array.get(out=out)
        return found

    def put(self, array: Any, source: Array) -> None:
        """Fill an array of the device, as CuPy does it; without waiting if the source is pinned."""
        array.set(source)

    def contiguous(self, array: Any) -> Any:
        """Return an array in C order."""
        return cupy.ascontiguousarray(array)

    # --- facts ---

    def facts(self) -> dict[str, Any]:
        """Return what the GPU and its software are."""
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self._device.id)
        free, total = self.memory_info()
        attributes = {
            "copy_engines": runtime.cudaDevAttrAsyncEngineCount,
            "integrated": runtime.cudaDevAttrIntegrated,
            "host_register": runtime.cudaDevAttrHostRegisterSupported,
            "host_register_read_only": runtime.cudaDevAttrHostRegisterReadOnlySupported,
        }
        return {
            "name": properties["name"].decode(errors="replace"),
            "capability": self._device.compute_capability,
            "processors": properties["multiProcessorCount"],
            "total_bytes": total,
            "free_bytes": free,
            "gpus": runtime.getDeviceCount(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cuda_driver": runtime.driverGetVersion(),
            "cupy": cupy.__version__,
            **{
                name: runtime.deviceGetAttribute(number, self._device.id)
                for name, number in attributes.items()
            },
            **self._link(),
        }

    def _link(self) -> dict[str, Any]:
        if self._nvml is None:
            return {}
        nvml = self._nvml
        asked = {
            "pcie_generation": nvml.nvmlDeviceGetCurrPcieLinkGeneration,
            "pcie_width": nvml.nvmlDeviceGetCurrPcieLinkWidth,
            "pcie_most_generation": nvml.nvmlDeviceGetMaxPcieLinkGeneration,
            "pcie_most_width": nvml.nvmlDeviceGetMaxPcieLinkWidth,
        }
        found: dict[str, Any] = {}
        for name, query in asked.items():
            with suppress(nvml.NVMLError):
                found[name] = query(self._handle)
        return found


class _Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
    """Tells a meter what the pools of CuPy hand out to this thread, and get back from it."""

    name = "gpublocks benchmark"

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def malloc_postprocess(self, **told: Any) -> None:
        self._meter.taken(told["pmem_id"], told["mem_size"])

    def free_postprocess(self, **told: Any) -> None:
        self._meter.given_back(told["pmem_id"])


def _nvml_handle(uuid: str) -> tuple[Any, Any]:
    """Return NVML and its handle of a GPU; None where it does not know it."""
    if not uuid:
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception:  # not installed, no library, no permission, not supported
        return None, None
    return pynvml, handle
