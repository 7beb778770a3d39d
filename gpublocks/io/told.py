"""A source with what somebody else tells of its voxels. Touches what that source touches."""

from collections.abc import Mapping
from typing import Any

from gpublocks.contracts import Array
from gpublocks.geometry import Region
from gpublocks.voxels import source_array, source_len, source_text

__all__ = ["Told"]


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

    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        return self.source.read(region, out)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name == "source":
            # It is not there yet while this is unpickled.
            raise AttributeError(name)
        return getattr(self.source, name)

    def __getitem__(self, slicing: Any) -> Any:
        return self.source[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.source[slicing] = value

    def __reduce__(self) -> Any:
        return Told, (self.source, self.metadata)
