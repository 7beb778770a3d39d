"""Sorting networks over rows of voxels. Pure.

A comparison takes up whole rows, which compilers turn into vector instructions; all rows that a
network works on lie in the caches nearest to the core.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled
from gpublocks.filters.engines.networks import COPY, EXCHANGE, LEAST, MOST, Network

__all__ = ["Stretches", "longest_row", "rank_rows"]

_ROW_BYTES = 2048
"""Bytes of a row. Measured: for rows of 512 bytes, half of the time is finding out what to do."""

_LEAST_BYTES = 512
_CACHED_BYTES = 2**19
"""What the rows of a network may take before they are made shorter: half a level-2 cache."""
_VECTOR_BYTES = 64


@dataclass(frozen=True, slots=True)
class Stretches:
    """Voxels that follow each other in memory: rows of a piece, with what lies around it.

    Attributes
    ----------
    starts : ndarray of int64
        Where stretches begin in memory.
    targets : ndarray of int64
        Where their results begin.
    rows, width : int
        Rows of a stretch, and their voxels.
    kept : int
        Voxels of a row whose results are wanted.
    step : int
        From a row to the next one in the result.
    """

    starts: Any
    targets: Any
    rows: int
    width: int
    kept: int
    step: int


def longest_row(network: Network, itemsize: int) -> int:
    """Return the voxels of a row of a network, at most.

    The last ones, over its `span`, are looked at only.
    """
    fitting = _CACHED_BYTES // network.rows // _VECTOR_BYTES * _VECTOR_BYTES
    row_bytes = min(max(fitting, _LEAST_BYTES), _ROW_BYTES)
    spanned = -(-network.span * itemsize // _VECTOR_BYTES) * _VECTOR_BYTES
    return max(row_bytes, spanned + _VECTOR_BYTES) // itemsize


def rank_rows(
    memory: Any, size: int, offsets: Any, stretches: Stretches, network: Network, result: Any
) -> None:
    """Find the ranks of voxels that follow each other in memory.

    Parameters
    ----------
    memory : ndarray of unsigned integers, 1-d
        `size` voxels, and room for the rows of the network, for two more and for one of a piece.
    size : int
    offsets : ndarray of int64
        Where the rows of inputs begin, from a voxel of the result on.
    stretches : Stretches
    network : Network
    result : ndarray of the same type, 1-d
    """
    span = network.span
    length = stretches.rows * stretches.width
    parts = -(-length // (longest_row(network, memory.itemsize) - span))
    vector = _VECTOR_BYTES // memory.itemsize
    n = -(-(-(-length // parts) + span) // vector) * vector
    # Vectors that lie across two lines of the cache are read and written half as fast.
    aligned = size + -(memory.ctypes.data // memory.itemsize + size) % vector
    _rank_stretches(
        memory,
        np.concatenate([offsets, aligned + n * np.arange(network.rows - network.inputs)]),
        len(offsets),
        network.operations,
        network.result,
        n,
        n - span,
        stretches.starts,
        stretches.targets,
        length,
        stretches.width,
        stretches.kept,
        stretches.step,
        result,
    )


@compiled
def _rank_stretches(
    memory: Any,
    places: Any,
    inputs: int,
    operations: Any,
    found: int,
    n: int,
    valid: int,
    starts: Any,
    targets: Any,
    length: int,
    width: int,
    kept: int,
    step: int,
    result: Any,
) -> None:
    row = memory[places[found] : places[found] + n]
    for o in range(len(starts)):
        for begin in range(0, length, valid):
            _operate(memory, places, inputs, starts[o] + begin, operations, n)
            end = min(begin + valid, length)
            at = begin
            while at < end:
                y, x = at // width, at % width
                count = min(width - x, end - at)
                voxels = row[at - begin : at - begin + count]
                first = targets[o] + y * step + x
                wanted = min(count, kept - x)
                target = result[first : first + max(wanted, 0)]
                for i in range(len(target)):
                    target[i] = voxels[i]
                at += count


@compiled
def _operate(memory: Any, places: Any, inputs: int, first: int, operations: Any, n: int) -> None:
    for q in range(len(operations)):
        kind = operations[q, 0]
        one = operations[q, 1]
        at = places[one] + operations[q, 2] + (first if one < inputs else 0)
        a = memory[at : at + n]
        other = operations[q, 3]
        at = places[other] + operations[q, 4] + (first if other < inputs else 0)
        b = memory[at : at + n]
        at = places[operations[q, 5]]
        c = memory[at : at + n]
        # Compilers need to see whether rows are written that are read.
        inplace = one == operations[q, 5]
        if kind == EXCHANGE and inplace:
            for i in range(n):
                x, y = a[i], b[i]
                a[i] = min(x, y)
                b[i] = max(x, y)
        elif kind == EXCHANGE:
            at = places[operations[q, 6]]
            d = memory[at : at + n]
            for i in range(n):
                x, y = a[i], b[i]
                c[i] = min(x, y)
                d[i] = max(x, y)
        elif kind == LEAST and inplace:
            for i in range(n):
                a[i] = min(a[i], b[i])
        elif kind == LEAST:
            for i in range(n):
                c[i] = min(a[i], b[i])
        elif kind == MOST and inplace:
            for i in range(n):
                a[i] = max(a[i], b[i])
        elif kind == MOST:
            for i in range(n):
                c[i] = max(a[i], b[i])
        elif kind == COPY:
            for i in range(n):
                c[i] = a[i]
        else:
            for i in range(n):
                c[i] = min(c[i], max(a[i], b[i]))
