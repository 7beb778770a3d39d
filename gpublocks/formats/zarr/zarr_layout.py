"""What the metadata of Zarr arrays say, in terms of boxes; codecs and chunks of new ones. Pure."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import DType, Order
from gpublocks.errors import SinkError
from gpublocks.formats.zarr.boxes import Store
from gpublocks.formats.zarr.coding import Coding, Sharding, coding_of

__all__ = [
    "Codec",
    "check_codec",
    "chunks_within",
    "codec_of",
    "described",
    "lengths_of",
    "no_longer",
    "store_of",
    "transposed",
    "units_of",
]

Codec = tuple[str, dict[str, Any]]
"""Name and configuration of a codec, as Zarr 3 has them."""

_UNIT_BYTES = 1 << 20
"""Of the chunks of new arrays: large enough for a disk, small enough to be cut out of."""

_CODECS: dict[str, dict[str, Any]] = {
    # Levels above 1 take three times as long for one percent of the bytes of microscope images.
    "zstd": {"level": 1, "checksum": False},
    "gzip": {"level": 5},
    "blosc": {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0},
}
_LEVELS = {"zstd": "level", "gzip": "level", "blosc": "clevel"}
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def store_of(document: Mapping[str, Any], path: str, dtype: DType, fill_value: Any) -> Store | None:
    """Return where and how an array is stored; None where only the library knows.

    Parameters
    ----------
    document : mapping
        The content of ``zarr.json`` or ``.zarray``.
    path : str
        Of its folder.
    dtype : dtype
        Of a voxel.
    fill_value : object
        The voxel that is meant where nothing is stored.
    """
    later = document["zarr_format"] == 3
    if dtype.kind not in "biufc" or dtype.itemsize > 16 or document.get("storage_transformers"):
        return None
    if later:
        grid, encoding = document["chunk_grid"], document["chunk_key_encoding"]
        unit = grid["configuration"].get("chunk_shape") if grid["name"] == "regular" else None
        codecs: list[Mapping[str, Any]] = document["codecs"]
        plain = encoding["name"] == "v2"
        separator = encoding.get("configuration", {}).get("separator", "." if plain else "/")
    else:
        unit, codecs, plain = document["chunks"], _codecs_of(document, dtype), True
        separator = document.get("dimension_separator", ".")
    if not unit:
        return None
    native = dtype.newbyteorder("=")
    text = json.dumps(codecs)
    coding = coding_of(text, tuple(unit), native.str)
    if coding is None:
        return None
    inner = coding.inner if isinstance(coding, Sharding) else coding
    backwards = inner.axes[::-1] == tuple(range(len(unit)))
    return Store(
        path=path,
        shape=tuple(document["shape"]),
        dtype=native,
        order="F" if backwards and len(unit) > 1 else "C",
        unit=tuple(unit),
        read_unit=inner.shape,
        fill=np.asarray(0 if fill_value is None else fill_value, native).tobytes(),
        key=("" if plain else f"c{separator}", separator),
        codecs=text,
    )


def _codecs_of(document: Mapping[str, Any], dtype: DType) -> list[Mapping[str, Any]]:
    """Return the codecs of an array of Zarr 2 as Zarr 3 has them."""
    endian = "big" if np.dtype(document["dtype"]).byteorder == ">" else "little"
    codecs: list[Mapping[str, Any]] = [{"name": "bytes", "configuration": {"endian": endian}}]
    if document["order"] == "F":
        order = list(range(len(document["shape"])))[::-1]
        codecs.insert(0, {"name": "transpose", "configuration": {"order": order}})
    for codec in [*(document.get("filters") or []), document["compressor"]]:
        if not codec:
            continue
        given = dict(codec)
        name = given.pop("id")
        given |= {"typesize": dtype.itemsize} if name == "blosc" else {}
        codecs.append({"name": name, "configuration": given})
    return codecs


def codec_of(given: Any) -> Codec | None:
    """Return the codec that was asked for; None for voxels as they are.

    Parameters
    ----------
    given : str, mapping, codec of Zarr, or None
        ``'zstd'``, ``'gzip'`` or ``'blosc'``, with a level as in ``'zstd:5'``; ``'none'``; or name
        and configuration, as Zarr 3 has them.

    Raises
    ------
    SinkError
        If it is none of these.

    Examples
    --------
    >>> codec_of("zstd:5")
    ('zstd', {'level': 5, 'checksum': False})
    """
    if given is None or given == "none":
        return None
    if callable(getattr(given, "to_dict", None)):
        given = given.to_dict()
    if isinstance(given, Mapping) and given.get("name") in _CODECS:
        return given["name"], dict(given.get("configuration") or {})
    name, _, level = given.partition(":") if isinstance(given, str) else ("", "", "")
    if name not in _CODECS or (level and not level.removeprefix("-").isdecimal()):
        raise SinkError(
            f"codec is {given!r}; use 'zstd', 'gzip' or 'blosc', with a level as in 'zstd:5', "
            "'none', or one of these of zarr.codecs"
        )
    return name, _CODECS[name] | ({_LEVELS[name]: int(level)} if level else {})


def check_codec(codec: Codec | None) -> None:
    """Raise `SinkError` if a codec has parameters that it does not know."""
    if codec is None:
        return
    name, given = codec
    text = json.dumps([{"name": "bytes"}, {"name": name, "configuration": given}])
    try:
        coding = coding_of(text, (1,), "u1")
        assert isinstance(coding, Coding)
        coding.encode(np.zeros(1, np.uint8))
    except Exception as error:
        raise SinkError(f"codec {name!r} with {given} does not work: {error}") from error


def described(codec: Codec, dtype: DType, zarr_format: int) -> dict[str, Any]:
    """Return a codec as the metadata of an array have it."""
    name, given = codec
    if zarr_format == 3:
        given = {"typesize": dtype.itemsize, **given} if name == "blosc" else given
        return {"name": name, "configuration": given}
    shuffle = given.get("shuffle")
    if isinstance(shuffle, str):
        given = given | {"shuffle": _SHUFFLES.index(shuffle)}
    return {"id": name, **{key: value for key, value in given.items() if key != "typesize"}}


def units_of(shape: Sequence[int], itemsize: int) -> list[tuple[int, ...]]:
    """Return chunks for a new array: the preferred one, then smaller ones to match blocks.

    They are powers of two, about a megabyte, as long along each of the last three axes as may be;
    then some of the axes are halved again and again.

    Examples
    --------
    >>> units_of((2, 500, 500, 20), 2)[:3]
    [(1, 128, 128, 20), (1, 128, 128, 16), (1, 128, 64, 20)]
    """
    lengths, limit = [1] * len(shape), _UNIT_BYTES // itemsize
    last = range(len(shape))[-3:]
    while prod(lengths) < limit and (free := [a for a in last if lengths[a] < shape[a]]):
        lengths[min(free, key=lambda axis: (lengths[axis], -axis))] *= 2
    units = [_clipped(lengths, shape)]
    wide = [axis for axis in last if lengths[axis] > 1]
    for count in range(1, len(wide) + 1):
        for axes in combinations(wide, count):
            for step in range(1, max(lengths[axis] for axis in axes).bit_length()):
                halved = [
                    max(1, n >> step) if axis in axes else n for axis, n in enumerate(lengths)
                ]
                units.append(_clipped(halved, shape))
    return sorted(dict.fromkeys(units), key=lambda unit: (-prod(unit), max(unit), unit[::-1]))


def lengths_of(name: str, given: Any, ndim: int) -> tuple[int, ...] | None:
    """Return chunks or shards with one length for each axis; None if they were not given.

    Raises
    ------
    SinkError
        If there are more or fewer, or they are no positive whole numbers.
    """
    if given is None:
        return None
    values = [given] * ndim if isinstance(given, int | np.integer) else list(given)
    if len(values) != ndim:
        raise SinkError(f"{name} are {tuple(values)}, but the result has {ndim} axes; give as many")
    for value in values:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise SinkError(f"{name} hold {value!r}; use whole numbers from 1 on")
    return tuple(map(int, values))


def no_longer(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return chunks and shards that are not longer than an array of a shape.

    Examples
    --------
    >>> no_longer((50, 500), (64, 64), (256, 256)), no_longer((50, 500), (64, 64), None)
    (((64, 64), (64, 256)), ((50, 64), None))
    """
    if shards is None:
        return _clipped(chunks, shape), None
    least = [-(-max(1, n) // c) * c for n, c in zip(shape, chunks, strict=True)]
    return tuple(chunks), tuple(map(min, shards, least))


def chunks_within(shards: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return chunks that divide shards, of about a megabyte.

    Examples
    --------
    >>> chunks_within((256, 256, 300), 2)
    (64, 64, 75)
    """
    lengths = list(shards)
    while prod(lengths) * itemsize > _UNIT_BYTES:
        even = [axis for axis, n in enumerate(lengths) if n % 2 == 0]
        if not even:
            break
        lengths[max(even, key=lambda axis: lengths[axis])] //= 2
    return tuple(lengths)


def _clipped(lengths: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple([max(1, min(n, whole)) for n, whole in zip(lengths, shape, strict=True)])


def transposed(order: Order, ndim: int) -> list[dict[str, Any]]:
    """Return the codecs that store boxes in a memory order."""
    if order == "C" or ndim < 2:
        return []
    return [{"name": "transpose", "configuration": {"order": list(range(ndim))[::-1]}}]
