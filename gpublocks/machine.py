"""What this machine offers a run on its CPUs or GPUs. Touches the OS (/proc, /sys), psutil, GPUs.

It only reads, but to read what a GPU has left starts CUDA.
"""

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gpublocks import cgroups, gpus
from gpublocks.budget import Budget, format_bytes
from gpublocks.cgroups import read_text
from gpublocks.errors import DeviceError
from gpublocks.gpus import Gpu
from gpublocks.splitting import as_count

__all__ = [
    "Limit",
    "cache_bytes",
    "core_cache_bytes",
    "cpu_count",
    "device_budget",
    "host_budget",
    "memory_available",
    "memory_limit",
    "rss_anon",
    "versions",
]

_ROOT = Path("/")
_PERCENT = 60
"""Part of the available memory that a run takes when not told otherwise. The rest is for the
interpreters and libraries of the workers, for the page cache, and for other programs."""
_PINNED_PERCENT = 25
"""The same for page-locked memory, which the system can neither move nor write to disk."""
_DEVICE_PERCENT = 80
"""The same for the free memory of a GPU. The rest is for what lies outside of CuPy's pools: growth
of the context, local memory of kernels (some hundred MB to a GB for large rank filters), handles
and workspaces of libraries; and for what other programs take meanwhile."""
_CORE_CACHE_BYTES = 1 << 20
_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "zarr",
    "numcodecs",
    "tifffile",
    "h5py",
    "dask",
    "cloudpickle",
    "psutil",
    "nvidia-ml-py",
    "tqdm",
    "matplotlib",
)
_CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")


@dataclass(frozen=True, slots=True)
class Limit:
    """A number of bytes and what sets it.

    Parameters
    ----------
    bytes : int
    reason : str
        ``'available memory'``, ``'memory free under cgroup /a/b'``,
        ``'memory left by RLIMIT_DATA'``; of a limit ``'physical memory'``, ``'cgroup /a/b'``,
        ``'RLIMIT_DATA'``.
    """

    bytes: int
    reason: str


