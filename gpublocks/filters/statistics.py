"""Numbers of a whole volume: extremes, histograms, percentiles. Touches what `process` does.

A volume is read block by block, and nothing is kept of a block but its counts, so that memory does
not grow with the volume. Counts are whole numbers: the result does not depend on the blocks, nor on
the order in which they are done, nor on who does them.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.engines.block_counts import BITS, BinCounts, KeyCounts, Keys
from gpublocks.filters.parameters import number
from gpublocks.filters.passes import Counts, Volume

__all__ = ["histogram", "minmax", "percentiles"]


def minmax(source: Any, **options: Any) -> tuple[Any, Any]:
    """Return the least and the greatest voxel of a volume.

    Parameters
    ----------
    source : array_like, path or Source
    **options
        Of `gpublocks.process`: ``memory``, ``processes``, ``device``, ``mask``, ``progress``, and
        what says how the volume is split. Voxels outside of a mask do not count; along an axis of
        n voxels each of its m covers ``ceil(n / m)``.

    Returns
    -------
    low, high : int, float or bool
        Voxels that are no numbers are left out; without any other both are NaN.

    Raises
    ------
    PlanError
        If there are no voxels, or the mask does not fit them.
    ArgumentTypeError
        If they are no real numbers, or an option is none of those above.

    Examples
    --------
    >>> minmax(np.arange(10, dtype=np.uint8).reshape(2, 5))
    (0, 9)
    """
    low, high = Volume.of("minmax", source, options).extremes() or (np.float64(np.nan),) * 2
    return low.item(), high.item()


def histogram(
    source: Any,
    bins: int | Sequence[float] | None = None,
    range: tuple[float, float] | None = None,  # as numpy.histogram has it
    **options: Any,
) -> tuple[Counts, npt.NDArray[Any]]:
    """Return how many voxels of a volume lie in each bin, as `numpy.histogram`.

    Parameters
    ----------
    source : array_like, path or Source
    bins : int or sequence of float, optional
        Number of bins of equal width, or their edges. By default there is a bin for each value of
        truth values and integers of 8 and 16 bits, and 256 bins for others.
    range : (float, float), optional
        Lower end of the first bin and upper end of the last one, which belongs to it. By default
        the least and the greatest voxel, which take a pass of their own for voxels of more than 16
        bits; 0 and 1 where no voxel counts.
    **options
        As for `minmax`.

    Returns
    -------
    counts : ndarray of int64
    edges : ndarray
        One more than bins. Those of equal width are of the type that NumPy 2 chooses, which is
        float32 for voxels of float32, and here for float16 too. Voxels beyond them, and those that
        are no numbers, do not count.

    Raises
    ------
    PlanError, ArgumentTypeError
        As for `minmax`; if `bins` and `range` make no bins, or bins so narrow that two edges are
        the same; if voxels are infinite and `range` is not given.

    Examples
    --------
    >>> counts, edges = histogram(np.array([0, 1, 1, 200], np.uint8))
    >>> counts[:3].tolist(), int(counts[200]), len(edges)
    ([1, 2, 0], 1, 257)
    """
    volume = Volume.of("histogram", source, options)
    dtype = volume.dtype
    even = bins is None or isinstance(bins, Integral)
    wanted = 256 if bins is None else int(bins) if isinstance(bins, Integral) else bins
    _edges(dtype, wanted, range)
    keys = Keys.of(dtype)
    if keys.bits > BITS:
        extremes = volume.extremes() if even and range is None else None
        edges = _edges(dtype, wanted, extremes if range is None else range)
        return volume.counts(BinCounts(edges, even))[0], edges
    counts = volume.counts(KeyCounts(keys, (0,), 0))[0]
    if bins is None and range is None and dtype.kind != "f":
        least = 0 if dtype.kind == "b" else np.iinfo(dtype).min
        many = 2 if dtype.kind == "b" else len(counts)
        return counts[:many], np.arange(least, least + many + 1)
    found = np.flatnonzero(counts)
    values = keys.values(found).astype(_computed(dtype))
    extremes = (values.min(), values.max()) if len(values) else None
    edges = _edges(dtype, wanted, extremes if range is None else range)
    return np.histogram(values, edges, weights=counts[found])[0], edges


def percentiles(source: Any, q: float | Sequence[float], **options: Any) -> Any:
    """Return percentiles of all voxels of a volume, exactly, as `numpy.percentile` does.

    Parameters
    ----------
    source : array_like, path or Source
    q : float or sequence of float
        Percentages, from 0 to 100.
    **options
        As for `minmax`.

    Returns
    -------
    float or list of float
        Like `q`. Between two voxels it is interpolated; voxels that are no numbers are left out,
        and without any other the result is NaN.

    Raises
    ------
    PlanError, ArgumentTypeError
        As for `minmax`; if `q` is no percentage.

    Notes
    -----
    Voxels are counted by sixteen bits of a key that sorts as they do, the highest ones first; then,
    where there are more, by the next bits of those that share the bits found: volumes of 8 and 16
    bits are read once, of 32 bits twice, of 64 bits four times (a radix selection).

    Examples
    --------
    >>> percentiles(np.arange(101, dtype=np.float32), [0, 50, 99.5])
    [0.0, 50.0, 99.5]
    """
    listed = isinstance(q, Sequence | np.ndarray) and not isinstance(q, str)
    wanted = [number("q", item, least=0, most=100) for item in (q if listed else [q])]  # type: ignore[union-attr]
    found = _selected(Volume.of("percentiles", source, options), wanted)
    return found if listed else found[0]


def _computed(dtype: DType) -> DType:
    """Return the type in which voxels are put into bins; NumPy has none for truth values."""
    shown = {"?": np.uint8, "e": np.float32}.get(dtype.char, dtype)
    return np.dtype(shown).newbyteorder("=")


def _edges(dtype: DType, bins: Any, limits: Any) -> npt.NDArray[Any]:
    """Return edges of bins for voxels of some type.

    Raises
    ------
    PlanError, ArgumentTypeError
        If there are none.
    """
    if isinstance(bins, str):
        raise ArgumentTypeError(
            f"bins is {bins!r}; give a number of bins or their edges: rules that choose the number "
            "need all voxels in memory (use numpy.histogram_bin_edges on a part of them)"
        )
    told = f"bins={bins!r} and range={limits!r} make no bins"
    try:
        if limits is not None and dtype.kind in "iub":
            limits = [float(limit) for limit in limits]
        with np.errstate(over="ignore", invalid="ignore"):
            edges = np.histogram_bin_edges(np.empty(0, _computed(dtype)), bins, limits)
    except (ValueError, TypeError) as error:
        raise PlanError(f"{told}: {error}") from None
    if edges.dtype.kind not in "iuf" or len(edges) < 2 or np.isnan(edges).any():
        raise PlanError(f"{told}: give at least two edges that are real numbers")
    if isinstance(bins, int) and not (np.isfinite(edges).all() and (edges[1:] > edges[:-1]).all()):
        raise PlanError(f"{told} that {edges.dtype} can tell apart; give fewer, or a wider range")
    return edges


def _selected(volume: Volume, q: list[float]) -> list[float]:
    """Return percentiles by radix selection."""
    keys = Keys.of(volume.dtype)
    shifts = [max(0, shift) for shift in range(keys.bits - BITS, -1, -BITS)] or [0]
    total, places = 0, np.empty(0)
    targets: list[tuple[int, int]] = []
    for shift in shifts:
        prefixes = tuple(sorted({prefix for prefix, _ in targets})) or (0,)
        counts = volume.counts(KeyCounts(keys, prefixes, shift))
        if not targets:
            total = int(counts.sum())
            if not total:
                return [float("nan")] * len(q)
            places = np.asarray(q) / 100 * (total - 1)
            ranks = [int(place) for place in places]
            targets = [(0, min(rank + more, total - 1)) for rank in ranks for more in (0, 1)]
        targets = [_next(prefixes, counts, *target) for target in targets]
    values = keys.values([prefix for prefix, _ in targets]).astype(float).tolist()
    pairs = zip(values[::2], values[1::2], (places % 1).tolist(), strict=True)
    return [_between(low, high, part) for low, high, part in pairs]


def _next(prefixes: tuple[int, ...], counts: Counts, prefix: int, rank: int) -> tuple[int, int]:
    """Return sixteen more bits of the voxel of some rank, and its rank among these."""
    upto = counts[prefixes.index(prefix)].cumsum()
    low = int(np.searchsorted(upto, rank, side="right"))
    return prefix << BITS | low, rank - int(upto[low - 1] if low else 0)


def _between(low: float, high: float, part: float) -> float:
    """Interpolate as NumPy does (``numpy.lib._function_base_impl._lerp``)."""
    if low == high or not part:
        return low
    with np.errstate(invalid="ignore"):
        return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
