"""Zarr arrays keep the contract, are those of zarr, and damaged or hostile ones are refused."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import resource
import shutil
import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import NewSink, Reach
from gpublocks.errors import (
    ArgumentTypeError,
    GpublocksError,
    PlanError,
    SinkError,
    SourceError,
)
from gpublocks.formats.zarr import boxed, zarr_layout
from gpublocks.formats.zarr.coding import Coding
from gpublocks.geometry import Region
from tests.contracts.sources import (
    REGIONS,
    NewSinkContract,
    SinkContract,
    SourceContract,
    ends,
    reference,
    start,
)
from tests.forks import fork
from tests.zarr_arrays import boxes, created, read

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")

EXECUTORS = ["serial", "threads", "processes"]
MEGABYTE = 1 << 20


class UnitSinkContract(SinkContract):
    """A sink of which no two writers touch one unit."""

    def test_two_processes_lose_nothing(self, source, expected, tmp_path):
        shares = [[], []]
        for n, region in enumerate(boxes(source.shape, source.unit)):
            shares[n % 2].append((region, np.full(region.shape, 1000 + n, np.float32)))
            expected[region.slices] = 1000 + n
        processes = []
        for n, writes in enumerate(shares):
            (tmp_path / f"sent{n}").write_bytes(pickle.dumps((source, writes)))
            code = "import pickle, sys\nsink, writes = pickle.load(open(sys.argv[1], 'rb'))\n"
            code += "for region, array in writes:\n    sink.write(region, array)\n"
            processes.append(fork(code, tmp_path / f"sent{n}"))
        for process in processes:
            ends(process)
        assert np.array_equal(source.read(REGIONS[0]), expected)


class TestArray(UnitSinkContract):
    name = "Zarr-Source"
    reach = Reach.MACHINE
    options: ClassVar = {"chunks": (2, 3, 4)}

    def make(self, array, folder):
        return io.zarr.Source(created(folder / "x.zarr", array, **self.options), writable=True)

    def test_tells_its_units(self, source):
        assert source.unit == source.read_unit == (2, 3, 4)

    def test_a_source_never_writes(self, source, expected):
        read_only = io.as_source(source.location)
        assert not read_only.writable
        with pytest.raises(SinkError, match="opened read-only"):
            read_only.write(REGIONS[0], expected)
        with pytest.raises(SinkError, match="opened read-only"):
            read_only[0] = 1
        assert np.array_equal(read(source.location), expected)

    def test_zarr_reads_what_is_written(self, source, expected):
        expected[1:4, 2:, 3] = 7
        source[1:4, 2:, 3] = 7
        source[2] = np.arange(7)
        expected[2] = np.arange(7)
        assert np.array_equal(read(source.location), expected)


class TestSharded(TestArray):
    options: ClassVar = {"chunks": (2, 3, 4), "shards": (4, 3, 8)}

    def test_tells_its_units(self, source):
        assert (source.unit, source.read_unit) == ((4, 3, 8), (2, 3, 4))


class TestVersion2(TestArray):
    options: ClassVar = {"chunks": (2, 3, 4), "zarr_format": 2}
    test_two_processes_lose_nothing = None


class TestOpenArray(TestArray):
    test_two_processes_lose_nothing = None

    def make(self, array, folder):
        path = created(folder / "x.zarr", array, **self.options)
        return io.as_sink(zarr.open_array(path, mode="r+"))

    def test_one_that_is_read_only_is_no_sink(self, source):
        array = zarr.open_array(source.location, mode="r")
        assert not io.as_source(array).writable
        with pytest.raises(SinkError, match="read-only"):
            io.as_sink(array)


RAW = numcodecs.LZMA(format=3, filters=[{"id": 33, "preset": 1}])


class TestRareCodec(TestArray):
    """A codec that only the library knows; it gives voxels in C order.

    Raw streams of LZMA do not say how much memory they take.
    """

    test_two_processes_lose_nothing = None

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param

    def make(self, array, folder):
        options = {**self.options, "compressors": RAW, "zarr_format": 2}
        source = io.zarr.Source(created(folder / "x.zarr", array, **options), writable=True)
        assert not isinstance(source, boxed.BoxedSource)
        return source


class TestInMemory(SinkContract):
    name = "Zarr-Source"

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param

    def make(self, array, folder):
        store = zarr.storage.MemoryStore()
        return io.as_sink(zarr.create_array(store, data=array, chunks=(2, 3, 4)))


class TestInMemoryUrl(SinkContract):
    name = "Zarr-Source"

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param

    def make(self, array, folder):
        pytest.importorskip("fsspec")
        url = f"memory://{folder.name}-{os.urandom(4).hex()}.zarr/image"
        zarr.create_array(url, data=array, chunks=(2, 3, 4), shards=(4, 3, 8))
        sink = io.as_sink(url)
        assert (sink.unit, sink.read_unit) == ((4, 3, 8), (2, 3, 4))
        assert (sink.location, sink.writable) == (url, True)
        assert not io.as_source(url).writable
        return sink


class TestFileUrl(SourceContract):
    name = "Zarr-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        (folder / "with space.zarr").mkdir()
        path = created(folder / "with space.zarr" / "a", array, chunks=(2, 3, 4))
        return io.as_source(path.as_uri())


class TestZipped(SourceContract):
    name = "Zarr-Source"
    reach = Reach.MACHINE

    @pytest.fixture(params=["C"])
    def order(self, request):
        return request.param

    def make(self, array, folder):
        with zarr.storage.ZipStore(folder / "x.zip", mode="w") as store:
            zarr.create_array(store, data=array, chunks=(2, 3, 4))
        return io.as_source(zarr.open_array(zarr.storage.ZipStore(folder / "x.zip", mode="r")))


class TestNewArray(NewSinkContract):
    def make(self, folder):
        return io.zarr.Sink(folder / "new.zarr")

    def test_is_a_new_sink(self, tmp_path):
        assert isinstance(self.make(tmp_path), NewSink)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_zarr_reads_it(self, tmp_path, order):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), order)
        sink.write(REGIONS[0], np.asarray(reference(), order=order))
        sink.sync()
        sink.finish()
        assert np.array_equal(read(self.array(sink)), reference())

    def array(self, sink):
        """Return the path of the array."""
        return sink.location


class TestNewShards(TestNewArray):
    def make(self, folder):
        return io.zarr.Sink(folder / "new.zarr", shards=4, chunks=2, codec="blosc")


class TestNewOfVersion2(TestNewArray):
    def make(self, folder):
        return io.zarr.Sink(folder / "new.zarr", zarr_format=2, codec="gzip:1", chunks=(3, 2, 7))

    def test_an_empty_sink(self, tmp_path):
        sink = self.make(tmp_path).create((3, 0, 2), np.dtype("u1"), "C")
        sink.finish()
        assert sink.read(Region.whole((3, 0, 2))).shape == (3, 0, 2)


class TestNewImage(TestNewArray):
    def make(self, folder):
        return io.zarr.Sink(folder / "new.ome.zarr", levels=3)

    def array(self, sink):
        return f"{sink.location}/0"

    def test_an_empty_sink(self, tmp_path):
        sink = self.make(tmp_path).create((3, 0, 2), np.dtype("u1"), "C")
        sink.finish()
        assert sink.read(Region.whole((3, 0, 2))).shape == (3, 0, 2)


CODECS = st.sampled_from(
    [
        None,
        {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
        {"name": "gzip", "configuration": {"level": 1}},
        {
            "name": "blosc",
            "configuration": {
                "typesize": 4,
                "cname": "lz4",
                "clevel": 5,
                "shuffle": "bitshuffle",
                "blocksize": 0,
            },
        },
    ]
)
CODECS_OF_2 = st.sampled_from(
    [
        None,
        numcodecs.Zstd(),
        numcodecs.GZip(1),
        numcodecs.Zlib(1),
        numcodecs.LZ4(),
        numcodecs.Blosc("zstd", 1, numcodecs.Blosc.AUTOSHUFFLE),
    ]
)
RARE = {
    "bz2": ("u2", [], [numcodecs.BZ2(1)]),
    "lzma": ("u2", [], [numcodecs.LZMA(preset=1)]),
    "lzma alone": ("u2", [], [numcodecs.LZMA(format=2, preset=1)]),
    "delta": ("i4", [numcodecs.Delta("<i4", "<i2")], [numcodecs.Zstd(1)]),
    "delta of floats": ("f4", [numcodecs.Delta("<f4")], []),
    "two": ("i4", [numcodecs.Delta("<i4"), numcodecs.AsType("<i2", "<i4")], [numcodecs.BZ2(1)]),
    "scaled": ("f4", [numcodecs.FixedScaleOffset(0, 100, "<f4", "u1")], [numcodecs.Zstd(1)]),
    "quantize": ("f8", [numcodecs.Quantize(2, "<f8", "<f4")], [numcodecs.LZ4()]),
    "astype": ("f4", [numcodecs.AsType("<f8", "<f4")], [numcodecs.Zstd(1)]),
    "bitround": ("f4", [numcodecs.BitRound(10)], [numcodecs.Zstd(1)]),
    "packbits": ("?", [numcodecs.PackBits()], [numcodecs.Zstd(1)]),
    "shuffle": ("u2", [], [numcodecs.Shuffle(2), numcodecs.Zlib(1)]),
    "adler32": ("u2", [], [numcodecs.Zstd(1), numcodecs.Adler32()]),
    "crc32": ("u2", [], [numcodecs.CRC32(), numcodecs.Zstd(1)]),
    "fletcher32": ("u2", [], [numcodecs.Fletcher32()]),
}
"""Type of voxels, filters and compressors."""


def configuration(codec):
    """Return the parameters of a codec of numcodecs."""
    return {key: value for key, value in codec.get_config().items() if key != "id"}


DTYPES = st.sampled_from(["?", "u1", "<u2", "i4", "f4", "f8", "c8", "i8", "f2"])


@st.composite
def stored(draw):
    """Return an array, and options of zarr to create it with."""
    ndim = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim).map(tuple))
    chunks = draw(st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim).map(tuple))
    dtype = draw(DTYPES)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    array = rng.integers(0, 3, shape).astype(dtype)
    options = {"chunks": chunks, "fill_value": draw(st.integers(0, 2))}
    order = draw(st.sampled_from("CF"))
    if draw(st.booleans()):
        separator = draw(st.sampled_from("./"))
        encoding = {"name": "v2", "separator": separator}
        options |= {"zarr_format": 2, "compressors": draw(CODECS_OF_2)}
        options["chunk_key_encoding"] = encoding
        return array.astype(array.dtype.newbyteorder(draw(st.sampled_from("<>")))), order, options
    codec = draw(CODECS)
    check = [{"name": "crc32c"}] if draw(st.booleans()) else []
    codecs = [codec, *check] if codec else check
    options["compressors"] = codecs[::-1] if draw(st.booleans()) else codecs
    if draw(st.booleans()):
        counts = draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
        options["shards"] = tuple(c * n for c, n in zip(chunks, counts, strict=True))
    return array, order, options


@st.composite
def region_of(draw, shape):
    """Return a region of an array of this shape, which may be empty."""
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Region(tuple(lo for lo, _ in ends), tuple(hi for _, hi in ends))


class TestAgreesWithZarr:
    @settings(max_examples=40)
    @given(data=st.data(), made=stored())
    def test_on_what_it_wrote(self, data, made, tmp_path_factory):
        array, order, options = made
        path = created(tmp_path_factory.mktemp("x") / "x.zarr", array, order=order, **options)
        source = io.as_source(path)
        assert isinstance(source, boxed.BoxedSource)
        assert source.dtype == array.dtype.newbyteorder("=")
        for _ in range(3):
            region = data.draw(region_of(array.shape))
            assert np.array_equal(source.read(region), array[region.slices])
        out = np.zeros(array.shape, "c16", order="F")
        source.read(Region.whole(array.shape), out)
        assert np.array_equal(out, array)

    @settings(max_examples=40)
    @given(data=st.data(), made=stored())
    def test_on_what_we_write(self, data, made, tmp_path_factory):
        array, order, options = made
        path = created(tmp_path_factory.mktemp("x") / "x.zarr", array, order=order, **options)
        sink = io.as_sink(path)
        for value in range(3):
            region = data.draw(region_of(array.shape))
            sink.write(region, np.full(region.shape, value))
            array[region.slices] = value
        assert np.array_equal(read(path), array)
        assert np.array_equal(np.asarray(sink), array)
        stray = [name for _, _, names in os.walk(path) for name in names if "partial" in name]
        assert stray == []

    @pytest.mark.parametrize(
        ("name", "version", "order"),
        [
            *product(RARE, [2], "CF"),
            # Of all others zarr does not read what it writes itself.
            *product([name for name in RARE if name not in ("packbits", "quantize")], [3], "C"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
    def test_on_rare_codecs(self, tmp_path, name, version, order):
        dtype, filters, compressors = RARE[name]
        if version == 3:
            module = pytest.importorskip("zarr.codecs.numcodecs")
            filters, compressors = (
                [getattr(module, type(one).__name__)(**configuration(one)) for one in codecs]
                for codecs in (filters, compressors)
            )
        else:
            filters, compressors = [*filters, *compressors[:-1]], compressors[-1:] or None
        array = np.asarray(np.random.default_rng(0).integers(0, 2, (9, 8, 7)), dtype, order=order)
        options = {"filters": filters, "compressors": compressors, "zarr_format": version}
        path = created(tmp_path / "x.zarr", array, chunks=(4, 4, 4), **options)
        source = io.zarr.Source(path, writable=True)
        assert isinstance(source, boxed.BoxedSource)
        assert np.array_equal(source[:], read(path))
        source.write(Region((1, 0, 0), (6, 8, 7)), array[2:7])
        assert np.array_equal(read(path), source[:])
        assert np.allclose(source[1:6], array[2:7], atol=0.1)
        # What is shorter, longer, or no stream at all.
        chunk = next(p for p in path.rglob("*") if p.is_file() and p.name[0] in "0123")
        whole = chunk.read_bytes()
        for data in (whole[:-1], whole[:5], b"", whole * 2, bytes(300)):
            chunk.write_bytes(data)
            with suppress(SourceError):
                assert source[:].shape == array.shape

    def test_on_voxels_that_need_not_be_stored(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.zeros((8, 8), "f4"), chunks=(4, 4))
        sink = io.as_sink(path)
        sink[:4] = -0.0
        sink[:4, ::4] = 0.0
        sink[4:, 4:] = 1
        assert sorted(p.name for p in (path / "c" / "0").iterdir()) == ["0", "1"]
        sink[4:] = 0
        assert not list((path / "c" / "1").iterdir())
        assert np.signbit(read(path)[:4]).sum() == 24
        filled = created(
            tmp_path / "y.zarr", np.full((8, 8), np.nan), chunks=(4, 4), fill_value=np.nan
        )
        assert np.isnan(io.as_source(filled).read(Region.whole((8, 8)))).all()

    def test_each_chunk_is_decoded_once_in_a_read(self, tmp_path, monkeypatch):
        array = np.arange(64**2, dtype="u2").reshape(64, 64)
        decode, decoded = Coding.decode, []
        monkeypatch.setattr(Coding, "decode", lambda *given: decoded.append(1) or decode(*given))
        for options in ({"chunks": (8, 8)}, {"chunks": (8, 8), "shards": (32, 16)}):
            path = created(tmp_path / f"{len(options)}.zarr", array, **options)
            decoded.clear()
            region = Region((5, 9), (41, 16))
            assert np.array_equal(io.as_source(path).read(region), array[region.slices])
            assert len(decoded) == 6

    def test_many_threads_read_one_source(self, tmp_path):
        array = np.arange(64**3, dtype="u4").reshape(64, 64, 64)
        path = created(tmp_path / "x.zarr", array, chunks=(16, 16, 16), shards=(32, 32, 32))
        source, wrong = io.as_source(path), []

        def check(n):
            for offset in range(20):
                region = Region((n, offset, 0), (n + 30, offset + 40, 64))
                wrong.extend([n] * (not np.array_equal(source.read(region), array[region.slices])))

        threads = [threading.Thread(target=check, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_workers_do_without_the_library(self, tmp_path):
        path = created(tmp_path / "x.zarr", reference(), chunks=(2, 3, 4))
        (tmp_path / "sent").write_bytes(pickle.dumps(io.as_source(path)))
        code = "import pickle, sys\nsource = pickle.load(open(sys.argv[1], 'rb'))\n"
        code += "assert source[:].sum() > 0\nassert 'zarr' not in sys.modules\n"
        ends(start(code, tmp_path / "sent"))


class TestPaths:
    @pytest.fixture
    def group(self, tmp_path):
        group = zarr.open_group(tmp_path / "group.zarr", mode="w")
        image = group.create_group("image")
        image.create_array("0", data=reference(), chunks=(2, 3, 4))
        return tmp_path / "group.zarr"

    def test_arrays_in_groups(self, group, monkeypatch):
        for path in (group / "image" / "0", f"{group}/image/0/", f"file://{group}/image/0"):
            source = io.as_source(path)
            assert np.array_equal(np.asarray(source), reference())
            assert source.location == f"{group}/image/0"
        monkeypatch.chdir(group.parent)
        assert io.as_source("group.zarr/image/0").location == f"{group}/image/0"
        assert np.array_equal(
            gb.process(np.negative, "group.zarr/image/0", overlap=0), -reference()
        )

    def test_a_new_array_in_a_group(self, group):
        path = str(group / "image" / "1")
        assert gb.process(np.negative, group / "image" / "0", path, overlap=0) == path
        assert np.array_equal(zarr.open_group(group, mode="r")["image/1"][:], -reference())

    def test_a_new_array_in_a_group_of_version_2(self, tmp_path):
        group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
        with pytest.raises(SinkError, match=r"is a group of Zarr 2; pass .*zarr_format=2"):
            io.as_sink(tmp_path / "x.zarr" / "a")
        sink = io.zarr.Sink(tmp_path / "x.zarr" / "a", zarr_format=2)
        gb.process(np.negative, reference(), sink, overlap=0, executor="serial")
        assert np.array_equal(group["a"][:], -reference())

    def test_a_group_names_what_it_holds(self, group):
        with pytest.raises(SourceError, match=r"group.zarr is a group of Zarr with image/\.\.\.;"):
            io.as_source(group)
        with pytest.raises(SourceError, match="a group of Zarr with 0; give the path of an array"):
            io.as_source(zarr.open_group(group / "image", mode="r"))

    def test_symbolic_links_are_resolved_and_reported(self, group):
        (group.parent / "link.zarr").symlink_to(group / "image" / "0")
        assert io.as_source(group.parent / "link.zarr").location == f"{group}/image/0"

    def test_no_path_leaves_its_store(self, group, tmp_path):
        other = created(tmp_path / "other.zarr", reference(), chunks=(2, 3, 4))
        with pytest.raises(SourceError, match=r"leaves its store by '\.\.'"):
            io.as_source(f"{group}/../other.zarr")
        (group / "out").symlink_to(other)
        with pytest.raises(SourceError, match=r"out is a link to .*other\.zarr, outside of"):
            io.as_source(group / "out")
        (group / "fake").mkdir()
        (group / "fake" / "zarr.json").symlink_to(other / "zarr.json")
        with pytest.raises(SourceError, match=r"zarr\.json is a link or no file"):
            io.as_source(group / "fake")

    def test_no_chunk_leaves_its_array(self, tmp_path):
        secret = created(tmp_path / "secret.zarr", reference(), chunks=(5, 6, 7))
        path = created(tmp_path / "x.zarr", reference(), chunks=(5, 6, 7))
        (path / "c" / "0" / "0" / "0").unlink()
        (path / "c" / "0" / "0" / "0").symlink_to(secret / "c" / "0" / "0" / "0")
        with pytest.raises(SourceError, match=r"is a link to .*secret.zarr/c/0/0/0, outside of"):
            io.as_source(path)[:]
        shutil.rmtree(path / "c")
        (path / "c").symlink_to(secret / "c")
        before = read(secret)
        with pytest.raises(SourceError, match=r"is a link to .*secret.zarr/c/0/0, outside of"):
            io.as_source(path)[:]
        with pytest.raises(SinkError, match=r"cannot write: .* is a link to"):
            io.as_sink(path)[:] = 0
        (path / "c").unlink()
        (tmp_path / "empty").mkdir()
        (path / "c").symlink_to(tmp_path / "empty")
        with pytest.raises(SinkError, match=r"cannot write: .* is a link to"):
            io.as_sink(path)[:] = 7
        assert np.array_equal(read(secret), before)
        assert list((tmp_path / "empty").iterdir()) == []

    def test_links_inside_of_an_array_are_followed(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.zeros((4, 2), "u1"), chunks=(2, 2), fill_value=1)
        (path / "c" / "1" / "0").unlink()
        (path / "c" / "1" / "0").symlink_to(path / "c" / "0" / "0")
        assert not io.as_source(path)[:].any()

    def test_a_remote_array_is_seen_from_everywhere(self, monkeypatch):
        fsspec = pytest.importorskip("fsspec")
        from fsspec.implementations.memory import MemoryFileSystem

        class Remote(MemoryFileSystem):
            protocol = "remote"
            store: ClassVar = {}
            pseudo_dirs: ClassVar = [""]

        fsspec.register_implementation("remote", Remote, clobber=True)
        zarr.create_array("remote://bucket/x.zarr/a", data=reference(), chunks=(2, 3, 4))
        source = io.as_source("remote://bucket/x.zarr/a")
        assert source.reach == Reach.CLUSTER
        assert len(pickle.dumps(source)) < 1000
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(again.read(REGIONS[1]), reference()[REGIONS[1].slices])
        assert source.extent.overlaps(again.extent)

    def test_urls_need_no_suffix(self, tmp_path):
        with zarr.storage.ZipStore(tmp_path / "x.zip", mode="w") as store:
            zarr.create_array(store, shape=(4, 4), chunks=(2, 2), dtype="u2")[:] = 3
        source = io.as_source(f"zip::file://{tmp_path}/x.zip")
        assert (np.asarray(source) == 3).all()
        with pytest.raises(SourceError, match=r"cannot be opened as Zarr|no array of Zarr"):
            io.as_source("memory://nothing/here")

    def test_an_array_that_is_gone_is_told_of(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u1"), chunks=(2, 2))

        def remove(block):
            shutil.rmtree(path, ignore_errors=True)
            return block

        with pytest.raises(SourceError, match=r"x\.zarr changed"):
            gb.process(remove, path, np.zeros((4, 4)), overlap=0, executor="serial")

    def test_new_arrays_are_local(self):
        with pytest.raises(SinkError, match=r"no array of Zarr at memory://gone\.zarr"):
            io.as_sink("memory://gone.zarr")
        with pytest.raises(SinkError, match="new arrays are made in local folders"):
            io.zarr.Sink("s3://bucket/x.zarr")


def damaged(path, change):
    """Change the bytes of the first file of voxels."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "z")))
    files[0].write_bytes(change(files[0].read_bytes()))
    return files[0]


