"""HDF5 files keep the contract, are those of h5py, and damaged or hostile ones are refused."""

import ctypes
import glob
import io as streams
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from typing import ClassVar

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import (
    ArgumentTypeError,
    GpublocksError,
    PlanError,
    SinkError,
    SourceError,
)
from gpublocks.formats.hdf5 import dataset_files, datasets, deflating
from gpublocks.geometry import Region
from tests.contracts.headed import NewFileContract
from tests.contracts.sources import (
    REGIONS,
    NewSinkContract,
    SinkContract,
    SourceContract,
    reference,
    start,
)

GZIP = {"chunks": (2, 4, 3), "compression": "gzip", "shuffle": True}


def written(path, array, name="data", **options):
    """Write a dataset into a file and return the path."""
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=array, **options)
    return path


def read(path, name="data"):
    """Return what h5py reads."""
    with h5py.File(path) as file:
        return file[name][...]


def smooth(voxels):
    return ndimage.uniform_filter(voxels, 3)


class SlowestFirst(SourceContract):
    """HDF5 knows C order only."""

    name = "Hdf5-Source"
    reach = Reach.MACHINE

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param


class TestContiguous(SinkContract, SlowestFirst):
    def make(self, array, folder):
        return io.as_sink(f"{written(folder / 'x.h5', array, 'a/b')}:/a/b")

    def test_h5py_sees_what_is_written(self, source):
        source.write(REGIONS[0], np.zeros(source.shape))
        source.sync()
        assert not read(source.location, "a/b").any()

    def test_is_mapped(self, source):
        assert isinstance(source.array, np.ndarray)
        assert source.extent.start >= 1024


class TestUserBlock(SlowestFirst):
    """As in MAT files, which begin with a block that is not HDF5's."""

    def make(self, array, folder):
        with h5py.File(folder / "x.mat", "w", userblock_size=512) as file:
            file["data"] = array
        return io.as_source(folder / "x.mat")


class TestGzip(SlowestFirst):
    def make(self, array, folder):
        return io.as_source(written(folder / "x.hdf5", array, **GZIP))

    def test_units_are_chunks(self, source):
        assert source.unit == (2, 4, 3)


class TestNewestVersion(SlowestFirst):
    def make(self, array, folder):
        with h5py.File(folder / "x.h5", "w", libver="latest") as file:
            file.create_dataset("data", data=array, **GZIP)
        return io.as_source(folder / "x.h5")


class TestPlainChunks(SlowestFirst):
    def make(self, array, folder):
        return io.as_source(written(folder / "x.h5", array, chunks=(2, 4, 3)))


class TestLzf(SlowestFirst):
    def make(self, array, folder):
        return io.as_source(written(folder / "x.h5", array, chunks=(2, 4, 3), compression="lzf"))


class TestObject(SlowestFirst):
    @pytest.fixture(params=[{}, GZIP], ids=["plain", "gzip"])
    def options(self, request):
        return request.param

    @pytest.fixture(autouse=True)
    def _files(self, options):
        self.options, self.files = options, []
        yield
        for file in self.files:
            file.close()

    def make(self, array, folder):
        self.files.append(h5py.File(written(folder / "x.h5", array, "a/b", **self.options)))
        return io.as_source(self.files[-1]["a/b"])


class OneWriter(SinkContract, SlowestFirst):
    """Sinks that pass through the library, in this process."""

    reach = Reach.PROCESS

    def test_is_a_sink(self, source):
        assert source.writable is True
        assert source.single_writer is True


class TestChunkedSink(OneWriter):
    def make(self, array, folder):
        return io.as_sink(written(folder / "x.h5", array, **GZIP))

    def test_what_is_written_is_in_the_file_at_once(self, source):
        source.write(REGIONS[0], np.zeros(source.shape))
        assert not read(source.location).any()
        with h5py.File(source.location, "r+") as file:
            file["data"][...] = 1
        assert source.read(REGIONS[1]).all()

    def test_casts_as_numpy_does_and_not_as_hdf5(self, tmp_path):
        sink = io.as_sink(written(tmp_path / "x.h5", np.zeros((4, 4), "u1"), chunks=(2, 2)))
        sink.write(Region((0, 0), (1, 4)), np.array([[-1, 256, 300, 7]]))
        assert sink[0].tolist() == [255, 0, 44, 7]

    def test_others_read_the_file_when_it_is_finished(self, source):
        other = io.as_source(source.location)
        assert other.reach == Reach.PROCESS
        source.finish()
        assert other.reach == Reach.MACHINE
        source.write(REGIONS[1], np.zeros(REGIONS[1].shape))
        assert other.reach == Reach.PROCESS


class TestUnallocatedSink(OneWriter):
    def make(self, array, folder):
        with h5py.File(folder / "x.h5", "w") as file:
            file.create_dataset("data", array.shape, array.dtype)
        sink = io.as_sink(folder / "x.h5")
        sink.write(REGIONS[0], array)
        return sink


class TestObjectSink(OneWriter):
    @pytest.fixture(autouse=True)
    def _files(self):
        self.files = []
        yield
        for file in self.files:
            file.close()

    def make(self, array, folder):
        self.files.append(h5py.File(folder / "x.h5", "w"))
        return io.as_sink(self.files[-1].create_dataset("data", data=array))

    def test_the_object_sees_what_is_written(self, source):
        source.write(REGIONS[0], np.zeros(source.shape))
        assert not self.files[0]["data"][...].any()


