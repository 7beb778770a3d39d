"""Passes over the voxels of a volume that count, block by block. Touches what `process` does.

With a mask, which may be coarser than the volume, those outside do not count: blocks with nothing
inside are not read at all, and of others the mask says which voxels do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import io
from gpublocks.arguments import read_mask
from gpublocks.block_processing import process
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import check_real
from gpublocks.filters.engines.block_counts import BinCounts, Extremes, Inside, KeyCounts
from gpublocks.masking import Mask

__all__ = ["Counts", "Volume"]

Counts = npt.NDArray[np.int64]

_OPTIONS = (
    "axes",
    "size_max",
    "size_min",
    "size_multiple_of",
    "optimization",
    "optimization_fix",
    "processes",
    "verbose",
    "workspace",
    "device",
    "executor",
    "memory",
    "mask",
    "progress",
    "report",
)
"""What of `process` is left to the caller; the rest says what the function is and returns."""


@dataclass(frozen=True, slots=True)
class Volume:
    """What is counted, and how it is read.

    Parameters
    ----------
    source : Source
    inside : Source or None
        A mask at the resolution of the volume.
    options : dict
        Of `process`.
    """

    source: Any
    inside: Any
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str, source: Any, options: dict[str, Any]) -> "Volume":
        """Return a volume that a function was asked about.

        Raises
        ------
        PlanError, ArgumentTypeError
            As `minmax` does.
        """
        for given in options:
            if given in signature(process).parameters and given not in _OPTIONS:
                raise ArgumentTypeError(
                    f"{name} got {given!r}, but it counts each voxel once and writes nothing; of "
                    f"the options of process it takes {', '.join(_OPTIONS)}"
                )
        opened = io.as_source(source)
        check_real(opened.dtype, name)
        if 0 in opened.shape:
            raise PlanError(f"{name} of a source of shape {opened.shape}, which has no voxels")
        if options.get("mask") is None:
            return cls(opened, None, options)
        coarse = np.asarray(read_mask(options["mask"]), order=opened.order)
        factors = [fewest for fewest, _ in Mask.of(coarse, opened.shape).factors]
        inside = io.repeated.Repeated(coarse, tuple(factors), tuple(opened.shape))
        return cls(opened, inside, {**options, "mask": coarse})

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.source.dtype  # type: ignore[no-any-return]

    def each(self, function: Callable[[Any], Any], take: Callable[[Any], None]) -> None:
        """Hand on what a function finds in the voxels of each block that count."""
        if self.inside is None:
            process(function, self.source, overlap=0, return_result=take, **self.options)
            return
        sources = [self.source, self.inside]
        process(Inside(function), sources, overlap=0, return_result=take, **self.options)

    def extremes(self) -> tuple[Any, ...] | None:
        """Return the least and the greatest voxel; None if there is none that is a number."""
        found: list[Any] = []

        def take(extremes: tuple[Any, Any] | None) -> None:
            if extremes is not None:
                lows, highs = zip(extremes, *found, strict=True)
                found[:] = [(min(lows), max(highs))]

        self.each(Extremes(), take)
        return tuple(map(self.dtype.type, found[0])) if found else None

    def counts(self, count: KeyCounts | BinCounts) -> Counts:
        """Return the sum of the counts of all blocks."""
        total = np.zeros(count.shape, np.int64)

        def take(counts: Counts) -> None:
            nonlocal total
            total += counts

        self.each(count, take)
        return total
