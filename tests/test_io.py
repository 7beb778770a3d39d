"""Sources and sinks: each format keeps the contract, and what is wrong is refused in time."""

import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpublocks as gb
from gpublocks import io
from gpublocks.contracts import Extent, NewSink, Reach
from gpublocks.errors import (
    ArgumentTypeError,
    BudgetError,
    DeviceError,
    PlanError,
    SinkError,
    SourceError,
)
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
from tests.stored_pieces import Folder


def saved(folder, array, name="x.npy"):
    """Save an array and return its path."""
    np.save(folder / name, array)
    return folder / name


def listing(folder):
    """Return all that can be seen of a folder, to tell whether anything was changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, data)
    return found


@pytest.fixture
def untouched(tmp_path):
    """Give a folder in which nothing is created or changed from the first `with` on."""

    class Untouched:
        path = tmp_path

        def __enter__(self):
            self.before = listing(tmp_path)

        def __exit__(self, *error):
            assert listing(tmp_path) == self.before

    return Untouched()


class TestNumpy(SinkContract):
    name = "Numpy-Source"

    def make(self, array, folder):
        return io.as_source(array)

    def test_shares_the_array(self):
        array = reference()
        source = io.as_source(array)
        assert source.array is array
        assert source.as_memory() is source
        source[0] = 5
        assert (array[0] == 5).all()

    def test_array_or_shape(self):
        assert repr(io.npy.Source(shape=(2, 3), dtype="u1", order="F")) == (
            "Numpy-Source(2, 3)[uint8]|F|"
        )
        assert repr(io.as_source([[1.0, 2.0]])) == "Numpy-Source(1, 2)[float64]|C|"
        with pytest.raises(ArgumentTypeError, match="neither array nor shape"):
            io.npy.Source()
        array = np.zeros((2, 3))
        assert io.npy.Source(array, shape=(2, 3), dtype=float, order="C").array is array
        for wrong in ({"dtype": np.dtype("f4")}, {"shape": (3, 2)}, {"order": "F"}):
            with pytest.raises(PlanError, match="the array is Numpy-Source"):
                io.npy.Source(array, **wrong)

    @settings(deadline=None, max_examples=50)
    @given(data=st.data(), array=hnp.arrays("u1", hnp.array_shapes(max_dims=4)))
    def test_any_view_is_read_in_its_own_order(self, data, array):
        axes = data.draw(st.permutations(range(array.ndim)))
        source = io.as_source(array.transpose(axes)[::-1])
        copy = source.read(Region.whole(source.shape))
        assert copy.flags[f"{source.order}_CONTIGUOUS"]
        assert np.array_equal(copy, array.transpose(axes)[::-1])


class TestMemmapFile(SinkContract):
    name = "Memmap-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.memmap.Source(saved(folder, array), writable=True)

    def test_a_source_never_writes(self, source, expected, tmp_path):
        read_only = io.as_source(source.location)
        assert not read_only.writable
        with pytest.raises(SinkError, match="opened read-only"):
            read_only.write(REGIONS[0], expected)
        with pytest.raises(ValueError, match="read-only"):
            read_only[0] = 1
        assert np.array_equal(np.load(source.location), expected)

    def test_writes_reach_the_file(self, source):
        source.write(REGIONS[0], np.zeros(source.shape))
        source.sync()
        assert not np.load(source.location).any()


class TestMemmapObject(SinkContract):
    name = "Memmap-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        return io.as_sink(np.load(saved(folder, array), mmap_mode="r+"))


class TestMemmapView(SourceContract):
    name = "Memmap-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        path = folder / "raw"
        path.write_bytes(bytes(24) + array.tobytes("A"))
        whole = np.memmap(path, array.dtype, "r", offset=8, shape=(214,))
        return io.as_source(np.asarray(whole)[4:].reshape(array.shape, order=io_order(array)))


def io_order(array):
    """Return the order letter of an array."""
    return "F" if array.flags.f_contiguous else "C"


class TestShared(SinkContract):
    name = "Shared-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        shared = io.sma.empty(array.shape, array.dtype, io_order(array))
        shared[...] = array
        return io.as_sink(shared)


class Duck:
    """The least that can be read and written."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.order = io_order(array)

    def __getitem__(self, slicing):
        return self._array[slicing]

    def __setitem__(self, slicing, value):
        self._array[slicing] = value


class Forgetful(Duck):
    """One that loses what another thread assigns at the same time, as those of graphs do."""

    def __setitem__(self, slicing, value):
        array = self._array.copy()
        time.sleep(0.001)
        array[slicing] = value
        self._array = array


