"""Types of voxels: those that filters compute in, those of results, and rounding. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError

__all__ = [
    "Always",
    "Rule",
    "check_real",
    "comparable",
    "comparable_bytes",
    "conversion_bytes",
    "converted",
    "limits",
    "restored",
    "rule",
    "same",
    "stored",
    "weighted",
    "wide",
]

Rule = Callable[[DType], DType]
"""From the type of an array to that of the result."""

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Always:
    """The same answer for every type of array."""

    answer: Any

    def __call__(self, dtype: DType) -> Any:
        """Return the answer."""
        return self.answer


def wide(dtype: DType) -> DType:
    """Return the type that keeps weighted sums between two passes, and results with a sign.

    float32 holds 24 bits, thus all truth values and integers of 16 bits exactly; numbers that are
    longer take float64. The sums themselves are always taken in float64.

    Examples
    --------
    >>> wide(np.dtype(np.uint16)), wide(np.dtype(np.int32))
    (dtype('float32'), dtype('float64'))
    """
    return _FLOAT32 if dtype.itemsize <= 2 or dtype == _FLOAT32 else _FLOAT64


def same(dtype: DType) -> DType:
    """Return the type of the array."""
    return dtype


def weighted(dtype: DType) -> DType:
    """Return the type of the array; float32 for truth values, which have no mean."""
    return _FLOAT32 if dtype.kind == "b" else dtype


def rule(given: Any, default: Rule) -> Rule:
    """Return the rule for the type that the user gave; the default one if there is none.

    Raises
    ------
    ArgumentTypeError
        If it is no type of real numbers.
    """
    if given is None:
        return default
    try:
        dtype = np.dtype(given)
    except TypeError as error:
        raise ArgumentTypeError(f"dtype is {given!r}; give a NumPy type ({error})") from None
    check_real(dtype, "dtype=")
    return Always(dtype.newbyteorder("="))


def check_real(dtype: DType, name: str) -> None:
    """Raise `ArgumentTypeError` unless voxels are real numbers or truth values."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ArgumentTypeError(
            f"{name} got {dtype}; filters are for truth values, integers and floats of at most "
            "64 bits"
        )


def stored(dtype: DType) -> bool:
    """Tell whether engines round to a type by themselves."""
    return dtype.kind in "iu" or dtype in (_FLOAT32, _FLOAT64)


def comparable(array: Any, value: float) -> tuple[Any, Any]:
    """Return an array in a type that engines compare, and an array of NumPy of one more voxel.

    That one is rounded and limited to what the array's type holds, which comes to the same as if
    this were done to the extreme of both.
    """
    with np.errstate(over="ignore"):
        more = converted(np.array([value]), array.dtype)
    if array.dtype == np.bool_:
        return array.view(np.uint8), more.view(np.uint8)
    if array.dtype == np.float16:
        return array.astype(_FLOAT32), more.astype(_FLOAT32)
    return array, more


def comparable_bytes(dtype: DType) -> int:
    """Return the bytes per voxel that it takes to compare an array of a type in another one.

    Those of a copy, and of what is made of it before it is `restored`.
    """
    return 2 * _FLOAT32.itemsize if dtype == np.float16 else 0


def restored(array: Any, dtype: DType) -> Any:
    """Return what is made of a `comparable` array in the type that this one had."""
    return array.view(dtype) if dtype.kind == "b" else array.astype(dtype, copy=False)


def limits(dtype: DType) -> tuple[float, float]:
    """Return the least and the greatest float64 that a type of integers holds.

    Examples
    --------
    >>> limits(np.dtype(np.uint8))
    (0.0, 255.0)
    """
    info = np.iinfo(dtype)
    low, high = float(info.min), float(info.max)
    return low, high if int(high) <= info.max else float(np.nextafter(high, 0.0))


def converted(array: Any, dtype: DType) -> Any:
    """Return an array as one of another type.

    Floats become the nearest integers, halves the even ones, as `numpy.rint` has it; what a type
    of integers does not hold becomes the nearest value that it does, and NaN becomes 0. Everything
    but 0 is True.
    """
    if array.dtype == dtype:
        return array
    if dtype.kind not in "iu" or array.dtype.kind == "b":
        return array.astype(dtype)
    xp = array_namespace(array)
    if array.dtype.kind == "f":
        low, high = limits(dtype)
        values = xp.rint(array).astype(_holding(array.dtype, dtype), copy=False)
        values.clip(low, high, out=values)
        xp.copyto(values, 0, where=xp.isnan(values))
        return values.astype(dtype)
    info, held = np.iinfo(dtype), np.iinfo(array.dtype)
    low, high = max(info.min, held.min), min(info.max, held.max)
    return array.clip(low, high).astype(dtype)


def conversion_bytes(dtype: DType, result: DType) -> float:
    """Return the bytes per voxel that `converted` takes at most, its result included."""
    if dtype == result:
        return 0
    if dtype.kind != "f" or result.kind not in "iu":
        return result.itemsize
    held = _holding(dtype, result).itemsize
    return held + max(result.itemsize, dtype.itemsize if _holding(dtype, result) != dtype else 0)


def _holding(dtype: DType, result: DType) -> DType:
    """Return the type of floats that holds those of one type and all integers of another one."""
    return _FLOAT64 if result.itemsize > 2 or dtype == _FLOAT64 else _FLOAT32
