"""Files under way: created under a partial name, locked, preallocated, renamed at the end.

Touches local files.
"""

import errno
import os
import stat
import weakref
from contextlib import suppress

from gpublocks.errors import SinkError

__all__ = [
    "Partial",
    "check_parent",
    "check_target",
    "create_partial",
    "drop_stale",
    "lock_file",
    "partial_path",
    "preallocate",
    "sync_path",
]


_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class Partial:
    """A new file that is not complete yet. Its lock lasts as long as this object.

    Parameters
    ----------
    path : str
        Where it is until it is complete.
    final : str
        Where it will be.
    fd : int
        Open descriptor, which holds the lock and is taken over.
    overwrite : bool
        Whether a file at `final` may be replaced.

    Attributes
    ----------
    file : (int, int)
        Device and inode.
    """

    __slots__ = ("__weakref__", "_unlock", "file", "final", "overwrite", "path")

    def __init__(self, path: str, final: str, fd: int, *, overwrite: bool) -> None:
        status = os.fstat(fd)
        self.path = path
        self.final = final
        self.overwrite = overwrite
        self.file = (status.st_dev, status.st_ino)
        self._unlock = weakref.finalize(self, os.close, fd)

    def rename(self) -> None:
        """Give the file its final name.

        Raises
        ------
        SinkError
            If that cannot be done; the file keeps its partial name.
        """
        kept = f"the result is kept in {self.path}"
        try:
            if not self.overwrite and os.path.lexists(self.final):
                raise SinkError(errno.EEXIST, f"{self.final} appeared during the run; {kept}")
            os.replace(self.path, self.final)
        except SinkError:
            raise
        except OSError as error:
            raise SinkError(
                error.errno, f"cannot create {self.final}: {error.strerror}; {kept}"
            ) from error
        finally:
            self._unlock()

    def remove(self) -> None:
        """Delete the file."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self._unlock()


def partial_path(final: str) -> str:
    """Return the name of a file until it is complete."""
    return final + ".partial"


def check_parent(final: str) -> None:
    """Raise `SinkError` if nothing can be created in the folder of a path."""
    folder = os.path.dirname(final)
    if not os.path.isdir(folder):
        raise SinkError(errno.ENOENT, f"cannot create {final}: no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        user = f" (uid {os.getuid()})" if hasattr(os, "getuid") else ""
        raise SinkError(errno.EACCES, f"cannot create {final}: Permission denied{user}")


def check_target(final: str, *, overwrite: bool) -> None:
    """Raise `SinkError` if a file cannot be created. Creates nothing.

    Parameters
    ----------
    final : str
        Absolute path.
    overwrite : bool
        Whether a file of that name may be replaced.
    """
    check_parent(final)
    if os.path.isdir(final):
        raise SinkError(errno.EISDIR, f"cannot create {final}: it is a directory")
    if os.path.lexists(final) and not overwrite:
        raise SinkError(
            errno.EEXIST,
            f"{final} exists; pass overwrite=True to its Sink to replace it",
        )
    partial = partial_path(final)
    try:
        status = os.lstat(partial)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SinkError(error.errno, f"cannot create {partial}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SinkError(errno.EEXIST, f"{partial} is in the way; remove it")


def create_partial(final: str, nbytes: int, header: bytes, *, overwrite: bool) -> Partial:
    """Create a file under its partial name, preallocated; that of a killed run is replaced.

    Parameters
    ----------
    final : str
        Absolute path of the complete file.
    nbytes : int
        Its size.
    header : bytes
        What it begins with.
    overwrite : bool
        Whether a file at `final` may be replaced when this one is complete.

    Raises
    ------
    SinkError
        If it cannot be created, there is no room for it, or another run is writing it.
    """
    path = partial_path(final)
    try:
        fd = _lock_new(final)
        try:
            preallocate(fd, nbytes)
            os.write(fd, header)
        except BaseException:
            os.unlink(path)
            os.close(fd)
            raise
    except SinkError:
        raise
    except OSError as error:
        raise SinkError(error.errno, f"cannot create {path}: {error.strerror}") from error
    return Partial(path, final, fd, overwrite=overwrite)


def drop_stale(final: str) -> None:
    """Remove the partial file that a killed run left, if there is one.

    Raises
    ------
    SinkError
        If another run is writing it.
    """
    path = partial_path(final)
    with suppress(FileNotFoundError):
        stale = os.open(path, _OPEN)
        try:
            lock_file(stale, path, path)
            os.unlink(path)
        finally:
            os.close(stale)


def _lock_new(final: str) -> int:
    """Return the descriptor of a new file that no other run writes; a stale one is replaced."""
    drop_stale(final)
    path = partial_path(final)
    fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        lock_file(fd, path, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock_file(fd: int, path: str, written: str) -> None:
    """Lock a file for as long as it is open, and make sure that it still has its name.

    Parameters
    ----------
    fd : int
        Open descriptor.
    path : str
        The file's name.
    written : str
        What is written under this lock, for messages.

    Raises
    ------
    SinkError
        If another run holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(fd), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:
        raise SinkError(errno.EBUSY, f"another run is writing {written}; wait for it or stop it")


def sync_path(path: str) -> None:
    """Make a file durable, or the names in a folder.

    Raises
    ------
    OSError
        If the disk reports an error. It may be reported once only: do not try again.
    """
    fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def preallocate(fd: int, nbytes: int, offset: int = 0) -> None:
    """Reserve the blocks of a file, so that writing to its map cannot fail for want of room."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, nbytes)
        except OSError as error:
            # File systems that copy on write (ZFS) cannot reserve.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        else:
            return
    os.ftruncate(fd, max(os.fstat(fd).st_size, offset + nbytes))
