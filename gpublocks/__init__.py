"""gpublocks: run a function over an n-D image that does not fit in memory, block by block.

The names are imported when they are first used, so that ``import gpublocks`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks import block_processing, errors, filters, io
    from gpublocks.block_processing import (
        block_axes,
        block_sizes,
        plan,
        process,
        process_block_block,
        process_block_source,
        split_into_blocks,
    )
    from gpublocks.blocks import Block
    from gpublocks.errors import (
        ArgumentTypeError,
        BlockError,
        BudgetError,
        DeviceError,
        DeviceMemoryError,
        GpublocksError,
        PlanError,
        RunCancelledError,
        SinkError,
        SourceError,
        WorkerDiedError,
    )
    from gpublocks.planning import Plan
    from gpublocks.recorder import recording
    from gpublocks.report import Report

__version__ = "0.1.0"

__all__ = [
    "ArgumentTypeError",
    "Block",
    "BlockError",
    "BudgetError",
    "DeviceError",
    "DeviceMemoryError",
    "GpublocksError",
    "Plan",
    "PlanError",
    "Report",
    "RunCancelledError",
    "SinkError",
    "SourceError",
    "WorkerDiedError",
    "__version__",
    "block_axes",
    "block_processing",
    "block_sizes",
    "errors",
    "filters",
    "io",
    "plan",
    "process",
    "process_block_block",
    "process_block_source",
    "recording",
    "split_into_blocks",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("block_processing", "errors", "filters", "io"):
        return import_module(f"{__name__}.{name}")
    homes = {"Block": "blocks", "Plan": "planning", "Report": "report", "recording": "recorder"}
    home = homes.get(name, "errors" if name.endswith("Error") else "block_processing")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
