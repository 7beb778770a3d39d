"""``python -m benchmarks``: lists cases, runs them with all peers, compares. Touches files."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import chunked, filters, gpu
from benchmarks.peers import PEERS
from gpublocks import bench, machine
from gpublocks.bench.saved import check_folder, check_output, write_results
from gpublocks.bench.terminating import terminable
from gpublocks.budget import parse_bytes
from gpublocks.cli.bench import add_commands, do, positive, teller
from gpublocks.errors import GpublocksError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.task == "gpu":
            return _measure_gpu(given)
        if given.task in ("chunked", "filters"):
            with terminable():
                return (
                    _measure_chunked(given) if given.task == "chunked" else _measure_filters(given)
                )
        return do(given, peers=PEERS, facts={"commit": _commit()})
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    except GpublocksError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2


def _measure_gpu(given: argparse.Namespace) -> int:
    """Measure all that is worth it on a GPU; say in one line if there is none."""
    check_output(given.output)
    check_folder(given.folder)
    results = gpu.run(
        output=given.output,
        facts={"commit": _commit(), **bench.facts(), "versions": machine.versions()},
        quick=given.quick,
        seconds=given.budget,
        host_bytes=given.memory,
        folder=given.folder,
        tell=teller(),
    )
    if results["status"]:
        print(results["status"], file=sys.stderr)
        return 1
    print(gpu.as_text(results))
    return 1 if any(part["status"] in gpu.FAILED for part in results["parts"]) else 0


def _measure_chunked(given: argparse.Namespace) -> int:
    """Measure a job from Zarr to Zarr."""
    check_output(given.output)
    check_folder(given.folder)
    try:
        with terminable():
            found = chunked.measure(given.planes, given.folder, rounds=given.rounds)
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    write_results(given.output, {**_facts(), "chunked": found})
    print(chunked.as_text(found))
    return 0


def _measure_filters(given: argparse.Namespace) -> int:
    """Measure filters against those of other libraries."""
    check_output(given.output)
    check_folder(given.folder)
    chosen = filters.chosen(given.names)
    with terminable():
        found = filters.measure(
            chosen, side=given.side, rounds=given.rounds, folder=given.folder, tell=teller()
        )
    write_results(given.output, {**_facts(), "filters": found})
    print(filters.as_text(found))
    return 0


def _facts() -> dict[str, Any]:
    """Return what should be known beside any figure."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"commit": _commit(), "date": now, **bench.facts()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="task", required=True)
    add_commands(commands)
    pieces = commands.add_parser("chunked", help="measure a Gaussian from Zarr to Zarr (minutes)")
    pieces.add_argument("--planes", type=positive, default=1024, help="of 2 MB; a multiple of 256")
    pieces.add_argument("--rounds", type=positive, default=3, help="measure everything so often")
    pieces.add_argument("--folder", type=Path, help="where the temporary volumes go (5 GB)")
    pieces.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    each = commands.add_parser(
        "filters", help="measure filters against SciPy, scikit-image, SimpleITK (20 minutes)"
    )
    each.add_argument(
        "names", nargs="*", metavar="NAME", help="filters, by the beginnings of their names"
    )
    each.add_argument("--side", type=positive, default=256, help="of the volume, a cube")
    each.add_argument("--rounds", type=positive, default=3, help="measure everything so often")
    each.add_argument("--folder", type=Path, help="where temporary files go")
    each.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    on_gpu = commands.add_parser("gpu", help="measure all that is worth it on a GPU (8 minutes)")
    on_gpu.add_argument("--quick", action="store_true", help="small volumes (90 seconds)")
    on_gpu.add_argument("--budget", type=positive, help="seconds for everything")
    on_gpu.add_argument("--memory", type=parse_bytes, help="host memory that volumes may take")
    on_gpu.add_argument("--folder", type=Path, help="where the temporary volumes go")
    on_gpu.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    return parser


def _commit() -> Any:
    """Return the commit that is measured, marked if files were changed since; None if unknown."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
