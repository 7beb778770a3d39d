"""Zarr arrays and OME-Zarr images, of version 2 and 3, sharded or not. Touches folders and URLs.

Voxels of local arrays are read and written by `gpublocks.formats.zarr.boxed`; those of remote ones,
of other stores, and of rare codecs by the library.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np

from gpublocks.contracts import DType, Order
from gpublocks.errors import SinkError, SourceError, line_of
from gpublocks.formats.files.folder import PartialFolder, check_folder, create_folder
from gpublocks.formats.files.metadata import arrangement
from gpublocks.formats.files.paths import final_path
from gpublocks.formats.files.room import check_disk
from gpublocks.formats.zarr.boxed import BoxedSource
from gpublocks.formats.zarr.levels import NewLevel, Pyramid, averaging_bytes, halve, levels_of_new
from gpublocks.formats.zarr.library import LibrarySource
from gpublocks.formats.zarr.ome import Level, attributes, check_axes, image_metadata, spatial
from gpublocks.formats.zarr.pyramid import Method, even_unit, factors_of
from gpublocks.formats.zarr.zarr_layout import (
    check_codec,
    chunks_within,
    codec_of,
    described,
    lengths_of,
    no_longer,
    store_of,
    transposed,
    units_of,
)
from gpublocks.formats.zarr.zarr_nodes import (
    MARKS,
    Found,
    check_kind,
    create_array,
    create_group,
    find,
    library,
    local_path,
    opened,
    place_of,
    told_of,
    units_in,
)

__all__ = ["Sink", "Source", "wrap"]

_NAME = "Zarr-Source"
_NGFF = {2: "0.4", 3: "0.5"}
"""Which version of NGFF goes with which version of Zarr."""

Opened = BoxedSource | LibrarySource


def Source(  # noqa: N802
    location: str | os.PathLike[str], writable: bool = False, level: int | None = None
) -> Opened:
    """Return an array of Zarr.

    Parameters
    ----------
    location : path or URL
        Of an array, as in ``'group.zarr/image/0'``, or of an OME-Zarr image.
    writable : bool
        Whether it is opened for writing.
    level : int, optional
        Which resolution of an image: 0 is the finest one, and what is taken by default.

    Raises
    ------
    SourceError
        If there is no such array, or it is damaged.
    SinkError
        If it must not be written.
    """
    text = os.fspath(location)
    found = find(text, level, writable=writable)
    if writable and level is None and found.levels > 1:
        raise SinkError(
            f"{text} has {found.levels} levels, and writing into the finest one leaves the others "
            f"as they are; name that one ({found.location}), or replace the image with "
            "io.zarr.Sink(path, overwrite=True)"
        )
    if found.is_local:
        return _in_folder(found, writable=writable)
    return _by_library(found, writable=writable, reopen=(Source, (found.location, writable)))


def wrap(obj: Any) -> Opened:
    """Return the source of an array, or of an OME-Zarr image, that Zarr has open.

    Raises
    ------
    ArgumentTypeError
        If it is something else of that library.
    SourceError
        If it is a group that is no image.
    """
    found = find(obj)
    writable = not obj.read_only and found.levels == 1
    if found.is_local:
        return _in_folder(found, writable=writable)
    store = found.node.store
    if isinstance(store, library().storage.ZipStore):
        address = (os.path.realpath(store.path), found.node.path)
        return _by_library(found, writable=writable, reopen=(_zipped, address))
    return _by_library(found, writable=writable, reopen=(wrap, (found.node,)))


def _zipped(path: str, name: str) -> Opened:
    """Return an array in a ZIP file."""
    node = opened(library().storage.ZipStore(path, mode="r"), path)
    return wrap(node[name] if name else node)


@dataclass(frozen=True, slots=True)
class Sink:
    """A Zarr array or OME-Zarr image that will be created when its shape and type are known.

    It becomes an image if its name ends with ``.ome.zarr``, or if it has several levels; the finest
    one is that which is written. The second one is made of the same blocks, the others of that when
    it is finished: no voxel that was written is read again. Until then the folder is called
    ``<name>.partial``, and the voxels of the second level lie in it as they are.

    Parameters
    ----------
    location : path
    chunks, shards : int or sequence of int, optional
        Voxels per axis that are compressed as one piece, and that are stored as one file. By
        default chunks of about a megabyte that fit the blocks, each a file.
    codec : str, mapping, codec of Zarr, or None
        ``'zstd'``, ``'gzip'`` or ``'blosc'``, with a level as in ``'zstd:5'``; ``'none'``.
    overwrite : bool
        Whether an array or group of that name may be replaced.
    zarr_format : {3, 2}
    levels : int
        Resolutions of an image, each with half as many voxels along the axes of space. Blocks are
        cut at even voxels there.
    method : {'mean', 'nearest'}
        How voxels of coarser levels are made: of the mean, or of the first one, as for labels.
    scale : sequence of float, optional
        Distance of voxels along each axis, in the unit of the axis.
    axes : sequence of str, optional
        Names of the axes, as in ``'zyx'``.
    metadata : mapping, optional
        What is told of the voxels otherwise: the `metadata` of another source.

    Raises
    ------
    SinkError
        If it is no local path.
    """

    location: str
    chunks: int | Sequence[int] | None = None
    shards: int | Sequence[int] | None = None
    codec: Any = "zstd"
    overwrite: bool = False
    zarr_format: Literal[2, 3] = 3
    levels: int = 1
    method: Method = "mean"
    scale: Sequence[float] | None = None
    axes: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        text = os.fspath(self.location)
        path = local_path(text)
        if path is None:
            raise SinkError(
                f"cannot create {text}: new arrays are made in local folders; create it with zarr, "
                "and give its URL then"
            )
        object.__setattr__(self, "location", final_path(path))

    @property
    def is_image(self) -> bool:
        """Whether it is an OME-Zarr image, not a plain array."""
        return self.levels > 1 or self.location.lower().endswith(".ome.zarr")

    def arrangement(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return in which order axes are as the format has them; None if they are, or have none."""
        return arrangement(names, "tczyx") if self.is_image else None

    def check(self) -> None:
        """Raise `SinkError` if it cannot be created. Creates nothing."""
        try:
            library()
        except SourceError as error:
            raise SinkError(str(error)) from error
        if self.zarr_format not in _NGFF or self.method not in ("mean", "nearest"):
            raise SinkError(
                f"zarr_format is {self.zarr_format!r} and method {self.method!r}; "
                "use 2 or 3, and 'mean' or 'nearest'"
            )
        if not isinstance(self.levels, int) or self.levels < 1:
            raise SinkError(f"levels is {self.levels!r}; use a number from 1 on")
        if self.shards is not None and self.zarr_format == 2:
            raise SinkError("Zarr 2 has no shards; use zarr_format=3, or chunks alone")
        above = os.path.dirname(self.location)
        if self.zarr_format == 3 and os.path.isfile(os.path.join(above, ".zgroup")):
            raise SinkError(f"{above} is a group of Zarr 2; pass io.zarr.Sink(path, zarr_format=2)")
        check_codec(codec_of(self.codec))
        check_folder(
            self.location,
            MARKS,
            overwrite=self.overwrite,
            advice="pass io.zarr.Sink(path, overwrite=True) to replace it",
        )

    def units(self, shape: tuple[int, ...], dtype: DType) -> list[tuple[int, ...]]:
        """Return the shards or chunks that it may have, the preferred ones first.

        Raises
        ------
        SinkError
            If those that were given, or the axes, do not fit the shape.
        PlanError
            If axes and scale do not fit it or each other.
        """
        if np.dtype(dtype).kind not in "biufc" or not shape:
            raise SinkError(f"an array of shape {shape} and {dtype} cannot be stored; use numbers")
        # In F order axes have the same names backwards, and all of them are those of space: images
        # with others have them first.
        told = self._told(shape, "C")
        if self.is_image and self.axes is not None:
            check_axes(told["axes"], shape)
        chunks, shards = self._given(shape)
        given = shards or chunks
        units = [given] if given else units_of(shape, np.dtype(dtype).itemsize)
        if self.levels == 1:
            return units
        factors = factors_of(shape, spatial(told["axes"]))
        return list(dict.fromkeys([even_unit(unit, factors, shape) for unit in units]))

    def encoding_bytes(self, unit: tuple[int, ...], itemsize: int) -> int:
        """Return what a writer takes: an encoded file, and a chunk of it before and after."""
        chunks, shards = self._given((1,) * len(unit))
        chunks = chunks or (chunks_within(shards, itemsize) if shards else unit)
        averaging = averaging_bytes(itemsize) if self.levels > 1 else 0
        return averaging + (prod(shards or chunks) + 2 * prod(chunks)) * itemsize

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> BoxedSource:
        """Create it under its partial name.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, or another run is writing it.
        """
        self.check()
        dtype = np.dtype(dtype).newbyteorder("=")
        offered = self.units(shape, dtype)
        told = self._told(shape, order)
        if self.is_image:
            check_axes(told["axes"], shape)
        levels = levels_of_new(
            shape, told, axes=spatial(told["axes"]), count=self.levels, method=self.method
        )
        folder = create_folder(self.location, overwrite=self.overwrite)
        try:
            self._check_room(levels, dtype)
            return self._create(folder, levels, dtype, order, unit or offered[0])
        except BaseException as error:
            folder.remove()
            if isinstance(error, SinkError) or not isinstance(error, Exception):
                raise
            raise SinkError(
                getattr(error, "errno", None), f"cannot create {self.location}: {line_of(error)}"
            ) from error

    def _check_room(self, levels: Sequence[NewLevel], dtype: DType) -> None:
        sizes = [prod(level.shape) * dtype.itemsize for level in levels]
        most = sum(sizes) + sum(sizes[1:2])
        plain = codec_of(self.codec) is None
        check_disk(self.location, most if plain else sum(sizes[1:2]), most=most)

    def _create(
        self,
        folder: PartialFolder,
        levels: Sequence[NewLevel],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...],
    ) -> BoxedSource:
        images = [Level(str(n), level.metadata) for n, level in enumerate(levels)]
        if self.is_image:
            name = os.path.basename(self.location).removesuffix(".zarr").removesuffix(".ome")
            version = _NGFF[self.zarr_format]
            told = attributes(images, name=name, method=self.method, version=version)
            create_group(folder.path, self.zarr_format, told)
        else:
            images = [Level("", levels[0].metadata)]
        finest, *others = [
            self._array(folder.path, image, level.shape, dtype, order, unit)
            for image, level in zip(images, levels, strict=True)
        ]
        if others:
            finest.halved = halve(folder, levels[1], dtype, order, self.method)
        coarser = list(zip(levels[1:], others, strict=True))
        finest.under_way = Pyramid(folder, coarser, finest.halved)
        return finest

    def _array(
        self,
        folder: str,
        level: Level,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...],
    ) -> BoxedSource:
        """Create one array, with chunks of a `unit` where neither they nor shards were given."""
        chunks, shards = self._given(shape)
        chunks = chunks or (unit if shards is None else chunks_within(shards, dtype.itemsize))
        if level.path not in ("", "0"):
            chunks, shards = no_longer(shape, chunks, shards)
        codec = codec_of(self.codec)
        later = self.zarr_format == 3
        told = self.metadata or self.axes or self.is_image
        found = create_array(
            folder,
            level.path,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            filters=transposed(order, len(shape)) if later else None,
            compressors=described(codec, dtype, self.zarr_format) if codec else None,
            fill_value=0,
            order=None if later else order,
            zarr_format=self.zarr_format,
            chunk_key_encoding={"name": "default" if later else "v2", "separator": "/"},
            dimension_names=level.metadata["axes"] if later and told else None,
        )
        source = _in_folder(replace(found, metadata=level.metadata), writable=True)
        assert isinstance(source, BoxedSource)
        return source

    def _given(
        self, shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        chunks = lengths_of("chunks", self.chunks, len(shape))
        shards = lengths_of("shards", self.shards, len(shape))
        if chunks and shards and any(s % c for s, c in zip(shards, chunks, strict=True)):
            raise SinkError(f"shards {shards} are not multiples of chunks {chunks}; use such ones")
        return chunks, shards

    def _told(self, shape: tuple[int, ...], order: Order) -> dict[str, Any]:
        given = {"axes": self.axes, "spacing": self.scale}
        return image_metadata(self.metadata or {}, given, len(shape), order)


def _in_folder(found: Found, *, writable: bool) -> Opened:
    """Return the source of an array in a local folder."""
    node, folder = found.node, found.location
    check_kind(found)
    if writable and not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(errno.EACCES, f"cannot write {folder}: Permission denied")
    document = os.path.join(folder, "zarr.json" if node.metadata.zarr_format == 3 else ".zarray")
    with open(document, encoding="utf-8") as file:
        store = store_of(json.load(file), folder, np.dtype(node.dtype), node.fill_value)
    if store is not None:
        told = told_of(found)
        return BoxedSource(store, _NAME, writable=writable, metadata=told, described=document)
    if writable:
        found = replace(
            found, node=opened(library().storage.LocalStore(folder), folder, writable=True)
        )
    return _by_library(found, writable=writable, reopen=(Source, (folder, writable)))


def _by_library(
    found: Found, *, writable: bool, reopen: tuple[Callable[..., Any], tuple[Any, ...]]
) -> LibrarySource:
    check_kind(found)
    unit, read_unit = units_in(found)
    reach, extent = place_of(found)
    return LibrarySource(
        found.node,
        _NAME,
        location=found.location,
        reach=reach,
        extent=extent,
        unit=unit,
        read_unit=read_unit,
        writable=writable,
        single_writer=type(found.node.store).__name__ == "ZipStore",
        metadata=told_of(found),
        reopen=reopen,
    )
