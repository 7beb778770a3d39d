"""What is measured: each program can be prepared, done and checked, over and over.

Touches files of one folder, and what the functions touch that it is told to call.
"""

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpublocks.bench.loading import load
from gpublocks.contracts import Array

__all__ = ["Interpreter", "Planning", "VolumeWork", "slowly"]

_TINY = 32
_SLOW_SECONDS = 0.03


class VolumeWork:
    """A function over a volume, in one of several ways.

    Parameters
    ----------
    folder : Path
        Holds the volumes.
    subject : str
        What is called: ``'module:name'`` of something with the signature of `process`.
    function, kwargs
        What that is given: ``'module:name'``, and keyword arguments bound to it.
    source, expected : str
        Names of the volume and of the result.
    options : mapping
        Further arguments of `subject`.
    in_memory : bool
        Whether source and sink are arrays in memory instead of memory maps.
    returns : bool
        Whether `subject` returns the result instead of writing it into a sink.
    warm : mapping, optional
        Arguments for a call on a tiny volume before each measurement: it starts a pool of
        processes, and keeps it from going idle while others are measured.
    predict : str, optional
        ``'module:name'`` of something like `plan`, which tells the peak of memory.
    """

    def __init__(
        self,
        folder: Path,
        *,
        subject: str,
        function: str,
        source: str,
        expected: str,
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        in_memory: bool = False,
        returns: bool = False,
        warm: Mapping[str, Any] | None = None,
        predict: str | None = None,
    ) -> None:
        self._subject = load(subject)
        self._function = partial(load(function), **kwargs) if kwargs else load(function)
        self._source_path = folder / f"{source}.npy"
        self._expected_path = folder / f"{expected}.npy"
        self._sink_path = folder / f"{expected}.sink.npy"
        self._options = dict(options)
        self._in_memory = in_memory
        self._returns = returns
        self._warm = warm
        self._warmed = False
        self._predict = None if predict is None else load(predict)
        self._source: Any = np.load(self._source_path) if in_memory else None
        self._sink: Any = None
        self._returned: Any = None

    def prepare(self) -> None:
        """Bring files and pool into the state in which every measurement begins."""
        self._returned = None
        if not self._warmed and not self._returns:
            self._spoil()
        if not self._in_memory:
            self._source = np.load(self._source_path, mmap_mode="r")
            self._sink = np.load(self._sink_path, mmap_mode="r+")
        if self._warm is not None:
            self._call_tiny(self._warm)
        self._warmed = True

    def act(self) -> dict[str, float]:
        """Do it, timed."""
        found = {}
        if self._predict is not None:
            plan = self._predict(self._function, self._source, self._sink, **self._options)
            found["predicted_bytes"] = float(plan.peak_bytes)
        begun = time.perf_counter()
        self._returned = self._subject(self._function, self._source, self._sink, **self._options)
        found["seconds"] = time.perf_counter() - begun
        if not self._in_memory:
            # What is written out later would slow another measurement.
            self._sink.flush()
        return found

    def check(self) -> None:
        """Compare with the result over the whole volume, bit for bit.

        Raises
        ------
        ValueError
            If they differ.
        """
        result = self._returned if self._returns else self._sink
        expected = np.load(self._expected_path, mmap_mode="r")
        if not np.array_equal(result, expected):
            wrong = int(np.count_nonzero(np.asarray(result) != expected))
            raise ValueError(
                f"{wrong} of {expected.size} voxels differ from the whole-array result"
            )

    def _spoil(self) -> None:
        """Make a sink in which every voxel is wrong, so that none can be forgotten."""
        expected = np.load(self._expected_path, mmap_mode="r")
        if self._in_memory:
            self._sink = np.empty(expected.shape, expected.dtype)
        else:
            # Programs in other processes may have the file open: it must not be truncated.
            mode: Literal["r+", "w+"] = "r+" if self._sink_path.exists() else "w+"
            self._sink = np.lib.format.open_memmap(
                self._sink_path, mode, dtype=expected.dtype, shape=expected.shape
            )
        for wrong, right in zip(self._sink, expected, strict=True):
            np.invert(right.view(np.uint8), out=wrong.view(np.uint8))
        if not self._in_memory:
            self._sink.flush()

    def _call_tiny(self, options: Mapping[str, Any]) -> None:
        corner = (slice(_TINY),) * self._source.ndim
        source = np.array(self._source[corner])
        sink = np.zeros(source.shape, self._sink.dtype)
        # The first time so slow that every worker gets a block, and loads the function.
        function = self._function if self._warmed else partial(slowly, self._function)
        self._subject(function, source, sink, **options)


def slowly(function: Callable[[Array], Array], image: Array) -> Array:
    """Wait a moment, then call the function."""
    time.sleep(_SLOW_SECONDS)
    return function(image)


class Planning:
    """Planning of many blocks: time, memory, and time of a walk over them.

    Parameters
    ----------
    folder : Path
    subject : str
        ``'module:name'`` of what is called.
    arguments : sequence
        Its positional arguments before `options`: ``'source'`` stands for the volume, a text with
        a colon for something to import.
    shape : sequence of int
        Shape of a volume that takes no memory.
    options : mapping
    blocks : int
        Number of blocks that must come of it.
    sequence : str, optional
        Attribute of the result that is the sequence of blocks, if not the result itself.
    taken : str
        Attribute that the walk takes of each block: where it lies.
    """

    def __init__(
        self,
        folder: Path,
        *,
        subject: str,
        arguments: Sequence[str],
        shape: Sequence[int],
        options: Mapping[str, Any],
        blocks: int,
        sequence: str | None = None,
        taken: str,
    ) -> None:
        source = np.broadcast_to(np.zeros((), np.uint8), tuple(shape))
        given = [source if text == "source" else load(text) for text in arguments]
        self._plan = partial(load(subject), *given, **options)
        self._blocks = blocks
        self._sequence = sequence
        self._taken = attrgetter(taken)
        self._found: Any = ()

    def prepare(self) -> None:
        """Plan once, which imports what is imported late, and drop the result."""
        self._plan()
        self._found = ()

    def act(self) -> dict[str, float]:
        """Plan, timed; plan again, tracing memory; walk."""
        begun = time.perf_counter()
        self._plan()
        seconds = time.perf_counter() - begun
        tracemalloc.start()
        result = self._plan()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self._found = result if self._sequence is None else getattr(result, self._sequence)
        begun = time.perf_counter()
        for block in self._found:
            self._taken(block)
        walking = time.perf_counter() - begun
        return {"seconds": seconds, "peak_bytes": float(peak), "walk_seconds": walking}

    def check(self) -> None:
        """Compare the number of blocks.

        Raises
        ------
        ValueError
            If it is another one.
        """
        if len(self._found) != self._blocks:
            raise ValueError(f"{len(self._found)} blocks instead of {self._blocks}")


class Interpreter:
    """Code in a fresh interpreter, which prints the seconds that it measured.

    Parameters
    ----------
    folder : Path
    code : str
        Prints a number at last.
    """

    def __init__(self, folder: Path, *, code: str) -> None:
        self._code = code

    def prepare(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def act(self) -> dict[str, float]:
        """Run it.

        Raises
        ------
        ValueError
            If it failed.
        """
        done = subprocess.run([sys.executable, "-c", self._code], capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stderr)
            raise ValueError(f"exit status {done.returncode}: {done.stderr.splitlines()[-1:]}")
        return {"seconds": float(json.loads(done.stdout.split()[-1]))}
