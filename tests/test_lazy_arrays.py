"""Arrays of Dask and xarray: chunks are computed about once, coordinates tell axes and spacing."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import gpublocks as gb
from gpublocks import io
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.geometry import Region
from tests.contracts.sources import SinkContract, SourceContract, reference

da = pytest.importorskip("dask.array")
xr = pytest.importorskip("xarray")


def counted(array, chunks):
    """Return an array of Dask, and how often each of its chunks was computed."""
    seen, lock = Counter(), threading.Lock()

    def note(block, block_info=None):
        with lock:
            seen[tuple(block_info[0]["chunk-location"])] += 1
        return block

    lazy = da.from_array(array, chunks=chunks).map_blocks(note, dtype=array.dtype)
    seen.clear()
    return lazy, seen


def once(seen, executor):
    """Tell whether chunks were computed once: but for those of a block that two slots took."""
    most = 2 if executor == "processes" else 1
    return max(seen.values()) <= most and sum(seen.values()) <= len(seen) * (1 + most) / 2


class TestDask(SourceContract):
    name = "Dask-Source"

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param

    def make(self, array, folder):
        return io.as_source(da.from_array(array, chunks=(2, 4, 3)))

    def test_tells_its_chunks(self):
        lazy = da.ones((10, 12, 14), chunks=((3, 4, 3), (4, 8), (5, 2, 7)))
        source = io.as_source(lazy)
        assert (source.unit, source.read_origin) == ((4, 8, 7), (1, 4, 0))

    @settings(max_examples=40)
    @given(data=st.data())
    def test_any_chunks_give_any_regions(self, data):
        lengths = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)
        chunks = tuple(tuple(data.draw(lengths)) for _ in range(data.draw(st.integers(1, 3))))
        shape = tuple(map(sum, chunks))
        array = np.arange(np.prod(shape)).reshape(shape)
        source = io.as_source(da.from_array(array, chunks=chunks))
        given = {"executor": "serial", "overlap": data.draw(st.integers(0, 2)), "memory": "1MB"}
        assert np.array_equal(gb.process(np.negative, source, **given), -array)

    @pytest.mark.parametrize("chunks", [(16, 16, 16), ((10, 16, 14), (16, 16, 8), (5, 16, 16, 3))])
    def test_each_chunk_is_computed_once(self, executor, chunks):
        array = np.random.default_rng(0).normal(size=(40, 40, 40)).astype("f4")
        lazy, seen = counted(array, chunks)
        given = {"executor": executor, "processes": 2, "size": 3}
        smooth = gb.process(ndimage.uniform_filter, lazy, axes="all", size_max=20, halo=1, **given)
        assert np.allclose(smooth, ndimage.uniform_filter(array, 3), atol=1e-5)
        assert once(seen, executor)
        assert len(seen) == np.prod(lazy.numblocks)

    def test_irregular_chunks_are_computed_for_each_piece(self):
        lazy, seen = counted(np.zeros(1 << 16, "f8"), ((20_000, 30_000, 10_000, 5536),))
        gb.process(np.negative, lazy, executor="serial", overlap=2, size_max=30_000, axes=0)
        assert seen == {(0,): 1, (1,): 2, (2,): 1, (3,): 1}

    def test_the_plan_knows_chunks(self):
        lazy = da.zeros((64, 64, 64), chunks=16, dtype="u2")
        plan = gb.plan(np.negative, lazy, overlap=0, executor="threads", processes=2)
        assert plan.decoded == 1
        assert plan.sources[0].pieces is not None

    def test_a_scheduler_that_was_set_is_used(self):
        import dask

        where = []

        def note(block):
            where.append(threading.current_thread())
            return block

        source = io.as_source(da.zeros((4, 4), chunks=4).map_blocks(note, dtype=float))
        where.clear()
        source.read(Region((0, 0), (4, 4)))
        with dask.config.set(scheduler="threads"):
            source.read(Region((0, 0), (4, 4)))
        assert where[0] is threading.current_thread() is not where[1]

    def test_what_is_refused(self):
        lazy = da.ones((4, 4), chunks=2)
        for x, kind, message in (
            (lazy[lazy > 3], PlanError, "unknown lengths .* compute_chunk_sizes"),
            (lazy.sum(), PlanError, "is a scalar"),
            (lazy.astype(object), ArgumentTypeError, "dtype object cannot"),
            (lazy.sum().to_delayed().item(), ArgumentTypeError, "a dask Delayed is no array"),
        ):
            with pytest.raises(kind, match=message):
                io.as_source(x)
        with pytest.raises(SinkError, match="is read-only"):
            gb.process(np.negative, np.ones((4, 4)), lazy, overlap=0)
        wrong = lazy.map_blocks(lambda block: block[:1], dtype=float)
        with pytest.raises(SourceError, match=r"of shape .* correct what makes its chunks"):
            io.as_source(wrong).read(Region((0, 0), (4, 4)))

    def test_what_a_chunk_raises_names_the_block(self, executor):
        def fail(block, block_info=None):
            if block_info[0]["chunk-location"] == (1,):
                raise RuntimeError("no such plane")
            return block

        lazy = da.zeros(1 << 15, chunks=1 << 14).map_blocks(fail, dtype=float, meta=np.zeros(1))
        with pytest.raises(RuntimeError, match="no such plane") as caught:
            gb.process(np.negative, lazy, size_max=1 << 14, executor=executor, processes=2)
        assert "block 1/2" in str(caught.value.__notes__)


def image(array, **coordinates):
    """Return an array of xarray with axes z, y and x."""
    return xr.DataArray(array, dims=("z", "y", "x"), coords=coordinates, name="image")


class TestXarray(SinkContract):
    name = "Numpy-Source"

    def make(self, array, folder):
        return io.as_source(image(array, x=np.arange(7) * 0.5))

    def test_two_processes_lose_nothing(self):
        """It does not travel."""

    def test_tells_what_coordinates_tell(self):
        array = image(np.zeros((5, 6, 7)), z=np.arange(5), y=10 + np.arange(6) * 0.25)
        array.y.attrs["units"] = "um"
        assert io.as_source(array).metadata == {
            "axes": ("z", "y", "x"),
            "spacing": (1.0, 0.25, None),
            "translation": (0.0, 10.0, None),
            "units": (None, "um", None),
        }

    @pytest.mark.parametrize(
        "x",
        [
            [0, 1, 3],
            [2, 1, 0],
            [1, 1, 1],
            ["a", "b", "c"],
            np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[ns]"),
            [0, np.nan, 2],
        ],
    )
    def test_what_is_no_lattice_tells_nothing(self, x):
        assert io.as_source(image(np.zeros((1, 2, 3)), x=x)).metadata == {"axes": ("z", "y", "x")}

    def test_steps_are_equal_but_for_rounding(self):
        x = np.float32(0.1) * np.arange(1000, dtype="f4")
        told = io.as_source(image(np.zeros((1, 2, 1000)), x=x)).metadata
        assert told["spacing"] == (None, None, pytest.approx(0.1))

    def test_is_carried_over_to_sinks(self, tmp_path):
        pytest.importorskip("zarr")
        array = image(reference(), z=np.arange(5) * 2.0, y=np.arange(6), x=np.arange(7))
        gb.process(np.negative, array, tmp_path / "x.ome.zarr", overlap=0, executor="serial")
        found = io.as_source(tmp_path / "x.ome.zarr")
        assert found.metadata["spacing"] == (2.0, 1.0, 1.0)
        assert np.array_equal(found[:], -reference())

    def test_is_written_in_place(self, executor):
        array, sink = image(reference()), image(np.zeros((5, 6, 7), "f4"))
        assert gb.process(np.negative, array, sink, overlap=0, executor=executor) is sink
        assert np.array_equal(sink, -reference())
        for source, target in ((sink, sink), (sink, sink.values), (sink.values, sink)):
            with pytest.raises(SinkError, match="in place with overlap"):
                gb.process(np.negative, source, target, overlap=2, size_max=3)

    def test_of_dask(self, executor):
        array = np.random.default_rng(0).normal(size=(40, 40, 40)).astype("f4")
        lazy, seen = counted(array, 16)
        source = io.as_source(image(lazy, z=np.arange(40) * 3))
        assert source.name == "Dask-Source"
        assert source.metadata["spacing"] == (3.0, None, None)
        found = gb.process(
            ndimage.uniform_filter, source, halo=1, size=3, size_max=20, executor=executor
        )
        assert np.allclose(found, ndimage.uniform_filter(array, 3), atol=1e-5)
        assert once(seen, executor)

    def test_files_are_not_read_as_a_whole(self, tmp_path):
        pytest.importorskip("zarr")
        image(reference()).to_dataset().to_zarr(
            tmp_path / "x.zarr", encoding={"image": {"chunks": (2, 3, 4)}}, consolidated=False
        )
        opened = xr.open_dataset(
            tmp_path / "x.zarr", engine="zarr", chunks=None, consolidated=False
        )
        source = io.as_source(opened)
        assert source.name == "Duck-Source"
        assert source.unit == (2, 3, 4)
        assert np.array_equal(gb.process(np.negative, source, overlap=0), -reference())
        assert not opened["image"].variable._in_memory
        with pytest.raises(SinkError, match="is read-only"):
            gb.process(np.negative, reference(), opened["image"], overlap=0)

    def test_of_a_dataset_the_only_array(self):
        one = image(reference()).to_dataset()
        assert np.array_equal(io.as_source(one), reference())
        for dataset, names in ((one.assign(other=one.image), "image, other"), (one[[]], "none")):
            with pytest.raises(ArgumentTypeError, match=f"holds the arrays {names}; give one"):
                io.as_source(dataset)
        with pytest.raises(ArgumentTypeError, match="an xarray DatasetGroupBy is no array"):
            io.as_source(one.groupby("z"))

    def test_variables_are_arrays_too(self):
        variable = image(reference()).variable
        assert io.as_source(variable).metadata == {"axes": ("z", "y", "x")}
