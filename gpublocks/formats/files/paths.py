"""Files that exist, and paths of new ones: found, checked, told apart. Touches local files."""

import errno
import os
import stat

from gpublocks.errors import SinkError, SourceError

__all__ = ["check_length", "check_unchanged", "final_path", "find_file", "stamp"]


def find_file(location: str, kind: str, *, writable: bool) -> tuple[str, os.stat_result]:
    """Return the absolute path of a local file without symbolic links, and its status.

    Parameters
    ----------
    kind : str
        What is expected, for messages: ``'an NPY file'``.
    writable : bool
        Whether it is to be written.

    Raises
    ------
    SourceError
        If it is missing, or no file.
    SinkError
        If it must not be written.
    """
    try:
        path = os.path.realpath(location)
        status = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise SourceError(errno.ENOENT, f"no such file: {location!r}") from error
        raise SourceError(errno.EINVAL, f"cannot open {location!r}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        found = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise SourceError(errno.EINVAL, f"{location} is {found}; give {kind}")
    if writable and not os.access(path, os.W_OK):
        raise SinkError(errno.EACCES, f"cannot write {location}: Permission denied")
    return path, status


def final_path(location: str | os.PathLike[str]) -> str:
    """Return the absolute path at which a new file will be; its folder without symbolic links.

    Raises
    ------
    SinkError
        If it is no path.
    """
    path = os.fspath(location)
    if "\0" in path:
        raise SinkError(errno.EINVAL, f"the path {path!r} holds a NUL character")
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def check_length(location: str, length: int, offset: int, nbytes: int) -> None:
    """Raise `SourceError` if a file of `length` bytes does not hold `nbytes` from an offset on."""
    if length < offset + nbytes:
        raise SourceError(
            f"{location} holds {max(length - offset, 0)} of {nbytes} data bytes (truncated)"
        )


def stamp(path: str) -> tuple[int, ...] | None:
    """Return what differs once a file was changed or replaced; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: str, known: tuple[int, ...] | None) -> None:
    """Raise `SourceError` if a file is not the one whose `stamp` is known."""
    if stamp(path) != known:
        raise SourceError(
            f"{path} changed (time, size or file) since it was opened; "
            "results computed from it are not of one state"
        )
