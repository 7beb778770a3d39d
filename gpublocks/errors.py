"""Every error that gpublocks raises on purpose. Pure.

Each one also derives from the builtin that a stranger would catch::

    GpublocksError
    ├── PlanError (ValueError)               sizes, overlaps, axes that cannot be split
    │   └── BudgetError (MemoryError)        a memory limit that cannot be kept
    ├── ArgumentTypeError (TypeError)        a value of the wrong kind
    ├── SourceError (OSError, ValueError)    something that cannot be read
    ├── SinkError (OSError, ValueError)      something that cannot be written
    ├── DeviceError (RuntimeError)           a device that is missing or unusable
    │   └── DeviceMemoryError (MemoryError)  ... or has no memory left for a block
    ├── BlockError (RuntimeError)            one block failed
    │   └── WorkerDiedError                  ... and took its worker process along
    └── RunCancelledError (CancelledError)   somebody cancelled the run
"""

from concurrent.futures import CancelledError

__all__ = [
    "ArgumentTypeError",
    "BlockError",
    "BudgetError",
    "DeviceError",
    "DeviceMemoryError",
    "GpublocksError",
    "PlanError",
    "RunCancelledError",
    "SinkError",
    "SourceError",
    "WorkerDiedError",
    "chain_of",
    "line_of",
    "text_of",
]


class GpublocksError(Exception):
    """Base of all errors raised on purpose by gpublocks."""


class PlanError(GpublocksError, ValueError):
    """The volume cannot be split or processed as asked."""


class BudgetError(PlanError, MemoryError):
    """A memory limit cannot be kept."""


class ArgumentTypeError(GpublocksError, TypeError):
    """An argument is of the wrong kind."""


class SourceError(GpublocksError, OSError, ValueError):
    """A source cannot be opened or read."""


class SinkError(GpublocksError, OSError, ValueError):
    """A sink cannot be created or written."""


class DeviceError(GpublocksError, RuntimeError):
    """A device was asked for that is missing or unusable."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device has no memory left for a block, in however small parts."""


class BlockError(GpublocksError, RuntimeError):
    """One block failed.

    Attributes
    ----------
    block : int or None
        Number of the block in the order of the grid.
    stage : str or None
        ``'load'``, ``'compute'`` or ``'store'``.
    """

    def __init__(self, message: str, block: int | None = None, stage: str | None = None) -> None:
        super().__init__(message)
        self.block = block
        self.stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.block, self.stage)


class WorkerDiedError(BlockError):
    """A block killed the worker process that computed it, on every try."""


class RunCancelledError(GpublocksError, CancelledError):
    """The run was cancelled before it was complete."""


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an error and all that it was raised from or after."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and all(one is not other for other in found):
            found.append(one)
            waiting += one.__cause__, one.__context__
    return found


def text_of(error: BaseException) -> str:
    """Return what an error says; nothing if its class cannot tell."""
    try:
        return str(error)
    except Exception:
        return ""


def line_of(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    return text_of(error).strip().partition("\n")[0] or type(error).__name__
