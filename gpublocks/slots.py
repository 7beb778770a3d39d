"""Memory that a device's pipeline uses over and over, and where arrays lie in it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from gpublocks.contracts import Array, DType, Order, Source, StreamDevice
from gpublocks.geometry import Region
from gpublocks.voxels import array_at

__all__ = ["ALIGNMENT", "DeviceSlot", "HostSlot", "Place", "copied", "places", "total_bytes"]

_Array = TypeVar("_Array", bound=Source)

ALIGNMENT = 512
"""Arrays begin at multiples of so many bytes, as those of CuPy's memory pool do."""


@dataclass(frozen=True, slots=True)
class HostSlot:
    """Page-locked memory.

    Parameters
    ----------
    memory : ndarray of uint8
    copied : event
        After the last copy from or to it.
    """

    memory: Array
    copied: Any

    @classmethod
    def of(cls, device: StreamDevice, nbytes: int) -> "HostSlot":
        """Return a new one."""
        return cls(device.allocate_pinned(nbytes), device.event())

    def arrays(self, where: Sequence["Place"]) -> list[Array]:
        """Return the arrays that lie in it. Nothing is copied."""
        return [array_at(self.memory, p.offset, p.shape, p.dtype, p.order) for p in where]


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """Memory of a device.

    Parameters
    ----------
    memory : object
    filled : event
        After the last operation that filled it.
    emptied : event
        After the last operation that used what was in it.
    """

    memory: Any
    filled: Any
    emptied: Any

    @classmethod
    def of(cls, device: StreamDevice, nbytes: int) -> "DeviceSlot":
        """Return a new one."""
        return cls(device.allocate(nbytes), device.event(), device.event())

    def arrays(self, device: StreamDevice, where: Sequence["Place"]) -> list[Any]:
        """Return the arrays of the device that lie in it. Nothing is copied."""
        return [device.view(self.memory, p.offset, p.shape, p.dtype, p.order) for p in where]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies in a piece of memory.

    Parameters
    ----------
    offset : int
        Its first byte.
    shape, dtype, order
    """

    offset: int
    shape: tuple[int, ...]
    dtype: DType
    order: Order

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.offset + prod(self.shape) * self.dtype.itemsize


def copied(arrays: Sequence[_Array]) -> list[_Array]:
    """Return the arrays whose blocks are copied; those in memory of a device are used there."""
    return [array for array in arrays if getattr(array, "on_device", None) is None]


def places(arrays: Sequence[Source], regions: Sequence[Region]) -> list[Place]:
    """Return where regions of sources or sinks lie, one after the other.

    Each in the order of its array, since to transpose is slow on the host, and in the byte order
    of the machine, the only one that devices have.
    """
    found: list[Place] = []
    offset = 0
    for array, region in zip(arrays, regions, strict=True):
        found.append(Place(offset, region.shape, array.dtype.newbyteorder("="), array.order))
        offset = -(-found[-1].stop // ALIGNMENT) * ALIGNMENT
    return found


def total_bytes(where: Sequence[Place]) -> int:
    """Return the bytes from the beginning to the end of the last array."""
    return where[-1].stop if where else 0
