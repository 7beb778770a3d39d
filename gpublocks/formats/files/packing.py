"""New files that only one writer may write, in order: written plainly first, packed when complete.

Touches local files.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gpublocks.contracts import Array, DType, Extent, Order
from gpublocks.errors import SinkError
from gpublocks.formats.files.mapping import new_file
from gpublocks.formats.files.partial import check_target, partial_path, sync_path
from gpublocks.formats.files.room import check_disk
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Pack", "PackedSink"]

Pack = Callable[[Array, str], None]
"""Writes voxels to a new file at a path, and raises if what it then holds is not that."""


class PackedSink:
    """A new file of a format with one writer.

    Many processes write voxels into a plain file beside it. When they are complete, one pass
    writes the file under a partial name, which is then given its own. Formats such as compressed
    HDF5 and TIFF are corrupt or silently short after a kill: so there is never such a file.

    Parameters
    ----------
    final : str
        Absolute path.
    shape, dtype, order
        Of the voxels.
    pack : callable
    name : str
        Kind of sink, as shown in its repr.
    overwrite : bool
        Whether a file of that name may be replaced.
    reserves : bool
        Whether packing needs room for all voxels as they are, however small the file gets.

    Raises
    ------
    SinkError
        If there is no room for the plain voxels, or another run is writing it.
    """

    single_writer = False

    def __init__(
        self,
        final: str,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        *,
        pack: Pack,
        name: str,
        overwrite: bool,
        reserves: bool = False,
    ) -> None:
        self.name = name
        self._final = final
        self._pack = pack
        self._overwrite = overwrite
        self._plain = new_file(
            f"{final}.voxels", b"", shape, dtype, order, overwrite=True, name=name
        )
        self._open = True
        try:
            most = self._plain.size * dtype.itemsize
            check_disk(final, most if reserves else 0, most=most)
        except SinkError:
            self.abort()
            raise

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def array(self) -> Array:
        """The voxels; once it is finished no more."""
        return self._plain.array

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._plain.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self._plain.dtype

    @property
    def order(self) -> Order:
        """Memory order of the plain voxels."""
        return self._plain.order

    @property
    def unit(self) -> tuple[int, ...]:
        """Ones: voxels stand alone until they are packed."""
        return self._plain.unit

    @property
    def reach(self) -> Any:
        """From any process of this machine."""
        return self._plain.reach

    @property
    def location(self) -> str:
        """Absolute path, without symbolic links: of the plain voxels until it is finished."""
        return self._plain.location if self._open else self._final

    @property
    def extent(self) -> Extent:
        """The bytes of the plain voxels."""
        return self._plain.extent

    @property
    def writable(self) -> bool:
        """Whether writing is permitted: until it is finished."""
        return self._open

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        return self._plain.read(region, out)

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts."""
        self._plain.write(region, array)

    def sync(self) -> None:
        """Make the voxels durable."""
        self._plain.sync()

    def finish(self) -> None:
        """Pack the voxels into the file, make it durable and give it its name.

        Raises
        ------
        SinkError
            If that fails. The plain voxels are kept then, and the message says where.
        """
        if not self._open:
            return
        self._open = False
        partial = partial_path(self._final)
        try:
            check_target(self._final, overwrite=self._overwrite)
            self._pack(self._plain.array, partial)
            sync_path(partial)
            os.replace(partial, self._final)
        except Exception as error:
            with suppress(OSError):
                os.unlink(partial)
            raise SinkError(
                getattr(error, "errno", None),
                f"cannot create {self._final}: {error}; the voxels are kept in {self._keep()}, for "
                f"io.raw.Source(path, {self.shape}, '{self.dtype.str}', '{self.order}')",
            ) from error
        self._plain.abort()

    def _keep(self) -> str:
        """Give the plain voxels a name that no other run takes, and return it."""
        with suppress(SinkError):
            self._plain.finish()
        return self._plain.location

    def abort(self) -> None:
        """Remove what was written, if it was not finished."""
        if self._open:
            self._open = False
            self._plain.abort()

    def __getitem__(self, slicing: Any) -> Any:
        return self._plain[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self._plain[slicing] = value

    def __reduce__(self) -> Any:
        return self._plain.__reduce__()
