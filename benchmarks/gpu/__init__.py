"""What is worth measuring on a machine with a GPU, in one go. Touches the GPU, processes, files.

Like `gpublocks` this is a house with floors: a module uses those below it, and none is imported
before it is used. The measuring is done in processes of their own, which may hang or die.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.schedule import Part, Place

__all__ = ["FAILED", "QUICK_SECONDS", "SECONDS", "as_text", "hold", "run", "serve"]

SECONDS = 450.0
QUICK_SECONDS = 80.0
_Keep = Callable[[list[dict[str, Any]], bool], None]
FAILED = ("failed", "died", "hung")
"""How a part ends that was begun and not done."""
_SMALL_GPU_BYTES = 8 * 10**9
"""What a GPU is taken to have that could not be asked."""
_KEEP_SECONDS = 1.0
"""How often what was found so far is written, beside at the end of each part."""


def run(
    *,
    output: Path | None,
    facts: dict[str, Any],
    quick: bool = False,
    seconds: float | None = None,
    host_bytes: int | None = None,
    folder: Path | None = None,
    open_place: "Callable[[], Place] | None" = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure everything, or as much of it as there is time for.

    Parameters
    ----------
    output : Path, optional
        JSON file, which is written again whenever something was found.
    facts : dict
        What it begins with.
    quick : bool
        Small volumes.
    seconds : float, optional
        For everything.
    host_bytes : int, optional
        Memory by which volumes are sized; what is available by default.
    folder : Path, optional
        Parent of a temporary folder for volumes in files.
    open_place : callable, optional
        Opens where parts are done; by default a process of its own.
    tell : callable
        Is called with a line of text when something begins.

    Returns
    -------
    dict
        Of plain values, for JSON: `facts`, ``date``, ``quick``, ``budget_seconds``; ``status``:
        why there is no GPU, in which case no file is written, or nothing; ``parts`` (see
        `benchmarks.gpu.schedule.run_parts`), ``figures`` (see `benchmarks.gpu.judging.figures`),
        ``elapsed_seconds``.
    """
    from benchmarks.gpu.catalogue import first_part
    from benchmarks.gpu.judging import figures

    begun = time.monotonic()
    seconds = (QUICK_SECONDS if quick else SECONDS) if seconds is None else seconds
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results = {**facts, "date": date, "quick": quick, "budget_seconds": seconds, "status": ""}
    results |= {"parts": [], "figures": [], "elapsed_seconds": 0.0}
    keep = _Keeper(output, results, begun)

    def measure(parts: "Sequence[Part]", keep: _Keep, tell: Callable[[str], None]) -> None:
        left = seconds - (time.monotonic() - begun)
        results["parts"] += _run_parts(parts, left, open_place, keep, tell)

    with tempfile.TemporaryDirectory(prefix="gpublocks-bench-", dir=folder) as place:
        # Nothing is said or written before it is known that there is a GPU.
        measure([first_part(place)], lambda parts, ended: None, lambda text: None)
        first = results["parts"][0]
        results["status"] = first["found"].get("status", first["error"])
        if first["found"].get("status"):
            return results
        if not results["status"]:
            after = [first]
            chosen = _chosen(first["found"], quick, host_bytes, place)
            measure(chosen, lambda parts, ended: keep(after + parts, ended), tell)
    results["figures"] = figures(results["parts"])
    keep(results["parts"], True)
    return results


class _Keeper:
    """Writes the results into a file whenever there is something new."""

    def __init__(self, output: Path | None, results: dict[str, Any], begun: float) -> None:
        self._output = output
        self._results = results
        self._begun = begun
        self._last = 0.0

    def __call__(self, parts: list[dict[str, Any]], ended: bool) -> None:
        now = time.monotonic()
        self._results["elapsed_seconds"] = now - self._begun
        if self._output is None or not (ended or now - self._last > _KEEP_SECONDS):
            return
        self._last = now
        whole = {**self._results, "parts": parts}
        partial = self._output.with_name(f"{self._output.name}.partial")
        partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._output)


def _run_parts(
    parts: "Sequence[Part]",
    seconds: float,
    open_place: "Callable[[], Place] | None",
    keep: _Keep,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    from benchmarks.gpu.place import Child
    from benchmarks.gpu.schedule import run_parts

    return run_parts(parts, seconds=seconds, open_place=open_place or Child, keep=keep, tell=tell)


def _chosen(
    found: dict[str, Any], quick: bool, host_bytes: int | None, folder: str
) -> "Sequence[Part]":
    from benchmarks.gpu.catalogue import make_parts

    return make_parts(
        quick=quick,
        host_bytes=host_bytes or found["host"]["available_bytes"],
        gpu_bytes=found.get("gpu", {}).get("free_bytes", _SMALL_GPU_BYTES),
        disk_bytes=found["host"]["folder_free_bytes"],
        folder=folder,
    )


def as_text(results: dict[str, Any]) -> str:
    """Return what `run` returned as text for a terminal."""
    from benchmarks.gpu import judging

    return judging.as_text(results)


def serve() -> None:
    """Be a process in which parts are done: obey requests on the standard input."""
    from benchmarks.gpu.place import serve_parts

    serve_parts(_open_cuda)


def hold(share: float) -> None:
    """Be a process that holds this part of the GPU's memory until the standard input ends."""
    from benchmarks.gpu import crowding

    crowding.hold(share)


def _open_cuda() -> Any:
    from benchmarks.gpu.cuda import Cuda
    from gpublocks.gpus import gpus

    return Cuda(next((gpu.uuid for gpu in gpus(exact=True)), ""))
