"""Runs over Zarr arrays: no unit has two writers, and one that is killed leaves nothing half."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import gpublocks as gb
from gpublocks import io
from gpublocks.errors import (
    BudgetError,
    PlanError,
    SinkError,
    SourceError,
)
from gpublocks.formats.files import folder
from gpublocks.formats.zarr import boxed
from gpublocks.geometry import Region, parts
from tests.contracts.sources import (
    reference,
)
from tests.zarr_arrays import created, read

zarr = pytest.importorskip("zarr")

EXECUTORS = ["serial", "threads", "processes"]


class Recording(boxed.BoxedSource):
    """A sink that notes in a file which units each call writes, and which voxels."""

    def __init__(self, sink, log):
        super().__init__(sink.store, sink.name, writable=True)
        self.under_way, sink.under_way = sink.under_way, None
        self.log = str(log)

    def write(self, region, array):
        lines = [
            json.dumps([index, part.start, part.stop]) + "\n"
            for index, part in parts(region, self.unit)
        ]
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, "".join(lines).encode())
        os.close(fd)
        super().write(region, array)

    def __reduce__(self):
        return _recording, (boxed.BoxedSource(self.store, self.name, writable=True), self.log)


def _recording(sink, log):
    return Recording(sink, log)


class NewRecording:
    """A new sink that becomes one which records."""

    def __init__(self, sink, log):
        self.sink, self.log = sink, log
        self.location, self.check, self.units = sink.location, sink.check, sink.units

    def create(self, *args, **kwargs):
        return Recording(self.sink.create(*args, **kwargs), self.log)


def check_log(log, shape):
    """Check that no unit was written twice, and no voxel left out."""
    seen, voxels = set(), 0
    for line in Path(log).read_text().splitlines():
        unit, lo, hi = json.loads(line)
        assert tuple(unit) not in seen, f"unit {unit} was written by two cells"
        seen.add(tuple(unit))
        voxels += int(np.prod(np.subtract(hi, lo)))
    assert voxels == np.prod(shape)


@st.composite
def runs(draw):
    """Return shape, chunks, shards, and arguments of `process`."""
    ndim = draw(st.integers(1, 3))
    triple = {"min_size": ndim, "max_size": ndim}
    # Not too many units: each of them is a file.
    shape = draw(st.lists(st.integers(1, [60, 30, 14][ndim - 1]), **triple).map(tuple))
    chunks = draw(st.lists(st.integers(1, 6), **triple).map(tuple))
    counts = draw(st.none() | st.lists(st.integers(1, 3), **triple))
    shards = counts and tuple(c * n for c, n in zip(chunks, counts, strict=True))
    given = {"overlap": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        axes = draw(st.sets(st.integers(0, ndim - 1), min_size=1).map(sorted))
        given |= {"axes": axes, "size_max": draw(st.integers(7, 20)), "size_min": 4}
    return shape, chunks, shards, given


class TestThroughThePlanner:
    @settings(max_examples=15)
    @given(case=runs(), name=st.sampled_from(EXECUTORS), new=st.sampled_from(["", "unit", "any"]))
    def test_no_unit_has_two_writers(self, case, name, new, tmp_path_factory):
        shape, chunks, shards, given = case
        path = tmp_path_factory.mktemp("run")
        array = np.random.default_rng(0).integers(1, 200, shape).astype("u1")
        created(path / "in.zarr", array, chunks=chunks)
        sink = io.zarr.Sink(path / "out.zarr")
        if new != "any":
            sink = replace(sink, chunks=chunks, shards=shards)
        if not new:
            made = sink.create(shape, array.dtype, "C")
            made.finish()
            sink = Recording(io.as_sink(path / "out.zarr"), path / "log")
        else:
            sink = NewRecording(sink, path / "log")
        try:
            gb.process(np.invert, path / "in.zarr", sink, executor=name, processes=2, **given)
        except PlanError:
            # These sizes leave no room for units; without any there always are such blocks.
            assert "size_max" in given
            return
        check_log(path / "log", shape)
        assert np.array_equal(read(path / "out.zarr"), ~array)

    def test_it_would_be_noticed(self, tmp_path):
        sink = Recording(
            io.zarr.Sink(tmp_path / "x.zarr", chunks=4).create((6,), np.dtype("u1"), "C"),
            tmp_path / "log",
        )
        sink.write(Region((0,), (3,)), np.ones(3))
        sink.write(Region((3,), (6,)), np.ones(3))
        with pytest.raises(AssertionError, match="was written by two cells"):
            check_log(tmp_path / "log", (6,))

    @pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
    @pytest.mark.parametrize(
        ("options", "side"), [({"chunks": 4}, 29), ({"chunks": 2, "shards": 4}, 47)]
    )
    def test_two_processes_lose_no_unit(self, tmp_path, options, side):
        """The race of two writers of one shard, which loses some where borders are not snapped."""
        array = np.arange(1, side**3 + 1, dtype="u4").reshape(side, side, side)
        created(tmp_path / "in.zarr", array, chunks=(16, 16, 16))
        sink = io.zarr.Sink(tmp_path / "out.zarr", **options)
        sizes = {"axes": "all", "size_max": 9, "size_min": 5, "optimization": False}
        gb.process(np.negative, tmp_path / "in.zarr", sink, processes=2, overlap=0, **sizes)
        wrong = read(tmp_path / "out.zarr") != np.negative(array)
        assert not wrong.any()

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_a_filter_in_each_executor(self, tmp_path, executor, order):
        array = np.random.default_rng(0).normal(size=(40, 50, 30)).astype("f4")
        path = created(tmp_path / "x.zarr", array, chunks=(16, 16, 16), order=order)
        gb.process(
            ndimage.uniform_filter, path, tmp_path / "y.zarr", halo=1, size=3, executor=executor
        )
        source = io.as_source(tmp_path / "y.zarr")
        assert source.order == order
        whole = ndimage.uniform_filter(array, 3)
        assert np.allclose(np.asarray(source), whole, atol=1e-6)

    def test_in_place(self, tmp_path, executor):
        path = created(tmp_path / "x.zarr", reference(), chunks=(2, 3, 4))
        gb.process(np.negative, path, path, overlap=0, executor=executor)
        assert np.array_equal(read(path), -reference())

    def test_damage_fails_the_run_and_leaves_nothing(self, tmp_path, executor):
        array = np.random.default_rng(0).integers(0, 99, (32, 8)).astype("u2")
        path = created(tmp_path / "x.zarr", array, chunks=(8, 8))
        (path / "c" / "2" / "0").write_bytes(b"damaged")
        with pytest.raises(SourceError, match=r"chunk \(2, 0\) of .*x\.zarr is damaged"):
            gb.process(np.negative, path, tmp_path / "y.zarr", overlap=0, executor=executor)
        assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]

    def test_functions_that_write_themselves(self, tmp_path, executor):
        path = created(tmp_path / "x.zarr", reference(), chunks=(2, 3, 4), shards=(4, 3, 4))

        def double(source, sink):
            sink.valid[:] = 2 * source.valid[:]

        sink = created(tmp_path / "y.zarr", reference() * 0, chunks=(2, 3, 4), shards=(4, 3, 4))
        gb.process(
            double, path, sink, function_type="block", axes=[0], size_max=4, executor=executor
        )
        assert np.array_equal(read(sink), 2 * reference())


class TestPlans:
    """What decoding and encoding take is a part of what a worker takes."""

    @pytest.fixture
    def source(self, tmp_path):
        return created(tmp_path / "x.zarr", np.zeros((64, 64, 64), "u2"), chunks=(32, 32, 32))

    def test_of_chunks_that_are_read(self, source):
        plan = gb.plan(
            np.negative, source, np.zeros((64,) * 3, "u2"), size_max=16, executor="serial"
        )
        assert plan.coding_bytes == 2 * 32**3 * 2
        assert plan.worker_bytes == plan.block_bytes + plan.need.of(plan.voxels) + (1 << 17)
        assert plan.to_dict()["coding_bytes"] == plan.coding_bytes
        assert " + coding 131 kB)" in dict(plan.rows())[""]

    @pytest.mark.parametrize(
        ("options", "files", "chunks"),
        [
            ({"chunks": 16}, 16**3, 16**3),
            ({"chunks": 16, "shards": 64}, 64**3, 16**3),
            ({"shards": 64}, 64**3, 64**3),
        ],
    )
    def test_of_chunks_that_are_written(self, tmp_path, options, files, chunks):
        array = np.zeros((64, 64, 64), "u2")
        new = io.zarr.Sink(tmp_path / "new.zarr", **options)
        given = {"size_max": 64, "executor": "serial"}
        plan = gb.plan(np.negative, array, new, **given)
        assert plan.coding_bytes == 2 * (files + 2 * chunks)
        new.create(array.shape, array.dtype, "C").finish()
        assert gb.plan(np.negative, array, new.location, **given).coding_bytes == plan.coding_bytes
        levels = replace(new, levels=2, overwrite=True)
        assert gb.plan(np.negative, array, levels, **given).coding_bytes > plan.coding_bytes

    def test_it_warns_of_pieces_that_are_decoded_very_often(self, tmp_path):
        shape = (2000, 2000, 2000)
        zarr.create_array(tmp_path / "planes.zarr", shape=shape, chunks=(1, *shape[1:]), dtype="u2")
        given = {"halo": 8, "sigma": 2, "executor": "threads", "processes": 2}
        with pytest.warns(RuntimeWarning, match=r"\(1, 2000, 2000\) voxels\) is decoded about \d+"):
            few = gb.plan(
                ndimage.gaussian_filter, tmp_path / "planes.zarr", memory="500MB", **given
            )
        assert few.decoded > 4
        # No warning where there is room for them.
        plan = gb.plan(ndimage.gaussian_filter, tmp_path / "planes.zarr", memory="1GB", **given)
        assert plan.decoded == 1

    def test_they_limit_workers_and_blocks(self, source):
        sink = np.zeros((64,) * 3, "u2")
        given = {"size_max": 8, "memory": "3MB", "executor": "threads", "processes": 4}
        plan = gb.plan(np.negative, source, sink, **given)
        assert plan.budget.workers == (3_000_000 - plan.cache_bytes) // plan.worker_bytes < 4
        with pytest.raises(BudgetError, match=r"one block .* \+ coding\), but .*: use more memory"):
            gb.plan(np.negative, source, sink, **{**given, "memory": "130kB"})


KILLED = """
import sys, time
sys.path.insert(0, {root!r})
import numpy as np
import gpublocks as gb

