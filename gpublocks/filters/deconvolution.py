"""Filters that undo the blur of a microscope. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace, fourier
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import Rule, conversion_bytes, rule, wide
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.parameters import number, per_axis, spread
from gpublocks.filters.steps import Step, maker

__all__ = ["richardson_lucy"]

_EPS = 1e-12
"""Added to what is divided by, as scikit-image does."""

_START = 0.5
"""First estimate of all voxels. Any other constant leads to the same."""


@maker
def richardson_lucy(
    psf: npt.NDArray[Any],
    iterations: int = 10,
    *,
    clip: bool = False,
    filter_epsilon: float | None = None,
    halo: int | tuple[int, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make a Richardson-Lucy deconvolution, as `skimage.restoration.richardson_lucy`.

    Parameters
    ----------
    psf : ndarray
        Point spread function, with as many axes as the volume, its centre at ``(size - 1) // 2``.
        It is divided by its sum.
    iterations : int
    clip : bool
        Whether results are limited to 1, for volumes that are scaled to 0 to 1. scikit-image does
        so by default.
    filter_epsilon : float, optional
        Where the blurred estimate is below it, voxels are not corrected, but set to 0: these would
        be divided by small numbers.
    halo : int or tuple of int, optional
        Voxels per axis and side that blocks get of their neighbours. By default as many as one
        voxel depends on, ``(size - 1) * iterations``, which is a lot. Less gives an error at the
        borders of blocks, as blocks have zeros beyond theirs: see the notes.
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
    Sources: W. H. Richardson, J. Opt. Soc. Am. 62 (1972) 55; L. B. Lucy, Astron. J. 79 (1974) 745.
    Beyond the border of the volume all is 0, as in scikit-image. Unlike it the transpose of the
    blur has its centre where the blur has it, also for sizes that are even; negative voxels, and
    what is infinite or no number, count as 0.

    Convolutions are products of real Fourier transforms in the type of the result, of sizes that
    are products of 2, 3 and 5. Their rounding depends on the size, so that blocks and engines give
    the same to about 1e-5 of the brightest voxel (float32), not bit for bit.

    With less than the whole halo, what is wrong decays from the border of a block inwards. Beads
    on a background, blurred by a Gaussian of 15 voxels (sigma 2.5), were wrong by at most 7e-3,
    4e-5 and 1e-6 of the brightest voxel after 10 iterations with halos of 14, 28 and 42 voxels, and
    by 1e-2, 4e-4 and 8e-6 after 30: twice the size of the function is enough for most.
    `gpublocks.filters.verify` tells how wrong it is for a volume.

    Examples
    --------
    >>> psf = np.ones((3, 5, 5))
    >>> richardson_lucy(psf, iterations=4).halo
    (8, 16, 16)
    >>> richardson_lucy(psf, iterations=4, halo=(4, 8, 8))
    richardson_lucy(psf=<float64 (3, 5, 5)>, iterations=4, halo=(4, 8, 8))
    """
    kernel = _normalised(psf)
    count = number("iterations", iterations, least=1, whole=True)
    rounding = rule(dtype, wide)
    if not isinstance(clip, bool):
        raise ArgumentTypeError(f"clip is {clip!r}; give True or False")
    least = None if filter_epsilon is None else number("filter_epsilon", filter_epsilon, above=0)
    if halo is None:
        reach = tuple([(size - 1) * count for size in kernel.shape])
    else:
        given = per_axis("halo", halo, partial(number, least=0, whole=True))
        reach = spread("halo", given, kernel.ndim)
    return Step(
        partial(_richardson_lucy, psf=kernel, iterations=count, clip=clip, filter_epsilon=least),
        halo=reach,
        dtype=rounding,
        memory=partial(_memory, result=rounding, padding=_padding(kernel.shape, reach)),
    )


