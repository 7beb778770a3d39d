"""`cubed.map_overlap` in processes. Touches files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cubed

from gpublocks.bench.opening import open_array

__all__ = ["map_overlap", "stored_block"]

_MEMORY = "2GB"


def map_overlap(
    function: Callable[[Any], Any],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
) -> None:
    """Map the function over overlapping chunks, and store them."""
    work = Path(sink).with_suffix(".cubed")
    spec = cubed.Spec(
        work_dir=str(work),
        allowed_mem=_MEMORY,
        executor_name="processes",
        executor_options={"max_workers": workers},
    )
    image = cubed.from_zarr(source, spec=spec)
    result = open_array(sink, write=True)
    mapped = cubed.map_overlap(
        partial(_within, function, tuple(halo), image.chunks),
        image,
        dtype=result.dtype,
        chunks=image.chunks,
        depth=dict(enumerate(halo)),
        boundary="none",
    )
    cubed.store(mapped, result)


def _within(
    function: Callable[[Any], Any],
    halo: Sequence[int],
    chunks: Sequence[Sequence[int]],
    image: Any,
    block_id: Sequence[int],
) -> Any:
    """Call the function on a chunk with its halo, and crop the result, which Cubed does not."""
    crop = []
    for around, lengths, place in zip(halo, chunks, block_id, strict=True):
        lower = min(around, sum(lengths[:place]))
        crop.append(slice(lower, lower + lengths[place]))
    return function(image)[tuple(crop)]


def stored_block(function: Any, source: str, sink: str, **others: Any) -> tuple[int, ...]:
    """Return the shape of the chunks of the source: others would first be stored."""
    chunks: tuple[int, ...] = open_array(source).chunks
    return chunks