def cpu_count(root: Path = _ROOT) -> int:
    """Return how many CPUs this process may use: its affinity, within the quota of its cgroups.

    Parameters
    ----------
    root : Path
        Folder that holds ``proc`` and ``sys``.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([count, *cgroups.cpu_quotas(root)]))


def memory_limit(root: Path = _ROOT) -> Limit:
    """Return the most memory that this process could ever have, and what sets it."""
    import psutil

    limits = [Limit(psutil.virtual_memory().total, "physical memory")]
    limits += [Limit(limit, f"cgroup {name}") for name, limit, _ in cgroups.memory_limits(root)]
    limits += [Limit(limit, name) for name, limit, _ in _resource_limits(root)]
    return min(limits, key=lambda limit: limit.bytes)


def memory_available(root: Path = _ROOT) -> Limit:
    """Return the memory that this process can take now, and what sets it.

    The smallest over the memory that the system has available, what each cgroup on the way to the
    root leaves (cached file pages that can be dropped count as free), and the resource limits.
    """
    import psutil

    limits = [Limit(psutil.virtual_memory().available, "available memory")]
    limits += [
        Limit(max(0, limit - used), f"memory free under cgroup {name}")
        for name, limit, used in cgroups.memory_limits(root)
    ]
    limits += [
        Limit(max(0, limit - used), f"memory left by {name}")
        for name, limit, used in _resource_limits(root)
    ]
    return min(limits, key=lambda limit: limit.bytes)


def core_cache_bytes(root: Path = _ROOT) -> int:
    """Return the level-2 cache of one CPU in bytes; 1 MiB where that cannot be known."""
    size, sharing = _caches(root).get(2, (_CORE_CACHE_BYTES, 1))
    return size // sharing


def cache_bytes(workers: int, root: Path = _ROOT) -> int:
    """Return the cache of one of so many workers: its own, and its part of the last level.

    The workers are taken to share one last level, as they do on a machine with a single socket.
    """
    caches = _caches(root)
    last = max(caches, default=0)
    size, sharing = caches[last] if last > 2 else (0, 1)
    return core_cache_bytes(root) + size // min(workers, sharing)


def host_budget(workers: int, memory: int | None = None, root: Path = _ROOT) -> Budget:
    """Return what a run on the CPUs of this machine may use.

    Parameters
    ----------
    workers : int
        Cells in flight at once.
    memory : int, optional
        Bytes that the user allows. What is available bounds it. By default 60 % of that.

    Raises
    ------
    ArgumentTypeError, PlanError
        If `workers` is not a positive whole number.
    """
    workers = as_count("workers", workers, 1)
    host_bytes, reason = _host_share(memory, _PERCENT, root)
    return Budget(
        host_bytes,
        workers,
        core_cache_bytes=core_cache_bytes(root),
        cache_bytes=cache_bytes(workers, root),
        reason=reason,
    )


def device_budget(
    devices: Sequence[int],
    memory: int | None = None,
    device_memory: int | None = None,
    root: Path = _ROOT,
) -> Budget:
    """Return what a run on GPUs of this machine may use, from what is free right now.

    Starts CUDA. For right before a run: other programs take memory too, and memory that pools of
    this process hold is not free.

    Parameters
    ----------
    devices : sequence of int
        CUDA's numbers. The device with the least memory decides for all of them.
    memory : int, optional
        Bytes of page-locked host memory that the user allows, over all devices. What is available
        bounds it. By default 25 % of that.
    device_memory : int, optional
        Bytes that the user allows on each device. What is free bounds it. By default 80 % of that.

    Raises
    ------
    DeviceError
        If there is no such device, or none of its memory is free as far as anybody tells.
    PlanError
        If there are no `devices`.
    """
    workers = as_count("number of devices", len(devices), 1)
    host_bytes, reason = _host_share(memory, _PINNED_PERCENT, root)
    found = gpus.gpus(exact=True, only=devices)
    shares = [_device_share(number, found, host_bytes, device_memory) for number in devices]
    device_bytes, device_reason = min(shares, key=lambda share: share[0])
    return Budget(
        host_bytes,
        workers,
        reason=reason,
        device_bytes=device_bytes,
        device_reason=device_reason,
    )


def rss_anon(pid: int, root: Path = _ROOT) -> int:
    """Return the anonymous memory that a process holds, in bytes; 0 where it is not known."""
    return _status_bytes(str(pid), "RssAnon", root)


def versions() -> dict[str, str]:
    """Return the versions of gpublocks, Python, the platform and the libraries installed."""
    found = {
        "gpublocks": _version("gpublocks") or "not installed",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    found |= {name: version for name in _LIBRARIES if (version := _version(name))}
    cupy = [f"{version} ({name})" for name in _CUPY if (version := _version(name))]
    return found | ({"cupy": ", ".join(cupy)} if cupy else {})


def _host_share(memory: int | None, percent: int, root: Path) -> tuple[int, str]:
    """Return how much host memory a run may take, and what sets it."""
    available = memory_available(root)
    found = f"{available.reason} ({format_bytes(available.bytes)})"
    return _share(available.bytes, found, percent, memory, f"memory={_short(memory)}")


def _device_share(
    number: int, found: Sequence[Gpu], host_bytes: int, memory: int | None
) -> tuple[int, str]:
    """Return how much memory of a GPU a run may take, and what sets it."""
    gpu = next((gpu for gpu in found if gpu.index == number), None)
    if gpu is None:
        trouble = "" if found else gpus.gpu_status(exact=True)
        why = trouble or "gpublocks info shows the GPUs that there are"
        raise DeviceError(f"there is no cuda:{number}: {why}")
    label = f"cuda:{number}, {gpu.name}"
    if not gpu.free_bytes:
        raise DeviceError(
            f"no memory is free on {label}, or nobody tells: {gpu.limit}; use another device, or "
            "device='cpu'"
        )
    # Where the GPU has the memory of the host, page-locked memory is taken from the same.
    free = max(0, gpu.free_bytes - host_bytes) if gpu.integrated else gpu.free_bytes
    reason = f"{gpu.limit} on {label} ({format_bytes(free)})"
    given = f"memory={{'device': '{_short(memory)}'}} on {label}"
    return _share(free, reason, _DEVICE_PERCENT, memory, given)


def _share(free: int, found: str, percent: int, limit: int | None, given: str) -> tuple[int, str]:
    """Return a part of what is free, or the limit that was given, and in words what sets it."""
    if limit is None:
        return free * percent // 100, f"{percent} % of {found}"
    if limit > free:
        return free, f"{found}, below {given}"
    return limit, given


def _short(nbytes: int | None) -> str:
    return format_bytes(nbytes or 0).replace(" ", "")


@lru_cache(maxsize=8)
def _caches(root: Path) -> dict[int, tuple[int, int]]:
    """Return bytes and number of sharing CPUs of the first CPU's data caches, by level."""
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level = read_text(folder / "level").strip()
        size = re.fullmatch(r"([1-9]\d*)([KM]?)\s*", read_text(folder / "size"))
        if not level.isdecimal() or size is None or read_text(folder / "type") == "Instruction\n":
            continue
        ranges = re.findall(r"(\d+)(?:-(\d+))?", read_text(folder / "shared_cpu_list"))
        sharing = sum(int(last or first) - int(first) + 1 for first, last in ranges)
        unit = {"": 1, "K": 1 << 10, "M": 1 << 20}[size[2]]
        found[int(level)] = int(size[1]) * unit, max(1, sharing)
    return found


def _resource_limits(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, limit and bytes in use of each resource limit on memory."""
    if sys.platform == "win32":
        return
    import resource

    for name, used in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            yield name, limit, _status_bytes("self", used, root)


def _status_bytes(process: str, field: str, root: Path) -> int:
    """Return a field of /proc/<process>/status in bytes; 0 if it is not there."""
    match = re.search(
        rf"^{field}:\s*(\d+) kB$", read_text(root / "proc" / process / "status"), re.MULTILINE
    )
    return int(match[1]) * 1024 if match else 0


@lru_cache(maxsize=64)
def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