def _normalised(psf: Any) -> npt.NDArray[np.float64]:
    """Return a point spread function with a sum of 1."""
    if not isinstance(psf, np.ndarray) or psf.dtype.kind not in "biuf":
        what = psf.dtype if isinstance(psf, np.ndarray) else type(psf).__name__
        raise ArgumentTypeError(f"psf is a {what}; give a NumPy array of real numbers")
    kernel = psf.astype(np.float64)
    if not kernel.ndim or not kernel.size:
        raise PlanError(f"psf has the shape {psf.shape}; give one voxel at least")
    if not np.isfinite(kernel).all() or kernel.min() < 0 or not kernel.any():
        raise PlanError("psf has infinite, undefined or negative values, or none but 0")
    normalised: npt.NDArray[np.float64] = kernel / kernel.sum()
    return normalised


_ARRAYS = 8
"""Arrays that are held at once: the volume and its estimate, the transform of the psf, those of
what is convolved and what comes of them."""


_SMALL = 64
"""Voxels along an axis that even small blocks have."""


def _padding(lengths: Sequence[int], halo: Sequence[int]) -> float:
    """Return how many voxels are transformed for each one of a small block."""
    blocks = [max(_SMALL, 2 * reach) for reach in halo]
    return prod([(n + length // 2) / n for n, length in zip(blocks, lengths, strict=True)])


def _memory(dtype: DType, result: Rule, padding: float) -> float:
    kept = wide(dtype)
    conversion = kept.itemsize + conversion_bytes(kept, result(dtype))
    return max(_ARRAYS * kept.itemsize * padding, conversion)


def _richardson_lucy(
    array: Any,
    dtype: DType,
    *,
    psf: npt.NDArray[np.float64],
    iterations: int,
    clip: bool,
    filter_epsilon: float | None,
) -> Any:
    xp = array_namespace(array)
    source, flipped = in_memory_order(array)
    volume = source.astype(wide(array.dtype))
    xp.copyto(volume, 0, where=~(xp.isfinite(volume) & (volume > 0)))
    estimate = xp.full(volume.shape, _START, volume.dtype)
    blur = _Blur.of(volume, psf.T if flipped else psf)
    for _ in range(iterations if array.size else 0):
        ratio = blur.convolved(estimate)
        ratio += _EPS
        if filter_epsilon is not None:
            xp.copyto(ratio, np.inf, where=ratio < filter_epsilon)
        xp.divide(volume, ratio, out=ratio)
        ratio = blur.convolved(ratio, transposed=True)
        estimate *= ratio
        del ratio
        # Rounding makes small negative numbers of zeros.
        xp.maximum(estimate, 0, out=estimate)
    if clip:
        estimate.clip(0, 1, out=estimate)
    return estimate.T if flipped else estimate


@dataclass(frozen=True, slots=True)
class _Blur:
    """A convolution of arrays of one shape, with zeros beyond their border."""

    transform: Any
    shape: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(volume: Any, psf: npt.NDArray[np.float64]) -> "_Blur":
        """Return that of a point spread function.

        Transforms are periodic: zeros that are as long as the function looks far keep voxels from
        those at the other end.
        """
        from scipy.fft import next_fast_len

        xp = array_namespace(volume)
        pairs = zip(volume.shape, psf.shape, strict=True)
        sizes = tuple([next_fast_len(max(n + k // 2, k), True) for n, k in pairs])
        kernel = xp.zeros(sizes, volume.dtype)
        kernel[tuple(map(slice, psf.shape))] = xp.asarray(psf.astype(volume.dtype))
        centred = xp.roll(
            kernel, tuple([-((k - 1) // 2) for k in psf.shape]), tuple(range(psf.ndim))
        )
        return _Blur(fourier(volume).rfftn(centred), volume.shape, sizes)

    def convolved(self, array: Any, transposed: bool = False) -> Any:
        """Return the convolution with an array, or the transpose of it: a correlation."""
        xp, transforms = array_namespace(array), fourier(array)
        product = transforms.rfftn(array, self.sizes)
        if transposed:
            # That of the transposed one is the conjugate, which is nowhere kept.
            xp.conjugate(product, out=product)
        product *= self.transform
        if transposed:
            xp.conjugate(product, out=product)
        return transforms.irfftn(product, self.sizes)[tuple(map(slice, self.shape))]
