"""From the options of a command line to a source of the format that is asked for. Reads headers."""

from argparse import ArgumentParser, Namespace
from inspect import signature
from typing import Any

from gpublocks import io
from gpublocks.contracts import Source
from gpublocks.errors import PlanError

__all__ = ["add_options", "open_source"]

_NUMBERS = {
    "level": "resolution of a pyramid in Zarr or TIFF; 0 is the finest (default)",
    "series": "which image of a TIFF file (default: 0)",
    "offset": "bytes of a .raw file before its voxels (default: 0)",
}
_WORDS = {
    "shape": ("N", "voxels per axis of a .raw file, such as 64,512,512"),
    "source_dtype": ("TYPE", "type of the voxels of a .raw file, such as uint16 or '>u2'"),
    "order": (
        "C|F",
        "order of a .raw file: F if its first axis is the fastest (default: C)",
    ),
}
_PARAMETERS = {"source_dtype": "dtype", "as_stored": "scaled"}
"""What the parameters of sources are called, where that is not the name of the option."""


def add_options(parser: ArgumentParser) -> None:
    """Add an option for each thing that a source of some format can be told."""
    group = parser.add_argument_group("source", "Each format takes some.")
    for name, text in _NUMBERS.items():
        group.add_argument(_flag(name), metavar="N", help=text)
    for name, (metavar, text) in _WORDS.items():
        group.add_argument(_flag(name), metavar=metavar, help=text)
    group.add_argument(
        "--as-stored",
        action="store_const",
        const=False,
        default=None,
        help="take the voxels of a NIfTI file as they are, though it says that they are scaled",
    )


def open_source(options: Namespace) -> Source:
    """Return the source that options name, a path ``source``.

    Parameters
    ----------
    options : Namespace
        What a parser with `add_options` found. A ``dtype`` is that of the voxels of a file without
        a header too, unless ``source_dtype`` is given.

    Raises
    ------
    PlanError
        If the format has no such option, or it has no such value.
    SourceError
        If it cannot be opened.
    """
    path = options.source
    names = [*_NUMBERS, *_WORDS, "as_stored"]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    module = io.READERS.get(io.suffix_of(path))
    if module is None:
        return io.as_source(path)
    make = getattr(io, module).Source
    taken = signature(make).parameters
    told = getattr(options, "dtype", None)
    if module == "raw" and told is not None:
        given.setdefault("source_dtype", told)
    for name in given:
        if _PARAMETERS.get(name, name) not in taken:
            fitting = [_flag(one) for one in names if _PARAMETERS.get(one, one) in taken]
            others = ", ".join(fitting) if fitting else "none of these options"
            raise PlanError(f"{_flag(name)} is not for {io.suffix_of(path)}, which takes {others}")
    if not given:
        return io.as_source(path)
    values = {_PARAMETERS.get(name, name): _value(name, text) for name, text in given.items()}
    return make(path, **values)  # type: ignore[no-any-return]


def _value(name: str, text: Any) -> Any:
    if name in _NUMBERS:
        return _number(_flag(name), text)
    if name == "shape":
        return tuple([_number(_flag(name), part) for part in text.split(",")])
    return text


def _number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise PlanError(f"{flag} is {text!r}; give a number, 0 or more")
    return int(text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