class NewHdf5(NewFileContract):
    kind = io.hdf5.Sink
    suffix = ".h5"
    orders = "CC"
    dtypes = ("?", "u1", "i2", "f2", ">f4", "f8", "c8")

    def read(self, path, array):
        return read(path)

    @pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "O", [("a", "f4")]])
    def test_types_that_it_has_not(self, tmp_path, dtype):
        with pytest.raises(ArgumentTypeError, match="cannot be stored in an HDF5 file"):
            self.make(tmp_path).create((2, 3), np.dtype(dtype), "C")
        assert list(tmp_path.iterdir()) == []

    def test_h5dump_reads_it(self, tmp_path):
        if shutil.which("h5dump") is None:
            pytest.skip("needs h5dump")
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("i4"), "C")
        sink.write(REGIONS[0], reference())
        sink.finish()
        command = ["h5dump", "-d", "/data", "-y", "-w", "0", "-m", "%d", tmp_path / "new.h5"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        numbers = said.partition("DATA {")[2].partition("}")[0].replace(",", " ").split()
        assert [int(n) for n in numbers] == list(range(210))


class TestNewContiguous(NewHdf5):
    def test_voxels_begin_at_a_page(self, tmp_path):
        sink = self.make(tmp_path).create((300, 300), np.dtype("f8"), "C")
        sink.finish()
        with h5py.File(tmp_path / "new.h5") as file:
            assert file["data"].id.get_offset() % 4096 == 0
            assert file["data"].chunks is None

    @pytest.mark.parametrize("name", ["x" * 3000, "/".join("abcdefghijklmnopqrstuvwxyz"), "ä/ö x"])
    def test_any_name(self, tmp_path, name):
        sink = io.as_sink(f"{tmp_path}/new.h5:/{name}").create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        sink.finish()
        assert np.array_equal(read(tmp_path / "new.h5", name), reference())
        assert np.array_equal(np.asarray(io.as_source(f"{tmp_path}/new.h5:{name}")), reference())


class TestNewGzip(NewHdf5):
    options: ClassVar = {"compression": "gzip"}

    def test_is_compressed(self, tmp_path):
        sink = self.make(tmp_path).create((100, 200, 90), np.dtype("f4"), "C")
        sink.finish()
        with h5py.File(tmp_path / "new.h5") as file:
            data = file["data"]
            assert (data.compression, data.shuffle, data.chunks) == ("gzip", True, (50, 50, 90))
        assert os.path.getsize(tmp_path / "new.h5") < 100_000

    def test_h5repack_reads_it(self, tmp_path):
        if shutil.which("h5repack") is None:
            pytest.skip("needs h5repack")
        sink = self.make(tmp_path, chunks=(2, 4, 3)).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        sink.finish()
        other = tmp_path / "other.h5"
        subprocess.run(["h5repack", "-f", "NONE", tmp_path / "new.h5", other], check=True)
        assert np.array_equal(read(other), reference())


class SlowestFirstSink(NewSinkContract):
    @pytest.mark.parametrize("order", ["C"])
    def test_what_is_written_is_there_when_finished(self, tmp_path, order):
        super().test_what_is_written_is_there_when_finished(tmp_path, order)


class TestNewLzf(SlowestFirstSink):
    def make(self, folder):
        return io.hdf5.Sink(folder / "new.h5", compression="lzf")


class TestNewChunks(SlowestFirstSink):
    def make(self, folder):
        return io.hdf5.Sink(folder / "new.h5", chunks=(2, 100, 3))

    @pytest.mark.parametrize("shape", [(3, 0, 2)])
    def test_an_empty_sink(self, tmp_path, shape):
        super().test_an_empty_sink(tmp_path, shape)

    def test_chunks_that_do_not_fit(self, tmp_path):
        new = self.make(tmp_path)
        with pytest.raises(PlanError, match=r"chunks \(2, 100, 3\) have 3 axes, the array 2"):
            new.units((5, 6), np.dtype("f4"))
        with pytest.raises(PlanError, match="take 4 GB or more each"):
            io.hdf5.Sink(new.location, chunks=(1 << 20, 1 << 20)).create(
                (1 << 21, 1 << 21), np.dtype("u1"), "C"
            )
        for wrong in (0, (0, 1), "ab", ()):
            with pytest.raises(SinkError, match="chunks is"):
                io.hdf5.Sink(new.location, chunks=wrong)


@st.composite
def stored(draw):
    """Draw an array, how it is stored, and a region of it."""
    shape = draw(hnp.array_shapes(max_dims=4, max_side=9))
    dtype = np.dtype(draw(st.sampled_from(["?", "u1", "i2", ">u4", "f4", "c8"])))
    array = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 2, shape) * 77
    options = {
        "chunks": tuple([draw(st.integers(1, n)) for n in shape]),
        "compression": draw(st.sampled_from([None, "gzip", "gzip", "lzf"])),
        "shuffle": draw(st.booleans()),
        "fletcher32": draw(st.sampled_from([False, False, True])),
    }
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    region = Region(tuple([lo for lo, _ in ends]), tuple([hi for _, hi in ends]))
    return array.astype(dtype), options, region


