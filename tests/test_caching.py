"""Sources stored in pieces: each piece is decoded once, in bounded memory, by several threads."""

import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from contracts.sources import SourceContract
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from simulated_executor import SimulatedExecutor, uneven
from simulated_threads import SimulatedThreads
from stored_pieces import Folder

import gpublocks as gb
from gpublocks import io, pipeline, storage
from gpublocks.caching import Cached
from gpublocks.contracts import Reach
from gpublocks.drafting import plan_task
from gpublocks.enacting import sources_of
from gpublocks.errors import PlanError
from gpublocks.geometry import Region
from gpublocks.grid import Grid
from gpublocks.sizing import Sizes
from gpublocks.splitting import aligned, split_axis
from gpublocks.storage import Pieces, Usage, boxes
from gpublocks.task import Choice, Task


@pytest.fixture(autouse=True)
def _small_pieces_count(monkeypatch):
    """Leave small pieces alone, as those of the tests are."""
    monkeypatch.setattr(storage, "_LEAST_BYTES", 1)


class Stored:
    """An array in memory that counts how often its pieces are decoded."""

    name, location, extent, reach = "Stored-Source", None, None, Reach.PROCESS

    def __init__(self, array, unit, origin=None, order="C", before=lambda _: None):
        self.array_of, self.shape, self.dtype, self.order = array, array.shape, array.dtype, order
        self.unit, self.read_origin = tuple(unit), tuple(origin or (0,) * array.ndim)
        self.pieces = Pieces(self.shape, self.unit, self.read_origin, self.dtype.itemsize, order)
        self.times = np.zeros(array.shape, int)
        self.before = before

    def read(self, region, out=None):
        self.before(region)
        out = np.empty(region.shape, self.dtype, order=self.order) if out is None else out
        whole = self.pieces.voxels(self.pieces.touching(region))
        self.times[whole.slices] += 1
        out[...] = self.array_of[region.slices]
        return out

    def __getitem__(self, slicing):
        return self.array_of[slicing]


def numbers(*shape):
    """Return an array of distinct numbers."""
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def cached(source, grid, limit_bytes=1 << 40, concurrency=None):
    return Cached(source, Usage(source.pieces, grid), limit_bytes, concurrency)


def halved(shape, overlap=2):
    """Return a grid that halves each axis."""
    splits = [
        split_axis(n, size_max=min(n, n // 2 + overlap), overlap=min(overlap, n // 2))
        for n in shape
    ]
    return Grid(tuple(shape), tuple(range(len(shape))), tuple(splits))


class TestCached(SourceContract):
    name = "Stored-Source"

    def make(self, array, folder):
        order = "F" if array.flags.f_contiguous else "C"
        return cached(Stored(array, (2, 3, 4), (1, 0, 2), order), halved(array.shape))


@st.composite
def readings(draw):
    """Return a source in pieces, and a grid of cells that read it."""
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)))
    unit = [draw(st.integers(1, n + 2)) for n in shape]
    origin = [draw(st.sampled_from([0, draw(st.integers(0, n - 1))])) for n in unit]
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    splits = []
    for axis in axes:
        overlap = draw(st.integers(0, shape[axis] - 1))
        size_max = draw(st.integers(overlap + 1, shape[axis]))
        how = draw(st.sampled_from([{}, {"size_min": "fixed"}, {"multiple_of": 3}, {"unit": 4}]))
        snap = how.pop("unit", 1)
        try:
            split = split_axis(shape[axis], size_max=size_max, overlap=overlap, **how)
            splits.append(aligned(split, snap, None))
        except PlanError:
            splits.append(split_axis(shape[axis], size_max=size_max, overlap=overlap))
    order = draw(st.sampled_from("CF"))
    source = Stored(numbers(*shape).copy(order), unit, origin, order)
    return source, Grid(shape, axes, tuple(splits))


