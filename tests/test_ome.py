"""OME-Zarr images: what they tell is read, written and carried over, and levels are right."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import PlanError, SinkError, SourceError
from gpublocks.formats.files import metadata
from gpublocks.formats.zarr import boxes, ome, pyramid
from gpublocks.geometry import Region
from gpublocks.task import described
from tests.contracts.sources import SourceContract, reference

zarr = pytest.importorskip("zarr")


def written(path, array, order="C", **options):
    """Write an array into a new image and return what tells of it, and its levels by zarr."""
    sink = io.zarr.Sink(path, **options).create(array.shape, array.dtype, order)
    sink.write(Region.whole(array.shape), array)
    sink.sync()
    sink.finish()
    return image(path)


def image(path):
    """Return what tells of an image, and its levels by zarr."""
    group = zarr.open_group(path, mode="r")
    told = group.attrs.asdict()
    told = told.get("ome", told)["multiscales"][0]
    return told, [group[dataset["path"]] for dataset in told["datasets"]]


def scales(told):
    """Return scale and translation of each level."""
    return [
        [transform[transform["type"]] for transform in dataset["coordinateTransformations"]]
        for dataset in told["datasets"]
    ]


def means(array, factors):
    """Return exact means, of integers rounded with halves up: one voxel at a time."""
    shape = [-(-n // f) for n, f in zip(array.shape, factors, strict=True)]
    result = np.empty(shape, array.dtype)
    for index in np.ndindex(*shape):
        part = array[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))]
        if array.dtype.kind in "fc":
            result[index] = part.mean(dtype=np.result_type(array.dtype, "f8"))
        else:
            mean = Fraction(sum(int(value) for value in part.flat), part.size)
            result[index] = (
                int(mean + Fraction(1, 2) // 1)
                if mean.denominator == 1
                else ((2 * mean.numerator + mean.denominator) // (2 * mean.denominator))
            )
    return result


class TestShrinking:
    @settings(max_examples=150)
    @given(
        data=st.data(),
        array=hnp.arrays(
            st.sampled_from(["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]).map(np.dtype),
            hnp.array_shapes(max_dims=4, max_side=5),
        ),
    )
    def test_means_are_exact(self, data, array):
        factors = data.draw(st.lists(st.integers(1, 2), min_size=array.ndim, max_size=array.ndim))
        shrunk = pyramid.shrunk(array, factors, "mean")
        assert shrunk.dtype == array.dtype
        assert np.array_equal(shrunk, means(array, factors))

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16"])
    def test_means_of_floats(self, dtype):
        array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(dtype)
        shrunk = pyramid.shrunk(array, (2, 1, 2), "mean")
        assert shrunk.dtype == array.dtype
        assert np.allclose(shrunk, means(array, (2, 1, 2)), rtol=1e-3, atol=1e-3)

    def test_nearest_ones_are_there(self):
        array = np.arange(5 * 6).reshape(5, 6)
        assert np.array_equal(pyramid.shrunk(array, (2, 1), "nearest"), array[::2])

    @given(
        shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        unit=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    )
    def test_by_pieces_it_is_the_same(self, shape, unit, counts):
        array = np.random.default_rng(0).integers(0, 99, shape).astype("u1")
        factors = pyramid.factors_of(shape, (0, 1))
        whole = pyramid.shrunk(array, factors, "mean")
        reads = []

        class Finer:
            dtype = array.dtype

            def read(self, region):
                reads.append(region.size)
                return array[region.slices]

        Finer.shape = shape
        coarser = io.npy.Source(np.zeros_like(whole))

        class Coarser:
            read_unit = unit
            shape, dtype, order = whole.shape, whole.dtype, "C"
            write = staticmethod(coarser.write)

        Coarser.unit = tuple(u * n for u, n in zip(unit, counts, strict=True))
        for tasks in pyramid.coarser_tasks(Finer(), Coarser, factors, "mean"):
            for task in reversed(tasks):
                task()
        assert np.array_equal(coarser.array, whole)
        assert sum(reads) == array.size
        assert max(reads, default=0) <= 4 * unit[0] * unit[1]


class TestMetadata:
    @given(
        st.integers(1, 5).flatmap(
            lambda n: st.fixed_dictionaries(
                {"axes": st.permutations("abcde").map(lambda names: tuple(names[:n]))},
                optional={
                    "spacing": st.tuples(*[st.none() | st.floats(0.1, 9)] * n),
                    "units": st.tuples(*[st.none() | st.sampled_from(["um", "s"])] * n),
                    "translation": st.tuples(*[st.floats(-9, 9)] * n),
                },
            )
        )
    )
    def test_of_the_whole_is_that_of_all_of_it(self, told):
        ndim = len(told["axes"])
        assert metadata.checked(told, ndim) == told
        assert metadata.of_part(told, (slice(None),) * ndim, ndim) == told

    def test_of_a_part(self):
        told = {
            "axes": ("c", "y", "x"),
            "spacing": (None, 2.0, 3.0),
            "units": (None, "um", "um"),
            "translation": (0.0, 1.0, 0.0),
            "directions": "of all axes",
        }
        part = metadata.of_part(told, (1, slice(4, None), slice(2, 9, 3)), 3)
        assert part == {
            "axes": ("y", "x"),
            "spacing": (2.0, 9.0),
            "units": ("um", "um"),
            "translation": (9.0, 6.0),
        }
        assert metadata.of_part(told, (1, slice(None, None, -1), slice(None)), 3) == {}
        assert metadata.of_part(told, (1, np.array([1, 2]), slice(None)), 3) == {}

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"axes": "zy"}, "axes 'zy' has 2 values, but there are 3 axes"),
            ({"axes": "zyy"}, "give each a name of its own"),
            ({"axes": ("z", "", "x")}, "give each a name of its own"),
            ({"spacing": (1, 2, 0)}, "spacing holds 0; use finite"),
            ({"spacing": (1, 2, "far")}, "spacing holds 'far'"),
            ({"spacing": (1, 2, np.inf)}, r"spacing holds inf"),
            ({"translation": (1, 2, np.nan)}, r"translation holds nan"),
        ],
    )
    def test_nonsense_is_refused(self, told, message):
        with pytest.raises(PlanError, match=message):
            metadata.checked(told, 3)

    def test_new_images_take_what_is_likely(self):
        found = ome.image_metadata({}, {"axes": None, "spacing": None}, 4, "C")
        assert found == {
            "axes": ("c", "z", "y", "x"),
            "units": (None,) * 4,
            "spacing": (1.0,) * 4,
            "translation": (0.0,) * 4,
        }
        told = {"axes": ("z", "y", "x"), "spacing": (5.0, None, 2.0), "space": "RAS"}
        found = ome.image_metadata(told, {"axes": None, "spacing": None}, 3, "F")
        assert (found["axes"], found["spacing"]) == (("z", "y", "x"), (5.0, 1.0, 2.0))
        found = ome.image_metadata(told, {"axes": "tyx", "spacing": (1, 2, 3)}, 3, "F")
        assert (found["axes"], found["spacing"]) == (("t", "y", "x"), (1.0, 2.0, 3.0))
        assert ome.image_metadata(told, {}, 2, "F")["axes"] == ("x", "y")


class TestReading:
    @given(
        names=st.sampled_from(["yx", "zyx", "czyx", "tczyx", "tyx"]),
        spacing=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
        translation=st.lists(st.floats(-100, 100), min_size=5, max_size=5),
        units=st.lists(st.sampled_from(["um", "nm", "mm", None]), min_size=5, max_size=5),
        version=st.sampled_from(["0.4", "0.5"]),
    )
    def test_what_is_written_is_read(self, names, spacing, translation, units, version):
        ndim = len(names)
        told = {
            "axes": tuple(names),
            "spacing": tuple(spacing[:ndim]),
            "translation": tuple(translation[:ndim]),
            "units": tuple("s" if a == "t" else u for a, u in zip(names, units, strict=False)),
        }
        coarser = metadata.coarser(told, [2] * ndim, centred=True)
        levels = [ome.Level("0", told), ome.Level("1", coarser)]
        wrote = ome.attributes(levels, name="x", method="mean", version=version)
        for level in levels:
            level.metadata["units"] = tuple(
                None if axis == "c" else unit
                for axis, unit in zip(names, level.metadata["units"], strict=True)
            )
        found = ome.levels_of(json.loads(json.dumps(wrote)), "x")
        assert [level.path for level in found] == ["0", "1"]
        for level, expected in zip(found, levels, strict=True):
            known = {k: v for k, v in expected.metadata.items() if any(v)}
            assert level.metadata == known

    def test_both_transforms_count(self):
        image = {
            "axes": [{"name": "y", "unit": "micrometer"}, {"name": "x"}],
            "coordinateTransformations": [
                {"type": "scale", "scale": [10, 1]},
                {"type": "translation", "translation": [0, 7]},
            ],
            "datasets": [
                {
                    "path": "a/b",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [2, 3]},
                        {"type": "translation", "translation": [1, 0]},
                    ],
                }
            ],
        }
        (level,) = ome.levels_of({"multiscales": [image]}, "x")
        assert level.path == "a/b"
        assert level.metadata == {
            "axes": ("y", "x"),
            "units": ("um", None),
            "spacing": (20.0, 3.0),
            "translation": (10.0, 7.0),
        }

    def test_early_versions(self):
        image = {"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}
        assert ome.levels_of({"multiscales": [image]}, "x")[0].metadata == {"axes": ("z", "y", "x")}
        image = {"version": "0.1", "datasets": [{"path": "0"}]}
        found = ome.levels_of({"multiscales": [image]}, "x")[0].metadata
        assert found == {"axes": ("t", "c", "z", "y", "x")}

    @pytest.mark.parametrize(
        "attributes", [{}, {"multiscales": []}, {"ome": {}}, {"ome": 3}, {"multiscales": "x"}]
    )
    def test_no_image(self, attributes):
        assert ome.levels_of(attributes, "x") == []

    @pytest.mark.parametrize(
        "change",
        [
            {"axes": [3]},
            {"axes": [{"name": "y"}, {"name": "y"}]},
            {"coordinateTransformations": [{"type": "scale", "scale": ["x", 2]}]},
            {"coordinateTransformations": [{"type": "scale", "scale": [0, 2]}]},
            {"coordinateTransformations": {"scale": 3}},
        ],
    )
    def test_damaged_metadata_are_not_used(self, change):
        axes = [{"name": "y"}, {"name": "x"}]
        scale = [{"type": "scale", "scale": [1, 2]}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        image = {"axes": axes, "datasets": datasets, **change}
        assert ome.levels_of({"multiscales": [image]}, "x")[0].metadata == {}

    @pytest.mark.parametrize("path", ["../x", "/etc", "a/../b", "", None, 3, "a\\b", "a//b", "."])
    def test_no_level_leaves_its_image(self, path):
        with pytest.raises(SourceError, match="which is no path inside of it"):
            ome.levels_of({"multiscales": [{"datasets": [{"path": path}]}]}, "x")
        with pytest.raises(SourceError, match="without datasets"):
            ome.levels_of({"multiscales": [{"datasets": path or 1}]}, "x")


class TestLevel(SourceContract):
    name = "Zarr-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        double = np.repeat(array, 2, 0).repeat(2, 1).repeat(2, 2)
        order = "F" if array.flags.f_contiguous else "C"
        written(folder / "x.ome.zarr", double, order, levels=2, chunks=4)
        return io.zarr.Source(folder / "x.ome.zarr", level=1)


class TestImages:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        "options",
        [
            {"levels": 3},
            {"levels": 3, "chunks": 8},
            {"levels": 4, "shards": 16, "chunks": 4, "method": "nearest"},
            {"levels": 2, "chunks": (16, 32, 7), "codec": "blosc", "zarr_format": 2},
            {"levels": 1},
        ],
        ids=["default", "chunks", "shards", "version2", "one"],
    )
    def test_each_level_is_made_of_the_one_below(self, tmp_path, order, options):
        rng = np.random.default_rng(0)
        array = np.asarray(rng.integers(0, 4000, (21, 34, 16)), "u2", order=order)
        told, levels = written(tmp_path / "x.ome.zarr", array, order, **options)
        assert len(levels) == options["levels"]
        assert [axis["name"] for axis in told["axes"]] == list("zyx" if order == "C" else "xyz")
        expected = array
        for level in levels:
            assert np.array_equal(level[...], expected)
            expected = pyramid.shrunk(expected, (2, 2, 2), options.get("method", "mean"))
        assert [p.name for p in tmp_path.iterdir()] == ["x.ome.zarr"]

    def test_a_plain_name_becomes_an_image_by_its_levels(self, tmp_path):
        _, levels = written(tmp_path / "x.zarr", reference(), levels=2)
        assert [level.shape for level in levels] == [(5, 6, 7), (3, 3, 4)]
        source = io.as_source(tmp_path / "x.zarr")
        assert (source.shape, source.location) == ((5, 6, 7), str(tmp_path / "x.zarr" / "0"))

    def test_only_axes_of_space_get_shorter(self, tmp_path):
        array = np.arange(3 * 4 * 8 * 1 * 8, dtype="f4").reshape(3, 4, 8, 1, 8)
        told, levels = written(tmp_path / "x.ome.zarr", array, levels=9, scale=(9, 1, 2, 3, 4))
        shapes = [(3, 4, 8, 1, 8), (3, 4, 4, 1, 4), (3, 4, 2, 1, 2), (3, 4, 1, 1, 1)]
        assert [level.shape for level in levels] == shapes
        assert [scale for scale, _ in scales(told)] == [
            [9, 1, 2, 3, 4],
            [9, 1, 4, 3, 8],
            [9, 1, 8, 3, 16],
            [9, 1, 16, 3, 32],
        ]

    def test_voxels_stay_where_they_are(self, tmp_path):
        """The middle of a coarser voxel is that of those it is the mean of."""
        told, _ = written(tmp_path / "x.ome.zarr", np.ones((8, 8)), levels=3, scale=(2, 1))
        assert scales(told) == [[[2, 1], [0, 0]], [[4, 2], [1, 0.5]], [[8, 4], [3, 1.5]]]
        told, _ = written(
            tmp_path / "y.ome.zarr", np.ones((8, 8)), levels=2, scale=(2, 1), method="nearest"
        )
        assert scales(told) == [[[2, 1]], [[4, 2]]]

    @pytest.mark.parametrize(
        ("shape", "axes"),
        [((5,), None), ((1, 2, 3, 4, 5, 6), None), ((3, 4), "cx"), ((2, 3, 4), "xyc")],
    )
    def test_what_is_no_image(self, tmp_path, shape, axes):
        sink = io.zarr.Sink(tmp_path / "x.ome.zarr", axes=axes)
        with pytest.raises(SinkError, match="is no OME-Zarr image, which has time, then channels"):
            sink.create(shape, np.dtype("u1"), "C")
        with pytest.raises(SinkError, match="is no OME-Zarr image"):
            io.zarr.Sink(tmp_path / "x.ome.zarr").create((4, 4, 4, 3), np.dtype("u1"), "F")
        assert list(tmp_path.iterdir()) == []

    def test_writing_into_one_of_many_levels(self, tmp_path):
        written(tmp_path / "x.ome.zarr", reference(), levels=2)
        with pytest.raises(
            SinkError, match=r"has 2 levels, and .*name that one \(.*x.ome.zarr/0\)"
        ):
            io.as_sink(tmp_path / "x.ome.zarr")
        assert not io.as_source(zarr.open_group(tmp_path / "x.ome.zarr")).writable
        gb.process(np.negative, reference(), tmp_path / "x.ome.zarr" / "0", overlap=0)
        assert np.array_equal(image(tmp_path / "x.ome.zarr")[1][0][:], -reference())
        written(tmp_path / "y.ome.zarr", reference())
        gb.process(np.negative, reference(), tmp_path / "y.ome.zarr", overlap=0)
        assert np.array_equal(image(tmp_path / "y.ome.zarr")[1][0][:], -reference())

    def test_what_cannot_be_completed_is_kept(self, tmp_path, monkeypatch):
        sink = io.zarr.Sink(tmp_path / "x.zarr", levels=2).create((4, 4), np.dtype("u1"), "C")
        sink[:] = 1

        def full(*given):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("gpublocks.formats.zarr.levels.coarser_tasks", full)
        with pytest.raises(SinkError, match=r"No space left .*kept in .*x\.zarr\.partial"):
            sink.finish()
        sink.abort()
        assert zarr.open_array(tmp_path / "x.zarr.partial" / "0", mode="r")[:].all()

    def test_levels_by_number_and_path(self, tmp_path):
        written(tmp_path / "x.ome.zarr", reference(), levels=2, scale=(3, 1, 1))
        path = tmp_path / "x.ome.zarr"
        finest, coarser = io.zarr.Source(path, level=0), io.zarr.Source(path, level=1)
        assert repr(io.as_source(path)) == repr(finest)
        assert coarser.metadata["spacing"] == (6.0, 2.0, 2.0)
        assert io.as_source(path / "1").metadata == coarser.metadata
        opened = zarr.open_group(path, mode="r")
        assert io.as_source(opened).metadata == finest.metadata
        with pytest.raises(SourceError, match="has the levels 0 to 1, and no level 2"):
            io.zarr.Source(path, level=2)
        with pytest.raises(SourceError, match="is an array, and has no levels"):
            io.zarr.Source(path / "1", level=0)
        opened = zarr.open_group(path, mode="r+")
        told = opened.attrs.asdict()
        told["ome"]["multiscales"][0]["datasets"][0]["path"] = "gone"
        opened.attrs.update(told)
        with pytest.raises(SourceError, match=r"no such file: .*gone"):
            io.as_source(path)

    def test_images_of_bioformats2raw(self, tmp_path):
        group = zarr.open_group(
            tmp_path / "x.zarr", mode="w", attributes={"bioformats2raw.layout": 3}
        )
        written(tmp_path / "x.zarr" / "0.ome.zarr", reference())
        (tmp_path / "x.zarr" / "0.ome.zarr").rename(tmp_path / "x.zarr" / "0")
        assert "0" in group
        source = io.as_source(tmp_path / "x.zarr")
        assert np.array_equal(np.asarray(source), reference())
        assert source.location == str(tmp_path / "x.zarr" / "0" / "0")


@st.composite
def images(draw):
    """Return shape, options of a sink, and sizes of blocks, of which at least one axis is cut."""
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=ndim, max_size=ndim)))
    chunks = tuple(draw(st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim)))
    options = {
        "chunks": chunks,
        "levels": draw(st.integers(2, 4)),
        "method": draw(st.sampled_from(["mean", "nearest"])),
        "axes": draw(st.sampled_from([None, "tyx"][: ndim - 1])),
    }
    if draw(st.booleans()):
        options["shards"] = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    return shape, options, draw(st.integers(1, 20))


class TestLevelsOfBlocks:
    @settings(max_examples=30)
    @given(case=images(), order=st.sampled_from("CF"), dtype=st.sampled_from(["u1", "i8", "f4"]))
    def test_they_are_those_of_the_whole(self, case, order, dtype, tmp_path_factory):
        shape, options, size_max = case
        path = tmp_path_factory.mktemp("run") / "x.ome.zarr"
        array = np.random.default_rng(0).normal(0, 50, shape).astype("i1").astype(dtype, order)
        sink = io.zarr.Sink(path, **options)
        sizes = {"axes": "all", "size_max": size_max, "optimization": False}
        try:
            gb.plan(np.positive, array, sink, overlap=0, **sizes)
        except PlanError:
            # These sizes leave no room for units; without any there always are such blocks.
            sizes = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(boxes.Store, "read", not_in(f"{path}.partial/0", boxes.Store.read))
            gb.process(np.positive, array, sink, overlap=0, executor="serial", **sizes)
        self.check(path, array, options)

    def check(self, path, array, options):
        told, levels = image(path)
        halved = ome.spatial([axis["name"] for axis in told["axes"]])
        for level in levels:
            assert np.array_equal(level[...], array)
            factors = pyramid.factors_of(array.shape, halved)
            array = pyramid.shrunk(array, factors, options["method"])
        assert {entry.name for entry in path.iterdir()} == {
            "zarr.json",
            *(str(number) for number in range(len(levels))),
        }

    def test_in_each_executor(self, tmp_path, executor):
        array = np.random.default_rng(0).integers(0, 999, (21, 34, 17)).astype("u2")
        options = {"chunks": 4, "levels": 3, "method": "mean"}
        sink = io.zarr.Sink(tmp_path / "x.ome.zarr", **options)
        gb.process(np.positive, array, sink, overlap=0, executor=executor, processes=2, size_max=8)
        self.check(tmp_path / "x.ome.zarr", array, options)

    @given(
        order=st.sampled_from("CF"),
        writes=st.lists(
            st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=3, max_size=3),
            min_size=1,
            max_size=5,
        ),
    )
    @settings(max_examples=15)
    def test_of_any_regions(self, order, writes, tmp_path_factory):
        path = tmp_path_factory.mktemp("run") / "x.ome.zarr"
        options = {"chunks": (1, 3, 4), "levels": 3, "method": "mean"}
        sink = io.zarr.Sink(path, **options).create((9, 9, 9), np.dtype("u2"), order)
        expected = np.zeros((9, 9, 9), "u2")
        for number, ranges in enumerate(writes, 1):
            lo = [min(start, 8) for start, _ in ranges]
            hi = [min(start + n, 9) for start, (_, n) in zip(lo, ranges, strict=True)]
            region = Region(tuple(lo), tuple(hi))
            voxels = np.arange(region.size, dtype="u2").reshape(region.shape) + 1000 * number
            sink.write(region, voxels)
            expected[region.slices] = voxels
        sink.finish()
        self.check(path, expected, options)

    def test_blocks_are_cut_at_even_voxels(self, tmp_path):
        sink = io.zarr.Sink(tmp_path / "x.zarr", levels=3, chunks=(1, 7, 4))
        assert sink.units((9, 20, 20), np.dtype("u1")) == [(2, 14, 4)]
        # Where there is no border, and along other axes, chunks do.
        assert sink.units((9, 7, 20), np.dtype("u1")) == [(2, 7, 4)]
        assert replace(sink, axes="tyx").units((9, 20, 20), np.dtype("u1")) == [(1, 14, 4)]
        made = sink.create((9, 20, 20), np.dtype("u1"), "C")
        assert (made.unit, made.store.unit) == ((2, 14, 4), (1, 7, 4))
        made.abort()
        array = np.zeros((9, 20, 20), "u1")
        with pytest.raises(PlanError, match="use a size_max of 2"):
            gb.process(np.positive, array, sink, size_max=1)
        assert list(tmp_path.iterdir()) == []
        gb.process(np.positive, array, sink, size_max=2)

    def test_what_the_source_tells_of_axes_counts(self, tmp_path):
        told = {"axes": ("t", "y", "x")}
        written(tmp_path / "movie.ome.zarr", np.ones((5, 6, 7)), metadata=told)
        sink = io.zarr.Sink(tmp_path / "x.zarr", levels=2, chunks=(1, 2, 2))
        plan = gb.plan(np.positive, tmp_path / "movie.ome.zarr", sink, size_max=1)
        assert plan.units == ((1, 2, 2),)

    def test_room_for_the_second_level_is_asked_for(self, tmp_path):
        huge = io.as_source(np.broadcast_to(np.zeros(1, "u1"), (1 << 16, 1 << 16, 1 << 16)))
        sink = io.zarr.Sink(tmp_path / "x.zarr", levels=2)
        with pytest.raises(SinkError, match=r"x\.zarr needs 35.2 TB"):
            sink.create(huge.shape, huge.dtype, "C")
        assert list(tmp_path.iterdir()) == []


def not_in(path, read):
    """Return how arrays are read, but for the one at a path."""

    def checked(self, *args):
        assert self.path != path, "a voxel was read back"
        return read(self, *args)

    return checked


class TestCarriedOver:
    @pytest.fixture
    def source(self, tmp_path):
        told = {"units": (None, "um", "um", "um"), "translation": (0, 0, 10, 20)}
        array = np.arange(2 * 8 * 6 * 4, dtype="u2").reshape(2, 8, 6, 4)
        written(
            tmp_path / "x.ome.zarr", array, chunks=4, scale=(1, 5, 2, 2), metadata=told, levels=2
        )
        return tmp_path / "x.ome.zarr"

    def test_from_image_to_image(self, source, tmp_path, executor):
        gb.process(np.invert, source, tmp_path / "y.ome.zarr", overlap=0, executor=executor)
        told, _ = image(tmp_path / "y.ome.zarr")
        assert told["axes"] == [
            {"name": "c", "type": "channel"},
            {"name": "z", "type": "space", "unit": "micrometer"},
            {"name": "y", "type": "space", "unit": "micrometer"},
            {"name": "x", "type": "space", "unit": "micrometer"},
        ]
        assert scales(told) == [[[1, 5, 2, 2], [0, 0, 10, 20]]]

    def test_from_a_coarser_level(self, source, tmp_path):
        gb.process(np.invert, source / "1", tmp_path / "y.ome.zarr", overlap=0, executor="serial")
        assert scales(image(tmp_path / "y.ome.zarr")[0]) == [[[1, 10, 4, 4], [0, 2.5, 11, 21]]]

    def test_from_a_part(self, source, tmp_path):
        part = io.as_source(source, np.s_[1, 2:, :, ::2])
        gb.process(np.invert, part, tmp_path / "y.ome.zarr", overlap=0, executor="serial")
        told, (level,) = image(tmp_path / "y.ome.zarr")
        assert [axis["name"] for axis in told["axes"]] == ["z", "y", "x"]
        assert scales(told) == [[[5, 2, 4], [10, 10, 20]]]
        assert np.array_equal(level[:], ~np.asarray(io.as_source(source))[1, 2:, :, ::2])

    def test_what_is_given_goes_first(self, source, tmp_path):
        sink = io.zarr.Sink(tmp_path / "y.ome.zarr", scale=(1, 1, 1, 1))
        gb.process(np.invert, source, sink, overlap=0, executor="serial")
        assert scales(image(tmp_path / "y.ome.zarr")[0])[0][0] == [1, 1, 1, 1]
        sink = io.zarr.Sink(tmp_path / "z.ome.zarr", metadata={})
        gb.process(np.invert, source, sink, overlap=0, executor="serial")
        assert scales(image(tmp_path / "z.ome.zarr")[0]) == [[[1, 1, 1, 1]]]

    def test_results_with_other_axes_do_not_get_it(self, source, tmp_path):
        gb.process(
            lambda array: array.max(3),
            source,
            tmp_path / "y.ome.zarr",
            axes=[1],
            size_max=8,
            executor="serial",
        )
        assert scales(image(tmp_path / "y.ome.zarr")[0]) == [[[1, 1, 1]]]

    def test_only_to_sinks_that_have_a_place_for_it(self, source, tmp_path):
        told = io.as_source(source)
        sink = io.zarr.Sink(tmp_path / "y.zarr")
        assert described(sink, told, (2, 8, 6, 4)).metadata == told.metadata
        assert described(sink, told, (2, 8, 6)) is sink
        assert described(sink, io.as_source(np.zeros((2, 3, 4, 5))), (2, 3, 4, 5)) is sink
        plain = io.memmap.Sink(tmp_path / "y.npy")
        assert described(plain, told, (2, 8, 6, 4)) is plain

    def test_what_voxels_meant_is_not_carried_over(self, tmp_path):
        class Scaled:
            shape, metadata = (4, 5), {"axes": ("y", "x"), "scaling": (2.0, 1.0)}

        sink = io.zarr.Sink(tmp_path / "y.zarr")
        assert described(sink, Scaled(), (4, 5)).metadata == {"axes": ("y", "x")}

    def test_plain_arrays_keep_names(self, source, tmp_path):
        gb.process(np.invert, source, tmp_path / "y.zarr", overlap=0, executor="serial")
        array = zarr.open_array(tmp_path / "y.zarr", mode="r")
        assert array.metadata.dimension_names == ("c", "z", "y", "x")
        assert io.as_source(tmp_path / "y.zarr").metadata == {"axes": ("c", "z", "y", "x")}

    @pytest.mark.parametrize("name", ["x.nii", "x.mha", "x.ome.tif"])
    def test_a_format_that_calls_axes_otherwise_says_so(self, tmp_path, name):
        pytest.importorskip("nibabel" if name == "x.nii" else "tifffile")
        names = "xyz" if name == "x.ome.tif" else "zyx"
        written(tmp_path / "in.ome.zarr", reference(), axes=names)
        source = tmp_path / "in.ome.zarr"
        with pytest.warns(RuntimeWarning, match="calls its axes"):
            gb.process(np.negative, source, tmp_path / name, overlap=0, executor="serial")
        turned = io.permuted.Permuted(io.as_source(source), (2, 1, 0))
        sink = {"x.nii": io.nifti, "x.mha": io.mhd, "x.ome.tif": io.tiff}[name].Sink
        sink = sink(tmp_path / name, overwrite=True)
        gb.process(np.negative, turned, sink, overlap=0, executor="serial")
        assert np.array_equal(io.as_source(tmp_path / name), -reference().T)

    def test_between_formats(self, tmp_path):
        pytest.importorskip("nrrd")
        written(tmp_path / "x.ome.zarr", reference(), scale=(5, 2, 1), axes="zyx")
        gb.process(np.negative, tmp_path / "x.ome.zarr", tmp_path / "x.nrrd", overlap=0)
        gb.process(np.negative, tmp_path / "x.nrrd", tmp_path / "y.ome.zarr", overlap=0)
        told, (level,) = image(tmp_path / "y.ome.zarr")
        assert scales(told) == [[[5, 2, 1]]]
        assert np.array_equal(level[:], reference())


class TestOtherPrograms:
    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("levels", [1, 3])
    def test_ome_zarr_models_validates_images(self, tmp_path, version, levels):
        pytest.importorskip("ome_zarr_models")
        if version == 3:
            from ome_zarr_models.v05.image import Image
        else:
            from ome_zarr_models.v04.image import Image
        for number, (shape, axes) in enumerate(
            [((9, 8), None), ((5, 6, 7), None), ((2, 3, 5, 6, 7), None), ((4, 6, 7), "tyx")]
        ):
            path = tmp_path / f"{number}.ome.zarr"
            options = {"zarr_format": version, "levels": levels, "axes": axes}
            options["metadata"] = {"units": ["um"] * len(shape)}
            written(path, np.ones(shape, "u2"), **options)
            model = Image.from_zarr(zarr.open_group(path, mode="r"))
            attributes = model.attributes if version == 2 else model.attributes.ome
            assert len(attributes.multiscales[0].datasets) == levels

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("version", [2, 3])
    def test_ome_zarr_reads_images(self, tmp_path, version):
        parse_url = pytest.importorskip("ome_zarr.io").parse_url
        from ome_zarr.reader import Reader

        array = np.random.default_rng(0).integers(0, 999, (8, 20, 30)).astype("u2")
        path = tmp_path / "x.ome.zarr"
        _, levels = written(path, array, levels=2, zarr_format=version, scale=(4, 1, 1))
        (node,) = Reader(parse_url(path))()
        assert [np.asarray(data).shape for data in node.data] == [level.shape for level in levels]
        assert np.array_equal(np.asarray(node.data[0]), array)
        assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
        transforms = node.metadata["coordinateTransformations"]
        assert transforms[0][0]["scale"] == [4, 1, 1]

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("version", ["FormatV04", "FormatV05"])
    def test_images_of_ome_zarr_are_read(self, tmp_path, version):
        pytest.importorskip("ome_zarr")
        from ome_zarr import format as formats
        from ome_zarr.writer import write_image

        array = np.random.default_rng(0).integers(0, 999, (8, 20, 30)).astype("u2")
        made = getattr(formats, version)()
        group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=made.zarr_format)
        units = dict.fromkeys("zyx", "micrometer")
        scale = {"z": 4.0, "y": 1.0, "x": 1.0}
        write_image(array, group, [2], fmt=made, axes="zyx", scale=scale, axes_units=units)
        source = io.as_source(tmp_path / "x.zarr")
        assert np.array_equal(np.asarray(source), array)
        assert source.metadata == {
            "axes": ("z", "y", "x"),
            "spacing": (4.0, 1.0, 1.0),
            "units": ("um", "um", "um"),
        }
