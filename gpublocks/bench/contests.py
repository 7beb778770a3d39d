"""Cases in which gpublocks is compared with its peers, from files to files. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from gpublocks.bench.case import Case, Figure, Way
from gpublocks.bench.opening import CHUNK
from gpublocks.bench.works import GAUSSIAN, MEDIAN, PLAN, PROCESS, TIMES_TWO, TOPHAT, Work

__all__ = ["OURS", "PEERS", "PLANNED", "WHOLE", "Peer", "contests"]

OURS = "gpublocks"
"""The way that is compared with all others."""
WHOLE = "whole array"
"""The way whose time the ideal is a part of."""
PLANNED = "gpublocks.bench.jobs:planned_block"
"""Cuts the volume as gpublocks does."""
_MIB = 1 / 2**20
_ITEM = 2
"""Bytes of a voxel."""
_TINY, _TINY_CHUNK = 64, 32
_CORE = ("gpublocks.bench.jobs", "gpublocks.block_processing", "scipy.ndimage")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way of doing the work of `process`.

    Parameters
    ----------
    name : str
    subject : str
        ``'module:name'`` of a function with its signature, which is given paths of files. One that
        cuts the volume also gets `block` (shape without halos), `halo` and `workers`.
    needs : tuple of str
        Modules that must be installed.
    options : mapping
        Further arguments of `subject`.
    cut : str or None
        ``'module:name'`` of what returns the shape of a block, for function, source, sink and
        options; None for one that does not cut.
    suffixes : tuple of str
        Formats that it can read and write.
    quick : bool
        Whether it takes part where time is short.
    often : bool
        Whether it then takes part in each case and round; one whose processes take long to start
        is measured once, with one work, after all others.
    warm : bool
        Whether a call leaves anything that makes the next one faster, so that a tiny one is made
        before each measurement.
    """

    name: str
    subject: str
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    cut: str | None = PLANNED
    suffixes: tuple[str, ...] = (".npy", ".zarr")
    quick: bool = True
    often: bool = True
    warm: bool = True


PEERS = (
    Peer(WHOLE, "gpublocks.bench.loops:whole_file", cut=None),
    Peer("loop, threads", "gpublocks.bench.loops:threaded_files"),
)
"""What needs nothing but NumPy."""

_OPENING = replace(TOPHAT, name="tophat", kwargs={"size": 5}, halo=(4, 4, 4))
_SIZES: tuple[tuple[Work, Mapping[str, tuple[int, ...]]], ...] = (
    (GAUSSIAN, {"small": (128, 192, 256), "large": (256, 384, 384)}),
    (MEDIAN, {"small": (96, 96, 96), "large": (192, 256, 256)}),
    (_OPENING, {"small": (128, 192, 256), "large": (256, 384, 384)}),
    (TIMES_TWO, {"small": (256, 256, 256), "large": (512, 512, 512)}),
)
_ROUNDS, _QUICK_ROUNDS = {"small": 5, "large": 3}, 3
_QUICK = {".npy": ("gaussian", "median", "times-two"), ".zarr": ("gaussian",)}
_FORMATS = (".npy", ".zarr")


def contests(peers: Sequence[Peer], *, quick: bool, workers: int) -> tuple[Case, ...]:
    """Return the cases in which gpublocks is compared with these peers.

    Parameters
    ----------
    quick : bool
        Some works, small volumes, few rounds.
    workers : int
        For whoever takes a number.
    """
    if quick:
        return _quick_contests(peers, workers)
    return tuple(
        replace(
            _contest(work, shapes[size], suffix, _able(peers, suffix), workers),
            name=_called(work, suffix, size),
            rounds=_ROUNDS[size],
        )
        for size, suffix, (work, shapes) in product(_ROUNDS, _FORMATS, _SIZES)
    )


def _quick_contests(peers: Sequence[Peer], workers: int) -> tuple[Case, ...]:
    """Return cases of some works with the fast peers, then one for each format with the others."""
    present = [peer for peer in peers if peer.quick]
    slow = [peer for peer in present if not peer.often]
    fast_cases, slow_cases = [], []
    for suffix, short in _QUICK.items():
        often = [peer for peer in _able(present, suffix) if peer.often]
        for work, shapes in _SIZES:
            if work.name in short:
                case = _contest(work, shapes["small"], suffix, often, workers)
                name = _called(work, suffix, "small")
                fast_cases.append(replace(case, name=name, rounds=_QUICK_ROUNDS))
        if taken := _able(slow, suffix):
            work, shapes = _SIZES[0]
            whole = [peer for peer in often if peer.name == WHOLE]
            case = _contest(work, shapes["small"], suffix, [*whole, *taken], workers)
            slow_cases.append(replace(case, name=_called(work, suffix, "small-once")))
        slow = [peer for peer in slow if peer not in taken]
    return (*fast_cases, *slow_cases)


