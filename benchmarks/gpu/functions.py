"""The functions that are measured; each runs on CPUs and GPUs. Touches ndimage when called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.arrays import ndimage

__all__ = ["WORKS", "Work"]


def gaussian(image: Any) -> Any:
    """Return the image smoothed with sigma 2."""
    return ndimage(image).gaussian_filter(image, 2)


def difference_of_gaussians(image: Any) -> Any:
    """Return by how much a narrow Gaussian exceeds a wide one, as whole numbers."""
    filters = ndimage(image)
    difference = filters.gaussian_filter(image, 1, output=np.float32)
    difference -= filters.gaussian_filter(image, 2, output=np.float32)
    return difference.clip(0, 65535).astype(np.uint16)


def median_3(image: Any) -> Any:
    """Return the median of 3 x 3 x 3 voxels."""
    return ndimage(image).median_filter(image, size=3)


def median_5(image: Any) -> Any:
    """Return the median of 5 x 5 x 5 voxels."""
    return ndimage(image).median_filter(image, size=5)


def white_tophat(image: Any) -> Any:
    """Return what is brighter than its surroundings within 5 x 5 x 5 voxels."""
    return ndimage(image).white_tophat(image, size=(5, 5, 5))


def times_two(image: Any) -> Any:
    """Return twice the image."""
    return image * 2


@dataclass(frozen=True, slots=True)
class Work:
    """A function of uint16 images that returns uint16 images.

    Parameters
    ----------
    name : str
    function : callable
    halo : int
        Voxels on each side that one voxel of the result depends on.
    """

    name: str
    function: Callable[[Any], Any]
    halo: int


WORKS = {
    work.name: work
    for work in (
        Work("gaussian", gaussian, 8),
        Work("dog", difference_of_gaussians, 8),
        Work("median-3", median_3, 1),
        Work("median-5", median_5, 2),
        Work("tophat", white_tophat, 4),
        Work("times-two", times_two, 0),
    )
}
"""By name."""