class TestProperties:
    @settings(max_examples=60)
    @given(given=stored(), into=st.sampled_from(["C", "F", "f8", None]))
    def test_any_region_of_any_chunks(self, tmp_path_factory, given, into):
        array, options, region = given
        path = tmp_path_factory.mktemp("any") / "x.h5"
        source = io.as_source(written(path, array, **options))
        out = None
        if into is not None:
            dtype = array.dtype if into in "CF" or array.dtype.kind == "c" else np.dtype(into)
            out = np.empty(region.shape, dtype, order=into if into in "CF" else "C")
        found = source.read(region, out)
        assert out is None or found is out
        assert np.array_equal(found, array[region.slices])
        assert found.flags.writeable

    @settings(max_examples=40)
    @given(given=stored())
    def test_any_chunks_are_packed(self, tmp_path_factory, given):
        array, options, _ = given
        path = tmp_path_factory.mktemp("any") / "x.h5"
        new = io.hdf5.Sink(path, chunks=options["chunks"], compression=options["compression"])
        sink = new.create(array.shape, array.dtype, "C")
        sink.write(Region.whole(array.shape), array)
        sink.finish()
        assert np.array_equal(read(path), array)
        with h5py.File(path) as file:
            assert file["data"].chunks == options["chunks"]
            assert file["data"].compression == options["compression"]

    @settings(max_examples=40)
    @given(given=stored(), data=st.data())
    def test_any_slicing_of_a_sink(self, tmp_path_factory, given, data):
        array, options, _ = given
        path = tmp_path_factory.mktemp("any") / "x.h5"
        sink = io.as_sink(written(path, array, **options))
        part = data.draw(hnp.basic_indices(array.shape, allow_newaxis=False, allow_ellipsis=True))
        assert np.array_equal(sink[part], array[part])
        sink[part] = array[part] = 1
        assert np.array_equal(read(path), array)

    @settings(max_examples=60)
    @given(
        voxels=hnp.arrays(
            st.sampled_from([np.dtype(t) for t in ("u1", ">i2", "f4", "c16")]),
            hnp.array_shapes(max_dims=3, max_side=6),
        ),
        more=st.integers(0, 2),
        skipped=st.sampled_from([0, 1]),
    )
    def test_deflating_is_undone(self, voxels, more, skipped):
        shape = tuple([n + more for n in voxels.shape])
        nbytes = int(np.prod(shape)) * voxels.itemsize
        data = deflating.deflated(voxels, shape)
        filters = (deflating.SHUFFLE, deflating.DEFLATE)
        found = deflating.inflated(data, filters, 0, nbytes, voxels.itemsize)
        whole = np.frombuffer(found, voxels.dtype).reshape(shape)
        assert whole[tuple(map(slice, voxels.shape))].tobytes() == voxels.tobytes()
        if skipped:
            plain = zlib.decompress(data)
            assert bytes(deflating.inflated(data, filters, 1, nbytes, voxels.itemsize)) == plain
            assert bytes(deflating.inflated(plain, filters, 3, nbytes, voxels.itemsize)) == plain


TYPES = ["?", "i1", "u2", ">i4", "i8", "f2", "f4", ">f8", "g", "c8", ">c16"]


class TestTypes:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("options", [{}, {**GZIP, "chunks": (2, 4)}], ids=["plain", "gzip"])
    def test_numbers(self, tmp_path, dtype, options):
        array = (np.arange(30).reshape(5, 6) % 7 - 3).astype(dtype)
        source = io.as_source(written(tmp_path / "x.h5", array, **options))
        found = np.asarray(source)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)

    def test_numbers_that_lie_otherwise_in_the_file(self, tmp_path):
        array = np.arange(30, dtype="u2").reshape(5, 6)
        kind = h5py.h5t.NATIVE_UINT16.copy()
        kind.set_precision(12)
        kind.set_offset(2)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            space = h5py.h5s.create_simple(array.shape)
            deflated = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            deflated.set_chunk((2, 3))
            deflated.set_deflate(4)
            for name, options in ((b"odd", None), (b"cut", deflated)):
                made = h5py.h5d.create(file.id, name, kind, space, options)
                made.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
            file["enum"] = array.astype(h5py.enum_dtype({f"{n}" * 20: n for n in range(99)}, "u2"))
        for name in ("odd", "cut", "enum"):
            source = io.as_source(f"{tmp_path}/x.h5:{name}")
            assert source.dtype == np.uint16
            assert np.array_equal(np.asarray(source), array)
            assert len(pickle.dumps(source)) < 1000

    def test_voxels_that_nobody_wrote(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("late", (5, 6), "f4", fillvalue=3)
            sparse = file.create_dataset("sparse", (50, 60), "i2", fillvalue=2, **GZIP_2D)
            sparse[3:9, 1:30] = 1
            expected = sparse[...]
        assert (np.asarray(io.as_source(f"{tmp_path}/x.h5:late")) == 3).all()
        assert np.array_equal(np.asarray(io.as_source(f"{tmp_path}/x.h5:sparse")), expected)

    def test_chunks_at_the_border_that_are_not_compressed(self, tmp_path):
        # h5py cannot ask for them, but the library that it brings along.
        found = glob.glob(f"{os.path.dirname(h5py.__file__)}*.libs/libhdf5-*")
        if not found:
            pytest.skip("h5py was built otherwise")
        array = np.arange(25, dtype="i4").reshape(5, 5)
        with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
            options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            options.set_chunk((3, 3))
            options.set_deflate(4)
            library = ctypes.CDLL(found[0])
            assert library.H5Pset_chunk_opts(ctypes.c_int64(options.id), ctypes.c_uint(2)) >= 0
            space = h5py.h5s.create_simple(array.shape)
            made = h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_INT32, space, options)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
        assert np.array_equal(np.asarray(io.as_source(tmp_path / "x.h5")), array)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (5, "holds a scalar"),
            ("text", "holds strings"),
            (np.array([b"a", b"bcd"]), "holds strings"),
            (h5py.Empty("f4"), "holds nothing"),
            (np.zeros(3, [("a", "f4"), ("b", "i2")]), "holds a table, not numbers"),
            (np.zeros(3, "V5"), "holds objects, not numbers"),
            (np.dtype("f4"), "holds a type, not numbers"),
        ],
    )
    def test_what_is_no_array_of_numbers(self, tmp_path, made, message):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["a"] = made
        with pytest.raises(SourceError, match=f"x.h5:/a {message}"):
            io.as_source(f"{tmp_path}/x.h5:/a")
        with pytest.raises(SourceError, match=r"holds no arrays of numbers"):
            io.as_source(tmp_path / "x.h5")

    @pytest.mark.parametrize(
        "dtype", [h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.string_dtype(), ("i4", (2,))]
    )
    def test_types_that_are_no_numbers(self, tmp_path, dtype):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("a", (3,), np.dtype(dtype))
        with pytest.raises(SourceError, match=r"x.h5:/a holds (lists|objects|strings), not"):
            io.as_source(f"{tmp_path}/x.h5:/a")


