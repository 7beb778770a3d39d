"""The command `bench`: measure cases, compare results. Touches what is measured, and JSON files."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpublocks import bench
from gpublocks.bench.comparing import THRESHOLD
from gpublocks.bench.saved import check_folder, check_output, read_results, write_results
from gpublocks.bench.terminating import terminable
from gpublocks.budget import parse_bytes
from gpublocks.errors import PlanError

__all__ = [
    "add_commands",
    "bench_installed",
    "do",
    "positive",
    "teller",
]

_GROUPS = ("peers", "promises")
_QUICK_SECONDS = 50.0
"""The last round begins before, and takes some seconds."""
_IDLE = 0.3
"""Load of a machine that does little else."""

Teller = Callable[[str], None]


def add_commands(commands: Any) -> None:
    """Add the commands that do not need a checkout of gpublocks."""
    listing = commands.add_parser("list", help="name all cases")
    listing.set_defaults(quick=False)
    run = commands.add_parser("run", help="measure cases")
    run.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="cases, patterns such as 'gaussian-*', or groups: peers (default), promises",
    )
    run.add_argument("--quick", action="store_true", help="some small volumes, in a minute")
    run.add_argument("--rounds", type=positive, metavar="N", help="measure everything so often")
    run.add_argument("--folder", type=Path, help="where the temporary volumes go (3 GB)")
    run.add_argument("-o", "--output", type=Path, help="JSON file for all measurements")
    run.add_argument("--plot", type=Path, metavar="PNG", help="picture of the cases with peers")
    run.add_argument(
        "--scaling",
        action="store_true",
        help="instead of cases: time and memory against blocks and workers; predict a large volume",
    )
    _add_scaling(run.add_argument_group("with --scaling"))
    compare = commands.add_parser("compare", help="tell what got faster or slower")
    compare.add_argument("before", type=Path, help="JSON file of a run")
    compare.add_argument("after", type=Path, help="JSON file of another run")
    compare.add_argument(
        "--threshold",
        type=_ratio,
        default=THRESHOLD,
        metavar="X",
        help="the exit status is 1 if something takes more than X times as much, and its spread "
        "does not explain it (default: %(default)s)",
    )


def _add_scaling(group: Any) -> None:
    """Add what cannot be measured here, and the volume that is predicted."""
    add = group.add_argument
    add("--volume", type=_bytes, default="10TB", metavar="BYTES", help="(default: %(default)s)")
    add("--nodes", type=positive, default=64, metavar="N", help="nodes (default: %(default)s)")
    add("--gpus", type=positive, default=8, metavar="N", help="of a node (default: %(default)s)")
    add("--gpu-block", type=positive, default=512, metavar="N", help="side (default: %(default)s)")
    add("--gpu-voxels-per-second", type=_rate, metavar="X", help="that one GPU computes")
    add("--gpu-link", type=_bytes, metavar="BYTES", help="to one GPU, and back, in a second: 25GB")
    add("--storage", type=_bytes, metavar="BYTES", help="that a node moves in a second, as 3GB")


def bench_installed(given: argparse.Namespace) -> int:
    """Do it for an installed gpublocks, which is compared with loops over NumPy arrays."""
    return do(given, peers=bench.PEERS, facts={"commit": None})


def do(given: argparse.Namespace, *, peers: "Sequence[bench.Peer]", facts: dict[str, Any]) -> int:
    """Do what the arguments say and return the exit status.

    Parameters
    ----------
    given : Namespace
        Of one of the commands of `add_commands`.
    peers : sequence of Peer
        With which gpublocks is compared.
    facts : dict
        What results begin with.
    """
    if given.task == "compare":
        return _compare(given)
    if given.task == "list":
        return _list(peers)
    with terminable():
        return _scale(given, facts) if given.scaling else _run(given, peers, facts)


def _scale(given: argparse.Namespace, facts: dict[str, Any]) -> int:
    from gpublocks.bench.outlook import Stated, predict
    from gpublocks.bench.outlook_tables import outlook_tables
    from gpublocks.bench.scaling import scaling_case
    from gpublocks.bench.tables import print_tables
    from gpublocks.machine import cpu_count

    if given.names or given.plot is not None:
        raise PlanError("--scaling measures no cases, and draws no picture of them")
    check_output(given.output)
    check_folder(given.folder)
    stated = Stated(
        volume_bytes=given.volume,
        gpus=given.gpus,
        nodes=given.nodes,
        gpu_block=given.gpu_block,
        gpu_voxels_per_second=given.gpu_voxels_per_second,
        link_per_second=given.gpu_link,
        storage_per_second=given.storage,
    )
    case = scaling_case(quick=given.quick, workers=cpu_count())
    results = bench.run(
        [case], quick=given.quick, rounds=given.rounds, folder=given.folder, tell=teller()
    )
    (result,) = results["cases"]
    if "error" in result:
        print(f"failed: {result['error']}", file=sys.stderr)
        return 1
    results = {**facts, **results, "forecast": predict(results, stated)}
    write_results(given.output, results)
    print_tables(outlook_tables(results))
    _tell_load(results["machine"])
    return 0


def _tell_load(machine: dict[str, Any]) -> None:
    """Say so if others took the CPUs."""
    load = machine["load"]
    if load is not None and load > _IDLE:
        print(f"busy: {load:.1f} of {machine['cpus']} CPUs before it began; times are worth little")


def _list(peers: "Sequence[bench.Peer]") -> int:
    cases = bench.cases(peers=peers)
    for group in _GROUPS:
        print(f"{group}:")
        for case in cases:
            if case.group == group:
                print(f"  {case.name:<22} {case.measures}")
    print("compared with:")
    for peer in peers:
        lacking = bench.missing(peer.needs)
        print(f"  {peer.name:<22} {f'missing: {lacking} is not installed' if lacking else 'yes'}")
    return 0


def _run(given: argparse.Namespace, peers: "Sequence[bench.Peer]", facts: dict[str, Any]) -> int:
    from gpublocks.bench.tables import floors_text, print_tables, result_tables

    chosen = _chosen(bench.cases(quick=given.quick, peers=peers), given.names)
    check_output(given.output)
    check_folder(given.folder)
    if given.plot is not None:
        from gpublocks.bench.charts import check_chart

        check_chart(given.plot, [case.group for case in chosen])
    results = bench.run(
        chosen,
        quick=given.quick,
        rounds=given.rounds,
        seconds=_QUICK_SECONDS if given.quick and not given.rounds else math.inf,
        folder=given.folder,
        tell=teller(),
    )
    lacking = {peer.name: missing for peer in peers if (missing := bench.missing(peer.needs))}
    results = {**facts, **results, "missing": lacking}
    write_results(given.output, results)
    print_tables(result_tables(results))
    if results["floors"]:
        print(f"\nat best: {floors_text(results['floors'])}")
    _tell_load(results["machine"])
    for name, package in lacking.items():
        print(f"missing: {name}, since {package} is not installed")
    if given.plot is not None:
        from gpublocks.bench.charts import save_chart

        save_chart(results, given.plot)
        print(f"picture: {given.plot}")
    return 1 if any("error" in case for case in results["cases"]) else 0


def _chosen(cases: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return the cases that are named: by themselves, by patterns, by groups."""
    wanted = list(names) or ["peers"]
    known = [case.name for case in cases]
    for name in wanted:
        if name not in _GROUPS and not any(fnmatchcase(one, name) for one in known):
            raise PlanError(f"no case is called {name}; there are {', '.join(known)}")
    return [
        case
        for case in cases
        if any(case.group == name or fnmatchcase(case.name, name) for name in wanted)
    ]


def _compare(given: argparse.Namespace) -> int:
    from gpublocks.bench.comparing import change_tables, changes, gaps, slower
    from gpublocks.bench.tables import print_tables

    before, after = read_results(given.before), read_results(given.after)
    found = changes(before, after, threshold=given.threshold)
    if not {case["name"] for case in before["cases"]} & {case["name"] for case in after["cases"]}:
        raise PlanError(f"{given.before} and {given.after} have no case in common")
    print_tables(change_tables(before, after, found))
    worse = slower(found)
    for change in worse:
        print(f"slower: {change.case}, {change.label}: {change.ratio:.2f} times as much")
    lacking = gaps(before, after)
    for gap in lacking:
        print(gap.text)
    return 1 if worse or any(gap.broke for gap in lacking) else 0


def teller() -> Teller:
    """Return what prints lines with the time to the standard error."""
    begun = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {text}", file=sys.stderr, flush=True)

    return tell


def positive(text: str) -> int:
    """Return a positive whole number, as a type of argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 1 <= ratio < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return ratio


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return rate


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except PlanError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes such as 3GB") from None
