"""What got faster or slower from one set of results to another. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from gpublocks.bench.contests import OURS
from gpublocks.bench.tables import Table, floors_text, number

__all__ = [
    "THRESHOLD",
    "Change",
    "Gap",
    "change_tables",
    "changes",
    "gaps",
    "other_work",
    "slower",
]

THRESHOLD = 1.1
"""Ratio from which on a figure is told as slower, if its spread does not explain it."""

Kind = Literal["slower", "faster", "same", "unknown"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that only one of two results lacks, or that failed in it only.

    Parameters
    ----------
    text : str
    broke : bool
        Whether gpublocks' own was measured before, and was not, or failed, afterwards.
    """

    text: str
    broke: bool


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
    kind : {'slower', 'faster', 'same', 'unknown'}
        Which, beyond the threshold and the spread of both: ranges that touch are the same. Of what
        was measured in one round no spread is known.
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
    """Return how all figures changed that both results have, of the same work; less is better.

    Parameters
    ----------
    before, after : mapping
        What `gpublocks.bench.run` returned.
    threshold : float
        More than 1.
    """
    known = dict(_figures(before))
    found = []
    others = other_work(before, after)
    for key, figure in _figures(after):
        if key[0] in others or key not in known or not known[key]["median"] > 0:
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
                kind=_kind(old, new, ratio, threshold)
                if known[key]["spread"] and figure["spread"]
                else "unknown",
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
            spread = case.get("rounds") != 1
            yield (case["name"], figure["label"]), {**figure, "ours": ours, "spread": spread}


def other_work(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the cases that are called alike and do other work: their parameters differ."""
    known = {case["name"]: case.get("parameters", {}) for case in before["cases"]}
    return [
        case["name"]
        for case in after["cases"]
        if _differ(case.get("parameters", {}), known.get(case["name"], {}))
    ]


def _differ(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Tell whether parameters that both know differ, as they would in a JSON file."""
    both = mine.keys() & theirs.keys()
    return any(json.dumps(mine[name]) != json.dumps(theirs[name]) for name in both)


def gaps(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Gap]:
    """Return what only one of two results lacks, cases and figures, and what failed in it only."""
    others = other_work(before, after)
    told = [dict(_troubles(before, after)), dict(_troubles(after, before))]
    return [
        Gap(text, ours and when == "after")
        for when, found in zip(("before", "after"), told, strict=True)
        for (case, what), ours in found.items()
        if case not in others
        for text in [f"{when}: {case}: {what}"]
    ]


def _troubles(
    results: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], bool]]:
    """Yield case and trouble of what the others have and these do not, and if it is gpublocks'."""
    known = {case["name"]: case for case in results["cases"]}
    figures = dict(_figures(results))
    for theirs in other["cases"]:
        name = theirs["name"]
        mine = known.get(name, {"error": "is not there"})
        if "error" in mine and "error" not in theirs:
            yield (name, f"failed: {mine['error']}" if name in known else mine["error"]), True
        for lacking in {"missing", "skipped"} & mine.keys() - theirs.keys():
            yield (name, f"not measured: {mine[lacking]}"), False
        for way in mine.get("failures", {}).keys() - theirs.get("failures", {}).keys():
            yield (name, f"failed: {mine['failures'][way]}"), False
    for (name, label), figure in _figures(other):
        mine = known.get(name, {})
        told = any(way in label for way in mine.get("failures", ()))
        if "figures" in mine and (name, label) not in figures and not told:
            yield (name, f"{label} is not there"), figure["ours"]


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
        if change.kind in ("slower", "faster")
    ]
    head = ("case", "figure", "before", "after", "ratio", "verdict")
    notes = (*_notes(found), *_single(before, after), *_others(before, after))
    changed = Table("", head, tuple(rows), notes)
    return [_runs_table(before, after), changed]


def _notes(found: list[Change]) -> Iterator[str]:
    same = sum(change.kind == "same" for change in found)
    known = sum(change.kind != "unknown" for change in found)
    yield f"{same} of {known} figures with a spread did not change beyond it"
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
        names = ", ".join(sorted(single))
        yield f"measured in one round only, so that no spread is known, and no verdict: {names}"


def _others(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if names := other_work(before, after):
        yield f"left out, since parameters differ: {', '.join(names)}"


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
    yield "quick", results.get("quick")
    yield "folder", results.get("folder")
    yield "at best", floors_text(results.get("floors", {}))
    for name, version in results.get("versions", {}).items():
        if version is not None:
            yield name, version
