"""Names, signatures and constants of CuPy and NVML that gpublocks uses, held against the wheels.

The wheel of CuPy can be imported without a GPU, so that a name which went away, or an argument
which moved, is found on any machine.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_nvml import FakeCupy, FakeNvml

import gpublocks

PACKAGE = Path(gpublocks.__file__).parent
GUESTS = ("cupy", "cupyx", "pynvml")

FILTERS = "input, size=None, footprint=None, output=None, mode='reflect', cval=0.0, origin=0"
MORPHOLOGY = "input, size=None, footprint=None, structure=None, output=None, mode='reflect'"

NAMES: dict[str, str | None] = {
    # Looking for GPUs.
    "cupy.cuda.Device": "device=None",
    "cupy.cuda.Device.__enter__": "",
    "cupy.cuda.Device.__exit__": "*args",
    "cupy.cuda.nvrtc.getVersion": "",
    "cupy.cuda.runtime.CUDARuntimeError": "status",
    "cupy.cuda.runtime.cudaDevAttrIntegrated": None,
    "cupy.cuda.runtime.deviceGetAttribute": "attrib, device",
    "cupy.cuda.runtime.deviceSynchronize": "",
    "cupy.cuda.runtime.driverGetVersion": "",
    "cupy.cuda.runtime.getDevice": "",
    "cupy.cuda.runtime.getDeviceCount": "",
    "cupy.cuda.runtime.getDeviceProperties": "device",
    "cupy.cuda.runtime.is_hip": None,
    "cupy.cuda.runtime.memGetInfo": "",
    "cupy.cuda.runtime.runtimeGetVersion": "",
    "cupy.cuda.runtime.setDevice": "device",
    # Arrays.
    "cupy.ElementwiseKernel": "in_params, out_params, operation, name='kernel'",
    "cupy.RawKernel": "code, name, options=(), backend='nvrtc'",
    "cupy.RawKernel.__call__": "grid, block, args",
    "cupy.asarray": "a, dtype=None, order=None, *, copy=None, blocking=False",
    "cupy.ascontiguousarray": "a, dtype=None",
    "cupy.asnumpy": "a, stream=None, order='C', out=None, *, blocking=True",
    "cupy.empty": "shape, dtype=float, order='C'",
    "cupy.bincount": "x, weights=None, minlength=None",
    "cupy.searchsorted": "a, v, side='left'",
    "cupy.isnan": None,
    "cupy.stack": "tup, axis=0",
    "cupy.where": None,
    "cupy.greater": None,
    "cupy.greater_equal": None,
    "cupy.maximum": None,
    "cupy.minimum": None,
    "cupy.nan_to_num": "x, copy=True, nan=0.0, posinf=None, neginf=None",
    "cupy.rint": None,
    "cupy.subtract": None,
    "cupy.conjugate": None,
    "cupy.divide": None,
    "cupy.fft.irfftn": "a, s=None, axes=None, norm=None",
    "cupy.fft.rfftn": "a, s=None, axes=None, norm=None",
    "cupy.full": "shape, fill_value, dtype=None, order='C'",
    "cupy.isfinite": None,
    "cupy.roll": "a, shift, axis=None",
    "cupy.sqrt": None,
    "cupy.zeros": "shape, dtype=float, order='C'",
    "cupy.copyto": "dst, src, casting='same_kind', where=None",
    "cupy.ndarray": "shape, dtype=float, memptr=None, strides=None, order='C'",
    "cupy.ndarray.__setitem__": None,
    "cupy.ndarray.astype": "dtype, order='K', casting=None, subok=None, copy=True",
    "cupy.ndarray.clip": "min=None, max=None, out=None",
    "cupy.ndarray.copy": "order='C'",
    "cupy.ndarray.data": None,
    "cupy.ndarray.device": None,
    "cupy.ndarray.flags": None,
    "cupy.ndarray.get": "stream=None, order='C', out=None, blocking=True",
    "cupy.ndarray.nbytes": None,
    "cupy.ndarray.real": None,
    "cupy.ndarray.reshape": None,
    "cupy.ndarray.view": "dtype=None",
    "cupy.ndarray.set": "arr, stream=None",
    "cupy.ndarray.strides": None,
    # Pinned host memory.
    "cupy.cuda.PinnedMemory": "size, flags=0",
    "cupy.cuda.PinnedMemoryPointer": "mem, offset",
    "cupy.cuda.PinnedMemoryPointer.ptr": None,
    "cupy.cuda.PinnedMemoryPointer.size": "",
    "cupy.cuda.runtime.cudaDevAttrHostRegisterSupported": None,
    "cupy.cuda.runtime.cudaDevAttrHostRegisterReadOnlySupported": None,
    "cupy.cuda.runtime.hostAllocPortable": None,
    "cupy.cuda.runtime.hostRegister": "ptr, size, flags",
    "cupy.cuda.runtime.hostUnregister": "ptr",
    # Streams, events, copies.
    "cupy.cuda.Device.synchronize": "",
    "cupy.cuda.Event": "block=False, disable_timing=False",
    "cupy.cuda.Event.done": None,
    "cupy.cuda.Event.record": "stream=None",
    "cupy.cuda.Event.synchronize": "",
    "cupy.cuda.MemoryPointer": "mem, offset",
    "cupy.cuda.MemoryPointer.__add__": None,
    "cupy.cuda.MemoryPointer.copy_from_device_async": "src, size, stream=None",
    "cupy.cuda.MemoryPointer.copy_from_host_async": "mem, size, stream=None",
    "cupy.cuda.MemoryPointer.copy_to_host_async": "mem, size, stream=None",
    "cupy.cuda.MemoryPointer.memset_async": "value, size, stream=None",
    "cupy.cuda.MemoryPointer.ptr": None,
    "cupy.cuda.Stream": "null=False, non_blocking=False",
    "cupy.cuda.Stream.__enter__": "",
    "cupy.cuda.Stream.__exit__": "*args",
    "cupy.cuda.Stream.null.ptr": None,
    "cupy.cuda.Stream.record": "event=None",
    "cupy.cuda.Stream.synchronize": "",
    "cupy.cuda.Stream.use": "",
    "cupy.cuda.Stream.wait_event": "event",
    "cupy.cuda.get_current_stream": "device_id=-1",
    "cupy.cuda.get_elapsed_time": "start_event, end_event",
    "cupy.cuda.runtime.cudaDevAttrAsyncEngineCount": None,
    "cupy.cuda.runtime.memcpy3DAsync": "Memcpy3DParmsPtr, stream",
    "cupy.cuda.runtime.memcpyAsync": "dst, src, size, kind, stream",
    "cupy.cuda.runtime.memcpyDeviceToHost": None,
    "cupy.cuda.runtime.memcpyHostToDevice": None,
    # Device memory.
    "cupy.cuda.Memory": "size",
    "cupy.cuda.MemoryHook": "",
    "cupy.cuda.MemoryHook.__enter__": "",
    "cupy.cuda.MemoryHook.__exit__": "*_",
    "cupy.cuda.MemoryHook.alloc_postprocess": "**kwargs",
    "cupy.cuda.MemoryHook.alloc_preprocess": "**kwargs",
    "cupy.cuda.MemoryHook.free_postprocess": "**kwargs",
    "cupy.cuda.MemoryHook.free_preprocess": "**kwargs",
    "cupy.cuda.MemoryHook.malloc_postprocess": "**kwargs",
    "cupy.cuda.MemoryHook.malloc_preprocess": "**kwargs",
    "cupy.cuda.MemoryPool": "allocator=None",
    "cupy.cuda.MemoryPool.free_all_blocks": "stream=None",
    "cupy.cuda.MemoryPool.free_bytes": "",
    "cupy.cuda.MemoryPool.get_limit": "",
    "cupy.cuda.MemoryPool.malloc": "size",
    "cupy.cuda.MemoryPool.set_limit": "size=None, fraction=None",
    "cupy.cuda.MemoryPool.total_bytes": "",
    "cupy.cuda.MemoryPool.used_bytes": "",
    "cupy.cuda.UnownedMemory": "ptr, size, owner, device_id=-1",
    "cupy.cuda.memory.PooledMemory": None,
    "cupy.cuda.using_allocator": "allocator=None",
    "cupy.fft._cache.PlanCache.clear": "",
    "cupy.fft.config.get_plan_cache": "",
    "cupy.get_default_memory_pool": "",
    # Errors.
    "cupy.cuda.compiler.CompileException": None,
    "cupy.cuda.driver.CUDADriverError": "status",
    "cupy.cuda.memory.OutOfMemoryError": "size, total, limit=0",
    # Filters.
    "cupyx.scipy.ndimage.black_tophat": MORPHOLOGY,
    "cupyx.scipy.ndimage.convolve": "input, weights, output=None, mode='reflect', cval=0.0",
    "cupyx.scipy.ndimage.correlate": "input, weights, output=None, mode='reflect', cval=0.0",
    "cupyx.scipy.ndimage.gaussian_filter": (
        "input, sigma, order=0, output=None, mode='reflect', cval=0.0, truncate=4.0"
    ),
    "cupyx.scipy.ndimage.gaussian_gradient_magnitude": "input, sigma, output=None, mode='reflect'",
    "cupyx.scipy.ndimage.gaussian_laplace": "input, sigma, output=None, mode='reflect'",
    "cupyx.scipy.ndimage.grey_closing": MORPHOLOGY,
    "cupyx.scipy.ndimage.grey_dilation": MORPHOLOGY,
    "cupyx.scipy.ndimage.grey_erosion": MORPHOLOGY,
    "cupyx.scipy.ndimage.grey_opening": MORPHOLOGY,
    "cupyx.scipy.ndimage.laplace": "input, output=None, mode='reflect', cval=0.0",
    "cupyx.scipy.ndimage.maximum_filter": FILTERS,
    "cupyx.scipy.ndimage.median_filter": FILTERS,
    "cupyx.scipy.ndimage.minimum_filter": FILTERS,
    "cupyx.scipy.ndimage.percentile_filter": "input, percentile, size=None, footprint=None",
    "cupyx.scipy.ndimage.rank_filter": "input, rank, size=None, footprint=None",
    "cupyx.scipy.ndimage.uniform_filter": "input, size=3, output=None, mode='reflect', cval=0.0",
    "cupyx.scipy.ndimage.white_tophat": MORPHOLOGY,
    # NVML.
    "pynvml.NVMLError": "value",
    "pynvml.NVMLError_LibraryNotFound": None,
    "pynvml.NVML_DEVICE_MIG_ENABLE": None,
    "pynvml.nvmlDeviceGetComputeInstanceId": "device",
    "pynvml.nvmlDeviceGetCount": "",
    "pynvml.nvmlDeviceGetGpuInstanceId": "device",
    "pynvml.nvmlDeviceGetHandleByIndex": "index",
    "pynvml.nvmlDeviceGetHandleByUUID": "uuid",
    "pynvml.nvmlDeviceGetMaxMigDeviceCount": "device",
    "pynvml.nvmlDeviceGetMemoryInfo": "handle",
    "pynvml.nvmlDeviceGetMigDeviceHandleByIndex": "device, index",
    "pynvml.nvmlDeviceGetMigMode": "device",
    "pynvml.nvmlDeviceGetName": "handle",
    "pynvml.nvmlDeviceGetPciInfo": "handle",
    "pynvml.nvmlDeviceGetUUID": "handle",
    "pynvml.nvmlInit": "",
    "pynvml.nvmlShutdown": "",
    "pynvml.nvmlSystemGetCudaDriverVersion": "",
    "pynvml.nvmlSystemGetDriverVersion": "",
}
"""What is used of the guests, with the arguments in their order; None for what is not called."""


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    # CuPy warns of what it finds or misses of CUDA, which is not the question here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", reason="the wheel of CuPy is not installed")


def find(name: str) -> Any:
    root = next(n for n in range(len(name.split(".")), 0, -1) if is_module(name, n))
    parts = name.split(".")
    module = __import__(".".join(parts[:root]), fromlist=["_"])
    return reduce(getattr, parts[root:], module)


def is_module(name: str, count: int) -> bool:
    try:
        __import__(".".join(name.split(".")[:count]), fromlist=["_"])
    except ImportError:
        return False
    return True


def arguments(text: str) -> list[str]:
    """Split arguments as a signature writes them, without types and without `self` and `cls`."""
    found = []
    for part in re.split(r",(?![^(\[]*[)\]])", text):
        words, _, default = part.partition("=")
        name = words.partition(":")[0].split()[-1:]
        found += [f"{name[0]}={default.strip()}" if default else name[0]] if name else []
    return [word for word in found if word not in ("self", "cls", "/")]


def signature(value: Any) -> list[str]:
    """Return the arguments that a function or class takes; Cython writes them in the docstring."""
    first = (value.__doc__ or "").strip().partition("\n")[0]
    written = re.fullmatch(r"[\w.]+\((.*)\)(?: -> .*)?", first)
    if written:
        return arguments(written[1])
    plain = inspect.signature(value).replace(return_annotation=inspect.Signature.empty)
    return arguments(str(plain)[1:-1])


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("pynvml")])
def test_cupy_has_what_is_used(cupy: ModuleType, name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("pynvml")])
def test_nvml_has_what_is_used(name: str) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    check(name)


def check(name: str) -> None:
    value, wanted = find(name), NAMES[name]
    if wanted is None:
        return
    told = [word.replace("<class 'float'>", "float") for word in signature(value)]
    used = arguments(wanted)
    assert told[: len(used)] == used
    assert all("=" in word or word.startswith("*") for word in told[len(used) :]), told


def test_what_is_known_of_errors(cupy: ModuleType) -> None:
    error = cupy.cuda.runtime.CUDARuntimeError(2)
    assert (error.status, str(error)) == (2, "cudaErrorMemoryAllocation: out of memory")
    assert isinstance(error, RuntimeError)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)


def test_what_is_known_of_constants(cupy: ModuleType) -> None:
    runtime = cupy.cuda.runtime
    assert (runtime.memcpyHostToDevice, runtime.memcpyDeviceToHost) == (1, 2)
    assert runtime.hostAllocPortable == 1
    assert runtime.cudaDevAttrIntegrated == FakeCupy([]).cuda.runtime.cudaDevAttrIntegrated
    assert cupy.cuda.Stream.null.ptr == 0


def test_without_a_driver_cupy_says_so_and_does_not_fail(cupy: ModuleType) -> None:
    runtime = cupy.cuda.runtime
    if runtime.driverGetVersion() != 0:
        pytest.skip("there is a CUDA driver")
    assert runtime.runtimeGetVersion() >= 12000
    assert not runtime.is_hip
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorInsufficientDriver"):
        runtime.getDeviceCount()


# --- the table is complete ---------------------------------------------------------------------


def used_names(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of whatever is used of the guests, also through a shorter local name.

    What is called `xp` is CuPy's module or NumPy's, whichever has the array.
    """
    local = {guest: guest for guest in GUESTS} | {"xp": "cupy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            local |= {a.asname: a.name for a in node.names if a.asname and is_guest(a.name)}
        elif isinstance(node, ast.ImportFrom) and is_guest(node.module or ""):
            local |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            yield from (f"{node.module}.{a.name}" for a in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (name := full_name(node.value, local)):
            local |= {t.id: name for t in node.targets if isinstance(t, ast.Name)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if id(node) not in inner and not isinstance(node, ast.Name):
            name = full_name(node, local)
            if name and "." in name:
                yield name


def full_name(node: ast.AST, local: dict[str, str]) -> str:
    """Return the dotted name of a guest's that an expression stands for; nothing for others."""
    match node:
        case ast.Name(id=name):
            return local.get(name, "")
        case ast.Attribute(value=value, attr=attr):
            name = full_name(value, local)
            return f"{name}.{attr}" if name else ""
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=attr), *_]):
            name = full_name(value, local)
            return f"{name}.{attr}" if name else ""
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name))],
        ):
            return name if is_guest(name) else ""
    return ""


