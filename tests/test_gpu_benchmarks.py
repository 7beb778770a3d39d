"""What is measured on a GPU, done here in host memory: its order, its arithmetic, its names.

No figure is judged. `HostCuda` stands in for `benchmarks.gpu.cuda.Cuda`; what that calls of CuPy
and NVML is held against the wheels.
"""

import ast
import ctypes
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cupy_names import find, full_name, signature, used_names

import gpublocks
from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.gpu import boxcopy, comparing, floors, judging, kernels
from benchmarks.gpu.catalogue import first_part, make_parts
from benchmarks.gpu.crowding import crowded
from benchmarks.gpu.floors import Volumes, measure_floors
from benchmarks.gpu.functions import WORKS
from benchmarks.gpu.lab import Lab, placed
from benchmarks.gpu.peers import pinned_loop, plain_loop
from benchmarks.gpu.pieces import from_cells, shape_within, slabs
from benchmarks.gpu.place import Child, plain
from benchmarks.gpu.schedule import Ending, Part, run_parts
from benchmarks.gpu.staging import copiers, measure_threads
from benchmarks.gpu.volumes import build, count_unequal
from benchmarks.gpu.watching import Meter, Watch
from gpublocks import gpus

GPU = Path(gpu.__file__).parent
MODULES = sorted(GPU.glob("*.py"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="groups of processes are those of Linux")


# --- a device in host memory -------------------------------------------------------------------


class HostMemory:
    def __init__(self, block: np.ndarray, offset: int = 0) -> None:
        self.block, self.offset = block, offset

    @property
    def ptr(self) -> int:
        return self.block.ctypes.data + self.offset

    def __add__(self, offset: int) -> "HostMemory":
        return HostMemory(self.block, self.offset + offset)


class HostEvent:
    def __init__(self, timing: bool) -> None:
        self.timing, self.when = timing, 0.0

    def record(self, stream: Any) -> None:
        self.when = time.perf_counter()

    def synchronize(self) -> None:
        assert self.when, "nobody has recorded it"


class HostStream:
    def __enter__(self) -> "HostStream":
        return self

    def __exit__(self, *error: object) -> None: ...

    def wait_event(self, event: HostEvent) -> None:
        event.synchronize()


class HostPool:
    def total_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None: ...


class NoHook:
    def __init__(self, meter: Meter) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class HostCuda:
    """What `Cuda` does, done at once and in host memory."""

    def memory_info(self) -> tuple[int, int]:
        return 8 << 30, 16 << 30

    def used_bytes(self) -> int:
        return 1 << 30

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def memory(self, nbytes: int) -> HostMemory:
        return HostMemory(np.zeros(nbytes, np.uint8))

    def register(self, array: np.ndarray, flags: int = 1) -> None:
        if isinstance(array, np.memmap) and not array.flags.writeable and flags == 1:
            raise RuntimeError("read-only")

    def unregister(self, array: np.ndarray) -> None: ...

    @contextmanager
    def pool(self, kind: str = "pool") -> Iterator[HostPool]:
        yield HostPool()

    def meter(self) -> Meter:
        return Meter(NoHook)

    def trim(self) -> None: ...

    def stream(self) -> HostStream:
        return HostStream()

    def event(self, *, block: bool = True, timing: bool = False) -> HostEvent:
        return HostEvent(timing)

    def elapsed(self, first: HostEvent, last: HostEvent) -> float:
        assert first.timing
        assert last.timing
        return last.when - first.when

    def upload(
        self, target: HostMemory, source: np.ndarray, stream: Any, piece_bytes: int = 1 << 20
    ) -> None:
        assert source.dtype == np.uint8
        start = target.offset
        target.block[start : start + source.nbytes] = source

    def download(
        self, target: np.ndarray, source: HostMemory, stream: Any, piece_bytes: int = 1 << 20
    ) -> None:
        assert target.dtype == np.uint8
        target[:] = source.block[source.offset : source.offset + target.nbytes]

    def copy_box(self, parms: boxcopy.Parms, stream: Any) -> None:
        """Do what CUDA's guide says that a copy of a box does."""
        source, target, box = parms.srcPtr, parms.dstPtr, parms.extent
        for z in range(box.depth):
            for y in range(box.height):
                row = (parms.srcPos.z + z) * source.ysize + parms.srcPos.y + y
                place = (parms.dstPos.z + z) * target.ysize + parms.dstPos.y + y
                ctypes.memmove(
                    target.ptr + place * target.pitch + parms.dstPos.x,
                    source.ptr + row * source.pitch + parms.srcPos.x,
                    box.width,
                )

    def synchronize(self) -> None: ...

    def array(self, memory: HostMemory, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.ndarray(shape, dtype, memory.block, memory.offset)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def asarray(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def get(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return np.array(array)
        out[...] = array
        return out

    def put(self, array: np.ndarray, source: np.ndarray) -> None:
        array[...] = source

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array)

    def facts(self) -> dict[str, Any]:
        return {"name": "none", "free_bytes": 8 << 30}


class Here:
    """A place in this process, with a device in host memory."""

    def __init__(self) -> None:
        self.lab: Lab | None = None
        self.closed = False

    def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
        options = json.loads(json.dumps(dict(part.options)))
        if self.lab is None:
            self.lab = Lab(lambda path, value: note(path, _by_json(value)), HostCuda)
        self.lab._send = lambda path, value: note(path, _by_json(value))
        self.lab.begin(seconds)
        module, _, name = part.program.partition(":")
        getattr(__import__(module, fromlist=["_"]), name)(self.lab, **options)
        return Ending("done", usable=not self.lab.failed)

    def close(self) -> None:
        self.closed = True


def _by_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=plain))


@pytest.fixture
def lab() -> Lab:
    """One that keeps what is noted in ``lab.kept["noted"]``."""
    noted: dict[str, Any] = {}
    made = Lab(lambda path, value: placed(noted, path, _by_json(value)), HostCuda)
    made.begin(60)
    made.kept["noted"] = noted
    return made


# --- the order of parts, and their time --------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A place where each part takes the time and comes to the end that its options say."""

    opened: list["Scripted"]

    def __init__(self, clock: Clock) -> None:
        self.clock, self.closed, self.done = clock, False, []
        self.limits: list[float] = []
        Scripted.opened.append(self)

    def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
        assert not self.closed
        self.done.append(part.name)
        self.limits.append(seconds)
        note("a/b", 1)
        self.clock.now += min(seconds, part.options.get("takes", 1.0))
        return part.options.get("ending", Ending("done"))

    def close(self) -> None:
        self.closed = True


def scripted(
    parts: Sequence[Part], seconds: float
) -> tuple[list[dict[str, Any]], list[Scripted], list[tuple[int, bool]]]:
    Scripted.opened = []
    clock, kept = Clock(), []
    results = run_parts(
        parts,
        seconds=seconds,
        open_place=lambda: Scripted(clock),
        keep=lambda results, ended: kept.append((len(results), ended)),
        tell=lambda text: None,
        clock=clock,
    )
    return results, Scripted.opened, kept


def part(name: str, **given: Any) -> Part:
    options = {key: given.pop(key) for key in ("takes", "ending") if key in given}
    return Part(name, "nothing", "none:none", options, **{"estimate_seconds": 1.0, **given})


HUNG = Ending("hung", "not done\nand where it was", usable=False)


def test_parts_are_done_in_order_and_skipped_when_they_would_take_too_long() -> None:
    parts = [
        part("first", takes=6.0),
        part("long", estimate_seconds=5.0),
        part("short", takes=3.0),
        part("late"),
    ]
    results, places, kept = scripted(parts, 9.5)
    assert [result["status"] for result in results] == ["done", "skipped", "done", "skipped"]
    assert results[1]["error"] == "takes about 5 s, 4 s are left"
    assert results[0]["found"] == {"a": {"b": 1}}
    assert (results[0]["seconds"], results[3]["seconds"]) == (6.0, 0.0)
    assert [place.done for place in places] == [["first", "short"]]
    assert all(place.closed for place in places)
    # After each note, and at the end of each part.
    assert kept == [(1, False), (1, True), (2, True), (3, False), (3, True), (4, True)]


def test_no_part_may_take_more_than_what_is_left() -> None:
    _, places, _ = scripted([part("a", takes=30.0), part("b", takes=30.0)], 20.0)
    assert places[0].limits == [18.0, 2.0]


def test_after_a_failure_of_any_kind_a_new_place_is_opened() -> None:
    failed, died = Ending("failed", "why", usable=False), Ending("died", "why", usable=False)
    parts = [
        part("a"),
        part("b", ending=failed),
        part("c", ending=died),
        part("d", ending=HUNG),
        part("e", ending=Ending("done", usable=False)),
        part("f"),
    ]
    results, places, _ = scripted(parts, 99.0)
    assert [place.done for place in places] == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert [result["status"] for result in results] == [
        "done", "failed", "died", "hung", "done", "done"
    ]  # fmt: skip
    assert all(place.closed for place in places)


def test_a_part_may_ask_for_a_new_place() -> None:
    _, places, _ = scripted([part("a"), part("b", fresh=True), part("c")], 99.0)
    assert [place.done for place in places] == [["a"], ["b", "c"]]


def test_of_a_group_that_hangs_only_two_are_tried() -> None:
    parts = [part(f"{n}", ending=HUNG, group="ours") for n in range(4)] + [part("other")]
    results, _, _ = scripted(parts, 99.0)
    assert [result["status"] for result in results] == [
        "hung",
        "hung",
        "skipped",
        "skipped",
        "done",
    ]
    assert results[2]["error"] == "2 parts like it did not end in time"


def test_an_interruption_closes_the_place() -> None:
    def interrupt(results: list[dict[str, Any]], ended: bool) -> None:
        raise KeyboardInterrupt

    Scripted.opened = []
    with pytest.raises(KeyboardInterrupt):
        run_parts(
            [part("a")],
            seconds=9,
            open_place=lambda: Scripted(Clock()),
            keep=interrupt,
            tell=lambda text: None,
        )
    assert Scripted.opened[0].closed


def test_steps_that_fail_or_come_too_late_are_noted(lab: Lab) -> None:
    assert lab.attempt("good", lambda: 3) == 3
    assert not lab.failed
    assert lab.attempt("bad/step", lambda: 1 // 0) is None
    assert lab.attempt("late", lambda: 3, estimate=1e9) is None
    assert lab.failed
    noted = lab.kept["noted"]
    assert noted["bad"] == {"step": {"error": "ZeroDivisionError: integer modulo by zero"}} or (
        "ZeroDivisionError" in noted["bad"]["step"]["error"]
    )
    assert noted["late"]["skipped"].startswith("takes about 1000000000 s, ")


def test_repetitions_end_with_the_time_but_not_before_the_first() -> None:
    clock = Clock()

    def step() -> None:
        clock.now += 2.0

    made = Lab(lambda path, value: None, HostCuda, clock)
    made.begin(7.0)
    assert made.times(step, 9) == [2.0, 2.0, 2.0]
    assert made.times(step, 9) == [2.0]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a/b", "a/c", "a/b/c"]), st.integers())))
def test_what_is_noted_last_at_a_place_is_there(notes: list[tuple[str, int]]) -> None:
    found: dict[str, Any] = {}
    for path, value in notes:
        placed(found, path, value)
        inner: Any = found
        for name in path.split("/"):
            inner = inner[name]
        assert inner == value


# --- processes ---------------------------------------------------------------------------------

PROGRAMS = """\
import faulthandler, os, sys, time
def good(lab, value):
    print("not an answer")
    os.write(1, b"nor this")
    lab.kept["value"] = lab.kept.get("value", 0) + value
    lab.note("value", lab.kept["value"])
    lab.note("cuda", lab.cuda)
def partly(lab):
    lab.attempt("step", lambda: 1 / 0)
def bad(lab):
    lab.note("before", 1.5)
    raise ValueError("told so")
def dead(lab):
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)
def endless(lab):
    lab.note("begun", True)
    time.sleep(60)
def deaf(lab):
    faulthandler.cancel_dump_traceback_later()
    endless(lab)
"""
SERVE = "from benchmarks.gpu.place import serve_parts; serve_parts(lambda: 'opened')"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_parts.py").write_text(PROGRAMS)
    monkeypatch.syspath_prepend(tmp_path)
    return "some_parts"


@linux
def test_a_process_hands_on_what_parts_find_and_what_becomes_of_them(programs: str) -> None:
    notes: dict[str, Any] = {}

    def do(name: str, seconds: float = 30.0, **options: Any) -> Ending:
        notes.clear()
        return child.do(Part(name, "", f"{programs}:{name}", options), seconds, notes.__setitem__)

    child = Child(SERVE)
    try:
        assert do("good", value=3) == Ending("done")
        assert notes == {"value": 3, "cuda": "opened"}
        # State lasts from part to part.
        assert do("good", value=4) == Ending("done")
        assert notes["value"] == 7
        assert do("partly") == Ending("done", usable=False)
        ending = do("bad")
        assert (ending.status, ending.usable) == ("failed", False)
        assert ending.error is not None
        assert ending.error.startswith("ValueError: told so\n")
        assert "some_parts.py" in ending.error
        assert notes == {"before": 1.5}
        ending = do("dead")
        assert (ending.status, ending.usable) == ("died", False)
        assert "status 3\n" in (ending.error or "")
        assert "last words" in (ending.error or "")
    finally:
        child.close()


@linux
@pytest.mark.parametrize(("name", "tells"), [("endless", True), ("deaf", False)])
def test_a_process_that_hangs_is_ended(programs: str, name: str, tells: bool) -> None:
    notes: dict[str, Any] = {}
    child = Child(SERVE, grace_seconds=1.0)
    try:
        ending = child.do(Part(name, "", f"{programs}:{name}"), 0.7, notes.__setitem__)
        assert (ending.status, ending.usable) == ("hung", False)
        assert ("in endless" in (ending.error or "")) == tells
        assert notes == {"begun": True}
    finally:
        child.close()


# --- blocks, volumes, copies -------------------------------------------------------------------


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 5),
    st.integers(1, 400),
)
def test_slabs_cover_the_volume_once_with_their_halos(
    shape: tuple[int, ...], halo: int, block_bytes: int
) -> None:
    count = np.zeros(shape, int)
    for piece in slabs(shape, halo, 2, block_bytes):
        count[piece.valid] += 1
        lower, upper = piece.read[0].start, piece.read[0].stop
        assert lower == max(0, piece.valid[0].start - halo)
        assert upper == min(shape[0], piece.valid[0].stop + halo)
        numbers = np.arange(prod(shape)).reshape(shape)
        np.testing.assert_array_equal(numbers[piece.read][piece.crop], numbers[piece.valid])
    assert (count == 1).all()


