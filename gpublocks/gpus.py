"""Which GPUs CUDA shows this process, and why none is used. Touches NVML and CUDA; only reads."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Gpu", "gpu_status", "gpus"]

_OLDEST_CUDA = 12
"""Major version of CUDA that the oldest wheel of CuPy 14 is built for."""
_UNMAPPED = "unmapped: CUDA's order of unlike GPUs is known with CUDA_DEVICE_ORDER=PCI_BUS_ID only"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a part of one (MIG), as CUDA numbers it in this process.

    Parameters
    ----------
    index : int
        CUDA's number: the n of ``'cuda:n'``.
    name : str
        ``'NVIDIA H200'``; ``'A or B'`` where only CUDA could tell which one it is.
    uuid : str
        ``'GPU-...'`` or ``'MIG-...'``, by which NVML finds it again; empty where not known.
    total_bytes, free_bytes : int or None
        Memory; None where nobody tells.
    limit : str
        What sets `free_bytes`, or why it is not known: ``'free GPU memory (NVML)'``,
        ``'free GPU memory (CUDA)'``, ``'available host memory, which the GPU shares'``.
    driver : str or None
        Version of the driver.
    integrated : bool
        Whether its memory is that of the host. Only CUDA tells.
    """

    index: int
    name: str
    uuid: str
    total_bytes: int | None
    free_bytes: int | None
    limit: str
    driver: str | None
    integrated: bool = False


@dataclass(frozen=True, slots=True)
class _Card:
    """A GPU of the machine: the devices that CUDA may make of it, each with a name it goes by."""

    uuid: str
    split: bool
    devices: tuple[tuple[str, Gpu], ...]


def gpus(
    environ: Mapping[str, str] | None = None,
    *,
    exact: bool = False,
    only: Sequence[int] | None = None,
) -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that this process sees as CUDA devices, in CUDA's order.

    Never raises: where there is none, `gpu_status` says why.

    Parameters
    ----------
    environ : mapping, optional
        Where CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are looked up. By default `os.environ`.
    exact : bool
        Ask CUDA, through CuPy, which starts it: a context on every GPU (some hundred MB each, and
        seconds), and no fork afterwards. For right before a run. Free memory is then the least
        that NVML and CUDA tell; memory that pools of this process hold is not free.
    only : sequence of int, optional
        Numbers of the GPUs to ask CUDA for; on others it is not started then.
    """
    return _look(os.environ if environ is None else environ, exact, only=only)[0]


def gpu_status(environ: Mapping[str, str] | None = None, *, exact: bool = False) -> str:
    """Return one line that says why no GPU can be used; nothing if one can.

    Never raises. Imports CuPy if NVML finds a GPU, which by itself starts nothing.

    Parameters
    ----------
    environ, exact
        As for `gpus`. CUDA itself is asked to start only if `exact`.
    """
    return _look(os.environ if environ is None else environ, exact, use=True)[1]


def _look(
    environ: Mapping[str, str],
    exact: bool,
    use: bool = False,
    only: Sequence[int] | None = None,
) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs, and in words why there are none, or if `use` why they are of no use."""
    with _nvml() as (nvml, problem):
        found: tuple[Gpu, ...] = ()
        if nvml is not None:
            found, problem = _look_with_nvml(nvml, environ)
        if not (exact or (use and found)):
            return found, problem
        trouble = _cupy_problem(nvml)
        if trouble:
            return () if exact else found, problem or trouble
        if exact:
            found, trouble = _look_with_cuda(nvml, only)
        return found, "" if found else problem or trouble


@contextmanager
def _nvml() -> Iterator[tuple[Any, str]]:
    """Open NVML and give its module, or None and why not."""
    try:
        import pynvml
    except ImportError:
        yield None, "nvidia-ml-py is not installed: pip install nvidia-ml-py"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if isinstance(error, pynvml.NVMLError_LibraryNotFound):
            yield None, "no NVIDIA driver found (libnvidia-ml.so.1): install one if there is a GPU"
        else:
            yield None, f"the NVIDIA driver does not answer ({error})"
        return
    try:
        yield pynvml, ""
    finally:
        _ask(pynvml, pynvml.nvmlShutdown)


def _ask(pynvml: Any, query: Callable[..., Any], *args: Any) -> Any:
    """Return what NVML answers; None where it does not."""
    try:
        return query(*args)
    except pynvml.NVMLError:
        return None


