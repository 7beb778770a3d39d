"""NRRD files keep the contract, are those of pynrrd, and damaged ones are refused in time."""

import gzip
import os
import warnings
from typing import ClassVar

import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import ArgumentTypeError, SinkError, SourceError
from gpublocks.geometry import Region
from tests.contracts.headed import FastestFirst, NewFileContract
from tests.contracts.sources import SinkContract, reference

HEADER = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 5 6 7\nencoding: raw\nendian: little\n"
VOXELS = reference("F").tobytes("A")


def written(path, array, **header):
    """Write a file with pynrrd and return its path."""
    with warnings.catch_warnings():
        # pynrrd asks for the time as newer Pythons do not like it.
        warnings.simplefilter("ignore", DeprecationWarning)
        nrrd.write(str(path), array, header, compression_level=1)
    return path


def made(folder, header, voxels=VOXELS, name="x.nrrd"):
    """Write a file of a header and voxels, and return its path."""
    (folder / name).write_bytes(header + b"\n" + voxels)
    return folder / name


class TestFile(SinkContract, FastestFirst):
    name = "Nrrd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = written(folder / "x.nrrd", array, encoding="raw")
        return io.as_sink(path)

    def test_pynrrd_sees_what_is_written(self, source):
        source.write(Region.whole(source.shape), np.zeros(source.shape))
        source.sync()
        assert not nrrd.read(source.location)[0].any()


class TestDetached(SinkContract, FastestFirst):
    name = "Nrrd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = written(folder / "x.nhdr", array, encoding="raw")
        assert io.as_source(path).location == str(folder / "x.raw")
        return io.as_sink(path)


class TestGzip(FastestFirst):
    name = "Nrrd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(written(folder / "x.nrrd", array, encoding="gzip"))


class TestDetachedBzip2(FastestFirst):
    name = "Nrrd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(written(folder / "x.nhdr", array, encoding="bz2"))


class TestNew(NewFileContract):
    kind = io.nrrd.Sink
    suffix = ".nrrd"
    dtypes = ("i1", "u1", "i2", ">u2", "i4", "u4", ">i8", "u8", "f4", ">f8")

    def read(self, path, array):
        return nrrd.read(str(path))[0]


class TestNewGzip(TestNew):
    options: ClassVar = {"encoding": "gzip"}

    def test_it_is_smaller(self, tmp_path):
        sink = self.make(tmp_path).create((100, 100, 100), np.dtype("u2"), "C")
        sink.finish()
        assert os.path.getsize(sink.location) < 20_000


def test_voxels_of_new_files_are_aligned(tmp_path):
    for length in range(1, 40):
        sink = io.nrrd.Sink(tmp_path / "x.nrrd", True, metadata={"axes": ("x" * length,)})
        sink = sink.create((3,), np.dtype("f8"), "C")
        assert np.asarray(sink).ctypes.data % 64 == 0
        sink.finish()
        assert nrrd.read_header(sink.location)["labels"] == ["x" * length]


def test_encodings():
    with pytest.raises(ArgumentTypeError, match="the encoding is 'hex'; give 'raw' or 'gzip'"):
        io.nrrd.Sink("x.nrrd", encoding="hex")


class TestLayouts:
    """Where voxels are in the files, as the format has it."""

    def check(self, path, dtype="<f4"):
        source = io.as_source(path)
        assert source.dtype == np.dtype(dtype)
        assert np.array_equal(np.asarray(source), reference())
        assert np.array_equal(np.asarray(source), nrrd.read(str(path))[0])
        copy = gb.process(np.negative, path, halo=0, executor="serial")
        assert np.array_equal(copy, -reference())

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "gz", "bzip2", "bz2"])
    def test_encodings(self, tmp_path, encoding):
        self.check(written(tmp_path / "x.nrrd", reference(), encoding=encoding))

    def test_byte_order(self, tmp_path):
        header = HEADER.replace(b"little", b"big")
        self.check(made(tmp_path, header, reference(dtype=">f4").tobytes("F")), ">f4")

    def test_comments_and_line_ends(self, tmp_path):
        header = HEADER.replace(b"\n", b"\r\n") + b"# comment: no\r\nkey:=value: and more\r\n\r"
        self.check(made(tmp_path, header))

    @pytest.mark.parametrize("skip", [b"byte skip: 5", b"byteskip: -1", b"line skip: 2"])
    def test_skips(self, tmp_path, skip):
        before = b"one\ntwo\n" if b"line" in skip else b"12345"
        header = HEADER + skip + b"\ndata file: x.dat\n"
        (tmp_path / "x.dat").write_bytes(before + VOXELS)
        self.check(made(tmp_path, header, b"", "x.nhdr"))
        (tmp_path / "attached").mkdir()
        self.check(made(tmp_path / "attached", HEADER + skip + b"\n", before + VOXELS))

    def test_skips_of_compressed_voxels(self, tmp_path):
        header = HEADER.replace(b"raw", b"gzip") + b"lineskip: 1\nbyteskip: 5\n"
        path = made(tmp_path, header, b"line\n" + gzip.compress(b"12345" + VOXELS))
        # As Teem reads it: lines of the file, then bytes of what is unpacked. pynrrd cannot.
        assert np.array_equal(np.asarray(io.as_source(path)), reference())

    def test_a_folder_below(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "my voxels").write_bytes(VOXELS)
        self.check(made(tmp_path, HEADER + b"datafile: data/my voxels\n", b""))

    @settings(max_examples=25)
    @given(data=st.data())
    def test_any_file_of_pynrrd(self, tmp_path_factory, data):
        shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
        dtype = data.draw(st.sampled_from(TestNew.dtypes))
        suffix = data.draw(st.sampled_from(["nrrd", "nhdr"]))
        encoding = data.draw(st.sampled_from(["raw", "gzip", "bzip2"]))
        array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        path = tmp_path_factory.mktemp("x") / f"x.{suffix}"
        source = io.as_source(written(path, array, encoding=encoding))
        assert source.dtype == np.dtype(dtype)
        region = Region.whole(array.shape)
        assert np.array_equal(source.read(region), array)