def slow(array):
    time.sleep(0.01)
    return array + 1

if __name__ == "__main__":
    print("ready", flush=True)
    source, sink = sys.argv[1:3]
    sink = eval(sys.argv[3])
    gb.process(slow, source, sink, overlap=0, processes=2, executor=sys.argv[4])
    print("done", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
class TestKilled:
    @pytest.mark.parametrize(
        "options",
        ["", ", shards=16, chunks=8", ", levels=3", ", overwrite=True", ", zarr_format=2"],
        ids=["chunks", "shards", "levels", "overwrite", "version2"],
    )
    def test_the_target_is_absent_or_complete(self, tmp_path, options):
        dice = np.random.default_rng(len(options))
        array = np.ones((64, 32, 32), "u2")
        source = created(tmp_path / "in.zarr", array, chunks=(16, 16, 16))
        target = tmp_path / "out.zarr"
        code = KILLED.format(root=str(Path(__file__).parents[1]))
        sink = (
            f"gb.io.zarr.Sink(sink{options})"
            if "chunks" in options
            else (f"gb.io.zarr.Sink(sink, chunks=8{options})")
        )
        if "overwrite" in options:
            created(target, array * 0, chunks=(32, 32, 32))
        complete = target / "0" if "levels" in options else target
        for delay, name in zip(dice.uniform(0.05, 0.5, 2), EXECUTORS[1:], strict=True):
            command = [sys.executable, "-c", code, source, target, sink, name]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if target.exists():
                assert np.unique(read(complete)).tolist() in ([2], [0])
                for level in (1, 2) if "levels" in options else ():
                    assert np.unique(read(target / str(level))).tolist() == [2]
        # What the killed ones left is taken over.
        sink = eval(sink.replace("overwrite=True", ""), {"gb": gb, "sink": target})
        sink = replace(sink, overwrite=True)
        gb.process(np.negative, source, sink, overlap=0, executor="serial")
        assert np.unique(read(complete)).tolist() == [65535]
        assert {p.name for p in tmp_path.iterdir()} == {"in.zarr", "out.zarr"}

    @pytest.mark.parametrize("step", [1, 2, "unlink", "rmtree"])
    def test_while_one_is_replaced(self, tmp_path, monkeypatch, step):
        """A kill at any step leaves both, and the next run what it would find without it."""
        path = created(tmp_path / "x.zarr", np.zeros(4, "u1"), chunks=(4,))
        sink = io.zarr.Sink(path, overwrite=True).create((4,), np.dtype("u1"), "C")
        sink[:] = 1
        rename, calls = os.rename, []

        def stop(*names, **_):
            calls.append(names)
            if len(calls) == step or step in ("unlink", "rmtree"):
                raise KeyboardInterrupt
            rename(*names)

        module = folder.shutil if step == "rmtree" else folder.os
        with monkeypatch.context() as patch:
            patch.setattr(module, step if isinstance(step, str) else "rename", stop)
            with pytest.raises(KeyboardInterrupt):
                sink.finish()
        del sink
        gc.collect()
        found = read(path) if path.exists() else read(tmp_path / "x.zarr.replaced")
        assert found.tolist() == ([0] * 4 if isinstance(step, int) else [1] * 4)
        if step == 2:
            with pytest.raises(SinkError, match=r"x\.zarr\.replaced is what .*x\.zarr was before"):
                io.zarr.Sink(path).check()
        again = io.zarr.Sink(path, overwrite=True).create((4,), np.dtype("u1"), "C")
        assert read(path).tolist() == found.tolist()
        again[:] = 2
        again.finish()
        assert read(path).tolist() == [2] * 4
        assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]
        assert sorted(p.name for p in path.iterdir()) == ["c", "zarr.json"]

    def test_what_is_in_the_way_of_replacing_is_not_touched(self, tmp_path):
        path = created(tmp_path / "x.zarr", np.zeros(4, "u1"), chunks=(4,))
        mine = created(tmp_path / "x.zarr.replaced", np.ones(4, "u1"), chunks=(4,))
        with pytest.raises(SinkError, match=r"x\.zarr\.replaced is in the way"):
            io.zarr.Sink(path, overwrite=True).create((4,), np.dtype("u1"), "C")
        assert read(mine).tolist() == [1] * 4

    def test_one_that_is_removed_meanwhile_is_not_finished(self, tmp_path, executor):
        array = np.ones((32, 8), "u1")

        def remove(block):
            shutil.rmtree(tmp_path / "x.zarr.partial", ignore_errors=True)
            return block

        sink = io.zarr.Sink(tmp_path / "x.zarr", chunks=8)
        with pytest.raises(SinkError, match=r"No such file|was removed during the run"):
            gb.process(remove, array, sink, overlap=0, executor=executor, size_max=8, processes=2)
        assert list(tmp_path.iterdir()) == []

    def test_what_fails_behind_the_rename_says_that_all_is_there(self, tmp_path, monkeypatch):
        sink = io.zarr.Sink(tmp_path / "x.zarr").create((4,), np.dtype("u1"), "C")
        sink[:] = 1

        def fail(path):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(folder, "sync_path", fail)
        monkeypatch.setattr("gpublocks.formats.zarr.levels.sync_files", lambda *_, **__: None)
        with pytest.raises(SinkError, match=r"x\.zarr is complete, but may not be durable"):
            sink.finish()
        assert read(tmp_path / "x.zarr").tolist() == [1] * 4

    def test_a_rename_that_fails_gives_the_old_one_back(self, tmp_path, monkeypatch):
        path = created(tmp_path / "x.zarr", np.zeros(4, "u1"), chunks=(4,))
        sink = io.zarr.Sink(path, overwrite=True).create((4,), np.dtype("u1"), "C")
        rename, calls = os.rename, []

        def fail(*names):
            calls.append(names)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            rename(*names)

        monkeypatch.setattr(folder.os, "rename", fail)
        with pytest.raises(SinkError, match=r"Input/output error; the result is kept in"):
            sink.finish()
        assert read(path).tolist() == [0] * 4

    def test_everything_is_synced_before_the_name(self, tmp_path, monkeypatch):
        synced = []
        fsync = os.fsync
        monkeypatch.setattr(
            folder.os,
            "fsync",
            lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)),
        )
        gb.process(
            np.negative,
            reference(),
            io.zarr.Sink(tmp_path / "x.zarr", chunks=3, levels=2),
            overlap=0,
            executor="serial",
        )
        names = {p.relative_to(tmp_path / "x.zarr") for p in (tmp_path / "x.zarr").rglob("*")}
        base = tmp_path / "x.zarr.partial"
        assert {base / name for name in names} <= {Path(name) for name in synced}
        assert str(base) in synced
        assert synced[-1] == str(tmp_path)
