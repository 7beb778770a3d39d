"""Names of files that hold one plane each: ``img_Z<Z,4>.tif``, ``*.tif``. Touches folders."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from itertools import product
from math import prod

from gpublocks.errors import SinkError, SourceError
from gpublocks.geometry import Region

__all__ = ["Numbering", "find_planes", "has_placeholder", "is_pattern", "planes_of"]

_PLACEHOLDER = re.compile(r"<([A-Za-z]\w*)(?:,\s*([1-9]\d?))?>", re.ASCII)


@dataclass(frozen=True, slots=True)
class Numbering:
    """The names of numbered files.

    Parameters
    ----------
    template : str
        A path with placeholders ``<name,digits>``, or ``<name>`` for numbers without zeros before
        them. One that stands in it twice is the same number.
    start : tuple of int
        The first number of each placeholder.
    counts : tuple of int
        How many numbers of each there are.

    Attributes
    ----------
    names : tuple of str
        The placeholders in order of appearance.

    Examples
    --------
    >>> Numbering("Z<Z,4>.tif", (1,), (20,)).path((19,))
    'Z0020.tif'
    """

    template: str
    start: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys(match[1] for match in _PLACEHOLDER.finditer(self.template))
        object.__setattr__(self, "names", tuple(names))

    def path(self, index: Sequence[int]) -> str:
        """Return the name of a file by its place along each axis."""
        number = {
            name: first + i for name, first, i in zip(self.names, self.start, index, strict=True)
        }
        return _PLACEHOLDER.sub(lambda m: f"{number[m[1]]:0{m[2] or 1}d}", self.template)

    def paths(self) -> list[str]:
        """Return the names of all files, the last placeholder running fastest."""
        return [self.path(index) for index in product(*map(range, self.counts))]

    def first(self, counts: Sequence[int]) -> "Numbering":
        """Return the names of so many files along each axis, counted from 0.

        Raises
        ------
        SinkError
            If the placeholders have not enough digits for them.
        """
        for match in _PLACEHOLDER.finditer(self.template):
            name, digits, count = match[1], match[2], counts[self.names.index(match[1])]
            needed = len(str(max(count - 1, 0)))
            if digits and needed > int(digits):
                raise SinkError(
                    f"{self.template} has {digits} digits for {count} files; "
                    f"write <{name},{needed}>"
                )
        return replace(self, start=(0,) * len(self.names), counts=tuple(counts))

    def holds(self, path: str) -> bool:
        """Tell whether a path is one of these names, with any number."""
        return _named(self.template)[1].fullmatch(path) is not None


def is_pattern(location: str) -> bool:
    """Tell whether a path names several files: it has placeholders or wildcards, and is none."""
    named = _PLACEHOLDER.search(location) or any(sign in location for sign in "*?")
    return bool(named) and "\0" not in location and not os.path.lexists(location)


def has_placeholder(location: str) -> bool:
    """Tell whether a path has a placeholder such as ``<Z,4>``."""
    return _PLACEHOLDER.search(location) is not None


def planes_of(region: Region, count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the places of a region along its first axes, in the array and in the region.

    Examples
    --------
    >>> list(planes_of(Region((3, 5), (5, 9)), 1))
    [((3,), (0,)), ((4,), (1,))]
    """
    start = region.start[:count]
    for place in product(*map(range, region.shape[:count])):
        yield tuple([i + first for i, first in zip(place, start, strict=True)]), place


def find_planes(location: str) -> tuple[list[str], tuple[int, ...]]:
    """Return the files of a pattern in order, and how many there are along each axis.

    Parameters
    ----------
    location : str
        A path with placeholders, each of which makes an axis; or one with ``*`` and ``?``, whose
        files are one axis, sorted by the numbers in their names. Brackets stand for themselves.

    Raises
    ------
    SourceError
        If there is no such file, or one is missing between others; it is named.
    """
    if not has_placeholder(location):
        files = sorted(glob(location.replace("[", "[[]")), key=_natural)
        if not files:
            raise SourceError(f"no files match {location!r}")
        return files, (len(files),)
    found = _numbers(location)
    if not found:
        raise SourceError(f"no files match {location!r}; a placeholder such as <Z,4> is 4 digits")
    ends = [(min(numbers), max(numbers)) for numbers in zip(*found, strict=True)]
    counts = tuple([last - first + 1 for first, last in ends])
    complete = Numbering(location, tuple([first for first, _ in ends]), counts)
    missing = prod(counts) - len(found)
    if missing:
        there = set(found)
        every = product(*[range(first, last + 1) for first, last in ends])
        first = next(numbers for numbers in every if numbers not in there)
        absent = complete.path([n - lo for n, (lo, _) in zip(first, ends, strict=True)])
        raise SourceError(
            f"{missing} of {prod(counts)} planes of {location!r} are missing, first {absent}"
        )
    return complete.paths(), counts


def _numbers(location: str) -> set[tuple[int, ...]]:
    """Return the numbers of each file that a path with placeholders may name."""
    wild, named = _named(location)
    matches = [named.fullmatch(path) for path in glob(wild)]
    return {tuple([int(m[name]) for name in Numbering(location).names]) for m in matches if m}


def _named(location: str) -> tuple[str, re.Pattern[str]]:
    """Return the wildcards, and the exact expression, for what a path with placeholders names."""
    wild, exact, end = "", "", 0
    seen: set[str] = set()
    for match in _PLACEHOLDER.finditer(location):
        name, digits = match[1], match[2]
        between = location[end : match.start()]
        number = rf"\d{{{digits}}}" if digits else r"(?:0|[1-9]\d*)"
        wild += _literal(between) + ("[0-9]" * int(digits) if digits else "*")
        exact += re.escape(between)
        exact += f"(?P={name})" if name in seen else f"(?P<{name}>{number})"
        seen.add(name)
        end = match.end()
    exact += re.escape(location[end:])
    return wild + _literal(location[end:]), re.compile(exact, re.ASCII)


def _literal(text: str) -> str:
    """Return wildcards that match a text only."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _natural(path: str) -> tuple[list[str | int], str]:
    """Return a key by which ``img2`` comes before ``img10``."""
    parts = re.split(r"([0-9]+)", path)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], path