def _able(peers: Sequence[Peer], suffix: str) -> list[Peer]:
    return [peer for peer in peers if suffix in peer.suffixes]


def _called(work: Work, suffix: str, size: str) -> str:
    return f"{work.name}-{suffix[1:]}-{size}"


def _contest(
    work: Work, shape: tuple[int, ...], suffix: str, peers: Sequence[Peer], workers: int
) -> Case:
    ways = [
        _our_way(OURS, work, shape, suffix, {"processes": workers, "device": "cpu"}),
        _our_way(
            f"{OURS}, threads",
            work,
            shape,
            suffix,
            {"processes": workers, "device": "cpu", "executor": "threads"},
        ),
    ]
    ways += [_peer_way(peer, work, shape, suffix, workers) for peer in peers]
    figures = [Figure(f"{way.name}: time", "s", None, way.name) for way in ways]
    figures += [
        Figure(f"{way.name}: peak", "MiB", None, way.name, "peak_bytes", scale=_MIB) for way in ways
    ]
    figures += [
        Figure(f"{OURS} / {peer.name}", "x", None, OURS, compare="ratio", against=(peer.name,))
        for peer in peers
    ]
    return Case(
        work.name,
        f"{work.function.partition(':')[2]} from {suffix} to {suffix}",
        {
            "shape": shape,
            "dtype": "uint16",
            "halo": work.halo,
            **work.kwargs,
            "workers": workers,
            "moved_bytes": 2 * _ITEM * prod(shape),
            # How much is left of what is compressed is not known before.
            **({} if suffix == ".zarr" else {"written_bytes": _ITEM * prod(shape)}),
        },
        "the same function called on the whole array, voxel for voxel",
        tuple(ways),
        tuple(figures),
        1,
        _building(work, shape, suffix),
        group="peers",
        needs=("zarr",) if suffix == ".zarr" else (),
    )


def _our_way(
    name: str,
    work: Work,
    shape: tuple[int, ...],
    suffix: str,
    options: Mapping[str, Any],
) -> Way:
    given = {"halo": work.halo, **options}
    longest = _TINY_CHUNK + 2 * max(work.halo)
    return Way(
        name,
        "gpublocks.bench.jobs:FileWork",
        {
            **_files(work, shape, suffix),
            "subject": PROCESS,
            "options": given,
            "warm": {**given, "axes": [0], "size_max": longest},
            "plan": PLAN,
        },
        fresh=True,
        imports=_imports((), suffix),
        apart=True,
    )


def _peer_way(peer: Peer, work: Work, shape: tuple[int, ...], suffix: str, workers: int) -> Way:
    options = dict(peer.options)
    if peer.cut is not None:
        options |= {"halo": work.halo, "workers": workers}
    warm = options if peer.cut is None else {**options, "block": (_TINY_CHUNK,) * len(shape)}
    return Way(
        peer.name,
        "gpublocks.bench.jobs:FileWork",
        {
            **_files(work, shape, suffix),
            "subject": peer.subject,
            "options": options,
            "warm": warm if peer.warm else None,
            "cut": peer.cut,
        },
        fresh=True,
        imports=_imports(peer.needs, suffix),
        may_fail=True,
        apart=True,
    )


def _imports(needs: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    return (*_CORE, *needs, *(("zarr",) if suffix == ".zarr" else ()))


def _files(work: Work, shape: tuple[int, ...], suffix: str) -> dict[str, Any]:
    name = _named(shape)
    return {
        "function": work.function,
        "kwargs": work.kwargs,
        "source": name,
        "tiny": _named((_TINY,) * len(shape)),
        "expected": f"{work.name}-{name}",
        "suffix": suffix,
    }


def _building(work: Work, shape: tuple[int, ...], suffix: str) -> Way:
    files = _files(work, shape, suffix)
    tiny = (_TINY,) * len(shape)
    stored = {files["source"]: CHUNK, files["tiny"]: _TINY_CHUNK} if suffix == ".zarr" else {}
    return Way(
        "building volumes",
        "gpublocks.bench.volumes:Built",
        {
            "volumes": {files["source"]: (shape, "camera"), files["tiny"]: (tiny, "camera")},
            "expected": [
                {
                    "name": files["expected"],
                    "source": files["source"],
                    "function": work.function,
                    "kwargs": work.kwargs,
                }
            ],
            "stored": stored,
        },
        fresh=True,
        imports=_imports((), suffix),
    )


def _named(shape: Sequence[int]) -> str:
    return f"camera-{'x'.join(map(str, shape))}"
