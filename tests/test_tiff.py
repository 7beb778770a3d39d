"""TIFF files and series of them keep the contract, in all flavours; damaged ones are refused."""

import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.formats.tiff import styles
from gpublocks.formats.tiff.declared import declared_samples
from gpublocks.formats.tiff.planes import Numbering, find_planes
from gpublocks.formats.tiff.segments import Paging
from gpublocks.geometry import Region
from gpublocks.io import tiff
from tests.contracts.headed import NewFileContract
from tests.contracts.sources import (
    REGIONS,
    NewSinkContract,
    SinkContract,
    SourceContract,
    reference,
    start,
)

ZYX = {
    "axes": ("z", "y", "x"),
    "spacing": (2.0, 0.5, 0.25),
    "units": ("um", "um", "um"),
}


def numbered(*shape, dtype="u2"):
    """Return an array in which neighbours differ."""
    return (np.arange(np.prod(shape)) * 37 % 251).reshape(shape).astype(dtype)


def written(path, array, **options):
    """Write a file with tifffile and return its path."""
    tifffile.imwrite(path, array, **{"photometric": "minisblack", **options})
    return path


def planes(folder, array, pattern="img_Z{:04d}.tif", first=0, **options):
    """Write each plane of an array to a file of its own, and return the folder."""
    folder.mkdir(exist_ok=True)
    for n, plane in enumerate(array, first):
        written(folder / pattern.format(n), plane, **options)
    return folder


class SlowestFirst(SourceContract):
    """TIFF stores the last axis fastest, and knows no other order."""

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param


class TestMapped(SinkContract, SlowestFirst):
    name = "Tiff-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_sink(written(folder / "x.tif", array))

    def test_tifffile_sees_what_is_written(self, source):
        source.write(REGIONS[0], np.zeros(source.shape))
        source.sync()
        assert not tifffile.imread(source.location).any()

    def test_a_source_never_writes(self, source):
        with pytest.raises(SinkError, match="opened read-only"):
            io.as_source(source.location).write(REGIONS[0], reference())


class TestStrips(SlowestFirst):
    name = "Tiff-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(written(folder / "x.tif", array, compression="zlib", rowsperstrip=4))

    def test_unit(self, source):
        assert source.unit == (1, 4, 7)


class TestTiles(SlowestFirst):
    name = "Tiff-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(written(folder / "x.ome.tif", array, tile=(16, 16), compression="lzw"))


class TestPagesApart(SlowestFirst):
    name = "Tiff-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        with tifffile.TiffWriter(folder / "x.tif") as file:
            for plane in array:
                file.write(plane, contiguous=False, metadata=None)
        return io.as_source(folder / "x.tif")


class TestSeries(SlowestFirst):
    name = "Tiff-Series-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(planes(folder / "planes", array) / "img_Z<Z,4>.tif")


class TestSeriesOfStacks(SlowestFirst):
    name = "Tiff-Series-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        (folder / "rows").mkdir()
        for n, plane in enumerate(array):
            written(folder / "rows" / f"{n}.tif", plane, compression="zlib", rowsperstrip=2)
        return io.as_source(folder / "rows" / "*.tif")


# --- new files ---------------------------------------------------------------------------------


class NewTiffContract(NewFileContract):
    kind = io.tiff.Sink
    suffix = ".tif"
    orders = "CC"

    def read(self, path, array):
        return tifffile.imread(path).reshape(array.shape)

    @pytest.mark.parametrize("dtype", ["U3", "M8[s]", "O", "g"])
    def test_types_that_it_has_not(self, tmp_path, dtype):
        super().test_types_that_it_has_not(tmp_path, dtype)


class TestNewFile(NewTiffContract):
    def test_there_is_room_for_all_voxels(self, tmp_path):
        sink = self.make(tmp_path).create((50, 60, 70), np.dtype("f4"), "C")
        status = os.stat(sink.location)
        assert status.st_blocks * 512 >= sink.size * 4
        sink.abort()


class TestNewPackedFile(NewTiffContract):
    options: ClassVar = {"compression": "zlib"}
    dtypes = ("u1", "i2", "f4", "c8")


class TestNewBigFile(NewSinkContract):
    def make(self, folder):
        return io.tiff.Sink(folder / "new.tif", bigtiff=True)

    @pytest.mark.parametrize("order", ["C"])
    def test_what_is_written_is_there_when_finished(self, tmp_path, order):
        super().test_what_is_written_is_there_when_finished(tmp_path, order)
        with tifffile.TiffFile(tmp_path / "new.tif") as file:
            assert file.is_bigtiff


