"""What is promised of `process` and `plan`, one promise a section, the same in every executor."""

import functools
import gc
import io as streams
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st

import gpublocks.block_processing as bp
import gpublocks.io as io
from gpublocks.blocks import Block
from gpublocks.contracts import CellDone, CellStarted, Event
from gpublocks.errors import (
    ArgumentTypeError,
    BlockError,
    BudgetError,
    DeviceError,
    PlanError,
    RunCancelledError,
    SinkError,
)

Array = np.ndarray[Any, Any]


@pytest.fixture
def run(executor: str) -> Callable[..., Any]:
    """`process` on two workers of an executor."""
    return functools.partial(bp.process, executor=executor, processes=2, optimization=False)


def numbered(*shape: int, dtype: Any = float, order: Any = "C") -> Array:
    """Return an array in which no two voxels are equal."""
    return np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype, order)


def double(block: Array) -> Array:
    return 2 * block


def smallest(block: Array) -> Array:
    """A filter whose result does not depend on rounding; its halo is 1."""
    return ndi.minimum_filter(block, 3)


def log_call(folder: Path) -> None:
    """Leave a file for each call, in whatever process it happens."""
    while True:
        name = f"{os.getpid()}-{threading.get_ident()}-{time.perf_counter_ns()}"
        try:
            (folder / name).touch(exist_ok=False)
        except FileExistsError:
            continue
        return


def calls(folder: Path) -> int:
    return len(list(folder.iterdir()))


