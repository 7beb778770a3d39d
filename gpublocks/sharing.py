"""Memory without a name, for processes to share. Touches anonymous files only."""

import os
import tempfile

from gpublocks import machine
from gpublocks.budget import format_bytes
from gpublocks.errors import BudgetError

__all__ = ["shared_file"]


def shared_file(nbytes: int) -> int:
    """Return the descriptor of a new file without a name, in memory where that can be had.

    It is filled with zeros and preallocated, so that writing to a map of it cannot fail.

    Raises
    ------
    BudgetError
        If there is no room for it.
    """
    available = machine.memory_available()
    if nbytes > available.bytes:
        raise BudgetError(
            f"{format_bytes(nbytes)} of shared memory were asked for, but there are only "
            f"{format_bytes(available.bytes)} of {available.reason}; use a file or smaller blocks"
        )
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("gpublocks")
    else:
        with tempfile.TemporaryFile(prefix="gpublocks-") as file:
            fd = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        else:
            os.ftruncate(fd, nbytes)
    except OSError as error:
        os.close(fd)
        raise BudgetError(
            f"no room for {nbytes} bytes of shared memory ({error.strerror}); use smaller blocks"
        ) from error
    return fd
