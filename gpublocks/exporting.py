"""Reports as pages and as traces. Pure, but for the pictures on pages, which matplotlib draws."""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

from gpublocks.errors import GpublocksError
from gpublocks.records import Record
from gpublocks.spans import STEPS, Table
from gpublocks.timeline import draw

__all__ = ["page", "tables", "trace"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 90em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { text-align: left; vertical-align: top; padding: .15em 1em .15em 0; }
th { font-weight: 600; white-space: nowrap; }
img { max-width: 100%; }
"""
_MICROSECONDS = 1e6
_ROWS = 4096


def page(records: Sequence[Record]) -> str:
    """Return a page of HTML that needs no other file and runs nothing.

    Whatever comes from file names and errors is text in it, never markup. Without matplotlib it
    has no picture.
    """
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        # Should a text ever be taken for more than that, browsers do not run it.
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>gpublocks report</title><style>{_STYLE}</style></head><body>"
        f"<h1>gpublocks report</h1>{_picture(records)}{tables(records)}</body></html>\n"
    )


def tables(records: Sequence[Record]) -> str:
    """Return a table in HTML for each run."""
    if not records:
        return "<p>no run was recorded</p>"
    return "".join(_table(record.rows()) for record in records)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows
    ]
    return f"<table>{''.join(cells)}</table>"


def _picture(records: Sequence[Record]) -> str:
    buffer = BytesIO()
    try:
        figure = draw(records)
    except GpublocksError as error:
        return f"<p>{html.escape(str(error))}</p>"
    figure.savefig(buffer, format="png")
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='who did what when' src='data:image/png;base64,{encoded}'>"


def trace(records: Sequence[Record]) -> Iterator[str]:
    """Yield pieces of the JSON that Perfetto and the tracing of Chrome read.

    Each run is a process of it. Times are in microseconds (Trace Event Format, "complete" events).
    """
    yield '{"displayTimeUnit": "ms", "traceEvents": ['
    for number, event in enumerate(_events(records)):
        yield (",\n" if number else "\n") + json.dumps(event)
    yield "\n]}\n"


def _events(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    # Perfetto takes process and thread 0 for the kernel's.
    for number, record in enumerate(records, start=1):
        yield _name("process_name", number, 1, f"{record.function} {record.date}")
        for lane, name in enumerate(record.spans.lanes, start=1):
            yield _name("thread_name", number, lane, name)
        for cell, step, lane, start, stop, nbytes in _rows(record.spans.table):
            yield {
                "name": STEPS[step],
                "cat": "step",
                "ph": "X",
                "pid": number,
                "tid": lane + 1,
                "ts": start * _MICROSECONDS,
                "dur": (stop - start) * _MICROSECONDS,
                "args": {"block": cell, "bytes": nbytes},
            }
        for incident in record.incidents:
            yield {
                "name": f"{incident.kind}: {incident.reason}",
                "cat": "incident",
                "ph": "i",
                "s": "p",
                "pid": number,
                "tid": 1,
                "ts": incident.seconds * _MICROSECONDS,
                "args": {"block": incident.cell, "worker": incident.worker},
            }


def _rows(table: Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table, of which few at a time are objects of Python."""
    for start in range(0, len(table.cell), _ROWS):
        columns = [column[start : start + _ROWS].tolist() for column in table]
        yield from zip(*columns, strict=True)


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
