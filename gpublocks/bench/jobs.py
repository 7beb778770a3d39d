"""A function from a file to a file, in one of several ways. Touches files of one folder."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpublocks.bench.loading import load
from gpublocks.bench.opening import create_array, open_array
from gpublocks.bench.programs import slowly
from gpublocks.formats.files.folder import sync_files
from gpublocks.formats.files.partial import sync_path

__all__ = ["FileWork", "planned_block", "read_voxels"]


class FileWork:
    """A function over a volume in a file, whose result goes into another one that exists.

    Parameters
    ----------
    folder : Path
        Holds the volumes.
    subject : str
        What is called: ``'module:name'`` of something with the signature of `process`; source and
        sink are paths.
    function, kwargs
        What that is given: ``'module:name'``, and keyword arguments bound to it.
    source, tiny, expected : str
        Names of the volume, of a tiny one, and of the result.
    suffix : str
        ``.npy`` or ``.zarr``: the format of both files.
    options : mapping
        Further arguments of `subject`.
    warm : mapping, optional
        Those for the tiny volume, over which it is called before each measurement: this starts
        pools of processes, imports and compiles.
    plan : str, optional
        ``'module:name'`` of something like `gpublocks.plan`, which tells the blocks.
    cut : str, optional
        ``'module:name'`` of something that returns the shape of a block; `subject` is given it as
        `block`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        subject: str,
        function: str,
        kwargs: Mapping[str, Any],
        source: str,
        tiny: str,
        expected: str,
        suffix: str,
        options: Mapping[str, Any],
        warm: Mapping[str, Any] | None,
        plan: str | None = None,
        cut: str | None = None,
    ) -> None:
        self._subject = load(subject)
        self._function = partial(load(function), **kwargs)
        self._source = folder / f"{source}{suffix}"
        self._tiny = folder / f"{tiny}{suffix}"
        self._sink = folder / f"{expected}.sink{suffix}"
        self._expected = np.load(folder / f"{expected}.npy", mmap_mode="r")
        self._options = dict(options)
        self._warm = warm
        self._plan = None if plan is None else load(plan)
        self._cut = None if cut is None else load(cut)
        self._blocks = {"blocks": 1.0, "over_read": 1.0}

    def prepare(self) -> None:
        """Make every voxel of the sink wrong, call the subject on a tiny volume, cut the large."""
        self._spoil()
        if self._warm is not None:
            self._call_tiny(self._warm)
        self._divide()

    def _call_tiny(self, options: Mapping[str, Any]) -> None:
        tiny_sink = self._sink.with_name(f"tiny{self._sink.suffix}")
        tiny = open_array(self._tiny)
        create_array(tiny_sink, tiny.shape, self._expected.dtype, chunk=min(tiny.shape) // 2)
        # So slow that every worker gets a block, and loads the function.
        function = partial(slowly, self._function)
        self._subject(function, str(self._tiny), str(tiny_sink), **options)

    def act(self) -> dict[str, float]:
        """Do it, timed until what it wrote is on the disk, as gpublocks has it in any case."""
        begun = time.perf_counter()
        self._subject(self._function, str(self._source), str(self._sink), **self._options)
        (sync_files if self._sink.is_dir() else sync_path)(str(self._sink))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, **self._blocks}

    def check(self) -> None:
        """Compare with the result over the whole volume.

        Raises
        ------
        ValueError
            If they differ.
        """
        result = np.asarray(open_array(self._sink)[...])
        wrong = int(np.count_nonzero(result != self._expected))
        if wrong:
            raise ValueError(f"{wrong} of {result.size} voxels differ from the whole-array result")

    def _spoil(self) -> None:
        if self._sink.suffix == ".npy" and self._sink.exists():
            sink = open_array(self._sink, write=True)
        else:
            sink = create_array(self._sink, self._expected.shape, self._expected.dtype)
        if isinstance(sink, np.memmap):
            np.invert(self._expected, out=sink)
            # What is written out later would slow the measurement.
            sink.flush()

    def _divide(self) -> None:
        """Find out in which blocks it will be done, where it is done in blocks."""
        shape = self._expected.shape
        if self._plan is not None:
            planned = self._plan(
                self._function, str(self._source), str(self._sink), **self._options
            )
            self._blocks = {"blocks": float(len(planned.grid)), "over_read": planned.over_read}
        elif self._cut is not None:
            block = self._cut(self._function, str(self._source), str(self._sink), **self._options)
            self._options["block"] = block
            counts = [-(-size // side) for size, side in zip(shape, block, strict=True)]
            voxels = read_voxels(shape, block, self._options["halo"])
            self._blocks = {"blocks": float(prod(counts)), "over_read": voxels / prod(shape)}


def planned_block(
    function: Any, source: Any, sink: Any, *, halo: Sequence[int], workers: int, **others: Any
) -> tuple[int, ...]:
    """Return the shape of the blocks that gpublocks chooses, without their halos.

    Rounded up to whole chunks of the sink, so that no two workers write into one.
    """
    from gpublocks.block_processing import plan

    counts = plan(function, source, sink, halo=halo, processes=workers, device="cpu").grid.counts
    opened = open_array(sink)
    units = getattr(opened, "chunks", (1,) * opened.ndim)
    sides = zip(opened.shape, counts, units, strict=True)
    return tuple(min(size, -(-size // count // unit) * unit) for size, count, unit in sides)


def read_voxels(shape: Sequence[int], block: Sequence[int], halo: Sequence[int]) -> int:
    """Return how many voxels blocks read with their halos, which end where the volume does.

    Examples
    --------
    >>> read_voxels((10,), (5,), (2,))
    14
    """
    total = 1
    for size, side, around in zip(shape, block, halo, strict=True):
        starts = range(0, size, side)
        total *= sum(min(size, start + side + around) - max(0, start - around) for start in starts)
    return total
