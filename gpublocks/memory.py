"""Peak of the memory that all processes of a tree take together. Touches /proc, reads only."""

import os
import threading
import time
from types import TracebackType

__all__ = ["Peak", "tree", "tree_bytes"]

_COUNTED = ("Pss_Anon:", "Pss_Shmem:")
_KNOWN = "/proc/thread-self/children"
"""Is there if the kernel tells the children of a thread (CONFIG_PROC_CHILDREN, proc(5))."""


class Peak:
    """Samples a tree of processes while a with block lasts.

    Counted is the anonymous and the shared memory (proportional: a page that n processes share
    counts once), not that of mapped files, which the kernel takes back when it needs it.

    Parameters
    ----------
    root : int
        Process whose descendants count too.
    seconds : float
        From one sample to the next.
    share : float
        Most of the time that samples may take: fewer are taken where they take long.

    Attributes
    ----------
    samples : int
        How many were taken.
    """

    def __init__(self, root: int, seconds: float = 0.01, share: float = 1.0) -> None:
        self._root = root
        self._seconds, self._share = seconds, share
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._before = 0
        self._largest = 0
        self.samples = 0

    @property
    def bytes(self) -> int:
        """The largest sample, less what the tree took at the beginning."""
        return self._largest - self._before

    def __enter__(self) -> "Peak":
        self._before = self._largest = tree_bytes(self._root)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._enough.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._enough.is_set():
            begun = time.perf_counter()
            self._largest = max(self._largest, tree_bytes(self._root))
            self.samples += 1
            taken = time.perf_counter() - begun
            self._enough.wait(max(0.001, self._seconds - taken, taken / self._share - taken))


def tree_bytes(root: int) -> int:
    """Return the anonymous and shared bytes of a process and all its descendants."""
    return sum(_process_bytes(pid) for pid in tree(root))


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children = _children if os.path.exists(_KNOWN) else _all_children().get
    found = [root]
    for pid in found:
        found += children(pid) or []
    return found


def _children(pid: int) -> list[int]:
    """Return the processes that a process started, as the kernel tells."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(n) for thread in threads for n in _text(f"{pid}/task/{thread}", "children").split()]


def _all_children() -> dict[int, list[int]]:
    """Return what each process started, for kernels that are built without `_KNOWN`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(_parent(name), []).append(int(name))
    return children


def _parent(pid: str) -> int:
    # The name in parentheses may itself hold blanks and parentheses: the last one counts.
    text = _text(pid, "stat").rpartition(b")")[2].split()
    return int(text[1]) if len(text) > 1 else 0


def _process_bytes(pid: int) -> int:
    fields = [line.split() for line in _text(str(pid), "smaps_rollup").decode().splitlines()]
    return sum(int(words[1]) * 1024 for words in fields if words[0] in _COUNTED)


def _text(pid: str, name: str) -> bytes:
    """Return a file of a process; nothing if it has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