class TamperedError(Exception):
    """An error of the user's own."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


# --- results are those of the whole array --------------------------------------------------------


@pytest.mark.parametrize("executor", ["serial", "threads", "processes"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_blocks_equal_the_whole(executor: str, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3), "shape"))
    axes = data.draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True), "axes")
    overlap = data.draw(st.integers(2, 4), "overlap")
    size_max = data.draw(st.integers(overlap + 1, 13), "size_max")
    order = data.draw(st.sampled_from("CF"), "order")
    source = np.asarray(np.random.default_rng(0).integers(0, 99, shape), order=order)

    result = bp.process(
        smallest,
        source,
        axes=axes,
        size_max=size_max,
        overlap=overlap,
        executor=executor,
        processes=data.draw(st.integers(1, 3), "processes"),
    )

    assert np.array_equal(result, smallest(source))


def test_automatic_sizes_equal_the_whole(run: Callable[..., Any]) -> None:
    source = np.random.default_rng(1).random((90, 80, 70), dtype=np.float32)

    result = run(functools.partial(ndi.gaussian_filter, sigma=1), source, halo=4)

    assert np.array_equal(result, ndi.gaussian_filter(source, 1))


# --- what the function gets ----------------------------------------------------------------------


def test_arrays_are_private_and_writable(run: Callable[..., Any]) -> None:
    source = numbered(4, 12)
    before = source.copy()

    def clobber(block: Array) -> Array:
        assert type(block) is np.ndarray
        assert block.flags.writeable
        result = block + 1
        block[...] = -1
        return result

    assert np.array_equal(run(clobber, source, size_max=2, overlap=1), before + 1)
    assert np.array_equal(source, before)


def test_the_array_that_comes_in_may_go_out(run: Callable[..., Any]) -> None:
    source = numbered(20, 3)

    def in_place(block: Array) -> Array:
        block *= 3
        return block

    assert np.array_equal(run(in_place, source, size_max=4, overlap=2), 3 * numbered(20, 3))
    assert np.array_equal(source, numbered(20, 3))


def test_source_functions_get_read_only_blocks(run: Callable[..., Any]) -> None:
    source = numbered(5, 20)

    def add_lower(block: Block) -> Array:
        assert isinstance(block, Block)
        assert not block.writable
        seen = block[:]
        seen += block.lower[1]
        return seen

    result = run(add_lower, source, function_type="source", axes=1, size_max=5, overlap=0)

    assert np.array_equal(result, source + np.arange(20) // 5 * 5)
    assert np.array_equal(source, numbered(5, 20))


def test_source_functions_cannot_write_into_the_source(run: Callable[..., Any]) -> None:
    source = numbered(6)

    def careless(block: Block) -> Array:
        block[:] = 0
        return block[:]

    with pytest.raises(SinkError, match="read-only"):
        run(careless, source, function_type="source", size_max=3, overlap=0)
    assert np.array_equal(source, numbered(6))


def test_block_functions_get_sources_then_sinks(run: Callable[..., Any]) -> None:
    sources, sinks = [numbered(8), -numbered(8)], [np.zeros(8), np.zeros(8)]

    def both(a: Block, b: Block, total: Block, difference: Block) -> None:
        total[:] = a[:] + b[:] + 1
        difference[:] = a[:] - b[:]

    assert run(both, sources, sinks, function_type="block", size_max=3, overlap=0) is sinks
    assert np.array_equal(sinks[0], np.ones(8))
    assert np.array_equal(sinks[1], 2 * numbered(8))


@pytest.mark.parametrize("as_memory", [False, True])
@pytest.mark.parametrize("style", ["whole", "valid", "slicing", "block"])
def test_block_functions_write_valid_regions(
    run: Callable[..., Any], style: str, as_memory: bool
) -> None:
    source, sink = numbered(6, 30), np.full((6, 30), -1.0)

    def write(source: Block, sink: Block) -> None:
        if style == "whole":
            # Beyond its valid region this block computes nonsense, as filters do at cut borders.
            result = np.full(source.shape, 1e9)
            result[source.valid.slicing] = 2 * source.valid[:]
            sink[:] = result
        elif style == "valid":
            sink.valid[:] = 2 * source.valid[:]
        elif style == "slicing":
            sink[source.valid.slicing] = 2 * source[source.valid.slicing]
        else:
            sink[:] = 2 * source[:]

    run(
        write,
        source,
        sink,
        function_type="block",
        axes=1,
        size_max=8,
        overlap=4,
        as_memory=as_memory,
    )

    assert np.array_equal(sink, 2 * source)


def test_block_functions_see_what_the_sink_holds(run: Callable[..., Any]) -> None:
    source, sink = numbered(12), np.full(12, 100.0)

    def add_where_even(source: Block, sink: Block) -> None:
        sink[:] = np.where(source[:] % 2 == 0, sink[:] + source[:], sink[:])

    run(add_where_even, source, sink, function_type="block", size_max=5, overlap=2)

    assert np.array_equal(sink, np.where(source % 2 == 0, 100 + source, 100))


def test_what_a_block_function_leaves_alone_stays(run: Callable[..., Any]) -> None:
    sink = numbered(10)

    run(lambda source, sink: None, np.zeros(10), sink, function_type="block", size_max=4, overlap=1)

    assert np.array_equal(sink, numbered(10))


@pytest.mark.parametrize("function_type", ["source", "block"])
def test_blocks_in_memory_know_where_they_lie(
    run: Callable[..., Any], function_type: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", numbered(3, 10))

    def places(block: Block) -> tuple[Any, ...]:
        assert isinstance(block.array, np.ndarray)
        return block.lower, block.upper, block.index, block.array.tolist()

    found = run(
        places,
        tmp_path / "a.npy",
        function_type=function_type,
        axes=1,
        size_max=4,
        overlap=0,
        optimization=False,
        as_memory=True,
        return_result=True,
    )

    lowers = [place[0] for place in found]
    assert lowers == [(0, 0), (0, 3), (0, 6)]
    assert [place[2] for place in found] == [(0, 0), (0, 1), (0, 2)]
    for lower, upper, _, voxels in found:
        assert voxels == numbered(3, 10)[:, lower[1] : upper[1]].tolist()


def test_as_memory_makes_blocks_of_sources_private(executor: str) -> None:
    source = numbered(12)

    def clobber(block: Block) -> Array:
        result = block[:] + 1
        block[:] = -5
        return result

    result = bp.process(
        clobber,
        source,
        function_type="source",
        as_memory=True,
        size_max=4,
        overlap=2,
        executor=executor,
        processes=2,
    )
    assert np.array_equal(result, numbered(12) + 1)
    assert np.array_equal(source, numbered(12))


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_neighbours(executor: str) -> None:
    source = numbered(4, 9)

    def sides(block: Block) -> dict[tuple[int, ...], float]:
        return {index: float(other[0, 0]) for index, other in block.neighbours.items()}

    found = bp.process(
        sides,
        source,
        axes="all",
        size_max=[2, 3],
        overlap=0,
        optimization=False,
        neighbours=True,
        function_type="source",
        return_result=True,
        executor=executor,
    )

    assert found[0] == {(0, 1): 3.0, (1, 0): 18.0}
    assert found[4] == {(0, 1): 3.0, (1, 0): 18.0, (1, 2): 24.0}


def test_neighbours_in_files_are_seen_by_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbered(9))

    found = bp.process(
        lambda block: sorted(float(b[0]) for b in block.neighbours.values()),
        tmp_path / "a.npy",
        size_max=3,
        overlap=0,
        optimization=False,
        neighbours=True,
        function_type="source",
        return_result=True,
        executor="processes",
        processes=2,
    )

    assert found == [[3.0], [0.0, 6.0], [3.0]]


def test_neighbours_in_memory_are_refused_to_processes() -> None:
    with pytest.raises(PlanError, match=r"neighbours.*threads"):
        bp.process(
            double,
            numbered(9),
            size_max=3,
            neighbours=True,
            function_type="source",
            executor="processes",
        )


@pytest.mark.parametrize(
    ("function", "arrays", "expected"),
    [
        (np.sqrt, 1, np.sqrt(numbered(4, 5))),
        (np.add, 2, 2 * numbered(4, 5)),
        (functools.partial(np.power, 2.0), 1, 2 ** numbered(4, 5)),
        (functools.partial(functools.partial(np.clip, a_min=3), a_max=7), 1, None),
        (np.vectorize(lambda value: value + 1), 1, 1 + numbered(4, 5)),
    ],
)
def test_callables_of_any_kind(
    run: Callable[..., Any], function: Any, arrays: int, expected: Array | None
) -> None:
    source = numbered(4, 5)

    result = run(function, [source] * arrays, size_max=2, overlap=0, verbose=True)

    assert np.array_equal(result, source.clip(3, 7) if expected is None else expected)


@pytest.mark.parametrize("mode", ["wrap", "grid-wrap", ["reflect", "wrap"]])
def test_periodic_filters_are_refused(mode: Any) -> None:
    source = numbered(12, 12)

    with pytest.raises(PlanError, match=r"'uniform_filter' with mode='.*wrap'.*size_max='full'"):
        bp.process(ndi.uniform_filter, source, halo=1, size_max=6, size=3, mode=mode)
    periodic = functools.partial(ndi.uniform_filter, mode=mode)
    with pytest.raises(PlanError, match="wrap"):
        bp.plan(functools.partial(periodic, size=3), source, halo=1, size_max=6)
    result = bp.process(ndi.uniform_filter, source, size_max="full", size=3, mode=mode)
    assert np.array_equal(result, ndi.uniform_filter(source, 3, mode=mode))
    taken = bp.process(np.take, source, indices=[0, 13], axis=1, mode="wrap", executor="serial")
    assert np.array_equal(taken, source[:, [0, 1]])


# --- keyword arguments ---------------------------------------------------------------------------


def test_keywords_are_fresh_for_each_block(run: Callable[..., Any]) -> None:
    table, weights = {"seen": [0]}, np.ones(3)

    def count(block: Array, table: dict[str, list[int]], weights: Array) -> Array:
        table["seen"].append(1)
        weights += 1
        return block * 0 + len(table["seen"]) + weights.sum()

    result = run(count, numbered(12), size_max=3, overlap=0, table=table, weights=weights)

    assert np.array_equal(result, np.full(12, 8.0))
    assert table == {"seen": [0]}
    assert np.array_equal(weights, np.ones(3))


def test_keywords_that_cannot_be_copied_are_shared() -> None:
    lock = threading.Lock()

    def locked(block: Array, lock: Any) -> Array:
        with lock:
            return block + 1

    result = bp.process(locked, numbered(6), size_max=2, overlap=0, executor="threads", lock=lock)

    assert np.array_equal(result, numbered(6) + 1)


def test_unknown_keywords_are_refused_with_a_guess() -> None:
    with pytest.raises(TypeError, match="did you mean 'overlap'"):
        bp.process(double, numbered(6), size_max=3, overlpa=0)
    with pytest.raises(ArgumentTypeError, match="did you mean 'factor'"):
        bp.process(lambda block, factor=1: block, numbered(6), size_max=3, facto=0)
    with pytest.raises(ArgumentTypeError, match="zzz"):
        bp.plan(double, numbered(6), zzz=0)


def test_keywords_of_both_are_refused() -> None:
    def masked(block: Array, mask: Any = None) -> Array:
        assert mask == "mine"
        return block

    with pytest.raises(PlanError, match=r"functools\.partial"):
        bp.process(masked, numbered(6), size_max=3, mask=np.ones(6, bool))
    advised = functools.partial(masked, mask="mine")
    assert np.array_equal(bp.process(advised, numbered(6), size_max=3), numbered(6))
    result = bp.process(
        advised, numbered(6), size_max=3, overlap=0, optimization=False, mask=np.arange(6) < 3
    )
    assert np.array_equal(result, [0, 1, 2, 0, 0, 0])


def test_documented_names_are_always_those_of_process(run: Callable[..., Any]) -> None:
    def reverse(block: Array, axes: Any = None) -> Array:
        assert axes is None
        return -block

    assert np.array_equal(run(reverse, numbered(4, 6), axes=1, size_max=2), -numbered(4, 6))


# --- sinks ---------------------------------------------------------------------------------------


def test_no_sink_returns_an_array(run: Callable[..., Any]) -> None:
    result = run(lambda block: block.astype(np.int16), numbered(4, 6), size_max=2, overlap=0)

    assert isinstance(result, np.ndarray)
    assert result.dtype == np.int16
    result[...] = 0


def test_an_array_is_written_and_returned(run: Callable[..., Any]) -> None:
    sink = np.zeros((4, 6))

    assert run(double, numbered(4, 6), sink, size_max=2, overlap=1) is sink
    assert np.array_equal(sink, 2 * numbered(4, 6))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_created(run: Callable[..., Any], tmp_path: Path, kind: Any) -> None:
    path = kind(tmp_path / "new.npy")

    assert run(double, numbered(4, 6), path, size_max=2, overlap=1) is path
    assert np.array_equal(np.load(path), 2 * numbered(4, 6))
    assert os.listdir(tmp_path) == ["new.npy"]


def test_a_file_is_written_into(run: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "old.npy", np.zeros((4, 6), np.float32))

    run(double, numbered(4, 6), tmp_path / "old.npy", size_max=2, overlap=1)

    found = np.load(tmp_path / "old.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, 2 * numbered(4, 6))


def test_a_file_that_does_not_fit_is_left_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "old.npy", np.ones((5, 6)))
    before = (tmp_path / "old.npy").read_bytes()

    with pytest.raises(SinkError, match=r"\(5, 6\).*\(4, 6\)"):
        run(double, numbered(4, 6), tmp_path / "old.npy", size_max=2)
    assert (tmp_path / "old.npy").read_bytes() == before


def test_lists_of_sources_and_sinks(run: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", numbered(4, 6) % 5)
    sources = [numbered(4, 6), tmp_path / "b.npy"]
    sinks = [np.zeros((4, 6)), str(tmp_path / "max.npy"), io.npy.Source(shape=(4, 6))]

    def measures(a: Array, b: Array) -> tuple[Array, Array, Array, str]:
        return a + b, np.maximum(a, b), a * b, "ignored"

    assert run(measures, sources, sinks, size_max=3, overlap=1) is sinks
    a, b = numbered(4, 6), numbered(4, 6) % 5
    assert np.array_equal(sinks[0], a + b)
    assert np.array_equal(np.load(tmp_path / "max.npy"), np.maximum(a, b))
    assert np.array_equal(sinks[2], a * b)


def test_too_few_outputs_fail_the_block(run: Callable[..., Any]) -> None:
    with pytest.raises(BlockError, match="returned 1 arrays, but there are 2 sinks"):
        run(double, numbered(6), [np.zeros(6), np.zeros(6)], size_max=3)


def test_tables_lose_columns(run: Callable[..., Any], tmp_path: Path) -> None:
    points = numbered(20, 3)

    def length(block: Array) -> Array:
        return np.sqrt((block**2).sum(axis=1, keepdims=True))

    expected = length(points)
    sink = np.zeros((20, 1))
    run(length, points, sink, axes=0, size_max=6, overlap=2)
    assert np.array_equal(sink, expected)
    run(length, points, tmp_path / "new.npy", axes=0, size_max=6, overlap=2)
    assert np.array_equal(np.load(tmp_path / "new.npy"), expected)
    assert np.array_equal(run(length, points, axes=0, size_max=6, overlap=2), expected)


def test_volumes_gain_an_axis(run: Callable[..., Any], tmp_path: Path) -> None:
    volume = numbered(4, 5, 12)

    def channels(block: Array) -> Array:
        return np.stack([block, -block], axis=-1)

    expected = channels(volume)
    sink = np.zeros((4, 5, 12, 2))
    run(channels, volume, sink, axes=[0, 2], size_max=[4, 5], overlap=2)
    assert np.array_equal(sink, expected)
    np.save(tmp_path / "old.npy", np.zeros((4, 5, 12, 2)))
    for name in ("old.npy", "new.npy"):
        run(channels, volume, tmp_path / name, axes=2, size_max=5, overlap=2)
        assert np.array_equal(np.load(tmp_path / name), expected)

    def write(source: Block, sink: Block) -> None:
        sink[:] = channels(source[:])

    blank = np.zeros((4, 5, 12, 2))
    run(write, volume, blank, function_type="block", axes=2, size_max=5, overlap=2)
    assert np.array_equal(blank, expected)


def test_results_follow_the_order_of_the_source(run: Callable[..., Any], tmp_path: Path) -> None:
    source = numbered(4, 5, 12, order="F")

    result = run(double, source, size_max=4, overlap=2)
    run(double, source, tmp_path / "new.npy", size_max=4, overlap=2)

    for found in (result, np.load(tmp_path / "new.npy")):
        assert found.flags.f_contiguous
        assert np.array_equal(found, 2 * source)
    assert bp.plan(double, source, size_max=4).grid.axes == (2,)


def test_views_are_sources_and_sinks(run: Callable[..., Any]) -> None:
    whole, target = numbered(10, 12), np.zeros((20, 12))

    run(double, whole[::-1, 2:8], target[::2, 3:9], size_max=3, overlap=1)

    expected = np.zeros((20, 12))
    expected[::2, 3:9] = 2 * whole[::-1, 2:8]
    assert np.array_equal(target, expected)


def test_shared_memory_is_source_and_sink(run: Callable[..., Any]) -> None:
    source, sink = io.sma.zeros((4, 9)), io.sma.zeros((4, 9), np.float32)
    source[:] = numbered(4, 9)

    run(double, source, sink, size_max=2, overlap=1)

    assert np.array_equal(sink, 2 * numbered(4, 9))


def test_a_fresh_array_is_written_by_other_processes() -> None:
    sink = np.zeros(10)

    bp.process(
        lambda block: np.full(block.shape, os.getpid()),
        numbered(10),
        sink,
        size_max=1,
        overlap=0,
        executor="processes",
        processes=2,
    )

    assert os.getpid() not in sink
    assert (sink > 0).all()


def test_new_files_get_their_name_when_complete(run: Callable[..., Any], tmp_path: Path) -> None:
    def look(block: Array) -> Array:
        assert not (tmp_path / "new.npy").exists()
        return block + float((tmp_path / "new.npy.partial").exists())

    run(look, numbered(12), tmp_path / "new.npy", size_max=2, overlap=0)

    assert np.array_equal(np.load(tmp_path / "new.npy")[2:], numbered(12)[2:] + 1)


def test_a_failing_run_leaves_no_new_file(run: Callable[..., Any], tmp_path: Path) -> None:
    def fail_late(block: Array) -> Array:
        if block[0] >= 8:
            raise TamperedError("late")
        return block

    with pytest.raises(TamperedError, match="late"):
        run(fail_late, numbered(12), tmp_path / "new.npy", size_max=2, overlap=0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4)])
def test_arrays_without_voxels(run: Callable[..., Any], shape: tuple[int, ...]) -> None:
    source, sink = np.zeros(shape), np.zeros(shape, np.float32)

    assert run(double, source, size_max=4).shape == shape
    assert run(double, source, overlap=0).shape == shape
    assert run(double, source, sink, size_max=4) is sink
    assert run(double, source, size_max=4, return_result=True) == []


# --- types of voxels -----------------------------------------------------------------------------


def test_new_sinks_take_the_type_of_the_first_result(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    run(lambda block: block > 3, numbered(9), tmp_path / "new.npy", size_max=4, overlap=0)

    assert np.load(tmp_path / "new.npy").dtype == np.bool_


def test_a_filter_may_declare_its_type(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run(Declared(), numbered(9), tmp_path / "new.npy", size_max=6)

    assert np.load(result).dtype == np.float32


class Declared:
    """A filter that says what it needs, in voxels and bytes, and what it gives."""

    halo = 2
    memory = 3.0

    def result_dtype(self, dtype: Any) -> Any:
        return np.float32

    def __call__(self, block: Array) -> Array:
        return ndi.uniform_filter(block, 5).astype(np.float32)


def test_dtype_of_new_sinks(run: Callable[..., Any], tmp_path: Path) -> None:
    for sink in (None, tmp_path / "new.npy"):
        result = run(double, numbered(9), sink, size_max=4, dtype="uint8")
        found = result if sink is None else np.load(result)
        assert found.dtype == np.uint8
        assert np.array_equal(found, 2 * numbered(9))


def test_files_are_let_go_when_it_returns(run: Callable[..., Any], tmp_path: Path) -> None:
    """Those that are deleted then hold no room on the disk until the garbage is collected."""
    np.save(tmp_path / "x.npy", numbered(9))
    gc.disable()
    try:
        run(double, tmp_path / "x.npy", tmp_path / "y.npy", size_max=4)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        mapped = [Path(f"/proc/{one.pid}/maps").read_text() for one in processes]
        assert not [text for text in mapped if str(tmp_path) in text]
    finally:
        gc.enable()


def test_existing_files_are_durable_when_it_returns(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", numbered(9))
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    run(double, numbered(9), tmp_path / "x.npy", size_max=4)
    assert synced == [str(tmp_path / "x.npy")]


def test_existing_sinks_cast_as_assignment_does(run: Callable[..., Any]) -> None:
    sink, expected = np.zeros(9, np.int16), np.zeros(9, np.int16)
    values = np.array([-1.7, -0.2, 0.9, 1.5, 2.5, 99.99, 300, -32768, 32767.4])

    run(lambda block: block, values, sink, size_max=4, overlap=0)

    expected[:] = values
    assert np.array_equal(sink, expected)


@pytest.mark.parametrize("value", [256, -1, np.nan, -np.inf])
def test_values_that_an_integer_sink_cannot_hold(run: Callable[..., Any], value: float) -> None:
    values = np.zeros(9)
    values[7] = value
    sink = np.full(9, 5, np.uint8)

    with pytest.raises(BlockError, match=r"uint8.*casting='unsafe'") as caught:
        run(lambda block: block, values, sink, size_max=3, overlap=0, optimization=False)
    assert caught.value.block == 2
    assert np.array_equal(sink[6:], [5, 5, 5])
    with pytest.raises(BlockError, match=r"function returned .*uint8") as caught:
        run(lambda block: block, np.full(3, value), size_max=3, overlap=0, dtype=np.uint8)
    assert caught.value.stage == "compute"


def test_casting_unsafe_takes_any_value(run: Callable[..., Any]) -> None:
    values = np.array([1, 256, -1, 513])
    sink = np.zeros(4, np.uint8)

    run(lambda block: block, values, sink, size_max=2, overlap=0, casting="unsafe")

    assert np.array_equal(sink, [1, 0, 255, 1])


def test_casting_rules_are_those_of_numpy(run: Callable[..., Any]) -> None:
    with pytest.raises(BlockError, match="casting='same_kind'"):
        run(double, numbered(4), np.zeros(4, int), size_max=2, casting="same_kind")
    with pytest.raises(BlockError, match="imaginary"):
        run(lambda block: block * 1j, numbered(4), np.zeros(4), size_max=2)
    with pytest.raises(PlanError, match="casting is 'sure'"):
        run(double, numbered(4), np.zeros(4, int), size_max=2, casting="sure")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda block: None, "returned None"),
        (lambda block: block[1:], r"returned shape \(2, 4\), expected \(3, 4\)"),
        (lambda block: block.sum(), "returned a float64"),
        (lambda block: np.ma.masked_less(block, 5), "MaskedArray"),
        (lambda block: block[:, :2], "expected"),
    ],
)
def test_results_that_do_not_fit(
    run: Callable[..., Any], function: Callable[[Array], Any], message: str
) -> None:
    sink = np.zeros((6, 4))

    with pytest.raises(BlockError, match=message):
        run(function, numbered(6, 4), sink, size_max=3, overlap=0)
    assert not sink.any()


# --- what is returned ----------------------------------------------------------------------------


def test_values_come_in_the_order_of_the_blocks(run: Callable[..., Any]) -> None:
    def slow_at_first(block: Array) -> float:
        time.sleep(0.05 if block[0] == 0 else 0)
        return float(block[0])

    assert run(
        slow_at_first, numbered(12), size_max=3, overlap=0, return_result=True, optimization=False
    ) == [0.0, 3.0, 6.0, 9.0]


def test_values_are_handed_on_in_the_order_in_which_blocks_are_stored(
    run: Callable[..., Any],
) -> None:
    def slow_at_first(block: Array) -> float:
        time.sleep(0.05 if block[0, 0] == 0 else 0)
        return float(block[0, 0])

    rows_last = np.asfortranarray(numbered(6, 4))
    inside = np.ones((6, 4), bool)
    inside[2:4, :2] = False
    options = {"axes": "all", "size_max": 2, "overlap": 0, "optimization": False, "mask": inside}
    for source, order in ((numbered(6, 4), "C"), (rows_last, "F")):
        values: list[float] = []
        assert run(slow_at_first, source, return_result=values.append, **options) is None
        corners = np.ma.masked_array(source, ~inside)[::2, ::2].ravel(order)
        assert values == corners.compressed().tolist()


def test_values_that_are_handed_on_are_not_kept(run: Callable[..., Any]) -> None:
    sink = np.zeros(10)
    total = np.zeros(1)

    def add(value: Array) -> None:
        total[:] += value.sum()

    assert run(double, numbered(10), sink, size_max=5, overlap=0, return_result=add) is sink
    assert total[0] == sink.sum() == 2 * numbered(10).sum()


@pytest.mark.parametrize("function_type", ["array", "source", "block"])
def test_values_are_uncropped(run: Callable[..., Any], function_type: str) -> None:
    sizes = run(
        lambda block: (block.shape, {"any": "thing"}),
        numbered(10),
        function_type=function_type,
        size_max=4,
        overlap=2,
        return_result=True,
        optimization=False,
    )

    assert sizes == [((4,), {"any": "thing"})] * 4


def test_values_and_sinks_together(run: Callable[..., Any]) -> None:
    sink = np.zeros(10)

    values = run(double, numbered(10), sink, size_max=4, overlap=2, return_result=True)

    assert np.array_equal(sink, 2 * numbered(10))
    assert np.array_equal(values, [2 * numbered(10)[lo : lo + 4] for lo in (0, 2, 4, 6)])


class Pair(NamedTuple):
    name: str
    array: Array


@pytest.mark.parametrize(
    ("put", "take"),
    [
        (lambda array: array, lambda value: value),
        (lambda array: (1, [array]), lambda value: value[1][0]),
        (lambda array: {"a": array}, lambda value: value["a"]),
        (lambda array: Pair("b", array), lambda value: value.array),
    ],
)
def test_values_are_not_overwritten_by_later_blocks(
    put: Callable[[Array], Any], take: Callable[[Any], Array]
) -> None:
    kept = np.zeros(2)

    def reuse(block: Array) -> Any:
        kept[:] = block
        return put(kept)

    values = bp.process(
        reuse, numbered(6), size_max=2, overlap=0, return_result=True, executor="serial"
    )

    assert [type(value) for value in values] == [type(put(kept))] * 3
    assert np.array_equal([take(value) for value in values], numbered(3, 2))


@pytest.mark.parametrize("function_type", ["source", "block"])
def test_blocks_may_be_values(run: Callable[..., Any], function_type: str) -> None:
    values = run(
        lambda block: (block, block.valid),
        numbered(10),
        size_max=4,
        overlap=2,
        function_type=function_type,
        return_result=True,
    )

    assert np.array_equal(np.concatenate([valid[:] for _, valid in values]), numbered(10))
    assert [block.lower for block, _ in values] == [(0,), (2,), (4,), (6,)]
    assert all(block[:].shape == (4,) for block, _ in values)


def test_blocks_are_returned(run: Callable[..., Any]) -> None:
    source, sink = numbered(10), np.zeros(10)

    result, (sources, sinks) = run(double, source, sink, size_max=4, overlap=2, return_blocks=True)

    assert result is sink
    assert len(sources) == len(sinks) == 4
    assert np.array_equal(np.concatenate([group[0].valid[:] for group in sources]), source)
    assert np.array_equal(np.concatenate([group[0].valid[:] for group in sinks]), 2 * source)
    values, blocks = run(
        lambda block: block.size, source, size_max=4, return_blocks=True, return_result=True
    )
    assert sum(values) == 10
    assert [len(group) for group in blocks[0]] == [1] * len(values)


def test_block_functions_without_a_sink_return_none(run: Callable[..., Any]) -> None:
    assert run(lambda block: 3, numbered(4), function_type="block", size_max=2) is None


# --- errors of the function ----------------------------------------------------------------------


def fail_at_five(block: Array) -> Array:
    if (block == 5).any():
        raise TamperedError("five")
    return block


@pytest.mark.parametrize("sink", [False, True])
def test_errors_keep_their_type_and_say_where(run: Callable[..., Any], sink: bool) -> None:
    target = np.zeros(12) if sink else None

    with pytest.raises(TamperedError) as caught:
        run(fail_at_five, numbered(12), target, size_max=3, overlap=0, optimization=False)

    assert str(caught.value) == "five"
    notes = "\n".join(caught.value.__notes__)
    assert "block 1/4<(1,)/(4,)> failed in stage 'compute'" in notes


def test_errors_of_processes_show_their_traceback() -> None:
    with pytest.raises(TamperedError) as caught:
        bp.process(fail_at_five, numbered(12), size_max=3, overlap=0, executor="processes")

    assert 'raise TamperedError("five")' in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        StopIteration("stop"),
        FileNotFoundError(2, "No such file", "missing.tif"),
        MemoryError("memory"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_any_type(run: Callable[..., Any], error: Exception) -> None:
    def fail(block: Array) -> Array:
        raise error

    with pytest.raises(type(error)) as caught:
        run(fail, numbered(6), size_max=3, overlap=0, optimization=False)
    assert str(caught.value) == str(error)
    assert "block 0/2<(0,)/(2,)>" in "\n".join(caught.value.__notes__)


class UnpicklableError(Exception):
    """An error that does not survive pickling."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def test_errors_that_cannot_travel_become_block_errors() -> None:
    def fail(block: Array) -> Array:
        raise UnpicklableError(3, "broken")

    with pytest.raises(BlockError, match=r"UnpicklableError: 3: broken") as caught:
        bp.process(fail, numbered(6), size_max=3, overlap=0, executor="processes")
    assert "0/" in str(caught.value)


