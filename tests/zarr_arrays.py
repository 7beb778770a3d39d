"""Arrays written and read by the library of Zarr, and the boxes in which they are stored."""

from itertools import product

import pytest

from gpublocks.geometry import Region

zarr = pytest.importorskip("zarr")


def created(path, array, *, order=None, **options):
    """Create an array with zarr, in one memory order, and return its path."""
    order = order or ("F" if array.flags.f_contiguous and array.ndim > 1 else "C")
    backwards = [{"name": "transpose", "configuration": {"order": [*range(array.ndim)][::-1]}}]
    if options.get("zarr_format") == 2:
        options["order"] = order
    elif order == "F":
        options["filters"] = [*backwards, *options.get("filters", [])]
    made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, **options)
    made[...] = array
    return path


def read(path):
    """Return what zarr reads."""
    return zarr.open_array(path, mode="r")[...]


def boxes(shape, unit):
    """Return the regions of all units of an array."""
    for index in product(*[range(0, n, u) for n, u in zip(shape, unit, strict=True)]):
        stop = tuple(min(i + u, n) for i, u, n in zip(index, unit, shape, strict=True))
        yield Region(index, stop)