class TestNewSeries(NewSinkContract):
    def make(self, folder, **options):
        return io.tiff.Sink(folder / "planes" / "img_Z<Z,4>.tif", **options)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_what_is_written_is_there_when_finished(self, tmp_path, order):
        new = self.make(tmp_path)
        sink = new.create((5, 6, 7), np.dtype("f4"), order)
        assert sink.unit == (1, 6, 7) == new.units((5, 6, 7), np.dtype("f4"))[0]
        worker = pickle.loads(pickle.dumps(sink))
        for index in range(5):
            region = Region((index, 0, 0), (index + 1, 6, 7))
            worker.write(region, reference()[region.slices])
        worker.finish()
        worker.abort()
        assert [path.name for path in tmp_path.iterdir()] == ["planes.partial"]
        sink.sync()
        sink.finish()
        sink.finish()
        sink.abort()
        assert [path.name for path in tmp_path.iterdir()] == ["planes"]
        assert sorted(path.name for path in (tmp_path / "planes").iterdir()) == [
            f"img_Z000{n}.tif" for n in range(5)
        ]
        for source in (sink, io.as_source(new.location)):
            assert source.location == new.location
            assert np.array_equal(np.asarray(source), reference())
        for n in range(5):
            assert np.array_equal(
                tifffile.imread(tmp_path / f"planes/img_Z000{n}.tif"), reference()[n]
            )

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0, 2)])
    def test_an_empty_sink(self, tmp_path, shape):
        super().test_an_empty_sink(tmp_path, shape)

    def test_parts_of_planes_and_slicings(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("i2"), "C")
        expected = np.zeros((5, 6, 7), "i2")
        for value, region in enumerate(REGIONS, 1):
            sink.write(region, np.full(region.shape, value, "f8"))
            expected[region.slices] = value
        sink[1:4:2, ..., -1] = 9
        expected[1:4:2, ..., -1] = 9
        sink.finish()
        assert np.array_equal(np.asarray(sink), expected)
        assert np.array_equal(sink[3, ::2, 1], expected[3, ::2, 1])

    def test_from_file_to_planes(self, tmp_path, executor):
        array = numbered(12, 20, 21)
        written(tmp_path / "x.tif", array, compression="zlib")
        new = self.make(tmp_path, compression="zstd" if executor == "processes" else None)
        given = {"size_max": 5, "axes": [0], "overlap": 0, "executor": executor, "processes": 2}
        gb.process(np.invert, tmp_path / "x.tif", new, **given)
        assert np.array_equal(np.asarray(io.as_source(new.location)), ~array)

    def test_a_killed_run_leaves_nothing_or_all(self, tmp_path):
        code = """
import sys, numpy as np
from gpublocks import io
from gpublocks.geometry import Region
sink = io.tiff.Sink(sys.argv[1]).create((300, 50, 50), np.dtype("i4"), "C")
print("begun", file=sys.stderr, flush=True)
sink.write(Region.whole(sink.shape), np.ones(sink.shape))
sink.finish()
"""
        new = self.make(tmp_path)
        for seed in range(2):
            process = start(code, new.location)
            assert process.stderr.readline() == "begun\n"
            time.sleep(0.02 * seed)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if (tmp_path / "planes").exists():
                assert np.asarray(io.as_source(new.location)).all()
                shutil.rmtree(tmp_path / "planes")
        sink = new.create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        sink.finish()
        assert len(list((tmp_path / "planes").iterdir())) == 5
        assert len(list(tmp_path.iterdir())) == 1

    def test_two_runs_at_once_are_refused(self, tmp_path):
        first = self.make(tmp_path).create((2, 3), np.dtype("f4"), "C")
        with pytest.raises(SinkError, match="another run is writing"):
            self.make(tmp_path).create((2, 3), np.dtype("f4"), "C")
        first.abort()

    def test_folders_that_exist(self, tmp_path):
        folder = planes(tmp_path / "planes", numbered(3, 4, 5))
        with pytest.raises(
            SinkError, match=r"planes exists; name a new folder, or pass overwrite=True"
        ):
            io.as_sink(folder / "img_Z<Z,4>.tif")
        sink = self.make(tmp_path, overwrite=True).create((2, 6, 7), np.dtype("f4"), "C")
        assert np.array_equal(io.as_source(folder / "img_Z<Z,4>.tif"), numbered(3, 4, 5))
        sink.finish()
        assert sorted(path.name for path in folder.iterdir()) == ["img_Z0000.tif", "img_Z0001.tif"]
        (folder / "notes.txt").write_text("of years")
        with pytest.raises(SinkError, match=r"holds notes\.txt beside planes"):
            self.make(tmp_path, overwrite=True).check()
        assert [path.name for path in tmp_path.iterdir()] == ["planes"]

    @pytest.mark.parametrize(
        ("pattern", "shape", "message"),
        [
            ("C<C,1>/Z<Z,4>.tif", (2, 3, 4, 5), "only the name of a file can be numbered"),
            ("planes/Z<Z,1>.tif", (11, 4, 5), r"1 digits for 11 files; write <Z,2>"),
            ("planes/Z<Z,1>C<C,1>.tif", (2, 3), "numbers files along 2 axes, and there are 2"),
            ("missing/planes/Z<Z,1>.tif", (2, 3, 4), "no folder"),
            ("*.tif", (2, 3, 4), "number files by a placeholder such as <Z,4>"),
        ],
    )
    def test_what_cannot_be(self, tmp_path, pattern, shape, message):
        with pytest.raises(SinkError, match=message):
            io.as_sink(tmp_path / pattern).create(shape, np.dtype("u1"), "C")
        assert not list(tmp_path.iterdir())

    def test_a_disk_that_is_full(self, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(SinkError, match="100 B free"):
            self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")

    def test_planes_that_cannot_be_written(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        monkeypatch.setattr(tifffile.TiffWriter, "write", full)
        with pytest.raises(SinkError, match=r"cannot write .*img_Z0002\.tif: .*No space left"):
            sink.write(Region((2, 0, 0), (3, 6, 7)), reference()[2:3])
        assert [path.name for path in (tmp_path / "planes.partial").iterdir()] == [".lock"]
        sink.abort()


class TestSinkOptions:
    def write(self, path, array, **options):
        """Write an array through a sink, and return its source."""
        sink = io.tiff.Sink(path, **options).create(array.shape, array.dtype, "C")
        sink.write(Region.whole(array.shape), array)
        sink.finish()
        return io.as_source(path)

    @settings(max_examples=25)
    @given(data=st.data())
    def test_any_shape_is_read_again(self, tmp_path_factory, data):
        shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6)))
        dtype = data.draw(st.sampled_from(["u1", "i1", "u2", "f2", "i8", "f8", "c16"]))
        compression = data.draw(st.sampled_from([None, "zstd"]))
        path = tmp_path_factory.mktemp("new") / "x.tif"
        source = self.write(path, numbered(*shape, dtype=dtype), compression=compression)
        assert (source.shape, source.dtype) == (shape, dtype)
        assert np.array_equal(source, numbered(*shape, dtype=dtype))

    @pytest.mark.parametrize(
        ("name", "options", "shape", "dtype", "flag"),
        [
            ("x.tif", {}, (3, 4, 5), "u2", "imagej"),
            ("x.tif", {}, (3, 4, 5), "f8", "shaped"),
            ("x.tif", {"compression": "lzw"}, (3, 4, 5), "u2", "shaped"),
            ("x.ome.tif", {}, (3, 4, 5), "u2", "ome"),
            ("x.tif", {"ome": True, "compression": "zstd"}, (3, 4, 5), "f4", "ome"),
        ],
    )
    def test_what_is_known_of_voxels_is_kept(self, tmp_path, name, options, shape, dtype, flag):
        array = numbered(*shape, dtype=dtype)
        source = self.write(tmp_path / name, array, metadata=ZYX, **options)
        with tifffile.TiffFile(tmp_path / name) as file:
            assert getattr(file, f"is_{flag}")
            assert file.series[0].axes == "ZYX"
            assert len(file.pages) == 3
            assert np.array_equal(file.asarray(), array)
        assert source.metadata == ZYX
        assert np.array_equal(source, array)
        (tmp_path / "copy").mkdir()
        copy = self.write(tmp_path / "copy" / name, array, metadata=source.metadata, **options)
        assert copy.metadata == ZYX

    def test_time_and_other_units(self, tmp_path):
        metadata = {
            "axes": ("t", "y", "x"),
            "spacing": (250.0, 0.001, 0.002),
            "units": ("ms", "mm", "mm"),
        }
        expected = {
            "axes": ("t", "y", "x"),
            "spacing": (0.25, 1.0, 2.0),
            "units": ("s", "um", "um"),
        }
        for name in ("x.tif", "x.ome.tif"):
            source = self.write(tmp_path / name, numbered(3, 4, 5), metadata=metadata)
            assert source.metadata == expected
        odd = {"axes": ("v", "w"), "spacing": (3.0, None), "units": ("lightyear", None)}
        assert self.write(tmp_path / "y.tif", numbered(4, 5), metadata=odd).metadata == odd
        with pytest.raises(PlanError, match="has 3 values, but there are 2 axes"):
            self.write(tmp_path / "z.tif", numbered(4, 5), metadata=ZYX)

    def test_axes_that_ome_has_not(self, tmp_path):
        metadata = {"axes": ("x", "y", "z"), "spacing": (1.0, 2.0, 3.0), "units": ("um",) * 3}
        source = self.write(tmp_path / "x.ome.tif", numbered(3, 4, 5), metadata=metadata)
        assert source.metadata == {"axes": ("z", "y", "x")}
        source = self.write(tmp_path / "x.tif", numbered(3, 4, 5), metadata=metadata)
        assert source.metadata == metadata

    def test_a_run_hands_on_what_is_known(self, tmp_path):
        self.write(tmp_path / "z.tif", numbered(3, 4, 5), metadata=ZYX)
        for name in ("new.tif", "new.ome.tif", "planes/Z<Z,1>.tif"):
            gb.process(np.invert, tmp_path / "z.tif", tmp_path / name, executor="serial")
            metadata = io.as_source(tmp_path / name).metadata
            assert metadata["axes"] == ZYX["axes"]
            assert metadata["spacing"][1:] == ZYX["spacing"][1:]

    def test_colours(self, tmp_path):
        array = numbered(3, 20, 30, 3, dtype="u1")
        self.write(tmp_path / "x.tif", array)
        with tifffile.TiffFile(tmp_path / "x.tif") as file:
            assert file.pages[0].photometric.name == "RGB"
            assert len(file.pages) == 3
        source = self.write(tmp_path / "x.ome.tif", array, compression="zlib")
        assert source.metadata["axes"] == ("z", "y", "x", "c")
        assert np.array_equal(source, array)

    def test_truth_values_become_bytes(self, tmp_path):
        sink = io.tiff.Sink(tmp_path / "x.tif").create((2, 3), np.dtype(bool), "C")
        assert sink.dtype == np.uint8
        sink.write(Region((0, 0), (1, 3)), np.ones((1, 3), bool))
        sink.finish()
        assert tifffile.imread(tmp_path / "x.tif").tolist() == [[1, 1, 1], [0, 0, 0]]

    def test_large_files_are_bigtiff(self, tmp_path, monkeypatch):
        monkeypatch.setattr(styles, "_CLASSIC_BYTES", 5000)
        for name, size in (("small.tif", 10), ("large.tif", 20)):
            self.write(tmp_path / name, numbered(3, size, size, dtype="u4"))
            with tifffile.TiffFile(tmp_path / name) as file:
                assert file.is_bigtiff == (name == "large.tif")
        with pytest.raises(SinkError, match="too large without BigTIFF"):
            self.write(tmp_path / "x.tif", numbered(3, 20, 20, dtype="u4"), bigtiff=False)
        assert len(list(tmp_path.iterdir())) == 2

    def test_ome_names_axes_once(self, tmp_path):
        for sink in (io.tiff.Sink(tmp_path / "x.ome.tif"), io.tiff.Sink(tmp_path / "y", ome=True)):
            with pytest.raises(SinkError, match="two axes at least"):
                sink.create((5,), np.dtype("u1"), "C")

    @pytest.mark.parametrize(
        ("compression", "message"),
        [("nope", "compression 'nope' is not known"), ("webp", "'webp' takes no float64")],
    )
    def test_compressions_that_are_not(self, tmp_path, compression, message):
        for name in ("x.tif", "planes/<Z>.tif"):
            sink = io.tiff.Sink(tmp_path / name, compression)
            with pytest.raises(SinkError, match=message):
                sink.create((3, 4, 5), np.dtype("f8"), "C")
        assert not list(tmp_path.iterdir())

    def test_what_is_read_again_is_compared(self, tmp_path, monkeypatch):
        sink = io.tiff.Sink(tmp_path / "x.tif", "zlib").create((3, 4, 5), np.dtype("u1"), "C")
        write = tifffile.TiffWriter.write
        monkeypatch.setattr(
            tifffile.TiffWriter, "write", lambda self, array, **k: write(self, array[:2], **k)
        )
        with pytest.raises(SinkError, match=r"was read again.*are kept in .*voxels, for"):
            sink.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["x.tif.voxels"]

    def test_compressed_files_are_not_written_in_place(self, tmp_path):
        path = written(tmp_path / "x.tif", numbered(3, 4, 5), compression="zlib")
        before = path.read_bytes()
        with pytest.raises(SinkError, match=r"cannot be written in place; give a new file"):
            io.as_sink(path)
        with pytest.raises(SinkError, match=r"x\.tif exists; pass overwrite=True"):
            io.tiff.Sink(path).check()
        assert path.read_bytes() == before


