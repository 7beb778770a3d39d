"""What a tree of processes takes: memory and time of processors. Touches /proc, reads only."""

import os
import sys
from contextlib import ExitStack

from gpublocks.memory import Peak, tree

__all__ = ["Effort", "tree_seconds"]

_TIMES = slice(11, 15)
"""Of what follows the name in /proc/PID/stat: user and system time, of a process and of its ended
children."""


class Effort:
    """Watches a process and its descendants while a with block lasts.

    Parameters
    ----------
    root : int
        Process whose descendants count too.
    memory : bool
        Whether memory is sampled, which takes time.

    Attributes
    ----------
    found : dict of str to float
        At the end ``peak_bytes`` (see `gpublocks.memory.Peak`) and ``cpu_seconds``, where the
        system tells.
    """

    def __init__(self, root: int, *, memory: bool = True) -> None:
        self._root = root
        self._peak = Peak(root) if memory else None
        self._before = 0.0
        self._stack = ExitStack()
        self.found: dict[str, float] = {}

    def __enter__(self) -> "Effort":
        if sys.platform == "linux":
            if self._peak is not None:
                self._stack.enter_context(self._peak)
            self._before = tree_seconds(self._root)
        return self

    def __exit__(self, *exception: object) -> None:
        if sys.platform == "linux":
            self.found["cpu_seconds"] = tree_seconds(self._root) - self._before
            self._stack.close()
            if self._peak is not None:
                self.found["peak_bytes"] = float(self._peak.bytes)


def tree_seconds(root: int) -> float:
    """Return the seconds of processors that a process and its descendants took, ended ones too."""
    ticks = sum(_ticks(pid) for pid in tree(root))
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may itself hold blanks and parentheses: the last one counts.
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(map(int, words[_TIMES]))
