"""Filters: operations on one array that know how far they look and what they take. Pure."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import Always, check_real, converted, rule, same
from gpublocks.filters.parameters import number
from gpublocks.splitting import as_count

__all__ = ["Filter", "Halo", "Step", "filter", "maker"]

Halo = int | tuple[int, ...]
"""Voxels per axis and side: one number for all axes, or one for each."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation on an array.

    Parameters
    ----------
    operation : callable
        Called with an array of native byte order, and the type that the result is to have. Returns
        a new array and leaves the other one as it is.
    halo : int or tuple of int
        Voxels per axis and side that one voxel of the result depends on.
    dtype : callable, optional
        From the type of an array to that of the result; None if only a call tells.
    memory : callable, optional
        From the type of an array to the bytes per voxel that a call takes, its result included and
        the array not; None if that is not known.
    name : str
    parameters : mapping
        What it was made with, to be shown.
    """

    operation: Callable[[Any, DType | None], Any]
    halo: Halo
    dtype: Callable[[DType], DType] | None = None
    memory: Callable[[DType], float] | None = None
    name: str = "filter"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, array: Any) -> Any:
        """Return the result for an array of NumPy or CuPy."""
        array_namespace(array)
        check_real(array.dtype, self.name)
        if isinstance(self.halo, tuple) and len(self.halo) != array.ndim:
            raise PlanError(
                f"{self} has values for {len(self.halo)} axes, but the array has {array.ndim}; "
                "give one value for all axes, or one for each"
            )
        if not array.ndim:
            return self(array.reshape(1)).reshape(())
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        dtype = None if self.dtype is None else self.dtype(array.dtype)
        result = self.operation(array, dtype)
        return result if dtype is None else converted(result, dtype)

    def __str__(self) -> str:
        shown = [f"{name}={_shown(value)}" for name, value in self.parameters.items()]
        return f"{self.name}({', '.join(shown)})"


def _shown(value: Any) -> str:
    return f"<{value.dtype} {value.shape}>" if getattr(value, "ndim", 0) else repr(value)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Filter:
    """An operation on an array, or several that follow each other in one pass over a volume.

    Called with an array of NumPy or CuPy it returns the filtered one, a new array of the same
    shape. `gpublocks.process` takes from it how far blocks overlap, the type of the result and the
    memory that it takes. Filters pickle, and are chained by ``|``.

    Attributes
    ----------
    steps : tuple of Step

    Examples
    --------
    >>> import numpy as np
    >>> from gpublocks.filters import gaussian
    >>> both = gaussian(1) | gaussian(sigma=2, order=1)
    >>> both
    gaussian(sigma=1) | gaussian(sigma=2, order=1)
    >>> both.halo
    12
    >>> float(both(np.full((20, 30), 7, np.uint8)).max())
    0.0
    """

    steps: tuple[Step, ...]

    @property
    def halo(self) -> Halo:
        """Voxels per axis and side that one voxel of the result depends on, over all steps."""
        halos = [step.halo for step in self.steps]
        axes = max((len(halo) for halo in halos if isinstance(halo, tuple)), default=0)
        if not axes:
            return sum(halo for halo in halos if isinstance(halo, int))
        listed = [halo if isinstance(halo, tuple) else (halo,) * axes for halo in halos]
        return tuple(map(sum, zip(*listed, strict=True)))

    def result_dtype(self, dtype: DType) -> DType | None:
        """Return the type of the result for an array of some type; None if only a call tells."""
        found: DType | None = np.dtype(dtype).newbyteorder("=")
        for step in self.steps:
            if step.dtype is None or found is None:
                return None
            found = step.dtype(found)
        return found

    def memory(self, dtype: DType) -> float | None:
        """Return how many bytes a call takes for each voxel of an array of some type.

        Results of all steps are included, the array itself is not. None if it is not known.
        """
        # An array of another byte order is copied first.
        given, current = np.dtype(dtype), np.dtype(dtype).newbyteorder("=")
        most, before = 0.0, 0 if given == current else given.itemsize
        for step in self.steps:
            if step.memory is None:
                return None
            most = max(most, before + step.memory(current))
            if step.dtype is None:
                return most if step is self.steps[-1] else None
            current = step.dtype(current)
            before = current.itemsize
        return most

    def then(self, other: "Filter") -> "Filter":
        """Return the filter that does this one and then another one; also ``self | other``.

        Raises
        ------
        ArgumentTypeError
            If the other one is no filter.
        PlanError
            If one has values for another number of axes.
        """
        if not isinstance(other, Filter):
            raise ArgumentTypeError(
                f"{self} is followed by a {type(other).__name__}; give a filter, such as one made "
                "of a function by gpublocks.filters.filter(halo=...)"
            )
        steps = (*self.steps, *other.steps)
        axes = {len(step.halo): step for step in steps if isinstance(step.halo, tuple)}
        if len(axes) > 1:
            listed = " and ".join(f"{step} has {count}" for count, step in axes.items())
            raise PlanError(f"filters have values for different numbers of axes: {listed}")
        return Filter(steps)

    def cut(self, at: int) -> tuple["Filter", "Filter"]:
        """Return the filter of the first `at` steps, and that of the others."""
        return Filter(self.steps[:at]), Filter(self.steps[at:])

    def __or__(self, other: "Filter") -> "Filter":
        return self.then(other)

    def __call__(self, array: Any) -> Any:
        """Return the filtered array.

        Raises
        ------
        ArgumentTypeError
            If it is no array of NumPy or CuPy, or one of complex numbers or of none at all.
        PlanError
            If the filter has values for another number of axes.
        """
        for step in self.steps:
            array = step(array)
        return array

    @property
    def __name__(self) -> str:
        return " | ".join(map(str, self.steps))

    def __repr__(self) -> str:
        return self.__name__


def maker(make: Callable[P, Step]) -> Callable[P, Filter]:
    """Let a function that makes steps make filters, shown with its name and what it was given."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def named(*args: P.args, **kwargs: P.kwargs) -> Filter:
        given = signature.bind(*args, **kwargs).arguments
        return Filter((replace(make(*args, **kwargs), name=make.__name__, parameters=given),))

    named.__signature__ = signature.replace(return_annotation=Filter)  # type: ignore[attr-defined]
    return named