def outcome(call):
    """Return what a call returns, or the `SourceError` that it raises."""
    try:
        return call()
    except SourceError as error:
        return error


class TestBadSources:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"compressors": None}, "raw"),
            ({}, "zstd"),
            ({"compressors": {"name": "gzip", "configuration": {"level": 1}}}, "gzip"),
            ({"compressors": numcodecs.Blosc(), "zarr_format": 2}, "blosc"),
            ({"compressors": numcodecs.LZ4(), "zarr_format": 2}, "lz4"),
            ({"compressors": numcodecs.Zlib(), "zarr_format": 2}, "zlib"),
            ({"shards": (8, 8)}, "shards"),
            ({"filters": [numcodecs.Delta(dtype="u2")], "zarr_format": 2}, "library"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize(
        "change",
        [
            lambda data: data[: len(data) // 2],
            lambda data: b"",
            lambda data: data[:4] + bytes(len(data)),
            lambda data: data + data + bytes(200_000),
            lambda data: os.urandom(len(data)),
        ],
        ids=["truncated", "empty", "zeros", "long", "random"],
    )
    def test_damaged_chunks_are_named(self, tmp_path, options, name, change):
        array = np.arange(64, dtype="u2").reshape(8, 8)
        path = created(tmp_path / "x.zarr", array, chunks=(4, 4), **options)
        damaged(path, change)
        source = io.as_source(path)
        found = outcome(lambda: source.read(Region((2, 1), (8, 8))))
        if isinstance(found, Exception):
            assert str(path) in str(found)
            assert "chunk (0, 0) of " in str(found) or "chunk (1, 1) of " in str(found)
        else:
            # Only what is checked can be found.
            assert name in ("raw", "library", "lz4")
            assert found.shape == (6, 7)

    def test_a_chunk_of_another_size(self, tmp_path):
        array = np.arange(64, dtype="u2").reshape(8, 8)
        for number, codec in enumerate(["zstd", "gzip", "blosc", "none"]):
            path = tmp_path / f"{number}.zarr"
            for size in (16, 36, 100):
                sink = io.zarr.Sink(path, chunks=8, codec=codec, overwrite=True)
                sink = sink.create((8, 8), array.dtype, "C")
                sink[:] = array
                sink.finish()
                part = np.arange(size, dtype="u2")
                coding = sink.store.coding
                smaller = replace(coding, shape=(size,), axes=(0,))
                (path / "c" / "0" / "0").write_bytes(bytes(smaller.encode(part)))
                with pytest.raises(SourceError, match=r"chunk \(0, 0\) of .* is damaged: it"):
                    io.as_source(path)[:]

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
    def test_blosc_whose_metadata_say_little(self, tmp_path, version):
        array = np.arange(64, dtype="u2").reshape(8, 8)
        if version == 2:
            path = created(
                tmp_path / "x.zarr",
                array,
                chunks=(4, 4),
                zarr_format=2,
                compressors=numcodecs.Blosc(),
            )
            told = json.loads((path / ".zarray").read_text())
            told["compressor"] = {"id": "blosc"}
            (path / ".zarray").write_text(json.dumps(told))
        else:
            codecs = pytest.importorskip("zarr.codecs.numcodecs")
            path = created(tmp_path / "x.zarr", array, chunks=(4, 4), compressors=codecs.Blosc())
        source = io.zarr.Source(path, writable=True)
        assert isinstance(source, boxed.BoxedSource)
        assert np.array_equal(source[:], array)
        source[:] = array + 1
        assert np.array_equal(source[:], array + 1)

    @pytest.mark.parametrize(
        ("name", "encode"),
        [
            ("gzip", gzip.compress),
            ("zstd", lambda data: bytes(numcodecs.Zstd(1).encode(data))),
            ("numcodecs.bz2", bz2.compress),
            ("numcodecs.lzma", lzma.compress),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
    def test_chunks_of_several_streams(self, tmp_path, name, encode):
        array = np.random.default_rng(0).integers(0, 99, (8, 8)).astype("u2")
        path = created(tmp_path / "x.zarr", array, chunks=(8, 8), compressors=None)
        told = json.loads((path / "zarr.json").read_text())
        told["codecs"].append({"name": name, "configuration": {"level": 1}})
        if name == "zstd":
            told["codecs"][-1]["configuration"]["checksum"] = False
        if name == "numcodecs.lzma":
            told["codecs"][-1]["configuration"] = {}
        (path / "zarr.json").write_text(json.dumps(told))
        data, chunk = array.tobytes(), path / "c" / "0" / "0"
        whole = encode(data[:50]) + encode(data[50:])
        chunk.write_bytes(whole)
        source = io.as_source(path)
        assert isinstance(source, boxed.BoxedSource)
        assert np.array_equal(source[:], array)
        for damaged in (encode(data[:50]), whole[:-3], encode(data) + encode(data), b""):
            chunk.write_bytes(damaged)
            with pytest.raises(SourceError, match=r"chunk \(0, 0\) of .* is damaged"):
                source[:]

    def test_bombs_stay_small(self, tmp_path):
        huge = np.zeros(100 * MEGABYTE, np.uint8)
        deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
        rare = {"bz2": {"level": 1}, "lzma": {"format": 1, "preset": 1}}
        bombs = {
            "zstd": numcodecs.Zstd(1).encode(huge),
            "blosc": numcodecs.Blosc("lz4", 1).encode(huge),
            "gzip": deflate.compress(huge) + deflate.flush(),
            "bz2": numcodecs.BZ2(1).encode(huge),
            "lzma": numcodecs.LZMA(preset=1).encode(huge),
        }
        for name, data in bombs.items():
            path = tmp_path / f"{name}.zarr"
            sink = io.zarr.Sink(path, codec="gzip" if name in rare else name, chunks=(64, 64))
            sink = sink.create((64, 64), np.dtype("u1"), "C")
            sink[:] = 1
            sink.finish()
            if name in rare:
                told = json.loads((path / "zarr.json").read_text())
                told["codecs"][1] = {"name": f"numcodecs.{name}", "configuration": rare[name]}
                (path / "zarr.json").write_text(json.dumps(told))
            (path / "c" / "0" / "0").write_bytes(bytes(data))
        ends(start(BOMBS, *[tmp_path / f"{name}.zarr" for name in bombs]))

    def test_what_an_index_says_is_not_believed(self, tmp_path):
        array = np.arange(64, dtype="u2").reshape(8, 8)
        path = created(tmp_path / "x.zarr", array, chunks=(4, 4), shards=(8, 8))
        shard = path / "c" / "0" / "0"
        data = shard.read_bytes()
        import google_crc32c

        for place in ((2**63, 10), (0, 2**40), (len(data) - 5, 50)):
            index = struct.pack("<8Q", *place * 4)
            check = google_crc32c.value(index).to_bytes(4, "little")
            shard.write_bytes(data[:-68] + index + check)
            with pytest.raises(SourceError, match=r"chunk \(0, 0\) of .* is damaged: its shard is"):
                io.as_source(path)[:]
        shard.write_bytes(data[:-5] + b"x" + data[-4:])
        with pytest.raises(SourceError, match="is damaged: its checksum is wrong"):
            io.as_source(path)[:]

    def test_chunks_beyond_all_memory(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u1"), chunks=(4, 4))
        told = json.loads((path / "zarr.json").read_text())
        told["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 24, 1 << 24]
        (path / "zarr.json").write_text(json.dumps(told))
        with pytest.raises(SourceError, match="each of 281 TB of memory, and there is not as much"):
            io.as_source(path)[:]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: None, "no such file"),
            (lambda p: p.write_text("x"), "is no folder"),
            (lambda p: p.mkdir(), "holds no array of Zarr"),
            (lambda p: created(p, np.zeros((2, 2), "M8[s]"), chunks=(1, 1)), "only numbers"),
            (lambda p: zarr.create_array(p, shape=(), dtype="u1"), "a scalar"),
            (lambda p: zarr.open_group(p, mode="w"), "is a group of Zarr with nothing"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The data type")
    def test_what_is_no_array(self, tmp_path, make, message):
        make(tmp_path / "x.zarr")
        with pytest.raises(SourceError, match=message):
            io.as_source(tmp_path / "x.zarr")

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:50],
            lambda text: "[]",
            lambda text: text.replace("uint16", "uint17"),
            lambda text: text.replace('"chunk_shape": [', '"chunk_shape": ["a",'),
            lambda text: text.replace("zstd", "unknown"),
            lambda text: text.replace("regular", "irregular"),
            lambda text: text.replace('"zarr_format": 3', '"zarr_format": 9'),
            lambda text: "\0" * 100,
        ],
    )
    def test_damaged_metadata(self, tmp_path, change):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u2"), chunks=(2, 2))
        text = (path / "zarr.json").read_text()
        assert change(text) != text
        (path / "zarr.json").write_text(change(text))
        with pytest.raises(SourceError, match=r"x\.zarr .*Zarr"):
            io.as_source(path)[:]

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u2"), chunks=(4, 4))
        (path / "c" / "0" / "0").unlink()
        os.mkfifo(path / "c" / "0" / "0")
        with pytest.raises(SourceError, match="is a folder, device or pipe"):
            io.as_source(path)[:]

    def test_a_missing_chunk_is_the_filling(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u2"), chunks=(2, 2), fill_value=5)
        (path / "c" / "0" / "1").unlink()
        assert io.as_source(path)[:].tolist() == [[1, 1, 5, 5]] * 2 + [[1] * 4] * 2

    def test_an_array_that_was_replaced_is_noticed(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((4, 4), "u2"), chunks=(2, 2))
        source = io.as_source(path)
        source.verify()
        shutil.rmtree(path)
        created(path, np.ones((4, 4), "u2"), chunks=(4, 4))
        with pytest.raises(SourceError, match=r"x\.zarr changed"):
            source.verify()

    @pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": (4, 4)}])
    @pytest.mark.parametrize("change", ["rewritten", "removed", "added"])
    def test_chunks_that_change_are_noticed(self, tmp_path, executor, options, change):
        array = np.ones((8, 8), "u2")
        path = created(tmp_path / "x.zarr", array, chunks=(2, 2), **options)
        unit = 4 if options.get("shards") else 2
        if change == "added":
            node = zarr.open_array(path, mode="r+")
            node[-unit:, -unit:] = 0

        def change_it(block):
            if not (tmp_path / "done").exists():
                (tmp_path / "done").touch()
                if change == "removed":
                    chunk = next(p for p in path.rglob("*") if p.name[0] in "0123" and p.is_file())
                    chunk.unlink()
                else:
                    zarr.open_array(path, mode="r+")[-unit:, -unit:] = 3
            return block

        with pytest.raises(SourceError, match=r"x\.zarr changed \(its metadata, or files"):
            gb.process(
                change_it, path, tmp_path / "y.npy", size_max=4, overlap=0, executor=executor
            )
        assert not (tmp_path / "y.npy").exists()

    def test_of_arrays_in_very_many_folders_some_are_looked_at(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.ones((6, 4, 2), "u2"), chunks=(2, 2, 2))
        store = io.as_source(path).store
        names = ["c", "c/0", "c/1", "c/2", "c/0/0", "c/0/1", "c/1/0", "c/1/1", "c/2/0", "c/2/1"]
        assert store.folders(10) == [str(path / name) for name in names]
        assert len(store.folders(9)) == 4
        assert len(store.folders(3)) == 1

    def test_random_damage_never_crashes(self, tmp_path):
        """In another process: a crash would end the tests."""
        array = np.random.default_rng(0).integers(0, 9, (32, 32)).astype("u2")
        for number, codec in enumerate(["blosc", "zstd", "gzip"]):
            sink = io.zarr.Sink(tmp_path / f"{number}.zarr", codec=codec, chunks=32)
            sink = sink.create(array.shape, array.dtype, "C")
            sink[:] = array
            sink.finish()
        ends(start(FUZZ, tmp_path))


BOMBS = """
import resource, sys
from gpublocks import io
from gpublocks.errors import SourceError
for path in sys.argv[1:]:
    source = io.as_source(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        source[:]
    except SourceError as error:
        assert "chunk (0, 0)" in str(error), error
    else:
        raise AssertionError("read")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
"""

FUZZ = """
import random, sys
from pathlib import Path
from typing import ClassVar
from gpublocks import io
from gpublocks.errors import SourceError
dice = random.Random(0)
for number in range(3):
    path = Path(sys.argv[1]) / f"{number}.zarr"
    chunk = path / "c" / "0" / "0"
    data = chunk.read_bytes()
    source = io.as_source(path)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(40) if dice.random() < 0.5 else dice.randrange(len(data))
            changed[min(place, len(data) - 1)] = dice.randrange(256)
        chunk.write_bytes(changed)
        try:
            source[:]
        except SourceError:
            pass
"""


class TestBadSinks:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chunks": (2, 2)}, r"chunks are \(2, 2\), but the result has 3 axes"),
            ({"chunks": (2, 2, 0)}, "chunks hold 0"),
            ({"chunks": (2, 2, 1.5)}, "chunks hold 1.5"),
            ({"chunks": 4, "shards": 6}, "are not multiples of chunks"),
            ({"shards": 4, "zarr_format": 2}, "Zarr 2 has no shards"),
            ({"zarr_format": 4}, "zarr_format is 4"),
            ({"method": "median"}, "method 'median'"),
            ({"levels": 0}, "levels is 0"),
            ({"codec": "zip"}, "codec is 'zip'; use 'zstd'"),
            ({"codec": "zstd:x"}, "codec is 'zstd:x'"),
            ({"codec": "gzip:77"}, "codec 'gzip' with .* does not work"),
            ({"levels": 2, "axes": "xcy"}, "is no OME-Zarr image"),
            ({"axes": "zy"}, "axes 'zy' has 2 values, but there are 3 axes"),
            ({"scale": (1, 0, 1)}, "spacing holds 0; use finite numbers"),
        ],
    )
    def test_what_cannot_be_created(self, tmp_path, options, message):
        sink = io.zarr.Sink(tmp_path / "x.zarr", **options)
        with pytest.raises((SinkError, PlanError), match=message):
            gb.process(np.negative, reference(), sink, overlap=0)
        assert list(tmp_path.iterdir()) == []

    def test_codecs_as_zarr_has_them(self, tmp_path):
        from zarr.codecs import BloscCodec, ZstdCodec

        for number, codec in enumerate([ZstdCodec(level=4), BloscCodec(cname="lz4"), "none"]):
            for version in (2, 3):
                path = tmp_path / f"{number}{version}.zarr"
                sink = io.zarr.Sink(path, codec=codec, chunks=4, zarr_format=version)
                gb.process(np.negative, reference(), sink, overlap=0)
                assert np.array_equal(read(path), -reference())
        text = (tmp_path / "03.zarr" / "zarr.json").read_text()
        assert json.loads(text)["codecs"][1]["configuration"]["level"] == 4

    def test_what_is_there_is_replaced_only_if_told(self, tmp_path):
        path = created(tmp_path / "x.zarr", reference(), chunks=(5, 6, 7))
        with pytest.raises(SinkError, match="overwrite=True"):
            io.zarr.Sink(path).check()
        sink = io.zarr.Sink(path, overwrite=True).create((2, 2), np.dtype("u1"), "C")
        sink[:] = 3
        assert np.array_equal(read(path), reference())
        sink.finish()
        assert read(path).tolist() == [[3, 3], [3, 3]]
        assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]

    def test_no_other_folder_is_ever_removed(self, tmp_path):
        (tmp_path / "x.zarr").mkdir()
        (tmp_path / "x.zarr" / "thesis.tex").write_text("x")
        with pytest.raises(SinkError, match="remove it yourself"):
            io.zarr.Sink(tmp_path / "x.zarr", overwrite=True).check()
        (tmp_path / "y.zarr.partial").mkdir()
        (tmp_path / "y.zarr.partial" / "thesis.tex").write_text("x")
        with pytest.raises(SinkError, match=r"y\.zarr\.partial is in the way"):
            io.zarr.Sink(tmp_path / "y.zarr").check()
        (tmp_path / "z.zarr.replaced").mkdir()
        with pytest.raises(SinkError, match=r"z\.zarr\.replaced is in the way"):
            io.zarr.Sink(tmp_path / "z.zarr").check()
        (tmp_path / "w.zarr").symlink_to(tmp_path / "x.zarr")
        with pytest.raises(SinkError, match=r"w\.zarr exists|remove it yourself"):
            io.zarr.Sink(tmp_path / "w.zarr", overwrite=True).check()
        assert len(list(tmp_path.rglob("thesis.tex"))) == 2

    def test_two_runs_do_not_write_one_array(self, tmp_path):
        first = io.zarr.Sink(tmp_path / "x.zarr").create((2,), np.dtype("u1"), "C")
        with pytest.raises(SinkError, match="another run is writing"):
            io.zarr.Sink(tmp_path / "x.zarr").create((2,), np.dtype("u1"), "C")
        first[:] = 1
        first.finish()
        assert read(tmp_path / "x.zarr").tolist() == [1, 1]

    def test_what_appears_meanwhile_is_kept(self, tmp_path):
        sink = io.zarr.Sink(tmp_path / "x.zarr").create((2,), np.dtype("u1"), "C")
        sink[:] = 1
        created(tmp_path / "x.zarr", np.zeros(2, "u1"), chunks=(2,))
        with pytest.raises(SinkError, match=r"appeared .*kept in .*x\.zarr\.partial"):
            sink.finish()
        sink.abort()
        assert read(tmp_path / "x.zarr.partial").tolist() == [1, 1]

    def test_missing_folders_and_permissions(self, tmp_path):
        with pytest.raises(SinkError, match="no folder"):
            io.as_sink(tmp_path / "missing" / "x.zarr")
        path = created(tmp_path / "x.zarr", reference(), chunks=(5, 6, 7))
        if os.getuid():
            path.chmod(0o500)
            with pytest.raises(SinkError, match="Permission denied"):
                io.as_sink(path)

    def test_a_full_disk_is_an_error(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (4, 300, 300)).astype("u1")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
            sink = io.zarr.Sink(tmp_path / "x.zarr", chunks=(2, 300, 300))
            with pytest.raises(SinkError, match=r"cannot write .*: File too large \(chunk \(0"):
                gb.process(np.negative, noise, sink, executor="serial", overlap=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert list(tmp_path.iterdir()) == []

    def test_objects(self, tmp_path):
        with pytest.raises(GpublocksError, match="cannot be stored"):
            io.zarr.Sink(tmp_path / "x.zarr").create((2,), np.dtype(object), "C")
        with pytest.raises(ArgumentTypeError, match="is no array"):
            io.as_source(zarr.storage.MemoryStore())


class TestUnits:
    def test_preferred_ones_are_about_a_megabyte(self):
        for itemsize in (1, 2, 4, 8, 16):
            unit = zarr_layout.units_of((1000, 2000, 2000), itemsize)[0]
            assert np.prod(unit) * itemsize == MEGABYTE
            assert max(unit) <= 2 * min(unit)
        assert zarr_layout.units_of((9, 3, 800, 700, 900), 4)[0] == (1, 1, 64, 64, 64)
        assert zarr_layout.units_of((5,), 4)[0] == (5,)

    @given(
        shape=st.lists(st.integers(0, 3000), min_size=1, max_size=5).map(tuple),
        itemsize=st.sampled_from([1, 2, 4, 8, 16]),
    )
    def test_they_get_smaller(self, shape, itemsize):
        units = zarr_layout.units_of(shape, itemsize)
        sizes = [int(np.prod(unit)) for unit in units]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(units)) == len(units) < 120
        assert sizes[0] * itemsize <= MEGABYTE
        assert units[-1] == (1,) * len(shape)
        for unit in units:
            assert all(1 <= u <= max(1, n) for u, n in zip(unit, shape, strict=True))

    def test_given_ones_are_kept(self, tmp_path):
        sink = io.zarr.Sink(tmp_path / "x.zarr", chunks=(3, 5, 7))
        assert sink.units((50, 60, 70), np.dtype("u2")) == [(3, 5, 7)]
        sink = io.zarr.Sink(tmp_path / "x.zarr", chunks=5, shards=(10, 20, 200))
        assert sink.units((50, 60, 70), np.dtype("u2")) == [(10, 20, 200)]
        made = sink.create((50, 60, 70), np.dtype("u2"), "C")
        assert (made.unit, made.read_unit) == ((10, 20, 200), (5, 5, 5))
        made.abort()
        sink = io.zarr.Sink(tmp_path / "x.zarr")
        made = sink.create((50, 60, 70), np.dtype("u2"), "C", unit=(4, 60, 64))
        assert made.unit == (4, 60, 64)