def test_blocks_of_a_grid_are_read_and_written_as_its_cells_say() -> None:
    shape = (20, 15, 8)
    planned = gpublocks.plan(np.negative, np.zeros(shape), axes=[0, 1], size_max=8, overlap=4)
    cells = list(planned.grid)
    numbers = np.arange(prod(shape)).reshape(shape)
    for cell, piece in zip(cells, from_cells(reversed(cells), shape), strict=True):
        assert piece.read == cell.read_in(shape).slices
        assert piece.valid_size == cell.valid_in(shape).size
        np.testing.assert_array_equal(numbers[piece.read][piece.crop], numbers[piece.valid])


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(100, 10**12),
)
def test_a_volume_that_is_made_smaller_fits(shape: tuple[int, ...], most: int) -> None:
    found = shape_within(shape, 2, most)
    assert all(1 <= length <= whole for length, whole in zip(found, shape, strict=True))
    assert 2 * prod(found) <= most or 1 in found
    assert found == shape or 2 * prod(shape) > most


def test_volumes_are_the_same_each_time_and_nowhere_the_same() -> None:
    one, other = np.empty((130, 9, 8), np.uint16), np.ones((130, 9, 8), np.uint16)
    build(one)
    build(other)
    assert count_unequal(one, other) == 0
    assert one.max() < 32768
    assert len({plane.tobytes() for plane in one}) == 130
    other[3, 4, 5] += 1
    assert count_unequal(one, other) == 1
    with pytest.raises(ValueError, match="compared"):
        count_unequal(one, other[1:])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 5), st.booleans())
