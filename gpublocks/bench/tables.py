"""Results as tables for a terminal: with Rich where it is installed, else as plain text. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpublocks.bench.standings import Standing, standings
from gpublocks.budget import format_bytes

__all__ = ["Table", "as_text", "floors_text", "number", "print_tables", "result_tables"]

_WIDEST = 100
_HEAD = (
    "way",
    "seconds",
    "spread",
    "to ours",
    "CPU s",
    "peak MiB",
    "read",
    "blocks",
    "ms/block",
    "of ideal",
)
_LEVEL = 1.0
"""Percent by which gpublocks may take longer and be called level."""
_RULES = {
    "copied_per_second": "memory copied at {}/s",
    "written_per_second": "disk written at {}/s",
    "read_per_second": "read at {}/s",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Parameters
    ----------
    title : str
    head : tuple of str
    rows : tuple of tuple of str
    notes : tuple of str
        Lines below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return what `gpublocks.bench.run` returned as tables: one for each case with peers."""
    promises = [case for case in results["cases"] if case.get("group") != "peers"]
    found = [
        _peers_table(case, results.get("floors", {}))
        for case in results["cases"]
        if case.get("group") == "peers"
    ]
    return [*found, promises_table(promises)] if promises else found


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables to the standard output."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Rich
        from rich.text import Text
    except ImportError:
        print("\n\n".join(map(as_text, tables)), flush=True)
        return
    console = Console()
    if not console.is_terminal:
        # Rich would fold rows into 80 columns.
        print("\n\n".join(map(as_text, tables)), flush=True)
        return
    for table in tables:
        rich = Rich(title=table.title, box=box.SIMPLE_HEAD, title_justify="left")
        for n, name in enumerate(table.head):
            rich.add_column(Text(name), justify="left" if n == 0 else "right")
        for row in table.rows:
            style = "bold" if row[0].startswith("gpublocks") else ""
            rich.add_row(*map(Text, row), style=style)
        console.print(rich)
        for note in table.notes:
            console.print(Text(f"  {note}"))


def as_text(table: Table) -> str:
    """Return a table as lines."""
    rows = (table.head, *table.rows)
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * min(_WIDEST, max(map(len, lines)))
    return "\n".join([*filter(None, [table.title]), lines[0], rule, *lines[1:], *table.notes])


def _peers_table(case: Mapping[str, Any], floors: Mapping[str, float]) -> Table:
    title = f"{case['name']}: {case['measures']}"
    if "missing" in case:
        return Table(title, ("not measured",), ((f"{case['missing']} is not installed",),))
    if "skipped" in case:
        return Table(title, ("not measured",), ((case["skipped"],),))
    if "error" in case:
        return Table(title, ("failed",), ((case["error"],),))
    parameters = case["parameters"]
    shape = " x ".join(map(str, parameters["shape"]))
    found = standings(case, floors)
    return Table(
        f"{title}, {shape} {parameters['dtype']}, {parameters['workers']} workers, "
        f"{case['rounds']} round{'s' if case['rounds'] > 1 else ''}",
        _HEAD,
        tuple(_row(standing) for standing in found),
        tuple(_notes(case, found)),
    )


def _notes(case: Mapping[str, Any], found: Sequence[Standing]) -> Iterator[str]:
    yield from _verdict(found)
    yield from (f"failed: {text}" for text in case["failures"].values())
    if late := case.get("left_out"):
        yield f"left out, since time was over: {', '.join(late)}"


def _row(one: Standing) -> tuple[str, ...]:
    def told(value: float | None, scale: float = 1.0) -> str:
        return "" if value is None else number(value * scale)

    return (
        one.way,
        number(one.seconds),
        f"{number(one.low)} .. {number(one.high)}",
        told(one.ratio),
        told(one.cpu_seconds),
        told(one.peak_bytes, 1 / 2**20),
        f"{one.over_read:.2f}",
        str(one.blocks),
        told(one.block_seconds, 1e3),
        "" if one.efficiency is None else f"{100 * one.efficiency:.0f} %",
    )


def _verdict(found: Sequence[Standing]) -> Iterator[str]:
    """Say whether gpublocks is ahead of all others, or by how much it is not."""
    others = [one for one in found if one.ratio and not one.way.startswith("gpublocks")]
    ahead = True
    for one in others:
        percents = sorted(100 / ratio - 100 for ratio in one.ratios)
        if one.ratio and 100 / one.ratio - 100 > _LEVEL:
            ahead = False
            rounds = f"{percents[0]:.0f} to {percents[-1]:.0f} %" if len(percents) > 1 else "1 only"
            yield f"behind {one.way} by {100 / one.ratio - 100:.0f} % (rounds: {rounds})"
    if others and ahead:
        yield "ahead of all, or level"


def floors_text(floors: Mapping[str, float]) -> str:
    """Return what the machine can do at best as a line."""
    return ", ".join(
        rule.format(format_bytes(int(floors[name])))
        for name, rule in _RULES.items()
        if name in floors
    )


def promises_table(cases: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of figures: case, figure, median, spread, bound, verdict."""
    rows: list[tuple[str, ...]] = []
    for case in cases:
        if "error" in case:
            rows.append((case["name"], "failed", "", "", "", "", case["error"]))
        if "skipped" in case:
            rows.append((case["name"], "not measured", "", "", "", "", case["skipped"]))
        for figure in case.get("figures", ()):
            rows.append(
                (
                    case["name"],
                    figure["label"],
                    f"{number(figure['median'])} {figure['unit']}",
                    f"{number(figure['low'])} .. {number(figure['high'])}",
                    "" if figure["bound"] is None else number(figure["bound"]),
                    _holds(figure),
                    figure["against"] or "",
                )
            )
    head = ("case", "figure", "median", "spread", "bound", "holds", "against")
    return Table("", head, tuple(rows))


def _holds(figure: Mapping[str, Any]) -> str:
    if figure["passed"] is None:
        return ""
    if figure["passed"]:
        return "yes"
    return f"no, +{100 * (figure['median'] / figure['bound'] - 1):.0f} %"


def number(value: float) -> str:
    """Return a number with three digits, without an exponent.

    Examples
    --------
    >>> number(1234.5), number(0.87123), number(12.0)
    ('1234', '0.871', '12.0')
    """
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{digits}f}"