def filter(
    *,
    halo: int | tuple[int, ...] | Callable[..., Halo],
    dtype: Any = None,
    memory: float | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Make filters of a function of an array: a decorator.

    Parameters
    ----------
    halo : int, tuple of int or callable
        Voxels per axis and side that one voxel of the result depends on: one number, one for each
        axis, or a function that returns this for the function's parameters (those that it names).
        `gpublocks.filters.verify` finds out whether it is large enough.
    dtype : dtype, optional
        Type of the result, to which values are rounded and limited. By default it is what the
        function returns.
    memory : float, optional
        Bytes per voxel that a call takes, its result included and its array not. By default it is
        estimated, and measured by the first block where that matters.

    Returns
    -------
    callable
        Makes a `Filter` of a function that has no parameter beside the array; of any other one a
        function of these parameters, which returns a `Filter`.

    Raises
    ------
    PlanError, ArgumentTypeError
        If the halo is no number of voxels, or none for parameters that are given; if dtype is no
        type of real numbers, or memory no number of bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> from gpublocks import filters
    >>> @filters.filter(halo=1)
    ... def edges(array):
    ...     return ndimage.sobel(array)
    >>> edges
    edges()
    >>> @filters.filter(halo=lambda sigma: int(4 * sigma + 0.5), memory=16)
    ... def smooth(array, sigma=1.0):
    ...     return ndimage.gaussian_filter(array, sigma)
    >>> smooth(sigma=2).halo
    8
    """
    fixed = None if dtype is None else rule(dtype, same)
    taken = None if memory is None else Always(float(number("memory", memory, least=0)))
    if not callable(halo):
        _checked(halo)

    def decorate(function: Callable[..., Any]) -> Any:
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters:
            raise ArgumentTypeError(f"{function.__name__!r} takes no array")
        own = inspect.Signature(parameters[1:])

        def make(*args: Any, **kwargs: Any) -> Filter:
            given = own.bind(*args, **kwargs)
            step = Step(
                operation=_Call(function, given.args, given.kwargs),
                halo=_checked(_halo_for(halo, own, given) if callable(halo) else halo),
                dtype=fixed,
                memory=taken,
                name=function.__name__,
                parameters=given.arguments,
            )
            return Filter((step,))

        functools.update_wrapper(make, function)
        make.__signature__ = own.replace(return_annotation=Filter)  # type: ignore[attr-defined]
        return make if own.parameters else make()

    return decorate


def _halo_for(
    halo: Callable[..., Halo], own: inspect.Signature, given: inspect.BoundArguments
) -> Halo:
    """Return the halo for parameters, those with defaults among them."""
    given = own.bind(*given.args, **given.kwargs)
    given.apply_defaults()
    wanted = inspect.signature(halo).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted):
        return halo(**given.arguments)
    unknown = [parameter.name for parameter in wanted if parameter.name not in given.arguments]
    if unknown:
        raise PlanError(
            f"the halo depends on {', '.join(unknown)}, but the function has the parameters "
            f"{', '.join(own.parameters)}"
        )
    return halo(**{parameter.name: given.arguments[parameter.name] for parameter in wanted})


def _checked(halo: Any) -> Halo:
    if isinstance(halo, tuple | list):
        return tuple([as_count("halo", value, 0) for value in halo])
    return as_count("halo", halo, 0)


@dataclass(frozen=True, slots=True)
class _Call:
    """A function of an array, with its other arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, array: Any, dtype: DType | None) -> Any:
        return self.function(array, *self.args, **self.kwargs)
