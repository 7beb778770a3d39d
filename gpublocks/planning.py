"""What a run will do, before it does it: blocks, memory, bytes, write safety.

Pure, but for pictures, which read the source.
"""

import html
import os
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from gpublocks.budget import SLOTS, Budget, Need, Traffic, format_bytes
from gpublocks.contracts import DType, Order, Source
from gpublocks.dividing import common_unit
from gpublocks.grid import Grid
from gpublocks.masking import Mask
from gpublocks.plotting import draw_grid
from gpublocks.storage import Pieces, Usage

__all__ = ["Plan", "Volume"]

_LIMIT_FACTOR = 1.5
_LIMIT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Volume:
    """What the planner knows of a source or sink.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    order : {'C', 'F'}
    pieces : Pieces or None
        In which it is stored and decoded, if its voxels do not stand alone.
    staged : bool
        Whether its blocks cross to the workers through shared memory.
    """

    shape: tuple[int, ...]
    dtype: DType
    order: Order = "C"
    pieces: Pieces | None = None
    staged: bool = False

    def block_bytes(self, grid: Grid) -> int:
        """Return the bytes of the largest block of a grid in this array."""
        lengths = list(self.shape)
        for axis, split in zip(grid.axes, grid.splits, strict=True):
            lengths[axis] = split.largest
        return prod(lengths) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, before it does it.

    Attributes
    ----------
    grid : Grid
        All cells.
    sources, sinks : tuple of Volume
        What is read and written; `sinks` is empty where nothing is known of them yet.
    executor : str
        Name of the executor; `executor_reason` says why this one.
    budget : Budget
        Workers and memory that the plan was made for.
    need : Need
        What the function takes.
    sizing : str
        How the sizes were chosen.
    enforced : bool
        Whether workers cannot take more than `worker_limit_bytes`.
    own_writes : bool
        Whether the function writes into the sinks itself.
    result_bytes : int
        Memory of results that are returned as arrays, if they are like the source.
    devices : tuple of int
        Numbers of the CUDA devices that compute; none where that is done in host memory.
    traffic : Traffic or None
        What goes to these devices and comes back, as far as that is known.
    units : tuple of tuple of int
        Write units of the sinks, for the shape of the source; new ones are created with these.
    caches : tuple of int
        Bytes for decoded pieces of each source, which are kept until all blocks that need them
        have read them; 0 for one that is read directly.
    encoding_bytes : int
        What a worker takes to encode what it writes, beside the block.
    advice : str
        How the function would better be run, if it would.
    arrays : tuple of Source
        The sources.
    mask : Mask or None
        Blocks with nothing inside are not computed.
    """

    grid: Grid
    sources: tuple[Volume, ...]
    sinks: tuple[Volume, ...]
    executor: str
    executor_reason: str
    budget: Budget
    need: Need
    sizing: str
    enforced: bool = False
    own_writes: bool = False
    result_bytes: int = 0
    devices: tuple[int, ...] = ()
    traffic: Traffic | None = None
    units: tuple[tuple[int, ...], ...] = ()
    caches: tuple[int, ...] = ()
    encoding_bytes: int = 0
    advice: str = ""
    arrays: tuple[Source, ...] = field(default=(), compare=False, repr=False)
    mask: Mask | None = field(default=None, compare=False, repr=False)

    @property
    def voxels(self) -> int:
        """Voxels of the largest block of the (first) source."""
        return self.sources[0].block_bytes(self.grid) // self.sources[0].dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block, over all sources."""
        return sum(source.block_bytes(self.grid) for source in self.sources)

    @property
    def staging_bytes(self) -> int:
        """Bytes of shared memory for one worker: two places for each array that is staged."""
        arrays = [*self.sources, *self.sinks]
        return sum(2 * array.block_bytes(self.grid) for array in arrays if array.staged)

    @property
    def coding_bytes(self) -> int:
        """Bytes that one worker takes to decode what it reads, or to encode what it writes."""
        stored = [source.pieces for source in self.sources if source.pieces is not None]
        return max([self.encoding_bytes, *[2 * pieces.nbytes for pieces in stored]])

    @property
    def worker_bytes(self) -> int:
        """Predicted bytes in flight on the host for one worker; for a device page-locked ones."""
        if self.traffic is not None:
            return self.traffic.pinned_bytes(self.voxels)
        block_bytes = self.block_bytes + self.need.of(self.voxels)
        return block_bytes + self.staging_bytes + self.coding_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes for decoded pieces, over all sources."""
        return sum(self.caches)

    @property
    def peak_bytes(self) -> int:
        """Predicted bytes in flight on the host, over all workers, beyond the idle ones."""
        workers = min(self.budget.workers, max(1, len(self.grid)))
        return self.worker_bytes * workers + self.cache_bytes

    @property
    def device_peak_bytes(self) -> int:
        """Predicted bytes in use on each device; 0 where none is used."""
        return self.traffic.device_bytes(self.voxels, self.need) if self.traffic is not None else 0

    @property
    def fits(self) -> bool:
        """Whether a block fits into memory, of the host and of a device, as predicted."""
        device_bytes = self.budget.device_bytes or 0
        on_device = self.traffic is None or self.device_peak_bytes <= device_bytes
        return on_device and self.worker_bytes <= self.budget.host_bytes

    @property
    def worker_limit_bytes(self) -> int:
        """Bytes that one worker may allocate, where that is enforced.

        More than its share of the budget: a prediction may be a guess, and modules that the
        function imports when it is called count too.
        """
        share = (self.budget.host_bytes - self.cache_bytes) // max(1, self.budget.workers)
        return max(int(_LIMIT_FACTOR * share), share + _LIMIT_BYTES)

    @property
    def peak_origin(self) -> Literal["estimated", "measured"]:
        """Whether the peak (of devices, where they compute) rests on a measurement."""
        return "measured" if self.need.origin == "measured" else "estimated"

    @property
    def read_bytes(self) -> int:
        """Bytes that all blocks together read."""
        return sum(
            Grid(source.shape, self.grid.axes, self.grid.splits).read_voxels * source.dtype.itemsize
            for source in self.sources
        )

    @property
    def written_bytes(self) -> int:
        """Bytes that all blocks together write."""
        return sum(prod(sink.shape) * sink.dtype.itemsize for sink in self.sinks)

    @property
    def over_read(self) -> float:
        """Voxels read for each voxel of the source."""
        size = prod(self.grid.shape)
        return self.grid.read_voxels / size if size else 1.0

    def usage(self, source: int) -> Usage | None:
        """Return how blocks read the pieces of a source; None if its voxels stand alone."""
        pieces = self.sources[source].pieces
        return None if pieces is None else Usage(pieces, self.grid)

    @property
    def decoded(self) -> float | None:
        """About how often each piece of the sources is decoded; None where there are none."""
        times = []
        for n, limit_bytes in enumerate(self.caches or (0,) * len(self.sources)):
            usage = self.usage(n)
            if usage is not None:
                times.append(usage.decoded(limit_bytes, self.budget.workers))
        return max(times, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers and texts, for JSON."""
        return {
            "shape": list(self.grid.shape),
            "dtype": str(self.sources[0].dtype),
            "axes": list(self.grid.axes),
            "grid": list(self.grid.counts),
            "cells": len(self.grid),
            "block": list(self.grid.largest),
            "overlap": [split.overlap for split in self.grid.splits],
            "over_read": self.over_read,
            "sizing": self.sizing,
            "executor": self.executor,
            "executor_reason": self.executor_reason,
            "workers": self.budget.workers,
            "host_bytes": self.budget.host_bytes,
            "host_limit": self.budget.reason,
            "block_bytes": self.block_bytes,
            "need_per_voxel": self.need.per_voxel,
            "need_fixed": self.need.fixed,
            "need_origin": self.need.origin,
            "staging_bytes": self.staging_bytes,
            "coding_bytes": self.coding_bytes,
            "cache_bytes": self.cache_bytes,
            "decoded": self.decoded,
            "units": [list(unit) for unit in self.units],
            "peak_bytes": self.peak_bytes,
            "peak_origin": self.peak_origin,
            "enforced": self.enforced,
            "worker_limit_bytes": self.worker_limit_bytes if self.enforced else None,
            "devices": list(self.devices),
            "device_bytes": self.budget.device_bytes,
            "device_limit": self.budget.device_reason or None,
            "device_peak_bytes": self.device_peak_bytes,
            "result_bytes": self.result_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes if self.sinks else None,
            "advice": self.advice or None,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as rows of a table."""
        counts = " x ".join(map(str, self.grid.counts))
        block = " x ".join(map(str, self.grid.largest))
        overlaps = {
            axis: split.overlap
            for axis, split in zip(self.grid.axes, self.grid.splits, strict=True)
        }
        shared = ", ".join(f"{overlap} on axis {axis}" for axis, overlap in overlaps.items())
        first = self.sources[0]
        workers = min(self.budget.workers, max(1, len(self.grid)))
        rows = [
            ("source", f"{first.shape} {first.dtype}, order {first.order}"),
            ("blocks", f"{len(self.grid)} ({counts})"),
            ("block shape", f"{block} voxels, {format_bytes(self.block_bytes)}"),
            ("sizes", self.sizing),
            ("overlap", f"{shared or 'none'}; {self.over_read:.2f} voxels read for each voxel"),
            ("executor", f"{self.executor}, {workers} at once: {self.executor_reason}"),
            *self._memory_rows(workers),
            ("reads", self._reads()),
            ("writes", self._writes()),
            ("write safety", self._safety()),
        ]
        if self.result_bytes:
            rows.insert(-1, ("result", f"about {format_bytes(self.result_bytes)} in host memory"))
        if self.advice:
            rows.append(("advice", self.advice))
        return rows

    def _memory_rows(self, workers: int) -> list[tuple[str, str]]:
        if self.traffic is not None:
            return self._device_rows(self.traffic)
        formula = (
            f"{workers} workers x (block {format_bytes(self.block_bytes)} + {self._function()}"
        )
        if self.staging_bytes:
            formula += f" + staging {format_bytes(self.staging_bytes)}"
        if self.coding_bytes:
            formula += f" + coding {format_bytes(self.coding_bytes)}"
        formula += f"){self._kept_pieces()}"
        kept = f"a worker is held at {format_bytes(self.worker_limit_bytes)}"
        kept = kept if self.enforced else "not enforced"
        return [
            ("host peak", f"{format_bytes(self.peak_bytes)} ({self.peak_origin}, {kept})"),
            ("", f"= {formula}"),
            ("host limit", f"{format_bytes(self.budget.host_bytes)} ({self.budget.reason})"),
            ("device peak", "no device is used"),
        ]

    def _device_rows(self, traffic: Traffic) -> list[tuple[str, str]]:
        coming = format_bytes(traffic.input_bytes(self.voxels))
        going = format_bytes(traffic.output_bytes(self.voxels))
        device_slots = f"{SLOTS + 1} x in {coming} + {SLOTS} x out {going}"
        where = ", ".join(f"cuda:{number}" for number in self.devices)
        where = f"each of {where}" if len(self.devices) > 1 else where
        host, device = format_bytes(self.peak_bytes), format_bytes(self.device_peak_bytes)
        limit = format_bytes(self.budget.device_bytes or 0)
        kept = self._kept_pieces()
        return [
            ("host peak", f"{host} of page-locked memory{' and pieces' * bool(kept)} (estimated)"),
            ("", f"= {len(self.devices)} x {SLOTS} x (in {coming} + out {going}){kept}"),
            ("host limit", f"{format_bytes(self.budget.host_bytes)} ({self.budget.reason})"),
            ("device peak", f"{device} on {where} ({self.peak_origin})"),
            ("", f"= {device_slots} + {self._function()}"),
            ("device limit", f"{limit} ({self.budget.device_reason})"),
        ]

    def _kept_pieces(self) -> str:
        return f" + decoded pieces {format_bytes(self.cache_bytes)}" if self.cache_bytes else ""

    def _function(self) -> str:
        text = f"function {self.need.per_voxel:g} B x {self.voxels} voxels"
        return text + (f" + {format_bytes(self.need.fixed)}" if self.need.fixed else "")

    def _reads(self) -> str:
        read = format_bytes(self.read_bytes)
        if self.decoded is None:
            return read
        often = "once" if self.decoded == 1 else f"about {self.decoded:.2f} times"
        return f"{read}; each piece that is stored is decoded {often}"

    def _writes(self) -> str:
        if not self.sinks:
            return "known after the first block"
        return format_bytes(self.written_bytes)

    def _safety(self) -> str:
        if self.own_writes and any(split.overlap for split in self.grid.splits):
            return "the function writes itself, and must stay within valid regions"
        units = [unit for unit in self.units if any(length > 1 for length in unit)]
        if units:
            listed = " and ".join(map(str, dict.fromkeys(units)))
            return f"valid regions are whole units of {listed}: no unit has two writers"
        return "valid regions do not overlap: no voxel has two writers"

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        block: int | None = None,
        maximum: bool = False,
    ) -> Any:
        """Draw the blocks over the volume, and what is read and written for one of them.

        Blocks that a mask leaves out are hatched; units that a sink writes as one are shown within
        the block.

        Parameters
        ----------
        path : path, optional
            PNG, PDF or SVG that is written.
        block : int, optional
            Number of the block; by default one in the middle.
        maximum : bool
            Show the maximum along each axis, for which all of the source is read, instead of the
            planes in the middle of the block.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        GpublocksError
            If matplotlib is not installed.
        PlanError
            If there is no such block, or the source has less than two axes.
        SinkError
            If the file cannot be written.
        """
        return draw_grid(
            self.grid,
            self.arrays[0],
            mask=self.mask,
            unit=common_unit(self.units, len(self.grid.shape)),
            block=block,
            maximum=maximum,
            path=path,
        )

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows()
        )
        return f"<table>{cells}</table>"
