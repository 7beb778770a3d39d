"""Windows that are boxes or have any other shape, and the extremes of what is in them. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import same
from gpublocks.filters.engines.footprint_extremes import extremes_of_footprint
from gpublocks.filters.engines.windows import around, extremes
from gpublocks.filters.parameters import Border, Span, sizes
from gpublocks.filters.steps import Halo, Step

__all__ = [
    "Element",
    "closed",
    "cross",
    "dilated",
    "element",
    "eroded",
    "extreme",
    "of_shape",
    "opened",
    "step_of",
]

_SIZE = 3
"""What filters have for their size where none is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """Which voxels around one belong to its window (a flat structuring element).

    Parameters
    ----------
    spans : tuple of Span
        Voxels before and after its own on each axis.
    alike : bool
        Whether there is one span, for any number of axes.
    footprint : ndarray of bool, optional
        Which voxels within the spans; all by default.
    """

    spans: tuple[Span, ...]
    alike: bool = False
    footprint: npt.NDArray[np.bool_] | None = None

    @property
    def mirrored(self) -> "Element":
        """The element with what is before its own voxel after it."""
        turned = None if self.footprint is None else np.flip(self.footprint)
        return replace(self, spans=tuple([span[::-1] for span in self.spans]), footprint=turned)

    def halo(self, *, both: bool = False, times: int = 1) -> Halo:
        """Return how far one window looks; or one, and the mirrored one after it."""
        each = [times * (sum(span) if both else max(span)) for span in self.spans]
        return each[0] if self.alike else tuple(each)


def element(size: Any, footprint: Any = None, voxel_size: Any = None) -> Element:
    """Return the window that a user asks for.

    Raises
    ------
    ArgumentTypeError, PlanError
        If sizes are none, or there is a footprint and something else, or one of no voxels.
    """
    if footprint is None:
        lengths = sizes(size, voxel_size)
        if isinstance(lengths, tuple):
            return Element(tuple(map(around, lengths)))
        return Element((around(lengths),), alike=True)
    if voxel_size is not None:
        raise PlanError("there are a footprint, which is in voxels, and voxel_size; give one")
    if not (isinstance(size, int) and size == _SIZE):
        raise PlanError(f"there are size={size!r} and a footprint; give one of them")
    return of_shape("footprint", footprint)


def of_shape(name: str, value: Any) -> Element:
    """Return the window of an array that is not 0 where voxels belong to it.

    As in `scipy.ndimage`, its own voxel is that at ``shape // 2``.
    """
    try:
        shape = np.asarray(value)
        chosen = shape.astype(np.bool_)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{name} is no array of truth values ({error})") from None
    if shape.dtype.kind not in "biuf":
        raise ArgumentTypeError(f"{name} is an array of {shape.dtype}; give truth values")
    if not chosen.ndim or not chosen.any():
        raise PlanError(f"{name} has no voxel that is not 0; give which voxels a window has")
    middle = [length // 2 for length in chosen.shape]
    # The window's own voxel is within its ends also where it does not belong to it: what lies in
    # between two filters is as far from it as the window is, and must be in the block.
    ends = [
        (min(at, int(found.min())), max(at, int(found.max())))
        for at, found in zip(middle, np.nonzero(chosen), strict=True)
    ]
    spans = [(at - low, high - at) for at, (low, high) in zip(middle, ends, strict=True)]
    kept = chosen[tuple([slice(low, high + 1) for low, high in ends])].copy()
    return Element(tuple(spans), footprint=None if kept.all() else kept)


def cross(ndim: int) -> Element:
    """Return a voxel and its neighbours along each of so many axes."""
    far = np.abs(np.indices((3,) * ndim) - 1).sum(0)
    return of_shape("structure", far <= 1)


def extreme(array: Any, window: Element, border: Border, *, most: bool, reuse: bool = False) -> Any:
    """Return the minimum or the maximum of the window around each voxel.

    Where a window has a NaN, its extreme is NaN.

    Parameters
    ----------
    reuse : bool
        Whether the array may be overwritten, and returned.
    """
    spans = window.spans * array.ndim if window.alike else window.spans
    if window.footprint is None:
        return extremes(array, spans, border, most=most, reuse=reuse)
    return extremes_of_footprint(array, window.footprint, spans, border, most=most)


def eroded(array: Any, window: Element, border: Border, *, reuse: bool = False) -> Any:
    """Return the minimum of the window around each voxel."""
    return extreme(array, window, border, most=False, reuse=reuse)


def dilated(array: Any, window: Element, border: Border, *, reuse: bool = False) -> Any:
    """Return the maximum of the voxels whose windows have a voxel."""
    return extreme(array, window.mirrored, border, most=True, reuse=reuse)


def opened(array: Any, window: Element, border: Border) -> Any:
    """Return the dilated erosion."""
    return dilated(eroded(array, window, border), window, border, reuse=True)


def closed(array: Any, window: Element, border: Border) -> Any:
    """Return the eroded dilation."""
    return eroded(dilated(array, window, border), window, border, reuse=True)


def step_of(
    operation: Callable[[Any, Element, Border], Any],
    window: Element,
    border: Border,
    memory: Callable[[DType], float],
    *,
    both: bool = False,
) -> Step:
    """Return the step of an operation with a window, which keeps the type.

    Parameters
    ----------
    both : bool
        Whether it looks once and then again the other way, as openings do.
    """
    return Step(
        partial(_apply, operation=operation, window=window, border=border),
        halo=window.halo(both=both),
        dtype=same,
        memory=memory,
    )


def _apply(
    array: Any, dtype: DType, *, operation: Callable[..., Any], window: Element, border: Border
) -> Any:
    return operation(array, window, border)
