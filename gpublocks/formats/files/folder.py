"""Folders under way: made under a partial name, locked, renamed when they are complete.

Touches local files.
"""

import errno
import os
import shutil
import stat
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from gpublocks.concurrency import Threads
from gpublocks.crew import Crew
from gpublocks.errors import SinkError
from gpublocks.formats.files.partial import check_parent, lock_file, partial_path, sync_path

__all__ = ["PartialFolder", "check_folder", "create_folder", "sync_files"]

_LOCK = ".lock"
_THREADS = 8
"""Disks take several orders to write at once, as a rule."""
_BATCH = 4096


class PartialFolder:
    """A new folder that is not complete yet. Its lock lasts as long as this object.

    Parameters
    ----------
    path : str
        Where it is until it is complete.
    final : str
        Where it will be.
    fd : int
        Open descriptor of its lock, which is taken over.
    overwrite : bool
        Whether what is at `final` may be replaced.
    """

    __slots__ = ("__weakref__", "_unlock", "final", "overwrite", "path")

    def __init__(self, path: str, final: str, fd: int, *, overwrite: bool) -> None:
        self.path = path
        self.final = final
        self.overwrite = overwrite
        self._unlock = weakref.finalize(self, os.close, fd)

    def rename(self) -> None:
        """Give the folder its final name, durably. What is replaced is removed after that.

        Raises
        ------
        SinkError
            If that cannot be done; the folder keeps its partial name.
        """
        kept = f"the result is kept in {self.path}"
        aside = _aside(self.final)
        exists = os.path.lexists(self.final)
        try:
            if exists and not self.overwrite:
                raise SinkError(errno.EEXIST, f"{self.final} appeared during the run; {kept}")
            if os.name == "nt":
                # Windows moves no folder in which a file is open.
                self._unlock()
            if exists:
                os.rename(self.final, aside)
            os.rename(self.path, self.final)
            os.unlink(os.path.join(self.final, _LOCK))
            if os.name != "nt":
                sync_path(os.path.dirname(self.final))
        except SinkError:
            raise
        except OSError as error:
            if exists and not os.path.lexists(self.final):
                os.rename(aside, self.final)
            raise SinkError(
                error.errno, f"cannot create {self.final}: {error.strerror}; {kept}"
            ) from error
        finally:
            self._unlock()
        _remove(aside)

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()


def check_folder(final: str, marks: Iterable[str], *, overwrite: bool, advice: str) -> None:
    """Raise `SinkError` if a folder cannot be created. Creates nothing.

    Parameters
    ----------
    final : str
        Absolute path.
    marks : iterable of str
        Names of which one is in every folder that may be replaced; lest other folders are removed.
    overwrite : bool
        Whether a folder of that name may be replaced.
    advice : str
        How to ask for that.
    """
    check_parent(final)
    if os.path.lexists(final) and not overwrite:
        raise SinkError(errno.EEXIST, f"{final} exists; {advice}")
    if os.path.lexists(final) and not any(os.path.lexists(f"{final}/{mark}") for mark in marks):
        raise SinkError(
            errno.EEXIST, f"{final} is not of the kind that would replace it; remove it yourself"
        )
    aside = _aside(final)
    if os.path.lexists(aside):
        raise SinkError(
            errno.EEXIST,
            f"{aside} is in the way: what {final} was before a run that was killed while "
            "replacing it; remove or rename it",
        )
    path = partial_path(final)
    if os.path.lexists(path) and not _may_take(path):
        raise SinkError(errno.EEXIST, f"{path} is in the way; remove it")


def create_folder(final: str, *, overwrite: bool) -> PartialFolder:
    """Create a folder under its partial name; what a killed run left there is removed.

    Raises
    ------
    SinkError
        If it cannot be created, or another run is writing it.
    """
    path = partial_path(final)
    lock = os.path.join(path, _LOCK)
    try:
        with suppress(FileExistsError):
            os.mkdir(path)
        if not _may_take(path):
            raise SinkError(errno.EEXIST, f"{path} is in the way; remove it")
        flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | flags, 0o666)
        try:
            lock_file(fd, lock, path)
            for name in os.listdir(path):
                if name != _LOCK:
                    _remove(os.path.join(path, name))
        except BaseException:
            os.close(fd)
            raise
    except SinkError:
        raise
    except OSError as error:
        raise SinkError(error.errno, f"cannot create {path}: {error.strerror}") from error
    return PartialFolder(path, final, fd, overwrite=overwrite)


def sync_files(path: str, *, deep: bool = True) -> None:
    """Make all files in a folder durable, and the folder.

    Parameters
    ----------
    deep : bool
        Whether those in folders in it, too.

    Raises
    ------
    OSError
        If the disk reports an error. It may be reported once only: do not try again.
    """
    found = _walk(path, deep=deep)
    crew = Crew(_THREADS, Threads())
    try:
        while batch := list(islice(found, _BATCH)):
            crew.do([partial(sync_path, entry) for entry in batch])
    finally:
        crew.close()


def _walk(path: str, *, deep: bool) -> Iterator[str]:
    """Return all files in a folder, then all folders."""
    folders = []
    for folder, inner, names in os.walk(path):
        inner[:] = inner if deep else []
        folders.append(folder)
        for name in names:
            yield os.path.join(folder, name)
    if os.name != "nt":
        yield from folders


def _may_take(path: str) -> bool:
    """Tell whether a folder of a partial name is that of a run, or empty."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return False
    names = os.listdir(path)
    return not names or _LOCK in names


def _aside(final: str) -> str:
    return final + ".replaced"


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
