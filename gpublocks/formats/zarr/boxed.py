"""Arrays stored as boxes in local folders, as sources and sinks. Touches local files."""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files.folder import sync_files
from gpublocks.formats.files.paths import stamp
from gpublocks.formats.files.picking import enclosing, source_getitem, source_setitem, target
from gpublocks.formats.zarr.boxes import Store
from gpublocks.formats.zarr.levels import Halved, Pyramid
from gpublocks.formats.zarr.pyramid import even_unit
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["BoxedSource"]


_FOLDERS = 4096
"""So many can be looked at in some milliseconds, and in seconds on a slow network."""


class BoxedSource:
    """An array whose voxels are stored as boxes, each of them a file. Pickles to its address.

    Parameters
    ----------
    store : Store
    name : str
        Kind of source, as shown in its repr.
    writable : bool
        Whether writing is permitted.
    metadata : mapping, optional
        What is told of the voxels beside their shape and type; it stays in this process.
    described : str, optional
        The file that describes the array, to tell whether it was changed.

    Attributes
    ----------
    under_way : Pyramid or None
        What is still to be done to a new array.
    halved : Halved or None
        The second level of a new image, which is made of what is written.
    """

    __slots__ = (
        "__weakref__",
        "_described",
        "_extent",
        "_final",
        "_stamp",
        "halved",
        "metadata",
        "name",
        "store",
        "under_way",
        "writable",
    )

    reach = Reach.MACHINE
    single_writer = False

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        writable: bool = False,
        metadata: Mapping[str, Any] | None = None,
        described: str | None = None,
    ) -> None:
        self.store = store
        self.name = name
        self.writable = writable
        self.metadata = dict(metadata or {})
        self.under_way: Pyramid | None = None
        self.halved: Halved | None = None
        self._extent: Extent | None = None
        self._final: str | None = None
        self._described = described
        self._stamp = self._seen()

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __getitem__ = source_getitem
    __repr__ = source_text
    info = source_info

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.store.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.store.dtype

    @property
    def order(self) -> Order:
        """Memory order."""
        return self.store.order

    @property
    def unit(self) -> tuple[int, ...]:
        """Voxels of a file, per axis, or of several: no two writers touch one."""
        if self.halved is None:
            return self.store.unit
        return even_unit(self.store.unit, self.halved.factors, self.shape)

    @property
    def read_unit(self) -> tuple[int, ...]:
        """Voxels that are decoded at once, per axis."""
        return self.store.read_unit

    def encoding_bytes(self, unit: tuple[int, ...], itemsize: int) -> int:
        """Return what a writer takes: an encoded file, and a box before and after."""
        return (prod(unit) + 2 * prod(self.read_unit)) * itemsize

    @property
    def location(self) -> str:
        """Absolute path without symbolic links: of its folder; of a new image, once it is there."""
        return self._final or self.store.path

    @property
    def extent(self) -> Extent:
        """The whole folder."""
        if self._extent is None:
            status = os.stat(self.store.path)
            self._extent = Extent(("file", status.st_dev, status.st_ino), 0, 1 << 63)
        return self._extent

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If a box is damaged; the message names it.
        """
        out = target(self, region, out)
        self.store.read(region, out)
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        Raises
        ------
        SinkError
            If it was not opened for writing, or a file cannot be written.
        """
        if not self.writable:
            raise SinkError(f"{self.location} was opened read-only; pass its path as the sink")
        voxels = target(self, region, array)
        self.store.write(region, voxels)
        if self.halved is not None:
            whole = self.halved.around(region, self.shape)
            # Blocks of a run have whole units: nothing is read back then.
            self.halved.put(whole, voxels if whole == region else self.read(whole))

    def sync(self) -> None:
        """Make what any process wrote durable.

        Raises
        ------
        SinkError
            If the disk reports an error. It may be reported once only: do not try again.
        """
        try:
            sync_files(self.store.path)
        except OSError as error:
            raise SinkError(
                error.errno, f"cannot make {self.location} durable: {error.strerror}"
            ) from error

    def finish(self) -> None:
        """Complete a new array: make its coarser levels, and move all to its final name.

        It is durable only if `sync` came before.

        Raises
        ------
        SinkError
            If that fails. What was written is kept then, and the message says where.
        """
        if self.under_way is not None:
            under_way, self.under_way = self.under_way, None
            under_way.complete()
            self.store = replace(self.store, path=under_way.moved(self.store.path))
            self._final = under_way.final
            self.halved = None

    def abort(self) -> None:
        """Remove a new array that was not finished."""
        if self.under_way is not None:
            under_way, self.under_way = self.under_way, None
            under_way.drop()

    def verify(self) -> None:
        """Check that the array is the one that it was when this source was made.

        Raises
        ------
        SourceError
            If what describes it differs or was replaced, or files of voxels came, went or were
        replaced; of arrays in very many folders only some of these are looked at.
        """
        if self._seen() != self._stamp:
            raise SourceError(
                f"{self.store.path} changed (its metadata, or files of voxels) since it was "
                "opened; results computed from it are not of one state"
            )

    def _seen(self) -> Any:
        """Return what differs once the array was changed. Files that replace others change folders.

        That is None for one that another process sent, who does not ask.
        """
        if self._described is None:
            return None
        return [stamp(path) for path in (self._described, *self.store.folders(_FOLDERS))]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        region, rest = enclosing(slicing, self.shape)
        lengths = [n for n, part in zip(region.shape, rest, strict=True) if isinstance(part, slice)]
        if any(isinstance(part, slice) and part != slice(None) for part in rest) or any(
            isinstance(part, np.ndarray) for part in rest
        ):
            source_setitem(self, slicing, value)
        else:
            self.write(region, np.broadcast_to(value, lengths).reshape(region.shape))

    def __reduce__(self) -> Any:
        return _received, (self.store, self.name, self.writable, self.halved)


def _received(store: Store, name: str, writable: bool, halved: Halved | None) -> BoxedSource:
    source = BoxedSource(store, name, writable=writable)
    source.halved = halved
    return source
