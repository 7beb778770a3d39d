"""What formats of a small header and plain voxels promise, beside what all sources and sinks do."""

import signal
import time
from typing import ClassVar

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks import contracts, io
from gpublocks.errors import SinkError
from gpublocks.geometry import Region
from tests.contracts.sources import NewSinkContract, SourceContract, reference
from tests.forks import fork

FILL = """
import sys, numpy as np
from gpublocks import io
from gpublocks.geometry import Region
sink = eval(sys.argv[1]).create((200, 100, 100), np.dtype("i4"), "C")
voxels = np.arange(2_000_000, dtype="i4").reshape(200, 100, 100)
for n in range(0, 200, 20):
    sink.write(Region((n, 0, 0), (n + 20, 100, 100)), voxels[n:n + 20])
print("written", file=sys.stderr, flush=True)
sink.sync()
sink.finish()
print("finished", file=sys.stderr, flush=True)
"""


class FastestFirst(SourceContract):
    """Sources of formats that store the first axis fastest, and know no other order."""

    @pytest.fixture(params=["F"])
    def order(self, request):
        return request.param


class NewFileContract(NewSinkContract):
    """Subclasses say how the format's own library reads what was written.

    The first axis is the fastest of these files, whatever order is asked for: axes stay as they
    are, and a copy in the other order would cost a pass over all voxels.
    """

    kind = None
    """The class of the new sink."""
    options: ClassVar = {}
    suffix = ""
    beside = ""
    """Suffix of the file of voxels, if that is another one."""
    orders = "FF"
    """In which orders a sink is that is created in C and in F order."""
    dtypes = ("u1", "i2", "f4", ">u2")

    def make(self, folder, **options):
        return self.kind(folder / f"new{self.suffix}", **self.options, **options)

    def read(self, path, array):
        """Return what the format's library reads; `array` is what was written."""
        raise NotImplementedError

    def opened(self, path, array):
        """Return the source of a finished file."""
        return io.as_source(path)

    @property
    def names(self):
        """Names of the files of a finished sink."""
        return {f"new{self.suffix}", f"new{self.beside or self.suffix}"}

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_what_is_written_is_there_when_finished(self, tmp_path, order):
        new = self.make(tmp_path)
        sink = new.create((5, 6, 7), np.dtype("f4"), order)
        assert isinstance(sink, contracts.Sink)
        stored = self.orders["CF".index(order)]
        assert (sink.shape, sink.dtype, sink.order) == ((5, 6, 7), np.float32, stored)
        for index in range(5):
            region = Region((index, 0, 0), (index + 1, 6, 7))
            sink.write(region, reference()[region.slices])
        assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
        sink.sync()
        sink.finish()
        sink.finish()
        sink.abort()
        assert {path.name for path in tmp_path.iterdir()} == self.names
        assert sink.location == str(tmp_path / f"new{self.beside or self.suffix}")
        for source in (sink, self.opened(new.location, reference(stored))):
            assert np.array_equal(np.asarray(source), reference())

    def test_what_is_never_written_is_zero(self, tmp_path):
        new = self.make(tmp_path)
        sink = new.create((5, 6, 7), np.dtype("f4"), "F")
        region = Region((1, 2, 3), (4, 5, 7))
        sink.write(region, np.ones(region.shape))
        sink.finish()
        assert np.asarray(self.opened(new.location, reference("F"))).sum() == region.size

    # Subclasses differ, on purpose.
    @settings(
        max_examples=15,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_the_library_reads_it(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("new")
        shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
        dtype = np.dtype(data.draw(st.sampled_from(self.dtypes)))
        order = data.draw(st.sampled_from("CF"))
        written = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        new = self.make(folder)
        sink = new.create(shape, dtype, order)
        start = tuple([data.draw(st.integers(0, n)) for n in shape])
        for axis in range(len(shape)):
            lower = (*start[:axis], *[0] * (len(shape) - axis))
            upper = (*shape[:axis], start[axis], *shape[axis + 1 :])
            region = Region(tuple(map(min, lower, upper)), upper)
            sink.write(region, written[region.slices])
        rest = Region(start, shape)
        sink.write(rest, written[rest.slices])
        sink.finish()
        read = self.read(new.location, np.asarray(sink))
        assert read.dtype.newbyteorder("=") == dtype.newbyteorder("=")
        assert np.array_equal(read, written)
        source = self.opened(new.location, np.asarray(sink))
        assert (source.shape, source.dtype) == (shape, dtype)
        assert np.array_equal(np.asarray(source), written)

    def test_from_file_to_file(self, tmp_path, executor):
        array = np.random.default_rng(0).integers(0, 30_000, (20, 21, 22)).astype("i2")
        sink = io.as_sink(tmp_path / f"source{self.suffix}").create(array.shape, array.dtype, "F")
        sink.write(Region.whole(array.shape), array)
        sink.finish()
        source = self.opened(tmp_path / f"source{self.suffix}", np.asarray(sink))
        path = tmp_path / f"new{self.suffix}"
        given = {"halo": 2, "size_max": 8, "processes": 2, "executor": executor}
        new = self.make(tmp_path) if self.options else path
        assert gb.process(ndi.median_filter, source, new, size=(5, 3, 3), **given) is new
        expected = ndi.median_filter(array, size=(5, 3, 3))
        assert np.array_equal(np.asarray(self.opened(path, np.asarray(sink))), expected)
        assert len(list(tmp_path.iterdir())) == 2 * len(self.names)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_killed_run_leaves_nothing_or_all(self, tmp_path, seed):
        path = tmp_path / f"new{self.suffix}"
        expected = np.arange(2_000_000, dtype="i4").reshape(200, 100, 100)
        new = f"io.{self.kind.__module__.split('.')[-1]}.Sink({str(path)!r}, **{self.options})"
        process = fork(FILL, new)
        if seed == 0:
            while not list(tmp_path.iterdir()):
                time.sleep(0.001)
        else:
            assert process.stderr.readline() == "written\n"
            time.sleep(np.random.default_rng(seed).uniform(0, 0.1))
        process.kill()
        process.communicate()
        if path.exists():
            like = np.asarray(expected, order=self.orders[0])
            assert np.array_equal(self.read(path, like), expected)
            return
        assert process.returncode == -signal.SIGKILL
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(Region.whole((5, 6, 7)), reference())
        sink.finish()
        assert {path.name for path in tmp_path.iterdir()} == self.names
        assert np.array_equal(np.asarray(sink), reference())

    def test_two_runs_at_once_are_refused(self, tmp_path):
        first = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        first.write(Region.whole((5, 6, 7)), reference())
        with pytest.raises(SinkError, match="another run is writing"):
            self.make(tmp_path).create((2,), np.dtype("f4"), "C")
        first.finish()
        assert np.array_equal(np.asarray(first), reference())

    def test_overwrite_replaces_the_old_file_at_the_end(self, tmp_path):
        for name in self.names:
            (tmp_path / name).write_bytes(b"old")
        path = tmp_path / f"new{self.suffix}"
        with pytest.raises(SinkError, match="exists"):
            self.make(tmp_path).check()
        sink = self.make(tmp_path, overwrite=True).create((5, 6, 7), np.dtype("f4"), "F")
        sink.write(Region.whole((5, 6, 7)), reference())
        assert path.read_bytes() == b"old"
        sink.finish()
        assert np.array_equal(np.asarray(self.opened(path, reference("F"))), reference())

    @pytest.mark.parametrize("dtype", ["?", "f2", "U3", "M8[s]", "O"])
    def test_types_that_it_has_not(self, tmp_path, dtype):
        with pytest.raises((SinkError, TypeError), match=r"no voxels of type|cannot lie"):
            self.make(tmp_path).create((2, 3), np.dtype(dtype), "F")
        assert list(tmp_path.iterdir()) == []
