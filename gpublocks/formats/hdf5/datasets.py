"""Arrays in HDF5 files: opening the files once in a process, finding what they hold.

Touches local files, through h5py. No path leads out of its file: links to other files, virtual
datasets and storage in other files are refused, and the error says where they lead.
"""

import errno
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np

from gpublocks.contracts import DType
from gpublocks.errors import GpublocksError, SinkError, SourceError
from gpublocks.formats.hdf5 import deflating
from gpublocks.geometry import Region

__all__ = [
    "Place",
    "boxes",
    "check_alone",
    "find",
    "h5py_library",
    "is_plain",
    "locked",
    "named",
    "only_array",
    "open_file",
    "place_of",
    "reading",
    "reason",
    "split_path",
    "writing",
]

_INSIDE = re.compile(r"(.+?\.(?:h5|hdf5|hdf|he5|ims|mat)):(.*)", re.IGNORECASE | re.DOTALL)
_LISTED = 12
_MOST_LINKS = 100
_PATIENCE_SECONDS = 2.0


def split_path(location: str) -> tuple[str, str]:
    """Return the path of a file and the name of a dataset in it, which may be empty.

    Examples
    --------
    >>> split_path("data.h5:/group/brain")
    ('data.h5', '/group/brain')
    >>> split_path("brain.npy")
    ('brain.npy', '')
    """
    match = _INSIDE.fullmatch(location)
    return (match[1], match[2]) if match else (location, "")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dataset is found, and how its voxels are stored.

    Parameters
    ----------
    path : str
        Absolute, without symbolic links.
    file : (int, int)
        Device and inode; 0 and a number of the library's for a file in memory.
    dataset : str
        Its name in the file.
    shape : tuple of int
    dtype : dtype
    chunks : tuple of int or None
        Shape of a chunk.
    filters : tuple of int or None
        Numbers of the filters if `deflating` can undo them; None if the library has to.
    """

    path: str
    file: tuple[int, int]
    dataset: str
    shape: tuple[int, ...]
    dtype: DType
    chunks: tuple[int, ...] | None
    filters: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"{self.path}:{self.dataset}"


_lock = threading.RLock()
_files: dict[str, Any] = {}
_readers: Counter[str] = Counter()


def locked() -> Any:
    """Return the lock that is held wherever the library is called.

    The library lets one thread in at a time anyway. With it no file is closed while another thread
    reads it.
    """
    return _lock


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _readers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Keep a file open, once it is, until nobody in this process reads it any more.

    HDF5 opens no file for writing that this process has open for reading. So it is not open any
    longer than that.
    """
    with _lock:
        _readers[path] += 1
    try:
        yield
    finally:
        with _lock:
            _readers[path] -= 1
            if _readers[path] <= 0:
                del _readers[path]
                _close(path)


def open_file(path: str) -> Any:
    """Return a file that is open for reading, while it is being read. With the lock held.

    Whoever writes the file closes it; those who find it closed ask again.

    Raises
    ------
    SourceError
        If it is no HDF5 file, or another process writes it.
    """
    if not _files.get(path):
        _files[path] = _open(path, "r")
    return _files[path]


@contextmanager
def writing(path: str) -> Iterator[Any]:
    """Give a file that is open for writing. With the lock held.

    Raises
    ------
    SourceError
        If it is no HDF5 file, or another process reads or writes it.
    """
    _close(path)
    with _open(path, "r+") as file:
        yield file