def _look_with_nvml(pynvml: Any, environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that CUDA would show, told without it, and why there are none."""
    try:
        cards, closed = _cards(pynvml)
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver does not answer ({error})"
    if not cards:
        return (), f"no NVIDIA GPU can be opened ({closed})" if closed else "no NVIDIA GPU found"
    found = _visible(cards, environ)
    if found:
        return found, ""
    if not any(card.devices for card in cards):
        return (), "the GPU is in MIG mode and has no MIG device: create one with nvidia-smi mig"
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    count = f"all {len(cards)} GPUs" if len(cards) > 1 else f"the {cards[0].devices[0][1].name}"
    return (), f"CUDA_VISIBLE_DEVICES={mask!r} hides {count} of this machine"


def _cards(pynvml: Any) -> tuple[list[_Card], str]:
    """Return the GPUs that this process may open by PCI address, and why it may not open one.

    NVML counts those too that the container or cgroup keeps closed, and CUDA does not.
    """
    driver = _ask(pynvml, pynvml.nvmlSystemGetDriverVersion)
    placed, closed = [], ""
    for n in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(n)
        except pynvml.NVMLError as error:
            closed = str(error)
            continue
        pci = _ask(pynvml, pynvml.nvmlDeviceGetPciInfo, handle)
        place = (0, 0, n) if pci is None else (pci.domain, pci.bus, pci.device)
        placed.append((place, _card(pynvml, handle, driver)))
    return [card for _, card in sorted(placed, key=lambda pair: pair[0])], closed


def _card(pynvml: Any, handle: Any, driver: str | None) -> _Card:
    uuid = _ask(pynvml, pynvml.nvmlDeviceGetUUID, handle) or ""
    if not _in_mig_mode(pynvml, handle):
        return _Card(uuid, False, ((uuid, _gpu(pynvml, handle, driver)),))
    parts: list[tuple[str, Gpu]] = []
    for n in range(_ask(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, n)
        if part is None:
            continue
        gpu = _gpu(pynvml, part, driver)
        instance = _ask(pynvml, pynvml.nvmlDeviceGetGpuInstanceId, part)
        compute = _ask(pynvml, pynvml.nvmlDeviceGetComputeInstanceId, part)
        parts += [(gpu.uuid, gpu), (f"MIG-{uuid}/{instance}/{compute}", gpu)]
    return _Card(uuid, True, tuple(parts))


def _gpu(pynvml: Any, handle: Any, driver: str | None) -> Gpu:
    total, free, limit = _nvml_memory(pynvml, handle)
    return Gpu(
        index=0,
        name=_ask(pynvml, pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        uuid=_ask(pynvml, pynvml.nvmlDeviceGetUUID, handle) or "",
        total_bytes=total,
        free_bytes=free,
        limit=limit,
        driver=driver,
    )


def _nvml_memory(pynvml: Any, handle: Any) -> tuple[int | None, int | None, str]:
    """Return total and free memory, and who says so or why nobody does."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        return None, None, f"NVML does not tell ({error})"
    return int(memory.total), int(memory.free), "free GPU memory (NVML)"


def _in_mig_mode(pynvml: Any, handle: Any) -> bool:
    mode = _ask(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _visible(cards: Sequence[_Card], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows, as its programming guide and the MIG user guide tell.

    Numbers stand for whole GPUs first and then for the first part of each GPU in MIG mode, and a
    process sees one MIG device only, with nothing beside it.
    """
    whole = [card.devices[0][1] for card in cards if not card.split]
    parts = [card.devices[0][1] for card in cards if card.split and card.devices]
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    numbered = _in_cuda_order(whole, environ) + parts
    chosen = numbered if mask is None else _masked(mask, cards, numbered)
    single = [gpu for gpu in chosen if gpu.uuid.startswith("MIG-")][:1]
    return tuple(replace(gpu, index=n) for n, gpu in enumerate(single or chosen))


def _in_cuda_order(found: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Return the GPUs, given by PCI address, as CUDA numbers them, as far as that can be known.

    CUDA's own order is the fastest first, by a rule that it keeps to itself.
    """
    ordered = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if ordered or len({(gpu.name, gpu.total_bytes) for gpu in found}) < 2:
        return found
    any_of_them = Gpu(
        index=0,
        name=" or ".join(sorted({gpu.name for gpu in found})),
        uuid="",
        total_bytes=_least([gpu.total_bytes for gpu in found]),
        free_bytes=_least([gpu.free_bytes for gpu in found]),
        limit=_UNMAPPED,
        driver=found[0].driver,
    )
    return [any_of_them] * len(found)


def _least(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return min(known) if len(known) == len(sizes) else None


def _masked(mask: str, cards: Sequence[_Card], numbered: list[Gpu]) -> list[Gpu]:
    """Return what CUDA_VISIBLE_DEVICES lists: numbers, or beginnings of names that only one has.

    As CUDA does it, the list ends at the first entry that is none of this, or of another kind than
    the first; an entry may have a tail behind its number; a repeated entry hides everything.
    """
    entries = [entry.strip() for entry in mask.split(",")]
    kind = entries[0][:4] if entries[0].startswith(("GPU-", "MIG-")) else ""
    named = [
        (card.uuid if kind == "GPU-" else name, gpu)
        for card in cards
        for name, gpu in (card.devices[:1] if kind == "GPU-" else card.devices)
    ]
    chosen: dict[int | str, Gpu] = {}
    for entry in entries:
        found: list[tuple[int | str, Gpu]] = []
        if kind and entry.startswith(kind):
            found = [(name, gpu) for name, gpu in named if name.startswith(entry)]
        elif not kind and (number := re.match(r"\+?0*(\d{1,9})", entry)):
            found = [(n, gpu) for n, gpu in enumerate(numbered) if n == int(number[1])]
        if len(found) != 1:
            break
        key, gpu = found[0]
        if key in chosen:
            return []
        chosen[key] = gpu
    return list(chosen.values())


def _cupy_problem(pynvml: Any) -> str:
    """Return why CuPy cannot be used with this driver; nothing if it can."""
    version = 0 if pynvml is None else _ask(pynvml, pynvml.nvmlSystemGetCudaDriverVersion) or 0
    extra = f"gpublocks[cuda{max(version // 1000, _OLDEST_CUDA)}]"
    if 0 < version // 1000 < _OLDEST_CUDA:
        return f"the NVIDIA driver is too old: it runs CUDA {_dotted(version)}, CuPy needs 12.0"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        built, known = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return f"CuPy cannot be imported ({_line(error)})"
        return f"CuPy is not installed: pip install '{extra}'"
    except Exception as error:  # a broken installation may fail in any way
        return f"CuPy cannot be imported ({_line(error)})"
    if runtime.is_hip:
        return "CuPy is built for AMD GPUs, which gpublocks does not support"
    if known == 0:
        return "the CUDA part of the NVIDIA driver is missing (libcuda.so.1)"
    if known // 1000 < built // 1000:
        return (
            f"the NVIDIA driver runs CUDA {_dotted(known)}, too old for this CuPy "
            f"({_dotted(built)}): update it, or replace CuPy: pip install '{extra}'"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception:  # of cuda.pathfinder, of the loader, or of NVRTC
        wheel = f"cupy-cuda{built // 1000}x[ctk]"
        return f"CuPy finds no CUDA libraries (NVRTC): pip install '{wheel}'"
    return ""


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _look_with_cuda(pynvml: Any, only: Sequence[int] | None) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs as CUDA tells them, and why there are none."""
    import cupy

    driver = None if pynvml is None else _ask(pynvml, pynvml.nvmlSystemGetDriverVersion)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        numbers = [n for n in range(count) if only is None or n in only]
        found = tuple([_cuda_gpu(cupy, n, pynvml, driver) for n in numbers])
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return (), f"CUDA does not start ({_line(error)})"
    return found, "" if found else "CUDA finds no GPU"


def _cuda_gpu(cupy: Any, index: int, pynvml: Any, driver: str | None) -> Gpu:
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(index)
    integrated = runtime.deviceGetAttribute(runtime.cudaDevAttrIntegrated, index) == 1
    uuid, told = _nvml_free(pynvml, properties["uuid"].hex())
    gpu = Gpu(
        index=index,
        name=properties["name"].decode(errors="replace"),
        uuid=uuid,
        total_bytes=properties["totalGlobalMem"],
        free_bytes=0,
        limit="",
        driver=driver,
        integrated=integrated,
    )
    try:
        with cupy.cuda.Device(index):
            free, total = runtime.memGetInfo()
    except runtime.CUDARuntimeError as error:
        return replace(gpu, limit=f"CUDA cannot use it ({_line(error)})")
    if integrated:
        # CUDA counts pages of the file cache, which give way at once, as used.
        shared = "available host memory, which the GPU shares"
        return replace(gpu, free_bytes=_host_available(), limit=shared)
    if told is not None and told < free:
        return replace(gpu, total_bytes=total, free_bytes=told, limit="free GPU memory (NVML)")
    return replace(gpu, total_bytes=total, free_bytes=free, limit="free GPU memory (CUDA)")


def _nvml_free(pynvml: Any, digits: str) -> tuple[str, int | None]:
    """Return the UUID of a CUDA device with its kind, and its free memory where NVML tells.

    CUDA gives a MIG device the UUID of the part, or in older drivers that of the whole GPU, whose
    memory says nothing about the part.
    """
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    if pynvml is not None:
        for name in (f"GPU-{uuid}", f"MIG-{uuid}"):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByUUID(name)
                whole = _in_mig_mode(pynvml, handle)
                return name, None if whole else _nvml_memory(pynvml, handle)[1]
    return f"GPU-{uuid}", None


def _host_available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
