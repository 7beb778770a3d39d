"""Filters of single voxels: limits, ranges, thresholds, types. Pure."""

from dataclasses import dataclass
from functools import partial
from math import ceil, floor, inf
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import Always, Rule, converted, limits, rule, same, stored, wide
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.launching import launch
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.parameters import number
from gpublocks.filters.steps import Step, maker

__all__ = ["cast", "clip", "compared", "rescale", "threshold"]

_AT_ONCE = 1 << 16
"""Voxels that NumPy converts at once, which stay in the cache between two operations."""


@maker
def clip(low: float | None = None, high: float | None = None) -> Step:
    """Make a filter that limits voxels to a range, as `numpy.clip`.

    Parameters
    ----------
    low, high : float, optional
        Least and greatest value of the result; one of them may be left out. For integers they are
        rounded to the nearest one that the type holds.

    Returns
    -------
    Filter
        The type of voxels stays as it is; what is no number (NaN) too.

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if there is no limit, or `low` is above `high`.

    Examples
    --------
    >>> clip(10, 300)(np.array([0, 20, 255], np.uint8))
    array([ 10,  20, 255], dtype=uint8)
    """
    least = None if low is None else number("low", low)
    most = None if high is None else number("high", high)
    if least is None and most is None:
        raise PlanError("clip() has neither low nor high; give at least one of them")
    if least is not None and most is not None and least > most:
        raise PlanError(f"low is {low}, above high, {high}; give the smaller one first")
    return Step(partial(_clip, low=least, high=most), halo=0, dtype=same, memory=_itemsize)


def _itemsize(dtype: DType) -> float:
    return float(dtype.itemsize)


def _clip(array: Any, dtype: DType, *, low: float | None, high: float | None) -> Any:
    ends = [None if end is None else _held(end, dtype) for end in (low, high)]
    if dtype.kind == "b":
        return array.view(np.uint8).clip(*ends).view(dtype)
    return array.clip(*ends)


def _held(value: float, dtype: DType) -> Any:
    """Return the value of a type that is nearest to a number; 0 or 1 for truth values."""
    if dtype.kind == "b":
        return np.uint8(min(max(round(value), 0), 1))
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return dtype.type(min(max(round(value), int(info.min)), int(info.max)))
    with np.errstate(over="ignore"):
        return dtype.type(value)


@maker
def threshold(value: float, *, below: bool = False) -> Step:
    """Make a filter that tells which voxels are brighter than a value.

    Parameters
    ----------
    value : float
        Voxels above it are True, as ``array > value``; for floats it is rounded to their type.
    below : bool
        Whether those below it are True instead, as ``array < value``.

    Returns
    -------
    Filter
        Its results are truth values. What is no number (NaN) is False.

    Raises
    ------
    ArgumentTypeError, PlanError

    Examples
    --------
    >>> threshold(10.5)(np.array([10, 11], np.uint8))
    array([False,  True])
    """
    if not isinstance(below, bool):
        raise ArgumentTypeError(f"below is {below!r}; give True or False")
    operation = partial(compared, value=number("value", value), below=below)
    truth = np.dtype(np.bool_)
    return Step(operation, halo=0, dtype=Always(truth), memory=Always(1.0))