class TestMetadata:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, {"axes": ("x", "y", "z")}),
            (
                {"spacings": [0.5, 1, np.nan], "units": ["um", "microns", ""]},
                {"spacing": (0.5, 1, None), "units": ("um", "um", None)},
            ),
            ({"labels": ["p", "q", "r"]}, {"axes": ("p", "q", "r")}),
            ({"labels": ["p", "p", "r"]}, {"axes": ("x", "y", "z")}),
            ({"kinds": ["RGB-color", "domain", "domain"]}, {"axes": ("c", "x", "y")}),
            (
                {
                    "space": "left-posterior-superior",
                    "space directions": np.array([[0, 2, 0], [3, 0, 4], [0, 0, 1]]),
                    "space origin": np.array([1.0, -2, 3]),
                    "space units": ["mm", "mm", "mm"],
                },
                {
                    "space": "LPS",
                    "directions": ((0, 2, 0), (3, 0, 4), (0, 0, 1)),
                    "spacing": (2, 5, 1),
                    "origin": (1, -2, 3),
                    "units": ("mm", "mm", "mm"),
                },
            ),
            (
                {
                    "space": "scanner-xyz",
                    "space directions": np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0]]),
                },
                {
                    "axes": ("c", "x", "y"),
                    "space": "scanner-xyz",
                    "directions": (None, (1, 0, 0), (0, 1, 0)),
                    "spacing": (None, 1, 1),
                },
            ),
        ],
    )
    def test_is_what_the_header_tells_and_goes_on(self, tmp_path, fields, expected):
        path = written(tmp_path / "x.nrrd", reference(), encoding="raw", **fields)
        source = io.as_source(path)
        for key, value in expected.items():
            assert source.metadata[key] == value
        sink = io.nrrd.Sink(tmp_path / "y.nrrd", metadata=source.metadata)
        sink.create((5, 6, 7), np.dtype("f4"), "F").finish()
        assert io.as_source(tmp_path / "y.nrrd").metadata == source.metadata
        again = nrrd.read_header(str(tmp_path / "y.nrrd"))
        for key in {"space", "space origin", "space units"} & set(fields):
            assert np.array_equal(again[key], fields[key])
        for key in {"space directions", "spacings"} & set(fields):
            assert np.array_equal(again[key], fields[key], equal_nan=True)

    def test_what_a_label_must_not_do(self, tmp_path):
        told = {"axes": ('a"b', "c\nencoding: gzip", "\N{GREEK SMALL LETTER MU}"), "units": ["um"]}
        sink = io.nrrd.Sink(tmp_path / "x.nrrd", metadata=told)
        sink.create((5, 6, 7), np.dtype("f4"), "F").finish()
        header = nrrd.read_header(str(tmp_path / "x.nrrd"))
        assert header["encoding"] == "raw"
        assert header["labels"] == ["ab", "cencoding: gzip", ""]

    def test_shapes_of_their_own(self, tmp_path):
        told = {"axes": ("x", "y", "z"), "spacing": (1.0, 2.0, 3.0)}
        for shape in ((3,), (2, 3, 4, 5)):
            path = tmp_path / f"{len(shape)}.nrrd"
            io.nrrd.Sink(path, metadata=told).create(shape, np.dtype("u1"), "C").finish()
            assert io.as_source(path).metadata["spacing"] == (1, 2, 3, None)[: len(shape)]


