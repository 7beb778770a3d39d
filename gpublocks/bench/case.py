"""What a case of the benchmarks is: ways of doing a work, and figures to judge them by. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Case", "Figure", "Way"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number by which a case is judged.

    Parameters
    ----------
    label, unit : str
    bound : float or None
        The most that its median may be; None for one that is only told, as all those of peers are.
    way, quantity : str
        Which measurements it is made of.
    compare : {'value', 'ratio', 'difference'}
        Whether they are taken as they are, or with those of another way of the same round.
    against : tuple of str
        The other ways; of several, the one with the smallest median counts.
    against_quantity : str
    scale : float
        Is multiplied with everything: from seconds to `unit`.
    """

    label: str
    unit: str
    bound: float | None
    way: str
    quantity: str = "seconds"
    compare: Literal["value", "ratio", "difference"] = "value"
    against: tuple[str, ...] = ()
    against_quantity: str = "seconds"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing a work.

    Parameters
    ----------
    name : str
    program : str
        ``'module:name'`` of a class whose objects can be prepared, done and checked.
    options : mapping
        Its arguments; plain values.
    rival : str or None
        Kind of rivals of which only the best count.
    fresh : bool
        Whether each measurement needs a new process, which is watched.
    imports : tuple of str
        Modules that such a process may have imported before.
    may_fail : bool
        Whether the others are measured even if it fails, or if there is no time for it.
    apart : bool
        Whether memory is sampled in a first call, which is not timed: sampling takes a third of a
        processor.
    """

    name: str
    program: str
    options: Mapping[str, Any]
    rival: str | None = None
    fresh: bool = False
    imports: tuple[str, ...] = ()
    may_fail: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """Something that is measured.

    Parameters
    ----------
    name : str
    measures : str
        What, in words.
    parameters : mapping
        Sizes, for people to read.
    reference : str
        How that with which it is compared is computed.
    ways : tuple of Way
    figures : tuple of Figure
    rounds : int
        How often each way is measured, after a warm-up.
    setup : Way or None
        Is done once before.
    group : {'promises', 'peers', 'scaling'}
        Whether its figures are judged by bounds, its ways are compared, or a model is fitted.
    needs : tuple of str
        Modules without which it cannot be measured.
    """

    name: str
    measures: str
    parameters: Mapping[str, Any]
    reference: str
    ways: tuple[Way, ...]
    figures: tuple[Figure, ...]
    rounds: int
    setup: Way | None = None
    group: Literal["promises", "peers", "scaling"] = "promises"
    needs: tuple[str, ...] = ()
