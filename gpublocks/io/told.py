"""A source with what somebody else tells of its voxels. Touches what that source touches."""

from collections.abc import Mapping
from typing import Any

from gpublocks.contracts import Array
from gpublocks.geometry import Region
from gpublocks.voxels import source_array, source_len, source_text

__all__ = ["Told"]


def _handed_on(name: str) -> property:
    return property(lambda self: getattr(self.source, name), doc=f"That of the source: `{name}`.")


class Told:
    """A source and what is told of its voxels; in all else it is that source.

    Parameters
    ----------
    source : Source
    metadata : mapping
        See `gpublocks.formats.files.metadata`.
    """

    def __init__(self, source: Any, metadata: Mapping[str, Any]) -> None:
        self.source = source
        self.metadata = dict(metadata)

    name = _handed_on("name")
    shape = _handed_on("shape")
    dtype = _handed_on("dtype")
    order = _handed_on("order")
    location = _handed_on("location")
    reach = _handed_on("reach")
    extent = _handed_on("extent")
    unit = _handed_on("unit")
    writable = _handed_on("writable")
    single_writer = _handed_on("single_writer")
    write = _handed_on("write")
    sync = _handed_on("sync")
    finish = _handed_on("finish")
    abort = _handed_on("abort")
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        return self.source.read(region, out)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # What not all sources have: pieces, a view of the voxels, how to find changes.
        return getattr(self.source, name)

    def __getitem__(self, slicing: Any) -> Any:
        return self.source[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.source[slicing] = value

    def __reduce__(self) -> Any:
        return Told, (self.source, self.metadata)