def test_several_threads_copy_everything(sides: list[int], count: int, fortran: bool) -> None:
    source = np.arange(prod(sides), dtype=np.int32).reshape(sides)
    target = np.full(sides, -1, np.int32, order="F" if fortran else "C")
    with copiers(count) as threads:
        threads.copy(target, source)
    np.testing.assert_array_equal(target, source)


def test_the_argument_of_box_copies_is_laid_out_as_c_does() -> None:
    # Offsets as cuda-bindings has them on every 64-bit platform.
    offsets = {
        "srcArray": 0, "srcPos": 8, "srcPtr": 32, "dstArray": 64,
        "dstPos": 72, "dstPtr": 96, "extent": 128, "kind": 152,
    }  # fmt: skip
    assert ctypes.sizeof(boxcopy.Parms) == 160
    assert {name: getattr(boxcopy.Parms, name).offset for name in offsets} == offsets
    assert [name for name, _ in boxcopy.Pitched._fields_] == ["ptr", "pitch", "xsize", "ysize"]
    assert [name for name, _ in boxcopy.Extent._fields_] == ["width", "height", "depth"]
    assert [name for name, _ in boxcopy.Pos._fields_] == ["x", "y", "z"]


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Any:
    """The stand-in, and where there is a GPU, the real one: they promise the same."""
    if request.param == "host":
        return HostCuda()
    trouble = gpus.gpu_status(exact=True)
    if trouble:
        pytest.skip(trouble)
    from benchmarks.gpu.cuda import Cuda

    return Cuda(gpus.gpus(exact=True)[0].uuid)