@contextmanager
def named(what: str) -> Iterator[None]:
    """Let `SourceError` say what cannot be read, whatever the library raises."""
    try:
        yield
    except (GpublocksError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{what} cannot be read: {reason(error)}") from error


def h5py_library() -> Any:
    """Return h5py.

    Raises
    ------
    SourceError
        If it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError("HDF5 files need h5py: pip install 'gpublocks[hdf5]'") from error
    return h5py


def find(file: Any, name: str) -> Any:
    """Return a dataset by its name, which is empty if there is one array only.

    Raises
    ------
    SourceError
        If there is none, or a link leads to another file.
    """
    h5py = h5py_library()
    left, found, links = deque(name.split("/")), file["/"], 0
    while left:
        part = left.popleft()
        if part in ("", "."):
            continue
        link = _link(found, part)
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(
                f"{file.filename}:{name} is a link to '{link.filename}:{link.path}'; give that"
            )
        if isinstance(link, h5py.SoftLink) and links < _MOST_LINKS:
            links += 1
            found = file["/"] if link.path.startswith("/") else found
            left.extendleft(reversed(link.path.split("/")))
            continue
        if not isinstance(link, h5py.HardLink):
            raise SourceError(
                errno.ENOENT,
                f"{file.filename} has no {name!r}; it holds {_listed(_arrays(file))}",
            )
        found = found[part]
    return only_array(found) if isinstance(found, h5py.Group) else found


def only_array(group: Any) -> Any:
    """Return the one array of numbers that a group or file holds, in whatever group.

    Raises
    ------
    SourceError
        If it holds none, or several.
    """
    found = _arrays(group)
    if len(found) == 1:
        return found[0]
    advice = "name one of them, as in 'x.h5:/group/dataset'" if found else "give another file"
    raise SourceError(f"{group.file.filename} holds {_listed(found)}; {advice}")


def place_of(dataset: Any, path: str) -> Place:
    """Return where a dataset is and how it is stored.

    Parameters
    ----------
    path : str
        Absolute path of its file; what there is instead, if that is in memory.

    Raises
    ------
    SourceError
        If it is no array of numbers, its voxels lie in other files, or are compressed in a way
        that the library does not know.
    """
    h5py = h5py_library()
    where = f"{path}:{dataset.name}"
    dtype = _number_type(dataset)
    if dtype is None:
        raise SourceError(
            f"{where} holds {_kind(h5py, dataset)}, not numbers; copy what is an array into a "
            "dataset of its own"
        )
    properties = dataset.id.get_create_plist()
    _check_inside(dataset, properties, where)
    if not dataset.shape:
        what = "nothing" if dataset.shape is None else "a scalar (0 axes)"
        raise SourceError(f"{where} holds {what}; give an array")
    filters = [properties.get_filter(n) for n in range(properties.get_nfilters())]
    for number, _, _, name in filters:
        _check_filter(h5py, number, os.fsdecode(name), where)
    numbers = tuple([number for number, *_ in filters])
    known = deflating.is_known(numbers) and is_plain(dataset, dtype)
    for number, _, values, _ in filters:
        known = known and (number != deflating.SHUFFLE or values[:1] == (dtype.itemsize,))
    status = os.stat(path) if os.path.isfile(path) else None
    return Place(
        path,
        (status.st_dev, status.st_ino) if status else (0, h5py.h5o.get_info(dataset.id).fileno),
        dataset.name or "",
        tuple([int(n) for n in dataset.shape]),
        dtype,
        dataset.chunks,
        numbers if known else None,
    )


def is_plain(dataset: Any, dtype: DType) -> bool:
    """Tell whether the file holds voxels as they are in memory, if they are not compressed."""
    return bool(dataset.id.get_type() == h5py_library().h5t.py_create(dtype, logical=True))


def check_alone(file: Any, *, mapped: bool) -> None:
    """Refuse to write a file that this process has open otherwise.

    Parameters
    ----------
    file : h5py.File
        The file, as it is open here.
    mapped : bool
        Whether it is to be written beside the library, which keeps parts of what it writes; else
        by the library, which does not write what it has open for reading.

    Raises
    ------
    SinkError
        If it is.
    """
    h5py = h5py_library()
    path = os.path.realpath(file.filename)
    for other in h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE):
        if other.id == file.id.id or os.path.realpath(os.fsdecode(other.name)) != path:
            continue
        if (other.get_intent() == h5py.h5f.ACC_RDWR) == mapped:
            how = "writing" if mapped else "reading"
            raise SinkError(f"{path} is open for {how} in this process; close it (h5py.File.close)")


def boxes(region: Region, chunks: tuple[int, ...]) -> Iterator[Region]:
    """Yield all chunks that have voxels of a region, as boxes of full length.

    Examples
    --------
    >>> [box.slices for box in boxes(Region((3,), (6,)), (5,))]
    [(slice(0, 5, None),), (slice(5, 10, None),)]
    """
    ranges = zip(region.start, region.stop, chunks, strict=True)
    for start in product(*[range(lo // n * n, hi, n) for lo, hi, n in ranges]):
        yield Region(start, tuple([lo + n for lo, n in zip(start, chunks, strict=True)]))


def reason(error: BaseException) -> str:
    """Return what a library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _open(path: str, mode: str) -> Any:
    """Open a file; wait a little for others who have it open for a moment."""
    h5py = h5py_library()
    _check_signature(h5py, path)
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return h5py.File(path, mode, locking="best-effort")
        except BlockingIOError as error:
            if time.monotonic() > end:
                how = "open for writing" if mode == "r" else "open"
                text = f"{path} is {how} in another process; close it there"
                raise SourceError(errno.EBUSY, text) from error
        time.sleep(0.02)


def _close(path: str) -> None:
    file = _files.pop(path, None)
    if file is not None:
        file.close()


def _check_signature(h5py: Any, path: str) -> None:
    """Raise `SourceError` if a file is no HDF5 file."""
    if h5py.is_hdf5(path):
        return
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"MATLAB 5"):
        what = "is a MAT file of version 5; save it with the option -v7.3"
    elif start.startswith(b"\x0e\x03\x13\x01"):
        what = "is an HDF4 file; convert it with h4toh5"
    else:
        what = f"is not an HDF5 file ({f'starts with {start!r}' if start else 'is empty'})"
    raise SourceError(f"{path} {what}")