GZIP_2D = {"chunks": (7, 8), "compression": "gzip"}


class TestNames:
    @pytest.fixture
    def path(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["a"] = reference()
            file["g/b"] = reference() + 1
            file["text"] = "hello"
            file["soft"] = h5py.SoftLink("/g")
            file["g/up"] = h5py.SoftLink("b")
            file["loop"] = h5py.SoftLink("/loop")
            file["out"] = h5py.ExternalLink("/etc/passwd", "/x")
            file["g/via"] = h5py.SoftLink("/out/y")
        return tmp_path / "x.h5"

    @pytest.mark.parametrize("name", ["g/b", "/g/b", "//g/./b/", "soft/b", "soft/up", "g", "soft"])
    def test_ways_to_a_dataset(self, path, name):
        source = io.as_source(f"{path}:{name}")
        assert np.array_equal(np.asarray(source), reference() + 1)
        assert np.array_equal(pickle.loads(pickle.dumps(source))[1], reference()[1] + 1)

    def test_several_are_listed(self, path):
        listed = r"holds /a \(5, 6, 7\) float32, /g/b \(5, 6, 7\) float32; name one of them"
        with pytest.raises(SourceError, match=listed):
            io.as_source(path)

    def test_many_are_not_all_listed(self, tmp_path):
        with h5py.File(tmp_path / "x.ims", "w") as file:
            for n in range(30):
                file[f"DataSet/TimePoint {n}/Data"] = np.zeros((2, 2), "u1")
        with pytest.raises(SourceError, match="and more; name one") as caught:
            io.as_source(tmp_path / "x.ims")
        assert len(str(caught.value)) < 1000
        assert io.as_source(f"{tmp_path}/x.ims:DataSet/TimePoint 7/Data").shape == (2, 2)

    @pytest.mark.parametrize("name", ["c", "a/b", "g/c", "loop", "..", "../x", "\0"])
    def test_what_is_not_there(self, path, name):
        with pytest.raises(SourceError, match=r"has no .*it holds /a"):
            io.as_source(f"{path}:{name}")
        with pytest.raises(SinkError):
            io.as_sink(f"{path}:{name}")

    def test_nothing_is_added_to_a_file(self, path):
        before = path.read_bytes()
        with pytest.raises(SinkError, match=r"has no 'new'.*create the dataset with h5py"):
            io.as_sink(f"{path}:new")
        with pytest.raises(SinkError, match=r"exists; pass io.hdf5.Sink\(path, overwrite=True\)"):
            io.hdf5.Sink(path, dataset="new").check()
        assert path.read_bytes() == before

    @pytest.mark.parametrize("name", ["", "/", "a//b", "a/../b", ".", "a\0"])
    def test_names_that_no_new_dataset_has(self, tmp_path, name):
        with pytest.raises(SinkError, match="the dataset is called"):
            io.hdf5.Sink(tmp_path / "new.h5", dataset=name)

    def test_other_suffixes_and_compressions(self, tmp_path):
        with pytest.raises(SinkError, match=r"suffix '.mat'; supported"):
            io.as_sink(tmp_path / "x.mat")
        with pytest.raises(SinkError, match="compression is 'zstd'; use None, 'gzip' or 'lzf'"):
            io.hdf5.Sink(tmp_path / "x.h5", compression="zstd")


class TestNothingLeavesTheFile:
    @pytest.mark.parametrize("name", ["link", "way/in", "soft"])
    def test_links_to_other_files(self, tmp_path, name):
        written(tmp_path / "other.h5", reference())
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["link"] = h5py.ExternalLink("other.h5", "/data")
            file["way"] = h5py.ExternalLink("other.h5", "/")
            file["soft"] = h5py.SoftLink("/way/data")
        with pytest.raises(SourceError, match=r"is a link to 'other.h5:/(data)?'; give that"):
            io.as_source(f"{tmp_path}/x.h5:{name}")
        with pytest.raises(SourceError, match="no arrays of numbers"):
            io.as_source(tmp_path / "x.h5")

    def test_links_are_not_followed_before_they_are_refused(self, tmp_path):
        # To open a pipe without a writer would wait for ever.
        os.mkfifo(tmp_path / "pipe")
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["link"] = h5py.ExternalLink("pipe", "/data")
        with pytest.raises(SourceError, match="is a link to 'pipe:/data'"):
            io.as_source(f"{tmp_path}/x.h5:link/data")

    def test_storage_in_other_files(self, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(840))
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("data", (5, 6, 7), "f4", external=[(tmp_path / "secret", 0, 840)])
        with pytest.raises(SourceError, match=r"x.h5:/data lies in other files, .*secret; give"):
            io.as_source(tmp_path / "x.h5")

    def test_virtual_datasets(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        layout = h5py.VirtualLayout((2, 6, 7), "f4")
        layout[0] = h5py.VirtualSource("other.h5", "data", (5, 6, 7))[0]
        layout[1] = h5py.VirtualSource(tmp_path / "pipe", "data", (5, 6, 7))[0]
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_virtual_dataset("data", layout)
        with pytest.raises(SourceError, match=r"virtual dataset, a view of .*pipe:data, other.h5:"):
            io.as_source(tmp_path / "x.h5")

    def test_new_files_do_not_follow_links(self, tmp_path):
        written(tmp_path / "victim.h5", reference())
        os.symlink("victim.h5", tmp_path / "new.h5.partial")
        for options in ({}, {"compression": "gzip"}):
            new = io.hdf5.Sink(tmp_path / "new.h5", **options)
            with pytest.raises(SinkError, match="in the way"):
                new.create((2,), np.dtype("f4"), "C")
        assert np.array_equal(read(tmp_path / "victim.h5"), reference())


class TestObjects:
    def test_a_file_and_a_group_stand_for_their_only_array(self, tmp_path):
        with h5py.File(written(tmp_path / "x.h5", reference(), "g/a")) as file:
            for thing in (file, file["g"], file["g/a"]):
                assert np.array_equal(np.asarray(io.as_source(thing)), reference())
            file.close()
            with pytest.raises(SourceError, match="was closed; give its path"):
                io.as_source(file)

    def test_what_is_open_for_writing_stays_here(self, tmp_path):
        with h5py.File(written(tmp_path / "x.h5", reference()), "r+") as file:
            source = io.as_source(file["data"])
            assert source.reach == Reach.PROCESS
            file["data"][...] = 5
            assert (np.asarray(source) == 5).all()
        with pytest.raises(SourceError, match="was closed"):
            np.asarray(source)

    def test_files_in_memory(self):
        with h5py.File(streams.BytesIO(), "w") as file:
            source = io.as_source(file.create_dataset("data", data=reference(), **GZIP))
            assert (source.location, source.reach) == (None, Reach.PROCESS)
            assert np.array_equal(np.asarray(source), reference())
            sink = io.as_sink(file["data"])
            sink.write(REGIONS[0], np.zeros((5, 6, 7)))
            sink.sync()
            assert not file["data"][...].any()
            assert source.extent.overlaps(sink.extent)

    def test_what_is_no_dataset(self, tmp_path):
        with h5py.File(written(tmp_path / "x.h5", reference())) as file:
            with pytest.raises(ArgumentTypeError, match="give the dataset itself"):
                io.as_source(file["data"].astype("f8"))
            with pytest.raises(SinkError, match="read-only"):
                io.as_sink(file["data"])

    def test_what_this_process_has_not_flushed_is_seen(self, tmp_path):
        with h5py.File(written(tmp_path / "x.h5", reference()), "r+") as file:
            data = file["data"]
            data[2, 3, 4] = -5
            assert io.as_source(tmp_path / "x.h5")[2, 3, 4] == -5


def chunk_at(path, start, name="data"):
    """Return the offset of a stored chunk and its length."""
    with h5py.File(path) as file:
        found = file[name].id.get_chunk_info_by_coord(start)
    return found.byte_offset, found.size


def replace_chunk(path, start, data):
    """Replace what is stored of a chunk."""
    with h5py.File(path, "r+") as file:
        file["data"].id.write_direct_chunk(start, data)


class TestDamage:
    @pytest.mark.parametrize("compression", ["gzip", "lzf"])
    def test_a_damaged_chunk_is_named(self, tmp_path, compression):
        noise = np.random.default_rng(0).integers(0, 9, (40, 40, 40)).astype("u2")
        options = {"chunks": (16, 16, 16), "compression": compression}
        path = written(tmp_path / "x.h5", noise, **options)
        offset, length = chunk_at(path, (16, 0, 32))
        with open(path, "r+b") as file:
            file.seek(offset + length // 2)
            file.write(b"\xff" * 40)
        source = io.as_source(path)
        with pytest.raises(SourceError, match=r"x.h5:/data, chunk \(16, 0, 32\),"):
            source.read(Region((0, 0, 0), (40, 40, 40)))
        sound = Region((0, 0, 0), (16, 40, 40))
        assert np.array_equal(source.read(sound), noise[sound.slices])

    def test_a_chunk_that_is_too_short_or_too_long(self, tmp_path):
        path = written(tmp_path / "x.h5", np.ones((8, 8), "u1"), chunks=(4, 4), compression="gzip")
        source = io.as_source(path)
        for data, message in [
            (zlib.compress(bytes(15)), "it ends after|holds 15 bytes instead of 16"),
            (zlib.compress(bytes(17)), "unpacks to more than the 16 bytes"),
            (zlib.compress(bytes(16))[:-2], "it ends after 16 of 16 bytes|ends after"),
            (zlib.compress(bytes(16))[:-4] + b"\0\0\0\0", "incorrect data check"),
            (os.urandom(5000), "cannot be read"),
            (b"", "chunk"),
        ]:
            if data:
                replace_chunk(path, (4, 0), data)
                with pytest.raises(SourceError, match=message):
                    np.asarray(source)
        replace_chunk(path, (4, 0), zlib.compress(bytes(16)))
        assert np.asarray(source).sum() == 48

    def test_chunks_that_nobody_wrote(self, tmp_path, executor):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("d", (4, 20, 20), "u2", chunks=(1, 20, 20), compression="gzip")
        assert not np.asarray(io.as_source(path)).any()

        def fill(source, sink):
            sink.valid[:] = source.valid[:] + 1

        given = {"function_type": "block", "size_max": 2, "overlap": 0, "executor": executor}
        gb.process(fill, np.zeros((4, 20, 20), "u2"), f"{path}:/d", axes=0, **given)
        assert (np.asarray(io.as_source(path)) == 1).all()

    def test_a_bomb_takes_no_memory(self, tmp_path):
        path = written(tmp_path / "x.h5", np.ones((64, 64)), chunks=(64, 64), compression="gzip")
        packer = zlib.compressobj(9)
        bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(30)]) + packer.flush()
        replace_chunk(path, (0, 0), bomb)
        source = io.as_source(path)
        tracemalloc.start()
        try:
            with pytest.raises(SourceError, match=r"chunk \(0, 0\), is damaged: it unpacks"):
                np.asarray(source)
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
    @pytest.mark.parametrize("options", [{}, GZIP], ids=["plain", "gzip"])
    def test_truncated(self, tmp_path, part, options):
        path = written(tmp_path / "x.h5", reference(), **options)
        os.truncate(path, int(os.path.getsize(path) * part))
        before = path.read_bytes()
        with pytest.raises(SourceError, match=r"x.h5 (cannot be read: .*truncated|is not an HDF5)"):
            io.as_source(path)
        with pytest.raises(SinkError, match="cannot write into it"):
            io.as_sink(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"garbage", "starts with b'garbage'"),
            (b"MATLAB 5.0 MAT-file, Platform", r"MAT file of version 5; save it .* -v7\.3"),
            (b"\x0e\x03\x13\x01....", "HDF4 file; convert it with h4toh5"),
        ],
    )
    def test_what_is_no_hdf5_file(self, tmp_path, content, message):
        (tmp_path / "x.mat").write_bytes(content)
        with pytest.raises(SourceError, match=message):
            io.as_source(tmp_path / "x.mat")

    @settings(max_examples=60)
    @given(
        kind=st.sampled_from(["plain", "gzip", "lzf", "latest"]),
        flips=st.lists(
            st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8
        ),
        cut=st.sampled_from([1, 1, 1, 2]),
    )
    @example(kind="latest", flips=[(3245, 0)], cut=1)
    def test_damage_never_surprises(self, tmp_path_factory, kind, flips, cut):
        path = tmp_path_factory.getbasetemp() / f"damaged-{kind}.h5"
        options = {} if kind == "plain" else {**GZIP, "compression": "lzf" if kind == "lzf" else 5}
        with h5py.File(path, "w", libver="latest" if kind == "latest" else None) as file:
            file.create_dataset("g/data", data=reference(), **options)
        data = bytearray(path.read_bytes())
        for place, byte in flips:
            data[place % len(data)] = byte
        path.write_bytes(data[: len(data) // cut])
        try:
            source = io.as_source(f"{path}:/g/data")
            if source.size < 1_000_000:
                found = np.asarray(source)
                assert np.array_equal(found, read(path, "g/data"), equal_nan=True)
        except GpublocksError:
            pass

    def test_a_file_that_changes(self, tmp_path):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        source = io.as_source(path)
        source.verify()
        source.read(REGIONS[0])
        os.unlink(path)
        written(path, np.zeros((3, 3)), **GZIP_2D | {"chunks": (2, 2)})
        with pytest.raises(SourceError, match="changed"):
            source.verify()
        with pytest.raises(SourceError, match="replaced by another one"):
            source.read(REGIONS[0])

    def test_filters_that_are_not_there(self, tmp_path, monkeypatch):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: number != 1)
        with pytest.raises(SourceError, match=r"filter 1 \(deflate\).*hdf5plugin"):
            io.as_source(path)

    def test_without_h5py(self, tmp_path, monkeypatch):
        path = written(tmp_path / "x.h5", reference())
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(SourceError, match=r"need h5py: pip install 'gpublocks\[hdf5\]'"):
            io.as_source(path)
        with pytest.raises(SinkError, match=r"need h5py: pip install 'gpublocks\[hdf5\]'"):
            io.as_sink(tmp_path / "new.h5")


HOLD = """
import sys, h5py
file = h5py.File(sys.argv[1], sys.argv[2])
print("open", file=sys.stderr, flush=True)
sys.stdin.read()
"""


class TestOthersOpenTheFile:
    @pytest.fixture
    def held(self, monkeypatch):
        """Let another process have a file open."""
        monkeypatch.setattr(datasets, "_PATIENCE_SECONDS", 0.1)
        processes = []

        def hold(path, mode):
            command = [sys.executable, "-c", HOLD, path, mode]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            processes.append(process)
            assert process.stderr.readline() == "open\n"

        yield hold
        for process in processes:
            process.communicate("")

    def test_another_process_writes(self, tmp_path, held):
        path = written(tmp_path / "x.h5", reference())
        held(path, "r+")
        with pytest.raises(SourceError, match="open for writing in another process; close it"):
            io.as_source(path)
        with pytest.raises(SinkError, match="open for writing in another process; close it"):
            io.as_sink(path)

    def test_another_process_reads(self, tmp_path, held):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        held(path, "r")
        assert np.array_equal(np.asarray(io.as_source(path)), reference())
        with pytest.raises(SinkError, match="is open in another process"):
            io.as_sink(path).write(REGIONS[0], reference())
        assert np.array_equal(read(path), reference())

    def test_others_are_waited_for(self, tmp_path, held, monkeypatch):
        monkeypatch.setattr(datasets, "_PATIENCE_SECONDS", 60.0)
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        process = start(HOLD.replace("sys.stdin.read()", "import time; time.sleep(0.2)"), path, "r")
        assert process.stderr.readline() == "open\n"
        io.as_sink(path).write(REGIONS[0], reference() + 1)
        process.communicate()
        assert np.array_equal(read(path), reference() + 1)

    def test_this_process_writes_it_otherwise(self, tmp_path):
        path = written(tmp_path / "x.h5", reference())
        with (
            h5py.File(path, "r+"),
            pytest.raises(SinkError, match="open for writing in this process; close it"),
        ):
            io.as_sink(path)
        io.as_sink(path)

    def test_this_process_reads_it_otherwise(self, tmp_path):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        with (
            h5py.File(path),
            pytest.raises(SinkError, match="open for reading in this process; close it"),
        ):
            io.as_sink(path)

    def test_no_file_stays_open(self, tmp_path, executor):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        given = {"size_max": 4, "axes": 0, "executor": executor, "processes": 2}
        source = io.as_source(path)
        gb.process(np.negative, source, **given)
        with h5py.File(path, "r+") as file:
            file["data"][0] = 0
        sink = io.as_sink(path)
        gb.process(np.negative, reference(), sink, **given)
        with h5py.File(path, "w") as file:
            file["data"] = 0

    def test_reading_and_writing_one_file_in_many_threads(self, tmp_path):
        array = np.arange(32 * 32 * 32, dtype="i4").reshape(32, 32, 32)
        options = {"chunks": (8, 8, 8), "compression": "gzip", "shuffle": True}
        path = written(tmp_path / "x.h5", array, "a", **options)
        written(path, array * 0, "b", **options)
        sources = [io.as_source(f"{path}:a") for _ in range(3)]
        sink = io.as_sink(f"{path}:b")
        over, failed = threading.Event(), []

        def look(source):
            try:
                while not over.is_set():
                    assert np.array_equal(np.asarray(source), array)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=look, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for n in range(0, 32, 8):
            region = Region((n, 0, 0), (n + 8, 32, 32))
            sink.write(region, array[region.slices])
            assert np.array_equal(sink.read(region), array[region.slices])
        over.set()
        for thread in threads:
            thread.join()
        assert not failed
        assert np.array_equal(read(path, "b"), array)


class TestRuns:
    @pytest.fixture
    def array(self):
        return np.random.default_rng(0).integers(0, 30_000, (30, 31, 32)).astype("i2")

    @pytest.mark.parametrize("options", [{"compression": "lzf"}, {"chunks": (5, 6, 7)}])
    def test_from_file_to_file(self, tmp_path, array, executor, options):
        path = written(tmp_path / "x.h5", array, "g/a", **{**GZIP, "chunks": (8, 8, 8)})
        sink = io.hdf5.Sink(tmp_path / "new.h5", dataset="a/b", **options)
        given = {"axes": "all", "size_max": 16, "overlap": 2, "processes": 2, "executor": executor}
        gb.process(smooth, f"{path}:/g/a", sink, **given)
        assert np.array_equal(read(tmp_path / "new.h5", "a/b"), smooth(array))

    @pytest.mark.parametrize("options", [{}, {**GZIP, "chunks": (8, 8, 8)}], ids=["plain", "gzip"])
    def test_into_a_dataset_that_exists(self, tmp_path, array, executor, options):
        path = written(tmp_path / "x.h5", array, "a")
        written(path, array * 0, "b", **options)
        given = {"axes": "all", "size_max": 20, "overlap": 2, "processes": 2, "executor": executor}
        assert gb.process(smooth, array, f"{path}:b", **given) == f"{path}:b"
        assert np.array_equal(read(path, "b"), smooth(array))
        assert np.array_equal(read(path, "a"), array)

    @pytest.mark.parametrize("options", [{}, {**GZIP, "chunks": (8, 8, 8)}], ids=["plain", "gzip"])
    def test_in_place(self, tmp_path, array, executor, options):
        path = written(tmp_path / "x.h5", array, **options)
        given = {"axes": "all", "size_max": 16, "processes": 2, "executor": executor}
        gb.process(np.negative, path, path, **given)
        assert np.array_equal(read(path), -array)

    def test_objects(self, tmp_path, array, executor):
        path = written(tmp_path / "x.h5", array, **{**GZIP, "chunks": (8, 8, 8)})
        given = {"axes": "all", "size_max": 20, "overlap": 2, "processes": 2, "executor": executor}
        with h5py.File(path) as file, h5py.File(tmp_path / "y.h5", "w") as other:
            sink = other.create_dataset("data", array.shape, array.dtype)
            assert gb.process(smooth, file["data"], sink, **given) is sink
            assert np.array_equal(sink[...], smooth(array))


class TestFullDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        """Let the disk have little room left."""
        usage = shutil.disk_usage("/")

        def fill(free):
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

        return fill

    def test_no_room_for_a_new_file(self, tmp_path, full):
        full(1000)
        for options in ({}, {"compression": "gzip"}):
            with pytest.raises(SinkError, match="free"):
                io.hdf5.Sink(tmp_path / "new.h5", **options).create((99, 99), np.dtype("f8"), "C")
            assert list(tmp_path.iterdir()) == []

    def test_hdf5_is_not_asked_to_write_on_a_full_disk(self, tmp_path, full):
        path = written(tmp_path / "x.h5", reference(), **GZIP)
        sink = io.as_sink(path)
        before = path.read_bytes()
        full(1 << 20)
        with pytest.raises(SinkError, match=r"needs .* free"):
            sink.write(REGIONS[0], np.zeros((5, 6, 7)))
        assert path.read_bytes() == before

    def test_room_is_taken_before_hdf5_packs(self, tmp_path, monkeypatch):
        sink = io.hdf5.Sink(tmp_path / "new.h5", compression="gzip").create(
            (5, 6, 7), np.dtype("f4"), "C"
        )
        sink.write(REGIONS[0], reference())

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(SinkError, match=r"No space left.*are kept in .*voxels, for"):
            sink.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["new.h5.voxels"]


PACK = """
import sys, time, numpy as np
from gpublocks import io
from gpublocks.formats.hdf5 import deflating
from gpublocks.geometry import Region
deflated = deflating.deflated
def slowly(*given):
    time.sleep(0.02)
    return deflated(*given)
deflating.deflated = slowly
new = io.hdf5.Sink(sys.argv[1], compression="gzip", chunks=(1, 8, 8))
sink = new.create((500, 8, 8), np.dtype("i4"), "C")
sink.write(Region.whole(sink.shape), np.ones(sink.shape))
sink.finish()
"""

WRITE_ON = """
import sys, numpy as np
from gpublocks import io
from gpublocks.geometry import Region
sink = io.as_sink(sys.argv[1])
for n in range(3):
    sink.write(Region((8 * n, 0, 0), (8 * n + 8, 8, 8)), np.full((8, 8, 8), n + 1))
print("written", file=sys.stderr, flush=True)
sys.stdin.read()
"""


class TestKilled:
    def test_while_packing(self, tmp_path):
        process = start(PACK, tmp_path / "new.h5")
        packed = tmp_path / "new.h5.partial"
        while not packed.exists() or packed.stat().st_size < 1000:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"new.h5.partial", "new.h5.voxels.partial"}
        sink = io.hdf5.Sink(tmp_path / "new.h5", compression="gzip").create(
            (2,), np.dtype("u1"), "C"
        )
        sink.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["new.h5"]

    def test_between_two_writes_into_chunks(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("data", (32, 8, 8), "i4", chunks=(8, 8, 8), compression="gzip")
        command = [sys.executable, "-c", WRITE_ON, tmp_path / "x.h5"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert read(tmp_path / "x.h5")[:, 0, 0].reshape(4, 8)[:, 0].tolist() == [1, 2, 3, 0]


class TestPacking:
    def test_what_was_packed_wrongly_is_found(self, tmp_path, monkeypatch):
        deflated = deflating.deflated
        monkeypatch.setattr(deflating, "deflated", lambda voxels, s: deflated(voxels + 1, s))
        sink = io.hdf5.Sink(tmp_path / "new.h5", compression="gzip").create(
            (5, 6, 7), np.dtype("f4"), "C"
        )
        with pytest.raises(SinkError, match=r"chunk \(0, 0, 0\) does not hold what was written"):
            sink.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["new.h5.voxels"]

    def test_nan_is_packed_rightly(self, tmp_path):
        sink = io.hdf5.Sink(tmp_path / "new.h5", compression="gzip").create(
            (5, 6), np.dtype("f4"), "C"
        )
        sink.write(Region.whole((5, 6)), np.full((5, 6), np.nan))
        sink.finish()
        assert np.isnan(read(tmp_path / "new.h5")).all()

    def test_threads_are_a_few_ahead_only(self, monkeypatch):
        monkeypatch.setattr(dataset_files, "cpu_count", lambda: 2)
        begun = []
        regions = (Region((n,), (n + 1,)) for n in range(1000))
        found = dataset_files.ahead(lambda region: begun.append(region) or region.start[0], regions)
        for n, (region, value) in zip(range(20), found, strict=False):
            assert region.start == (n,)
            assert value == n
        assert len(begun) <= 26
        found.close()
