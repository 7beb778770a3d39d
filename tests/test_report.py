"""Reports: what bounds a run, who waits for whom, and files that are made of them."""

import html.parser
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_executor import SimulatedExecutor, uneven

import gpublocks
import gpublocks.block_processing as bp
from gpublocks import Report, recording
from gpublocks.contracts import Span
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.gaps import NO_CELLS, TURN, Gaps, gaps_of
from gpublocks.records import Incident, Record
from gpublocks.spans import STEPS, Spans
from gpublocks.verdict import judge

Array = np.ndarray[Any, Any]

SLOW = 0.05
SIZES = {"size_max": 4, "overlap": 0, "optimization": False}


class SlowArray:
    """Takes its time to be read, or to be written."""

    def __init__(self, reading: float = 0.0, writing: float = 0.0) -> None:
        self.voxels = np.zeros((64, 5))
        self.shape, self.dtype = self.voxels.shape, self.voxels.dtype
        self.reading, self.writing = reading, writing

    def __getitem__(self, slicing: Any) -> Array:
        time.sleep(self.reading)
        return self.voxels[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        time.sleep(self.writing)
        self.voxels[slicing] = value


def thinking(array: Array) -> Array:
    time.sleep(SLOW)
    return array + 1


def quick(array: Array) -> Array:
    return array + 1


RUNS = {
    "read": (quick, {"reading": SLOW}, {}),
    "compute": (thinking, {}, {}),
    "write": (quick, {}, {"writing": SLOW}),
}


@pytest.fixture(params=["serial", "threads", "processes", "simulated"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a run is done."""
    if request.param == "simulated":
        return {"executor": SimulatedExecutor(uneven("eager", 1))}
    return {"executor": request.param, "processes": 2 if request.param != "serial" else None}


@pytest.mark.parametrize("bound", RUNS)
def test_the_verdict_names_what_a_run_was_built_to_be_bound_by(
    bound: str, where: dict[str, Any]
) -> None:
    function, source, sink = RUNS[bound]
    # Workers start before it, and their start is not what it is about.
    with recording():
        bp.process(quick, np.zeros((32, 5)), np.zeros((32, 5)), **SIZES, **where)
    with recording() as report:
        bp.process(function, SlowArray(**source), SlowArray(**sink), **SIZES, **where)
    (record,) = report.runs
    verdict = record.verdict
    assert verdict.bound == bound
    assert 0.5 < verdict.share <= 1.01
    doing = {"read": "reading", "compute": "computing", "write": "writing"}[bound]
    helps = {
        "read": "a faster disk would help",
        "compute": "more workers, a GPU or a faster function would help",
        "write": "a sink without compression, one that several workers may write or a faster disk "
        "would help",
    }
    if where["executor"] == "threads":
        helps["compute"] = (
            f"executor='processes' if the function is one of Python, {helps['compute']}"
        )
    if isinstance(where["executor"], str):
        told = f"bound by {doing}: {100 * verdict.share:.0f} % of the time; {helps[bound]}\n"
        assert told in str(report)
    assert record.cells == 16
    assert record.read_bytes == record.written_bytes == 64 * 5 * 8


def test_a_start_and_an_end_that_take_long_are_named() -> None:
    spans = Spans()
    spans.add(0, "serial", [Span("compute", "serial", 10.0, 1.0)], 10.0)
    assert judge(spans, 3.0).bound == "end"
    assert judge(spans, 3.0).share == pytest.approx(2 / 3)
    late = Spans()
    late.add(0, "serial", [Span("compute", "serial", 12.0, 1.0)], 10.0)
    assert judge(late, 3.0).bound == "start"
    assert judge(Spans(), 1.0).bound == "nothing"


def rows(gaps: Gaps) -> list[tuple[int, float, float, int]]:
    """Return the columns of gaps as rows."""
    return list(zip(*[column.tolist() for column in gaps], strict=True))


def test_workers_without_work_are_named() -> None:
    spans = Spans()
    for n in range(4):
        worker = f"worker {n}"
        spans.add(n, worker, [Span("compute", worker, 0.5 * n, 0.5)], 0.0)
    verdict = judge(spans, 2.0)
    assert (verdict.bound, verdict.share) == ("wait", 0.75)
    assert verdict.waits == {"turn": pytest.approx(0.375), "no cells": pytest.approx(0.375)}


# --- who waits for whom -------------------------------------------------------------------------


def pipeline(read: float, compute: float, write: float, cells: int = 6) -> Spans:
    """Return the spans of a device with two slots on each side, by hand."""
    spans = Spans()
    free = dict.fromkeys(("read", "compute", "write"), 0.0)
    read_ends, compute_ends, write_ends = [], [], []
    for n in range(cells):
        start = max(free["read"], compute_ends[n - 2] if n >= 2 else 0.0)
        free["read"] = start + read
        read_ends.append(free["read"])
        begun = max(free["compute"], read_ends[n], write_ends[n - 2] if n >= 2 else 0.0)
        free["compute"] = begun + compute
        compute_ends.append(free["compute"])
        last = max(free["write"], compute_ends[n])
        free["write"] = last + write
        write_ends.append(free["write"])
        steps = (
            Span("read", "cuda:0 read", start, read),
            Span("compute", "cuda:0 compute", begun, compute),
            Span("write", "cuda:0 write", last, write),
        )
        spans.add(n, "cuda:0", steps, 0.0)
    return spans


@pytest.mark.parametrize(
    ("seconds", "slow", "waiting"),
    [
        ((1.0, 0.1, 0.1), "read", {"compute": "read", "write": "compute"}),
        ((0.1, 1.0, 0.1), "compute", {"read": "compute", "write": "compute"}),
        ((0.1, 0.1, 1.0), "write", {"compute": "write", "read": "compute"}),
    ],
)
def test_each_lane_waits_for_the_one_that_is_slow(
    seconds: tuple[float, float, float], slow: str, waiting: dict[str, str]
) -> None:
    spans = pipeline(*seconds)
    last = spans.table.stop.max()
    assert judge(spans, last).bound == slow
    # At first all wait for what comes before them.
    for lane, start, _, step in rows(gaps_of(spans)):
        if start > 0 and step != NO_CELLS:
            assert STEPS[step] == waiting[spans.lanes[lane].removeprefix("cuda:0 ")]


def test_another_workers_end_is_nothing_to_wait_for() -> None:
    spans = Spans()
    spans.add(0, "worker 1", [Span("read", "worker 1", 0.0, 1.0)], 0.0)
    spans.add(1, "worker 2", [Span("compute", "worker 2", 1.0, 1.0)], 0.0)
    lane, start, stop, step = rows(gaps_of(spans))[1]
    assert (spans.lanes[lane], start, stop, step) == ("worker 2", 0.0, 1.0, TURN)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(STEPS), st.floats(0, 5), st.floats(0, 1)),
        min_size=1,
        max_size=30,
    )
)
def test_spans_and_gaps_fill_each_lane(drawn: list[tuple[int, Any, float, float]]) -> None:
    spans = Spans()
    for n, (lane, step, start, seconds) in enumerate(drawn):
        spans.add(n, f"w{lane}", [Span(step, f"w{lane}", start, seconds)], 0.0)
    table = spans.table
    first, last = table.start.min(), table.stop.max()
    for lane in range(len(spans.lanes)):
        own = table.lane == lane
        times = np.linspace(first, last, 101)[:, None]
        busy = ((table.start[own] <= times) & (times <= table.stop[own])).any(1)
        free = [gap for gap in rows(gaps_of(spans)) if gap[0] == lane]
        idle = np.array([any(lo <= t <= hi for _, lo, hi, _ in free) for t in times[:, 0]])
        # Waits of 0.2 ms are of no account.
        near = np.abs(times - np.concatenate([table.start[own], table.stop[own]])).min(1) < 3e-4
        assert (busy ^ idle | near).all()
    verdict = judge(spans, last)
    assert verdict.share >= 0
    assert sum(group.busy for group in verdict.groups) >= 0


@st.composite
def crowds(draw: st.DrawFn) -> Spans:
    """Return spans of cells in two places, all of whose times are whole seconds."""
    spans = Spans()
    for n in range(draw(st.integers(1, 8))):
        place, start = draw(st.sampled_from("ab")), draw(st.integers(0, 5))
        told = []
        for step in STEPS:
            start += draw(st.integers(0, 2))
            seconds = draw(st.integers(1, 2))
            told.append(Span(step, f"{place} {step}", float(start), float(seconds)))
            start += seconds
        spans.add(n, place, told, 0.0)
    return spans


@given(crowds())
def test_a_lane_waits_for_what_ends_when_it_goes_on(spans: Spans) -> None:
    table = spans.table
    write = STEPS.index("write")
    for lane, free, stop, step in rows(gaps_of(spans)):
        if step == NO_CELLS:
            assert stop == table.stop.max()
            continue
        place = spans.workers[lane]
        here = np.isin(table.lane, [n for n, name in enumerate(spans.workers) if name == place])
        n = np.flatnonzero((table.lane == lane) & (table.start == stop))[0]
        own, steps = table.cell == table.cell[n], table.step
        # It ends in the later half of the wait, or with it.
        ending = (table.stop >= stop - max(2e-4, (stop - free) / 2)) & (table.stop <= stop)
        same = ending & own & (steps < steps[n])
        room = ending & ~own & here & (steps > steps[n])
        turn = ending & ~own & (steps == steps[n]) & (steps == write)
        found = same if same.any() else room | turn
        last = table.stop[found].max(initial=-1.0)
        expected = set(steps[found & (table.stop == last)].tolist())
        assert step in (expected or {TURN})


def test_who_waits_for_the_only_one_that_may_write_waits_for_writing() -> None:
    spans = Spans()
    for n in range(6):
        name = f"cpu:{n % 2}"
        told = (Span("compute", name, n // 2 * 2.0, 0.1), Span("write", name, n + 0.1, 1.0))
        spans.add(n, name, told, 0.0)
    verdict = judge(spans, 6.1)
    assert verdict.bound == "write"
    assert verdict.share > 0.7


@pytest.mark.parametrize(("bound", "step"), [("read", "read"), ("write", "write")])
def test_worker_processes_wait_for_whom_they_wait(bound: str, step: str) -> None:
    """Arrays in memory are read and written by this process, and messages take their time."""
    function, source, sink = RUNS[bound]
    where = {"executor": "processes", "processes": 2}
    bp.process(quick, np.zeros((32, 5)), np.zeros((32, 5)), **SIZES, **where)
    report = Report()
    sizes = {**SIZES, "size_max": 2}
    bp.process(function, SlowArray(**source), SlowArray(**sink), report=report, **sizes, **where)
    waits = report.runs[0].verdict.waits
    assert waits is not None
    assert max(waits, key=lambda name: waits[name]) == step


def test_a_run_that_fails_says_so() -> None:
    def fails(array: Array) -> Array:
        if array[0, 0] > 0:
            time.sleep(4 * SLOW)
            raise ValueError("first line\nsecond line")
        return array

    image = np.zeros((8, 5))
    image[4:] = 1
    with recording() as report, pytest.raises(ValueError, match="first"):
        bp.process(fails, image, executor="serial", **SIZES)
    assert "ended by an error" in str(report)
    assert str(report).endswith(" ValueError: first line")


@pytest.mark.parametrize(
    ("rows", "advice"),
    [(8, "more blocks than workers would help"), (400, "larger blocks would help")],
)
def test_who_waits_is_told_what_helps(rows: int, advice: str) -> None:
    spans = Spans()
    for n in range(rows // 4):
        spans.add(n, "serial", [Span("compute", "serial", 0.01 * n, 0.001)], 0.0)
    report = Report()
    bp.process(quick, np.zeros((rows, 5)), executor="serial", report=report, **SIZES)
    (record,) = report.runs
    record.spans, record.seconds = spans, 0.01 * rows / 4
    assert advice in str(report)


# --- recording ----------------------------------------------------------------------------------


def test_each_step_of_each_block_is_kept(where: dict[str, Any]) -> None:
    image = np.arange(160.0).reshape(32, 5)
    report = Report()
    begun = time.perf_counter()
    result = bp.process(quick, image, report=report, **SIZES, **where)
    seconds = time.perf_counter() - begun
    (record,) = report.runs
    assert np.array_equal(result, image + 1)
    table = record.spans.table
    for step in ("read", "compute", "write"):
        assert sorted(table.cell[table.step == STEPS.index(step)]) == list(range(8))
    assert table.start.min() >= 0
    assert table.stop.max() <= record.seconds + 0.001
    assert record.seconds <= seconds
    assert table.nbytes[table.step == STEPS.index("read")].sum() == image.nbytes
    assert record.plan["cells"] == 8
    assert record.function == "quick"
    assert record.host_peak_bytes is not None


def test_nothing_is_recorded_that_nobody_asked_for() -> None:
    with recording() as report:
        pass
    bp.process(quick, np.zeros(4), overlap=0, processes="serial")
    assert report.runs == []
    assert str(report) == "no run was recorded"


def test_recordings_within_recordings_hold_what_is_within_them() -> None:
    with recording() as outer:
        bp.process(quick, np.zeros(4), overlap=0, processes="serial")
        with recording() as inner:
            bp.process(thinking, np.zeros(4), overlap=0, processes="serial")
    assert [record.function for record in outer.runs] == ["quick", "thinking"]
    assert [record.function for record in inner.runs] == ["thinking"]


def test_a_run_is_recorded_once_in_each_report() -> None:
    with recording() as report:
        bp.process(quick, np.zeros((8, 5)), executor="serial", report=report, **SIZES)
    assert len(report.runs) == 1


def test_a_recording_may_end_in_another_thread() -> None:
    def runs() -> Any:
        with recording() as report:
            yield report

    generator = runs()
    next(generator)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, generator, None).result() is None


def test_a_report_is_printed_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    bp.process(quick, np.zeros(4), overlap=0, processes="serial", report=True)
    assert "verdict" in capsys.readouterr().out
    bp.process(quick, np.zeros(4), overlap=0, processes="serial", report=False)
    assert capsys.readouterr().out == ""


def test_a_run_that_fails_is_recorded_too() -> None:
    def fail(array: Array) -> Array:
        if array[0, 0] >= 20:
            raise ZeroDivisionError("no <b>way</b>")
        return array

    image = np.arange(160.0).reshape(32, 5)
    with recording() as report, pytest.raises(ZeroDivisionError):
        bp.process(fail, image, processes="serial", **SIZES)
    (record,) = report.runs
    assert record.error == "ZeroDivisionError: no <b>way</b>"
    assert record.cells == 1
    assert [incident.kind for incident in record.incidents] == ["failed"]
    assert "error" in dict(record.rows())


@pytest.mark.parametrize("report", ["yes", 3, Report])
def test_a_report_is_true_or_a_report(report: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"report is .*give True, or a gpublocks\.Report"):
        bp.process(quick, np.zeros(4), overlap=0, report=report)


def test_blocks_that_were_split_are_told() -> None:
    image = np.zeros((600, 60), np.float32)
    options = {"executor": SimulatedExecutor(uneven("eager", 1)), "size_max": 600, "axes": [0]}
    with recording() as report:
        bp.process(gpublocks.filters.gaussian(1), image, **options)
    (record,) = report.runs
    assert {incident.kind for incident in record.incidents} == {"split"}
    assert record.cells == 1
    assert f"{len(record.incidents)} split" in dict(record.rows())["blocks"]


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    """A report with names and reasons that somebody means ill with."""
    evil = "<script>alert(1)</script>\"'&$x$"
    with recording() as report:
        bp.process(quick, np.zeros((32, 5)), executor="threads", processes=2, **SIZES)
    record = report.runs[0]
    record.function = evil
    record.error = f"Error: {evil}"
    record.incidents.append(Incident("retried", 0.001, 3, evil, evil))
    record.spans.add(3, evil, [Span("write", evil, 0.0, 0.001)], 0.0)
    return report


def test_json_holds_everything(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run.json")
    again = Report.load(tmp_path / "run.json")
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)
    assert again.runs[0].verdict == report.runs[0].verdict


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, (value or "")[:22]) for name, value in attrs}


def test_pages_hold_nothing_that_runs_or_is_loaded(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    found = Tags()
    found.feed(text)
    assert found.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "img", "table", "tr", "th", "td"
    }  # fmt: skip
    assert {value for name, value in found.attributes if name in ("src", "href")} == {
        "data:image/png;base64,"
    }
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "verdict" in text


def test_traces_are_what_perfetto_reads(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run.trace.json")
    trace = json.loads((tmp_path / "run.trace.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    record = report.runs[0]
    assert len(spans) == len(record.spans)
    # Those of the kernel are 0.
    assert min(min(event["pid"], event["tid"]) for event in trace["traceEvents"]) == 1
    assert {event["name"] for event in spans} == {"read", "compute", "write"}
    names = {
        e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    assert list(names.values()) == record.spans.lanes
    assert sum(event["dur"] for event in spans) == pytest.approx(
        1e6 * (record.spans.table.stop - record.spans.table.start).sum()
    )
    (incident,) = [event for event in trace["traceEvents"] if event["ph"] == "i"]
    assert incident["name"].startswith("retried: <script>")


@pytest.mark.parametrize("name", ["run.png", "run.svg", "run.pdf"])
def test_pictures_are_drawn(report: Report, tmp_path: Path, name: str) -> None:
    figure = report.plot(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [lane.replace("$", r"\$") for lane in report.runs[0].spans.lanes]


def test_notebooks_show_a_table(report: Report) -> None:
    assert report._repr_html_().count("<tr>") == len(report.runs[0].rows())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda report, folder: report.save(folder / "a.txt"), PlanError, "no known suffix"),
        (lambda report, folder: report.save(folder / "no" / "a.json"), SinkError, "cannot save"),
        (lambda report, folder: report.plot(folder / "no" / "a.png"), SinkError, "cannot write"),
        (lambda report, folder: report.plot(folder / "a.xyz"), SinkError, "cannot write"),
        (lambda report, folder: Report.load(folder / "a.json"), SourceError, "cannot read"),
        (lambda report, folder: Report().plot(), PlanError, "nothing to draw"),
    ],
)
def test_what_cannot_be_saved(
    report: Report, tmp_path: Path, call: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        call(report, tmp_path)


def test_other_files_are_no_reports(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    good = report.to_dict()
    spans = good["runs"][0]["spans"]
    for bad in (
        "nonsense",
        json.dumps([1]),
        json.dumps({"gpublocks report": 99, "runs": []}),
        json.dumps({**good, "runs": [{"function": "f"}]}),
        json.dumps({**good, "runs": [{**good["runs"][0], "spans": {**spans, "cell": [1]}}]}),
        json.dumps({**good, "runs": [{**good["runs"][0], "spans": {**spans, "lanes": []}}]}),
        json.dumps({**good, "runs": [{**good["runs"][0], "spans": {**spans, "step": ["x"]}}]}),
        json.dumps({**good, "runs": [{**good["runs"][0], "plan": {}}]}),
        json.dumps({**good, "runs": [{**good["runs"][0], "seconds": "x"}]}),
        json.dumps(good).replace(f'"start": [{spans["start"][0]}', '"start": [NaN', 1),
    ):
        path.write_text(bad)
        with pytest.raises(SourceError, match=re.escape(f"{path} is no report")):
            Report.load(path)


def test_pictures_of_many_runs_show_the_first_ones(report: Report) -> None:
    report.runs *= 100
    figure = report.plot()
    assert len(figure.axes) == 20
    assert f"{len(report.runs) - 20} more are not shown" in figure.get_suptitle()


def test_a_record_of_many_blocks_is_small() -> None:
    spans = Spans()
    step = [Span("compute", "worker 1", 0.0, 0.001)]
    for n in range(20_000):
        spans.add(n, "worker 1", step, 0.0)
    record = Record("f", "", {}, spans=spans, seconds=1.0)
    assert len(record.spans) == 20_000
    assert sum(column.nbytes for column in spans.table) == 35 * 20_000
