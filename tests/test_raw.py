"""Files of voxels without a header keep the contract, and what cannot be is refused in time."""

import numpy as np
import pytest

from gpublocks import io
from gpublocks.contracts import Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from tests.contracts.headed import NewFileContract
from tests.contracts.sources import SinkContract, SourceContract, reference


def letter(array):
    """Return the order of an array."""
    return "F" if array.flags.f_contiguous else "C"


class TestFile(SinkContract):
    name = "Raw-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = folder / "x.raw"
        path.write_bytes(array.tobytes("A"))
        return io.raw.Source(path, array.shape, array.dtype, letter(array), writable=True)


class TestPartOfFile(SourceContract):
    name = "Raw-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = folder / "x.bin"
        path.write_bytes(b"header" + array.tobytes("A") + b"and what follows")
        return io.raw.Source(str(path), list(array.shape), "f4", letter(array), offset=6)


class TestNew(NewFileContract):
    kind = io.raw.Sink
    suffix = ".raw"
    orders = "CF"
    dtypes = ("?", "u1", "f2", ">u4", "c8", "f8")

    def read(self, path, array):
        return np.fromfile(path, array.dtype).reshape(array.shape, order=letter(array))

    def opened(self, path, array):
        return io.raw.Source(path, array.shape, array.dtype, letter(array))

    @pytest.mark.parametrize("dtype", ["O", [("a", "O")]])
    def test_types_that_it_has_not(self, tmp_path, dtype):
        with pytest.raises(ArgumentTypeError, match="cannot lie in a file of voxels"):
            io.raw.Sink(tmp_path / "x.raw").create((2, 3), np.dtype(dtype), "F")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".raw", ".bin", ".dat"])
def test_a_path_alone_does_not_say_what_is_in_it(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(bytes(100))
    for opened, error in ((io.as_source, SourceError), (io.as_sink, SinkError)):
        with pytest.raises(error, match=r"no header .*use io.raw.Source\(path, shape, dtype"):
            opened(path)
    assert isinstance(io.as_sink(tmp_path / f"new{suffix}"), io.raw.Sink)


def test_big_endian_voxels(tmp_path):
    (tmp_path / "x.raw").write_bytes(reference().astype(">u2").tobytes())
    source = io.raw.Source(tmp_path / "x.raw", (5, 6, 7), ">u2")
    assert source.dtype == np.dtype(">u2")
    assert np.array_equal(np.asarray(source), reference())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, SourceError, r"x\.raw has no header that tells its shape"),
        ({"shape": (2, 3)}, SourceError, "has no header"),
        ({"shape": 3.0, "dtype": "u1"}, ArgumentTypeError, "the shape is 3.0; give"),
        ({"shape": (2, "3"), "dtype": "u1"}, ArgumentTypeError, "give the number of voxels"),
        ({"shape": (2, -3), "dtype": "u1"}, SourceError, r"an array of shape .2, -3."),
        ({"shape": (), "dtype": "u1"}, SourceError, "an array of shape"),
        ({"shape": (0, 2**62, 9), "dtype": "u1"}, SourceError, "too large"),
        ({"shape": (2, 3), "dtype": "float33"}, ArgumentTypeError, "no type of NumPy's"),
        ({"shape": (2, 3), "dtype": object}, ArgumentTypeError, "cannot lie in a file"),
        ({"shape": (2, 3), "dtype": "u1", "order": "A"}, PlanError, "the order is 'A'"),
        ({"shape": (2, 3), "dtype": "u1", "offset": -1}, PlanError, "the offset is -1"),
        ({"shape": (20, 3), "dtype": "u2"}, SourceError, "24 of 120 data bytes .truncated"),
        ({"shape": (2, 3), "dtype": "u2", "offset": 20}, SourceError, "4 of 12 data bytes"),
    ],
)
def test_what_cannot_be(tmp_path, given, error, message):
    (tmp_path / "x.raw").write_bytes(bytes(24))
    with pytest.raises(error, match=message):
        io.raw.Source(tmp_path / "x.raw", **given)


def test_no_file(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        io.raw.Source(tmp_path / "x.raw", (2,), "u1")
    with pytest.raises(SourceError, match="is a directory"):
        io.raw.Source(tmp_path, (2,), "u1")
