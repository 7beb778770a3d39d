"""The measuring core and its frozen cases, for everyone who has gpublocks installed.

Touches processes, files in a temporary folder and /proc, when something is measured. Printing is
left to the command line.

What is measured is named by text (``'gpublocks.block_processing:process'``) and loaded in a process
of its own: other libraries take part in the same way, through functions of the same signature.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks.bench.case import Case

__all__ = ["cases", "facts", "measure", "run", "serve", "table"]

Teller = Callable[[str], None]


def cases(*, quick: bool = False) -> "tuple[Case, ...]":
    """Return all cases; `quick` ones are small and repeat little."""
    from gpublocks.bench.catalogue import make_cases

    return make_cases(quick=quick)


def measure(
    case: "Case",
    folder: Path,
    *,
    rounds: int | None = None,
    stage: Callable[[Any, Path], Any] | None = None,
    tell: Teller = lambda text: None,
) -> dict[str, Any]:
    """Measure one case.

    Parameters
    ----------
    case : Case
    folder : Path
        Where volumes are built; those that are there are taken as they are.
    rounds : int, optional
        How often everything is measured, after a warm-up; the case says so by default.
    stage : callable, optional
        Opens the place where a way is measured; by default a process of its own.
    tell : callable, optional
        Is called with a line of text when something begins.

    Returns
    -------
    dict
        Of plain values, for JSON: ``name``, ``measures``, ``parameters``, ``reference``,
        ``rounds``; ``figures``: a list of dicts with ``label``, ``unit``, ``median``, ``low``,
        ``high``, ``bound``, ``passed``, ``against``; ``raw``: all measurements by way and quantity.

    Raises
    ------
    RuntimeError
        If a way fails or gives another result than the function over the whole volume.
    """
    from gpublocks.bench.judging import judge
    from gpublocks.bench.measuring import measure_ways
    from gpublocks.memory import Peak

    rounds = case.rounds if rounds is None else rounds
    raw = measure_ways(
        case.ways, case.setup, folder, rounds=rounds, stage=stage, sampler=Peak, tell=tell
    )
    return {
        "name": case.name,
        "measures": case.measures,
        "parameters": dict(case.parameters),
        "reference": case.reference,
        "rounds": rounds,
        "figures": [asdict(judge(figure, raw)) for figure in case.figures],
        "raw": raw,
    }


def run(
    chosen: "Iterable[Case]",
    *,
    rounds: int | None = None,
    folder: Path | None = None,
    tell: Teller = lambda text: None,
) -> dict[str, Any]:
    """Measure some cases and return all there is to know of it, as plain values for JSON.

    A case that fails is noted with its ``error`` and does not keep the others from being measured.

    Parameters
    ----------
    chosen : iterable of Case
    rounds, tell
        See `measure`.
    folder : Path, optional
        Parent of the temporary folder for the volumes.
    """
    results = []
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="gpublocks-bench-", dir=folder) as volumes:
        for case in chosen:
            tell(case.name)
            try:
                results.append(measure(case, Path(volumes), rounds=rounds, tell=tell))
            except RuntimeError as error:
                tell(f"failed: {error}")
                results.append({"name": case.name, "measures": case.measures, "error": str(error)})
    return {"date": begun, **facts(), "cases": results}


def facts() -> dict[str, Any]:
    """Return what should be known of this machine and its software beside any figure."""
    from gpublocks.bench.surroundings import machine_facts

    return machine_facts()


def table(results: dict[str, Any]) -> str:
    """Return what `run` returned as a table for a terminal."""
    from gpublocks.bench.judging import as_table

    return as_table(results["cases"])


def serve() -> None:
    """Be a process in which a program is measured: obey requests on the standard input."""
    from gpublocks.bench.stage import serve_requests

    serve_requests()
