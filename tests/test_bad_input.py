"""The table of bad inputs, row by row: the error, what it says, and that nothing was touched."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpublocks as gb
from gpublocks.errors import (
    ArgumentTypeError,
    BlockError,
    BudgetError,
    DeviceError,
    GpublocksError,
    PlanError,
    SinkError,
    SourceError,
)

SHAPE = (6, 8, 10)


class Recorder:
    """A function that leaves a trace where it is called."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __call__(self, array):
        Path(self.folder, "called").touch()
        return array


class Duck:
    """An array that is stored in pieces and cannot be read."""

    def __init__(self, shape, chunks=None, dtype="f4"):
        self.shape, self.dtype = shape, np.dtype(dtype)
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, slicing):
        raise AssertionError("nothing is read")

    def __setitem__(self, slicing, value):
        raise AssertionError("nothing is written")


class World:
    """A folder with a source and a sink, arrays in memory, and a function; all watched."""

    def __init__(self, folder):
        self.folder = folder
        self.source = folder / "source.npy"
        self.sink = folder / "sink.npy"
        self.new = folder / "new.npy"
        self.array = np.arange(np.prod(SHAPE), dtype="f4").reshape(SHAPE)
        self.result = np.full(SHAPE, 7, "f4")
        np.save(self.source, self.array)
        np.save(self.sink, self.result)
        self.function = Recorder(folder)

    def look(self):
        """Return all that could change."""
        files = {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
            for path in sorted(self.folder.iterdir())
        }
        return files, self.array.tobytes(), self.result.tobytes()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        before = self.look()
        yield
        assert self.look() == before


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class Row(NamedTuple):
    """One bad input: what is passed to `process`, over good arguments, and what is raised."""

    number: int
    arguments: Callable[[World], dict[str, Any]] | dict[str, Any]
    error: type[Exception]
    builtin: type[Exception]
    parts: tuple[str, ...]

    def given(self, world):
        arguments = self.arguments(world) if callable(self.arguments) else self.arguments
        return {
            "function": world.function,
            "source": world.source,
            "sink": world.new,
            **arguments,
        }


def no_sizes(value, *parts, kind="plan"):
    """Return rows for a meaningless value of each parameter that is a size."""
    error, builtin = (PlanError, ValueError) if kind == "plan" else (ArgumentTypeError, TypeError)
    numbers = {"plan": 4, "kind": 5}
    return [
        Row(numbers[kind], {"size_max": 5, name: value}, error, builtin, (name, *parts))
        for name in ("size_max", "size_min", "overlap", "size_multiple_of", "halo", "processes")
    ]


SIZES = [
    Row(1, {"size_max": [4, 4], "axes": [0]}, PlanError, ValueError, ("2 values", "1 axes")),
    Row(1, {"size_max": [4, 4, 4, 4], "axes": "all"}, PlanError, ValueError, ("4", "3 axes")),
    Row(
        2,
        {"overlap": [1, 1], "axes": [0]},
        PlanError,
        ValueError,
        ("overlap", "has 2 values", "1 axes"),
    ),
    Row(
        2,
        {"overlap": [1, 1], "size_max": 4},
        PlanError,
        ValueError,
        ("overlap", "has 2 values", "1 axes"),
    ),
    Row(3, {"size_max": 0}, PlanError, ValueError, ("size_max", "axis 0", "0", "at least 1")),
    Row(3, {"size_max": [4, 0], "axes": [0, 2]}, PlanError, ValueError, ("size_max", "axis 2")),
    *no_sizes(-5, "-5"),
    *no_sizes(2.5, "2.5 (float)", kind="kind"),
    *no_sizes(2.0, "2.0 (float)", kind="kind"),
    *no_sizes(float("nan"), "nan", kind="kind"),
    *no_sizes(float("inf"), "inf", kind="kind"),
    *no_sizes(True, "True (bool)", kind="kind"),
    *no_sizes(np.True_, "True", kind="kind"),
    Row(8, {"size_max": "64"}, ArgumentTypeError, TypeError, ("size_max", "'64' (str)")),
    Row(8, {"size_max": 4, "overlap": "2"}, ArgumentTypeError, TypeError, ("overlap", "'2' (str)")),
    Row(8, {"size_max": 4, "size_min": "2"}, PlanError, ValueError, ("size_min", "'2'", "fixed")),
    Row(11, {"overlap": -1, "size_max": 4}, PlanError, ValueError, ("overlap", "-1", "0 for none")),
    Row(11, {"overlap": -1}, PlanError, ValueError, ("overlap", "-1", "use 0 for none")),
    Row(12, {"overlap": 5, "size_max": 5}, PlanError, ValueError, ("overlap 5", "size_max 5")),
    Row(12, {"overlap": 3, "size_max": 5, "size_min": 3}, PlanError, ValueError, ("overlap 3",)),
    Row(17, {"axes": 5}, PlanError, ValueError, ("axis 5", "0..2")),
    Row(17, {"axes": [0, -4]}, PlanError, ValueError, ("axis", "-4")),
    Row(18, {"axes": [0, -3]}, PlanError, ValueError, ("axis 0", "twice")),
    Row(19, {"axes": "q"}, PlanError, ValueError, ("'q'", "'all'")),
    Row(19, {"axes": ["q"]}, ArgumentTypeError, TypeError, ("'q'",)),
    Row(
        25,
        {"source": Duck((10**5, 10**5)), "axes": "all", "size_max": 1},
        PlanError,
        ValueError,
        ("10000000000 blocks", "[1, 1]", "larger size_max"),
    ),
]


