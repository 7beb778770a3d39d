"""Comparisons with other libraries: adapters, fresh processes, verdicts, pictures."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import PEERS
from gpublocks import bench
from gpublocks.bench.case import Case, Way
from gpublocks.bench.comparing import changes, gaps, slower
from gpublocks.bench.contests import OURS, WHOLE, Peer, contests
from gpublocks.bench.effort import Effort
from gpublocks.bench.jobs import read_voxels
from gpublocks.bench.measuring import measure_ways
from gpublocks.bench.opening import create_array, open_array
from gpublocks.bench.saved import write_results
from gpublocks.bench.stages import Nursery
from gpublocks.bench.standings import ideal_seconds, standings
from gpublocks.bench.tables import Table, as_text, print_tables, result_tables
from gpublocks.cli import main
from gpublocks.errors import PlanError, SinkError

linux = pytest.mark.skipif(sys.platform != "linux", reason="copies of processes: Linux")
CORE = ("gpublocks.bench.jobs", "gpublocks.block_processing", "scipy.ndimage")
SHAPE = (96, 70, 80)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with pytest.MonkeyPatch.context() as patch, Nursery() as opened:
        patch.syspath_prepend(Path(__file__).parent)
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volumes")


def small(case: Case) -> Case:
    """Return a case whose volume is small, so that its blocks have borders in them."""
    setup = case.setup
    assert setup is not None
    text = json.dumps([setup.options, [way.options for way in case.ways]])
    text = text.replace("128x192x256", "x".join(map(str, SHAPE))).replace(
        "[128, 192, 256]", str(list(SHAPE))
    )
    first, others = json.loads(text)
    imports = (*CORE, *case.needs)
    ways = [
        replace(way, options=options, imports=imports)
        for way, options in zip(case.ways, others, strict=True)
    ]
    return replace(case, setup=replace(setup, options=first, imports=imports), ways=tuple(ways))


def contest(peers: Sequence[Peer], suffix: str = ".npy") -> Case:
    cases = contests(peers, quick=False, workers=2)
    return small(next(case for case in cases if case.name == f"gaussian-{suffix[1:]}-small"))


# Of Zarr those that pickle it, or chunk it, in ways of their own: runs check all the others.
TRIED = [
    (peer, suffix)
    for peer in PEERS
    for suffix in peer.suffixes
    if suffix == ".npy" or peer.name in ("joblib", "dask, processes", "cubed")
]


@linux
@pytest.mark.parametrize(("peer", "suffix"), TRIED, ids=lambda v: getattr(v, "name", v))
def test_peers_give_the_voxels_of_the_whole_array(
    peer: Peer, suffix: str, nursery: Nursery, folder: Path
) -> None:
    if lacking := bench.missing((*peer.needs, *(["zarr"] if suffix == ".zarr" else []))):
        pytest.skip(f"{lacking} is not installed")
    case = contest([peer], suffix)
    ways = [way for way in case.ways if way.name == peer.name]
    raw = measure_ways(ways, case.setup, folder, rounds=1, stage=nursery, tell=lambda text: None)
    assert set(raw[peer.name]) == {"seconds", "blocks", "over_read", "cpu_seconds", "peak_bytes"}
    assert (raw[peer.name]["blocks"] == [1]) == (raw[peer.name]["over_read"] == [1])


def without_halo(function: Any, source: str, sink: str, *, halo: Any, **others: Any) -> None:
    image, result = open_array(source), open_array(sink, write=True)
    half = image.shape[0] // 2
    for part in (slice(half), slice(half, None)):
        result[part] = function(image[part])


def forgetful(function: Any, source: str, sink: str) -> None:
    image, result = open_array(source), open_array(sink, write=True)
    result[1:] = function(np.asarray(image))[1:]


@linux
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_a_peer_that_is_wrong_is_told_and_the_others_are_measured(
    suffix: str, nursery: Nursery, tmp_path: Path
) -> None:
    wrong = [
        Peer("without halo", "test_bench_peers:without_halo"),
        Peer("forgetful", "test_bench_peers:forgetful", cut=None),
        Peer("lost", "no_such_module:name"),
    ]
    case = contest([*bench.PEERS, *wrong], suffix)
    result = bench.measure(case, tmp_path, rounds=1, stage=nursery)
    assert list(result["raw"]) == [OURS, f"{OURS}, threads", WHOLE, "loop, threads"]
    assert set(result["failures"]) == {"without halo", "forgetful", "lost"}
    assert "voxels differ" in result["failures"]["without halo"]
    assert "voxels differ" in result["failures"]["forgetful"]
    assert "no_such_module" in result["failures"]["lost"]
    labels = [figure["label"] for figure in result["figures"]]
    assert f"{OURS} / loop, threads" in labels
    assert not [label for label in labels if "forgetful" in label]
    assert "failed: forgetful: ValueError" in as_text(
        result_tables({"cases": [result], "floors": {}})[0]
    )


@linux
def test_gpublocks_must_not_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    case = contest([])
    broken = {**case.ways[0].options, "subject": "test_bench_peers:without_halo", "plan": None}
    way = replace(case.ways[0], options=broken)
    with pytest.raises(RuntimeError, match="voxels differ"):
        bench.measure(replace(case, ways=(way,)), tmp_path, rounds=1)


def test_peers_that_are_not_installed_are_left_out_and_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gpublocks.cli.bench import _list

    gone = Peer("gone", "no_such_package:name", needs=("no_such_package.inner",))
    for case in bench.cases(peers=[*bench.PEERS, gone]):
        assert "gone" not in [way.name for way in case.ways]
    _list([*bench.PEERS, gone])
    assert "missing: no_such_package is not installed" in capsys.readouterr().out


class Remembering:
    """A program that counts, in its process, how often it was made."""

    made = 0

    def __init__(self, folder: Path) -> None:
        type(self).made += 1

    def prepare(self) -> int:
        return self.made

    def act(self) -> dict[str, float]:
        code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
        subprocess.run([sys.executable, "-c", code], check=True)
        return {"seconds": 1.0}

    def check(self) -> None:
        os._exit(3)


REMEMBERING = Way(
    "it", "test_bench_peers:Remembering", {}, fresh=True, imports=("test_bench_peers",)
)


@linux
def test_copies_are_fresh_and_their_deaths_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Nursery() as nursery:
        pids = set()
        for _ in range(2):
            with nursery(REMEMBERING, tmp_path) as copy:
                assert copy.do("prepare") == 1
                pids.add(copy.pid)
                with pytest.raises(RuntimeError, match=r"it: .*ended with status 3"):
                    copy.do("check")
        with nursery(REMEMBERING, tmp_path) as copy:
            assert copy.do("prepare") == 1
            pids.add(copy.pid)
        assert len(pids) == 3
        with pytest.raises(RuntimeError, match="no_such_module"):
            nursery(replace(REMEMBERING, program="no_such_module:Name"), tmp_path)
        with nursery(REMEMBERING, tmp_path) as copy:
            assert copy.do("prepare") == 1
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


@linux
def test_processors_of_ended_children_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Nursery() as nursery, nursery(REMEMBERING, tmp_path) as copy:
        with Effort(copy.pid) as effort:
            copy.do("act")
        assert effort.found["cpu_seconds"] > 0.25
        with Effort(copy.pid) as idle:
            time.sleep(0.02)
        assert idle.found["cpu_seconds"] < 0.1


@given(
    axes=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 22), st.integers(0, 5)), min_size=1, max_size=2
    )
)
def test_voxels_read_are_counted(axes: list[tuple[int, int, int]]) -> None:
    shape, block, halo = zip(*axes, strict=True)
    counted = np.zeros(shape, int)
    starts = [range(0, size, side) for size, side in zip(shape, block, strict=True)]
    for corner in np.ndindex(*[len(one) for one in starts]):
        box = []
        for n, at in enumerate(corner):
            start = starts[n][at]
            box.append(slice(max(0, start - halo[n]), start + block[n] + halo[n]))
        counted[tuple(box)] += 1
    assert read_voxels(shape, block, halo) == counted.sum()


def test_arrays_are_opened_as_they_were_created(tmp_path: Path) -> None:
    for name in ("a.npy", "a.zarr"):
        array = create_array(tmp_path / name, (5, 6), "uint16", chunk=4)
        array[...] = 7
        with pytest.raises((ValueError, TypeError, PermissionError)):
            open_array(tmp_path / name)[0] = 1
        open_array(tmp_path / name, write=True)[0] = 1
        assert np.asarray(open_array(str(tmp_path / name))[...]).sum() == 6 + 4 * 6 * 7


def measured(**seconds: list[float]) -> dict[str, Any]:
    raw = {
        name.replace("_", " "): {
            "seconds": times,
            "blocks": [4.0] * len(times),
            "over_read": [1.5] * len(times),
            "peak_bytes": [float(8 << 20)] * len(times),
        }
        for name, times in seconds.items()
    }
    parameters = {"shape": [8, 8], "dtype": "uint16", "workers": 2, "moved_bytes": 4_000_000_000}
    return {
        "name": "case",
        "group": "peers",
        "measures": "something",
        "parameters": parameters,
        "rounds": 3,
        "raw": raw,
        "failures": {},
    }


def test_standings_are_ratios_of_the_same_round() -> None:
    case = measured(gpublocks=[1.0, 2.0, 4.0], peer=[2.0, 2.0, 6.0], whole_array=[3.0, 4.0, 5.0])
    first, peer, whole = standings(case, {"copied_per_second": 4e9})
    assert (first.way, first.seconds, first.low, first.high, first.ratio) == (OURS, 2, 1, 4, 1)
    assert (peer.way, peer.ratio) == ("peer", 1.5)
    assert first.efficiency == 1.0
    assert whole.efficiency == 0.5
    assert peer.block_seconds == 0.0
    assert standings(measured(gpublocks=[5.0], whole_array=[8.0]), {})[0].block_seconds == 0.5
    assert first.peak_bytes == 8 << 20
    assert first.cpu_seconds is None


def test_ideal_is_bound_by_moving_too() -> None:
    case = measured(whole_array=[1.0])
    assert ideal_seconds(case, {}) == 0.5
    assert ideal_seconds(case, {"copied_per_second": 1e9}) == 2.0
    assert ideal_seconds(measured(gpublocks=[1.0]), {}) is None


def test_ideal_is_bound_by_the_disk_where_it_is_known_what_is_written() -> None:
    case = measured(whole_array=[1.0])
    floors = {"written_per_second": 1e9}
    assert ideal_seconds(case, floors) == 0.5
    case["parameters"]["written_bytes"] = 3_000_000_000
    assert ideal_seconds(case, floors) == 3.0
    assert ideal_seconds(case, {}) == 0.5
    for case in contests([], quick=False, workers=2):
        stored = 2 * np.prod(case.parameters["shape"])
        assert case.parameters.get("written_bytes", 0) == (0 if "zarr" in case.name else stored)


def test_table_says_who_is_ahead_and_by_how_much() -> None:
    case = measured(gpublocks=[2.0], peer=[1.0], whole_array=[3.0])
    text = as_text(result_tables({"cases": [case], "floors": {}})[0])
    assert "behind peer by 100 % (rounds: 1 only)" in text
    assert "behind whole" not in text
    rounds = measured(gpublocks=[2.0, 1.0, 3.0], peer=[1.0, 1.0, 1.0])
    text = as_text(result_tables({"cases": [rounds], "floors": {}})[0])
    assert "behind peer by 100 % (rounds: 0 to 200 %)" in text
    level = measured(gpublocks=[1.005], peer=[1.0])
    assert "ahead of all" in as_text(result_tables({"cases": [level], "floors": {}})[0])
    lines = as_text(
        result_tables({"cases": [{**case, "missing": "zarr"}, {**case, "error": "no"}]})[0]
    )
    assert "zarr is not installed" in lines


@pytest.mark.parametrize("rich", ["terminal", "file", "absent"])
def test_tables_are_printed_as_they_are(
    rich: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if rich == "absent":
        monkeypatch.setitem(sys.modules, "rich", None)
    elif bench.missing(["rich"]):
        pytest.skip("rich is not installed")
    if rich == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")
    print_tables([Table("title", ("way", "x"), (("[red]one[/red]", "1.5"),), ("[a] note",))])
    printed = capsys.readouterr().out
    assert "[red]one[/red]" in printed
    assert "[a] note" in printed
    assert ("\x1b" in printed) == (rich == "terminal")


def result(**figures: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "date": "2026-01-31",
        "machine": {"cpu": "a CPU", "cpus": 2},
        "versions": {"numpy": "2.0", "dask": None},
        "cases": [
            {
                "name": "case",
                "group": "peers",
                "figures": [
                    {
                        "label": name.replace("__", " / ").replace("_", ": "),
                        "unit": "s",
                        "median": middle,
                        "low": low,
                        "high": high,
                        "bound": None,
                        "passed": None,
                        "against": None,
                    }
                    for name, (middle, low, high) in figures.items()
                ],
            }
        ],
    }


def kinds(before: tuple[float, float, float], after: tuple[float, float, float]) -> str:
    (change,) = changes(result(gpublocks_time=before), result(gpublocks_time=after))
    return change.kind


def test_changes_are_told_beyond_threshold_and_spread() -> None:
    assert kinds((1.0, 0.9, 1.1), (1.3, 1.2, 1.4)) == "slower"
    assert kinds((1.3, 1.2, 1.4), (1.0, 0.9, 1.1)) == "faster"
    assert kinds((1.0, 0.9, 1.25), (1.3, 1.2, 1.4)) == "same"
    assert kinds((1.0, 1.0, 1.0), (1.09, 1.09, 1.09)) == "same"
    assert changes(result(gpublocks_time=(1, 1, 1)), result(other=(1, 1, 1))) == []


def test_only_what_is_ours_counts_as_slower() -> None:
    before = result(gpublocks_time=(1, 1, 1), peer_time=(1, 1, 1), gpublocks__peer=(1, 1, 1))
    after = result(gpublocks_time=(1, 1, 1), peer_time=(9, 9, 9), gpublocks__peer=(9, 9, 9))
    found = changes(before, after)
    assert [change.kind for change in found] == ["same", "slower", "slower"]
    assert slower(found) == []
    promised = [
        {**one, "cases": [{**one["cases"][0], "group": "promises"}]} for one in (before, after)
    ]
    assert len(slower(changes(*promised))) == 2


def saved(folder: Path, name: str, values: Any) -> str:
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return str(path)


def test_compare_tells_both_machines_and_fails_if_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved(tmp_path, "a.json", result(gpublocks_time=(1, 1, 1), peer_time=(2, 2, 2)))
    after = saved(
        tmp_path,
        "b.json",
        {**result(gpublocks_time=(1.5, 1.5, 1.5), peer_time=(4, 4, 4)), "commit": "abc"},
    )
    assert main(["bench", "compare", before, after]) == 1
    told = capsys.readouterr().out
    assert "a CPU, 2 CPUs" in told
    assert "abc" in told
    assert "slower: case, gpublocks: time: 1.50 times as much" in told
    assert "took 2.00 times as long" in told
    assert "one round" not in told
    once = result(gpublocks_time=(1, 1, 1))
    once["cases"][0]["rounds"] = 1
    main(["bench", "compare", before, saved(tmp_path, "c.json", once)])
    assert "no spread is known, and no verdict: case" in capsys.readouterr().out
    assert main(["bench", "compare", before, after, "--threshold", "1.6"]) == 0
    assert main(["bench", "compare", before, before]) == 0


def with_case(found: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**found, "cases": [{**found["cases"][0], **changed}]}


def test_one_round_gives_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (result(gpublocks_time=(n, n, n)) for n in (1, 9))
    assert [one.kind for one in changes(before, after)] == ["slower"]
    for pair in (
        (with_case(before, rounds=1), with_case(after, rounds=3)),
        (with_case(before, rounds=3), with_case(after, rounds=1)),
    ):
        assert [one.kind for one in changes(*pair)] == ["unknown"]
        assert main(["bench", "compare", *[saved(tmp_path, f"{n}", pair[n]) for n in (0, 1)]]) == 0
        assert "0 of 0 figures with a spread" in capsys.readouterr().out


def test_other_work_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (result(gpublocks_time=(n, n, n)) for n in (1, 9))
    small = {**with_case(before, parameters={"shape": (8, 8)}), "quick": True, "folder": "/a"}
    same = with_case(after, parameters={"shape": [8, 8]})
    large = {**with_case(after, parameters={"shape": [9, 9]}), "quick": False, "folder": "/b"}
    assert [one.kind for one in changes(small, same)] == ["slower"]
    assert changes(small, large) == gaps(small, large) == []
    large["floors"] = {"written_per_second": 2e9}
    files = [saved(tmp_path, "a", small), saved(tmp_path, "b", large)]
    assert main(["bench", "compare", *files]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "left out, since parameters differ: case" in lines
    assert "quick True False" in lines
    assert "folder /a /b" in lines
    assert "at best disk written at 2 GB/s" in lines


def test_what_broke_or_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = result(gpublocks_time=(1, 1, 1), peer_time=(1, 1, 1), gpublocks__peer=(1, 1, 1))
    case = {key: value for key, value in good["cases"][0].items() if key != "figures"}
    failed = {**good, "cases": [{**case, "error": "no luck"}]}
    skipped = {**good, "cases": [{**case, "skipped": "50 s were over"}]}
    without_peer = with_case(result(gpublocks_time=(1, 1, 1)), failures={"peer": "peer: wrong"})
    without_ours = result(peer_time=(1, 1, 1), gpublocks__peer=(1, 1, 1))
    gone = with_case(good, name="other")
    for other, after, before in (
        (failed, ["case: failed: no luck"], True),
        (skipped, ["case: not measured: 50 s were over"], False),
        (without_peer, ["case: failed: peer: wrong"], False),
        (without_ours, ["case: gpublocks: time is not there"], True),
    ):
        files = [saved(tmp_path, "a", good), saved(tmp_path, "b", other)]
        assert main(["bench", "compare", *files]) == int(before)
        told = capsys.readouterr().out.splitlines()
        assert [line for line in told if line.startswith("after: ")] == [
            f"after: {text}" for text in after
        ]
        assert main(["bench", "compare", *reversed(files)]) == 0
        assert f"before: {after[0]}" in capsys.readouterr().out
    assert [(gap.text, gap.broke) for gap in gaps(good, gone)] == [
        ("before: other: is not there", False),
        ("after: case: is not there", True),
    ]
    assert gaps(failed, failed) == gaps(good, good) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "has no results"),
        ('{"cases": [1]}', "has no results"),
        ('{"cases": [{"name": "a", "figures": [{"label": "b", "unit": "s"}]}]}', "has no results"),
    ],
)
def test_compare_refuses_other_files(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, "a.json", content)
    assert main(["bench", "compare", path, path]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "no.json", "no.json"], "cannot read no.json"),
        (["compare", "a", "b", "--threshold", "0.5"], "is not a number from 1 on"),
        (["run", "no-*"], "no case is called no-*"),
        (["run", "-o", "no/such/folder.json"], "no such folder"),
        (["run", "-o", "."], "it is a folder"),
        (["run", "--folder", "no/such"], "no such folder: no/such"),
        (["run", "--scaling", "--folder", "no/such"], "no such folder: no/such"),
        (["run", "promises", "--plot", "a.png"], "nothing to draw"),
        (["run", "--plot", "no/such/picture.png"], "is no folder"),
        (["run", "--rounds", "0"], "is not a positive whole number"),
        (["run", "--scaling", "--gpu-voxels-per-second", "-1"], "is not a positive number"),
        (["run", "--scaling", "--volume", "much"], "is no number of bytes"),
        (["run", "--scaling", "-o", "no/such/folder.json"], "no such folder"),
        (["run", "gaussian-*", "--scaling"], "measures no cases"),
        ([], "required"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_measured(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "run", None)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@linux
def test_installed_users_measure_draw_and_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    output, picture = tmp_path / "found.json", tmp_path / "found.png"
    options = ["--quick", "--rounds", "1", "--folder", str(tmp_path)]
    options += ["-o", str(output), "--plot", str(picture)]
    assert main(["bench", "run", "gaussian-npy-*", *options]) == 0
    told = capsys.readouterr().out
    assert "gaussian-npy-small" in told
    assert "memory copied at" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["floors"]) >= {"copied_per_second", "written_per_second"}
    assert found["missing"] == {}
    assert set(found["cases"][0]["raw"]) == {OURS, f"{OURS}, threads", WHOLE, "loop, threads"}
    assert sorted(tmp_path.iterdir()) == [output, picture]
    assert main(["bench", "compare", str(output), str(output)]) == 0


def test_a_picture_without_matplotlib_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run", None)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["bench", "run", "--plot", str(tmp_path / "a.png")]) == 2
    assert "needs matplotlib, which is not installed" in capsys.readouterr().err


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SinkError, match=r"cannot write .*a\.json: No space left"):
        write_results(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_picture_needs_something_to_draw(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gpublocks.bench.charts import save_chart

    with pytest.raises(PlanError, match="no case with peers"):
        save_chart({"cases": []}, tmp_path / "a.png")
    wide = measured(gpublocks=[0.01, 0.02, 0.01], peer=[1.0, 5.0, 2.0], whole_array=[0.1] * 3)
    save_chart({"cases": [wide]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_where_time_is_short_slow_peers_take_part_once_and_last() -> None:
    slow = Peer("slow", "a:b", often=False, warm=False)
    chunked = replace(slow, name="chunked", suffixes=(".zarr",))
    peers = [*bench.PEERS, slow, chunked, Peer("left out", "a:b", quick=False)]
    cases = contests(peers, quick=True, workers=2)
    ways = [[way.name for way in case.ways] for case in cases]
    ours = [OURS, f"{OURS}, threads"]
    assert ways[:-2] == [[*ours, WHOLE, "loop, threads"]] * 4
    assert ways[-2:] == [[*ours, WHOLE, "slow"], [*ours, WHOLE, "chunked"]]
    assert [case.rounds for case in cases] == [3, 3, 3, 3, 1, 1]
    for case in contests([slow, peers[-1]], quick=False, workers=2):
        assert {"slow", "left out"} < {way.name for way in case.ways}


def test_peers_without_time_are_told() -> None:
    case = {**measured(gpublocks=[2.0]), "left_out": ["joblib", "cubed"]}
    text = as_text(result_tables({"cases": [case], "floors": {}})[0])
    assert "left out, since time was over: joblib, cubed" in text
    skipped = {**case, "skipped": "50 s were over"}
    assert "50 s were over" in as_text(result_tables({"cases": [skipped], "floors": {}})[0])


def test_a_busy_machine_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"machine": {"load": 1.26, "cpus": 2}, "floors": {}, "cases": []}
    monkeypatch.setattr(bench, "run", lambda *args, **options: found)
    assert main(["bench", "run"]) == 0
    assert "busy: 1.3 of 2 CPUs" in capsys.readouterr().out
    found["machine"] = {"load": 0.1, "cpus": 2}
    assert main(["bench", "run"]) == 0
    assert "busy" not in capsys.readouterr().out


def test_cases_agree_with_themselves() -> None:
    for quick in (False, True):
        cases = contests(PEERS, quick=quick, workers=2)
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            ways = [way.name for way in case.ways]
            assert ways[0] == OURS
            assert len(set(ways)) == len(ways)
            for figure in case.figures:
                assert {figure.way, *figure.against} <= set(ways)
                assert figure.bound is None
            assert all(way.may_fail != way.name.startswith(OURS) for way in case.ways)
            json.dumps([way.options for way in case.ways])