def test_copies_go_there_and_back(cuda: Any) -> None:
    there, back = cuda.pinned(5000), cuda.pinned(3000)
    there[:] = np.random.default_rng(1).integers(0, 256, 5000, np.uint8)
    memory, stream, event = cuda.memory(5000), cuda.stream(), cuda.event(timing=True)
    cuda.upload(memory, there, stream, 700)
    event.record(stream)
    cuda.download(back, memory + 1000, stream, 900)
    last = cuda.event(timing=True)
    last.record(stream)
    last.synchronize()
    np.testing.assert_array_equal(back, there[1000:4000])
    assert cuda.elapsed(event, last) >= 0
    image = cuda.array(memory, (25, 50), np.uint32)
    np.testing.assert_array_equal(cuda.get(image), there.view(np.uint32).reshape(25, 50))


@settings(max_examples=20)
@given(st.data())
def test_boxes_are_copied_out_of_volumes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 7)) for _ in range(3))
    start = [data.draw(st.integers(0, length - 1)) for length in shape]
    box = tuple(
        data.draw(st.integers(1, length - first))
        for length, first in zip(shape, start, strict=True)
    )
    check_box(HostCuda(), shape, start, box)


def test_a_box_is_copied_out_of_a_registered_volume(cuda: Any) -> None:
    check_box(cuda, (6, 50, 300), [1, 7, 100], (4, 30, 150))


def check_box(cuda: Any, shape: Sequence[int], start: Sequence[int], box: Sequence[int]) -> None:
    volume = np.arange(prod(shape)).astype(np.uint8).reshape(shape)
    target = cuda.memory(prod(box))
    cuda.register(volume)
    try:
        parms = boxcopy.box_to_device(volume.ctypes.data, shape, start, box, target.ptr)
        cuda.copy_box(parms, cuda.stream())
        cuda.synchronize()
    finally:
        cuda.unregister(volume)
    part = tuple(slice(lo, lo + side) for lo, side in zip(start, box, strict=True))
    np.testing.assert_array_equal(cuda.get(cuda.array(target, tuple(box), np.uint8)), volume[part])


def test_a_meter_counts_what_is_held_at_once() -> None:
    meter = Meter(NoHook)
    with meter:
        meter.taken(1, 100)
        meter.taken(2, 50)
        meter.taken(0, 1000)  # refused
        meter.given_back(1)
        meter.given_back(7)  # was there before
        meter.taken(1, 60)
    assert meter.peak_bytes == 150


def test_a_meter_counts_what_pools_hand_out(cuda: Any) -> None:
    with cuda.pool() as pool, cuda.meter() as meter:
        image = cuda.empty((100, 100), np.float32)
        del image
        assert pool.total_bytes() == meter.peak_bytes or isinstance(cuda, HostCuda)


def test_a_watch_sees_the_most_in_use() -> None:
    told = iter([5, 7, 9, 6])
    reached = [0]

    def used() -> int:
        reached[0] = next(told, 6)
        return reached[0]

    with Watch(used) as watch:
        while next(told, None) is not None and watch.peak < 9:
            time.sleep(0.01)
    assert watch.before == 5


# --- what is measured --------------------------------------------------------------------------


@pytest.mark.parametrize("work", WORKS.values(), ids=lambda work: work.name)
def test_functions_give_the_whole_result_block_by_block(work: Any, cuda: Any) -> None:
    source = np.empty((40, 14, 13), np.uint16)
    build(source)
    expected = cuda.get(work.function(cuda.asarray(source)))
    assert expected.dtype == np.uint16
    assert expected.max() < 65535
    some = slabs(source.shape, work.halo, 2, 7000)
    assert len(some) > 1
    sink, other = np.full_like(source, 65535), np.full_like(source, 65535)
    plain_loop(cuda, work.function, source, sink, some)
    assert count_unequal(sink, expected) == 0
    most = 2 * max(piece.read_size for piece in some)
    pinned_loop(cuda, work.function, source, other, some, (cuda.pinned(most), cuda.pinned(most)))
    assert count_unequal(other, expected) == 0