def test_what_would_end_the_interpreter_ends_the_run(run: Callable[..., Any]) -> None:
    with pytest.raises(BlockError, match=r"block 0/2<\(0,\)/\(2,\)>.*SystemExit"):
        run(lambda block: sys.exit(3), numbered(6), size_max=3, overlap=0, optimization=False)


def test_the_first_failing_block_stops_the_run(run: Callable[..., Any], tmp_path: Path) -> None:
    def fail(block: Array) -> Array:
        log_call(tmp_path)
        raise TamperedError("at once")

    with pytest.raises(TamperedError):
        run(fail, numbered(500), np.zeros(500), size_max=1, overlap=0)
    assert 1 <= calls(tmp_path) <= 20


def test_after_an_error_all_is_as_before(run: Callable[..., Any]) -> None:
    with pytest.raises(TamperedError):
        run(fail_at_five, numbered(12), size_max=3, overlap=0)

    assert np.array_equal(run(double, numbered(12), size_max=3, overlap=0), 2 * numbered(12))


# --- telling -------------------------------------------------------------------------------------

INFO = r"(\d+)/5<\((\d+), 0\)/\(5, 1\)> \((\d+), 4\)@\(20, 4\)\[\((\d*):(\d+),:\)\]"
ELAPSED = r": elapsed time: \d+:\d\d:\d\d\.\d{3}"