def _link(group: Any, name: str) -> Any:
    """Return what kind of link a group has of this name; None if none."""
    try:
        return group.get(name, getlink=True)
    except Exception:
        return None


def _arrays(group: Any) -> list[Any]:
    """Return the arrays of numbers in a group and all groups in it; some, if there are many."""
    found = []

    def visit(name: str, item: Any) -> bool | None:
        # Asking a virtual dataset for its shape may open other files.
        if _number_type(item) is not None and (item.is_virtual or item.shape):
            found.append(item)
        return True if len(found) > _LISTED else None

    group.visititems(visit)
    return found


def _listed(arrays: list[Any]) -> str:
    texts = [
        f"{x.name} {'(virtual)' if x.is_virtual else x.shape} {x.dtype}" for x in arrays[:_LISTED]
    ]
    more = " and more" if len(arrays) > _LISTED else ""
    return ", ".join(texts) + more if arrays else "no arrays of numbers"


def _number_type(dataset: Any) -> DType | None:
    """Return the type of a dataset's voxels; None if they are no numbers, or it is no dataset."""
    if not isinstance(dataset, h5py_library().Dataset):
        return None
    try:
        dtype: DType = dataset.dtype
    except Exception:
        return None
    # Without the names of an enumeration, which may be many.
    return np.dtype(dtype.str) if dtype.kind in "biufc" and dtype.subdtype is None else None


def _kind(h5py: Any, dataset: Any) -> str:
    if not isinstance(dataset, h5py.Dataset):
        return "a type"
    kinds = {h5py.h5t.COMPOUND: "a table", h5py.h5t.STRING: "strings", h5py.h5t.VLEN: "lists"}
    return kinds.get(dataset.id.get_type().get_class(), "objects")


def _check_inside(dataset: Any, properties: Any, where: str) -> None:
    """Raise `SourceError` if the voxels of a dataset are somewhere else."""
    if dataset.is_virtual:
        others = sorted({f"{s.file_name}:{s.dset_name}" for s in dataset.virtual_sources()})
        raise SourceError(
            f"{where} is a virtual dataset, a view of {', '.join(others[:_LISTED])}; give one of "
            "these, or a copy"
        )
    if properties.get_external_count():
        others = sorted({os.fsdecode(name) for name, *_ in dataset.external})
        raise SourceError(f"{where} lies in other files, {', '.join(others[:_LISTED])}; give these")


def _check_filter(h5py: Any, number: int, name: str, where: str) -> None:
    if not h5py.h5z.filter_avail(number):
        # Importing it makes its filters known.
        with suppress(ImportError):
            import_module("hdf5plugin")
    if not h5py.h5z.filter_avail(number):
        raise SourceError(
            f"{where} is compressed with filter {number} ({name}), which HDF5 does not have; "
            "try pip install hdf5plugin"
        )
