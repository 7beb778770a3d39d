"""Arrays in files, as NumPy and zarr open them: for whatever gpublocks is compared with.

Touches files, zarr.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["CHUNK", "create_array", "open_array"]

CHUNK = 64
"""Side of the chunks of arrays in Zarr."""
_LEVEL = 1
"""Of zstd: what writers in a hurry take."""
_WRONG = 65535
"""What voxels are that were not written."""


def open_array(path: Any, *, write: bool = False) -> Any:
    """Return a memory map of a ``.npy`` file, or an array of zarr."""
    name = str(path)
    if name.endswith(".npy"):
        return np.load(name, mmap_mode="r+" if write else "r")
    import zarr

    return zarr.open_array(name, mode="r+" if write else "r")


def create_array(path: Any, shape: Sequence[int], dtype: Any, *, chunk: int = CHUNK) -> Any:
    """Create an array, and return it; one in Zarr is compressed by zstd.

    Parameters
    ----------
    chunk : int
        Side of the chunks, where there are any.
    """
    name = str(path)
    if name.endswith(".npy"):
        return np.lib.format.open_memmap(name, "w+", dtype=dtype, shape=tuple(shape))
    import zarr
    from zarr.codecs import ZstdCodec

    return zarr.create_array(
        name,
        shape=tuple(shape),
        chunks=(chunk,) * len(shape),
        dtype=dtype,
        compressors=ZstdCodec(level=_LEVEL),
        fill_value=_WRONG,
        overwrite=True,
    )
