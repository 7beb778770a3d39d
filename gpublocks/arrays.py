"""Which array library holds an array, and its ndimage. Imports none that is not in use."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from gpublocks.errors import ArgumentTypeError

__all__ = ["array_namespace", "is_device_array", "ndimage"]


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
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, getattr(cupy, "ndarray", ())):
        return cupy
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


def is_device_array(x: Any) -> bool:
    """Tell whether the voxels lie in the memory of a GPU, whatever library holds them."""
    return hasattr(x, "__cuda_array_interface__")