def test_paths_may_be_bytes(tmp_path):
    np.save(tmp_path / "x.npy", reference())
    path = os.fsencode(tmp_path / "x.npy")
    assert np.array_equal(io.as_source(path), reference())
    assert io.as_sink(path).location == str(tmp_path / "x.npy")


class TestDuck(SinkContract):
    name = "Duck-Source"
    single_writer = True

    def make(self, array, folder):
        return io.as_source(Duck(array))

    def test_has_one_writer(self, executor):
        array = np.arange(4000.0).reshape(40, 100)
        sink = Forgetful(np.zeros_like(array))
        gb.process(np.negative, array, sink, size_max=2, executor=executor, processes=4)
        assert np.array_equal(sink[:], -array)


class TestPermuted(SourceContract):
    name = "Permuted-Numpy-Source"

    def make(self, array, folder):
        return io.permuted.Permuted(io.as_source(array.transpose(2, 0, 1)), (1, 2, 0))

    def test_says_what_it_is(self, source, expected, order):
        assert (source.name, source.shape, source.order) == (self.name, expected.shape, order)

    def test_pieces_and_metadata_have_the_same_order(self):
        base = Folder("x", (5, 6, 7), "f4", "C", (2, 3, 7))
        base.metadata = {"axes": ("z", "y", "x"), "directions": ((1,), (2,))}
        source = io.permuted.Permuted(base, (2, 0, 1))
        assert (source.shape, source.unit, source.read_unit) == ((7, 5, 6), (7, 2, 3), (7, 2, 3))
        assert source.metadata == {"axes": ("x", "z", "y"), "directions": (None, (1,), (2,))}
        with pytest.raises(PlanError, match="are not those of"):
            io.permuted.Permuted(base, (0, 1, 1))


class TestPermutedPieces(SourceContract):
    name = "Permuted-Folder-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        order = "F" if array.flags.f_contiguous else "C"
        base = Folder.of(folder / "x", array.T, (2, 3, 4), "C" if order == "F" else "F")
        return io.permuted.Permuted(base, (2, 1, 0))


class TestRepeated(SourceContract):
    name = "Repeated-Source"
    factors = (2, 3, 4)

    @pytest.fixture
    def expected(self, order):
        boxes = np.arange(12).reshape(3, 2, 2).astype(np.float32)
        return np.asarray(np.kron(boxes, np.ones(self.factors))[:5, :, :7], "f4", order)

    def make(self, array, folder):
        coarse = array[::2, ::3, ::4].copy("F" if array.flags.f_contiguous else "C")
        return io.repeated.Repeated(coarse, self.factors, (5, 6, 7))

    def test_boxes_cover_the_volume(self):
        with pytest.raises(PlanError, match=r"give an array of shape \(3, 2, 2\)"):
            io.repeated.Repeated(np.zeros((2, 2, 2)), self.factors, (5, 6, 7))


class TestSlicedMemory(SinkContract):
    name = "Sliced-Numpy-Source"

    def make(self, array, folder):
        whole = np.zeros((9, 6, 2, 20), array.dtype, io_order(array))
        part = np.s_[2:7, ..., 1, 19:5:-2]
        whole[part] = array
        return io.as_source(whole, part)


class TestSlicedFile(SinkContract):
    name = "Sliced-Memmap-Source"
    reach = Reach.MACHINE

    def make(self, array, folder):
        whole = np.zeros((9, 6, 2, 20), array.dtype, io_order(array))
        part = np.s_[2:7, :, -1, 13:]
        whole[part] = array
        return io.as_source(io.memmap.Source(saved(folder, whole), writable=True), part)