def compared(array: Any, dtype: DType, *, value: float, below: bool = False) -> Any:
    """Return where voxels are above a value, or below it, whatever their type holds."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind == "f":
        bound = _held(value, array.dtype)
        return array < bound if below else array > bound
    info = np.iinfo(array.dtype)
    bound = ceil(value) if below else floor(value)
    if below and bound > info.max:
        return array <= info.max
    if not below and bound < info.min:
        return array >= info.min
    held = _held(bound, array.dtype)
    return array < held if below else array > held


@maker
def cast(dtype: Any) -> Step:
    """Make a filter that gives voxels another type.

    Parameters
    ----------
    dtype : dtype
        Type of the result.

    Returns
    -------
    Filter
        Floats become the nearest integers (halves the even ones), and what the type does not hold
        becomes the nearest value that it does (for integers of 64 bits, the nearest float64 of
        it); NaN becomes 0. `ndarray.astype` cuts off and lets values overflow.

    Raises
    ------
    ArgumentTypeError

    Examples
    --------
    >>> cast("uint8")(np.array([-3.0, 1.6, 300.0]))
    array([  0,   2, 255], dtype=uint8)
    """
    if dtype is None:
        raise ArgumentTypeError("dtype is None; give a NumPy type")
    rounding = rule(dtype, same)
    memory = partial(_cast_bytes, dtype=np.dtype(dtype))
    return Step(_cast, halo=0, dtype=rounding, memory=memory)


def _cast_bytes(before: DType, dtype: DType) -> float:
    if dtype.kind not in "iu" or np.can_cast(before, dtype):
        return float(dtype.itemsize)
    between = _short_bytes(before) if _in_one(before, dtype) else before.itemsize
    return float(dtype.itemsize + between)


def _in_one(before: DType, dtype: DType) -> bool:
    """Tell whether voxels become integers through float64, which holds all but the longest ones."""
    return dtype.kind in "iu" and (before.kind == "f" or before.itemsize <= 4)


def _short_bytes(dtype: DType) -> int:
    """Return the bytes per voxel of a copy that engines can read, 0 if they can read any."""
    return 4 if dtype == np.float16 else 0


def _cast(array: Any, dtype: Any) -> Any:
    if np.can_cast(array.dtype, dtype):
        return array.astype(dtype)
    return _line(array, dtype, _Line()) if _in_one(array.dtype, dtype) else converted(array, dtype)


@maker
def rescale(
    in_range: tuple[float, float],
    out_range: tuple[float, float] | None = None,
    *,
    dtype: Any = None,
) -> Step:
    """Make a filter that stretches a range, as `skimage.exposure.rescale_intensity`.

    Parameters
    ----------
    in_range : (float, float)
        Values that become those of `out_range`; voxels beyond them are limited to them.
    out_range : (float, float), optional
        By default what the type of the result holds if that is one of integers, else 0 to 1. The
        first may be the larger one.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    The whole volume's range, which scikit-image takes by default, is what no block knows.
    Computed in float64 and rounded once; what is no number (NaN) stays so, and is 0 in integers.

    Examples
    --------
    >>> rescale((100, 300), dtype="uint8")(np.array([90, 100, 200, 300], np.uint16))
    array([  0,   0, 128, 255], dtype=uint8)
    """
    rounding = rule(dtype, wide)
    low, high = _pair("in_range", in_range)
    if low >= high:
        raise PlanError(f"in_range is {in_range!r}; give the smaller one first, and a larger one")
    given = None if out_range is None else _pair("out_range", out_range)
    return Step(
        partial(_rescale, low=low, high=high, out_range=given),
        halo=0,
        dtype=rounding,
        memory=partial(_result_bytes, result=rounding),
    )


def _pair(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentTypeError(f"{name} is {value!r}; give two numbers, such as (0, 255)")
    first, last = (number(f"{name}[{n}]", end) for n, end in enumerate(value))
    return float(first), float(last)


def _result_bytes(dtype: DType, result: Rule) -> float:
    found = result(dtype)
    if stored(found):
        return float(found.itemsize + _short_bytes(dtype))
    return float(max(found.itemsize, _short_bytes(dtype)) + wide(dtype).itemsize)


def _rescale(
    array: Any, dtype: DType, *, low: float, high: float, out_range: tuple[float, float] | None
) -> Any:
    if out_range is None:
        out_range = limits(dtype) if dtype.kind in "iu" else (0.0, 1.0)
    first, last = out_range
    line = _Line(low, high, low, high - low, last - first, first)
    return _line(array, dtype if stored(dtype) else wide(array.dtype), line)


@dataclass(frozen=True, slots=True)
class _Line:
    """A straight line through values that are limited first; by default the values themselves."""

    low: float = -inf
    high: float = inf
    origin: float = 0.0
    unit: float = 1.0
    factor: float = 1.0
    offset: float = 0.0

    @property
    def numbers(self) -> tuple[float, float, float, float, float, float]:
        return self.low, self.high, self.origin, self.unit, self.factor, self.offset


def _line(array: Any, dtype: DType, line: _Line) -> Any:
    """Return ``(limited - origin) / unit * factor + offset``, rounded to a type."""
    source, flipped = in_memory_order(array)
    if source.dtype == np.float16:
        source = source.astype(np.float32)
    if source.dtype.kind == "b":
        source = source.view(np.uint8)
    target = array_namespace(array).empty(source.shape, dtype)
    whole = dtype.kind in "iu"
    ends = limits(dtype) if whole else (0.0, 0.0)
    engine = engine_of(array)
    if engine == "cuda":
        arrays = {"Source": source, "Target": target}
        launch("straight_line", arrays, target.size, *line.numbers, whole, *ends)
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.straight_lines import straight_line

        straight_line(source.reshape(-1), target.reshape(-1), *line.numbers, whole, *ends)
    else:
        _by_numpy(source.reshape(-1), target.reshape(-1), line)
    return target.T if flipped else target


def _by_numpy(source: Any, target: Any, line: _Line) -> None:
    for start in range(0, source.size, _AT_ONCE):
        values = source[start : start + _AT_ONCE].astype(np.float64)
        values.clip(line.low, line.high, out=values)
        values -= line.origin
        values /= line.unit
        values *= line.factor
        values += line.offset
        target[start : start + _AT_ONCE] = converted(values, target.dtype)
