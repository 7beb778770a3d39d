"""The measuring core and its frozen cases, for everyone who has gpublocks installed.

Touches processes, files in a temporary folder and /proc, when something is measured. Printing is
left to the command line.

What is measured is named by text (``'gpublocks.block_processing:process'``) and loaded in a process
of its own: other libraries take part in the same way, through functions of the same signature.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpublocks.bench.case import Case
    from gpublocks.bench.contests import PEERS as PEERS
    from gpublocks.bench.contests import Peer as Peer

__all__ = ["PEERS", "Peer", "cases", "facts", "measure", "missing", "run", "serve"]

Teller = Callable[[str], None]
_FLOOR_BYTES = 512 << 20
_QUICK_FLOOR_BYTES = 128 << 20


def __getattr__(name: str) -> Any:
    if name not in ("PEERS", "Peer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("gpublocks.bench.contests"), name)


def cases(*, quick: bool = False, peers: "Sequence[Peer] | None" = None) -> "tuple[Case, ...]":
    """Return all cases: first those in which gpublocks is compared with peers.

    Parameters
    ----------
    quick : bool
        Small volumes, few rounds.
    peers : sequence of Peer, optional
        By default those that need nothing but NumPy. Ones that are not installed are left out.
    """
    from gpublocks.bench.catalogue import make_cases
    from gpublocks.bench.contests import PEERS, contests
    from gpublocks.machine import cpu_count

    present = [peer for peer in (PEERS if peers is None else peers) if not missing(peer.needs)]
    return (
        *contests(present, quick=quick, workers=cpu_count()),
        *make_cases(quick=quick),
    )


def missing(needs: Iterable[str]) -> str:
    """Return the first of some modules whose package is not installed, or nothing."""
    packages = [name.partition(".")[0] for name in needs]
    return next((name for name in packages if find_spec(name) is None), "")


def measure(
    case: "Case",
    folder: Path,
    *,
    rounds: int | None = None,
    stage: Callable[[Any, Path], Any] | None = None,
    deadline: float = math.inf,
    end: float = math.inf,
    tell: Teller = lambda text: None,
) -> dict[str, Any]:
    """Measure one case.

    Parameters
    ----------
    case : Case
    folder : Path
        Where volumes are built; those that are there are taken as they are.
    rounds : int, optional
        How often everything is measured; the case says so by default.
    stage : callable, optional
        Opens the place where a way is measured; by default a process of its own.
    deadline : float
        By `time.monotonic`: no round but the first begins after it.
    end : float
        No peer is measured for the first time after it.
    tell : callable, optional
        Is called with a line of text when something begins.

    Returns
    -------
    dict
        Of plain values, for JSON: ``name``, ``group``, ``measures``, ``parameters``,
        ``reference``, ``rounds``; ``figures``: a list of dicts with ``label``, ``unit``,
        ``median``, ``low``, ``high``, ``bound``, ``passed``, ``against``; ``raw``: all
        measurements by way and quantity; ``failures``: why peers failed, by way; ``left_out``:
        peers for which there was no time.

    Raises
    ------
    RuntimeError
        If a way of gpublocks' own fails or gives another result than the function over the whole
        volume.
    """
    from gpublocks.bench.judging import judge_all
    from gpublocks.bench.measuring import measure_ways
    from gpublocks.bench.stages import Nursery

    rounds = case.rounds if rounds is None else rounds
    failures: dict[str, str] = {}
    with nullcontext(stage) if stage is not None else Nursery() as opened:
        raw = measure_ways(
            case.ways,
            case.setup,
            folder,
            rounds=rounds,
            stage=opened,
            tell=tell,
            failures=failures,
            deadline=deadline,
            end=end,
        )
    late = [way.name for way in case.ways if way.may_fail and way.name not in raw.keys() | failures]
    return {
        "name": case.name,
        "group": case.group,
        "measures": case.measures,
        "parameters": dict(case.parameters),
        "reference": case.reference,
        "rounds": _rounds_done(raw),
        "figures": [asdict(outcome) for outcome in judge_all(case.figures, raw)],
        "raw": raw,
        "failures": failures,
        "left_out": late,
    }


def _rounds_done(raw: Mapping[str, Mapping[str, Sequence[float]]]) -> int:
    return max((len(values) for found in raw.values() for values in found.values()), default=0)


def run(
    chosen: "Iterable[Case]",
    *,
    quick: bool = False,
    rounds: int | None = None,
    seconds: float = math.inf,
    folder: Path | None = None,
    tell: Teller = lambda text: None,
) -> dict[str, Any]:
    """Measure some cases and return all there is to know of it, as plain values for JSON.

    A case that fails is noted with its ``error`` and does not keep the others from being measured;
    one that needs what is not installed is noted with ``missing``, one that there was no time for
    with ``skipped``.

    Parameters
    ----------
    chosen : iterable of Case
    quick : bool
        Whether little time is taken for what the machine can do at best.
    rounds, tell
        See `measure`.
    seconds : float
        For all cases, each of which has a share by its rounds: none but its first begins later.
        Cases and peers that come after all of it are left out.
    folder : Path, optional
        Parent of the temporary folder for the volumes.
    """
    from gpublocks.bench.stages import Nursery

    results: list[dict[str, Any]] = []
    floors: dict[str, float] = {}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    # The load is to be that of others.
    known_facts = facts()
    begun, able = time.monotonic(), [*chosen]
    end, total = begun + seconds, sum(case.rounds for case in able)
    shares = accumulate(case.rounds / total for case in able)
    with (
        tempfile.TemporaryDirectory(prefix="gpublocks-bench-", dir=folder) as volumes,
        Nursery() as stage,
    ):
        for share, case in zip(shares, able, strict=True):
            known = {"name": case.name, "group": case.group, "measures": case.measures}
            if lacking := missing(case.needs):
                results.append({**known, "missing": lacking})
                continue
            if time.monotonic() > end:
                results.append({**known, "skipped": f"{seconds:.0f} s were over"})
                continue
            tell(case.name)
            try:
                if case.group != "promises" and not floors:
                    floors = _floors(Path(volumes), _QUICK_FLOOR_BYTES if quick else _FLOOR_BYTES)
                results.append(
                    measure(
                        case,
                        Path(volumes),
                        rounds=rounds,
                        stage=stage,
                        deadline=begun + seconds * share,
                        end=end,
                        tell=tell,
                    )
                )
            except RuntimeError as error:
                tell(f"failed: {error}")
                results.append({**known, "error": str(error)})
    place = str(tempfile.gettempdir() if folder is None else folder.absolute())
    return {
        "date": date,
        "quick": quick,
        "folder": place,
        **known_facts,
        "floors": floors,
        "cases": results,
    }


def _floors(folder: Path, nbytes: int) -> dict[str, float]:
    """Return what the machine can do at best (see `gpublocks.bench.floors.Floors`)."""
    from gpublocks.bench.case import Way
    from gpublocks.bench.stages import Stage
    from gpublocks.machine import cpu_count

    options = {"nbytes": nbytes, "threads": cpu_count()}
    with Stage(Way("floors", "gpublocks.bench.floors:Floors", options), folder) as stage:
        found: dict[str, float] = stage.do("act")
    return found


def facts() -> dict[str, Any]:
    """Return what should be known of this machine and its software beside any figure."""
    from gpublocks.bench.surroundings import machine_facts

    return machine_facts()


def serve() -> None:
    """Be a process in which a program is measured: obey requests on the standard input."""
    from gpublocks.bench.stage import serve_requests

    serve_requests()
