"""Kernels of CUDA for the filters, started on the current stream. Touches the GPU, through CuPy."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

__all__ = ["MODES", "launch", "source_of"]

MODES = {"reflect": 0, "mirror": 1, "nearest": 2, "constant": 3}
"""Numbers of the modes in the kernels."""

_THREADS = 256
_SHORT = 2**30
"""Arrays of fewer voxels are counted in 32 bits, which hold twice as many: divisions of longer
numbers take several times as long."""

_OPTIONS = ("--fmad=false",)
"""A fused multiplication rounds once where the CPU rounds twice."""

_NAMES = {
    "b1": "unsigned char",
    "i1": "signed char",
    "i2": "short",
    "i4": "int",
    "i8": "long long",
    "u1": "unsigned char",
    "u2": "unsigned short",
    "u4": "unsigned int",
    "u8": "unsigned long long",
    "f4": "float",
    "f8": "double",
}


def launch(name: str, arrays: Mapping[str, Any], count: int, *arguments: Any) -> None:
    """Start a kernel with one thread for each of so many voxels.

    Parameters
    ----------
    name : str
        Of the kernel and of its file, ``cuda/<name>.cu``.
    arrays : mapping of str to ndarray
        Its first arguments, each with the name that the kernel has for its type.
    count : int
        Voxels: the next argument.
    *arguments
        The others: arrays; ints, of which those of NumPy's int64 stand for an ``Index``; floats.
    """
    if not count:
        return
    short = max(array.size for array in arrays.values()) < _SHORT
    types = {kind: _NAMES[array.dtype.str[1:]] for kind, array in arrays.items()}
    kernel = _kernel(name, ("Index", "int" if short else "long long"), *types.items())
    index = np.int32 if short else np.int64
    listed = [index(x) if isinstance(x, np.int64) else _plain(x) for x in arguments]
    blocks = -(-count // _THREADS)
    kernel((blocks,), (_THREADS,), (*arrays.values(), index(count), *listed))


def _plain(argument: Any) -> Any:
    """Return an argument as what a kernel has: an array, an int or a double."""
    if isinstance(argument, int):
        return np.int32(argument)
    return np.float64(argument) if isinstance(argument, float) else argument


@cache
def _kernel(name: str, *types: tuple[str, str]) -> Any:
    import cupy

    return cupy.RawKernel(source_of(name, types), name, _OPTIONS)


def source_of(name: str, types: Iterable[tuple[str, str]]) -> str:
    """Return the source of a kernel, for names of types that stand for others."""
    folder = files("gpublocks.filters.engines").joinpath("cuda")
    named = [f"typedef {kind} {alias};" for alias, kind in types]
    return "\n".join(
        [*named, *[folder.joinpath(f"{part}.cu").read_text() for part in ("common", name)]]
    )
