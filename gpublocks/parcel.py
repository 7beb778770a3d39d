"""What worker processes are told about a job, and where its arrays lie in shared memory. Pure."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from gpublocks.contracts import Reach, Sink, Source
from gpublocks.errors import ArgumentTypeError
from gpublocks.io.staged import Staged
from gpublocks.job import Job
from gpublocks.wire import Packed, pack

__all__ = ["Parcel", "name_of"]

_MOST_PLACES = 16
_RING_BYTES = 1 << 20
_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker is told about a job, and how arrays of this process pass through its ring.

    Parameters
    ----------
    packed : Packed
        The job, with stand-ins for the arrays of this process.
    memory_limit : int or None
    loaded, stored : tuple of (int, Source)
        Arrays that are copied into a place of the ring before a cell and out of it afterwards,
        each with its offset in the place, in bytes.
    offsets : tuple of int
        Offsets of all stand-ins, in the order of the job's sources and sinks.
    place_bytes : int
        Size of a place: what one cell takes.
    places : int
        How many cells may be in flight at once: two, more if they are small.
    """

    packed: Packed
    memory_limit: int | None
    loaded: tuple[tuple[int, Source], ...]
    stored: tuple[tuple[int, Sink], ...]
    offsets: tuple[int, ...]
    place_bytes: int
    places: int

    @classmethod
    def of(cls, job: Job, memory_limit: int | None) -> "Parcel":
        """Return the parcel of a job.

        Raises
        ------
        ArgumentTypeError
            If the function or its arguments cannot be pickled.
        """
        sources, size = _laid_out(job, job.sources, 0)
        sinks, size = _laid_out(job, job.sinks, size)
        sent = replace(
            job,
            sources=tuple(map(_stand_in, job.sources)),
            sinks=tuple(map(_stand_in, job.sinks)),
        )
        return cls(
            packed=_sendable(sent),
            memory_limit=memory_limit,
            # A function that writes by itself sees the present content of its sinks.
            loaded=sources + sinks if job.function_type == "block" else sources,
            stored=() if job.keep_outputs else sinks,
            offsets=tuple([offset for offset, _ in sources + sinks]),
            place_bytes=size,
            places=max(2, min(_MOST_PLACES, _RING_BYTES // max(1, size))),
        )

    @property
    def ring_bytes(self) -> int:
        """Size of the ring of one worker."""
        return self.places * self.place_bytes

    def message(self) -> tuple[Any, ...]:
        """Return the message that a run begins with."""
        folder = None
        with suppress(OSError):
            folder = os.getcwd()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        layout = self.offsets, self.place_bytes, self.ring_bytes
        return "job", self.packed, folder, path, self.memory_limit, *layout


def _laid_out(job: Job, arrays: Iterable[Any], size: int) -> tuple[tuple[Any, ...], int]:
    """Return arrays of this process with their offsets, and where the last one ends."""
    placed = []
    for array in arrays:
        if array.reach == Reach.PROCESS:
            placed.append((size, array))
            shape = list(array.shape)
            for axis in job.grid.axes:
                shape[axis] = job.grid.largest[axis]
            size += -(-prod(shape) * array.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(placed), size


def _stand_in(array: Any) -> Any:
    if array.reach != Reach.PROCESS:
        return array
    return Staged(array.name, array.shape, array.dtype, array.order, array.location)


def _sendable(job: Job) -> Packed:
    try:
        return pack(job, by_value=True)
    except Exception as error:
        culprit = f"function {name_of(job.function)!r}"
        for name, value in job.kwargs.items():
            try:
                pack(value, by_value=True)
            except Exception:
                culprit = f"argument {name!r} of {culprit}"
                break
        raise ArgumentTypeError(
            f"cannot send {culprit} to worker processes: {error}; use executor='threads'"
        ) from error


def name_of(function: Any) -> str:
    """Return what a function is called in messages; partials and callables have no name."""
    return str(getattr(function, "__name__", None) or type(function).__name__)
