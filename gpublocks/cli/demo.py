"""The command `demo`: the main job on a sample volume. Touches a temporary folder and one PNG."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from gpublocks import block_processing as bp
from gpublocks import filters
from gpublocks.budget import format_bytes
from gpublocks.errors import BlockError, PlanError

__all__ = ["CELLS", "demo"]

CELLS = (
    filters.subtract_background(7)
    | filters.difference_of_gaussians(1, 2, truncate=3)
    | filters.clip(0, None)
)
"""Takes off what is larger than a cell, of some 7 voxels, and enhances what is as large as one."""

_THICKNESS = 4
"""Planes that the picture shows, as their maximum."""


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
        plan = bp.plan(CELLS, source, sink, device="cpu")
        print(plan, flush=True)
        start = perf_counter()
        bp.process(CELLS, source, sink, device="cpu")
        in_blocks = perf_counter() - start
        cells = np.load(sink)
    start = perf_counter()
    whole = CELLS(image)
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
        title=f"background and difference of Gaussians in {len(plan.grid)} blocks: "
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
