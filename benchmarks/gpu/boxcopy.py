"""The argument of CUDA's copies of boxes, as C lays it out. Pure."""

from collections.abc import Sequence
from ctypes import Structure, c_int, c_size_t, c_void_p

__all__ = ["HOST_TO_DEVICE", "Extent", "Parms", "Pitched", "Pos", "box_to_device"]

HOST_TO_DEVICE = 1
"""``cudaMemcpyHostToDevice``."""


class Pos(Structure):
    """``cudaPos``: where a box begins; x in bytes."""

    _fields_ = [("x", c_size_t), ("y", c_size_t), ("z", c_size_t)]


class Pitched(Structure):
    """``cudaPitchedPtr``: memory, bytes from row to row, row length, rows in a plane."""

    _fields_ = [
        ("ptr", c_void_p),
        ("pitch", c_size_t),
        ("xsize", c_size_t),
        ("ysize", c_size_t),
    ]


class Extent(Structure):
    """``cudaExtent``: size of a box; width in bytes."""

    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t)]


class Parms(Structure):
    """``cudaMemcpy3DParms``, 160 bytes; of array and pointer on each side one is null."""

    _fields_ = [
        ("srcArray", c_void_p),
        ("srcPos", Pos),
        ("srcPtr", Pitched),
        ("dstArray", c_void_p),
        ("dstPos", Pos),
        ("dstPtr", Pitched),
        ("extent", Extent),
        ("kind", c_int),
    ]


def box_to_device(
    source: int, shape: Sequence[int], start: Sequence[int], box: Sequence[int], target: int
) -> Parms:
    """Return what copies a box of a volume in C order to a contiguous one on the device.

    Parameters
    ----------
    source, target : int
        Addresses of the volume and of the copy.
    shape, start, box : sequence of int
        Lengths of the volume, first voxel and lengths of the box; three of each, the last of
        them in bytes.
    """
    return Parms(
        srcPos=Pos(start[2], start[1], start[0]),
        srcPtr=Pitched(source, shape[2], shape[2], shape[1]),
        dstPtr=Pitched(target, box[2], box[2], box[1]),
        extent=Extent(box[2], box[1], box[0]),
        kind=HOST_TO_DEVICE,
    )