def others():
    return [np.zeros((6, 9, 10)), np.zeros(SHAPE)]


def pair(a, b):
    raise AssertionError("not called")


async def asynchronous(array):
    return array


def generator(array):
    yield array


def broadcast():
    return np.broadcast_to(np.zeros(10), SHAPE)


def frozen():
    array = np.zeros(SHAPE)
    array.flags.writeable = False
    return array


def truncated(world):
    path = world.folder / "short.npy"
    path.write_bytes(world.source.read_bytes()[:-100])
    return {"source": path}


STATIC = [
    *SIZES,
    Row(22, {"source": np.float32(3)}, PlanError, ValueError, ("scalar", "0 axes")),
    Row(22, {"source": np.array(3.0)}, PlanError, ValueError, ("scalar", "0 axes")),
    Row(23, {"source": np.zeros((0, 5)), "size_max": 0}, PlanError, ValueError, ("size_max",)),
    Row(23, {"source": np.zeros((0, 5)), "axes": 2}, PlanError, ValueError, ("axis 2",)),
    Row(24, {"source": Duck((2**40, 2**40)), "size_max": 2**20}, PlanError, ValueError, (
        "1099511627776", "1208925819614629174706176 voxels")),
    Row(26, {"source": np.array([{}])}, ArgumentTypeError, TypeError, ("dtype object",)),
    Row(26, {"sink": np.empty(SHAPE, object)}, ArgumentTypeError, TypeError, ("dtype object",)),
    Row(26, {"dtype": object}, ArgumentTypeError, TypeError, ("dtype object",)),
    Row(30, {"dtype": "quad"}, ArgumentTypeError, TypeError, ("dtype", "'quad'")),
    Row(30, {"casting": "quick"}, PlanError, ValueError, ("'quick'", "'same_kind'")),
    Row(33, {"function": "sqrt"}, ArgumentTypeError, TypeError, ("function is a str", "callable")),
    Row(33, {"function": None}, ArgumentTypeError, TypeError, ("function is a NoneType",)),
    Row(34, {"function": pair}, PlanError, ValueError, ("'pair'", "1 arrays", "'b'")),
    Row(34, lambda _: {"source": others()}, PlanError, ValueError, ("2 arrays", "too many")),
    Row(36, {"function": asynchronous}, ArgumentTypeError, TypeError, ("'asynchronous'", "async")),
    Row(36, {"function": generator}, ArgumentTypeError, TypeError, ("'generator'", "plain")),
    Row(46, lambda _: {"function": pair, "source": others(), "axes": 1}, PlanError, ValueError, (
        "(6, 9, 10)", "(6, 8, 10)", "axis 1")),
    Row(47, {"sink": np.zeros((5, 8, 10)), "size_max": 3}, SinkError, ValueError, (
        "(5, 8, 10)", "(6, 8, 10)", "axis 0")),
    Row(47, {"sink": np.zeros(6), "axes": 1}, SinkError, OSError, ("(6,)", "axis 1")),
    Row(48, {"sink": np.zeros((7, 8, 10)), "size_max": 3}, SinkError, ValueError, (
        "(7, 8, 10)", "axis 0")),
    Row(50, lambda _: {"sink": frozen()}, SinkError, OSError, ("read-only",)),
    Row(50, {"sink": [1, 2]}, ArgumentTypeError, TypeError, ("int",)),
    Row(50, {"sink": 3}, ArgumentTypeError, TypeError, ("int", "array or a path")),
    Row(51, lambda w: {"sink": w.folder / "no" / "new.npy"}, SinkError, OSError, ("no",)),
    Row(53, lambda w: {"source": w.result, "sink": w.result, "overlap": 2}, SinkError, ValueError, (
        "in place", "overlap 2", "another sink")),
    Row(53, lambda w: {"source": w.result, "sink": w.result, "size_max": 4, "overlap": 2},
        SinkError, ValueError, ("in place", "overlap 2")),
    Row(54, lambda w: {"source": np.load(w.sink, mmap_mode="r"), "sink": w.sink, "size_max": 4,
        "overlap": 1}, SinkError, ValueError, ("in place", "sink.npy")),
    Row(57, lambda _: {"sink": broadcast()}, SinkError, OSError, ("stride 0", "copy")),
    Row(58, {"sink": Duck(SHAPE, (4, 8, 10)), "size_max": 3}, PlanError, ValueError, (
        "axis 0", "unit of 4 voxels", "size_max 3", "use a size_max of 4")),
    Row(58, {"sink": Duck(SHAPE, (4, 8, 10)), "size_max": 2}, PlanError, ValueError, (
        "axis 0", "4 voxels at a time", "use a size_max of 4")),
    Row(60, lambda w: {"sink": [w.result, w.result]}, SinkError, ValueError, (
        "two sinks", "same array")),
    Row(60, lambda w: {"sink": [w.new, w.new]}, SinkError, ValueError, ("two sinks", "new.npy")),
    Row(61, truncated, SourceError, ValueError, ("short.npy", "truncated")),
    Row(65, {"source": "missing.npy"}, SourceError, OSError, ("no such file", "missing.npy")),
    Row(65, lambda w: {"source": w.folder}, SourceError, OSError, ("directory",)),
    Row(82, lambda w: {"sink": str(w.new) + "\0"}, SinkError, ValueError, ()),
    Row(89, {"processes": 0}, PlanError, ValueError, ("processes is 0", "at least 1")),
    Row(89, {"processes": 10**6}, PlanError, ValueError, ("processes is 1000000", "at most")),
    Row(89, {"processes": "many"}, PlanError, ValueError, ("'many'", "'serial'")),
    Row(89, {"executor": "gpus"}, PlanError, ValueError, ("'gpus'", "'threads'")),
    Row(89, {"executor": 4}, ArgumentTypeError, TypeError, ("int", "'serial'")),
    Row(90, {"memory": "1kB"}, BudgetError, MemoryError, ("(6, 8, 10)", "memory=1kB", "1 kB")),
    Row(90, {"memory": "2kB", "overlap": 5}, BudgetError, ValueError, ("memory=2kB", "smaller")),
    Row(90, {"memory": "much"}, PlanError, ValueError, ("'much'", "8GB")),
    Row(90, {"memory": 0}, PlanError, ValueError, ("0", "at least one byte")),
    Row(90, {"memory": True}, ArgumentTypeError, TypeError, ("True",)),
    Row(90, {"memory": {"disk": 3}}, PlanError, ValueError, ("'disk'", "'host'")),
    Row(91, {"device": "cuda:3"}, DeviceError, RuntimeError, ("'cuda:3'", "device='cpu'")),
    Row(91, {"device": "gpu"}, DeviceError, RuntimeError, ("'gpu'", "'auto', 'cpu', 'cuda'")),
    Row(91, {"device": ["cuda:0", "cpu"]}, DeviceError, RuntimeError, ("'cpu'", "a list of such")),
    Row(91, {"device": 3}, ArgumentTypeError, TypeError, ("device is a int", "'cuda:0'")),
    Row(91, {"device": "cuda", "executor": "threads"}, PlanError, ValueError, ("contradict",)),
    Row(91, {"device": "cuda", "function_type": "source"}, PlanError, ValueError, (
        "'source'", "function_type='array'")),
    Row(27, {"device": "cuda", "dtype": "M8[s]"}, DeviceError, RuntimeError, (
        "the new sink", "datetime64[s]", "device='cpu'")),
    Row(90, {"memory": {"device": "much"}}, PlanError, ValueError, ("'much'", "8GB")),
    Row(96, {"overlp": 3}, ArgumentTypeError, TypeError, ("'overlp'", "'overlap'")),
    Row(96, {"halo": 2, "overlap": 3}, PlanError, ValueError, ("overlap 3", "halo 2", "4")),
    Row(96, {"function_type": "arrays"}, PlanError, ValueError, ("'arrays'", "'block'")),
    Row(96, {"optimization": "fast", "size_max": 3}, PlanError, ValueError, ("'fast'",)),
    Row(96, {"optimization_fix": "up", "size_max": 3}, PlanError, ValueError, ("'up'",)),
    Row(96, {"mask": np.ones(SHAPE)}, ArgumentTypeError, TypeError, ("mask", "float64", "bool")),
    Row(96, {"mask": np.ones((4, 8, 10), bool)}, PlanError, ValueError, ("(4, 8, 10)", "fraction")),
]  # fmt: skip


