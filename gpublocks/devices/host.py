"""The host as a device: its CPUs, one lane each. Touches nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["HostDevice"]


@dataclass(frozen=True, slots=True)
class HostDevice:
    """CPUs that compute in host memory.

    A lane loads, computes and stores its own cell: handing blocks from thread to thread costs
    more than it hides, since a block then leaves the cache of the core that loaded it.

    Parameters
    ----------
    lanes : int
        Cells in flight at once.
    """

    lanes: int
    name: str = "cpu"

    def compute(self, function: Callable[[], Any]) -> Any:
        """Call a function in the current thread."""
        return function()
