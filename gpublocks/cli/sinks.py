"""From the options of a command line to a sink of the format that is asked for. Creates nothing."""

import os
from argparse import ArgumentParser, Namespace
from inspect import signature
from typing import Any

from gpublocks import io
from gpublocks.errors import PlanError, SinkError
from gpublocks.formats.hdf5.datasets import split_path

__all__ = ["add_options", "make_sink"]

_LENGTHS = {
    "chunks": "voxels per axis that are compressed as one piece",
    "shards": "voxels per axis that are stored as one file",
}
_COUNTS = {
    "levels": "resolutions of an image, the finest one included",
    "zarr_format": "version of Zarr: 3 or 2",
}
_WORDS = {
    "method": "how coarser levels are made: mean, or nearest for labels",
    "codec": "compression of Zarr: zstd, gzip, blosc, with a level as in zstd:5, or none",
    "compression": "compression of TIFF (zlib, zstd, lzw ...) and HDF5 (gzip, lzf)",
    "encoding": "raw or gzip, for NRRD",
}
_ALL = _LENGTHS | _COUNTS | _WORDS
_METAVARS = {**dict.fromkeys(_LENGTHS, "N"), **dict.fromkeys(_COUNTS, "N")}


def add_options(parser: ArgumentParser) -> None:
    """Add an option for each thing that a new sink of some format can be told."""
    group = parser.add_argument_group(
        "format", "Of a new sink; each format takes some. N for axes is one number, or a list."
    )
    for name, text in _ALL.items():
        group.add_argument(_flag(name), metavar=_METAVARS.get(name, "NAME"), help=text)
    group.add_argument("--overwrite", action="store_true", help="replace a sink that exists")


def make_sink(options: Namespace, *, in_place: bool) -> Any:
    """Return what options name as the sink: a path, or a new sink that knows the options.

    Parameters
    ----------
    options : Namespace
        What a parser with `add_options` found, and the path ``sink``; that may be None.
    in_place : bool
        Whether a sink that exists is written into, unless it is to be replaced or to have
        options.

    Raises
    ------
    PlanError
        If the format has no such option, or it has no such value.
    SinkError
        If the sink exists, and may neither be written into nor replaced.
    """
    path = options.sink
    given = {name: getattr(options, name) for name in _ALL if getattr(options, name) is not None}
    if path is None:
        if given:
            raise PlanError(f"{_flag(next(iter(given)))} is for a new sink; give SINK")
        return None
    file = split_path(path)[0]
    exists = "://" in path or os.path.exists(file)
    if exists and not options.overwrite:
        if in_place and not given:
            return path
        raise SinkError(f"{file} exists; give --overwrite to replace it, or another name")
    module = io.WRITERS.get(io.suffix_of(path))
    if module is None:
        return io.as_sink(path)
    make = getattr(io, module).Sink
    taken = signature(make).parameters
    for name in given:
        if name not in taken:
            raise PlanError(_refusal(name, path, [_flag(one) for one in _ALL if one in taken]))
    return make(
        path,
        **{name: _value(name, text) for name, text in given.items()},
        overwrite=options.overwrite,
    )


def _refusal(name: str, path: str, taken: list[str]) -> str:
    others = ", ".join(taken) if taken else "none of these options"
    return f"{_flag(name)} is not for {io.suffix_of(path)}, which takes {others}"


def _value(name: str, text: str) -> Any:
    if name in _WORDS:
        return text
    try:
        numbers = tuple([int(part) for part in text.split(",")])
    except ValueError:
        numbers = ()
    if not numbers or (len(numbers) > 1 and name in _COUNTS):
        example = ", or one for each axis such as 64,64,64" if name in _LENGTHS else ""
        raise PlanError(f"{_flag(name)} is {text!r}; give a number{example}")
    return numbers[0] if len(numbers) == 1 else numbers


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
