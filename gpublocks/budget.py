"""Memory: what there is, what a function takes, what goes through a device; as text too. Pure."""

import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from gpublocks.errors import ArgumentTypeError, PlanError

__all__ = ["SLOTS", "Budget", "Need", "Traffic", "format_bytes", "parse_bytes"]

SLOTS = 2
"""Blocks for which a device with streams has memory on each side of a copy: while one is copied,
the next is loaded, or the one before computed."""

_GRAIN = 512
"""Arrays in the memory of a device begin at multiples of so many bytes (`gpublocks.slots`)."""

_UNITS = {
    "": 1,
    "b": 1,
    **{p + "b": 1000**n for n, p in enumerate("kmgt", start=1)},
    **{p + "ib": 1024**n for n, p in enumerate("kmgt", start=1)},
}


@dataclass(frozen=True, slots=True)
class Need:
    """What a function takes beyond its input arrays.

    Parameters
    ----------
    per_voxel : float
        Bytes per voxel that is read, results included, inputs not.
    fixed : int
        Bytes that do not depend on the block.
    origin : str
        Where the number comes from: ``'filter'``, ``'default'`` or ``'measured'``.
    """

    per_voxel: float
    fixed: int = 0
    origin: Literal["filter", "default", "measured"] = "default"

    @classmethod
    def default(cls, itemsize: int) -> "Need":
        """Return the stated default: four arrays of the input's type, 8 bytes a voxel at least.

        A separable SciPy filter holds its result and one or two temporaries of the input's type
        (scipy.ndimage), a scikit-image function often a float64 copy and its result.
        """
        return cls(per_voxel=4.0 * max(itemsize, 8))

    def of(self, voxels: int) -> int:
        """Return the bytes needed for a block of so many voxels."""
        return int(self.per_voxel * voxels) + self.fixed


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use, as told to the planner.

    Parameters
    ----------
    host_bytes : int
        Bytes of host memory that may be in flight, over all workers.
    workers : int
        Cells in flight at once; where devices compute, their number.
    core_cache_bytes : int
        Cache that one worker has for itself (level 2).
    cache_bytes : int
        Its share of all cache: its own and its part of the last level.
    reason : str
        What sets `host_bytes`: ``'memory=8GB'``, ``'cgroup limit'``, ``'available memory'``.
    device_bytes : int or None
        Bytes that may be taken on each device that computes, the one with the least memory
        deciding; None where the workers compute in host memory.
    device_reason : str
        What sets `device_bytes`: ``"80 % of free GPU memory (NVML) on cuda:1, NVIDIA H200
        (12 GB)"``.
    """

    host_bytes: int
    workers: int
    core_cache_bytes: int = 1 << 20
    cache_bytes: int = 4 << 20
    reason: str = "available memory"
    device_bytes: int | None = None
    device_reason: str = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes to a device and comes back, and the memory that this takes.

    A device works on a block while the one before leaves and the one after comes. So it has
    `SLOTS` slots for blocks of all sources and as many for those of all sinks. The function gets
    copies of a block, which it may change or keep, and what it takes beyond them includes its own
    results, of which the valid parts are copied into a slot. Each slot has a counterpart in
    page-locked host memory, where it is filled from the sources or emptied into the sinks::

        device       = SLOTS * (inputs + outputs) + inputs + need
        page-locked  = SLOTS * (inputs + outputs)           for each device

    A slot for results has room for a whole block, though only the valid part comes back.

    Parameters
    ----------
    voxels : int
        Voxels of the (first) source. Blocks are counted in these.
    inputs, outputs : tuple of int
        Bytes of each source and of each sink, of which a block has its share.
    """

    voxels: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()

    def input_bytes(self, block: int) -> int:
        """Return the bytes of a slot for the sources of a block of so many voxels."""
        return sum(_rounded(self._share(nbytes, block)) for nbytes in self.inputs)

    def output_bytes(self, block: int) -> int:
        """Return the bytes of a slot for the results of a block of so many voxels."""
        return sum(_rounded(self._share(nbytes, block)) for nbytes in self.outputs)

    def pinned_bytes(self, block: int) -> int:
        """Return the bytes of page-locked memory for one device, and of its slots on the device."""
        return SLOTS * (self.input_bytes(block) + self.output_bytes(block))

    def device_bytes(self, block: int, need: Need) -> int:
        """Return the bytes that are taken on one device."""
        return self.pinned_bytes(block) + self.input_bytes(block) + need.of(block)

    def longest_bytes(self, block: int) -> int:
        """Return the bytes of the largest single array of a block."""
        return max(self._share(nbytes, block) for nbytes in (*self.inputs, *self.outputs))

    def _share(self, nbytes: int, block: int) -> int:
        return -(-nbytes * block // max(1, self.voxels))


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _GRAIN) * _GRAIN


def parse_bytes(value: int | str) -> int:
    """Return a number of bytes from a number or a text such as ``'8GB'`` or ``'512 MiB'``.

    Decimal units (kB, MB, GB, TB) are powers of 1000, binary ones (KiB, MiB, GiB, TiB) of 1024.

    Raises
    ------
    ArgumentTypeError
        If the value is neither a number nor a text.
    PlanError
        If it cannot be understood, or is not positive.

    Examples
    --------
    >>> parse_bytes("1.5 GB")
    1500000000
    >>> parse_bytes("2GiB")
    2147483648
    """
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise ArgumentTypeError(
            f"memory is {value!r} ({type(value).__name__}); give bytes or a text such as '8GB'"
        )
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-zA-Z]*)\s*", value)
        if match is None or match[2].lower() not in _UNITS:
            raise PlanError(f"memory is {value!r}; give a number with a unit, such as '8GB'")
        count = float(match[1]) * _UNITS[match[2].lower()]
    else:
        count = value
    if not 1 <= count < 2**63:
        raise PlanError(f"memory is {value!r}; it must be at least one byte and below 8 EiB")
    return int(count)


def format_bytes(count: float) -> str:
    """Return a number of bytes as text with a decimal unit.

    Examples
    --------
    >>> format_bytes(1536)
    '1.54 kB'
    >>> format_bytes(512)
    '512 B'
    """
    if count < 1000:
        return f"{int(count)} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:.0f} TB"
