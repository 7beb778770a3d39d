"""How the ways of a case compare: with gpublocks, and with what is possible at best. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gpublocks.bench.contests import OURS, WHOLE

__all__ = ["Standing", "ideal_seconds", "standings"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a way did.

    Parameters
    ----------
    way : str
    seconds, low, high : float
        Median over all rounds, the smallest and the largest.
    ratio : float or None
        Median over the rounds of its time in units of that of gpublocks in the same round; None
        if that was not measured.
    ratios : tuple of float
        These of all rounds.
    cpu_seconds, peak_bytes : float or None
        Of all processes, the latter beyond what they took before; None where the system does not
        tell.
    blocks : int
    over_read : float
        Voxels read for each voxel.
    block_seconds : float or None
        Overhead for each block: what the workers took together beyond the whole array in one
        thread. Negative where several of them use caches that one does not.
    efficiency : float or None
        `ideal_seconds` in units of its time.
    """

    way: str
    seconds: float
    low: float
    high: float
    ratio: float | None
    ratios: tuple[float, ...]
    cpu_seconds: float | None
    peak_bytes: float | None
    blocks: int
    over_read: float
    block_seconds: float | None
    efficiency: float | None


def standings(result: Mapping[str, Any], floors: Mapping[str, float]) -> list[Standing]:
    """Return how the ways of a case did, the fastest first.

    Parameters
    ----------
    result : mapping
        What `gpublocks.bench.measure` returned for a case of the group 'peers'.
    floors : mapping
        What `gpublocks.bench.floors.Floors` found in the same run.
    """
    raw = result["raw"]
    ours = raw.get(OURS, {}).get("seconds")
    ideal = ideal_seconds(result, floors)
    found = [_standing(way, measured, ours, ideal, result) for way, measured in raw.items()]
    return sorted(found, key=lambda standing: standing.seconds)


def ideal_seconds(result: Mapping[str, Any], floors: Mapping[str, float]) -> float | None:
    """Return the longest of the times that no run over blocks is expected to beat.

    * A part of the whole array's time for each worker. Where files are compressed that
      one is decoded and encoded by another library: there it is a measure rather than a bound.
    * That of moving each voxel once out of memory and once into it.
    * That of writing what is not compressed to the disk.

    None if the whole array was not measured.
    """
    whole = result["raw"].get(WHOLE, {}).get("seconds")
    if not whole:
        return None
    parameters, copied = result["parameters"], floors.get("copied_per_second")
    # What is copied is moved twice: out of memory, and into it.
    moving = parameters["moved_bytes"] / (2 * copied) if copied else 0.0
    written = floors.get("written_per_second")
    writing = parameters.get("written_bytes", 0) / written if written else 0.0
    ideal: float = max(median(whole) / parameters["workers"], moving, writing)
    return ideal


def _standing(
    way: str,
    measured: Mapping[str, Sequence[float]],
    ours: Sequence[float] | None,
    ideal: float | None,
    result: Mapping[str, Any],
) -> Standing:
    seconds = measured["seconds"]
    middle = median(seconds)
    blocks = max(1, round(median(measured["blocks"])))
    whole = result["raw"].get(WHOLE, {}).get("seconds")
    workers = 1 if way == WHOLE else result["parameters"]["workers"]
    ratios = tuple(a / b for a, b in zip(seconds, ours or (), strict=False))
    return Standing(
        way=way,
        seconds=middle,
        low=min(seconds),
        high=max(seconds),
        ratio=median(ratios) if ratios else None,
        ratios=ratios,
        cpu_seconds=_median(measured, "cpu_seconds"),
        peak_bytes=_median(measured, "peak_bytes"),
        blocks=blocks,
        over_read=median(measured["over_read"]),
        block_seconds=(middle * workers - median(whole)) / blocks if whole else None,
        efficiency=ideal / middle if ideal is not None else None,
    )


def _median(measured: Mapping[str, Sequence[float]], quantity: str) -> float | None:
    values = measured.get(quantity)
    return median(values) if values else None
