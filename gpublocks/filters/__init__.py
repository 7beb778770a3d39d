"""Filters of whole volumes, each with the halo, the memory and the type of result that it has.

A filter is made first and called then: ``gaussian(sigma=2)(array)``. `gpublocks.process` takes from
it all that it needs to know. Names, parameters and defaults are those of `scipy.ndimage` and
scikit-image. They are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks.filters.lightsheets import lightsheet
    from gpublocks.filters.ranks import median, percentile, rank
    from gpublocks.filters.smoothing import gaussian
    from gpublocks.filters.steps import Filter, filter

__all__ = ["Filter", "filter", "gaussian", "lightsheet", "median", "percentile", "rank"]

_HOMES = {
    "lightsheets": ("lightsheet",),
    "ranks": ("median", "percentile", "rank"),
    "smoothing": ("gaussian",),
    "steps": ("Filter", "filter"),
}
"""The modules, and what they give."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
