"""Filters of whole volumes, each with the halo, the memory and the type of result that it has.

A filter is made first and called then: ``gaussian(sigma=2)(array)``. `gpublocks.process` takes from
it all that it needs to know. Names, parameters and defaults are those of `scipy.ndimage` and
scikit-image. They are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks.filters.smoothing import gaussian
    from gpublocks.filters.statistics import histogram, minmax, percentiles
    from gpublocks.filters.steps import Filter, filter
    from gpublocks.filters.verifying import Verification, verify

__all__ = [
    "Filter",
    "Verification",
    "filter",
    "gaussian",
    "histogram",
    "minmax",
    "percentiles",
    "verify",
]

_HOMES = {
    "smoothing": ("gaussian",),
    "statistics": ("histogram", "minmax", "percentiles"),
    "steps": ("Filter", "filter"),
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