# --- sources in all flavours -------------------------------------------------------------------

STACK = numbered(5, 40, 50)
COLOURS = numbered(4, 30, 33, 3, dtype="u1")
PLANAR = np.ascontiguousarray(np.moveaxis(COLOURS, -1, 1))

FLAVOURS = {
    "big": (STACK, {"bigtiff": True}),
    "big-endian": (STACK, {"byteorder": ">"}),
    "big-endian zlib": (STACK, {"byteorder": ">", "compression": "zlib", "predictor": True}),
    "predictor": (STACK, {"compression": "zstd", "predictor": True, "rowsperstrip": 7}),
    "float predictor": (STACK.astype("f4"), {"compression": "zlib", "predictor": True}),
    "imagej": (STACK, {"imagej": True}),
    "hyperstack": (numbered(2, 3, 2, 8, 9), {"imagej": True, "metadata": {"axes": "TZCYX"}}),
    "ome": (STACK, {"ome": True, "metadata": {"axes": "ZYX"}}),
    "ome tiles": (STACK, {"ome": True, "tile": (16, 32), "compression": "zlib"}),
    "tiles": (STACK, {"tile": (16, 32)}),
    "volumes": (STACK, {"tile": (2, 16, 16), "volumetric": True, "compression": "zlib"}),
    "no metadata": (STACK, {"metadata": None}),
    "colours": (COLOURS, {"photometric": "rgb"}),
    "packed colours": (COLOURS, {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 8}),
    "planar": (PLANAR, {"photometric": "rgb", "planarconfig": "separate"}),
    "packed planar": (
        PLANAR,
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
    ),
    "bilevel": (STACK[0] > 100, {}),
    "12 bits": (STACK, {"bitspersample": 12}),
    "complex": (STACK.astype("c8"), {"compression": "zlib"}),
    "png": (STACK, {"compression": "png"}),
    "one axis": (numbered(7), {"photometric": None}),
    "one plane of three axes": (numbered(1, 1, 9), {"compression": "zlib"}),
}


