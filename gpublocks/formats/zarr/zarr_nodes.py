"""Arrays and groups of Zarr, opened and created by its library. Touches folders and URLs."""

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from gpublocks.contracts import Extent, Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SourceError, line_of
from gpublocks.formats.files.metadata import checked
from gpublocks.formats.zarr.ome import levels_of

__all__ = [
    "MARKS",
    "Found",
    "check_kind",
    "create_array",
    "create_group",
    "find",
    "library",
    "local_path",
    "opened",
    "place_of",
    "told_of",
    "units_in",
]

MARKS = ("zarr.json", ".zarray", ".zgroup")
"""Files of which each folder of an array or group has one."""


@dataclass(frozen=True, slots=True)
class Found:
    """An array, where it is, and what its image tells of it.

    Parameters
    ----------
    node : zarr.Array
    location : str
        Absolute path of its folder without symbolic links; or a URL, or text for messages.
    metadata : mapping
        What is told of it, see `gpublocks.formats.files.metadata`.
    levels : int
        Of the image of which it is one.
    is_local : bool
        Whether it lies in a local folder.
    """

    node: Any
    location: str
    metadata: Mapping[str, Any]
    levels: int = 1
    is_local: bool = False


def library() -> ModuleType:
    """Return the library.

    Raises
    ------
    SourceError
        If it is not installed.
    """
    try:
        import zarr
        import zarr.storage
    except ImportError as error:
        raise SourceError(".zarr needs zarr: pip install 'gpublocks[zarr]'") from error
    return zarr


def find(place: Any, level: int | None = None, *, writable: bool = False) -> Found:
    """Return an array of Zarr: that at a path, a level of the image there, or an open one.

    Parameters
    ----------
    place : str, zarr.Array or zarr.Group
        A path or URL of an array or image.
    level : int, optional
        Which level of an image: the finest one, 0, by default.
    writable : bool
        Whether a remote array is to be written.

    Raises
    ------
    SourceError
        If there is none, it is damaged, or a path or link leads out of its store.
    ArgumentTypeError
        If it is an object of another kind.
    """
    zarr = library()
    if not isinstance(place, str):
        if not isinstance(place, zarr.Array | zarr.Group):
            kind = type(place).__name__
            raise ArgumentTypeError(f"a {kind} of Zarr is no array; give a zarr.Array or a path")
        if not isinstance(place.store, zarr.storage.LocalStore):
            shown = str(place.store_path)
            return _find(lambda name: place[name] if name else place, "", shown, level)[0]
        place = os.path.join(place.store.root, place.path)
    path = local_path(place)
    root, inner = _split(place if path is None else path)
    if path is None:
        found, name = _find(lambda name: _at_url(f"{root}/{name}", writable), inner, place, level)
        location, is_local = "/".join(filter(None, (root, name))), False
    else:
        root = os.path.realpath(root)
        found, name = _find(lambda name: _in_folder(root, name), inner, path, level)
        location, is_local = _folder(root, name), True
    return Found(found.node, location, found.metadata, found.levels, is_local)


def opened(store: Any, shown: str, *, writable: bool = False) -> Any:
    """Return the array or group in a store.

    Raises
    ------
    SourceError
        If there is none, or it is damaged.
    """
    try:
        return library().open(store=store, mode="r+" if writable else "r")
    except FileNotFoundError as error:
        raise SourceError(errno.ENOENT, f"no array of Zarr at {shown}") from error
    except Exception as error:  # Damaged metadata raise whatever their parser does.
        reason = line_of(error)
        raise SourceError(f"{shown} cannot be opened as Zarr: {reason}") from error


def check_kind(found: Found) -> None:
    """Raise `SourceError` if an array holds no numbers, or has no axes."""
    dtype = np.dtype(found.node.dtype)
    if dtype.kind not in "biufc":
        raise SourceError(
            f"{found.location} holds {dtype}, and only numbers can be processed; convert it"
        )
    if not found.node.shape:
        raise SourceError(f"{found.location} holds a scalar (0 axes); give an array")


