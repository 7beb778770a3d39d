"""Results in JSON files, and whether they can be written before any are there. Touches files."""

import json
import os
from pathlib import Path
from typing import Any

from gpublocks.errors import SinkError, SourceError

__all__ = ["check_folder", "check_output", "read_results", "write_results"]

_NUMBERS = ("median", "low", "high")


def read_results(path: Path) -> dict[str, Any]:
    """Return the results in a JSON file.

    Raises
    ------
    SourceError
        If it cannot be read, or holds none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no JSON: {error}") from error
    cases = results.get("cases") if isinstance(results, dict) else None
    if not isinstance(cases, list) or not all(map(_is_case, cases)):
        raise SourceError(f"{path} has no results of cases; give a file of 'run -o'")
    found: dict[str, Any] = results
    return found


def _is_case(case: Any) -> bool:
    if not isinstance(case, dict) or not isinstance(case.get("name"), str):
        return False
    figures = case.get("figures", [])
    return isinstance(figures, list) and all(map(_is_figure, figures))


def _is_figure(figure: Any) -> bool:
    return (
        isinstance(figure, dict)
        and all(isinstance(figure.get(key), str) for key in ("label", "unit"))
        and all(isinstance(figure.get(key), int | float) for key in _NUMBERS)
    )


def check_output(path: Path | None) -> None:
    """Raise `SinkError` if a file cannot be written there."""
    if path is None:
        return
    if path.is_dir():
        raise SinkError(f"cannot write {path}: it is a folder")
    check_folder(path.absolute().parent)


def check_folder(path: Path | None) -> None:
    """Raise `SinkError` if it is no folder in which files can be made."""
    if path is None:
        return
    if not path.is_dir():
        raise SinkError(f"no such folder: {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write into {path}")


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON, if there is a place for them: all of it, or nothing.

    Raises
    ------
    SinkError
        If it cannot be written.
    """
    if path is None:
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SinkError(f"cannot write {path}: {error.strerror}") from error
