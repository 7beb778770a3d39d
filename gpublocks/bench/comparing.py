"""What got faster or slower from one set of results to another. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from gpublocks.bench.contests import OURS
from gpublocks.bench.tables import Table, number

__all__ = ["THRESHOLD", "Change", "change_tables", "changes", "slower"]

THRESHOLD = 1.1
"""Ratio from which on a figure is told as slower, if its spread does not explain it."""

Kind = Literal["slower", "faster", "same"]


@dataclass(frozen=True, slots=True)
class Change:
    """How a figure changed.

    Parameters
    ----------
    case, label, unit : str
    before, after : tuple of float
        Median, smallest and largest.
    ratio : float
        Median after, in units of that before.
    kind : {'slower', 'faster', 'same'}
        Which, beyond the threshold and the spread of both: ranges that touch are the same.
    ours : bool
        Whether it is gpublocks' own, rather than of something that it is compared with.
    """

    case: str
    label: str
    unit: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    ratio: float
    kind: Kind
    ours: bool


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], *, threshold: float = THRESHOLD
) -> list[Change]:
    """Return how all figures changed that both results have; of all, less is better.

    Parameters
    ----------
    before, after : mapping
        What `gpublocks.bench.run` returned.
    threshold : float
        More than 1.
    """
    known = dict(_figures(before))
    found = []
    for key, figure in _figures(after):
        if key not in known or not known[key]["median"] > 0:
            continue
        old, new = _range(known[key]), _range(figure)
        ratio = new[0] / old[0]
        case, label = key
        found.append(
            Change(
                case=case,
                label=label,
                unit=figure["unit"],
                before=old,
                after=new,
                ratio=ratio,
                kind=_kind(old, new, ratio, threshold),
                ours=figure["ours"],
            )
        )
    return found


def _range(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    return figure["median"], figure["low"], figure["high"]


def _kind(old: tuple[float, ...], new: tuple[float, ...], ratio: float, threshold: float) -> Kind:
    if ratio > threshold and new[1] > old[2]:
        return "slower"
    if ratio < 1 / threshold and new[2] < old[1]:
        return "faster"
    return "same"


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for case in results["cases"]:
        for figure in case.get("figures", ()):
            # A ratio to a peer also grows where the peer got faster.
            own = figure["label"].startswith(OURS) and " / " not in figure["label"]
            ours = case.get("group") != "peers" or own
            yield (case["name"], figure["label"]), {**figure, "ours": ours}


def slower(found: list[Change]) -> list[Change]:
    """Return what of gpublocks' own got slower."""
    return [change for change in found if change.ours and change.kind == "slower"]


def change_tables(
    before: Mapping[str, Any], after: Mapping[str, Any], found: list[Change]
) -> list[Table]:
    """Return both runs with their machines and versions, and what changed."""
    rows = [
        (
            change.case,
            change.label,
            f"{number(change.before[0])} {change.unit}",
            f"{number(change.after[0])} {change.unit}",
            number(change.ratio),
            change.kind,
        )
        for change in sorted(found, key=lambda change: -change.ratio)
        if change.kind != "same"
    ]
    same = sum(change.kind == "same" for change in found)
    head = ("case", "figure", "before", "after", "ratio", "verdict")
    changed = Table("", head, tuple(rows), (*_notes(found, same), *_single(before, after)))
    return [_runs_table(before, after), changed]


def _notes(found: list[Change], same: int) -> Iterator[str]:
    yield f"{same} of {len(found)} figures did not change beyond their spread"
    others = [change.ratio for change in found if not change.ours and change.unit == "s"]
    if others:
        yield (
            f"what gpublocks is compared with took {number(median(others))} times as long: "
            "so much the machine, or its libraries, differ"
        )


def _single(*runs: Mapping[str, Any]) -> Iterator[str]:
    cases = [case for results in runs for case in results["cases"]]
    single = {case["name"] for case in cases if case.get("rounds") == 1}
    if single:
        yield f"measured in one round only, so that no spread is known: {', '.join(sorted(single))}"


def _runs_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    told = [dict(_facts(results)) for results in (before, after)]
    names = list(dict.fromkeys([*told[0], *told[1]]))
    rows = tuple((name, *[str(one.get(name, "")) for one in told]) for name in names)
    return Table("", ("", "before", "after"), rows)


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "date", results.get("date")
    yield "commit", results.get("commit") or "unknown"
    machine = results.get("machine", {})
    yield "machine", f"{machine.get('cpu')}, {machine.get('cpus')} CPUs"
    yield "load", machine.get("load")
    for name, version in results.get("versions", {}).items():
        if version is not None:
            yield name, version