class TestStaged:
    def staged(self, array, region):
        ring = io.staged.Ring(1000)
        staged = io.staged.Staged("Numpy-Source", array.shape, array.dtype, io_order(array))
        staged = pickle.loads(pickle.dumps(staged))
        staged.bind(ring.buffer, 64, region)[...] = array[region.slices]
        return staged, ring

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_shows_one_region_of_the_whole(self, order):
        array, region = reference(order), REGIONS[1]
        staged, ring = self.staged(array, region)
        assert repr(staged) == repr(io.as_source(array))
        copy = staged.read(region)
        assert copy.flags[f"{order}_CONTIGUOUS"]
        assert np.array_equal(copy, array[region.slices])
        inner = Region((2, 2, 4), (3, 4, 6))
        assert np.array_equal(staged.read(inner), array[inner.slices])
        assert np.array_equal(staged[2, 3:1:-1, -1], array[2, 3:1:-1, -1])
        staged.write(inner, np.zeros(inner.shape))
        assert not staged.read(inner).any()
        assert np.array_equal(copy, array[region.slices])
        staged.release()
        ring.close()

    def test_nothing_else_is_at_hand(self):
        staged, _ = self.staged(reference(), REGIONS[1])
        with pytest.raises(PlanError, match=r"only .1, 2, 3. to .4, 5, 7."):
            staged.read(Region((0, 2, 3), (4, 5, 7)))
        with pytest.raises(IndexError, match="axis 0 is outside"):
            staged[0, 2, 3]
        staged.release()
        with pytest.raises(PlanError, match="not bound"):
            staged.read(REGIONS[1])

    def test_two_maps_of_a_ring_are_the_same_memory(self):
        ring = io.staged.Ring(100)
        other = io.staged.Ring.attach(os.dup(ring.fd), 100)
        io.staged.array_at(ring.buffer, 8, (2, 2), np.dtype("i4"), "F")[...] = [[1, 2], [3, 4]]
        view = io.staged.array_at(other.buffer, 8, (4,), np.dtype("i4"), "C")
        ring.close()
        assert view.tolist() == [1, 3, 2, 4]
        other.close()
        assert view.tolist() == [1, 3, 2, 4]
        other.close()

    def test_no_room(self, monkeypatch):
        def full(fd, start, length):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(BudgetError, match="1000 bytes of shared memory"):
            io.staged.Ring(1000)