def test_floors_are_measured_stage_by_stage(lab: Lab) -> None:
    source = np.empty((40, 14, 13), np.uint16)
    build(source)
    sink = np.zeros_like(source)
    some = slabs(source.shape, 4, 2, 7000)
    measure_floors(lab, Volumes(source, sink, some), WORKS["tophat"].function, 2)
    found = lab.kept["noted"]["floors"]
    read, written = 2 * sum(piece.read_size for piece in some), source.nbytes
    assert (found["read_bytes"], found["written_bytes"]) == (read, written)
    assert not lab.failed, found
    for name, nbytes in (("h2d", read), ("d2h", written), ("both", read + written)):
        assert (len(found[name]["seconds"]), found[name]["bytes"]) == (2, nbytes)
    (movement,) = {len(one["seconds"]) for one in found["movement"].values()}
    assert movement == 2
    assert all(one["bytes"] == read + written for one in found["movement"].values())
    assert len(found["compute"]["seconds"]) == len(found["compute"]["wall_seconds"]) == 2
    assert [one["bytes"] for one in found["gather"].values()] == [read]
    assert [one["bytes"] for one in found["scatter"].values()] == [written]


def test_moving_everything_writes_every_voxel(cuda: Any) -> None:
    source, sink = np.ones((30, 5, 4), np.uint16), np.ones((30, 5, 4), np.uint16)
    moved = Volumes(source, sink, slabs(source.shape, 1, 2, 200))
    slots = floors._Slots(cuda, moved)
    zeros = cuda.pinned(1000)
    zeros[:] = 0
    most = 2 * max(piece.valid_size for piece in moved.pieces)
    cuda.upload(slots.device_out, zeros[:most], slots.stream_in)
    cuda.synchronize()
    with copiers(2) as gathering, copiers(2) as scattering:
        floors._move_all(cuda, moved, slots, gathering, scattering)
    assert not sink.any()


