"""The command `demo`: the main job on a sample volume. Touches a temporary folder and one PNG."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import block_processing as bp
from gpublocks.budget import format_bytes
from gpublocks.errors import BlockError, PlanError

__all__ = ["HALO", "demo", "find_cells"]

_BACKGROUND = 7
"""Side of the cube in which nothing larger than a cell fits, in voxels."""
_SMALL, _LARGE = 1.0, 2.0
"""Standard deviations of the two Gaussians, in voxels; cells have about the smaller one."""
_TRUNCATE = 3.0

_THICKNESS = 4
"""Planes that the picture shows, as their maximum."""

HALO = 2 * (_BACKGROUND // 2) + int(_TRUNCATE * _LARGE + 0.5)
"""An opening is a minimum and a maximum, each of half the cube; then comes the wider Gaussian."""


def find_cells(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return an image without its background, its cells enhanced.

    White top-hat, then the positive part of a difference of Gaussians.

    Parameters
    ----------
    image : ndarray
        Any real type.

    Returns
    -------
    ndarray of float32
        Of the same shape; each voxel depends on `HALO` voxels on each side.
    """
    from scipy import ndimage

    cells = ndimage.white_tophat(image, size=(_BACKGROUND,) * image.ndim).astype(np.float32)
    small = ndimage.gaussian_filter(cells, _SMALL, truncate=_TRUNCATE)
    small -= ndimage.gaussian_filter(cells, _LARGE, truncate=_TRUNCATE)
    return np.maximum(small, 0, out=small)


def demo(output: str, shape: str) -> None:
    """Run the main job on the sample volume, compare it with one call, and save a picture."""
    from gpublocks.picture import check_path, save_before_after
    from gpublocks.sample import brain

    check_path(output)
    lengths = _shape(shape)
    image = brain(lengths)
    print(f"sample volume {image.shape} {image.dtype}, {format_bytes(image.nbytes)}", flush=True)
    with TemporaryDirectory(prefix="gpublocks-demo-") as folder:
        source, sink = Path(folder) / "brain.npy", Path(folder) / "cells.npy"
        np.save(source, image)
        plan = bp.plan(find_cells, source, sink, halo=HALO, device="cpu")
        print(plan, flush=True)
        start = perf_counter()
        bp.process(find_cells, source, sink, halo=HALO, device="cpu")
        in_blocks = perf_counter() - start
        cells = np.load(sink)
    start = perf_counter()
    whole = find_cells(image)
    in_one = perf_counter() - start
    print(
        f"{in_blocks:.2f} s in blocks, start of the workers included; "
        f"{in_one:.2f} s in one call on the whole volume"
    )
    differing = int(np.count_nonzero(cells.view(np.uint32) != whole.view(np.uint32)))
    if differing:
        raise BlockError(f"{differing} of {cells.size} voxels differ from those of one call")
    print(f"all {cells.size} voxels equal those of one call, bit for bit")
    save_before_after(
        output,
        image,
        cells,
        plan.grid,
        title=f"white top-hat and difference of Gaussians in {len(plan.grid)} blocks: "
        "the same voxels as in one call",
        labels=("light-sheet image", "background removed, cells enhanced"),
        thickness=_THICKNESS,
    )
    print(f"picture: {output}")


def _shape(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"--shape is {text!r}; give three numbers such as 128,256,256") from None
