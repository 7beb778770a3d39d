"""``python -m benchmarks``: lists cases, runs them, prints a table, keeps JSON. Touches files."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpublocks import bench

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    given = _parser().parse_args(arguments)
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
    if given.output is not None and not given.output.absolute().parent.is_dir():
        print(f"no such folder: {given.output.absolute().parent}", file=sys.stderr)
        return 2
    chosen = [case for case in cases if not given.names or case.name in given.names]
    results = bench.run(chosen, rounds=given.rounds, folder=given.folder, tell=_teller())
    results = {"commit": _commit(), "quick": given.quick, **results}
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(bench.table(results))
    return 1 if any("error" in case for case in results["cases"]) else 0


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
