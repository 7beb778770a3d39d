"""What is asked for has to fit together: shapes, sinks, executors, limits and blocks."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpublocks.block_processing as bp
from gpublocks import io
from gpublocks.errors import ArgumentTypeError, BudgetError, PlanError, SinkError


def never(*arrays: Any) -> Any:
    raise AssertionError("the function was called")


def test_shapes_without_a_common_axis_are_refused_where_sizes_are_chosen() -> None:
    source = np.zeros((20, 30))

    with pytest.raises(SinkError, match=r"\(10, 20\).*\(20, 30\)"):
        bp.process(never, source, np.zeros((10, 20)), overlap=2, processes="serial")
    with pytest.raises(PlanError, match=r"\(20, 30\).*\(9, 9\)"):
        bp.process(lambda a, b: never(), [source, np.zeros((9, 9))], overlap=2, processes="serial")


def test_results_may_differ_along_axes_that_stay_whole() -> None:
    source = np.random.default_rng(0).random((200_000, 3))

    means = bp.process(lambda b: b.mean(1, keepdims=True), source, overlap=0, processes="serial")

    assert np.array_equal(means, source.mean(1, keepdims=True))


def test_a_trial_does_not_let_a_function_write() -> None:
    with pytest.raises(PlanError, match="trial"):
        bp.plan(never, np.zeros(9), np.zeros(9), function_type="block", size_max=3, trial=True)


class Lonely(io.npy.Source):
    """A sink that counts who writes into it at once."""

    __slots__ = ("most", "now")
    single_writer = True

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self.now = self.most = 0

    def write(self, region: Any, array: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        threading.Event().wait(0.002)
        super().write(region, array)
        self.now -= 1


@pytest.mark.parametrize("kind", ["array", "block"])
def test_a_single_writer_is_alone_under_threads(kind: str) -> None:
    sink = Lonely(np.zeros(40))

    def function(source: Any, *sinks: Any) -> Any:
        for target in sinks:
            target[:] = source[:] + 1
        return source[:] + 1

    bp.process(
        function,
        np.zeros(40),
        sink,
        size_max=2,
        function_type=kind,
        executor="threads",
        processes=4,
    )

    assert sink.most == 1
    assert np.array_equal(sink.array, np.ones(40))


def test_an_executor_object_that_takes_too_much_is_refused() -> None:
    from gpublocks.devices.host import HostDevice
    from gpublocks.executors import StreamExecutor

    many = StreamExecutor([HostDevice(8)])
    source = np.zeros((64, 64, 64))

    with pytest.raises(BudgetError, match="8 blocks at once"):
        bp.process(never, source, size_max=16, memory="3MB", executor=many)


def test_a_plan_says_who_is_responsible_for_writes() -> None:
    source, sink = np.zeros(40), np.zeros(40)

    own = str(bp.plan(never, source, sink, size_max=9, overlap=2, function_type="block"))
    ours = str(bp.plan(never, source, sink, size_max=9, overlap=2, function_type="source"))

    assert "the function writes itself" in own
    assert "no voxel has two writers" in ours


def test_sizes_may_be_arrays() -> None:
    source = np.zeros((40, 40))

    given = bp.plan(never, source, overlap=np.array([4, 2]), halo=np.array([2, 1]), memory="60kB")

    assert [split.overlap for split in given.grid.splits] == [4, 2]


def test_an_explicit_number_of_processes_wins_over_a_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bp, "default_executor", "threads")

    assert bp.plan(never, np.zeros(9), size_max=3).executor == "threads"
    assert bp.plan(never, np.zeros(9), size_max=3, processes="serial").executor == "serial"


def test_new_and_old_sinks_at_one_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    np.save(path, np.zeros(9))
    again = io.memmap.Sink(path, overwrite=True)

    with pytest.raises(SinkError, match="same file"):
        bp.process(never, np.zeros(9), [str(path), again], size_max=3)
    assert np.array_equal(np.load(path), np.zeros(9))


@pytest.mark.parametrize(
    "given",
    [{"workspace": object()}, {"progress": 3}, {"memory": {"device": "banana"}}],
    ids=lambda given: next(iter(given)),
)
def test_other_arguments_are_checked_before_any_work(given: dict[str, Any]) -> None:
    with pytest.raises((ArgumentTypeError, PlanError)):
        bp.process(never, np.zeros(9), size_max=3, processes="serial", **given)


def test_a_type_for_sinks_that_exist_is_refused() -> None:
    with pytest.raises(PlanError, match="new ones"):
        bp.process(never, np.zeros(9), np.zeros(9), size_max=3, dtype="f4")


def test_blocks_may_be_read_by_masks_and_new_axes() -> None:
    source = np.arange(12.0).reshape(3, 4)
    block = bp.split_into_blocks(source, size_max=2, axes=[0], processes="serial")[0]

    part = source[block.slicing]

    assert np.array_equal(block[None], part[None])
    assert np.array_equal(block[part > 2], part[part > 2])


def test_single_blocks_have_to_be_blocks_of_one_place() -> None:
    source = bp.split_into_blocks(np.zeros(12), size_max=4, processes="serial")
    sinks = bp.split_into_blocks(np.zeros(12), size_max=4, processes="serial")

    with pytest.raises(PlanError, match="not at the place"):
        bp.process_block_source(source[0], sinks[2], never)
    with pytest.raises(PlanError, match="copy in memory"):
        bp.process_block_source(source[0].as_memory(), sinks[0], never)
    with pytest.raises(ArgumentTypeError, match="no block"):
        bp.process_block_source(source[0].valid, sinks[0], never)
    with pytest.raises(ArgumentTypeError, match="callable"):
        bp.process_block_source(source[0], sinks[0], 3)  # type: ignore[arg-type]


def test_single_blocks_keep_their_neighbours() -> None:
    blocks = bp.split_into_blocks(np.zeros(12), size_max=4, neighbours=True, processes="serial")
    found = bp.process_block_source(
        blocks[1], None, lambda block: sorted(block.neighbours), return_result=True
    )

    assert found == [(0,), (2,)]


def test_parts_of_one_file_are_source_and_sink(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(20.0))
    whole = np.load(tmp_path / "a.npy", mmap_mode="r+")

    bp.process(np.negative, whole[:10], whole[10:], size_max=3, overlap=2, processes="serial")

    assert np.array_equal(np.load(tmp_path / "a.npy")[10:], -np.arange(10.0))
