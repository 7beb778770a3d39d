"""The measuring core, its arithmetic, its cases, its command line. No figure is judged here."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from gpublocks import bench
from gpublocks.bench.case import Case, Figure, Way
from gpublocks.bench.judging import judge, paired
from gpublocks.bench.loops import threaded_loop, times_two, times_two_loop, whole
from gpublocks.bench.measuring import measure_ways, worth_repeating
from gpublocks.bench.stages import Stage
from gpublocks.bench.tables import as_text, promises_table, result_tables
from gpublocks.bench.volumes import blobs
from gpublocks.memory import Peak, tree

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and worker processes: Linux")


class Here:
    """A stage in this process: saves the start of an interpreter."""

    def __init__(self, way: Way, folder: Path) -> None:
        module, _, name = way.program.partition(":")
        options = json.loads(json.dumps(way.options))
        self.program = getattr(import_module(module), name)(folder, **options)
        self.pid = os.getpid()

    def do(self, method: str) -> Any:
        return getattr(self.program, method)()

    def close(self) -> None:
        self.program = None

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Counting:
    """A program that notes its calls and whose measurements count up."""

    calls: list[tuple[str, str]] = []  # noqa: RUF012 - shared on purpose, reset by each test

    def __init__(self, folder: Path, *, name: str, seconds: float = 1.0) -> None:
        self.name = name
        self.seconds = seconds

    def prepare(self) -> None:
        self.calls.append((self.name, "prepare"))

    def act(self) -> dict[str, float]:
        self.calls.append((self.name, "act"))
        self.seconds += 1
        return {"seconds": self.seconds}

    def check(self) -> None:
        self.calls.append((self.name, "check"))


class Talking:
    """A program that prints, then fails."""

    def __init__(self, folder: Path) -> None: ...

    def prepare(self) -> None:
        print("not an answer")
        os.write(1, b"nor this\n")

    def act(self) -> dict[str, float]:
        raise ZeroDivisionError("told so")

    def check(self) -> None:
        os._exit(3)


class Growing:
    """A program that takes 64 MiB for a moment."""

    def __init__(self, folder: Path) -> None: ...

    def prepare(self) -> None: ...

    def act(self) -> dict[str, float]:
        block = np.ones(64 << 20, np.uint8)
        time.sleep(0.1)
        return {"seconds": float(block[0])}

    def check(self) -> None: ...


def writes_half(function: Any, source: Any, sink: Any) -> None:
    half = len(source) // 2
    sink[:half] = function(np.asarray(source))[:half]


def counting(name: str, seconds: float = 1.0, rival: str | None = None) -> Way:
    return Way(name, "test_bench:Counting", {"name": name, "seconds": seconds}, rival)


def measured(
    ways: Sequence[Way], folder: Path, rounds: int, deadline: float = math.inf
) -> dict[str, Any]:
    Counting.calls = []
    return measure_ways(
        ways, None, folder, rounds=rounds, stage=Here, tell=lambda text: None, deadline=deadline
    )


FIGURE = Figure("it", "x", 1.5, "a", compare="ratio", against=("b", "c", "gone"), scale=2.0)
RAW = {
    "a": {"seconds": [3.0, 4.0, 8.0]},
    "b": {"seconds": [9.0, 8.0, 7.0]},
    "c": {"seconds": [3.0, 8.0, 2.0]},
}


def test_ratio_is_taken_pair_by_pair_with_the_fastest() -> None:
    outcome = judge(FIGURE, RAW)
    assert outcome.against == "c"
    assert (outcome.median, outcome.low, outcome.high) == (2.0, 1.0, 8.0)
    assert outcome.passed is False
    assert judge(replace(FIGURE, bound=2.0), RAW).passed is True
    assert judge(replace(FIGURE, bound=None), RAW).passed is None


def test_measurements_of_other_rounds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge(FIGURE, {**RAW, "c": {"seconds": [3.0, 2.0]}})


def test_value_and_difference() -> None:
    value = judge(replace(FIGURE, compare="value"), RAW)
    assert (value.median, value.low, value.high, value.against) == (8.0, 6.0, 16.0, None)
    assert judge(replace(FIGURE, compare="difference"), RAW).median == 0.0
    assert paired("difference", [3.0, 1.0], [1.0, 3.0]) == [2.0, -2.0]
    with pytest.raises(ValueError, match="zip"):
        paired("ratio", [1.0], [1.0, 2.0])


def test_table_says_what_holds_and_by_how_much_not() -> None:
    figure = {"label": "f", "unit": "ms", "median": 15.0, "low": 9.0, "high": 20.0, "against": None}
    results = [
        {"name": "one", "figures": [{**figure, "bound": 10.0, "passed": False}]},
        {"name": "two", "figures": [{**figure, "bound": 20.0, "passed": True}]},
        {"name": "three", "error": "no luck"},
    ]
    head, _, one, two, three = as_text(promises_table(results)).splitlines()
    assert head.split() == ["case", "figure", "median", "spread", "bound", "holds", "against"]
    assert " ".join(one.split()) == "one f 15.0 ms 9.00 .. 20.0 10.0 no, +50 %"
    assert two.split()[-1] == "yes"
    assert " ".join(three.split()) == "three failed no luck"


def test_ways_take_turns_after_a_checked_warm_up(tmp_path: Path) -> None:
    raw = measured([counting("a"), counting("b")], tmp_path, rounds=3)
    assert raw == {"a": {"seconds": [3.0, 4.0, 5.0]}, "b": {"seconds": [3.0, 4.0, 5.0]}}
    warm_up, rounds = Counting.calls[:6], Counting.calls[6:]
    assert warm_up == [(n, do) for n in "ab" for do in ("prepare", "act", "check")]
    assert [name for name, do in rounds if do == "act"] == list("abbaab")


def test_peers_do_not_begin_after_the_end(tmp_path: Path) -> None:
    ways = [replace(counting(name), fresh=True, may_fail=name != "a") for name in "abc"]
    past = time.monotonic() - 1
    Counting.calls = []
    options: dict[str, Any] = {"rounds": 2, "stage": Here, "tell": lambda text: None}
    assert set(measure_ways(ways, None, tmp_path, end=past, **options)) == {"a"}
    assert {name for name, _ in Counting.calls} == {"a"}
    assert set(measure_ways(ways, None, tmp_path, end=past + 600, **options)) == {*"abc"}
    case = replace(QUICK[0], ways=tuple(ways), figures=())
    assert bench.measure(case, tmp_path, stage=Here, end=past)["left_out"] == ["b", "c"]
    assert bench.measure(case, tmp_path, stage=Here)["left_out"] == []


def test_no_round_but_the_first_begins_after_the_deadline(tmp_path: Path) -> None:
    past = time.monotonic() - 1
    for deadline, rounds in ((past, 1), (past + 600, 3)):
        raw = measured([counting("a")], tmp_path, rounds=3, deadline=deadline)
        assert len(raw["a"]["seconds"]) == rounds


def test_cases_share_the_time_and_say_how_many_rounds_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    case = replace(QUICK[0], ways=(counting("way"),), figures=(), rounds=2)
    given: list[float] = []
    measure = bench.measure

    def noted(*args: Any, deadline: float, **options: Any) -> dict[str, Any]:
        given.append(deadline)
        return measure(*args, deadline=deadline, **options)

    monkeypatch.setattr(bench, "measure", noted)
    results = bench.run([case, replace(case, rounds=6)], seconds=1000.0, folder=tmp_path)
    assert given[1] - given[0] == pytest.approx(750.0)
    assert [case["rounds"] for case in results["cases"]] == [2, 6]
    Counting.calls = []
    results = bench.run([case], seconds=-1.0, folder=tmp_path)
    assert Counting.calls == []
    assert results["cases"][0]["skipped"] == "-1 s were over"
    assert "-1 s were over" in as_text(result_tables(results)[0])


def test_only_the_best_rivals_are_repeated(tmp_path: Path) -> None:
    ways = [counting("ours", 50.0), counting("slow", 9.0, "loop"), counting("fast", 5.0, "loop")]
    assert list(measured(ways, tmp_path, rounds=1)) == ["ours", "fast"]
    near = worth_repeating(ways, {"ours": 50.0, "slow": 9.1, "fast": 9.0})
    assert near == ways


def test_stage_keeps_prints_apart_and_passes_failures_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Stage(Way("talker", "test_bench:Talking", {}), tmp_path) as stage:
        assert stage.pid != os.getpid()
        assert stage.do("prepare") is None
        with pytest.raises(RuntimeError, match="talker: ZeroDivisionError: told so"):
            stage.do("act")
        with pytest.raises(RuntimeError, match="talker: its process ended with status 3"):
            stage.do("check")
    with pytest.raises(RuntimeError, match="no_such_module"):
        Stage(Way("lost", "no_such_module:Name", {}), tmp_path)


@linux
def test_memory_of_a_fresh_process_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    way = Way("grower", "test_bench:Growing", {}, fresh=True)
    raw = measure_ways([way], None, tmp_path, rounds=1, tell=lambda text: None)
    (peak,) = raw["grower"]["peak_bytes"]
    assert 63 << 20 < peak < 80 << 20


@linux
@pytest.mark.parametrize("told", [True, False])
def test_tree_holds_grandchildren(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not told:
        monkeypatch.setattr("gpublocks.memory._KNOWN", "/proc/of/another/kernel")
    code = (
        "import subprocess as s; p = s.Popen(['cat'], stdin=0); print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(tree(os.getpid()))
        assert tree(child.pid) == [child.pid, grandchild]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    block=st.tuples(*[st.integers(0, 16)] * 3),
    halo=st.integers(2, 3),
)
def test_hand_written_loop_equals_whole(
    shape: tuple[int, ...], block: tuple[int, ...], halo: int
) -> None:
    from scipy.ndimage import minimum_filter

    def function(image: Any) -> Any:
        return minimum_filter(image, 5)

    image = blobs(shape)
    sink = np.full_like(image, np.nan)
    threaded_loop(function, image, sink, block=block, halo=(halo,) * 3)
    np.testing.assert_array_equal(sink, whole(function, image))


@pytest.mark.parametrize("slab", [1, 3, 7, 20])
def test_times_two_loop_equals_whole(slab: int) -> None:
    image = np.arange(7 * 4, dtype=np.uint16).reshape(7, 4)
    sink = np.zeros_like(image)
    times_two_loop(times_two, image, sink, slab=slab)
    np.testing.assert_array_equal(sink, times_two(image))


def test_volumes_are_the_same_every_time() -> None:
    first, second = [blobs((5, 40, 20)) for _ in range(2)]
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32
    assert first.std() > 0


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_voxel_that_is_not_written_is_noticed(tmp_path: Path, in_memory: bool) -> None:
    case = next(case for case in bench.cases(quick=True) if case.name == "times-two")
    first = case.ways[0]
    options = {"subject": "test_bench:writes_half", "options": {}, "in_memory": in_memory}
    way = replace(first, options={**first.options, **options}, rival=None)
    with pytest.raises(ValueError, match="of 262144 voxels differ"):
        bench.measure(replace(case, ways=(way,)), tmp_path, rounds=1, stage=Here)


FULL = [case for case in bench.cases() if case.group == "promises"]
QUICK = [case for case in bench.cases(quick=True) if case.group == "promises"]


def test_cases_are_frozen_and_agree_with_themselves() -> None:
    names = [case.name for case in FULL]
    assert names == [case.name for case in QUICK]
    assert len(set(names)) == len(names)
    with pytest.raises(FrozenInstanceError):
        FULL[0].name = "other"  # type: ignore[misc]
    for case in (*FULL, *QUICK):
        ways = {way.name for way in case.ways}
        assert len(ways) == len(case.ways)
        for figure in case.figures:
            assert {figure.way, *figure.against} <= ways
            assert (figure.compare == "value") == (not figure.against)
        json.dumps([way.options for way in case.ways])


def test_bounds_are_those_that_were_promised() -> None:
    def bounds(name: str) -> list[float]:
        case = next(case for case in FULL if case.name == name)
        return sorted({figure.bound for figure in case.figures if figure.bound is not None})

    assert bounds("tiny-cells") == [60, 100]
    assert bounds("tiny-call") == [10]
    assert bounds("first-call") == bounds("import") == bounds("memory") == [100]
    assert bounds("gaussian") == [0.87]
    assert bounds("median") == bounds("tophat") == bounds("dog") == [1]
    assert bounds("times-two") == [1.2]
    assert bounds("planning") == [10, 15, 20]
    assert bounds("memory-growth") == [1, 1.1]
    assert all(figure.bound is None for case in QUICK for figure in case.figures)


def of_one_work(case: Case) -> Case:
    """Return a case without the ways that differ by function, or by executor, only."""
    if not case.name.startswith("memory"):
        return case
    kept = {way.name for way in case.ways if way.name.startswith(("gaussian", "files, processes"))}
    return replace(
        case,
        ways=tuple(way for way in case.ways if way.name in kept),
        figures=tuple(figure for figure in case.figures if figure.way in kept),
    )


@linux
@pytest.mark.parametrize("case", [*map(of_one_work, QUICK)], ids=lambda case: case.name)
def test_every_case_yields_finite_figures(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a short run may be over before its memory was looked at.
    seen = Peak.bytes.fget
    assert seen is not None
    monkeypatch.setattr(Peak, "bytes", property(lambda peak: max(1, seen(peak))))
    result = bench.measure(case, tmp_path, rounds=1, stage=Here)
    assert set(result) == {
        "failures",
        "left_out",
        "group",
        "name",
        "measures",
        "parameters",
        "reference",
        "rounds",
        "figures",
        "raw",
    }
    assert [figure["label"] for figure in result["figures"]] == [f.label for f in case.figures]
    for figure in result["figures"]:
        numbers = [figure[key] for key in ("low", "median", "high")]
        assert all(map(math.isfinite, numbers))
        assert numbers == sorted(numbers)
    assert json.loads(json.dumps(result))["raw"] == result["raw"]
    assert case.name in as_text(promises_table([result]))


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_command_line_runs_a_case_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    options = ["--quick", "--rounds", "1", "--folder", str(tmp_path), "-o", str(path)]
    done = command("run", "tiny-cells", *options)
    assert done.returncode == 0, done.stderr
    assert "µs/block" in done.stdout
    results = json.loads(path.read_text(encoding="utf-8"))
    assert {"commit", "quick", "date", "machine", "versions", "cases"} <= set(results)
    assert results["machine"]["cpus"] >= 1
    assert [case["name"] for case in results["cases"]] == ["tiny-cells"]
    assert list(tmp_path.iterdir()) == [path]


def test_command_line_lists_and_refuses(tmp_path: Path) -> None:
    listed = [line.split()[0] for line in command("list").stdout.splitlines()]
    assert {case.name for case in FULL} < set(listed)
    assert {"peers:", "promises:", "gaussian-npy-small", "joblib"} < set(listed)
    refused = command("run", "gausian")
    assert refused.returncode == 2
    assert "no case is called gausian; there are gaussian-npy-small, " in refused.stderr


def test_filters_are_measured_against_those_of_other_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "filters.json"
    options = ["--side", "32", "--rounds", "2", "--folder", str(tmp_path), "-o", str(path)]
    assert main(["filters", "thres", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["threshold"] * 2
    found = json.loads(path.read_text(encoding="utf-8"))["filters"]
    for one in found:
        assert set(one["one_core_ns"]) == set(one["two_processes_ns"]) == {"gpublocks", "numpy"}
        assert all(len(times) == 2 for times in one["one_core_ns"].values())
    assert list(tmp_path.iterdir()) == [path]
    assert main(["filters", "thres", "nothing"]) == 2
    assert "no filter begins with 'nothing'; there are gaussian 2, " in capsys.readouterr().err


def test_a_case_that_fails_is_told_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    figures = (Figure("it", "s", None, "way"),)
    good = replace(QUICK[0], name="good", ways=(counting("way"),), figures=figures)
    bad = replace(good, name="bad", ways=(Way("way", "no_such_module:Name", {}),))
    results = bench.run([bad, good], rounds=1, folder=tmp_path)
    assert "no_such_module" in results["cases"][0]["error"]
    assert results["cases"][1]["raw"] == {"way": {"seconds": [3.0]}}
    assert as_text(result_tables(results)[0]).splitlines()[-2].split()[:2] == ["bad", "failed"]
