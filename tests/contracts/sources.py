"""What every source and every sink promises: test classes that those of each format inherit."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpublocks import contracts
from gpublocks.contracts import Reach
from gpublocks.errors import GpublocksError
from gpublocks.geometry import Region
from tests.forks import fork

REGIONS = [
    Region((0, 0, 0), (5, 6, 7)),
    Region((1, 2, 3), (4, 5, 7)),
    Region((4, 0, 6), (5, 6, 7)),
    Region((2, 3, 3), (2, 3, 7)),
]

ROOT = Path(__file__).parents[2]

READ = """
import pickle, sys, numpy as np
source, region = pickle.load(open(sys.argv[1], "rb"))
np.save(sys.argv[2], source.read(region))
"""

WRITE = """
import pickle, sys
sink, writes = pickle.load(open(sys.argv[1], "rb"))
for region, array in writes:
    sink.write(region, array)
"""


def reference(order="C", dtype=np.float32):
    """Return an array of shape (5, 6, 7) of distinct numbers."""
    return np.asarray(np.arange(210).reshape(5, 6, 7), dtype=dtype, order=order)


def start(code, *arguments):
    """Start another interpreter on a piece of code."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ends(process):
    """Wait for another process, which must not fail."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors


class SourceContract:
    """Subclasses say how a source is made of an array, and which name and reach it has."""

    name = ""
    reach = Reach.PROCESS

    def make(self, array, folder):
        """Return a source that shows the voxels of an array."""
        raise NotImplementedError

    @pytest.fixture(params=["C", "F"])
    def order(self, request):
        """Memory order of the reference."""
        return request.param

    @pytest.fixture
    def expected(self, order):
        """The voxels that the source shows."""
        return reference(order)

    @pytest.fixture
    def source(self, expected, tmp_path):
        """The source under test."""
        return self.make(expected.copy("K"), tmp_path)

    def test_says_what_it_is(self, source, expected, order):
        assert isinstance(source, contracts.Source)
        assert source.name == self.name
        assert source.reach == self.reach
        assert source.shape == expected.shape
        assert source.dtype == expected.dtype
        assert source.order == order
        assert repr(source) == f"{self.name}(5, 6, 7)[float32]|{order}|"
        assert (source.ndim, source.size, len(source)) == (3, 210, 5)
        assert len(source.unit) == 3
        assert all(type(n) is int for n in (*source.shape, *source.unit))

    @pytest.mark.parametrize("region", REGIONS)
    def test_reads_what_numpy_slices(self, source, expected, region):
        assert np.array_equal(source.read(region), expected[region.slices])
        assert np.array_equal(source[region.slices], expected[region.slices])

    def test_what_is_read_is_private_and_writable(self, source, expected, order):
        region = REGIONS[1]
        first = source.read(region)
        assert first.flags[f"{order}_CONTIGUOUS"]
        first[...] = -1
        assert np.array_equal(source.read(region), expected[region.slices])
        whole = source.read(REGIONS[0])
        whole[...] = -1
        assert np.array_equal(source.read(REGIONS[0]), expected)

    def test_reads_into_an_array(self, source, expected):
        region = REGIONS[1]
        out = np.zeros(region.shape, source.dtype)
        assert source.read(region, out) is out
        assert np.array_equal(out, expected[region.slices])

    def test_a_region_outside_is_refused(self, source):
        with pytest.raises(GpublocksError):
            source.read(Region((3, 0, 0), (6, 6, 7)))

    def test_is_an_array_for_numpy(self, source, expected):
        assert np.array_equal(np.asarray(source), expected)
        assert np.asarray(source, dtype=np.int64).dtype == np.int64

    def test_extents_tell_who_shares_bytes(self, source, tmp_path):
        (tmp_path / "other").mkdir()
        other = self.make(reference(), tmp_path / "other")
        if source.extent is not None:
            assert source.extent.overlaps(source.extent)
            assert not source.extent.overlaps(other.extent)

    def test_travels_as_far_as_it_says(self, source, expected, tmp_path):
        if source.reach == Reach.PROCESS:
            with pytest.raises(TypeError, match=r"travel|other processes"):
                pickle.dumps(source)
            return
        region = REGIONS[1]
        assert len(pickle.dumps(source)) < 1000
        (tmp_path / "sent").write_bytes(pickle.dumps((source, region)))
        ends(fork(READ, tmp_path / "sent", tmp_path / "got.npy"))
        assert np.array_equal(np.load(tmp_path / "got.npy"), expected[region.slices])


class SinkContract(SourceContract):
    """Subclasses say how a sink is made of an array whose voxels it shows until it is written."""

    single_writer = False

    def test_is_a_sink(self, source):
        assert isinstance(source, contracts.Sink)
        assert source.writable is True
        assert source.single_writer is self.single_writer

    def test_writes_what_numpy_assigns(self, source, expected):
        for value, region in enumerate(REGIONS):
            source.write(region, np.full(region.shape, -value, source.dtype))
            expected[region.slices] = -value
        source.sync()
        assert np.array_equal(source.read(REGIONS[0]), expected)

    def test_casts_as_assignment_does(self, source, expected):
        region = REGIONS[1]
        source.write(region, np.full(region.shape, 2, np.int64))
        expected[region.slices] = 2
        assert np.array_equal(source.read(REGIONS[0]), expected)
        source[1:3, ::2, 4] = 7
        expected[1:3, ::2, 4] = 7
        assert np.array_equal(np.asarray(source), expected)

    def test_does_not_broadcast(self, source, expected):
        with pytest.raises(GpublocksError):
            source.write(REGIONS[1], np.zeros((1, 1, 1), source.dtype))
        assert np.array_equal(source.read(REGIONS[0]), expected)

    def test_two_processes_lose_nothing(self, source, expected, tmp_path):
        if source.reach == Reach.PROCESS:
            return
        # Interleaved single voxels share every page and every cache line.
        shares = [[], []]
        for n in range(5 * 6 * 7):
            lower = tuple(int(i) for i in np.unravel_index(n, (5, 6, 7)))
            region = Region(lower, tuple(i + 1 for i in lower))
            shares[n % 2].append((region, np.full((1, 1, 1), 1000 + n, np.float32)))
        processes = []
        for n, writes in enumerate(shares):
            (tmp_path / f"sent{n}").write_bytes(pickle.dumps((source, writes)))
            processes.append(fork(WRITE, tmp_path / f"sent{n}"))
        for process in processes:
            ends(process)
        assert np.array_equal(source.read(REGIONS[0]), np.arange(1000, 1210).reshape(5, 6, 7))
        assert not np.array_equal(source.read(REGIONS[0]), expected)

    def test_finishing_what_existed_does_nothing(self, source, expected):
        source.finish()
        source.abort()
        assert np.array_equal(source.read(REGIONS[0]), expected)


class NewSinkContract:
    """Subclasses say how a new sink is described; the file's folder holds nothing else."""

    def make(self, folder):
        """Return a new sink, in a folder if it is a file."""
        raise NotImplementedError

    def test_is_created_only_when_told(self, tmp_path):
        new = self.make(tmp_path)
        assert isinstance(new.location, str | None)
        new.check()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_what_is_written_is_there_when_finished(self, tmp_path, order):
        new = self.make(tmp_path)
        sink = new.create((5, 6, 7), np.dtype("f4"), order)
        assert isinstance(sink, contracts.Sink)
        assert (sink.shape, sink.dtype, sink.order) == ((5, 6, 7), np.float32, order)
        for index in range(5):
            region = Region((index, 0, 0), (index + 1, 6, 7))
            sink.write(region, reference()[region.slices])
        if new.location is not None:
            assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
        sink.sync()
        sink.finish()
        sink.finish()
        sink.abort()
        assert np.array_equal(np.asarray(sink), reference())
        if new.location is not None:
            assert [str(path) for path in tmp_path.iterdir()] == [new.location]
            assert sink.location == new.location

    def test_abort_leaves_nothing(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[1], np.ones(REGIONS[1].shape))
        sink.abort()
        sink.abort()
        sink.finish()
        assert list(tmp_path.iterdir()) == []

    def test_what_is_never_written_is_zero(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[1], np.ones(REGIONS[1].shape))
        sink.finish()
        assert np.asarray(sink).sum() == REGIONS[1].size

    @pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
    def test_an_empty_sink(self, tmp_path, shape):
        sink = self.make(tmp_path).create(shape, np.dtype("u1"), "C")
        sink.finish()
        assert sink.read(Region.whole(shape)).shape == shape
