"""Reports of runs: told, drawn, saved and loaded. Touches files that it is told."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpublocks.errors import PlanError, SinkError, SourceError
from gpublocks.exporting import page, tables, trace
from gpublocks.picture import check_path
from gpublocks.records import Record
from gpublocks.timeline import draw

__all__ = ["Report", "check_target"]

_VERSION = 1
"""Of the JSON files."""


def check_target(name: str) -> None:
    """Check that a report can be saved under such a name.

    Raises
    ------
    PlanError
        If the suffix is another one.
    SinkError
        If there is no folder for it that can be written to.
    """
    if not name.endswith((".json", ".html", ".htm")):
        raise PlanError(f"{name!r} has no known suffix; use .json, .html or .trace.json")
    check_path(name)


class Report:
    """What happened in one or several runs.

    `gpublocks.process` fills it when it is given as `report`; `gpublocks.recording` makes one that
    holds all runs within. It prints as text, and shows as a table in notebooks.

    Attributes
    ----------
    runs : list of Record
    """

    def __init__(self) -> None:
        self.runs: list[Record] = []

    def __str__(self) -> str:
        if not self.runs:
            return "no run was recorded"
        return "\n\n".join(map(str, self.runs))

    def __repr__(self) -> str:
        names = ", ".join(record.function for record in self.runs)
        return f"Report({names})"

    def _repr_html_(self) -> str:
        return tables(self.runs)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw who did what when: a lane for each worker, thread and stream.

        Where a lane has nothing to do, the colour tells what it waits for.

        Parameters
        ----------
        path : path, optional
            PNG, PDF or SVG that is written.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        GpublocksError
            If matplotlib is not installed.
        PlanError
            If no run was recorded.
        """
        return draw(self.runs, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report into a file.

        Parameters
        ----------
        path : path
            ``.json`` holds everything, for `load`; ``.html`` is a page with tables and the picture
            of `plot`, without scripts and without other files; ``.trace.json`` is for Perfetto and
            the tracing of Chrome (ui.perfetto.dev).

        Raises
        ------
        PlanError
            If the suffix is another one.
        SinkError
            If it cannot be written.
        """
        name = os.fspath(path)
        check_target(name)
        if name.endswith(".trace.json"):
            texts: Iterable[str] = trace(self.runs)
        elif name.endswith(".json"):
            texts = [json.dumps(self.to_dict())]
        else:
            texts = [page(self.runs)]
        partial = f"{name}.partial"
        try:
            # Names of files may hold bytes that are no letters.
            with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(texts)
            os.replace(partial, name)
        except OSError as error:
            raise SinkError(f"cannot write {name}: {error.strerror}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        runs = [record.to_dict() for record in self.runs]
        return {"gpublocks report": _VERSION, "runs": runs}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Return the report of a ``.json`` file.

        Raises
        ------
        SourceError
            If it cannot be read, or is none.
        """
        name = os.fspath(path)
        try:
            values = json.loads(Path(name).read_text(encoding="utf-8"))
            if values.get("gpublocks report") != _VERSION:
                raise ValueError(f"no report of version {_VERSION}")
            report = cls()
            report.runs = [Record.from_dict(run) for run in values["runs"]]
            # Whatever cannot be told is no report.
            str(report)
        except OSError as error:
            raise SourceError(f"cannot read {name}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise SourceError(f"{name} is no report of gpublocks: {error}") from error
        return report
