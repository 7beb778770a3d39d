"""Filters that find ridges and vessels, by the eigenvalues of Hessian matrices. Pure."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import Rule, conversion_bytes, rule, wide
from gpublocks.filters.engines.gaussians import LEAST_SIGMA, gaussian_reach
from gpublocks.filters.engines.hessians import Measure, measured_hessian
from gpublocks.filters.parameters import Border, PerAxis, border, number, spread, voxel_sizes
from gpublocks.filters.parameters import sigmas as in_voxels
from gpublocks.filters.steps import Step, maker

__all__ = ["frangi", "hessian_eigenvalue", "meijering", "sato"]

_Scale = tuple[Any, Callable[[int], Measure]]
"""Standard deviations in voxels, and what is measured for so many axes."""

_SIGMAS = (1, 3, 5, 7, 9)
"""Standard deviations that scikit-image takes."""


@maker
def hessian_eigenvalue(
    sigma: PerAxis,
    index: int = 0,
    *,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: PerAxis | None = None,
    dtype: Any = None,
) -> Step:
    """Make a filter that gives one eigenvalue of the Hessian matrix of each voxel.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation of the Gaussian that smooths, in voxels, or in the unit of `voxel_size`,
        for all axes or for each. Axes of sigma 0 are left out: matrices are those of planes, say.
    index : int
        Which one, as `skimage.feature.hessian_matrix_eigvals` has them: 0 is the largest, -1 the
        least.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which the filter is cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigma` (micrometres, say). Derivatives are taken by this
        unit then, and by voxels without.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if there are not two or three axes.

    Notes
    -----
    Derivatives are those of a Gaussian, cut off at `truncate`, of which second ones give 0 for a
    constant. scikit-image filters twice by first derivatives of Gaussians of ``sigma / sqrt(2)``
    (``use_gaussian_derivatives=True``), which looks 2.8 times as far, as it cuts them off at 8
    standard deviations; or takes differences of smoothed voxels, which smooths a little more
    (``False``). For sigmas of 1.5 voxels and more its eigenvalues are the same to 1 % of the
    largest one, unlike those of less than a voxel, where Gaussians are hardly sampled.

    Examples
    --------
    >>> import numpy as np
    >>> y, x = np.mgrid[-20:21, -20:21]
    >>> largest = hessian_eigenvalue(2.0)((3.0 * y**2 + x**2) / 2)
    >>> float(largest[20, 20].round(1))
    3.0
    """
    lengths = in_voxels(sigma, voxel_size)
    smoothed = [length > 0 for length in lengths] if isinstance(lengths, tuple) else [lengths > 0]
    if not any(smoothed) or (len(smoothed) > 1 and sum(smoothed) not in (2, 3)):
        raise PlanError(f"sigma is {sigma!r}; give more than 0 for two or three axes")
    measure = partial(_eigenvalue, index=number("index", index, least=-3, most=2, whole=True))
    return _step([(lengths, measure)], border(mode, cval), truncate, voxel_size, dtype)


def _eigenvalue(axes: int, index: int) -> Measure:
    if not -axes <= index < axes:
        raise PlanError(f"index is {index}, but there are {axes} eigenvalues; give 0 to {axes - 1}")
    return Measure("eigenvalue", (float(index % axes), 0.0, 0.0))


@maker
def frangi(
    sigmas: float | Iterable[float] = _SIGMAS,
    *,
    gamma: float,
    alpha: float = 0.5,
    beta: float = 0.5,
    black_ridges: bool = True,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: PerAxis | None = None,
    dtype: Any = None,
) -> Step:
    """Make the vesselness filter of Frangi, as `skimage.filters.frangi`.

    Parameters
    ----------
    sigmas : float or iterable of float
        Standard deviations in voxels, or in the unit of `voxel_size`. The result is the largest
        one of all.
    gamma : float
        What norm of the Hessian matrix is one of a structure rather than noise. scikit-image takes
        half of the largest one of the whole volume by default, which no block knows.
    alpha, beta : float
        Sensitivity to plates and to blobs: the less, the more of them is left out.
    black_ridges : bool
        Whether ridges are darker than what is around them.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which Gaussians are cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigmas` (micrometres, say). Derivatives are taken by this
        unit then, and by voxels without.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter
        Results are 0 to 1.

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if arrays have neither two nor three axes.

    Notes
    -----
    Source: A. F. Frangi et al., "Multiscale vessel enhancement filtering", MICCAI 1998, equations
    13 and 15. Derivatives are those of `hessian_eigenvalue`, which says how they differ from
    scikit-image's. Integers are not scaled. Engines have exponential functions of their own: their
    results differ by up to 1e-6.

    Examples
    --------
    >>> tube = frangi([2, 3], gamma=10, black_ridges=False)
    >>> tube.halo
    12
    """
    given = {"alpha": alpha, "beta": beta, "gamma": gamma}
    sharp, blob, noise = [float(number(name, value, above=0)) for name, value in given.items()]
    measure = Measure("frangi", (sharp, blob, noise))
    scales = [(sigma, partial(_always, measure=measure)) for sigma in _listed(sigmas)]
    return _ridges(scales, black_ridges, border(mode, cval), truncate, voxel_size, dtype)


def _always(axes: int, measure: Measure) -> Measure:
    return measure


@maker
def sato(
    sigmas: float | Iterable[float] = _SIGMAS,
    *,
    black_ridges: bool = True,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: PerAxis | None = None,
    dtype: Any = None,
) -> Step:
    """Make the tubeness filter of Sato, as `skimage.filters.sato`.

    Parameters
    ----------
    sigmas : float or iterable of float
        Standard deviations in voxels, or in the unit of `voxel_size`. The result is the largest
        one of all.
    black_ridges : bool
        Whether ridges are darker than what is around them.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which Gaussians are cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigmas` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter
        Results are at least 0, and grow as voxels do.

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if arrays have neither two nor three axes.

    Notes
    -----
    Source: Y. Sato et al., "Three-dimensional multi-scale line filter", Med. Image Anal. 2 (1998)
    143, equations 9 and 22: sigma squared times the geometric mean of all eigenvalues but the
    least, if they are positive. Derivatives are those of `hessian_eigenvalue`.

    Examples
    --------
    >>> sato([1.0, 2.0], voxel_size=(2.0, 0.5, 0.5)).halo
    (4, 16, 16)
    """
    scales = [
        (sigma, partial(_always, measure=Measure("sato", (sigma**2, 0.0, 0.0))))
        for sigma in _listed(sigmas)
    ]
    return _ridges(scales, black_ridges, border(mode, cval), truncate, voxel_size, dtype)


@maker
def meijering(
    sigmas: float | Iterable[float] = _SIGMAS,
    *,
    alpha: float | None = None,
    black_ridges: bool = True,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: PerAxis | None = None,
    dtype: Any = None,
) -> Step:
    """Make the neuriteness filter of Meijering, after `skimage.filters.meijering`.

    Parameters
    ----------
    sigmas : float or iterable of float
        Standard deviations in voxels, or in the unit of `voxel_size`. The result is the largest
        one of all.
    alpha : float, optional
        How much the other eigenvalues are added to each; less than 1. By default ``-1 / (ndim +
        1)``, at which the filter is flattest along a ridge.
    black_ridges : bool
        Whether ridges are darker than what is around them.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which Gaussians are cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigmas` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter
        Results are at least 0, and grow as voxels do.

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if arrays have neither two nor three axes.

    Notes
    -----
    Source: E. Meijering et al., "Design and validation of a tool for neurite tracing", Cytometry A
    58 (2004) 167. The largest of all modified eigenvalues is multiplied by sigma squared, as
    `sato` does; scikit-image divides the results of each sigma by the largest one of the volume,
    which no block knows, and its default alpha is positive.

    Examples
    --------
    >>> meijering(2)
    meijering(sigmas=2)
    """
    given = None if alpha is None else float(number("alpha", alpha, most=1))
    scales = [
        (sigma, partial(_meijering, factor=sigma**2, alpha=given)) for sigma in _listed(sigmas)
    ]
    return _ridges(scales, black_ridges, border(mode, cval), truncate, voxel_size, dtype)


def _meijering(axes: int, factor: float, alpha: float | None) -> Measure:
    return Measure("meijering", (factor, -1 / (axes + 1) if alpha is None else alpha, 0.0))


def _listed(sigmas: Any) -> list[float]:
    """Return scales as numbers."""
    listed = list(sigmas) if isinstance(sigmas, Iterable) and not isinstance(sigmas, str) else None
    if listed is None:
        return [float(number("sigmas", sigmas, above=0))]
    if not listed:
        raise PlanError("sigmas is empty; give one standard deviation at least")
    return [float(number(f"sigmas[{n}]", item, above=0)) for n, item in enumerate(listed)]


def _ridges(
    scales: Sequence[_Scale],
    black_ridges: Any,
    beyond: Border,
    truncate: Any,
    voxel_size: Any,
    dtype: Any,
) -> Step:
    if not isinstance(black_ridges, bool):
        raise ArgumentTypeError(f"black_ridges is {black_ridges!r}; give True or False")
    scaled = [(in_voxels(sigma, voxel_size, "sigmas"), measure) for sigma, measure in scales]
    sign = 1.0 if black_ridges else -1.0
    return _step(scaled, beyond, truncate, voxel_size, dtype, sign)


def _step(
    scales: Sequence[_Scale],
    beyond: Border,
    truncate: Any,
    voxel_size: Any,
    dtype: Any,
    sign: float = 1.0,
) -> Step:
    rounding = rule(dtype, wide)
    checked = float(number("truncate", truncate, least=0))
    reaches = [gaussian_reach(sigma, checked) for sigma, _ in scales]
    each = isinstance(reaches[0], tuple)
    largest = tuple(map(max, zip(*reaches, strict=True))) if each else max(reaches)
    operation = partial(
        _largest,
        scales=tuple(scales),
        unit=1.0 if voxel_size is None else voxel_sizes(voxel_size),
        truncate=checked,
        border=beyond,
        sign=sign,
    )
    sigma, _ = scales[0]
    axes = sum(map(bool, sigma)) if isinstance(sigma, tuple) else 3
    memory = partial(_memory, result=rounding, axes=axes, scales=len(scales))
    return Step(operation, halo=largest, dtype=rounding, memory=memory)


def _memory(dtype: DType, result: Rule, axes: int, scales: int) -> float:
    kept = wide(dtype)
    elements = axes * (axes + 1) // 2
    held = elements + axes - 1 + (scales > 1)
    conversion = kept.itemsize + conversion_bytes(kept, result(dtype))
    return max(kept.itemsize * held, conversion)


def _largest(
    array: Any,
    dtype: DType,
    *,
    scales: tuple[_Scale, ...],
    unit: Any,
    truncate: float,
    border: Border,
    sign: float,
) -> Any:
    """Return the largest measure of all scales."""
    total = None
    for sigma, measure in scales:
        lengths = dict(enumerate(spread("sigma", sigma, array.ndim)))
        smoothed = {axis: length for axis, length in lengths.items() if length > LEAST_SIGMA}
        if len(smoothed) not in (2, 3):
            raise PlanError(f"the array has {array.ndim} axes; Hessian matrices are for 2 or 3")
        found = measured_hessian(
            array,
            measure(len(smoothed)),
            border,
            sigma=smoothed,
            unit=dict(enumerate(spread("voxel_size", unit, array.ndim))),
            truncate=truncate,
            sign=sign,
        )
        if total is None:
            total = found
        else:
            xp = array_namespace(array)
            xp.maximum(total, found, out=total)
        del found
    return total
