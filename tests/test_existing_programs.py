"""Small programs written for the documented module run when only their two imports are changed."""

import functools
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi

import gpublocks.block_processing as bp
import gpublocks.io as io

# --- a workspace whose run a window watches and stops -----------------------------------------


class Workspace:
    """The object that such programs hand around; the run is one of many things it holds."""

    def __init__(self) -> None:
        self.executor = None
        self.parameters = {"sample": "brain"}

    def stop_process(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)


class Window:
    """Polls the workspace from its own thread and stops the run when a button is pressed."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.saw_run = False
        self.pressed = False
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def loop(self) -> None:
        while not self.closed.is_set():
            if self.workspace.executor is not None:
                self.saw_run = True
                if self.pressed:
                    self.workspace.stop_process()
                    return
            time.sleep(0.002)

    def close(self) -> None:
        self.closed.set()
        self.thread.join()


@contextmanager
def window(workspace: Workspace) -> Iterator[Window]:
    opened = Window(workspace)
    try:
        yield opened
    finally:
        opened.close()


def slow(source: Any, sink: Any) -> None:
    time.sleep(0.01)
    sink.valid[:] = source.valid[:] + 1


def test_a_window_watches_a_run(executor: str) -> None:
    workspace, sink = Workspace(), np.zeros(60)

    with window(workspace) as seen:
        bp.process(
            slow,
            np.arange(60.0),
            sink,
            function_type="block",
            size_max=3,
            overlap=1,
            processes=2,
            workspace=workspace,
            executor=executor,
        )

    assert seen.saw_run
    assert workspace.executor is None
    assert np.array_equal(sink, np.arange(60.0) + 1)


def test_a_window_stops_a_run(executor: str) -> None:
    workspace = Workspace()

    with window(workspace) as seen:
        seen.pressed = True
        try:
            bp.process(
                slow,
                np.arange(2000.0),
                np.zeros(2000),
                function_type="block",
                size_max=1,
                overlap=0,
                processes=2,
                workspace=workspace,
                executor=executor,
            )
        except BaseException as error:  # such programs know one name for it
            ended = type(error).__mro__
        else:
            ended = ()

    assert "CancelledError" in {kind.__name__ for kind in ended}
    assert workspace.executor is None


# --- a window that reads the printed lines --------------------------------------------------------


class ProgressWatcher(StringIO):
    """Takes the place of standard output and moves a progress bar by what is printed."""

    DONE = re.compile(
        r".*?Processing block (\d+)/(\d+)<\(.*?\)/\(.*?\)>.*?\selapsed time:\s\d+:\d+:\d+\.\d+"
    )
    BEGIN = re.compile(r"^Processing (\d+) blocks with function '(\w+)'\.$")
    END = re.compile(r"^Processed (\d+) blocks with function '(\w+)': elapsed time: [\d:.]+$")

    def __init__(self) -> None:
        super().__init__()
        self.total = self.count = 0
        self.blocks: set[int] = set()
        self.ended = False
        self.partial = ""

    def write(self, text: str) -> int:
        *lines, self.partial = (self.partial + text).split("\n")
        for line in lines:
            self.parse(line)
        return len(text)

    def parse(self, line: str) -> None:
        if match := self.BEGIN.match(line):
            self.total = int(match[1])
        elif match := self.DONE.match(line):
            self.count += 1
            self.blocks.add(int(match[1]))
            assert int(match[2]) == self.total
        elif match := self.END.match(line):
            self.ended = int(match[1]) == self.total


def test_a_window_reads_the_printed_lines(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = ProgressWatcher()
    monkeypatch.setattr(sys, "stdout", watcher)

    bp.process(
        functools.partial(ndi.gaussian_filter, sigma=1),
        np.random.default_rng(0).random((20, 20, 40)),
        np.zeros((20, 20, 40)),
        axes=[2],
        size_max=14,
        size_min=9,
        overlap=8,
        processes=2,
        verbose=True,
        executor=executor,
    )

    monkeypatch.undo()
    assert watcher.total > 2
    assert watcher.count == watcher.total
    assert watcher.blocks == set(range(watcher.total))
    assert watcher.ended


# --- detection: results are placed by what blocks tell of themselves ------------------------------


def detect_cells(source: Any, threshold: float = 0.9, shape: int = 3) -> tuple[Any, ...]:
    """Return places and brightness of the peaks in the valid part of a block."""
    base_slicing = source.valid.base_slicing
    valid_lower, valid_upper = source.valid.lower, source.valid.upper
    lower = source.lower

    image = np.array(source)
    peaks = (ndi.maximum_filter(image, shape) == image) & (image > threshold)
    centers = np.array(np.where(peaks)).T
    inside = np.ones(len(centers), dtype=bool)
    for lo, hi, places in zip(valid_lower, valid_upper, centers.T, strict=True):
        inside = np.logical_and(inside, np.logical_and(lo <= places, places < hi))
    centers = centers[inside]

    assert len(base_slicing) == source.ndim
    return np.hstack([centers + lower]), image[tuple(centers.T)]


@pytest.mark.parametrize("order", ["C", "F"])
def test_detection(executor: str, order: Any, tmp_path: Path) -> None:
    volume = np.asarray(np.random.default_rng(1).random((30, 20, 40)), order=order)
    np.save(tmp_path / "volume.npy", volume)
    whole = (ndi.maximum_filter(volume, 3) == volume) & (volume > 0.9)

    for source in (volume, str(tmp_path / "volume.npy"), io.as_source(volume)):
        results = bp.process(
            detect_cells,
            source,
            sink=None,
            axes=[0, 2],
            size_max=[14, 12],
            size_min=[5, 5],
            overlap=4,
            function_type="block",
            as_memory=True,
            return_result=True,
            processes=2,
            threshold=0.9,
            executor=executor,
        )
        centers = np.vstack([centers for centers, _ in results])
        light = np.hstack([light for _, light in results])

        assert sorted(centers.tolist()) == np.argwhere(whole).tolist()
        assert np.array_equal(volume[tuple(centers.T)], light)


def count_in_block(source: Any, sink: Any) -> dict[str, Any]:
    """Write where a block lies into its valid part, and return what it says of itself."""
    sink[sink.valid.slicing] = source.iteration
    return {
        "iteration": source.iteration,
        "n_iterations": source.n_iterations,
        "index": source.index,
        "blocks_shape": source.blocks_shape,
        "lower": source.lower,
        "upper": source.upper,
        "base_lower": source.base_lower,
        "base_upper": source.base_upper,
        "position": source.position,
        "valid": source.valid.base_slicing,
        "shape": source.shape,
        "base_shape": source.base_shape,
        "info": source.info(),
    }


def test_blocks_tell_where_they_lie(executor: str) -> None:
    source, sink = np.zeros((12, 20), np.uint8), np.full((12, 20), 255, np.uint8)

    told = bp.process(
        count_in_block,
        source,
        sink,
        axes="all",
        size_max=[6, 9],
        overlap=2,
        optimization=False,
        function_type="block",
        return_result=True,
        processes=2,
        executor=executor,
    )

    expected = np.full((12, 20), 255, np.uint8)
    blocks = bp.split_into_blocks(
        source, axes="all", size_max=[6, 9], overlap=2, optimization=False, processes=2
    )
    assert len(told) == len(blocks) == told[0]["n_iterations"] == 9
    for block, found in zip(blocks, told, strict=True):
        for name, value in found.items():
            if name not in ("valid", "info"):
                assert value == getattr(block, name), name
        assert found["valid"] == block.valid.base_slicing
        assert found["info"] == block.info()
        expected[found["valid"]] = found["iteration"]
        assert all(type(n) is int for n in found["lower"] + found["index"] + found["shape"])
    assert np.array_equal(sink, expected)
    assert set(np.unique(sink).tolist()) == set(range(9))


# --- sources of other libraries -------------------------------------------------------------------


class ForeignSource:
    """What other programs call a source: five attributes and nothing else."""

    def __init__(self, array: Any, location: str | None, inside: Any) -> None:
        self._read = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.location = location
        self.array = inside

    def __getitem__(self, slicing: Any) -> Any:
        return self._read[slicing]


class ForeignSink(ForeignSource):
    def __setitem__(self, slicing: Any, value: Any) -> None:
        self._read[slicing] = value


def foreign(kind: str, array: Any, folder: Path, name: str, cls: Any = ForeignSource) -> Any:
    if kind == "ndarray":
        return cls(array, None, array)
    if kind == "memmap":
        np.save(folder / name, array)
        mapped = np.load(folder / name, mmap_mode="r+")
        return cls(mapped, str(folder / name), mapped)
    return cls(array, None, None)


@pytest.mark.parametrize("kind", ["ndarray", "memmap", "no array"])
@pytest.mark.parametrize("function_type", ["array", "source", "block"])
def test_foreign_sources_and_sinks(
    executor: str, kind: str, function_type: str, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(2).random((10, 12, 14))
    source = foreign(kind, voxels, tmp_path, "source.npy")
    sink = foreign(kind, np.zeros((10, 12, 14)), tmp_path, "sink.npy", ForeignSink)

    def smooth(source: Any, sink: Any = None) -> Any:
        result = ndi.median_filter(np.asarray(source[:]), 3)
        if sink is None:
            return result
        sink[source.valid.slicing] = result[source.valid.slicing]
        return None

    returned = bp.process(
        smooth,
        source,
        sink,
        axes=[0, 2],
        size_max=6,
        overlap=2,
        function_type=function_type,
        processes=2,
        executor=executor,
    )

    assert returned is sink
    assert np.array_equal(sink[:], ndi.median_filter(voxels, 3))
    assert np.array_equal(source[:], voxels)


def test_foreign_sources_are_split() -> None:
    source = foreign("no array", np.zeros((4, 5, 20)), Path(), "")

    blocks = bp.split_into_blocks(source, axes=[2], size_max=10, overlap=2, processes=1)

    assert blocks[1].valid.base_shape == (4, 5, 20)
    assert blocks[1][:].shape == blocks[1].shape
    assert io.as_source(source).shape == (4, 5, 20)


# --- one block at a time --------------------------------------------------------------------------


@pytest.mark.parametrize("as_memory", [False, True])
@pytest.mark.parametrize("stored", ["array", "file"])
def test_blocks_are_processed_one_by_one(as_memory: bool, stored: str, tmp_path: Path) -> None:
    volume, target = np.random.default_rng(3).random((8, 9, 20)), np.zeros((8, 9, 20))
    if stored == "file":
        np.save(tmp_path / "a.npy", target)
        target = np.load(tmp_path / "a.npy", mmap_mode="r+")
    split = functools.partial(
        bp.split_into_blocks, processes=1, axes=[2], size_max=8, overlap=2, size_min=4
    )
    sources, sinks = split(io.as_source(volume)), split(io.as_source(target))

    def in_sink(source: Any, sink: Any, size: int) -> str:
        sink.valid[:] = ndi.maximum_filter(source[:], size)[source.valid.slicing]
        return "in sink"

    def returned(source: Any, size: int) -> Any:
        return ndi.maximum_filter(source[:], size)

    for source, sink in zip(sources, sinks, strict=True):
        if source.iteration % 2:
            answer = bp.process_block_block(
                source, sink, function=in_sink, as_memory=as_memory, return_result=True, size=3
            )
            assert answer == "in sink"
        else:
            answer = bp.process_block_source(
                source,
                sink,
                function=returned,
                as_memory=as_memory,
                as_array=source.iteration > 1,
                return_result=True,
                size=3,
            )
            assert answer.shape == source.shape

    assert np.array_equal(target, ndi.maximum_filter(volume, 3))


def test_one_block_prints_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = bp.split_into_blocks(np.zeros(20), size_max=10, overlap=0, processes=1)

    bp.process_block_source(blocks[1], None, function=np.sqrt, as_array=True, verbose=True)

    begun, done = capsys.readouterr().out.splitlines()
    assert begun == "Processing block 1/2<(1,)/(2,)> (10,)@(20,)[(10:20)]"
    assert done.startswith(begun + ": elapsed time: 0:00:0")


def test_several_blocks_at_once() -> None:
    a, b, c, d = (np.arange(20.0) + n for n in range(4))
    split = functools.partial(bp.split_into_blocks, size_max=10, overlap=4, processes=1)

    def both(x: Any, y: Any) -> tuple[Any, Any]:
        return x + y, x * y

    for n in range(len(split(a))):
        bp.process_block_source(
            [split(a)[n], split(b)[n]], [split(c)[n], split(d)[n]], both, as_array=True
        )

    assert np.array_equal(c, a + b)
    assert np.array_equal(d, a * b)


# --- odds and ends that such programs reach for ---------------------------------------------------


def test_slicings_are_composed() -> None:
    first = (slice(2, 10), slice(None), slice(5, None))
    second = (slice(1, -1), slice(0, 3), slice(None, 4))

    composed = bp.blk.slc.sliced_slicing(second, first, (12, 8, 20))

    array = np.arange(12 * 8 * 20).reshape(12, 8, 20)
    assert np.array_equal(array[composed], array[first][second])


def test_the_built_in_all_means_all_axes() -> None:
    with pytest.warns(DeprecationWarning, match="axes='all'"):
        blocks = bp.split_into_blocks(np.zeros((4, 6)), axes=all, size_max=2, processes=1)

    assert blocks[0].blocks_shape == (2, 3)


def test_keywords_that_splitting_does_not_know_are_ignored() -> None:
    blocks = bp.split_into_blocks(
        np.zeros(20), size_max=10, overlap=0, processes=1, return_result=True, anything="else"
    )

    assert len(blocks) == 2


def test_partials_with_parameters(executor: str) -> None:
    def threshold(source: Any, sink: Any, level: float, high: Any) -> None:
        sink[:] = np.where(source[:] > level, high["value"], 0)

    source, sink = np.arange(30.0), np.zeros(30, np.uint8)

    bp.process(
        functools.partial(threshold, level=10, high={"value": 7}),
        io.as_source(source),
        io.as_source(sink),
        function_type="block",
        size_max=8,
        overlap=2,
        processes=2,
        executor=executor,
    )

    assert np.array_equal(sink, np.where(source > 10, 7, 0))


def test_images_are_corrected_plane_by_plane(executor: str, tmp_path: Path) -> None:
    """Flat-field correction in files, with a reference image as a parameter."""
    rng = np.random.default_rng(4)
    volume = np.asfortranarray(rng.integers(100, 4000, (30, 20, 12), np.uint16))
    flat = rng.random((30, 20)) + 0.5
    np.save(tmp_path / "raw.npy", volume)

    def correct(source: Any, flat_field: Any = None, background: float = 0) -> Any:
        corrected = (source - background) / flat_field[:, :, None]
        return np.clip(corrected, 0, 65535).astype(source.dtype)

    sink = str(tmp_path / "corrected.npy")
    bp.process(
        correct,
        str(tmp_path / "raw.npy"),
        sink,
        size_max=5,
        size_min=1,
        overlap=0,
        axes=[2],
        optimization=True,
        optimization_fix="all",
        processes=2,
        flat_field=flat,
        background=90.0,
        verbose=True,
        executor=executor,
    )

    corrected = np.load(sink)
    assert corrected.dtype == np.uint16
    assert corrected.flags.f_contiguous
    assert np.array_equal(corrected, correct(volume, flat, 90.0))