def test_verbose_lines(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(double, numbered(20, 4), size_max=5, overlap=1, verbose=True)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Processing 5 blocks with function 'double'."
    assert re.fullmatch(r"Processed 5 blocks with function 'double'" + ELAPSED, lines[-1])
    begun = [m for m in (re.fullmatch(f"Processing block {INFO}", line) for line in lines) if m]
    done = [
        m for m in (re.fullmatch(f"Processing block {INFO}{ELAPSED}", line) for line in lines) if m
    ]
    assert len(lines) == 12
    for found in (begun, done):
        assert sorted(int(match[1]) for match in found) == list(range(5))
        assert all(match[1] == match[2] for match in found)
        assert all(int(match[5]) - int(match[4]) == int(match[3]) for match in found)


def test_nothing_is_printed_by_default(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(double, numbered(20, 4), size_max=5, overlap=1)

    assert capsys.readouterr() == ("", "")


def test_prints_of_the_function_are_seen(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(block: Array) -> Array:
        print("at", int(block[0]))
        print("oh", file=sys.stderr)
        return block

    run(chatty, numbered(6), size_max=2, overlap=0, optimization=False)

    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["at 0", "at 2", "at 4"]
    assert err.splitlines() == ["oh"] * 3


def test_a_progress_bar(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(double, numbered(20, 4), size_max=5, overlap=1, progress=True)

    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err
    assert "double" in err


def test_a_progress_bar_of_a_run_that_fails(run: Callable[..., Any]) -> None:
    shown = streams.StringIO()

    with redirect_stderr(shown), pytest.raises(TamperedError):
        run(fail_at_five, numbered(12), size_max=3, overlap=0, progress=True)

    assert "/4" in shown.getvalue()
    assert "4/4" not in shown.getvalue()


def test_events(run: Callable[..., Any]) -> None:
    events: list[Event] = []

    run(double, numbered(20, 4), size_max=5, overlap=1, progress=events.append)

    begun = [event.cell.number for event in events if isinstance(event, CellStarted)]
    done = [event for event in events if isinstance(event, CellDone)]
    assert sorted(begun) == sorted(event.cell.number for event in done) == list(range(5))
    assert all(len(event.seconds) == 3 and min(event.seconds) >= 0 for event in done)
    assert sum(event.written_bytes for event in done) == 20 * 4 * 8


def test_an_observer_that_raises_stops_the_run(run: Callable[..., Any], tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        raise TamperedError("enough")

    with pytest.raises(TamperedError, match="enough"):
        run(double, numbered(50), tmp_path / "new.npy", size_max=2, progress=refuse)
    assert os.listdir(tmp_path) == []


def test_progress_of_another_kind_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="progress is 3"):
        bp.process(double, numbered(6), size_max=3, progress=3)


# --- workspaces and cancelling -------------------------------------------------------------------


class Workspace:
    executor: Any = None


def test_a_workspace_holds_the_run(run: Callable[..., Any]) -> None:
    workspace, seen = Workspace(), []

    run(
        double,
        numbered(12),
        size_max=3,
        workspace=workspace,
        progress=lambda event: seen.append(workspace.executor),
    )

    assert len(set(map(id, seen))) == 1
    assert callable(seen[0].shutdown)
    assert callable(seen[0].cancel)
    assert workspace.executor is None


def test_a_workspace_is_free_after_an_error(run: Callable[..., Any]) -> None:
    workspace = Workspace()

    with pytest.raises(TamperedError):
        run(fail_at_five, numbered(12), size_max=3, workspace=workspace)
    assert workspace.executor is None


def test_cancelling_from_another_thread(run: Callable[..., Any], tmp_path: Path) -> None:
    workspace, threads = Workspace(), []
    folder = tmp_path / "calls"
    folder.mkdir()

    def slow(block: Array) -> Array:
        log_call(folder)
        time.sleep(0.02)
        return block

    def stop() -> None:
        workspace.executor.shutdown(cancel_futures=True)

    def watch(event: Event) -> None:
        # The first block is computed before the others, and its end told among theirs.
        if isinstance(event, CellDone) and event.cell.number >= 4 and not threads:
            threads.append(threading.Thread(target=stop))
            threads[0].start()

    before = {thread for thread in threading.enumerate() if "worker" not in thread.name}
    with pytest.raises(CancelledError) as caught:
        run(
            slow,
            numbered(400),
            tmp_path / "new.npy",
            size_max=1,
            overlap=0,
            workspace=workspace,
            progress=watch,
        )

    assert isinstance(caught.value, RunCancelledError)
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert workspace.executor is None
    assert os.listdir(tmp_path) == ["calls"]
    assert calls(folder) < 400
    now = {thread for thread in threading.enumerate() if "worker" not in thread.name}
    assert now <= before


def test_cancelling_from_the_consuming_thread(run: Callable[..., Any]) -> None:
    workspace = Workspace()

    def watch(event: Event) -> None:
        workspace.executor.shutdown(cancel_futures=True)

    with pytest.raises(CancelledError):
        run(double, numbered(60), size_max=2, workspace=workspace, progress=watch)


def test_shutdown_without_cancelling_lets_the_run_end(run: Callable[..., Any]) -> None:
    workspace = Workspace()

    result = run(
        double,
        numbered(12),
        size_max=3,
        workspace=workspace,
        progress=lambda event: workspace.executor.shutdown(),
    )

    assert np.array_equal(result, 2 * numbered(12))


# --- in place ------------------------------------------------------------------------------------


def test_in_place_without_overlap_is_exact(run: Callable[..., Any], tmp_path: Path) -> None:
    array = numbered(10, 4)
    run(double, array, array, size_max=3, overlap=0)
    assert np.array_equal(array, 2 * numbered(10, 4))

    np.save(tmp_path / "a.npy", numbered(10, 4))
    run(double, tmp_path / "a.npy", tmp_path / "a.npy", size_max=3, overlap=0)
    assert np.array_equal(np.load(tmp_path / "a.npy"), 2 * numbered(10, 4))


def test_in_place_into_a_part_is_exact(run: Callable[..., Any]) -> None:
    table = numbered(10, 4)

    run(lambda rows: rows.sum(axis=1), table, table[:, 2], size_max=3, overlap=0)

    assert np.array_equal(table[:, 2], numbered(10, 4).sum(axis=1))


def test_in_place_with_overlap_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    array = numbered(10, 4)
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r+")

    for source, sink in (
        (array, array),
        (array[:8], array[2:]),
        (tmp_path / "a.npy", tmp_path / "a.npy"),
        (tmp_path / "a.npy", tmp_path / "link.npy"),
        (mapped, tmp_path / "a.npy"),
        (tmp_path / "a.npy", mapped[:]),
    ):
        with pytest.raises(SinkError, match="overlap 2 "):
            run(double, source, sink, size_max=4, overlap=2)
    assert np.array_equal(array, numbered(10, 4))
    assert np.array_equal(np.load(tmp_path / "a.npy"), numbered(10, 4))


def test_in_place_that_moves_voxels_is_refused(run: Callable[..., Any]) -> None:
    array = numbered(12)

    for source, sink in ((array[:-1], array[1:]), (array, array[::-1]), (array[1:], array[:-1])):
        with pytest.raises(SinkError, match="same array"):
            run(double, source, sink, size_max=3, overlap=0)
    assert np.array_equal(array, numbered(12))


def test_one_sink_twice_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    sink = np.zeros(6)

    with pytest.raises(SinkError, match="two sinks"):
        run(lambda block: (block, block), numbered(6), [sink, sink], size_max=3)
    path = tmp_path / "new.npy"
    with pytest.raises(SinkError, match="two sinks"):
        run(lambda block: (block, block), numbered(6), [path, str(path)], size_max=3)
    assert os.listdir(tmp_path) == []


# --- sizes ---------------------------------------------------------------------------------------


def test_defaults_are_read_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(30, 4)
    assert bp.plan(double, source).grid.counts == (1, 1)

    monkeypatch.setattr(bp, "default_size_max", 10)
    monkeypatch.setattr(bp, "default_size_min", "fixed")
    monkeypatch.setattr(bp, "default_overlap", 4)
    monkeypatch.setattr(bp, "default_executor", "serial")
    monkeypatch.setattr(bp, "default_memory", "3MB")
    plan = bp.plan(double, source)
    assert [cell.read[0] for cell in plan.grid] == [(0, 10), (6, 16), (12, 22), (18, 28), (20, 30)]
    assert plan.executor == "serial"
    assert plan.budget.host_bytes == 3_000_000
    assert len(bp.split_into_blocks(source)) == 5
    assert bp.plan(double, source, overlap=0, size_min=1).grid.counts == (3, 1)

    monkeypatch.setattr(bp, "default_device", "cuda")
    with pytest.raises(DeviceError):
        bp.plan(double, source)
    assert bp.plan(double, source, device="cpu").executor == "serial"


def test_default_progress_is_read_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    monkeypatch.setattr(bp, "default_progress", events.append)

    bp.process(double, numbered(6), size_max=3, executor="serial")
    told = len(events)
    bp.process(double, numbered(6), size_max=3, executor="serial", progress=False)

    assert told == len(events) > 0


def test_halo_is_half_the_overlap(run: Callable[..., Any]) -> None:
    source = np.random.default_rng(2).random((30, 20))

    assert [split.overlap for split in bp.plan(double, source, halo=2, size_max=9).grid.splits] == [
        4
    ]
    each = bp.plan(double, source, halo=[1, 3], axes=[0, 1], size_max=9)
    assert [split.overlap for split in each.grid.splits] == [2, 6]
    more = bp.plan(double, source, halo=1, overlap=5, size_max=9)
    assert [split.overlap for split in more.grid.splits] == [5]
    with pytest.raises(PlanError, match="overlap 3 is less than twice the halo 2"):
        bp.plan(double, source, halo=2, overlap=3, size_max=9)
    assert np.array_equal(run(smallest, source, halo=1, axes="all", size_max=7), smallest(source))


def test_a_filter_declares_its_halo() -> None:
    assert bp.plan(Declared(), numbered(30), size_max=9).grid.splits[0].overlap == 4
    assert bp.plan(Declared(), numbered(30), size_max=9, halo=3).grid.splits[0].overlap == 6


def test_a_halo_for_each_axis_goes_with_axes_by_order() -> None:
    grown = Declared()
    grown.halo = (1, 2, 3)  # type: ignore[assignment]

    by_order = bp.plan(grown, numbered(20, 20, 20), size_max=9).grid
    automatic = bp.plan(grown, numbered(200, 200, 200), memory="1MB").grid

    assert (by_order.axes, by_order.splits[0].overlap) == ((0,), 2)
    assert automatic.axes == (0, 1, 2)
    assert [split.overlap for split in automatic.splits] == [2, 4, 6]


def test_full_is_one_block(run: Callable[..., Any]) -> None:
    source = numbered(40, 40)

    assert run(lambda b: b.shape, source, size_max="full", halo=1, return_result=True) == [(40, 40)]


def test_sizes_are_chosen_where_the_context_is_known() -> None:
    source = np.broadcast_to(np.float32(0), (512, 512, 256))

    for known in ({"overlap": 0}, {"overlap": 4}, {"halo": 2}):
        plan = bp.plan(double, source, processes=2, **known)
        assert len(plan.grid) >= 2
        assert plan.peak_bytes <= plan.budget.host_bytes
    assert len(bp.plan(Declared(), source, processes=2).grid) >= 2
    assert len(bp.plan(double, source, processes=2, size_max=100).grid) == 6


def test_one_block_where_the_context_is_not_known(run: Callable[..., Any]) -> None:
    source = np.random.default_rng(3).random((40, 30))

    assert run(lambda block: block.shape, source, return_result=True) == [(40, 30)]
    assert np.array_equal(run(np.fft.fft2, source), np.fft.fft2(source))
    huge = np.broadcast_to(np.uint8(0), (1 << 20, 1 << 10, 1 << 10))
    with pytest.raises(BudgetError, match="size_max"):
        bp.plan(double, huge)


def test_meaningless_sizes_are_refused_where_they_are_chosen_too() -> None:
    for overlap in (-1, [-2, 0]):
        with pytest.raises(PlanError, match="overlap"):
            bp.plan(double, numbered(8, 8), overlap=overlap)
    for overlap in (1.5, True, "4", [1, 2.5]):
        with pytest.raises((PlanError, TypeError), match="overlap"):
            bp.plan(double, numbered(8, 8), overlap=overlap)
    with pytest.raises(PlanError, match="halo"):
        bp.plan(double, numbered(8, 8), halo=-1)


@pytest.mark.parametrize("processes", ["fork", "threads", "processes", ""])
def test_words_for_processes(processes: str) -> None:
    with pytest.raises(PlanError, match="'serial'"):
        bp.process(double, numbered(6), size_max=3, processes=processes)


def test_numbers_of_processes() -> None:
    assert bp.plan(double, numbered(6), processes="serial").executor == "serial"
    assert bp.plan(double, numbered(60), processes=3, size_max=1).budget.workers == 3
    for processes in (0, -1, 1.5, True):
        with pytest.raises((PlanError, TypeError), match="processes"):
            bp.plan(double, numbered(6), processes=processes)


def test_sizes_are_multiples(run: Callable[..., Any]) -> None:
    shapes = run(
        lambda block: block.shape[0],
        numbered(50),
        size_max=20,
        size_multiple_of=8,
        overlap=3,
        return_result=True,
    )

    assert all(size % 8 == 0 for size in shapes[:-1])


# --- masks ---------------------------------------------------------------------------------------


def forbid_nan(block: Array) -> Array:
    assert not np.isnan(block).any(), "called where the mask is empty"
    return block + 1


@pytest.mark.parametrize("factors", [(1, 1), (2, 4), (3, 3), (4, 1)])
@pytest.mark.parametrize("kind", ["none", "array", "new file", "old file"])
def test_masked_blocks_are_skipped_and_zero(
    run: Callable[..., Any], tmp_path: Path, factors: tuple[int, int], kind: str
) -> None:
    source = numbered(12, 24)
    source[:, 12:] = np.nan
    coarse = [-(-length // factor) for length, factor in zip(source.shape, factors, strict=True)]
    mask = np.zeros(coarse, bool)
    mask[0, 12 // factors[1] - 1] = True
    sink: Any = {"none": None, "array": np.full((12, 24), -1.0)}.get(kind, tmp_path / "s.npy")
    if kind == "old file":
        np.save(sink, np.full((12, 24), -1.0))

    result = run(
        forbid_nan, source, sink, axes=1, size_max=6, overlap=0, optimization=False, mask=mask
    )

    found = np.load(sink) if isinstance(sink, Path) else result
    expected = np.zeros((12, 24))
    expected[:, 6:12] = source[:, 6:12] + 1
    assert np.array_equal(found, expected)


def test_a_voxel_of_a_coarse_mask_may_lie_in_two_blocks(run: Callable[..., Any]) -> None:
    source = numbered(24)
    source[12:] = np.nan

    result = run(forbid_nan, source, size_max=6, overlap=0, mask=np.arange(6) == 1)

    assert np.array_equal(result, np.where(np.arange(24) < 12, source + 1, 0))


def test_masked_blocks_return_none(run: Callable[..., Any]) -> None:
    found = run(
        lambda block: float(block[0]),
        numbered(9),
        size_max=3,
        overlap=0,
        optimization=False,
        mask=np.arange(9) >= 6,
        return_result=True,
    )

    assert found == [None, None, 6.0]


def test_a_mask_without_anything_inside(run: Callable[..., Any], tmp_path: Path) -> None:
    sink = np.ones(9)

    run(forbid_nan, np.full(9, np.nan), sink, size_max=3, overlap=0, mask=np.zeros(9, bool))
    run(
        forbid_nan,
        np.full(9, np.nan),
        tmp_path / "new.npy",
        size_max=3,
        overlap=0,
        mask=np.zeros(3, bool),
    )

    assert not sink.any()
    assert np.array_equal(np.load(tmp_path / "new.npy"), np.zeros(9))


def test_new_arrays_are_zero_where_nothing_is_computed(executor: str) -> None:
    mask = np.zeros(64, bool)
    mask[:8] = True
    for _ in range(5):
        trash = np.full((64, 1000), 7.0)
        del trash
        result = bp.process(
            double,
            np.ones((64, 1000)),
            size_max=8,
            overlap=0,
            mask=mask[:, None].repeat(1000, 1),
            executor=executor,
            processes=2,
        )
        assert not result[8:].any()
        assert (result[:8] == 2).all()


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((12, 24)), TypeError, "float64"),
        (np.ones((5, 24), bool), PlanError, "fraction"),
        (np.ones(12, bool), PlanError, "fraction"),
        (np.ones((12, 24, 1), bool), PlanError, "fraction"),
    ],
)
def test_masks_that_do_not_fit(mask: Array, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bp.process(double, numbered(12, 24), size_max=4, mask=mask)


def test_verbose_counts_blocks_inside_the_mask(capsys: pytest.CaptureFixture[str]) -> None:
    bp.process(
        double,
        numbered(9),
        size_max=3,
        overlap=0,
        optimization=False,
        mask=np.arange(9) >= 6,
        verbose=True,
        executor="serial",
    )

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Processing 1 blocks with function 'double'."
    assert lines[1].startswith("Processing block 2/3<(2,)/(3,)>")
    assert len(lines) == 4


# --- plans ---------------------------------------------------------------------------------------


def test_planning_never_calls_the_function(executor: str, tmp_path: Path) -> None:
    def fail(block: Array) -> Array:
        raise AssertionError("called")

    plan = bp.plan(fail, numbered(30), tmp_path / "new.npy", size_max=15, executor=executor)

    assert (plan.executor, plan.grid.counts, plan.peak_origin) == (executor, (2,), "estimated")
    assert os.listdir(tmp_path) == []


def test_planning_takes_all_arguments_of_process() -> None:
    plan = bp.plan(
        lambda block, factor: block,
        numbered(30),
        None,
        [0],
        10,
        optimization=False,
        verbose=True,
        progress=True,
        workspace=Workspace(),
        return_blocks=True,
        factor=3,
    )

    assert plan.grid.counts == (3,)


def test_a_trial_measures(tmp_path: Path) -> None:
    source = np.zeros((200, 1000, 100), np.uint8)

    def hungry(block: Array) -> Array:
        log_call(tmp_path)
        wide = np.ones(block.shape, float)
        time.sleep(0.1)
        return (wide * 2).astype(np.uint8)

    plan = bp.plan(hungry, source, size_max=50, overlap=0, executor="processes", trial=True)

    assert calls(tmp_path) == 1
    assert plan.peak_origin == "measured"
    assert 8 <= plan.need.per_voxel <= 40


# --- processes within processes, and systems without them ----------------------------------------


def test_processing_within_a_worker(run: Callable[..., Any]) -> None:
    def nested(block: Array) -> Array:
        return bp.process(np.negative, block, size_max=2, overlap=0)

    def nested_threads(block: Array) -> Array:
        return bp.process(np.negative, block, size_max=2, overlap=0, executor="threads")

    for function in (nested, nested_threads):
        assert np.array_equal(run(function, numbered(12), size_max=6), -numbered(12))


def test_processes_within_processes() -> None:
    def nested(block: Array) -> Array:
        return bp.process(
            np.negative, block, size_max=2, overlap=0, executor="processes", processes=1
        )

    result = bp.process(nested, numbered(4), size_max=4, executor="processes", processes=1)

    assert np.array_equal(result, -numbered(4))


@pytest.mark.parametrize(("system", "name"), [("darwin", "macOS"), ("win32", "Windows")])
def test_processes_are_refused_by_name_where_there_are_none(
    system: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)

    with pytest.raises(DeviceError, match=rf"not available on {name}.*threads"):
        bp.process(double, numbered(12), size_max=6, executor="processes")
    assert bp.plan(double, numbered(12), size_max=6, processes=2).executor == "threads"
    result = bp.process(double, numbered(12), size_max=6, processes=2)
    assert np.array_equal(result, 2 * numbered(12))


def test_calls_from_several_threads(run: Callable[..., Any]) -> None:
    results: dict[int, Array] = {}

    def work(number: int) -> None:
        results[number] = run(
            functools.partial(np.multiply, number), numbered(20), size_max=4, overlap=0
        )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(np.array_equal(results[n], n * numbered(20)) for n in range(4))


def test_a_function_may_keep_its_arguments(run: Callable[..., Any]) -> None:
    source = numbered(40, 6)
    kept: list[np.ndarray] = []

    def last_but_one(block: np.ndarray) -> int:
        kept.append(block)
        return int(kept[max(0, len(kept) - 3)][0, 0])

    values = run(last_but_one, source, size_max=4, return_result=True, processes=1)

    assert values == [int(source[max(0, 4 * (n - 2)), 0]) for n in range(10)]


def test_blocks_in_one_piece_are_written_whole(run: Callable[..., Any], tmp_path: Path) -> None:
    for order in ("C", "F"):
        source = np.asarray(np.arange(64 * 64 * 64.0).reshape(64, 64, 64), order=order)
        path = tmp_path / f"{order}.npy"
        np.save(path, np.zeros_like(source))

        run(lambda block: block + 1, source, path, size_max=7, overlap=2)

        assert np.array_equal(np.load(path), source + 1)