def names(rows):
    return [f"row{row.number}-{n}" for n, row in enumerate(rows)]


def check_error(error, row):
    assert type(error) is row.error
    assert isinstance(error, row.builtin)
    assert isinstance(error, GpublocksError)
    assert "\n" not in str(error)
    for part in row.parts:
        assert part in str(error)


@pytest.mark.parametrize("row", STATIC, ids=names(STATIC))
def test_found_before_anything_is_done(row, world):
    given = row.given(world)
    for call in (gb.process, gb.plan):
        with world.untouched(), pytest.raises(row.error) as caught:
            call(**given)
        check_error(caught.value, row)


SPLITTING = [row for row in SIZES if "halo" not in row.arguments]


@pytest.mark.parametrize("row", SPLITTING, ids=names(SPLITTING))
def test_sizes_are_found_when_splitting_too(row, world):
    given = row.given(world)
    del given["function"], given["sink"]
    if "size_max" not in given:
        given["size_max"] = 4
    with world.untouched(), pytest.raises(row.error) as caught:
        gb.split_into_blocks(**given)
    check_error(caught.value, row)


@pytest.mark.parametrize("where", ["function", "keyword"])
def test_row_35_what_cannot_be_sent(where, world):
    lock = threading.Lock()
    if where == "function":

        def function(array):
            with lock:
                return array

        keywords = {}
    else:

        def function(array, lock):
            return array

        keywords = {"lock": lock}
    for sink in (world.new, world.sink):
        with world.untouched(), pytest.raises(ArgumentTypeError) as caught:
            gb.process(function, world.source, sink, size_max=3, executor="processes", **keywords)
        for part in ("cannot send", "'function'", "lock", "executor='threads'"):
            assert part in str(caught.value)
    assert len(gb.process(function, world.source, executor="threads", **keywords)) == 6


