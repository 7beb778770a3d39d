"""NIfTI files keep the contract, are those of nibabel, and damaged ones are refused in time."""

import gzip
import importlib.metadata
import sys

import nibabel
import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import SinkError, SourceError
from gpublocks.geometry import Region
from tests.contracts.headed import FastestFirst, NewFileContract
from tests.contracts.sources import SinkContract, reference

AFFINE = np.array([[0, -2, 0, 10], [0.5, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
HEAD = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def written(path, array, kind=nibabel.Nifti1Image, affine=AFFINE):
    """Write a file with nibabel and return its path."""
    nibabel.save(kind(array, affine, dtype=array.dtype), path)
    return path


def loaded(path):
    """Return the voxels as nibabel reads them."""
    return np.asanyarray(nibabel.load(path).dataobj)


class TestFile(SinkContract, FastestFirst):
    name = "Nifti-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_sink(written(folder / "x.nii", array))

    def test_nibabel_sees_what_is_written(self, source):
        source.write(Region.whole(source.shape), np.zeros(source.shape))
        source.sync()
        assert not loaded(source.location).any()


class TestPair(SinkContract, FastestFirst):
    name = "Nifti-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = written(folder / "x.img", array, nibabel.Nifti1Pair)
        assert io.as_source(path).location == str(folder / "x.img")
        return io.as_sink(folder / "x.hdr")


class TestPacked(FastestFirst):
    name = "Nifti-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_source(written(folder / "x.nii.gz", array))


class TestPackedPair(FastestFirst):
    name = "Nifti-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = written(folder / "x.img.gz", array, nibabel.Nifti2Pair)
        return io.as_source(str(path).replace(".img", ".hdr"))


class TestNew(NewFileContract):
    kind = io.nifti.Sink
    suffix = ".nii"
    dtypes = ("i1", "u1", "i2", ">u2", "i4", "u4", "i8", "u8", ">f4", "f8", "c8")

    def read(self, path, array):
        return loaded(path)


class TestNewPacked(TestNew):
    suffix = ".nii.gz"


class TestNewRgb:
    def test_records_as_nibabel_has_them(self, tmp_path):
        dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        sink = io.as_sink(tmp_path / "x.nii").create((2, 3, 4), dtype, "C")
        array = np.zeros((2, 3, 4), dtype)
        array["G"] = 7
        sink.write(Region.whole(sink.shape), array)
        sink.finish()
        assert np.array_equal(loaded(tmp_path / "x.nii"), array)
        assert np.array_equal(np.asarray(io.as_source(tmp_path / "x.nii")), array)


class TestLayouts:
    @pytest.mark.parametrize("suffix", ["nii", "nii.gz", "img", "hdr", "img.gz", "hdr.gz"])
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("order", "<>")
    def test_files_of_nibabel(self, tmp_path, suffix, version, order):
        single = suffix.startswith("nii")
        kind = getattr(nibabel, f"Nifti{version}{'Image' if single else 'Pair'}")
        header = kind.header_class(endianness=order)
        header.set_data_dtype("i2")
        image = kind(reference(dtype="i2"), AFFINE, header)
        path = tmp_path / f"x.{suffix}"
        nibabel.save(image, str(path).replace(".hdr", ".img"))
        source = io.as_source(path)
        assert source.dtype == np.dtype(f"{order}i2")
        assert np.array_equal(np.asarray(source), reference())
        assert np.allclose(np.transpose(source.metadata["directions"]), AFFINE[:3, :3])

    @pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
    def test_extensions(self, tmp_path, suffix):
        image = nibabel.Nifti1Image(reference(), AFFINE)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
        nibabel.save(image, tmp_path / f"x.{suffix}")
        source = io.as_source(tmp_path / f"x.{suffix}")
        assert np.array_equal(np.asarray(source), reference())

    @settings(max_examples=25)
    @given(data=st.data())
    def test_any_file_of_nibabel(self, tmp_path_factory, data):
        shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
        dtype = data.draw(st.sampled_from(TestNew.dtypes))
        suffix = data.draw(st.sampled_from(["nii", "nii.gz", "img"]))
        kind = nibabel.Nifti1Pair if suffix == "img" else nibabel.Nifti1Image
        array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        path = tmp_path_factory.mktemp("x") / f"x.{suffix}"
        source = io.as_source(written(path, array, kind))
        assert source.shape == array.shape
        assert np.array_equal(source.read(Region.whole(array.shape)), array)

    def test_long_axes_make_it_nifti_2(self, tmp_path):
        for length, kind in ((32767, nibabel.Nifti1Image), (32768, nibabel.Nifti2Image)):
            path = tmp_path / f"{length}.nii"
            io.as_sink(path).create((2, length), np.dtype("u1"), "C").finish()
            assert type(nibabel.load(path)) is kind
            assert nibabel.load(path).shape == (2, length)

    def test_too_many_axes(self, tmp_path):
        with pytest.raises(SinkError, match="7 axes at most, not 8"):
            io.as_sink(tmp_path / "x.nii").create((1,) * 8, np.dtype("u1"), "C")


class TestScaling:
    """Voxels are as stored; where that is not what they mean, somebody must say so."""

    @pytest.fixture
    def path(self, tmp_path):
        image = nibabel.Nifti1Image(reference(dtype="i2"), AFFINE)
        image.header.set_slope_inter(2, 10)
        nibabel.save(image, tmp_path / "x.nii")
        with (tmp_path / "x.nii").open("r+b") as file:
            # nibabel writes the scaling that it finds best, if it writes one.
            file.seek(112)
            file.write(np.array([2, 10], "<f4").tobytes())
        return tmp_path / "x.nii"

    def test_is_refused_unless_asked_for(self, path):
        assert np.array_equal(loaded(path), 2 * reference() + 10)
        for opened, error in ((io.as_source, SourceError), (io.as_sink, SinkError)):
            with pytest.raises(error, match=r"mean 2\.0 \* voxel \+ 10\.0; .*scaled=False"):
                opened(path)
        source = io.nifti.Source(path, scaled=False)
        assert source.metadata["scaling"] == (2, 10)
        assert np.array_equal(np.asarray(source), reference())
        sink = io.nifti.Source(path, writable=True, scaled=False)
        sink.write(Region.whole(sink.shape), np.zeros(sink.shape))
        assert (loaded(path) == 10).all()

    @pytest.mark.parametrize("scaling", [(0, 5), (np.nan, 5), (1, 0), (np.inf, np.nan)])
    def test_what_means_none(self, path, scaling):
        with path.open("r+b") as file:
            file.seek(112)
            file.write(np.array(scaling, "<f4").tobytes())
        assert np.array_equal(loaded(path), reference())
        assert np.array_equal(np.asarray(io.as_source(path)), reference())

    def test_new_files_have_none(self, path, tmp_path):
        told = io.nifti.Source(path, scaled=False).metadata
        sink = io.nifti.Sink(tmp_path / "y.nii", metadata=told)
        sink.create((5, 6, 7), np.dtype("f4"), "F").finish()
        assert "scaling" not in io.as_source(tmp_path / "y.nii").metadata


class TestMetadata:
    def test_is_what_the_header_tells_and_goes_on(self, tmp_path):
        image = nibabel.Nifti1Image(np.zeros((5, 6, 7, 4), "i2"), AFFINE)
        image.header.set_xyzt_units("micron", "msec")
        image.header.set_zooms((0.5, 2, 3, 0.25))
        nibabel.save(image, tmp_path / "x.nii.gz")
        told = io.as_source(tmp_path / "x.nii.gz").metadata
        assert told == {
            "axes": ("x", "y", "z", "t"),
            "spacing": (0.5, 2, 3, 0.25),
            "units": ("um", "um", "um", "ms"),
            "space": "RAS",
            "directions": ((0, 0.5, 0), (-2, 0, 0), (0, 0, 3)),
            "origin": (10, -20, 30),
        }
        sink = io.nifti.Sink(tmp_path / "y.nii", metadata=told)
        sink.create((5, 6, 7, 4), np.dtype("f4"), "F").finish()
        assert io.as_source(tmp_path / "y.nii").metadata == told
        again = nibabel.load(tmp_path / "y.nii")
        assert np.array_equal(again.affine, AFFINE)
        assert again.header.get_xyzt_units() == ("micron", "msec")
        assert again.header.get_zooms() == (0.5, 2, 3, 0.25)

    def test_a_transform_that_nibabel_makes_up_is_none(self, tmp_path):
        told = io.as_source(written(tmp_path / "x.nii", reference(), affine=None)).metadata
        assert told == {"axes": ("x", "y", "z"), "spacing": (1, 1, 1)}

    def test_a_qform(self, tmp_path):
        image = nibabel.Nifti1Image(reference(), None)
        image.header.set_qform(AFFINE, "scanner")
        nibabel.save(image, tmp_path / "x.nii")
        told = io.as_source(tmp_path / "x.nii").metadata
        assert np.allclose(np.transpose(told["directions"]), AFFINE[:3, :3], atol=1e-6)


def patched(offset, data):
    """Return a NIfTI-1 file with some bytes of its header replaced."""
    image = nibabel.Nifti1Image(reference(), AFFINE)
    file = bytearray(image.to_bytes())
    file[offset : offset + len(data)] = data
    return bytes(file)


def f4(*numbers):
    """Return bytes of a header."""
    return np.array(numbers, "<f4").tobytes()


def i2(*numbers):
    """Return bytes of a header."""
    return np.array(numbers, "<i2").tobytes()


BAD = [
    (b"", "is not a NIfTI file .is empty."),
    (b"NRRD and more", "is not a NIfTI file .starts with b'NRRD and"),
    (b"\x1f\x8b and more", "cannot be unpacked|damaged"),
    (gzip.compress(b"", mtime=0), "is not a NIfTI file .is empty."),
    (gzip.compress(b"something else", mtime=0), "is not a NIfTI file .starts with b'somethin"),
    (patched(344, b"abc"), "is not a NIfTI file"),
    (patched(0, b"")[:300], "is not a NIfTI file"),
    (patched(0, b"")[:500], "148 of 840 data bytes .truncated"),
    (patched(344, b"ni1"), "has its voxels in an .img file; give that one"),
    (patched(40, i2(0)), "no usable NIfTI header: it has no axes"),
    (patched(40, i2(3, 5, -6, 7)), "cannot hold an array of shape"),
    (patched(40, i2(3, 5, 6, 700)), "840 of 84000 data bytes"),
    (patched(40, i2(99)), "no usable NIfTI header|cannot hold"),
    (patched(70, i2(9999)), "no usable NIfTI header"),
    (patched(70, i2(0)), "no usable NIfTI header"),
    (patched(108, f4(0)), "its voxels begin at byte 0, before 348"),
    (patched(108, f4(np.nan)), "no usable NIfTI header"),
    (patched(108, f4(1e30)), "0 of 840 data bytes"),
    (patched(112, f4(2, np.inf)), "no usable NIfTI header: Valid slope but invalid intercept"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "x.nii"
    path.write_bytes(content)
    for opened, error in ((io.as_source, SourceError), (io.as_sink, SinkError)):
        with pytest.raises(error, match=message):
            opened(path)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_pairs(tmp_path):
    written(tmp_path / "x.img", reference(), nibabel.Nifti1Pair)
    (tmp_path / "x.img").rename(tmp_path / "y.img")
    with pytest.raises(SourceError, match=r"no such file: .*x\.img"):
        io.as_source(tmp_path / "x.hdr")
    with pytest.raises(SourceError, match=r"no such file: .*y\.hdr"):
        io.as_source(tmp_path / "y.img")
    (tmp_path / "x.img").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="not in its folder"):
        io.as_source(tmp_path / "x.img")
    nibabel.save(nibabel.AnalyzeImage(reference(), None), tmp_path / "z.img")
    with pytest.raises(SourceError, match=r"z\.img is not a NIfTI file"):
        io.as_source(tmp_path / "z.img")


# What is captured is read, and so forgotten, after each example.
@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(place=st.integers(0, 351), byte=st.integers(0, 255), packed=st.booleans())
def test_damaged_headers_never_surprise(tmp_path_factory, capfd, place, byte, packed):
    path = tmp_path_factory.getbasetemp() / "damaged.nii"
    data = patched(place, bytes([byte]))
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    try:
        source = io.nifti.Source(path, scaled=False)
        source.read(Region.whole(source.shape))
    except SourceError:
        pass
    assert capfd.readouterr() == ("", "")


def test_compressed_files_are_not_written_in_place(tmp_path):
    path = written(tmp_path / "x.nii.gz", reference())
    with pytest.raises(SinkError, match="is compressed, which cannot be written in place"):
        io.as_sink(path)


def test_without_nibabel(tmp_path, monkeypatch):
    path = written(tmp_path / "x.nii", reference())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(SourceError, match=r"needs nibabel: pip install 'gpublocks\[nifti\]'"):
        io.as_source(path)
    with pytest.raises(SinkError, match=r"needs nibabel: pip install 'gpublocks\[nifti\]'"):
        io.as_sink(tmp_path / "y.nii")
    assert list(tmp_path.iterdir()) == [path]


def test_the_head(tmp_path, executor):
    """A real head, the MNI template at 1 mm, from a compressed file to another one."""
    try:
        path = importlib.metadata.distribution("nilearn").locate_file(HEAD)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nilearn, whose wheel holds the head, is not installed")
    image = nibabel.load(path)
    expected = ndi.minimum_filter(np.asanyarray(image.dataobj), 3)
    new = io.nifti.Sink(tmp_path / "new.nii.gz", metadata=io.as_source(path).metadata)
    known = {"halo": 1, "processes": 2, "executor": executor}
    gb.process(ndi.minimum_filter, path, new, size=3, **known)
    assert np.array_equal(loaded(new.location), expected)
    assert np.array_equal(nibabel.load(new.location).affine, image.affine)