def boxes(shape, count=6):
    """Return the whole of an array, and some parts of it."""
    yield Region.whole(shape)
    rng = np.random.default_rng(0)
    for _ in range(count):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
        yield Region(tuple(int(lo) for lo, _ in ends), tuple(int(hi) for _, hi in ends))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavours(tmp_path, flavour):
    array, options = FLAVOURS[flavour]
    if flavour == "12 bits" and tifffile.__version__ < "2025":
        pytest.skip("older codecs do not pack 12 bits")
    source = io.as_source(written(tmp_path / "x.tif", array, **options))
    assert (source.shape, source.dtype.newbyteorder("=")) == (array.shape, array.dtype)
    for region in boxes(array.shape):
        assert np.array_equal(source.read(region), array[region.slices])
        apart = np.zeros((*region.shape, 2), array.dtype)[..., 0]
        assert source.read(region, apart) is apart
        assert np.array_equal(apart, array[region.slices])
    assert np.array_equal(source[-1], array[-1])
    assert all(1 <= unit <= n for unit, n in zip(source.unit, array.shape, strict=True))


def test_byte_order_is_kept(tmp_path):
    assert io.as_source(written(tmp_path / "x.tif", STACK, byteorder=">")).dtype == ">u2"


def test_several_images_and_levels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(STACK, photometric="minisblack")
        file.write(STACK[0] > 9)
        file.write(COLOURS, photometric="rgb", compression="zlib")
    for number, array in enumerate((STACK, STACK[0] > 9, COLOURS)):
        source = pickle.loads(pickle.dumps(io.tiff.Source(tmp_path / "x.tif", series=number)))
        assert np.array_equal(source, array)
    with pytest.raises(SourceError, match=r"has 3 series \(5, 40, 50\), .*; there is no 3"):
        io.tiff.Source(tmp_path / "x.tif", series=3)
    path = tmp_path / "x.ome.tif"
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm"}
    with tifffile.TiffWriter(path) as file:
        file.write(STACK, subifds=1, tile=(16, 16), metadata={"axes": "ZYX", **size})
        file.write(STACK[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    source = io.tiff.Source(path, level=1)
    assert np.array_equal(source, STACK[:, ::2, ::2])
    assert source.metadata["spacing"] == (None, None, 1000.0)
    assert np.array_equal(pickle.loads(pickle.dumps(source)), source)
    with pytest.raises(SourceError, match=r"has 2 levels .*; there is no 2"):
        io.tiff.Source(path, level=2)


def test_metadata_of_other_writers(tmp_path):
    written(tmp_path / "x.tif", STACK, resolution=(2, 4), resolutionunit="CENTIMETER")
    metadata = io.as_source(tmp_path / "x.tif").metadata
    assert metadata == {"spacing": (None, 2500.0, 5000.0), "units": (None, "um", "um")}
    told = {"axes": "ZYX", "spacing": 3.0, "unit": "\\u00B5m"}
    written(tmp_path / "y.tif", STACK, imagej=True, resolution=(2, 4), metadata=told)
    metadata = io.as_source(tmp_path / "y.tif").metadata
    assert metadata["spacing"] == (3.0, 0.25, 0.5)
    assert metadata["units"] == ("um",) * 3
    written(tmp_path / "z.tif", STACK, imagej=True, metadata={"axes": "ZYX", "unit": "pixel"})
    assert io.as_source(tmp_path / "z.tif").metadata == {"axes": ("z", "y", "x")}


def test_objects_of_tifffile(tmp_path):
    path = written(tmp_path / "x.tif", STACK, compression="zlib")
    with tifffile.TiffFile(path) as file:
        for x in (file, file.series[0]):
            assert np.array_equal(io.as_source(x), STACK)
        with pytest.raises(ArgumentTypeError, match=r"a tifffile\.TiffPage is no source"):
            io.as_source(file.pages[0])


@settings(max_examples=60)
@given(data=st.data())
def test_segments_are_taken_apart_and_put_together(data):
    page = [data.draw(st.integers(1, 4)) for _ in range(5)]
    segment = [data.draw(st.integers(1, 5)) for _ in range(3)]
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2))
    tail = [n for n in page if n > 1]
    for _ in range(data.draw(st.integers(0, 2))):
        tail.insert(data.draw(st.integers(0, len(tail))), 1)
    shape = (*lead, *tail)
    paging = Paging(shape, tuple(page), tuple(segment))
    array = numbered(*shape, dtype="i8")
    stored = array.reshape(-1, *page)
    counts = [-(-n // m) for n, m in zip(page[1:4], segment, strict=True)]
    assert (paging.pages, paging.segments) == (len(stored), page[0] * np.prod(counts))
    ends = [sorted(data.draw(st.integers(0, n)) for _ in "ab") for n in shape]
    region = Region(tuple(lo for lo, _ in ends), tuple(hi for _, hi in ends))
    out = np.full(region.shape, -1)
    taken: set[tuple[int, int]] = set()
    for part in paging.parts(region):
        sample, *cell = np.unravel_index(part.segment, (page[0], *counts))
        start = [int(n) * m for n, m in zip(cell, segment, strict=True)]
        whole = tuple(slice(lo, lo + n) for lo, n in zip(start, segment, strict=True))
        voxels = stored[part.page, sample][whole]
        paging.unfolded(region, out)[part.target] = voxels[part.source]
        rows = (*segment, page[4])
        full = np.full(rows, -2)
        full[tuple(slice(n) for n in voxels.shape)] = voxels
        span = part.span(rows)
        again = part.of_span(full.ravel()[slice(*span)], rows)
        assert np.array_equal(again, voxels[part.source])
        taken.add((part.page, part.segment))
    assert np.array_equal(out, array[region.slices])
    unit = paging.unit
    touched = [len({i // u for i in range(lo, hi)}) for (lo, hi), u in zip(ends, unit, strict=True)]
    assert len(taken) == np.prod(touched)


def test_pages_that_make_no_array():
    with pytest.raises(PlanError, match="make no array of shape"):
        Paging((3, 4, 5), (1, 1, 5, 4, 1), (1, 5, 4))


@settings(max_examples=25)
@given(data=st.data())
def test_random_files(tmp_path_factory, data):
    shape = tuple(data.draw(st.integers(1, 40)) for _ in range(data.draw(st.integers(2, 4))))
    array = numbered(*shape, dtype=data.draw(st.sampled_from(["u1", "u2", "f4", ">i4"])))
    options = {
        "compression": data.draw(st.sampled_from([None, "zlib", "lzw", "packbits"])),
        "bigtiff": data.draw(st.booleans()),
        "metadata": data.draw(st.sampled_from([None, {}])),
    }
    if data.draw(st.booleans()):
        options["tile"] = data.draw(st.sampled_from([(16, 16), (32, 16)]))
    else:
        options["rowsperstrip"] = data.draw(st.integers(1, 50))
    path = tmp_path_factory.mktemp("random") / "x.tif"
    source = io.as_source(written(path, array, **options))
    shown = tifffile.imread(path)
    assert source.shape == shown.shape
    for region in boxes(shown.shape, 3):
        assert np.array_equal(source.read(region), shown[region.slices])


def test_only_what_a_region_touches_is_decoded(tmp_path):
    path = written(tmp_path / "x.tif", STACK, compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(path) as file:
        spoiled = [(3, 2), (4, 0)]
        places = [file.pages[page].dataoffsets[strip] for page, strip in spoiled]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = io.as_source(path)
    for region in (Region((0, 0, 0), (3, 40, 50)), Region((3, 30, 7), (5, 40, 9))):
        assert np.array_equal(source.read(region), STACK[region.slices])
    with pytest.raises(SourceError, match=r"segment 2 of page 3 of .*x\.tif is damaged"):
        source.read(Region((3, 29, 0), (4, 40, 1)))
    with pytest.raises(SourceError, match="segment 0 of page 4"):
        source.read(Region((4, 0, 0), (5, 1, 1)))


def test_a_plan_counts_what_is_decoded(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (8, 256, 256)).astype("u2")
    path = written(tmp_path / "x.tif", array, compression="zlib", rowsperstrip=128)
    strip = 128 * 256 * 2
    plan = gb.plan(np.negative, path, array, axes=0, size_max=1, executor="serial")
    assert plan.coding_bytes == 2 * strip
    planes = io.tiff.Sink(tmp_path / "planes/z<Z,1>.tif", compression="zlib")
    plan = gb.plan(np.negative, array, planes, size_max=1, executor="serial")
    assert plan.coding_bytes == 2 * 2 * strip


def test_several_threads_read(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (3, 256, 256)).astype("u2")
    source = io.as_source(written(tmp_path / "x.tif", array, compression="zlib", rowsperstrip=128))
    whole = Region.whole(array.shape)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(source.read, [whole] * 8):
            assert np.array_equal(found, array)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        place = file.pages[2].dataoffsets[1]
    data[place : place + 50] = b"\xff" * 50
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(SourceError, match="segment 1 of page 2"):
        io.as_source(tmp_path / "x.tif").read(whole)


def test_tiles_that_were_not_written_are_empty(tmp_path):
    tiles = (None if n % 2 else np.full((16, 16), 7, "u1") for n in range(4))
    tifffile.imwrite(tmp_path / "x.tif", tiles, shape=(32, 32), dtype="u1", tile=(16, 16))
    source = io.as_source(tmp_path / "x.tif")
    assert np.array_equal(source, np.repeat([[7, 0]], 16, axis=1).repeat(32, 0))


def test_files_that_change(tmp_path):
    path = written(tmp_path / "x.tif", STACK, compression="zlib")
    source, sent = io.as_source(path), pickle.dumps(io.as_source(path))
    source.verify()
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match=r"x\.tif changed"):
        source.verify()
    written(tmp_path / "y.tif", STACK, compression="zlib")
    os.replace(tmp_path / "y.tif", path)
    for one in (source, pickle.loads(sent)):
        with pytest.raises(SourceError, match="was replaced by another file"):
            one.read(Region.whole(STACK.shape))
    source = io.as_source(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SourceError, match="truncated"):
        source.read(Region.whole(STACK.shape))


# --- series ------------------------------------------------------------------------------------


def test_one_axis_for_each_placeholder(tmp_path):
    array = numbered(3, 2, 4, 5)
    for z, c in product(range(3), range(2)):
        written(tmp_path / f"img_Z{z + 9:04d}_C{c}.tif", array[z, c])
    source = io.as_source(tmp_path / "img_Z<Z,4>_C<C>.tif")
    assert source.metadata == {"axes": ("z", "c", "y", "x")}
    assert np.array_equal(source, array)
    assert np.array_equal(
        io.as_source(tmp_path / "img_Z<Z,4>_C01.tif".replace("01", "1")), array[:, 1]
    )
    for region in boxes(array.shape):
        assert np.array_equal(source.read(region), array[region.slices])
    (tmp_path / "img_Z0010_C1.tif").unlink()
    with pytest.raises(SourceError, match=r"1 of 6 planes of .* are missing, first .*Z0010_C1"):
        io.as_source(tmp_path / "img_Z<Z,4>_C<C>.tif")


def test_numbers_in_names_of_folders_and_twice(tmp_path):
    for c in range(2):
        planes(tmp_path / f"C{c}", numbered(3, 4, 5) + c, f"C{c}_{{}}.tif")
    source = io.as_source(tmp_path / "C<C,1>" / "C<C,1>_<Z,1>.tif")
    assert source.shape == (2, 3, 4, 5)
    assert np.array_equal(source[1], numbered(3, 4, 5) + 1)


def test_wildcards_are_sorted_by_number(tmp_path):
    folder = planes(tmp_path / "UltraII[00 x 00]", numbered(12, 4, 5), "p{}.tif")
    (folder / "notes.txt").write_text("")
    source = io.as_source(folder / "*.tif")
    assert np.array_equal(source, numbered(12, 4, 5))
    assert np.array_equal(io.as_source(folder / "p?.tif"), numbered(12, 4, 5)[:10])
    assert io.as_source(folder / "p<Z>.tif").shape == (12, 4, 5)


def test_names_that_only_look_like_patterns(tmp_path):
    path = written(tmp_path / "<Z,4>*.tif", STACK)
    assert io.as_source(path).name == "Tiff-Source"


@pytest.mark.parametrize("pattern", ["img_Z<Z,4>.tif", "*.tif"])
def test_all_files_are_alike(tmp_path, pattern):
    planes(tmp_path, numbered(3, 40, 50))
    odd = tmp_path / "img_Z0001.tif"
    for array in (numbered(40, 49), numbered(40, 50, dtype="i2"), numbered(2, 40, 50)):
        written(odd, array)
        with pytest.raises(SourceError, match=r"Z0001\.tif is of shape .*but .*Z0000\.tif"):
            io.as_source(tmp_path / pattern)
    odd.write_bytes(odd.read_bytes()[:2000])
    with pytest.raises(SourceError, match=r"Z0001\.tif (is truncated|holds)"):
        io.as_source(tmp_path / pattern)
    odd.unlink()
    for other in tmp_path.iterdir():
        other.unlink()
    with pytest.raises(SourceError, match="no files match"):
        io.as_source(tmp_path / pattern)


def test_series_that_change(tmp_path):
    planes(tmp_path, numbered(3, 40, 50))
    source, sent = (io.as_source(tmp_path / "*.tif") for _ in "ab")
    sent = pickle.dumps(sent)
    source.verify()
    os.utime(tmp_path / "img_Z0001.tif", ns=(1, 1))
    with pytest.raises(SourceError, match="changed"):
        source.verify()
    with pytest.raises(SinkError, match="not written in place"):
        io.tiff.Source(tmp_path / "*.tif", writable=True)
    written(tmp_path / "img_Z0003.tif", numbered(40, 50))
    with pytest.raises(SourceError, match="were added or removed"):
        pickle.loads(sent).read(Region((0, 0, 0), (1, 1, 1)))
    (tmp_path / "img_Z0003.tif").unlink()
    written(tmp_path / "img_Z0002.tif", numbered(40, 51))
    received = pickle.loads(sent)
    assert received.read(Region((0, 0, 0), (2, 40, 50))).shape == (2, 40, 50)
    with pytest.raises(SourceError, match=r"img_Z0002\.tif became"):
        received.read(Region((2, 0, 0), (3, 1, 1)))


OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="50" SizeY="40"
SizeZ="3" SizeC="1" SizeT="1" PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="1">
<Channel ID="Channel:0" SamplesPerPixel="1"/>{places}</Pixels></Image></OME>"""
PLACE = """<TiffData IFD="0" FirstZ="{z}" PlaneCount="1">
<UUID FileName="x_Z{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>"""


@pytest.mark.parametrize("known", [True, False])
def test_ome_images_of_several_files(tmp_path, known):
    places = "".join(PLACE.format(z=z) for z in range(3)) if known else "<TiffData/>"
    for z in range(3):
        description = OME.format(own=z, places=places)
        path = tmp_path / f"x_Z{z}.ome.tif"
        written(path, STACK[z], description=description, metadata=None)
    with pytest.raises(SourceError, match=r"announces 3 planes, 1 are readable.*give a pattern"):
        io.as_source(tmp_path / "x_Z0.ome.tif")
    source = io.as_source(tmp_path / "x_Z<Z,1>.ome.tif")
    assert np.array_equal(source, STACK[:3])
    assert source.metadata["spacing"] == (None, 1.0, 0.5)


@settings(max_examples=40)
@given(data=st.data())
def test_names_of_planes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("names")
    text = st.text("ab[]*?.-_% <>,", max_size=3)
    digits = [data.draw(st.sampled_from([None, 1, 3])) for _ in range(data.draw(st.integers(1, 2)))]
    pattern = data.draw(text)
    for name, count in zip("ZC", digits, strict=False):
        pattern += f"<{name}>" if count is None else f"<{name},{count}>"
        pattern += "x" + data.draw(text)
    start = tuple(data.draw(st.integers(0, 4)) for _ in digits)
    counts = tuple(data.draw(st.integers(1, 5)) for _ in digits)
    files = Numbering(str(folder / pattern), start, counts)
    for path in files.paths():
        with open(path, "wb"):
            pass
        assert files.holds(path)
    with open(folder / "other", "wb"):
        pass
    assert find_planes(str(folder / pattern)) == (files.paths(), counts)


# --- damaged and hostile files -------------------------------------------------------------------


def cut_chain(path, pages):
    """Let a little-endian file end after so many pages, as a killed writer may leave it."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[pages - 1].offset
    data = bytearray(path.read_bytes())
    end = offset + 2 + 12 * int.from_bytes(data[offset : offset + 2], "little")
    data[end : end + 4] = bytes(4)
    path.write_bytes(data)


KINDS = {
    "shaped": {},
    "packed": {"compression": "zlib"},
    "ome": {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}},
    "ome plain": {"ome": True, "metadata": {"axes": "ZYX"}},
    "imagej": {"imagej": True},
    "imagej packed": {"imagej": True, "compression": "zlib"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_row_76_truncated(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 60_000, (12, 20, 30)).astype("u2")
    path = written(tmp_path / "x.tif", noise, **KINDS[kind])
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(SourceError, match=r"x\.tif (is truncated|holds .* data bytes)"):
            io.as_source(path)


@pytest.mark.parametrize("pages", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_row_76_a_writer_that_was_killed(tmp_path, kind, pages):
    path = written(tmp_path / "x.tif", numbered(12, 20, 30), **KINDS[kind])
    cut_chain(path, pages)
    if kind in ("shaped", "imagej"):
        assert np.array_equal(io.as_source(path), numbered(12, 20, 30))
        return
    with pytest.raises(SourceError, match=f"announces 12 planes, {pages} are readable"):
        io.as_source(path)


def test_row_76_a_stack_that_imagej_did_not_complete(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for n, plane in enumerate(STACK):
            told = None if n else "ImageJ=1.52\nimages=12\nslices=12\n"
            file.write(plane, contiguous=False, metadata=None, description=told)
    with pytest.raises(SourceError, match="announces 12 planes, 5 are readable"):
        io.as_source(tmp_path / "x.tif")


KILLED = """
import os, sys, tifffile, numpy as np
def pages():
    for n in range(12):
        if n == 7:
            file.flush()
            os.kill(os.getpid(), 9)
        yield np.random.default_rng(n).integers(0, 60000, (40, 50)).astype("u2")
with open(sys.argv[1], "wb") as file:
    options = eval(sys.argv[2])
    tifffile.imwrite(file, pages(), shape=(12, 40, 50), dtype="u2", **options)
"""


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "maxworkers": 1}])
def test_row_76_killed_in_fact(tmp_path, options):
    given = {"photometric": "minisblack", **options}
    process = start(KILLED, tmp_path / "x.tif", repr(given))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SourceError, match="truncated"):
        io.as_source(tmp_path / "x.tif")


def claims(width, height, rows, compression=8, count=50, bits=8):
    """Return a TIFF file of 300 bytes that claims to be an image."""
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1}
    tags |= {273: 200, 277: 1, 278: rows, 279: count}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return (b"II*\0\x08\0\0\0" + directory).ljust(300, b"\0")


BAD_FILES = {
    "empty": (b"", "is not a TIFF file .is empty."),
    "garbage": (b"garbage", "is not a TIFF file .starts with b'garbage'."),
    "png": (b"\x89PNG", "is not a TIFF file"),
    "half a header": (b"II*\0", "is not a TIFF file"),
    "a header": (b"II*\0\x08\0\0\0", "only 0 of its pages are readable"),
    "a header of BigTIFF": (b"MM\0\x2b\0\x08\0\0" + bytes(7) + b"\x10", "only 0 of its pages"),
    "no pages": (b"II*\0\0\0\0\0", "has no pages"),
    "no tags": (b"II*\0\x08\0\0\0" + bytes(100), "only 0 of its pages are readable"),
    "one strip of 10^12 voxels": (claims(10**6, 10**6, 10**6), "300 B claims .* of 1 TB"),
    "more than codecs pack": (claims(10**4, 10**4, 10**4), "claims strips or tiles of 100 MB"),
    "the same as JPEG": (claims(10**6, 10**6, 10**6, 7), "claims strips or tiles of 1 TB"),
    "the same as it is": (claims(10**6, 10**6, 10**6, 1), "100 of 1000000000000 data bytes"),
    "10^6 strips": (claims(10**6, 10**6, 1), "page 0 has 1 of 1000000 strips"),
    "the largest of all": (claims(2**32 - 1, 2**32 - 1, 2**32 - 1), "claims strips or tiles"),
    "a strip beyond the end": (claims(10, 10, 10, 8, 10**6), "page 0 goes beyond its end"),
    "a compression that is not": (claims(10, 10, 10, 4711), "no usable TIFF file: .*4711"),
    "voxels of 5000 bits": (claims(10, 10, 10, 1, bits=5000), "kind that is not supported"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path, kind):
    content, message = BAD_FILES[kind]
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        io.as_source(path)
    with pytest.raises(SinkError):
        io.as_sink(path)
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_pages_that_lead_back(tmp_path):
    page = claims(4, 4, 4)[8:122]
    chain = [page[:-4] + struct.pack("<I", 8 + (n + 1) % 150 * len(page)) for n in range(150)]
    (tmp_path / "x.tif").write_bytes(b"II*\0\x08\0\0\0" + b"".join(chain))
    with pytest.raises(SourceError, match="page 150 leads back to another one"):
        io.as_source(tmp_path / "x.tif")


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzw", "lzma", "packbits", "png"])
def test_strips_that_are_bombs_or_garbage(tmp_path, compression):
    """What a strip decodes to is limited by what it claims to be."""
    from tracemalloc import get_traced_memory, start, stop

    large = np.zeros((4000, 4000), "u1")
    written(tmp_path / "large.tif", large, compression=compression, rowsperstrip=4000)
    with tifffile.TiffFile(tmp_path / "large.tif") as file:
        page = file.pages[0]
        data = (tmp_path / "large.tif").read_bytes()[page.dataoffsets[0] :][
            : page.databytecounts[0]
        ]
        number = int(page.compression)
    for content in (data, bytes(range(256)) * 2):
        head = claims(100, 100, 100, number, len(content))
        (tmp_path / "x.tif").write_bytes(head[:200] + content)
        source = io.as_source(tmp_path / "x.tif")
        start()
        try:
            with pytest.raises(SourceError, match=r"segment 0 of page 0 of .*x\.tif is damaged"):
                source.read(Region.whole((100, 100)))
        except pytest.fail.Exception:
            assert source.read(Region.whole((100, 100))).shape == (100, 100)
        peak = get_traced_memory()[1]
        stop()
        assert peak < 2_000_000 or compression == "png"


IMAGES = ["jpeg", "jpeg2000", "webp", "jpegxl", "jpegxr", "png", "lerc", "jpeg_2000_lossy"]


def stored_as(path, array, compression):
    """Return the bytes of the only strip of an image, and the number of its codec."""
    options = {"photometric": "rgb"} if array.shape[-1] in (3, 4) else {}
    options |= {"extrasamples": ["unassalpha"]} if array.shape[-1] == 4 else {}
    written(path, array, compression=compression, rowsperstrip=array.shape[0], **options)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert len(page.dataoffsets) == 1
        data = path.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]
        return data, int(page.compression)


@pytest.mark.parametrize("compression", IMAGES)
def test_images_tell_how_large_they_are(tmp_path, compression):
    tried = 0
    for shape, dtype, samples in product([(1, 5), (61, 97)], ["u1", "u2", "f4"], [1, 3, 4]):
        array = (np.arange(np.prod(shape) * samples) % 99).reshape(*shape, samples).astype(dtype)
        array = array[..., 0] if samples == 1 else array
        try:
            data, codec = stored_as(tmp_path / "x.tif", array, compression)
        except (ValueError, TypeError):
            continue
        assert array.size <= declared_samples(data, codec) <= 5 * array.size
        source = io.as_source(tmp_path / "x.tif")
        assert source.read(Region.whole(array.shape)).shape == array.shape
        tried += 1
    assert tried > 1


@pytest.mark.parametrize("compression", IMAGES)
def test_images_that_are_bombs(tmp_path, compression):
    """What an image claims to be is compared with the room for it before it is decoded."""
    large = np.zeros((1000, 1000, 3) if compression == "webp" else (1000, 1000), "u1")
    data, codec = stored_as(tmp_path / "large.tif", large, compression)
    head = claims(100, 100, 100, codec, len(data))
    (tmp_path / "x.tif").write_bytes(head[:200] + data)
    with pytest.raises(SourceError, match=r"segment 0 of page 0 .* claims \d+ samples, and has"):
        io.as_source(tmp_path / "x.tif").read(Region.whole((100, 100)))
    for damaged in (data[:4], b"", bytes(range(256)) * 9, b"\xff" * 99):
        with pytest.raises(ValueError, match="does not say how many samples"):
            declared_samples(damaged, codec)


@settings(max_examples=300)
@given(codec=st.sampled_from([7, 33003, 34712, 34887, 34933, 34934, 50001, 50002]), data=st.data())
def test_any_bytes_say_a_size_or_not(codec, data):
    start = data.draw(st.sampled_from(BEGINNINGS))
    with suppress(ValueError):
        assert declared_samples(start + data.draw(st.binary(max_size=80)), codec) >= 0


BEGINNINGS = [
    b"",
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0jxlc\xff\x0a",
    b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0jp2c\xff\x4f\xff\x51",
    b"\xff\x0a",
    b"RIFF1234WEBPVP8X",
    b"RIFF1234WEBPVP8 ",
    b"II\xbc\x01\x08\0\0\0",
    b"Lerc2 \4\0\0\0",
    b"\x89PNG\r\n\x1a\n1234IHDR",
]


def test_images_that_move_are_none():
    # 8 x 8 pixels; not all is default, there are extra fields, and an animation among them.
    header = 1 | 1 << 6 | (1 << 1 | 1 << 7) << 9
    with pytest.raises(ValueError, match="a preview or an animation"):
        declared_samples(b"\xff\x0a" + header.to_bytes(20, "little"), 50002)


def test_strips_of_too_many_bytes(tmp_path):
    (tmp_path / "x.tif").write_bytes(claims(10, 10, 10, 8, 2_000_000) + bytes(2_000_000))
    with pytest.raises(SourceError, match="2000000 bytes are too many"):
        io.as_source(tmp_path / "x.tif").read(Region((0, 0), (1, 1)))


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_headers_never_surprise(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.tif"
    kind = data.draw(st.sampled_from([{}, {"compression": "zlib"}, {"tile": (16, 16)}]))
    written(path, numbered(2, 20, 30), **kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        source = io.as_source(path)
    except SourceError:
        return
    # One that claims some megabytes may be right, until its strips are decoded.
    ends = [min(n, 100) for n in source.shape]
    with suppress(SourceError):
        source.read(Region((0,) * len(ends), tuple(ends)))


@pytest.mark.parametrize("library", ["tifffile", "imagecodecs"])
def test_missing_libraries(tmp_path, monkeypatch, library):
    path = written(tmp_path / "x.tif", STACK, compression="zlib")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SourceError, match=rf"needs {library}: pip install 'gpublocks\[tiff\]'"):
        io.as_source(path)
    with pytest.raises(SinkError, match=f"needs {library}"):
        io.tiff.Sink(tmp_path / "y.tif", compression="zlib").check()


def test_nothing_is_printed(tmp_path):
    path = written(tmp_path / "x.tif", STACK, compression="zlib")
    cut_chain(path, 2)
    code = (
        "import sys\nfrom gpublocks import io\ntry: io.as_source(sys.argv[1])\nexcept OSError: pass"
    )
    process = start(code, path)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


# --- other tools -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("name", ["x.ome.tif", "planes/z<Z,1>.ome.tif"])
def test_what_ome_tiff_cannot_hold_is_known_before_all_blocks(tmp_path, compression, name):
    for array in (numbered(4, 8, 8, dtype="i8"), numbered(4, 8, 8, dtype="f2")):
        blocks = []

        def note(block, blocks=blocks):
            blocks.append(block)
            return block

        sink = io.tiff.Sink(tmp_path / name, compression=compression)
        with pytest.raises(SinkError, match=r"OME-TIFF has no voxels of type (int64|float16)"):
            gb.process(note, array, sink, size_max=1, overlap=0, executor="serial")
        assert len(blocks) < 2
    assert list(tmp_path.iterdir()) == []


def test_voxels_that_cannot_be_packed_are_kept_and_the_next_run_goes_on(tmp_path, monkeypatch):
    sink = io.tiff.Sink(tmp_path / "x.tif", compression="zlib")
    given = {"overlap": 0, "size_max": 2, "executor": "serial"}
    with monkeypatch.context() as patch:
        patch.setattr(tiff, "_save", fail_to_save)
        with pytest.raises(
            SinkError, match=r"in .*x\.tif\.voxels, for (io.raw.Source.*)$"
        ) as caught:
            gb.process(np.negative, STACK, sink, **given)
    # As it is told there.
    advice = str(caught.value).rpartition("for ")[2]
    kept = eval(advice, {"io": io, "path": tmp_path / "x.tif.voxels"})
    assert np.array_equal(kept, -STACK)
    gb.process(np.negative, STACK, sink, **given)
    assert np.array_equal(io.as_source(tmp_path / "x.tif"), -STACK)
    assert np.array_equal(kept, -STACK)


def fail_to_save(*_, **__):
    """Stand for a library that finds something wrong with all voxels."""
    raise ValueError("not like this")


def tool(*command):
    """Run a program and return what it says; skip the test where there is none."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"ome": True}], ids=str
)
def test_libtiff_and_vips_read_what_we_write(tmp_path, options):
    path = tmp_path / "x.tif"
    TestSinkOptions().write(path, STACK, metadata=ZYX, **options)
    assert tool("tiffinfo", path).count("Image Width: 50 Image Length: 40") == 5
    for page in (0, 4):
        average = float(tool("vips", "avg", f"{path}[page={page}]"))
        assert average == pytest.approx(STACK[page].mean(), abs=1e-5)


def test_we_read_what_libtiff_and_vips_write(tmp_path):
    path = written(tmp_path / "x.tif", STACK, metadata=None)
    tool("tiffcp", "-B", "-c", "lzw:2", "-t", "-w", "16", "-l", "16", path, tmp_path / "tiles.tif")
    assert np.array_equal(io.as_source(tmp_path / "tiles.tif"), STACK)
    tool("tiffcp", "-8", "-r", "7", path, tmp_path / "strips.tif")
    assert np.array_equal(io.as_source(tmp_path / "strips.tif"), STACK)
    made = f"{tmp_path}/vips.tif[tile,tile-width=16,tile-height=16,pyramid,compression=deflate]"
    tool("vips", "copy", path, made)
    assert np.array_equal(io.as_source(tmp_path / "vips.tif"), STACK[0])
    level = io.tiff.Source(tmp_path / "vips.tif", level=1)
    assert level.shape == (20, 25)