RETURNED = [
    (37, lambda a: None, ("returned None", "expected an array")),
    (38, lambda a: 3.0, ("returned a float", "expected an array")),
    (38, lambda a: a[:1], ("returned shape (1, 8, 10)", "expected (3, 8, 10)")),
    (39, lambda a: a[:-1], ("returned shape (2, 8, 10)", "expected (3, 8, 10)")),
    (39, lambda a: a[:, :-1], ("(3, 7, 10)", "expected (3, 8, 10)")),
    (41, lambda a: (), ("returned 0 arrays", "1 sinks")),
    (43, lambda a: np.ma.masked_array(a), ("MaskedArray", ".filled()")),
    (43, lambda a: {"a": a}, ("returned a dict",)),
    (43, lambda a: [[1.0]], ("returned a list",)),
]


@pytest.mark.parametrize(
    ("function", "parts"),
    [(function, parts) for _, function, parts in RETURNED],
    ids=[f"row{row[0]}-{n}" for n, row in enumerate(RETURNED)],
)
def test_what_a_function_returns(function, parts, world, executor):
    given = {"size_max": 3, "executor": executor, "processes": 2, "optimization": False}
    for sink in (world.sink, world.result):
        with world.untouched(), pytest.raises(BlockError) as caught:
            gb.process(function, world.source, sink, **given)
        assert isinstance(caught.value, RuntimeError)
        assert caught.value.block in (0, 1)
        assert caught.value.stage == "compute"
        for part in ("block ", "/2<(", *parts):
            assert part in str(caught.value)


