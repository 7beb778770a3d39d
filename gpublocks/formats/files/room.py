"""Whether a disk has room for what is new. Touches local disks."""

import errno
import os
import shutil
from contextlib import suppress

from gpublocks.budget import format_bytes
from gpublocks.errors import SinkError
from gpublocks.formats.files.partial import partial_path
from gpublocks.notice import warn_user

__all__ = ["check_disk", "check_room"]


def check_room(final: str, nbytes: int) -> None:
    """Raise `SinkError` if there is no room for a new file; that of a killed run gives way."""
    freed = 0
    with suppress(FileNotFoundError):
        freed = os.stat(partial_path(final)).st_size
    check_disk(final, nbytes, freed=freed)
    limit = _file_size_limit()
    if limit is not None and nbytes > limit:
        raise SinkError(
            errno.EFBIG,
            f"{final} needs {format_bytes(nbytes)}, above the limit for files of this "
            f"process (RLIMIT_FSIZE {format_bytes(limit)}); raise it with ulimit -f",
        )


def check_disk(final: str, nbytes: int, *, most: int = 0, freed: int = 0) -> None:
    """Raise `SinkError` if a disk has no room for what is new on it; warn if it may have none.

    What is compressed may take next to nothing: it is refused only when the disk is full.

    Parameters
    ----------
    final : str
        Absolute path of the file or folder that is new.
    nbytes : int
        What it takes in any case.
    most : int
        What it takes if nothing gets smaller by compression, if that is more.
    freed : int
        What there will be beside the room that is free.
    """
    folder = os.path.dirname(final)
    free = shutil.disk_usage(folder).free + freed
    if nbytes > free:
        raise SinkError(
            errno.ENOSPC,
            f"{final} needs {format_bytes(nbytes)}, {folder} has {format_bytes(free)} free",
        )
    if most > free:
        warn_user(
            f"{final} needs up to {format_bytes(most)}, and {folder} has {format_bytes(free)} "
            "free: if compression does not make it fit, the run ends with an error"
        )


def _file_size_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
