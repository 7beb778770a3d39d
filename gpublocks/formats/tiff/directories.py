"""The chain of image file directories in a TIFF file: one for each page. Touches that file."""

import struct
from typing import BinaryIO

from gpublocks.errors import SourceError

__all__ = ["count_pages"]

_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_MOST_TAGS = 4096
"""That tifffile takes for a directory."""


def count_pages(file: BinaryIO, size: int) -> int:
    """Return the number of pages in a TIFF file.

    A writer that is killed, and a copy that is cut off, leave a chain that leads nowhere. Readers
    take the pages before that for the whole image.

    Parameters
    ----------
    file : file
        Open for reading.
    size : int
        Its length in bytes.

    Raises
    ------
    SourceError
        If it is no TIFF file, or the chain leads out of it or back.
    """
    file.seek(0)
    start = file.read(16)
    order = _BYTE_ORDERS.get(start[:2], "")
    version = start[2:4] if order == "<" else start[3:1:-1]
    if order and version == b"\x2b\0" and len(start) == 16:
        counter, pointer, entry, first = order + "Q", order + "Q", 20, start[8:16]
    elif order and version == b"\x2a\0" and len(start) >= 8:
        counter, pointer, entry, first = order + "H", order + "I", 12, start[4:8]
    else:
        what = f"starts with {start[:8]!r}" if start else "is empty"
        raise SourceError(f"{file.name} is not a TIFF file ({what})")
    seen: set[int] = set()
    (offset,) = struct.unpack(pointer, first)
    while offset:
        if offset in seen:
            raise SourceError(f"{file.name} is damaged: page {len(seen)} leads back to another one")
        following = _following(file, offset, counter, pointer, entry) if offset < size else None
        if following is None:
            raise SourceError(
                f"{file.name} is truncated: only {len(seen)} of its pages are readable; "
                "write or copy it again"
            )
        seen.add(offset)
        offset = following
    if not seen:
        raise SourceError(f"{file.name} has no pages; its writer did not complete it")
    return len(seen)


def _following(file: BinaryIO, offset: int, counter: str, pointer: str, entry: int) -> int | None:
    """Return where the directory after another one begins, 0 if there is none; None if damaged."""
    file.seek(offset)
    data = file.read(struct.calcsize(counter))
    if len(data) < struct.calcsize(counter):
        return None
    (count,) = struct.unpack(counter, data)
    if not 0 < count <= _MOST_TAGS:
        return None
    file.seek(count * entry, 1)
    data = file.read(struct.calcsize(pointer))
    return struct.unpack(pointer, data)[0] if len(data) == struct.calcsize(pointer) else None