def is_guest(name: str) -> bool:
    return name.partition(".")[0] in GUESTS


def in_table(name: str) -> bool:
    return any(known == name or known.startswith(f"{name}.") for known in NAMES)


def test_all_that_the_package_uses_is_in_the_table() -> None:
    missing = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in used_names(ast.parse(path.read_text()))
        if not in_table(name)
    }
    assert not missing


def test_uses_are_found_under_any_name() -> None:
    code = """
import cupyx.scipy.ndimage as nd
from cupy.cuda import Event
def f(cupy):
    runtime = cupy.cuda.runtime
    runtime.memGetInfo()
    getattr(cupy, "ndarray", ())
    nd.zoom(1)
    import_module("cupy").asarray
    cupy.cuda.Device(0).use()
    Event(block=True)
    other.cupy.nothing
"""
    found = set(used_names(ast.parse(code)))
    assert found == {
        "cupy.cuda.Device",
        "cupy.cuda.Event",
        "cupy.cuda.runtime",
        "cupy.cuda.runtime.memGetInfo",
        "cupy.ndarray",
        "cupyx.scipy.ndimage.zoom",
        "cupy.asarray",
    }


def test_the_fake_of_nvml_has_the_functions_of_nvml() -> None:
    offered = {name for name in vars(FakeNvml) if name.startswith("nvml")}
    assert {f"pynvml.{name}" for name in offered} == {n for n in NAMES if n.startswith("pynvml.nv")}
    for name in offered:
        assert signature(getattr(FakeNvml, name)) == arguments(NAMES[f"pynvml.{name}"] or "")