class TestNewFile(NewSinkContract):
    def make(self, folder):
        return io.as_sink(folder / "new.npy")

    def test_numpy_reads_it(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype(">i2"), "F")
        sink.write(REGIONS[0], reference())
        sink.finish()
        loaded = np.load(tmp_path / "new.npy")
        assert np.array_equal(loaded, reference())
        assert loaded.flags.f_contiguous
        assert loaded.dtype == np.dtype(">i2")

    def test_workers_write_the_partial_file_and_never_finish_it(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        worker = pickle.loads(pickle.dumps(sink))
        worker.write(REGIONS[0], reference())
        worker.finish()
        worker.abort()
        assert [path.name for path in tmp_path.iterdir()] == ["new.npy.partial"]
        sink.finish()
        assert np.array_equal(np.load(tmp_path / "new.npy"), reference())

    def test_two_runs_at_once_are_refused(self, tmp_path):
        first = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        first.write(REGIONS[0], reference())
        with pytest.raises(SinkError, match="another run is writing"):
            self.make(tmp_path).create((2,), np.dtype("f4"), "C")
        first.finish()
        assert np.array_equal(np.load(tmp_path / "new.npy"), reference())

    def test_a_killed_run_leaves_the_partial_file_only_and_it_is_replaced(self, tmp_path):
        code = """
import sys, time, numpy as np
from gpublocks import io
from gpublocks.geometry import Region
sink = io.as_sink(sys.argv[1]).create((1000, 1000), np.dtype("f8"), "C")
print("begun", file=sys.stderr, flush=True)
while True:
    sink.write(Region.whole(sink.shape), np.ones(sink.shape))
"""
        process = start(code, tmp_path / "new.npy")
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["new.npy.partial"]
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        sink.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["new.npy"]
        assert np.array_equal(np.load(tmp_path / "new.npy"), reference())

    def test_overwrite_replaces_the_old_file_at_the_end(self, tmp_path):
        path = saved(tmp_path, np.arange(3), "new.npy")
        sink = io.memmap.Sink(path, overwrite=True).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        assert np.array_equal(np.load(path), np.arange(3))
        sink.finish()
        assert np.array_equal(np.load(path), reference())

    def test_a_file_that_appears_meanwhile_is_kept_and_so_is_the_result(self, tmp_path):
        sink = self.make(tmp_path).create((5, 6, 7), np.dtype("f4"), "C")
        sink.write(REGIONS[0], reference())
        path = saved(tmp_path, np.arange(3), "new.npy")
        with pytest.raises(SinkError, match="appeared during the run; the result is kept in"):
            sink.finish()
        sink.abort()
        assert np.array_equal(np.load(path), np.arange(3))
        os.rename(tmp_path / "new.npy.partial", tmp_path / "kept.npy")
        assert np.array_equal(np.load(tmp_path / "kept.npy"), reference())

    def test_without_preallocation(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "posix_fallocate")
        self.test_numpy_reads_it(tmp_path)


class TestNewArray(NewSinkContract):
    def make(self, folder):
        return io.new_array()

    def test_too_large(self):
        with pytest.raises(BudgetError, match="needs 9007 TB of memory"):
            io.new_array().create((2**50,), np.dtype("f8"), "C")


class TestNewShared(NewSinkContract):
    def make(self, folder):
        return io.new_array(shared=True)


class TestSharedMemory:
    def test_is_gone_with_its_process(self, tmp_path):
        code = """
import pickle, sys
from gpublocks import io
array = io.sma.zeros((4, 5), "u1")
pickle.dump(io.as_source(array), open(sys.argv[1], "wb"))
"""
        ends(start(code, tmp_path / "sent"))
        with pytest.raises(SourceError, match="gone with process"):
            pickle.loads((tmp_path / "sent").read_bytes())

    def test_another_file_under_its_number_is_not_taken_for_it(self):
        shared = io.sma.zeros((4, 5))
        sent = pickle.dumps(io.as_source(shared))
        number = io.as_source(shared)._shared.memory.fd
        del shared
        with open(os.devnull) as other:
            os.dup2(other.fileno(), number)
            with pytest.raises(SourceError, match="gone with process"):
                pickle.loads(sent)
            if number != other.fileno():
                os.close(number)

    def test_is_freed_with_its_last_array(self):
        before = len(os.listdir("/proc/self/fd"))
        arrays = [io.sma.zeros((10,)) for _ in range(5)]
        view = arrays[0][2:4]
        del arrays
        assert len(os.listdir("/proc/self/fd")) == before + 2
        view[:] = 1
        del view
        assert len(os.listdir("/proc/self/fd")) == before

    def test_views_are_recognised(self):
        shared = io.sma.zeros((4, 5), order="F")
        part = io.as_source(shared[:, 2:4])
        assert part.name == "Shared-Source"
        pickle.loads(pickle.dumps(part))[...] = 3
        assert (shared[:, 2:4] == 3).all()
        assert not shared[:, :2].any()
        scattered = io.as_source(shared[::2])
        assert scattered.name == "Numpy-Source"
        assert scattered.extent.overlaps(io.as_source(shared).extent)
        assert not part.extent.overlaps(io.as_source(shared[:, :2]).extent)
        with pytest.raises(ArgumentTypeError, match="contiguous"):
            io.sma.Source(shared[::2])
        with pytest.raises(ArgumentTypeError, match="object"):
            io.sma.zeros(3, object)


class TestChoice:
    def test_by_type_and_suffix(self, tmp_path):
        path = saved(tmp_path, reference("F"))
        for x in (path, str(path), np.load(path, mmap_mode="r")):
            assert repr(io.as_source(x)) == "Memmap-Source(5, 6, 7)[float32]|F|"
        source = io.as_source(path)
        assert io.as_source(source) is source
        assert io.as_source(path).location == str(path)
        assert io.as_source(path).info(short=False).endswith(f"|F|{{{path}}}")

    def test_what_is_kept_out_of_the_address(self, tmp_path):
        path = saved(tmp_path, reference())
        private = np.load(path, mmap_mode="c")
        private[0] = -1
        assert io.as_source(private).reach == Reach.PROCESS
        assert (io.as_source(private).read(REGIONS[0])[0] == -1).all()
        scattered = io.as_source(np.load(path, mmap_mode="r")[:, ::2])
        assert scattered.reach == Reach.PROCESS
        assert scattered.extent.overlaps(io.as_source(path).extent)

    def test_a_file_that_lost_its_name_stays_in_this_process(self, tmp_path):
        path = saved(tmp_path, reference())
        mapped = np.load(path, mmap_mode="r")
        saved(tmp_path, np.zeros((5, 6, 7), "f4"), "y.npy")
        os.replace(tmp_path / "y.npy", path)
        source = io.as_source(mapped)
        assert source.reach == Reach.PROCESS
        assert np.array_equal(source.read(REGIONS[0]), reference())

    def test_a_foreign_source_is_taken_by_its_array(self, tmp_path):
        class Foreign(Duck):
            name = "Foreign-Source"
            location = None

            def __init__(self, array, shown):
                super().__init__(array)
                self.array = shown

        array = reference()
        mapped = np.load(saved(tmp_path, array), mmap_mode="r")
        assert io.as_source(Foreign(array, mapped)).name == "Memmap-Source"
        assert io.as_source(Foreign(array, array)).array is array
        assert io.as_source(Foreign(array, array[:2])).name == "Foreign-Source"

    def test_a_duck_with_a_file_travels_if_it_is_an_address(self, tmp_path):
        class Filed(Located):
            pass

        path = saved(tmp_path, reference())
        assert io.as_source(Located(path)).reach == Reach.MACHINE
        assert pickle.loads(pickle.dumps(io.as_source(Located(path))))[1, 2, 3] == 59
        heavy = Located(path)
        heavy.voxels = np.zeros(100_000)
        assert io.as_source(heavy).reach == Reach.PROCESS
        assert io.as_source(Filed(path)).reach == Reach.PROCESS
        assert io.as_source(Located(path)).unit == (1, 3, 7)
        assert io.as_source(Located(path)).extent.overlaps(io.as_source(path).extent)

    def test_units_of_a_part(self, tmp_path):
        source = io.as_source(Located(saved(tmp_path, reference())))
        assert io.as_source(source, np.s_[:, 3:]).unit == (1, 3, 7)
        assert io.as_source(source, np.s_[:, 2:]).unit == (1, 4, 7)
        assert io.as_source(source, np.s_[1, ::2]).unit == (3, 7)

    def test_nothing_is_loaded_before_it_is_used(self):
        code = """
import sys
from gpublocks import io
assert "gpublocks.io.duck" not in sys.modules
assert io.duck is sys.modules["gpublocks.io.duck"]
assert not {"scipy", "cupy", "zarr", "h5py", "tifffile"} & set(sys.modules)
"""
        ends(start(code))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            io.nothing  # noqa: B018

    def test_sinks(self, tmp_path):
        array = np.zeros((3, 4))
        assert io.as_sink(array).array is array
        new = io.as_sink(tmp_path / "new.npy")
        assert isinstance(new, NewSink)
        assert io.as_sink(new) is new
        assert io.as_sink(saved(tmp_path, array)).writable
        assert io.as_sink(io.as_source(np.load(tmp_path / "x.npy", mmap_mode="r+"))).writable


class Located:
    """An object that reads an NPY file each time, as chunked formats do."""

    chunks = (1, 3, 7)

    def __init__(self, location):
        self.location = location
        self.shape, self.dtype = (5, 6, 7), np.dtype("f4")

    def __getitem__(self, slicing):
        return np.load(self.location)[slicing]


class TestAliasing:
    """Rows 54 and 60: the same bytes are found, whatever they are called."""

    @pytest.fixture
    def path(self, tmp_path):
        return saved(tmp_path, reference())

    @pytest.mark.parametrize("how", ["hard", "symbolic", "relative", "descriptor", "memmap"])
    def test_other_names_of_a_file(self, path, how, monkeypatch):
        other = path.with_name("other.npy")
        descriptor = os.open(path, os.O_RDONLY)
        if how == "hard":
            os.link(path, other)
        elif how == "symbolic":
            other.symlink_to(path)
        elif how == "relative":
            monkeypatch.chdir(path.parent)
            other = path.name
        elif how == "descriptor":
            other = f"/proc/self/fd/{descriptor}"
        first, second = io.as_source(path), None
        if how == "memmap":
            second = io.as_source(np.load(path, mmap_mode="r"))
        elif how == "descriptor":
            second = io.memmap.Source(other)
        else:
            second = io.as_source(other)
        os.close(descriptor)
        assert first.extent == second.extent
        assert np.array_equal(second.read(REGIONS[1]), reference()[REGIONS[1].slices])

    def test_parts_of_a_file(self, path):
        mapped = np.load(path, mmap_mode="r")
        parts = [io.as_source(mapped[0:2]), io.as_source(mapped[2:]), io.as_source(mapped[1:3])]
        assert not parts[0].extent.overlaps(parts[1].extent)
        assert parts[0].extent.overlaps(parts[2].extent)
        assert parts[1].extent.overlaps(parts[2].extent)

    @settings(deadline=None, max_examples=50)
    @given(data=st.data())
    def test_views_of_an_array(self, data):
        array = np.zeros((6, 5), "i2")
        views = [array[data.draw(hnp.basic_indices((6, 5), min_dims=1))] for _ in range(2)]
        extents = [io.as_source(view).extent for view in views]
        assert extents[0].overlaps(extents[1]) == np.may_share_memory(*views)

    def test_a_copy_is_not_the_same(self, path):
        copy = saved(path.parent, reference(), "copy.npy")
        assert not io.as_source(path).extent.overlaps(io.as_source(copy).extent)
        assert io.as_source(path).extent.store[0] == "file"
        assert isinstance(io.as_source(reference()).extent, Extent)


BAD_SOURCES = [
    (5, PlanError, "scalar .0 axes."),
    (np.float64(3), PlanError, "scalar .0 axes."),
    (np.array(3), PlanError, "scalar .0 axes."),
    (np.array([None]), ArgumentTypeError, "dtype object cannot be processed block-wise"),
    (np.zeros(3, [("a", "O")]), ArgumentTypeError, "cannot be processed block-wise"),
    ([[1], [2, 3]], ArgumentTypeError, "a list is no array"),
    (np.ma.masked_array([1, 2]), ArgumentTypeError, r"MaskedArray; convert it with .filled"),
    (None, ArgumentTypeError, "a NoneType is no source .it has no shape, dtype"),
    ({}, ArgumentTypeError, "a dict is no source"),
    (Duck(np.array([None])), ArgumentTypeError, "dtype object"),
    (Duck(np.array(3)), PlanError, "scalar .0 axes."),
]


class TestBadSources:
    """Rows 20 to 29 and 61 to 65 of the table of bad inputs."""

    @pytest.mark.parametrize(("given", "error", "message"), BAD_SOURCES)
    def test_no_array(self, given, error, message):
        with pytest.raises(error, match=message):
            io.as_source(given)

    def test_row_20_a_part_outside(self):
        with pytest.raises(PlanError, match="slice 8:14 exceeds size 10 on axis 0"):
            io.as_source(np.zeros((10, 3)), np.s_[8:14])
        with pytest.raises(IndexError, match="index 10 is out of bounds"):
            io.as_source(np.zeros((10, 3)), 10)

    def test_row_21_an_empty_part(self):
        with pytest.raises(PlanError, match="slice 5:5 is empty on axis 1"):
            io.as_source(np.zeros((3, 10)), np.s_[:, 5:5])
        with pytest.raises(PlanError, match="scalar"):
            io.as_source(np.zeros((3, 10)), (0, 0))
        with pytest.raises(PlanError, match="index arrays"):
            io.as_source(np.zeros((3, 10)), [0, 1])

    def test_row_23_an_array_without_voxels(self, tmp_path):
        for empty in (np.zeros((0, 3)), np.load(saved(tmp_path, np.zeros((0, 3))), mmap_mode="r")):
            source = io.as_source(empty)
            assert source.read(Region((0, 0), (0, 3))).shape == (0, 3)
            assert not source.extent.overlaps(Extent(source.extent.store, 0, 1 << 63))

    @pytest.mark.parametrize("dtype", ["M8[s]", "U3", [("a", "f4"), ("b", "i2")], ">f8", "f2", "g"])
    def test_row_27_to_29_other_types_are_kept(self, tmp_path, dtype):
        array = np.zeros((3, 4), dtype)
        for source in (io.as_source(array), io.as_source(saved(tmp_path, array))):
            copy = source.read(Region((1, 1), (3, 3)))
            assert copy.dtype == array.dtype
            assert np.array_equal(copy, array[1:3, 1:3])

    def test_arrays_of_a_gpu(self):
        class Device(Duck):
            __cuda_array_interface__ = ()

        with pytest.raises(DeviceError, match=r"memory of a GPU.*\.get\(\)"):
            io.as_source(Device(np.zeros(3)))
        with pytest.raises(DeviceError, match="memory of a GPU"):
            io.as_sink(Device(np.zeros(3)))

    def test_a_type_that_numpy_does_not_know(self):
        duck = Duck(np.zeros(3))
        duck.dtype = "torch.bfloat16"
        with pytest.raises(ArgumentTypeError, match=r"torch\.bfloat16"):
            io.as_source(duck)

    def test_a_duck_that_gives_other_shapes(self):
        class Wrong(Duck):
            def __getitem__(self, slicing):
                return np.zeros(())

        with pytest.raises(SourceError, match=r"gave an array of shape .. for region"):
            io.as_source(Wrong(np.zeros(3))).read(Region((0,), (2,)))

    def test_row_61_truncated(self, untouched):
        path = saved(untouched.path, np.zeros((100, 100)))
        os.truncate(path, 128 + 4872)
        with (
            untouched,
            pytest.raises(SourceError, match=r"x.npy holds 4872 of 80000 data bytes .truncated."),
        ):
            io.as_source(path)
        with untouched, pytest.raises(SinkError, match="4872 of 80000"):
            io.as_sink(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not an NPY file .is empty."),
            (b"garbage and more", "is not an NPY file .starts with b'garbage "),
            (b"\x80\x04\x95pickle", "is not an NPY file .starts with b'.x80"),
            (b"\x93NUMPY", "no usable NPY header"),
            (b"\x93NUMPY\x01\x00v\x00{'descr'", "no usable NPY header"),
            (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'xx'}\n", "no usable NPY header"),
            (b"\x93NUMPY\x09\x00\x10\x00" + bytes(200), "no usable NPY header.*9"),
        ],
    )
    def test_row_62_no_npy_file(self, untouched, content, message):
        path = untouched.path / "x.npy"
        path.write_bytes(content)
        with untouched, pytest.raises(SourceError, match=message) as caught:
            io.as_source(path)
        assert "allow_pickle" not in str(caught.value)

    @settings(deadline=None, max_examples=40)
    @given(place=st.integers(0, 127), byte=st.integers(0, 255))
    def test_row_62_damaged_headers_never_surprise(self, tmp_path_factory, place, byte):
        path = tmp_path_factory.getbasetemp() / "damaged.npy"
        np.save(path, reference())
        data = bytearray(path.read_bytes())
        data[place] = byte
        path.write_bytes(data)
        try:
            source = io.as_source(path)
        except SourceError:
            return
        source.read(Region.whole(source.shape))

    def test_row_63_pickles(self, untouched):
        path = untouched.path / "x.npy"
        np.save(path, np.array([{}], object), allow_pickle=True)
        with untouched, pytest.raises(SourceError, match="object arrays are refused for safety"):
            io.as_source(path)

    def test_row_64_archives(self, untouched):
        np.savez(untouched.path / "x.npz", reference())
        os.link(untouched.path / "x.npz", untouched.path / "y.npy")
        for name in ("x.npz", "y.npy"):
            with untouched, pytest.raises(SourceError, match="is an archive; extract it"):
                io.as_source(untouched.path / name)

    def test_row_65_no_file(self, untouched):
        folder = untouched.path
        (folder / "folder.npy").mkdir()
        (folder / "folder").mkdir()
        os.mkfifo(folder / "pipe.npy")
        (folder / "x.czi").write_bytes(b"")
        (folder / "loop.npy").symlink_to("loop.npy")
        for name, message in [
            ("missing.npy", "no such file: .*missing.npy"),
            ("missing.tif", "no such file: .*missing.tif"),
            ("folder.npy", "is a directory"),
            ("folder", "is a directory and has no suffix; supported: .npy"),
            ("pipe.npy", "is a device, pipe or socket"),
            ("x.czi", "has the suffix '.czi'; supported: .npy"),
            ("x\0.npy", "cannot open|no such file"),
            ("loop.npy", "cannot open|no such file"),
        ]:
            with untouched, pytest.raises(SourceError, match=message):
                io.as_source(str(folder / name))

    def test_row_84_a_source_that_changes(self, tmp_path):
        path = saved(tmp_path, reference())
        source = io.memmap.Source(path)
        source.verify()
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceError, match=r"x\.npy changed"):
            source.verify()

    def test_row_84_a_source_that_is_replaced(self, tmp_path):
        path = saved(tmp_path, reference())
        sent = pickle.dumps(io.memmap.Source(path))
        saved(tmp_path, np.zeros((5, 6, 7), "f4"), "y.npy")
        os.replace(tmp_path / "y.npy", path)
        with pytest.raises(SourceError, match="was replaced by another file"):
            pickle.loads(sent).read(REGIONS[0])

    def test_row_85_a_source_that_shrinks(self, tmp_path):
        path = saved(tmp_path, np.zeros((100, 100)))
        source = io.as_source(path)
        source.read(Region((90, 0), (100, 100)))
        os.truncate(path, 5000)
        with pytest.raises(SourceError, match="shrank while mapped"):
            source.read(Region((90, 0), (100, 100)))
        sink = io.memmap.Sink(tmp_path / "new.npy").create((100, 100), np.dtype("f8"), "C")
        sink.write(Region((90, 0), (100, 100)), np.zeros((10, 100)))
        os.truncate(sink.location, 5000)
        with pytest.raises(SourceError, match="shrank while mapped"):
            sink.write(Region((90, 0), (100, 100)), np.zeros((10, 100)))