CASTS = [
    (30, lambda a: a + 300, "u1", ("300.0", "uint8 holds 0 to 255", "casting='unsafe'")),
    (30, lambda a: a * np.nan, "i2", ("NaN", "int16", "casting='unsafe'")),
    (31, lambda a: (a + 300).astype("u2"), "u1", ("uint8 holds 0 to 255", "casting='unsafe'")),
    (32, lambda a: a * 1j, "f4", ("complex64", "float32", "imaginary part")),
]


@pytest.mark.parametrize(
    ("function", "dtype", "parts"),
    [case[1:] for case in CASTS],
    ids=[f"row{case[0]}-{n}" for n, case in enumerate(CASTS)],
)
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_values_that_a_sink_cannot_hold(function, dtype, parts, world, executor):
    world.result = np.full(SHAPE, 7, dtype)
    np.save(world.sink, world.result)
    given = {"size_max": 6, "executor": executor, "processes": 2}
    for sink in (world.sink, world.result):
        with world.untouched(), pytest.raises(BlockError) as caught:
            gb.process(function, world.source, sink, **given)
        for part in ("block 0/1", *parts):
            assert part in str(caught.value)
    with world.untouched(), pytest.raises(BlockError):
        gb.process(function, world.source, world.new, dtype=dtype, **given)
    gb.process(function, world.source, world.result, casting="unsafe", **given)
    assert not (world.result == 7).all()


def test_row_79_no_room_on_the_disk(world):
    class Large(Duck):
        def __getitem__(self, slicing):
            return np.zeros([part.stop - part.start for part in slicing], "f4")

    source = Large((2**20, 2**20, 2**12))
    given = {"halo": 0, "executor": "serial"}
    with world.untouched(), pytest.raises(SinkError) as caught:
        gb.process(np.negative, source, world.new, **given)
    assert isinstance(caught.value, OSError)
    assert "new.npy" in str(caught.value)
    with world.untouched(), pytest.raises(BudgetError, match="a file as sink"):
        gb.process(np.negative, source, **given)


def test_row_84_a_source_that_changes_meanwhile(world):
    def function(array):
        os.utime(world.source, ns=(1, 1))
        return array

    with pytest.raises(SourceError, match=r"source\.npy changed"):
        gb.process(function, world.source, world.new, executor="serial")
    assert not world.new.exists()
    assert len(list(world.folder.iterdir())) == 2


def test_row_9_numpy_integers(world):
    given = {"size_max": np.int64(3), "overlap": np.uint8(1), "axes": np.int8(1)}
    result = gb.process(world.function, world.array, processes=np.int32(1), **given)
    assert np.array_equal(result, world.array)


def test_row_10_blocks_larger_than_the_array(world):
    plan = gb.plan(world.function, world.array, size_max=100, axes="all")
    assert plan.grid.counts == (1, 1, 1)
    assert plan.to_dict()["block"] == list(SHAPE)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0, 2)])
def test_row_23_no_voxels(shape, world, executor):
    result = gb.process(world.function, np.zeros(shape, "f4"), world.new, executor=executor)
    assert result == world.new
    assert np.load(world.new).shape == shape
    assert not (world.folder / "called").exists()


@pytest.mark.parametrize("dtype", ["M8[s]", "U3", [("a", "f4"), ("b", "i2")], "f2", "c16", "?"])
def test_row_27_other_types(dtype, world, executor):
    array = np.zeros(SHAPE, dtype)
    result = gb.process(world.function, array, size_max=4, executor=executor)
    assert result.dtype == array.dtype
    assert np.array_equal(result, array)


def test_row_28_other_byte_orders(world, executor):
    array = world.array.astype(">f4")
    result = gb.process(np.negative, array, size_max=4, executor=executor)
    assert np.array_equal(result, -world.array)


def test_row_42_and_45_functions_that_use_their_input(world, executor):
    def function(array):
        array *= 2
        return array[::1]

    with world.untouched():
        result = gb.process(
            function, world.array, size_max=4, overlap=2, executor=executor, optimization=False
        )
        filed = gb.process(function, world.source, size_max=4, overlap=2, executor=executor)
    assert np.array_equal(result, 2 * world.array)
    assert np.array_equal(filed, 2 * world.array)


def test_row_56_in_place_without_overlap(world, executor):
    expected = -world.array
    for source in (world.array, world.source):
        assert gb.process(np.negative, source, source, size_max=2, executor=executor) is source
    assert np.array_equal(world.array, expected)
    assert np.array_equal(np.load(world.source), expected)
