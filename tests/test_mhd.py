"""MetaImage files keep the contract, are those of ITK, and damaged ones are refused in time."""

import os
import pickle
import zlib
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import SinkError, SourceError
from gpublocks.geometry import Region
from tests.contracts.headed import FastestFirst, NewFileContract
from tests.contracts.sources import SinkContract, ends, reference, start

# As SimpleITK 2.5 writes it.
HEADER = """\
ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 0 1 0 -1 0
Offset = 1 -2 3.5
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.5 0.59999999999999998 2
DimSize = 5 6 7
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
VOXELS = reference("F").tobytes("A")


def changed(*changes):
    """Return the header with fields replaced, or added where there were none."""
    text = HEADER
    for field in changes:
        key = field.split(" = ")[0]
        lines = text.splitlines(keepends=True)
        if any(line.startswith(f"{key} ") for line in lines):
            text = "".join([f"{field}\n" if x.startswith(f"{key} ") else x for x in lines])
        else:
            text = f"{lines[0]}{field}\n{''.join(lines[1:])}"
    return text


def made(folder, *changes, voxels=VOXELS, name="x.mha"):
    """Write a file and return its path."""
    (folder / name).write_bytes(changed(*changes).encode() + voxels)
    return folder / name


def itk():
    """Return SimpleITK."""
    return pytest.importorskip("SimpleITK", reason="SimpleITK reads and writes these files")


class TestFile(SinkContract, FastestFirst):
    name = "Mhd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_sink(made(folder, voxels=array.tobytes("A")))


class TestDetached(SinkContract, FastestFirst):
    name = "Mhd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        (folder / "x.raw").write_bytes(array.tobytes("A"))
        path = made(folder, "ElementDataFile = x.raw", voxels=b"", name="x.mhd")
        assert io.as_source(path).location == str(folder / "x.raw")
        return io.as_sink(path)


class TestCompressed(FastestFirst):
    name = "Mhd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        voxels = zlib.compress(array.tobytes("A"))
        size = f"CompressedDataSize = {len(voxels)}"
        return io.as_source(made(folder, "CompressedData = True", size, voxels=voxels))


class TestDetachedCompressed(FastestFirst):
    name = "Mhd-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        (folder / "x.zraw").write_bytes(zlib.compress(array.tobytes("A"), wbits=31))
        changes = "CompressedData = True", "ElementDataFile = x.zraw"
        return io.as_source(made(folder, *changes, voxels=b"", name="x.mhd"))


class TestNew(NewFileContract):
    kind = io.mhd.Sink
    suffix = ".mha"
    dtypes = ("i1", "u1", ">i2", "u2", "i4", "u4", "i8", ">u8", "f4", "f8")

    def read(self, path, array):
        return np.fromfile(path, array.dtype, offset=os.path.getsize(path) - array.nbytes).reshape(
            array.shape, order="F"
        )


class TestNewPair(NewFileContract):
    kind = io.mhd.Sink
    suffix = ".mhd"
    beside = ".raw"
    dtypes = TestNew.dtypes

    def read(self, path, array):
        data = os.path.splitext(path)[0] + ".raw"
        return np.fromfile(data, array.dtype).reshape(array.shape, order="F")

    def test_a_file_of_voxels_that_exists_is_kept(self, tmp_path):
        (tmp_path / "new.raw").write_bytes(b"mine")
        with pytest.raises(SinkError, match=r"new\.raw exists"):
            io.as_sink(tmp_path / "new.mhd")
        (tmp_path / "new.raw").unlink()
        sink = io.as_sink(tmp_path / "new.mhd").create((5, 6, 7), np.dtype("f4"), "C")
        (tmp_path / "new.raw").write_bytes(b"mine")
        with pytest.raises(SinkError, match=r"new\.raw appeared during the run"):
            sink.finish()
        assert (tmp_path / "new.raw").read_bytes() == b"mine"
        assert not (tmp_path / "new.mhd").exists()

    def test_an_old_header_never_describes_new_voxels(self, tmp_path, monkeypatch):
        path = tmp_path / "new.mhd"
        for length in (3, 4):
            sink = io.mhd.Sink(path, overwrite=True).create((length,), np.dtype("f4"), "C")
            if length == 3:
                sink.finish()
        replace = os.replace

        def fail_for_headers(source, target):
            if target == str(path):
                raise OSError(5, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail_for_headers)
        with pytest.raises(SinkError, match=r"Input/output error; the result is kept in"):
            sink.finish()
        assert not path.exists()
        assert (tmp_path / "new.raw").stat().st_size == 16

    def test_no_room(self, tmp_path, monkeypatch):
        with pytest.raises(SinkError, match="needs 8000000 TB"):
            self.make(tmp_path).create((10**12, 10**6), np.dtype("f8"), "C")
        real = os.posix_fallocate
        full = OSError(28, "No space left on device")

        def fallocate(fd, start, length):
            if length > 10_000:
                raise full
            real(fd, start, length)

        monkeypatch.setattr(os, "posix_fallocate", fallocate)
        with pytest.raises(SinkError, match="No space left"):
            self.make(tmp_path).create((100, 100), np.dtype("f8"), "C")
        assert list(tmp_path.iterdir()) == []


def test_voxels_of_new_files_are_aligned(tmp_path):
    for length in range(1, 33):
        sink = io.mhd.Sink(tmp_path / "x.mha", overwrite=True)
        sink = sink.create((1,) * length, np.dtype("f8"), "C")
        assert np.asarray(sink).ctypes.data % 64 == 0
        sink.finish()
        assert io.as_source(tmp_path / "x.mha").ndim == length


class TestLayouts:
    """Where voxels are in the files, as MetaIO has it."""

    def check(self, path, dtype="<f4"):
        source = io.as_source(path)
        assert source.dtype == np.dtype(dtype)
        assert np.array_equal(np.asarray(source), reference())
        copy = gb.process(np.square, path, halo=0, executor="serial")
        assert np.array_equal(copy, reference() ** 2)

    @pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
    def test_byte_order(self, tmp_path, key):
        header = HEADER.replace("BinaryDataByteOrderMSB = False", f"{key} = True")
        voxels = reference(dtype=">f4").tobytes("F")
        (tmp_path / "x.mha").write_bytes(header.encode() + voxels)
        self.check(tmp_path / "x.mha", ">f4")

    def test_line_ends_and_spaces(self, tmp_path):
        header = HEADER.replace("\n", "  \r\n").replace(" = ", "=").replace("NDims=", " NDims : ")
        (tmp_path / "x.mha").write_bytes(header.encode() + VOXELS)
        self.check(tmp_path / "x.mha")

    @pytest.mark.parametrize("local", ["LOCAL", "Local", "local"])
    def test_local(self, tmp_path, local):
        self.check(made(tmp_path, f"ElementDataFile = {local}", name="x.mhd"))

    def test_header_sizes(self, tmp_path):
        (tmp_path / "my voxels").write_bytes(b"12345" + VOXELS)
        for size in (5, -1):
            changes = f"HeaderSize = {size}", "ElementDataFile = my voxels"
            self.check(made(tmp_path, *changes, voxels=b""))
        self.check(made(tmp_path, "HeaderSize = -1", voxels=b"12345" + VOXELS))

    def test_header_size_of_compressed_voxels(self, tmp_path):
        (tmp_path / "x.zraw").write_bytes(b"12345" + zlib.compress(VOXELS))
        changes = "HeaderSize = 5", "ElementDataFile = x.zraw", "CompressedData = 1"
        self.check(made(tmp_path, *changes, voxels=b""))

    def test_channels_are_the_fastest_axis(self, tmp_path):
        changes = "DimSize = 6 7", "NDims = 2", "ElementNumberOfChannels = 5"
        changes += "TransformMatrix = 1 0 0 1", "Offset = 0 0", "ElementSpacing = 1 2"
        path = made(tmp_path, *changes, "ElementType = MET_FLOAT_ARRAY")
        self.check(path)
        told = io.as_source(path).metadata
        assert told["axes"] == ("c", "x", "y")
        assert told["spacing"] == (None, 1, 2)
        sink = io.mhd.Sink(tmp_path / "y.mha", metadata=told).create((5, 6, 7), np.dtype("f4"), "F")
        sink.finish()
        assert io.as_source(tmp_path / "y.mha").metadata == told
        assert b"ElementNumberOfChannels = 5\n" in (tmp_path / "y.mha").read_bytes()

    @pytest.mark.parametrize(
        ("name", "dtype"), [("MET_LONG", "i4"), ("MET_ULONG", "u4"), ("MET_LONG_LONG", "i8")]
    )
    def test_types(self, tmp_path, name, dtype):
        voxels = reference(dtype=dtype).tobytes("F")
        self.check(made(tmp_path, f"ElementType = {name}", voxels=voxels), dtype)


class TestMetadata:
    EXPECTED: ClassVar = {
        "axes": ("x", "y", "z"),
        "spacing": (0.5, 0.6, 2.0),
        "space": "LPS",
        "directions": ((0.5, 0, 0), (0, 0, 0.6), (0, -2.0, 0)),
        "origin": (1.0, -2.0, 3.5),
    }

    def test_is_what_the_header_tells_and_goes_on(self, tmp_path):
        told = io.as_source(made(tmp_path)).metadata
        assert told == self.EXPECTED
        assert pickle.loads(pickle.dumps(io.as_source(made(tmp_path)))).metadata == told
        sink = io.mhd.Sink(tmp_path / "y.mhd", metadata=told)
        sink.create((5, 6, 7), np.dtype("u2"), "C").finish()
        assert io.as_source(tmp_path / "y.mhd").metadata == told

    def test_other_formats_understand_it(self, tmp_path):
        told = io.as_source(made(tmp_path)).metadata
        shape, dtype = (5, 6, 7), np.dtype("u2")
        io.nrrd.Sink(tmp_path / "y.nrrd", metadata=told).create(shape, dtype, "C").finish()
        assert io.as_source(tmp_path / "y.nrrd").metadata == told
        io.nifti.Sink(tmp_path / "y.nii", metadata=told).create(shape, dtype, "C").finish()
        other = io.as_source(tmp_path / "y.nii").metadata
        assert other["space"] == "RAS"
        assert other["origin"] == (-1.0, 2.0, 3.5)
        assert np.allclose(other["directions"], ((-0.5, 0, 0), (0, 0, 0.6), (0, 2.0, 0)))
        io.mhd.Sink(tmp_path / "z.mha", metadata=other).create(shape, dtype, "C").finish()
        back = io.as_source(tmp_path / "z.mha").metadata
        assert back["space"] == "LPS"
        assert np.allclose(back["directions"], told["directions"])
        assert back["origin"] == told["origin"]

    def test_units_and_intensities(self, tmp_path):
        changes = "DistanceUnits = um", "ElementToIntensityFunctionSlope = 2"
        told = io.as_source(made(tmp_path, *changes)).metadata
        assert told["units"] == ("um", "um", "um")
        assert told["scaling"] == (2, 0)
        sink = io.mhd.Sink(tmp_path / "y.mha", metadata=told)
        sink.create((5, 6, 7), np.dtype("u2"), "C").finish()
        again = io.as_source(tmp_path / "y.mha").metadata
        assert again == {key: value for key, value in told.items() if key != "scaling"}

    def test_directions_in_a_plane_are_none(self, tmp_path):
        told = {"directions": ((1.0, 0.0), (2.0, 0.0)), "origin": (3.0, 4.0)}
        sink = io.mhd.Sink(tmp_path / "x.mha", metadata=told)
        sink.create((2, 3), np.dtype("u1"), "C").finish()
        found = io.as_source(tmp_path / "x.mha").metadata
        assert found["directions"] == ((1, 0), (0, 1))
        assert found["origin"] == (3, 4)

    @pytest.mark.parametrize(
        "told",
        [
            {"spacing": (1.0, None, 3.0), "axes": ("z", "y", "x")},
            {"directions": (None, (0.0, 0.0, 1.0)), "origin": (0.0, 0.0, 0.0)},
            {"directions": ((1.0, 0.0), (2.0, 0.0)), "origin": (3.0, 4.0)},
            {"spacing": (1.0,) * 9, "units": ("mm", "s")},
        ],
    )
    def test_what_does_not_fit_does_no_harm(self, tmp_path, told):
        for shape in ((3,), (2, 3), (4, 3, 2), (5, 4, 3, 2)):
            for sink in (io.mhd.Sink, io.nrrd.Sink, io.nifti.Sink):
                suffix = {io.mhd.Sink: "mha", io.nrrd.Sink: "nrrd", io.nifti.Sink: "nii"}[sink]
                path = tmp_path / f"{len(shape)}.{suffix}"
                sink(path, metadata=told).create(shape, np.dtype("u1"), "C").finish()
                assert io.as_source(path).shape == shape


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from gpublocks import io

os.environ["OPENBLAS_NUM_THREADS"] = "1"
overwrite, again = [word == "True" for word in sys.argv[2:]]

def write(path, value, overwrite=False):
    sink = io.mhd.Sink(path, overwrite=overwrite).create((5, 6, 7), np.dtype("f4"), "C")
    sink[:] = value
    sink.finish()

def killed(path, left):
    # Write 1 in another process, and kill that before it has done so many things to files.
    if child := os.fork():
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    def counted(call):
        def counting(name, *args, **kwargs):
            nonlocal left
            if str(path)[:-4] in str(name):
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return call(name, *args, **kwargs)
        return counting
    os.open, os.unlink, os.replace = map(counted, (os.open, os.unlink, os.replace))
    write(path, 1, overwrite)
    os._exit(0)

for steps in range(99):
    folder = Path(sys.argv[1], str(steps))
    folder.mkdir()
    path = folder / "x.mhd"
    if overwrite:
        write(path, 7)
    if again:
        assert killed(path, 4)
    over = not killed(path, steps)
    assert not over or path.exists()
    if path.exists():
        assert set(np.unique(io.as_source(path))) == ({1} if over or not overwrite else {7})
    write(path, 2, overwrite=overwrite or path.exists())
    assert set(np.unique(io.as_source(path))) == {2}
    assert {one.name for one in folder.iterdir()} == {"x.mhd", "x.raw"}
    if over:
        break
assert steps > 5
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["first", "after a killed one"])
def test_runs_killed_at_any_step_leave_nothing_in_the_way(tmp_path, overwrite, again):
    ends(start(KILLED, tmp_path, overwrite, again))


def test_voxels_of_others_are_not_taken_for_left_behind(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"mine")
    sink = io.mhd.Sink(tmp_path / "x.mhd", overwrite=True)
    under_way = sink.create((5, 6, 7), np.dtype("f4"), "C")
    with pytest.raises(SinkError, match=r"x\.raw exists"):
        io.mhd.Sink(tmp_path / "x.mhd").check()
    under_way.abort()
    with pytest.raises(SinkError, match=r"x\.raw exists"):
        io.mhd.Sink(tmp_path / "x.mhd").check()
    assert (tmp_path / "x.raw").read_bytes() == b"mine"


class TestItk:
    @pytest.mark.parametrize("suffix", ["mha", "mhd"])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_we_read_its_files(self, tmp_path, suffix, compressed):
        sitk = itk()
        array = np.random.default_rng(0).integers(0, 1000, (5, 6, 7, 2)).astype("u2")
        for voxels in (array[..., 0], array):
            image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
            image.SetSpacing((0.5, 0.6, 2))
            image.SetOrigin((1, -2, 3.5))
            image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
            path = tmp_path / f"x{voxels.ndim}.{suffix}"
            sitk.WriteImage(image, str(path), compressed)
            source = io.as_source(path)
            assert np.array_equal(np.asarray(source).T, voxels)
            expected = TestMetadata.EXPECTED["directions"]
            assert source.metadata["directions"][-3:] == expected
            assert source.metadata["origin"] == (1, -2, 3.5)

    @pytest.mark.parametrize("suffix", ["mha", "mhd"])
    @pytest.mark.parametrize("dtype", TestNew.dtypes)
    def test_it_reads_ours(self, tmp_path, suffix, dtype):
        sitk = itk()
        path = tmp_path / f"x.{suffix}"
        sink = io.mhd.Sink(path, metadata=TestMetadata.EXPECTED)
        sink = sink.create((5, 6, 7), np.dtype(dtype), "C")
        sink.write(Region.whole((5, 6, 7)), reference() % 100)
        sink.finish()
        image = sitk.ReadImage(str(path))
        assert np.array_equal(sitk.GetArrayFromImage(image).T, reference() % 100)
        assert image.GetSpacing() == (0.5, 0.6, 2)
        assert image.GetOrigin() == (1, -2, 3.5)
        assert image.GetDirection() == (1, 0, 0, 0, 0, -1, 0, 1, 0)


BAD = [
    ("", "is not a MetaImage file .is empty."),
    ("\x89PNG and more", r"is not a MetaImage file .starts with b'"),
    (HEADER.replace("ElementDataFile = LOCAL\n", ""), "does not end with ElementDataFile"),
    (changed("ObjectType = Mesh"), "holds a Mesh, no image"),
    (HEADER.replace("NDims = 3\n", ""), "no usable MetaImage header: no 'NDims'"),
    (HEADER.replace("DimSize = 5 6 7\n", ""), "no usable MetaImage header: no 'DimSize'"),
    (changed("NDims = 2"), "3 sizes for 2 axes"),
    (changed("DimSize = 5 6 x"), "no usable MetaImage header: invalid literal"),
    (changed("DimSize = 5 6 -7"), "an array of shape"),
    (changed("DimSize = 5 6 70"), "840 of 8400 data bytes .truncated"),
    (changed("DimSize = 5 6 7000000000000000000"), "too large"),
    (changed("ElementType = MET_STRING"), "of type 'MET_STRING'; supported: numbers"),
    (changed("BinaryData = False"), "its voxels are text"),
    (changed("HeaderSize = -2"), "1 channels and HeaderSize -2"),
    (changed("HeaderSize = -1", "CompressedData = True"), "HeaderSize -1 for compressed"),
    (changed("ElementNumberOfChannels = 0"), "0 channels"),
    (changed("ElementSpacing = 1 2"), "ElementSpacing is '1 2', not 3 numbers"),
    (changed("Offset = 1 2 nan"), "Offset is '1 2 nan', not 3 numbers"),
    (changed("ElementDataFile = LIST"), r"in several files \(LIST\)"),
    (changed("ElementDataFile = LIST 2D"), "in several files"),
    (changed("ElementDataFile = x%03d.raw 1 7 1"), "in several files"),
    (changed("ElementDataFile = ../x.mha"), "which is not in its folder"),
    (changed("ElementDataFile = /etc/passwd"), "which is not in its folder"),
    (changed("ElementDataFile = secret"), "which is not in its folder"),
    (changed("ElementDataFile = missing.raw"), "no such file: .*missing.raw"),
    (changed("ElementDataFile = "), "is a directory"),
    (HEADER.replace("LOCAL", "a\0b"), "not in its folder|cannot open|no such file"),
    (changed(f"Comment = {'x' * (1 << 16)}"), "does not end with ElementDataFile"),
]


@pytest.mark.parametrize(("header", "message"), BAD)
def test_bad_files(tmp_path, header, message):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "secret").symlink_to("/etc/passwd")
    path = folder / "x.mha"
    path.write_bytes(header.encode() + (VOXELS if "NDims" in header else b""))
    for opened, error in ((io.as_source, SourceError), (io.as_sink, SinkError)):
        with pytest.raises(error, match=message):
            opened(path)
    assert {path.name for path in folder.iterdir()} == {"secret", "x.mha"}


@settings(max_examples=60)
@given(place=st.integers(0, len(HEADER) - 1), byte=st.integers(0, 255))
def test_damaged_headers_never_surprise(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.mha"
    data = bytearray(HEADER.encode() + VOXELS)
    data[place] = byte
    path.write_bytes(data)
    try:
        source = io.as_source(path)
    except SourceError:
        return
    source.read(Region.whole(source.shape))


def test_compressed_files_are_not_written_in_place(tmp_path):
    path = made(tmp_path, "CompressedData = True", voxels=zlib.compress(VOXELS))
    with pytest.raises(SinkError, match="is compressed, which cannot be written in place"):
        io.as_sink(path)
