"""Which array library holds an array, and its ndimage. Imports none that is not in use."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from gpublocks.errors import ArgumentTypeError

__all__ = [
    "array_namespace",
    "as_array",
    "fourier",
    "is_cupy_array",
    "is_device_array",
    "ndimage",
    "to_device",
    "to_host",
]


def array_namespace(x: Any) -> ModuleType:
    """Return the module of an array: `numpy` or `cupy`.

    CuPy is not imported for it: an array of CuPy exists only where that has been done.

    Raises
    ------
    ArgumentTypeError
        If `x` is neither an `numpy.ndarray` nor a `cupy.ndarray`.

    Examples
    --------
    >>> array_namespace(np.zeros(3)).__name__
    'numpy'
    """
    if isinstance(x, np.ndarray):
        return np
    if is_cupy_array(x):
        return sys.modules["cupy"]
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise ArgumentTypeError(f"the array is a {kind}; give a numpy.ndarray or a cupy.ndarray")


def ndimage(x: Any) -> ModuleType:
    """Return the module of n-D filters for an array: `scipy.ndimage` or `cupyx.scipy.ndimage`.

    Raises
    ------
    ArgumentTypeError
        If `x` is neither an `numpy.ndarray` nor a `cupy.ndarray`.
    """
    on_host = array_namespace(x) is np
    return import_module("scipy.ndimage" if on_host else "cupyx.scipy.ndimage")


def fourier(x: Any) -> ModuleType:
    """Return the module of Fourier transforms for an array: `scipy.fft` or `cupy.fft`.

    Raises
    ------
    ArgumentTypeError
        If `x` is neither an `numpy.ndarray` nor a `cupy.ndarray`.
    """
    xp: Any = array_namespace(x)
    return import_module("scipy.fft") if xp is np else xp.fft


def is_device_array(x: Any) -> bool:
    """Tell whether the voxels lie in the memory of a GPU, whatever library holds them."""
    return hasattr(x, "__cuda_array_interface__")


def is_cupy_array(x: Any) -> bool:
    """Tell whether it is an array of CuPy's, which is not imported for it."""
    return isinstance(x, getattr(sys.modules.get("cupy"), "ndarray", ()))


def as_array(x: Any) -> Any:
    """Return an array of NumPy or CuPy as it is, one of another library of GPUs as CuPy's.

    Returns
    -------
    numpy.ndarray, cupy.ndarray or None
        None if `x` is no array.
    """
    if isinstance(x, np.ndarray) or not is_device_array(x):
        return x if isinstance(x, np.ndarray) else None
    cupy = import_module("cupy")
    # What another library asked of streams of its own may not be done yet.
    if not is_cupy_array(x):
        cupy.cuda.runtime.deviceSynchronize()
    return cupy.asarray(x)


def to_host(x: Any) -> Any:
    """Return an array as one of NumPy."""
    return x.get() if is_device_array(x) else x


def to_device(x: Any) -> Any:
    """Return an array of NumPy as one of CuPy, on the current GPU."""
    return import_module("cupy").asarray(x)