def units_in(found: Found) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shards and the chunks of an array; chunks twice where there are no shards."""
    node = found.node
    try:
        chunks = tuple(map(int, node.chunks))
        unit = tuple(map(int, node.shards or chunks))
    except NotImplementedError:
        # Chunks of many lengths have no common unit but the array.
        chunks = unit = tuple([max(1, n) for n in node.shape])
    if min(chunks) < 1:
        raise SourceError(f"{found.location} has chunks of shape {chunks}; it is damaged")
    return unit, chunks


def told_of(found: Found) -> dict[str, Any]:
    """Return what is told of an array by its image, or by its own names of axes."""
    names = getattr(found.node.metadata, "dimension_names", None) or ()
    for told in (found.metadata, {"axes": names}):
        if told.get("axes") and None not in told["axes"]:
            with suppress(PlanError):
                return checked(told, len(found.node.shape))
    return {}


def place_of(found: Found) -> tuple[Reach, Extent]:
    """Return from how far an array is seen, and what it occupies."""
    node, location = found.node, found.location
    store, kind = node.store, type(node.store).__name__
    alone = Extent(("object", os.getpid(), id(store), node.path), 0, 1)
    if kind == "FsspecStore":
        fs = getattr(store.fs, "sync_fs", store.fs)
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if "memory" in protocols:
            return Reach.PROCESS, alone
        return Reach.CLUSTER, Extent(("url", location), 0, 1 << 63)
    if kind == "LocalStore" or (kind == "ZipStore" and store.read_only):
        path = os.path.join(store.root, node.path) if kind == "LocalStore" else store.path
        status = os.stat(path)
        return Reach.MACHINE, Extent(("file", status.st_dev, status.st_ino), 0, 1 << 63)
    return Reach.PROCESS, alone


def create_group(folder: str, zarr_format: int, attributes: Mapping[str, Any]) -> None:
    """Create a group in a local folder that is there already."""
    store = library().storage.LocalStore(folder)
    library().create_group(store=store, zarr_format=zarr_format, attributes=dict(attributes))


def create_array(folder: str, name: str, **parameters: Any) -> Found:
    """Create an array in a local folder that is there already.

    Parameters
    ----------
    name : str
        Path in the folder; empty for the folder itself.
    **parameters
        Of `zarr.create_array`.
    """
    store = library().storage.LocalStore(folder)
    library().create_array(store=store, name=name or None, **parameters)
    return Found(_in_folder(folder, name), _folder(folder, name), {}, is_local=True)


def local_path(text: str) -> str | None:
    """Return the path of a local file, which may be given as a URL; None for other URLs."""
    if text.startswith(("file://", "local://")):
        return unquote(urlsplit(text).path)
    return None if "://" in text or "::" in text else text


def _find(
    open_node: Callable[[str], Any], inner: str, shown: str, level: int | None
) -> tuple[Found, str]:
    """Return the array at a path in a store, or the level of the image there; and its path.

    Parameters
    ----------
    open_node : callable
        Returns the array or group at a path in the store; empty for the store itself.
    """
    node = open_node(inner)
    if isinstance(node, library().Array):
        if level is not None:
            raise SourceError(f"{shown} is an array, and has no levels; leave level away")
        return Found(node, shown, _told_above(open_node, inner, shown)), inner
    levels = levels_of(node.attrs.asdict(), shown)
    if not levels and "bioformats2raw.layout" in node.attrs and "0" in node:
        return _find(open_node, _joined(inner, "0"), shown, level)
    if not levels:
        raise SourceError(f"{shown} is a group of Zarr{_holding(node)}; give the path of an array")
    if not 0 <= (level or 0) < len(levels):
        raise SourceError(f"{shown} has the levels 0 to {len(levels) - 1}, and no level {level}")
    chosen = levels[level or 0]
    path = _joined(inner, chosen.path)
    node = open_node(path)
    if not isinstance(node, library().Array):
        raise SourceError(f"{shown} names {chosen.path!r} as a level, which is no array")
    return Found(node, shown, chosen.metadata, len(levels)), path


def _holding(group: Any) -> str:
    names = [*group.array_keys(), *(f"{name}/..." for name in group.group_keys())]
    return f" with {', '.join(names[:5])}{', ...' * (len(names) > 5)}" if names else " with nothing"


def _told_above(open_node: Callable[[str], Any], inner: str, shown: str) -> Mapping[str, Any]:
    """Return what an image tells of one of its levels, given the path of that."""
    names = inner.split("/") if inner else []
    for depth in range(len(names) - 1, -1, -1):
        try:
            node = open_node("/".join(names[:depth]))
            levels = levels_of(node.attrs.asdict(), shown)
        except SourceError:
            continue
        for level in levels:
            if level.path == "/".join(names[depth:]):
                return level.metadata
    return {}


def _in_folder(root: str, name: str) -> Any:
    folder = _folder(root, name)
    if not os.path.isdir(folder):
        shown = os.path.join(root, name) if name else root
        what = f"{shown} is no folder" if os.path.exists(folder) else f"no such file: {shown!r}"
        raise SourceError(errno.ENOENT, what)
    marks = [os.path.join(folder, mark) for mark in MARKS]
    marks = [mark for mark in marks if os.path.lexists(mark)]
    if not marks:
        raise SourceError(f"{folder} holds no array of Zarr (it has none of {', '.join(MARKS)})")
    for mark in marks:
        if os.path.realpath(mark) != mark or not os.path.isfile(mark):
            raise SourceError(f"{mark} is a link or no file; replace it by what it shows")
    return opened(library().storage.LocalStore(folder, read_only=True), folder)


def _at_url(url: str, writable: bool) -> Any:
    return opened(url.rstrip("/"), url.rstrip("/"), writable=writable)


def _folder(root: str, name: str) -> str:
    """Return the path of a folder in a store, which no link may lead out of."""
    folder = os.path.realpath(os.path.join(root, name)) if name else root
    if os.path.commonpath([root, folder]) != root:
        raise SourceError(
            f"{os.path.join(root, name)} is a link to {folder}, outside of {root}; give that path"
        )
    return folder


def _split(text: str) -> tuple[str, str]:
    """Return the path of a store, and that in it: the rest from the first ``.zarr`` on."""
    names = text.replace(os.sep, "/").split("/")
    ends = [n for n, name in enumerate(names) if name.lower().endswith(".zarr")]
    last = ends[0] + 1 if ends else len(names)
    inner = [name for name in names[last:] if name not in ("", ".")]
    if ".." in inner:
        raise SourceError(f"{text} leaves its store by '..'; give the path itself")
    return "/".join(names[:last]), "/".join(inner)


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
