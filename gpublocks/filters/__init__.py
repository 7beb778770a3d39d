"""Filters of whole volumes, each with the halo, the memory and the type of result that it has.

A filter is made first and called then: ``gaussian(sigma=2)(array)``. `gpublocks.process` takes from
it all that it needs to know. Names, parameters and defaults are those of `scipy.ndimage` and
scikit-image. They are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks.filters.deconvolution import richardson_lucy
    from gpublocks.filters.denoising import bilateral
    from gpublocks.filters.derivatives import (
        difference_of_gaussians,
        gaussian_gradient_magnitude,
        gaussian_laplace,
        laplace,
        prewitt,
        sobel,
    )
    from gpublocks.filters.lightsheets import lightsheet
    from gpublocks.filters.local import local_threshold, normalize_local_contrast
    from gpublocks.filters.masks import (
        binary_closing,
        binary_dilation,
        binary_erosion,
        binary_opening,
        local_maxima,
    )
    from gpublocks.filters.morphology import (
        grey_closing,
        grey_dilation,
        grey_erosion,
        grey_opening,
        maximum,
        minimum,
    )
    from gpublocks.filters.pointwise import cast, clip, rescale, threshold
    from gpublocks.filters.ranks import median, percentile, rank
    from gpublocks.filters.ridges import frangi, hessian_eigenvalue, meijering, sato
    from gpublocks.filters.smoothing import gaussian, uniform
    from gpublocks.filters.statistics import histogram, minmax, percentiles
    from gpublocks.filters.steps import Filter, filter
    from gpublocks.filters.tophats import (
        black_tophat,
        morphological_gradient,
        subtract_background,
        white_tophat,
    )
    from gpublocks.filters.verifying import Verification, verify

__all__ = [
    "Filter",
    "Verification",
    "bilateral",
    "binary_closing",
    "binary_dilation",
    "binary_erosion",
    "binary_opening",
    "black_tophat",
    "cast",
    "clip",
    "difference_of_gaussians",
    "filter",
    "frangi",
    "gaussian",
    "gaussian_gradient_magnitude",
    "gaussian_laplace",
    "grey_closing",
    "grey_dilation",
    "grey_erosion",
    "grey_opening",
    "hessian_eigenvalue",
    "histogram",
    "laplace",
    "lightsheet",
    "local_maxima",
    "local_threshold",
    "maximum",
    "median",
    "meijering",
    "minimum",
    "minmax",
    "morphological_gradient",
    "normalize_local_contrast",
    "percentile",
    "percentiles",
    "prewitt",
    "rank",
    "rescale",
    "richardson_lucy",
    "sato",
    "sobel",
    "subtract_background",
    "threshold",
    "uniform",
    "verify",
    "white_tophat",
]

_HOMES = {
    "deconvolution": ("richardson_lucy",),
    "denoising": ("bilateral",),
    "derivatives": (
        "difference_of_gaussians",
        "gaussian_gradient_magnitude",
        "gaussian_laplace",
        "laplace",
        "prewitt",
        "sobel",
    ),
    "lightsheets": ("lightsheet",),
    "local": ("local_threshold", "normalize_local_contrast"),
    "masks": (
        "binary_closing",
        "binary_dilation",
        "binary_erosion",
        "binary_opening",
        "local_maxima",
    ),
    "morphology": (
        "grey_closing",
        "grey_dilation",
        "grey_erosion",
        "grey_opening",
        "maximum",
        "minimum",
    ),
    "pointwise": ("cast", "clip", "rescale", "threshold"),
    "ranks": ("median", "percentile", "rank"),
    "ridges": ("frangi", "hessian_eigenvalue", "meijering", "sato"),
    "smoothing": ("gaussian", "uniform"),
    "statistics": ("histogram", "minmax", "percentiles"),
    "steps": ("Filter", "filter"),
    "tophats": ("black_tophat", "morphological_gradient", "subtract_background", "white_tophat"),
    "verifying": ("Verification", "verify"),
}
"""The modules, and what they give."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
