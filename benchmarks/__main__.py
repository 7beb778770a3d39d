"""``python -m benchmarks``: lists cases, runs them, prints a table, keeps JSON. Touches files."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import chunked, gpu
from gpublocks import bench, machine
from gpublocks.budget import parse_bytes

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    given = _parser().parse_args(arguments)
    if given.command == "gpu":
        return _measure_gpu(given)
    if given.command == "chunked":
        return _measure_chunked(given)
    cases = bench.cases(quick=given.quick)
    if given.command == "list":
        for case in cases:
            print(f"{case.name:<14} {case.measures}")
        return 0
    unknown = sorted(set(given.names) - {case.name for case in cases})
    if unknown:
        known = ", ".join(case.name for case in cases)
        print(f"no case is called {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    if not _has_folder(given.output):
        return 2
    chosen = [case for case in cases if not given.names or case.name in given.names]
    results = bench.run(chosen, rounds=given.rounds, folder=given.folder, tell=_teller())
    results = {"commit": _commit(), "quick": given.quick, **results}
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(bench.table(results))
    return 1 if any("error" in case for case in results["cases"]) else 0


def _measure_gpu(given: argparse.Namespace) -> int:
    """Measure all that is worth it on a GPU; say in one line if there is none."""
    if not _has_folder(given.output):
        return 2
    results = gpu.run(
        output=given.output,
        facts={"commit": _commit(), **bench.facts(), "versions": machine.versions()},
        quick=given.quick,
        seconds=given.budget,
        host_bytes=given.memory,
        folder=given.folder,
        tell=_teller(),
    )
    if results["status"]:
        print(results["status"], file=sys.stderr)
        return 1
    print(gpu.as_text(results))
    return 1 if any(part["status"] in gpu.FAILED for part in results["parts"]) else 0


def _measure_chunked(given: argparse.Namespace) -> int:
    """Measure a job from Zarr to Zarr."""
    if not _has_folder(given.output):
        return 2
    found = chunked.measure(given.planes, given.folder)
    results = {"commit": _commit(), **bench.facts(), "chunked": found}
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(chunked.as_text(found))
    return 0


def _has_folder(output: Path | None) -> bool:
    """Tell whether a file can be written there, and say so if not."""
    found = output is None or output.absolute().parent.is_dir()
    if not found:
        assert output is not None
        print(f"no such folder: {output.absolute().parent}", file=sys.stderr)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="name all cases")
    listing.set_defaults(quick=False)
    run = commands.add_parser("run", help="measure cases")
    run.add_argument("names", nargs="*", help="cases; all if none is named")
    run.add_argument("--quick", action="store_true", help="small volumes, few rounds, no bounds")
    run.add_argument("--rounds", type=_count, help="measure everything so often")
    run.add_argument("--folder", type=Path, help="where the temporary volumes go (3 GB)")
    run.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    pieces = commands.add_parser("chunked", help="measure a Gaussian from Zarr to Zarr (2 minutes)")
    pieces.add_argument("--planes", type=_count, default=1024, help="of 2 MB; a multiple of 256")
    pieces.add_argument("--folder", type=Path, help="where the temporary volumes go (5 GB)")
    pieces.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    on_gpu = commands.add_parser("gpu", help="measure all that is worth it on a GPU (8 minutes)")
    on_gpu.add_argument("--quick", action="store_true", help="small volumes (90 seconds)")
    on_gpu.add_argument("--budget", type=_count, help="seconds for everything")
    on_gpu.add_argument("--memory", type=parse_bytes, help="host memory that volumes may take")
    on_gpu.add_argument("--folder", type=Path, help="where the temporary volumes go")
    on_gpu.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _teller() -> Callable[[str], None]:
    begun = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {text}", file=sys.stderr, flush=True)

    return tell


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