def test_threads_are_measured_on_this_machine(lab: Lab) -> None:
    measure_threads(lab, shape=(24, 30, 31), rounds=2)
    found = lab.kept["noted"]
    assert not lab.failed, found
    assert found["slabs"]["1 threads"]["gather"]["bytes"] == 12 * 2 * 30 * 31 * 2
    for kind in ("slabs", "cubes"):
        for rates in found[kind].values():
            assert [len(rates[way]["seconds"]) for way in ("gather", "scatter")] == [2, 2]


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gpublocks compute in threads where a GPU is asked for."""
    process, plan = gpublocks.process, gpublocks.plan

    def in_threads(call: Callable[..., Any], *args: Any, device: str, **given: Any) -> Any:
        given.pop("trial", None)
        return call(*args, executor="threads", **given)

    monkeypatch.setattr(gpublocks, "process", partial(in_threads, process), raising=False)
    monkeypatch.setattr(gpublocks, "plan", partial(in_threads, plan), raising=False)


@contextmanager
def nobody(share: float) -> Iterator[int]:
    yield 5


@pytest.mark.parametrize("in_files", [False, True])
def test_a_function_is_compared_with_everything(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_files: bool
) -> None:
    without_gpu(monkeypatch)
    noted = lab.kept["noted"]
    given: dict[str, Any] = {"work": "tophat", "shape": (40, 33, 30), "rounds": 2}
    given["folder"] = str(tmp_path) if in_files else None
    comparing.measure_ours(lab, **given)
    assert noted["ours"]["events"]["CellDone"] == noted["ours"]["cells"]
    assert [len(noted["ours"][key]) for key in ("seconds", "stage_seconds", "idle_seconds")] == [
        2, noted["ours"]["cells"], noted["ours"]["cells"]
    ]  # fmt: skip
    assert noted["plan"]["cells"] == noted["trial"]["cells"] == noted["ours"]["cells"]
    comparing.measure_peers(lab, **given)
    assert not lab.failed, noted
    assert noted["own_blocks"] is True
    assert noted["checks"]["wrong_voxels"] == 0
    assert noted["checks"]["scipy"]["largest_difference"] == 0
    assert set(noted["peers"]) == {"whole", "plain", "pinned", "cpu", "dask"}
    assert noted["peers"]["cpu"]["share"] == 1
    monkeypatch.setattr("benchmarks.gpu.crowding._other_process", nobody)
    del given["rounds"]
    crowded(lab, **given, shares=[0.6])
    assert noted["60 % held"]["wrong_voxels"] == 0
    assert noted["60 % held"]["held_bytes"] == 5


def test_a_wrong_result_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    right = gpublocks.process

    def wrong(function: Any, source: Any, sink: Any, **given: Any) -> None:
        right(function, source, sink, **given)
        sink[20, 15:17, 16] += 2

    monkeypatch.setattr(gpublocks, "process", wrong)
    noted = lab.kept["noted"]
    given: dict[str, Any] = {"work": "gaussian", "shape": (40, 33, 30), "folder": None, "rounds": 1}
    comparing.measure_ours(lab, **given)
    comparing.measure_peers(lab, **given)
    checks = noted["checks"]
    assert (checks["wrong_voxels"], checks["scipy"]["largest_difference"]) == (2, 2)


def test_peers_do_without_ours(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    noted = lab.kept["noted"]
    comparing.measure_peers(lab, work="times-two", shape=(20, 9, 8), folder=None, rounds=1)
    assert not lab.failed, noted
    assert noted["own_blocks"] is False
    assert "wrong_voxels" not in noted.get("checks", {})
    assert noted["floors"]["movement"]


DETAILS = ("copies", "pinning", "latency", "waiting", "boxes", "constants", "pools", "functions")


def smaller(part: Part, folder: Path) -> Part:
    """Return a part that takes milliseconds on a CPU."""
    small = {
        "buffer_bytes": 1 << 16, "nbytes": 1 << 16, "file_bytes": 1 << 16, "big_bytes": 1 << 16,
        "shape": [8, 16, 8192], "side": 16, "calls": 2, "copies": 2, "folder": str(folder),
    }  # fmt: skip
    options = {name: small.get(name, value) for name, value in part.options.items()}
    return Part(part.name, part.measures, part.program, options)


@pytest.mark.parametrize("name", DETAILS)
def test_all_other_parts_find_something(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sorting filters take seconds on a CPU.
    for size in ("median 7", "median 11", "edt"):
        monkeypatch.delitem(kernels.SUBJECTS, size)
    monkeypatch.setattr(kernels, "_SMALL", 9)
    (chosen,) = [one for one in parts_of(quick=True) if one.name == name]
    found: dict[str, Any] = {}
    place = Here()
    ending = place.do(smaller(chosen, tmp_path), 30, partial(placed, found))
    assert ending == Ending("done", usable=True), found
    assert found
    raw = list(all_raw(found))
    assert raw or name == "constants"
    assert all(seconds and min(seconds) >= 0 for seconds in raw)


def all_raw(found: Mapping[str, Any]) -> Iterator[list[float]]:
    for name, value in found.items():
        if name == "seconds":
            yield value
        elif isinstance(value, Mapping):
            yield from all_raw(value)


def parts_of(*, quick: bool, host_bytes: int = 10**11, gpu_bytes: int = 10**11) -> tuple[Part, ...]:
    return make_parts(
        quick=quick,
        host_bytes=host_bytes,
        gpu_bytes=gpu_bytes,
        disk_bytes=10**11,
        folder="/somewhere",
    )


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("host_bytes", [10**8, 10**10, 2 * 10**11])
def test_parts_have_names_programs_and_volumes_that_fit(quick: bool, host_bytes: int) -> None:
    parts = [first_part(None), *parts_of(quick=quick, host_bytes=host_bytes)]
    names = [one.name for one in parts]
    assert len(set(names)) == len(names)
    for one in parts:
        module, _, name = one.program.partition(":")
        function = getattr(__import__(module, fromlist=["_"]), name)
        inspect.signature(function).bind(None, **one.options)
        json.dumps(dict(one.options))
        if "work" in one.options:
            assert one.options["work"] in WORKS
            assert 6 * 2 * prod(one.options["shape"]) <= host_bytes
    budget = gpu.QUICK_SECONDS if quick else gpu.SECONDS
    assert budget < (90 if quick else 480)
    most = [one.name.split(",")[0] for one in parts if "2000" in str(one.options.get("shape"))]
    assert bool(most) == (not quick and host_bytes > 10**11)


# --- verdicts ----------------------------------------------------------------------------------


def recorded(**changed: Any) -> list[dict[str, Any]]:
    """Return two parts as they would have been measured: a copy-bound function."""
    values = {
        "volume": 6e9, "ours": [1.0, 1.1, 1.5], "compute": 0.2, "movement": 1.0, "plain": 4.4,
        "predicted": 2.2e9, "used": 2.1e9, "wrong": 0, "grey": 1, **changed,
    }  # fmt: skip
    ours = {
        "volume_bytes": values["volume"],
        "plan": {"device_peak_bytes": 9e9},
        "trial": {"device_peak_bytes": values["predicted"]},
        "ours": {
            "seconds": values["ours"],
            "first": {"seconds": [9.0], "used_before": 1e9, "used_peak": 1e9 + values["used"]},
            "watched": {"seconds": [1.0], "used_before": 1.5e9, "used_peak": 2e9},
            "peak_bytes": 5e8,
            "idle_seconds": [None, 0.1, 0.3],
        },
    }
    peers = {
        "floors": {
            "compute": {"seconds": [values["compute"]] * 3},
            "movement": {
                "4 threads": {"seconds": [values["movement"] + 1]},
                "8 threads": {"seconds": [values["movement"]]},
                "12 threads": {"error": "none"},
            },
        },
        "peers": {
            "plain": {"seconds": [values["plain"]]},
            "whole": {"first_seconds": [3.3]},
            "cpu": {"seconds": [2.0], "share": 0.1},
            "dask": {"skipped": "dask is not installed"},
        },
        "checks": {
            "wrong_voxels": values["wrong"],
            "scipy": {"largest_difference": values["grey"], "differing_share": 0.25},
        },
    }
    blank = {"measures": "something", "status": "done", "seconds": 3.0, "error": None}
    return [
        {**blank, "name": "f, 6 GB: ours", "found": ours},
        {**blank, "name": "f, 6 GB: peers", "found": peers},
    ]


def judged(parts: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    return {
        figure["figure"]: (None if figure["value"] is None else round(figure["value"], 3),
                           figure["kept"])
        for figure in judging.figures(parts)
    }  # fmt: skip


def test_ratios_and_verdicts() -> None:
    assert judged(recorded()) == {
        "ours s": (1.1, None),
        "compute s": (0.2, None),
        "copies s": (1.0, None),
        "gpublocks / floor": (1.1, True),
        "plain / gpublocks": (4.0, True),
        "pinned / gpublocks": (None, None),
        "whole / gpublocks": (3.0, None),
        "dask / gpublocks": (None, None),
        "cpu / gpublocks": (18.182, None),
        "predicted / measured GPU memory": (1.048, True),
        "voxels unlike the whole array's": (0, True),
        "grey levels from SciPy's": (1, True),
        "idle seconds per block": (0.2, None),
    }


@pytest.mark.parametrize(
    ("changed", "figure", "kept"),
    [
        ({"ours": [1.2]}, "gpublocks / floor", False),
        ({"ours": [1.2], "volume": 3e9}, "gpublocks / floor", None),
        ({"compute": 1.2, "ours": [1.2]}, "gpublocks / floor", True),
        ({"plain": 3.2}, "plain / gpublocks", False),
        ({"plain": 3.2, "compute": 1.2}, "plain / gpublocks", True),
        ({"plain": 1.0, "compute": 1.2}, "plain / gpublocks", False),
        ({"plain": 1.0, "volume": 1e8}, "plain / gpublocks", None),
        ({"used": 2.3e9}, "predicted / measured GPU memory", False),
        ({"used": 1.8e9}, "predicted / measured GPU memory", False),
        ({"used": 2.3e9, "volume": 1e8}, "predicted / measured GPU memory", None),
        ({"used": 0}, "predicted / measured GPU memory", False),
        ({"wrong": 1}, "voxels unlike the whole array's", False),
        ({"grey": 2}, "grey levels from SciPy's", False),
    ],
)
def test_bounds(changed: dict[str, Any], figure: str, kept: bool | None) -> None:
    assert judged(recorded(**changed))[figure][1] is kept


def test_parts_that_are_missing_are_no_verdicts() -> None:
    ours, _ = recorded()
    assert {kept for _, kept in judged([ours]).values()} == {None, True}
    ours["found"] = {}
    assert {kept for _, kept in judged([ours]).values()} == {None}


def test_runs_beside_another_process_are_judged() -> None:
    run = {"seconds": [1.0], "wrong_voxels": 0, "free_bytes": 1e9, "events": {"CellDone": 3}}
    found = {"build_seconds": 1.0, "60 % held": run, "95 % held": {"error": "OutOfMemoryError: 3"}}
    part = {"name": "crowded", "found": found}
    good, bad = judging.figures([part])
    assert (good["case"], good["kept"], good["value"]) == ("gaussian, 60 % held", True, 0)
    assert "3 CellDone" in good["detail"]
    assert (bad["kept"], bad["detail"]) == (False, "OutOfMemoryError: 3")


def test_text_has_measurements_endings_ratios_and_bounds() -> None:
    parts = recorded(grey=3)
    parts.append(
        {**parts[0], "name": "late", "status": "skipped", "error": "why\nmore", "found": {}}
    )
    text = judging.as_text({"parts": parts, "figures": judging.figures(parts)})
    assert "  ours: 1100.00 ms (1000.00 .. 1500.00)" in text
    assert "skipped      3.0 s  late  why\n" in text
    assert "f, 6 GB  1.1     0.2        1         1.1       4        -" in text
    assert "NOT KEPT  f, 6 GB: grey levels from SciPy's 3 (<= 1); 25 % of the voxels differ" in text
    assert "kept      f, 6 GB: gpublocks / floor 1.1 (<= 1.15)" in text


# --- all of it ---------------------------------------------------------------------------------


def test_everything_is_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "found.json"
    states: list[dict[str, Any]] = []

    class Place(Here):
        def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
            if part.name == "start":
                assert not output.exists()
                note("status", "")
                note("host", {"available_bytes": 10**9, "folder_free_bytes": 10**9})
                return Ending("done")
            if output.exists():
                states.append(json.loads(output.read_text()))
            if part.name == "copies":
                return super().do(smaller(part, tmp_path), seconds, note)
            return Ending("died", "for no reason", usable=False)

    results = gpu.run(
        output=output, facts={"commit": "abc"}, quick=True, folder=tmp_path, open_place=Place
    )
    written = json.loads(output.read_text())
    assert written == _by_json(results)
    assert (written["commit"], written["quick"], written["budget_seconds"]) == ("abc", True, 80)
    assert [part["status"] for part in written["parts"][:3]] == ["done", "done", "died"]
    assert written["parts"][1]["found"]["h2d"]
    assert written["figures"]
    # Nothing is lost if it is ended in the middle.
    assert [len(state["parts"]) for state in states] == list(range(2, 2 + len(states)))
    assert states[0]["parts"][1]["found"] == written["parts"][1]["found"]
    assert "how parts ended" in gpu.as_text(written)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_start_that_fails_is_told(tmp_path: Path) -> None:
    class Place(Here):
        def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
            return Ending("hung", "not done after 9 s", usable=False)

    output = tmp_path / "found.json"
    results = gpu.run(output=output, facts={}, open_place=Place)
    assert results["status"] == "not done after 9 s"
    assert json.loads(output.read_text())["parts"][0]["status"] == "hung"


@linux
def test_without_a_gpu_one_line_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Where CuPy is installed it may warn of what it finds of CUDA, in a process of its own.
    missing = gpus.gpu_status()
    if not missing:
        pytest.skip("there may be a GPU")
    output = tmp_path / "found.json"
    assert main(["gpu", "--quick", "-o", str(output)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{missing}\n")
    assert not output.exists()


def test_a_folder_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "-o", "/nowhere/found.json"]) == 2
    assert capsys.readouterr().err == "benchmarks: error: no such folder: /nowhere\n"


# --- names -------------------------------------------------------------------------------------

INSTANCES = {
    "cupy.cuda.Device": ("compute_capability", "id", "synchronize", "use"),
    "cupy.cuda.Event": ("record", "synchronize"),
    "cupy.cuda.Memory": ("ptr",),
    "cupy.cuda.MemoryAsyncPool": ("free_all_blocks", "malloc", "total_bytes"),
    "cupy.cuda.MemoryHook": ("__enter__", "__exit__", "free_postprocess", "malloc_postprocess"),
    "cupy.cuda.MemoryPointer": ("__add__", "copy_from_host_async", "copy_to_host_async", "ptr"),
    "cupy.cuda.MemoryPool": ("free_all_blocks", "malloc", "total_bytes"),
    "cupy.cuda.PinnedMemoryPool": ("free_all_blocks",),
    "cupy.cuda.Stream": ("__enter__", "__exit__", "ptr", "wait_event"),
    "cupy.ndarray": ("__getitem__", "__setitem__", "astype", "clip", "dtype", "get", "set", "sum"),
}
"""What is used of objects, beside names of modules."""
ON_INSTANCES = {"ptr", "compute_capability", "id"}
"""Set by constructors, or properties that need a device."""


def guest_code() -> list[tuple[str, ast.Module]]:
    return [(path.name, ast.parse(path.read_text())) for path in MODULES]


@pytest.fixture(scope="module")
def wheels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("cupy", reason="the wheel of CuPy is not installed")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")


def test_every_name_of_cupy_and_nvml_exists(wheels: None) -> None:
    names = {name for _, tree in guest_code() for name in used_names(tree)}
    assert {"cupy.cuda.runtime.memcpy3DAsync", "pynvml.nvmlDeviceGetHandleByUUID"} <= names
    missing = []
    for name in sorted(names):
        try:
            find(name)
        except AttributeError:
            missing.append(name)
    assert not missing


def test_every_call_of_cupy_and_nvml_fits_what_is_called(wheels: None) -> None:
    checked = 0
    for module, tree in guest_code():
        local = {"cupy": "cupy", "pynvml": "pynvml"}
        for node in ast.walk(tree):
            name = full_name(node.func, local) if isinstance(node, ast.Call) else ""
            if not name or not isinstance(node, ast.Call):
                continue
            told = [word.partition("=")[0] for word in signature_of(find(name))]
            if any(word.startswith("*") for word in told):
                continue
            place = f"{module}:{node.lineno}: {name}({', '.join(told)})"
            assert len(node.args) <= len(told), place
            assert {keyword.arg for keyword in node.keywords} <= set(told), place
            checked += 1
    assert checked > 20


def signature_of(value: Any) -> list[str]:
    """Return the arguments of a function or class, whether told in a docstring or not."""
    try:
        return signature(value)
    except (TypeError, ValueError):
        return ["*args"]


@pytest.mark.parametrize("name", INSTANCES)
def test_objects_of_cupy_have_what_is_used(wheels: None, name: str) -> None:
    kind = find(name)
    for attribute in set(INSTANCES[name]) - ON_INSTANCES:
        assert hasattr(kind, attribute), f"{name}.{attribute}"


def test_the_hook_gets_what_it_takes(wheels: None) -> None:
    from benchmarks.gpu.cuda import _Hook

    meter = Meter(_Hook)
    with meter:
        hook = meter._hook
        told = {"device_id": 0, "size": 5, "mem_size": 512, "mem_ptr": 9, "pmem_id": 4}
        hook.malloc_postprocess(**told)
        told.pop("size")
        hook.free_postprocess(**told)
    assert meter.peak_bytes == 512


def test_page_locked_memory_is_an_array_that_can_be_written(
    wheels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    from benchmarks.gpu.cuda import Cuda

    block = np.zeros(100, np.uint8)

    def locked(nbytes: int, flags: int) -> Any:
        return SimpleNamespace(ptr=block.ctypes.data, size=nbytes)

    monkeypatch.setattr(cupy.cuda, "PinnedMemory", locked)
    pinned = Cuda.pinned(Cuda.__new__(Cuda), 100)
    pinned[7] = 3
    assert (pinned.dtype, pinned.shape, block[7]) == (np.uint8, (100,), 3)
    assert pinned.ctypes.data == block.ctypes.data


def test_the_stand_in_is_asked_as_the_device_is(wheels: None) -> None:
    from benchmarks.gpu.cuda import Cuda

    def public(kind: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(p.name, p.kind) for p in inspect.signature(value).parameters.values()]
            for name, value in vars(kind).items()
            if callable(value) and not name.startswith("_")
        }

    assert public(HostCuda) == public(Cuda)


FLOORS = [
    {"boxcopy", "functions", "lab", "pieces", "volumes", "watching"},
    {"copies", "cuda", "judging", "kernels", "schedule", "staging", "starting"},
    {"catalogue", "floors", "peers", "place"},
    {"comparing"},
    {"crowding"},
]


def test_modules_use_those_below_them() -> None:
    heights = {name: n for n, names in enumerate(FLOORS) for name in names}
    for path in MODULES:
        if path.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("benchmarks.gpu."):
                used = module.split(".")[2]
                assert heights[used] < heights[path.stem], f"{path.stem} imports {used}"
