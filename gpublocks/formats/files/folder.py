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

    __slots__ = ("__weakref__", "_file", "_unlock", "final", "overwrite", "path")

    def __init__(self, path: str, final: str, fd: int, *, overwrite: bool) -> None:
        self.path = path
        self.final = final
        self.overwrite = overwrite
        self._file = os.fstat(fd)
        self._unlock = weakref.finalize(self, os.close, fd)

    def rename(self) -> None:
        """Give the folder its final name, durably. What is replaced is removed after that.

        A run that is killed in between leaves what was replaced under a name of its own, which the
        next run gives back or removes.

        Raises
        ------
        SinkError
            If that cannot be done; the folder keeps its partial name.
        """
        aside = _aside(self.final)
        try:
            self._check()
            if os.name == "nt":
                # Windows moves no folder in which a file is open.
                self._unlock()
            self._move(aside)
        except SinkError:
            raise
        except OSError as error:
            raise SinkError(
                error.errno,
                f"cannot create {self.final}: {error.strerror}; the result is kept in {self.path}",
            ) from error
        finally:
            self._unlock()
        try:
            os.unlink(os.path.join(self.final, _LOCK))
            if os.name != "nt":
                sync_path(os.path.dirname(self.final))
            _remove_marked(aside)
        except OSError as error:
            raise SinkError(
                error.errno,
                f"{self.final} is complete, but may not be durable, or what it replaces be left in "
                f"{aside}: {error.strerror}",
            ) from error

    def _check(self) -> None:
        """Raise `SinkError` if the folder is not there any more, or must not get its name."""
        try:
            there = os.path.samestat(os.lstat(os.path.join(self.path, _LOCK)), self._file)
        except FileNotFoundError:
            there = False
        if not there:
            raise SinkError(
                errno.ENOENT, f"{self.path} was removed during the run, with all that was written"
            )
        if os.path.lexists(self.final) and not self.overwrite:
            raise SinkError(
                errno.EEXIST,
                f"{self.final} appeared during the run; the result is kept in {self.path}",
            )

    def _move(self, aside: str) -> None:
        """Give the folder its name, and what had it another one, or do neither."""
        exists = os.path.lexists(self.final)
        if exists:
            _mark(self.final)
            os.rename(self.final, aside)
        try:
            os.rename(self.path, self.final)
        except OSError:
            if exists:
                os.rename(aside, self.final)
            raise

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
    exists, aside = os.path.lexists(final), _aside(final)
    if exists and not overwrite:
        raise SinkError(errno.EEXIST, f"{final} exists; {advice}")
    if exists and not any(os.path.lexists(f"{final}/{mark}") for mark in marks):
        raise SinkError(
            errno.EEXIST, f"{final} is not of the kind that would replace it; remove it yourself"
        )
    if os.path.lexists(aside) and not _is_marked(aside):
        raise SinkError(errno.EEXIST, f"{aside} is in the way; remove it")
    if os.path.lexists(aside) and not exists and not overwrite:
        raise SinkError(
            errno.EEXIST,
            f"{aside} is what {final} was before a run that was killed while replacing it; rename "
            f"it, or {advice}",
        )
    path = partial_path(final)
    if os.path.lexists(path) and not _may_take(path):
        raise SinkError(errno.EEXIST, f"{path} is in the way; remove it")


def create_folder(final: str, *, overwrite: bool) -> PartialFolder:
    """Create a folder under its partial name; what a killed run left there is removed.

    What such a run was about to replace gets its name back.

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
            _restore(final)
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
    """Return the name of a folder that is being replaced, in the meantime."""
    return final + ".replaced"


def _mark(final: str) -> None:
    """Let a folder be known as one that is being replaced, whatever its name is."""
    with open(os.path.join(final, _LOCK), "a"):
        pass


def _is_marked(path: str) -> bool:
    return os.path.lexists(os.path.join(path, _LOCK)) and not os.path.islink(path)


def _remove_marked(path: str) -> None:
    """Remove a folder, what marks it last: one that is left in part is still known."""
    with suppress(FileNotFoundError):
        for name in os.listdir(path):
            if name != _LOCK:
                _remove(os.path.join(path, name))
        _remove(path)


def _restore(final: str) -> None:
    """Give a folder that a killed run was replacing its name back; remove it if that was done."""
    aside = _aside(final)
    if not _is_marked(aside):
        return
    if os.path.lexists(final):
        _remove_marked(aside)
        return
    os.rename(aside, final)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(final, _LOCK))


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