class TestOnce:
    @given(readings(), st.integers(1, 9))
    def test_each_piece_is_decoded_once_and_kept_no_longer_than_predicted(self, reading, most):
        source, grid = reading
        usage = Usage(source.pieces, grid)
        read = cached(source, grid, usage.useful_bytes(1))
        for cell in grid.walk(source.order):
            region = cell.read_in(source.shape)
            assert np.array_equal(read.read(region), source.array_of[region.slices])
            assert read.kept_bytes <= usage.useful_bytes(1)
        assert source.times.min() == source.times.max() == 1
        assert usage.decoded(usage.useful_bytes(1), 1) == 1
        # Whatever is left is known to be of no use any more.
        assert not read._kept

    def test_a_layer_is_kept_for_the_next_one(self):
        source = Stored(numbers(64, 512), (8, 8))
        splits = [aligned(split_axis(n, size_max=24, overlap=8), 8, None) for n in source.shape]
        grid = Grid(source.shape, (0, 1), tuple(splits))
        usage = Usage(source.pieces, grid)
        layer = 16 * 512 * 4
        assert layer < usage.useful_bytes(1) < 1.5 * layer
        for limit_bytes, times in ((usage.useful_bytes(1), 1), (layer // 2, 2)):
            source.times[:] = 0
            read = cached(source, grid, limit_bytes)
            for cell in grid:
                read.read(cell.read_in(source.shape))
            assert source.times.max() == times
            assert (usage.decoded(limit_bytes, 1) > 1) == (times > 1)

    def test_what_one_cell_reads_is_not_kept(self):
        source = Stored(numbers(16, 16), (4, 4))
        read = cached(source, Grid((16, 16), (0,), (split_axis(16, size_max=8),)))
        read.read(Region((0, 0), (8, 16)))
        assert read.kept_bytes == 0

    @given(readings(), st.integers(0, 2000))
    def test_in_little_memory_it_is_decoded_again(self, reading, limit_bytes):
        source, grid = reading
        read = cached(source, grid, limit_bytes)
        for cell in grid:
            region = cell.read_in(source.shape)
            assert np.array_equal(read.read(region), source.array_of[region.slices])
            assert read.kept_bytes <= limit_bytes
        plain = Stored(source.array_of, source.unit, source.read_origin, source.order)
        for cell in grid:
            plain.read(cell.read_in(source.shape))
        assert (source.times >= 1).all()
        assert (source.times <= plain.times).all()

    @given(readings())
    def test_blocks_of_whole_pieces_share_none(self, reading):
        source, grid = reading
        usage = Usage(source.pieces, grid)
        for cell in grid:
            source.read(cell.read_in(source.shape))
        if usage.apart:
            assert source.times.max() == 1
            assert usage.useful_bytes(2) == 0
        elif len(grid) <= 16:
            times = source.times.reshape(-1)
            assert usage.decoded(0, 1) > 1 or times.max() == 1

    @pytest.mark.parametrize(
        ("unit", "origin", "apart"), [(4, 0, True), (4, 2, False), (3, 0, False)]
    )
    def test_borders_beside_those_of_pieces(self, unit, origin, apart):
        pieces = Pieces((16,), (unit,), (origin,), 1)
        assert Usage(pieces, Grid((16,), (0,), (split_axis(16, size_max=4),))).apart == apart

    @given(readings(), st.integers(1, 3))
    def test_regions_in_parts_count_as_one(self, reading, parts):
        source, grid = reading
        read = cached(source, grid)
        for cell in grid.walk(source.order):
            region = cell.read_in(source.shape)
            cuts = [region.start[0] + region.shape[0] * n // parts for n in range(parts + 1)]
            for lo, hi in pairwise(cuts):
                read.read(Region((lo, *region.start[1:]), (hi, *region.stop[1:])))
        assert source.times.min() == source.times.max() == 1

    @given(
        st.sets(st.tuples(*[st.integers(0, 4)] * 3), max_size=40),
        st.integers(0, 12),
        st.sampled_from("CF"),
    )
    def test_boxes_hold_what_was_asked_for(self, indices, most, order):
        found = boxes(sorted(indices), most, order)
        held = [index for box in found for index in np.ndindex(*box.shape)]
        assert len(held) == len(indices)
        assert all(box.size <= max(1, most) for box in found)
        assert {
            tuple(a + b for a, b in zip(box.start, index, strict=True))
            for box in found
            for index in np.ndindex(*box.shape)
        } == indices

    def test_missing_pieces_come_in_one_box(self):
        calls = []
        source = Stored(numbers(32, 32, 32), (4, 4, 4), before=calls.append)
        read = cached(source, halved((32, 32, 32), 8))
        read.read(Region((0, 0, 0), (20, 20, 20)))
        assert [region.shape for region in calls] == [(20, 20, 20)]
        read.read(Region((0, 0, 12), (20, 20, 32)))
        assert [region.shape for region in calls[1:]] == [(20, 20, 12)]

    def test_small_pieces_are_taken_together(self, monkeypatch):
        monkeypatch.setattr(storage, "_LEAST_BYTES", 1000)
        source = Stored(numbers(32, 32, 32), (1, 2, 4))
        assert Pieces.of(source).unit == (1, 8, 32)
        assert Pieces.of(Stored(numbers(32, 32, 32).copy("F"), (1, 2, 4), order="F")).unit == (
            32, 2, 4,
        )  # fmt: skip


class TestThreads:
    @pytest.mark.parametrize("seed", range(40))
    def test_any_schedule(self, seed):
        random = np.random.default_rng(seed)
        limit_bytes = int(random.choice([0, 500, 1 << 30]))
        with SimulatedThreads(seed) as world:
            source = Stored(numbers(12, 10), (4, 3), before=lambda _: world.pause("decode"))
            grid = halved((12, 10), 4)
            read = cached(source, grid, limit_bytes, world)
            cells = iter(grid)
            regions = [cell.read_in(source.shape) for cell in cells]
            regions *= 1 if limit_bytes > 500 else 2
            found = []

            def work():
                while regions:
                    region = regions.pop(0)
                    found.append((region, read.read(region)))

            threads = [world.start(work, f"reader {n}") for n in range(3)]
            for thread in threads:
                thread.join()
        for region, voxels in found:
            assert np.array_equal(voxels, source.array_of[region.slices])
        if limit_bytes > 500:
            assert source.times.max() == 1

    @pytest.mark.parametrize("seed", range(20))
    def test_what_one_thread_cannot_decode_another_one_tries(self, seed):
        with SimulatedThreads(seed) as world:
            failures = [LookupError("damaged")] * 2

            def fail(_):
                world.pause("decode")
                if failures:
                    raise failures.pop()

            source = Stored(numbers(12, 10), (4, 3), before=fail)
            read = cached(source, halved((12, 10), 4), 1 << 30, world)
            came = []

            def work():
                try:
                    came.append(read.read(Region((0, 0), (8, 8))))
                except LookupError as error:
                    came.append(error)

            for thread in [world.start(work, f"reader {n}") for n in range(4)]:
                thread.join()
        read = [item for item in came if not isinstance(item, LookupError)]
        assert (len(read), len(came)) == (2, 4)
        assert all(np.array_equal(array, source.array_of[:8, :8]) for array in read)

    def test_different_pieces_are_decoded_at_once(self):
        both = threading.Barrier(2, timeout=20)
        source = Stored(numbers(8, 8), (4, 8), before=lambda _: both.wait())
        read = cached(source, halved((8, 8), 2))
        regions = [Region((0, 0), (4, 8)), Region((4, 0), (8, 8))]
        threads = [threading.Thread(target=read.read, args=(region,)) for region in regions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert source.times.max() == 1


AGAIN = {"serial": 1, "threads": 1, "processes": 1.3}
"""A slot that has nothing to do loads one of the last cells again that another one has loaded."""


def smooth(array):
    return ndimage.uniform_filter(array, 5)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 1000, shape).astype(np.int32)


class TestRuns:
    """Through the front door, from folders of pieces."""

    @pytest.fixture
    def source(self, tmp_path):
        return Folder.of(tmp_path / "source", noise(40, 36, 44), (8, 8, 8))

    def test_each_piece_is_decoded_once(self, source, executor):
        result = gb.process(smooth, source, overlap=4, size_max=18, executor=executor, processes=2)
        assert np.array_equal(result, smooth(noise(40, 36, 44)))
        assert 1 <= source.decoded <= AGAIN[executor]

    @pytest.mark.parametrize("seed", range(3))
    def test_copiers_of_devices_read_parts_of_blocks(self, source, seed, monkeypatch):
        monkeypatch.setattr(pipeline, "_PIECE_BYTES", 4000)
        devices = SimulatedExecutor(uneven("random", 2, seed), seed)
        result = gb.process(smooth, source, overlap=4, size_max=18, executor=devices)
        assert np.array_equal(result, smooth(noise(40, 36, 44)))
        assert source.decoded == 1

    @pytest.mark.parametrize("sizes", [{}, {"size_max": 9}, {"size_max": 24, "axes": 1}])
    def test_however_it_is_split(self, source, sizes):
        plan = gb.plan(smooth, source, overlap=4, executor="threads", processes=2, **sizes)
        result = gb.process(smooth, source, overlap=4, executor="threads", processes=2, **sizes)
        assert np.array_equal(result, smooth(noise(40, 36, 44)))
        assert plan.decoded == pytest.approx(source.decoded)
        assert len(plan.grid) == 1 or plan.cache_bytes > 0

    def test_a_part_that_begins_inside_of_a_piece(self, source, executor):
        part = io.as_source(source, np.s_[3:39, :, 13])
        assert (part.read_unit, part.read_origin) == ((8, 8), (3, 0))
        result = gb.process(smooth, part, overlap=4, size_max=12, executor=executor, processes=2)
        assert np.array_equal(result, smooth(noise(40, 36, 44)[3:39, :, 13]))
        assert 1 <= source.decoded * 44 / 8 <= AGAIN[executor]

    def test_a_block_as_source(self, source):
        block = gb.split_into_blocks(source, size_max=30, overlap=3, axes=0)[1]
        whole = block.read(Region.whole(block.shape))
        before = source.decoded
        result = gb.process(smooth, block, overlap=4, size_max=12, executor="serial")
        assert np.array_equal(result, smooth(whole))
        assert source.decoded - before <= 1

    def test_a_mask_leaves_pieces_for_the_end(self, source, executor):
        mask = np.zeros((40, 36, 44), bool)
        mask[:12, 20:], mask[30:, :, :9] = True, True
        result = gb.process(
            smooth, source, mask=mask, overlap=4, size_max=14, executor=executor, processes=2
        )
        inside = result != 0
        assert np.array_equal(result[inside], smooth(noise(40, 36, 44))[inside])
        assert inside[mask].mean() > 0.9
        assert source.decoded <= AGAIN[executor]

    def test_order_of_the_storage(self, tmp_path):
        voxels = noise(24, 20, 18)
        source = Folder.of(tmp_path / "source", voxels, (8, 8, 8), "F")
        seen = []

        def note(array):
            seen.append(array.flags.f_contiguous)
            return smooth(array)

        result = gb.process(note, source, overlap=4, size_max=12, executor="serial")
        assert np.array_equal(result, smooth(voxels))
        assert all(seen)
        along = [int(line.split()[2]) for line in source.noted("read")]
        assert source.decoded == 1
        # What lies far behind in the file is read when nothing is left of what lies in front.
        assert along.index(2) > len(along) - along[::-1].index(0) - 1

    def test_memory_is_in_the_plan_and_kept(self, source):
        ask = partial(gb.plan, smooth, source, overlap=4, size_max=16, executor="threads")
        plan = ask(processes=2)
        rows, numbers = dict(plan.rows()), plan.to_dict()
        assert 0 < plan.cache_bytes <= 40 * 36 * 44 * 4 * 4
        assert numbers["cache_bytes"] == plan.cache_bytes
        assert numbers["decoded"] == 1
        assert rows["reads"].endswith("each piece that is stored is decoded once")
        assert "decoded pieces" in rows[""]
        assert plan.peak_bytes == 2 * plan.worker_bytes + plan.cache_bytes
        small = ask(processes=2, memory=plan.worker_bytes + plan.cache_bytes // 2)
        assert small.cache_bytes <= min(small.budget.host_bytes // 4, plan.cache_bytes)
        assert small.peak_bytes <= small.budget.host_bytes
        assert small.decoded > 1
        assert "decoded about" in dict(small.rows())["reads"]
        none = ask(processes=2, memory=plan.worker_bytes)
        assert none.cache_bytes == 0
        assert none.peak_bytes <= none.budget.host_bytes

    def test_blocks_of_whole_pieces_are_read_directly(self, source, executor):
        plan = gb.plan(np.negative, source, overlap=0, executor=executor, processes=2)
        assert (plan.cache_bytes, plan.decoded, plan.staging_bytes) == (0, 1, 0)
        result = gb.process(np.negative, source, overlap=0, executor=executor, processes=2)
        assert np.array_equal(result, -noise(40, 36, 44))
        assert source.decoded == 1

    def test_what_reads_by_itself_is_not_read_ahead(self, source):
        def corner(block):
            return block[:2, :2, :2].sum()

        plan = gb.plan(corner, source, size_max=12, overlap=4, function_type="source")
        assert plan.cache_bytes == 0
        assert plan.decoded > 1

    def test_voxels_that_stand_alone_have_nothing_to_do_with_it(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(20, 20))
        for array in (noise(20, 20), tmp_path / "x.npy", noise(20, 20)[::2]):
            task = Task(
                function=smooth,
                kwargs={},
                function_type="array",
                sources=(io.as_source(array),),
                sinks=(),
                choice=Choice("processes", 2, ""),
                sizes=Sizes(overlap=4),
                overlap_known=True,
            )
            plan = plan_task(task)
            assert plan.decoded is None
            assert "decoded" not in str(plan)
            assert all(a is b for a, b in zip(sources_of(task, plan), task.sources, strict=True))

    def test_a_damaged_piece(self, source, executor):
        source.file((2, 1, 1)).write_bytes(b"no array")
        with pytest.raises(ValueError, match="cannot reshape") as caught:
            gb.process(smooth, source, overlap=4, size_max=16, executor=executor, processes=2)
        notes = "\n".join(caught.value.__notes__)
        assert "block " in notes
        assert "failed in stage 'load'" in notes

    def test_two_sources(self, source, executor, tmp_path):
        other = Folder.of(tmp_path / "other", noise(40, 36, 44)[::-1], (5, 36, 6))
        result = gb.process(
            lambda a, b: smooth(a) - smooth(b),
            [source, other],
            overlap=4,
            size_max=20,
            executor=executor,
            processes=2,
        )
        voxels = noise(40, 36, 44)
        assert np.array_equal(result, smooth(voxels) - smooth(voxels[::-1]))
        assert max(source.decoded, other.decoded) <= AGAIN[executor]


def test_walk_follows_the_storage():
    grid = halved((6, 5, 7), 0)
    assert list(grid.walk("C")) == list(grid)
    walked = list(grid.walk("F"))
    assert sorted(walked, key=lambda cell: cell.number) == list(grid)
    assert [cell.index[::-1] for cell in walked] == sorted(cell.index[::-1] for cell in grid)