BAD = [
    (b"", "is not an NRRD file .is empty."),
    (b"PNG and more", "is not an NRRD file .starts with b'PNG and "),
    (b"NRRD0004\n", "no usable NRRD header: no 'sizes'"),
    (b"NRRD0009\n", "no usable NRRD header"),
    (b"NRRDfish\n", "no usable NRRD header"),
    (HEADER.replace(b"dimension: 3", b"dimension: 2"), "3 sizes for 2 axes"),
    (HEADER.replace(b"5 6 7", b"5 6 -7"), r"cannot hold an array of shape \(5, 6, -7\)"),
    (HEADER.replace(b"5 6 7", b"5 6 x"), "no usable NRRD header"),
    (HEADER.replace(b"5 6 7", b"5 6000000 7000000000000"), "840 of 840|too large"),
    (HEADER.replace(b"5 6 7", b"5 6 70"), "840 of 8400 data bytes .truncated"),
    (HEADER.replace(b"dimension: 3\nsizes: 5 6 7", b"dimension: 40\nsizes:" + b" 1" * 40), "shape"),
    (HEADER.replace(b"float", b"block"), "voxels of type 'block'; supported: numbers"),
    (HEADER.replace(b"endian: little\n", b""), "does not tell its byte order"),
    (HEADER.replace(b"raw", b"ascii"), "encoding 'ascii'; supported: raw, gzip, bzip2"),
    (HEADER.replace(b"raw", b"hex"), "encoding 'hex'"),
    (HEADER.replace(b"raw", b"zrl"), "encoding 'zrl'"),
    (HEADER + b"byte skip: -2\n", "line skip 0 and byte skip -2"),
    (HEADER.replace(b"raw", b"gzip") + b"byte skip: -1\n", "byte skip -1 with encoding gzip"),
    (HEADER + b"line skip: -1\n", "line skip -1"),
    (HEADER + b"line skip: 9999999999\n", "fewer than 9999999999 lines"),
    (HEADER + b"data file: LIST\na.raw\nb.raw\n", "has its voxels in several files"),
    (HEADER + b"data file: a%03d.raw 1 7 1\n", "has its voxels in several files"),
    (HEADER + b"data file: ../x.nrrd\n", "which is not in its folder"),
    (HEADER + b"data file: /etc/passwd\n", "which is not in its folder"),
    (HEADER + b"data file: secret\n", "which is not in its folder"),
    (HEADER + b"data file: missing.raw\n", "no such file: .*missing.raw"),
    (HEADER + b"data file: .\n", "is a directory"),
    (HEADER + b"data file: a\0b\n", "not in its folder|cannot open|no such file"),
    (HEADER + b"a" * (1 << 20), "no usable NRRD header"),
    (HEADER + b"a: b" + b" " * (1 << 20), "does not end"),
    (HEADER + b"type: float\n", "no usable NRRD header: Duplicate"),
    (HEADER + b"nonsense\n", "no usable NRRD header"),
]


@pytest.mark.parametrize(("header", "message"), BAD)
def test_bad_files(tmp_path, header, message):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "secret").symlink_to("/etc/passwd")
    path = folder / "x.nrrd"
    path.write_bytes(header + b"\n" + VOXELS if header.startswith(b"NRRD0004\nt") else header)
    for opened, error in ((io.as_source, SourceError), (io.as_sink, SinkError)):
        with pytest.raises(error, match=message):
            opened(path)
    assert {path.name for path in folder.iterdir()} == {"secret", "x.nrrd"}


@settings(max_examples=60)
@given(place=st.integers(0, len(HEADER)), byte=st.integers(0, 255))
def test_damaged_headers_never_surprise(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.nrrd"
    data = bytearray(HEADER + b"\n" + VOXELS)
    data[place] = byte
    path.write_bytes(data)
    try:
        source = io.as_source(path)
    except SourceError:
        return
    source.read(Region.whole(source.shape))


def test_compressed_files_are_not_written_in_place(tmp_path):
    path = written(tmp_path / "x.nrrd", reference(), encoding="gzip")
    with pytest.raises(SinkError, match="is compressed, which cannot be written in place"):
        io.as_sink(path)
    with pytest.raises(ArgumentTypeError, match="cannot be assigned"):
        io.as_sink(io.as_source(path))


def test_without_pynrrd(tmp_path, monkeypatch):
    path = written(tmp_path / "x.nrrd", reference(), encoding="raw")
    monkeypatch.setitem(__import__("sys").modules, "nrrd", None)
    with pytest.raises(SourceError, match=r"needs pynrrd: pip install 'gpublocks\[nrrd\]'"):
        io.as_source(path)