class TestBadSinks:
    """Rows 50 to 57 and 79 to 83 of the table of bad inputs."""

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (5, "a int, which cannot"),
            ((1, 2), "a tuple, which cannot"),
            ([1, 2], "list of numbers"),
        ],
    )
    def test_what_cannot_be_assigned_to(self, given, message):
        with pytest.raises(ArgumentTypeError, match=message):
            io.as_sink(given)

    def test_row_50_read_only(self, untouched):
        path = saved(untouched.path, reference())
        array = reference()
        array.flags.writeable = False
        duck = Duck(reference())
        duck.read_only = True
        mapped = np.load(path, mmap_mode="r")
        for x in (array, mapped, io.as_source(path), io.as_source(array), duck):
            with untouched, pytest.raises(SinkError, match="read-only"):
                io.as_sink(x)

    def test_row_50_a_file_without_permission(self, untouched, monkeypatch):
        path = saved(untouched.path, reference())
        path.chmod(0o444)
        if os.getuid() == 0:
            monkeypatch.setattr(os, "access", lambda *_: False)
        with untouched, pytest.raises(SinkError, match=r"cannot write .*x\.npy: Permission denied"):
            io.as_sink(path)

    def test_row_51_no_folder(self, untouched):
        with untouched, pytest.raises(SinkError, match=r"cannot create .*: no folder .*missing"):
            io.as_sink(untouched.path / "missing" / "x.npy")

    def test_row_51_no_permission(self, untouched, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)
        with untouched, pytest.raises(SinkError, match=r"cannot create .*denied .uid \d+."):
            io.as_sink(untouched.path / "x.npy")

    def test_row_52_exists(self, untouched):
        path = saved(untouched.path, reference())
        (untouched.path / "dangling.npy").symlink_to("nowhere")
        (untouched.path / "folder.npy").mkdir()
        with untouched:
            for name in (path.name, "dangling.npy"):
                with pytest.raises(SinkError, match=r"exists; pass .*overwrite=True"):
                    io.memmap.Sink(untouched.path / name).create((2,), np.dtype("f4"), "C")
            with pytest.raises(SinkError, match="is a directory"):
                io.memmap.Sink(untouched.path / "folder.npy", overwrite=True).check()
            with pytest.raises(SinkError, match="is a directory"):
                io.as_sink(untouched.path / "folder.npy")

    def test_row_57_shared_voxels(self):
        spread = np.lib.stride_tricks.as_strided(np.zeros(3), (3, 4), (8, 0), writeable=True)
        sliding = np.lib.stride_tricks.sliding_window_view(np.zeros(9), 3, writeable=True)
        with pytest.raises(SinkError, match="stride 0 on axis 1"):
            io.as_sink(spread)
        with pytest.raises(SinkError, match="share memory"):
            io.as_sink(sliding)
        with pytest.raises(SinkError, match="stride 0 on axis 1"):
            io.as_sink(io.npy.Source(spread))

    @settings(deadline=None, max_examples=50)
    @given(data=st.data())
    def test_row_57_ordinary_views_are_fine(self, data):
        array = np.zeros(data.draw(hnp.array_shapes(max_dims=4)), "u2")
        view = array.transpose(data.draw(st.permutations(range(array.ndim))))
        view = view[data.draw(hnp.basic_indices(view.shape, min_dims=1, allow_newaxis=True))]
        assert io.as_sink(view).array is view

    @pytest.mark.parametrize("name", ["x.czi", "x", "x.png", "folder", "x.npz"])
    def test_unknown_formats(self, untouched, name):
        (untouched.path / "folder").mkdir()
        with untouched, pytest.raises(SinkError, match=r"suffix.*supported: \.npy"):
            io.as_sink(untouched.path / name)

    def test_row_26_objects(self, untouched):
        for new in (
            io.as_sink(untouched.path / "x.npy"),
            io.new_array(),
            io.new_array(shared=True),
        ):
            with untouched, pytest.raises(ArgumentTypeError, match="object"):
                new.create((2,), np.dtype(object), "C")

    def test_row_79_no_room(self, untouched):
        with untouched, pytest.raises(SinkError, match=r"needs 8000000 TB, .* free") as caught:
            io.as_sink(untouched.path / "x.npy").create((10**12, 10**6), np.dtype("f8"), "C")
        assert caught.value.errno == 28

    @pytest.mark.parametrize("call", ["posix_fallocate", "write"])
    def test_row_80_the_disk_is_full_nevertheless(self, untouched, monkeypatch, call):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, call, full)
        with untouched, pytest.raises(SinkError, match="No space left on device") as caught:
            io.as_sink(untouched.path / "x.npy").create((100,), np.dtype("f8"), "C")
        assert caught.value.errno == 28

    def test_row_81_limits_of_the_process(self, untouched, monkeypatch):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with untouched, pytest.raises(SinkError, match="RLIMIT_FSIZE 1 kB"):
                io.as_sink(untouched.path / "x.npy").create((1000,), np.dtype("f8"), "C")
            monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
            with untouched, pytest.raises(SinkError, match="File too large"):
                io.as_sink(untouched.path / "x.npy").create((1000,), np.dtype("f8"), "C")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_row_82_names(self, untouched):
        for name, message in [("a\0.npy", "NUL character"), ("x" * 250 + ".npy", "too long")]:
            with untouched, pytest.raises(SinkError, match=message):
                io.as_sink(str(untouched.path / name))

    def test_row_83_links_are_not_followed(self, untouched):
        victim = saved(untouched.path, reference(), "victim.npy")
        (untouched.path / "x.npy.partial").symlink_to(victim)
        with untouched, pytest.raises(SinkError, match="in the way"):
            io.as_sink(untouched.path / "x.npy").create((2,), np.dtype("f4"), "C")
        (untouched.path / "link.npy").symlink_to(victim)
        sink = io.memmap.Sink(untouched.path / "link.npy", overwrite=True)
        sink.create((2,), np.dtype("f4"), "C").finish()
        assert np.array_equal(np.load(victim), reference())
        assert not (untouched.path / "link.npy").is_symlink()
