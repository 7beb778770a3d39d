"""gpublocks: run a function over an n-D image that does not fit in memory, block by block."""

from gpublocks import block_processing, errors, io
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
    GpublocksError,
    PlanError,
    RunCancelledError,
    SinkError,
    SourceError,
    WorkerDiedError,
)
from gpublocks.planning import Plan

__version__ = "0.1.0"

__all__ = [
    "ArgumentTypeError",
    "Block",
    "BlockError",
    "BudgetError",
    "DeviceError",
    "GpublocksError",
    "Plan",
    "PlanError",
    "RunCancelledError",
    "SinkError",
    "SourceError",
    "WorkerDiedError",
    "__version__",
    "block_axes",
    "block_processing",
    "block_sizes",
    "errors",
    "io",
    "plan",
    "process",
    "process_block_block",
    "process_block_source",
    "split_into_blocks",
]
