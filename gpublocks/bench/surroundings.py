"""What should be known beside any figure: machine and versions. Touches /proc, reads only."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpublocks import __version__, machine

__all__ = ["machine_facts"]

_LIBRARIES = (
    "numpy",
    "scipy",
    "zarr",
    "numcodecs",
    "cloudpickle",
    "psutil",
    "tqdm",
    "joblib",
    "dask",
    "distributed",
    "scikit-image",
    "cubed",
    "numba",
    "simpleitk",
)


def machine_facts() -> dict[str, Any]:
    """Return the machine and the versions as plain values."""
    cpus = machine.cpu_count()
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cpus": cpus,
            "cpus_online": os.cpu_count(),
            "memory_bytes": machine.memory_limit().bytes,
            "memory_limit": machine.memory_limit().reason,
            "core_cache_bytes": machine.core_cache_bytes(),
            "cache_bytes_per_worker": machine.cache_bytes(cpus),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "system": platform.platform(),
        },
        "versions": {
            "gpublocks": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _LIBRARIES},
        },
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
