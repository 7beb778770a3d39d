"""How many samples an image that is stored in a strip or tile says it has. Pure.

The codecs of these images take as much memory as they say, whatever there is room for: 250 bytes of
JPEG may be four billion samples. So that is looked up before they are decoded.
"""

import struct
from collections.abc import Callable, Iterator

__all__ = ["declared_samples"]

_NO_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers of JPEG from C0 to CF that begin no frame: tables, and one that is reserved."""
_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a length."""
_PNG_SAMPLES = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height in JPEG XL, if it is one of these."""


def declared_samples(data: bytes, compression: int) -> int | None:
    """Return how many samples there will be; None if the codec is told, and does not read it.

    Parameters
    ----------
    data : bytes
        A strip or tile.
    compression : int
        As TIFF numbers it.

    Raises
    ------
    ValueError
        If it does not say.
    """
    look = _LOOKS.get(compression)
    if look is None:
        return None
    try:
        return look(data)
    except (IndexError, StopIteration, struct.error) as error:
        raise ValueError("it does not say how many samples it has") from error


def _jpeg(data: bytes) -> int:
    """Return that of the first frame header (ITU-T T.81, B.2.2)."""
    place = 2
    while data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):
        place += 1
    marker = data[place + 1]
    while not (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
        (length,) = struct.unpack_from(">H", data, place + 2) if marker not in _ALONE else (0,)
        place += 2 + length
        while data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):
            place += 1
        marker = data[place + 1]
    height, width, components = struct.unpack_from(">HHB", data, place + 5)
    return int(height * width * components)


def _jpeg2000(data: bytes) -> int:
    """Return that of the marker SIZ (ITU-T T.800, A.5.1), which a file has in its box jp2c."""
    if data[:4] == b"\0\0\0\x0c":
        data = next(content for kind, content in _boxes(data) if kind == b"jp2c")
    if data[:4] != b"\xff\x4f\xff\x51":
        raise IndexError
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    return int(max(0, right - left) * max(0, bottom - top) * components)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return kind and content of the boxes of a file (ISO/IEC 15444-1, I.4)."""
    place = 0
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = 8
        if length == 1:
            (length,), start = struct.unpack_from(">Q", data, place + 8), 16
        length = length or len(data) - place
        if length < start:
            raise IndexError
        yield kind, data[place + start : place + length]
        place += length


def _png(data: bytes) -> int:
    """Return that of the chunk IHDR (ISO/IEC 15948, 11.2.2), its palette resolved."""
    if data[12:16] != b"IHDR":
        raise IndexError
    width, height = struct.unpack_from(">II", data, 16)
    return int(width * height * _PNG_SAMPLES.get(data[25], 4))


def _webp(data: bytes) -> int:
    """Return that of the first chunk (RFC 9649, 2.5 to 2.7), with an alpha channel."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[n : n + 3], "little") + 1 for n in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, 26))
    else:
        raise IndexError
    return width * height * 4


class _Bits:
    """The bits of some bytes, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the number that the next bits are."""
        if count > self._left:
            raise IndexError
        found = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return found

    def choose(self, *choices: tuple[int, int]) -> int:
        """Return a number, the first two bits of which choose what is added to how many others."""
        least, count = choices[self.take(2)]
        return least + self.take(count)


def _jpegxl(data: bytes) -> int:
    """Return that of a size header, for all channels (ISO/IEC 18181-1, annexes C and D)."""
    if data[:4] == b"\0\0\0\x0c":
        found = _boxes(data)
        data = next(d[4 * (k == b"jxlp") :] for k, d in found if k in (b"jxlc", b"jxlp"))
    if data[:2] != b"\xff\x0a":
        raise IndexError
    bits = _Bits(data[2:64])
    pixels = _jpegxl_pixels(bits)
    if bits.take(1):
        return pixels * 4
    if bits.take(1):
        bits.take(3)
        if bits.take(1):
            _jpegxl_pixels(bits)
        if bits.take(2):
            raise ValueError("it holds a preview or an animation")
    depth = bits.take(1)
    bits.choose(*([(32, 0), (16, 0), (24, 0)] if depth else [(8, 0), (10, 0), (12, 0)]), (1, 6))
    bits.take(5 if depth else 1)
    return pixels * (4 + bits.choose((0, 0), (1, 0), (2, 4), (1, 12)))


def _jpegxl_pixels(bits: _Bits) -> int:
    small = bits.take(1)

    def length() -> int:
        return (
            (bits.take(5) + 1) * 8 if small else 1 + bits.choose((0, 9), (0, 13), (0, 18), (0, 30))
        )

    height, ratio = length(), bits.take(3)
    if not ratio:
        return height * length()
    up, down = _RATIOS[ratio - 1]
    return height * (height * up // down)


def _jpegxr(data: bytes) -> int:
    """Return that of the tags of its container (ITU-T T.832, A.7), with four channels."""
    if data[:3] != b"II\xbc":
        raise IndexError
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    tags = {}
    for n in range(count):
        tag, kind, _, value = struct.unpack_from("<HHII", data, start + 2 + 12 * n)
        tags[tag] = value & 0xFFFF if kind == 3 else value
    if 0xBC80 not in tags or 0xBC81 not in tags:
        raise IndexError
    return int(tags[0xBC80] * tags[0xBC81] * 4)


def _lerc(data: bytes) -> int:
    """Return that of all of its bands (Lerc2, versions 1 to 6), which follow each other."""
    place = samples = 0
    while data[place : place + 6] == b"Lerc2 ":
        (version,) = struct.unpack_from("<i", data, place + 6)
        start = place + (14 if version > 2 else 10)
        rows, columns, depth = struct.unpack_from("<3I", data, start)
        (nbytes,) = struct.unpack_from("<I", data, start + (20 if version > 3 else 16))
        samples += rows * columns * (depth if version > 3 else 1)
        place += max(1, nbytes)
    if not samples:
        raise IndexError
    return samples


_JPEG, _JPEG2000 = (6, 7, 33007, 34892), (33003, 33004, 33005, 34712)
_JPEGXR, _JPEGXL = (22610, 34934), (50002, 52546)

_LOOKS: dict[int, Callable[[bytes], int]] = {
    **dict.fromkeys(_JPEG, _jpeg),
    **dict.fromkeys(_JPEG2000, _jpeg2000),
    **dict.fromkeys(_JPEGXR, _jpegxr),
    **dict.fromkeys(_JPEGXL, _jpegxl),
    34887: _lerc,
    34933: _png,
    50001: _webp,
}
