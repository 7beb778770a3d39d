"""Files that lie in one folder, which no link leads out of; complete or not there. Touches them."""

import errno
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files.partial import partial_path

__all__ = ["Confined", "exactly"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NEW |= getattr(os, "O_CLOEXEC", 0)

_number = count()


class Confined:
    """The files in a folder, however deep.

    Parameters
    ----------
    path : str
        Of the folder, absolute and without symbolic links.
    """

    __slots__ = ("_safe", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._safe: set[str] = set()

    def open(self, path: str) -> int | None:
        """Return a descriptor for reading a file; None if there is no such file.

        Raises
        ------
        SourceError
            If it cannot be read, is no plain file, or lies outside of the folder.
        """
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        # A pipe in place of a file would be waited for.
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._check(path)
        try:
            try:
                fd = os.open(path, flags)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EMLINK):
                    raise
                fd = os.open(self._resolved(path), flags)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(error.errno, f"cannot read {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(f"{path} is a folder, device or pipe; give plain files")
        return fd

    def put(self, path: str, parts: Sequence[Any]) -> None:
        """Let a file hold these bytes, all of them or what it did; remove it if there are none.

        Raises
        ------
        SinkError
            If it cannot be written, or lies outside of the folder.
        """
        try:
            self._check(path)
            if parts:
                _replace(path, parts, self.path)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        except SourceError as error:
            raise SinkError(f"cannot write: {error}") from error
        except OSError as error:
            raise SinkError(error.errno, f"cannot write {path}: {error.strerror}") from error

    def _check(self, path: str) -> None:
        """Refuse a file in a folder to which a link leads out of this one."""
        folder = os.path.dirname(path)
        if folder not in self._safe:
            self._resolved(folder)
            self._safe.add(folder)

    def _resolved(self, path: str) -> str:
        found = os.path.realpath(path)
        if os.path.commonpath([found, self.path]) != self.path:
            raise SourceError(
                f"{path} is a link to {found}, outside of {self.path}; replace it by what it shows"
            )
        return found


def exactly(fd: int, offset: int, nbytes: int) -> bytes:
    """Return so many bytes of an open file, which is not shared with other threads.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, nbytes)
    # The system reads at most 2 GiB at a time.
    while len(data) < nbytes and (more := os.read(fd, nbytes - len(data))):
        data += more
    if len(data) < nbytes:
        raise ValueError("it became shorter while it was read")
    return data


def _replace(path: str, parts: Sequence[Any], root: str) -> None:
    """Write a file under a name of its own, which is then given the right one.

    Folders that it lies in are made, below one that must be there.
    """
    partial = partial_path(f"{path}.{os.getpid()}-{threading.get_ident()}-{next(_number)}")
    try:
        fd = os.open(partial, _NEW, 0o666)
    except FileNotFoundError:
        os.stat(root)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(partial, _NEW, 0o666)
    try:
        with open(fd, "wb", buffering=0) as file:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
