"""Full disks: what cannot fit is refused, what may not fit is said, what did not leaves nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import gpublocks as gb
from gpublocks import io
from gpublocks.errors import SinkError
from gpublocks.formats.files.room import check_disk

NOISE = np.random.default_rng(0).integers(0, 255, (8, 256, 512)).astype("u1")
"""1 MB, which no codec makes smaller."""

COMPRESSED = {
    "zarr": lambda path: io.zarr.Sink(path / "x.zarr", chunks=(2, 128, 128)),
    "shards": lambda path: io.zarr.Sink(path / "x.zarr", chunks=(2, 64, 64), shards=(2, 128, 128)),
    "levels": lambda path: io.zarr.Sink(path / "x.zarr", levels=3, chunks=(2, 128, 128)),
    "planes": lambda path: io.tiff.Sink(path / "planes/z<Z,2>.tif", compression="zlib"),
    "tiff": lambda path: io.tiff.Sink(path / "x.tif", compression="zlib"),
    "nrrd": lambda path: io.nrrd.Sink(path / "x.nrrd", encoding="gzip"),
    "nifti": lambda path: io.nifti.Sink(path / "x.nii.gz"),
}
PACKED = {"tiff", "nrrd", "nifti"}
"""Formats of which the voxels are kept as they are if packing fails."""


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that makes a disk of some size."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
        return place

    yield make
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def room(monkeypatch):
    """Return a function that says how much room there is on all disks."""
    usage = shutil.disk_usage("/")

    def say(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

    return say


@pytest.mark.filterwarnings("ignore:.*needs up to:RuntimeWarning")
class TestMounted:
    """On a disk that gets full in the midst of a run."""

    @pytest.mark.parametrize("format", ["zarr", "shards", "levels", "planes"])
    def test_the_run_ends_and_leaves_nothing(self, small_disk, executor, format):
        disk = small_disk("700k")
        sink = COMPRESSED[format](disk)
        with pytest.raises(SinkError, match="No space left on device") as caught:
            gb.process(np.invert, NOISE, sink, overlap=0, executor=executor, processes=2)
        assert list(disk.iterdir()) == []
        named = {"shards": r"\(shard \(.*kB; .* free\)", "planes": r"z\d\d.tif"}
        assert re.search(named.get(format, r"\(chunk \(.*kB; .* free\)"), str(caught.value))

    @pytest.mark.parametrize("format", sorted(PACKED))
    def test_packing_keeps_the_voxels(self, small_disk, format):
        disk = small_disk("1600k")
        new = COMPRESSED[format](disk)
        with pytest.raises(SinkError, match=r"No space left .*are kept in .*\.voxels, for"):
            gb.process(np.invert, NOISE, new, overlap=0, executor="serial")
        name = Path(new.location).name
        assert [path.name for path in disk.iterdir()] == [f"{name}.voxels"]

    def test_files_with_holes(self, small_disk, executor):
        """Writing to the map of a hole would kill the process."""
        disk = small_disk("1500k")
        path = disk / "x.npy"
        np.lib.format.open_memmap(path, "w+", "u1", NOISE.shape)[:1] = 7
        (disk / "other").write_bytes(bytes(1 << 20))
        given = {"overlap": 0, "executor": executor, "processes": 2, "size_max": 2, "axes": 0}
        with pytest.raises(SinkError, match=r"No space left on device \(it has holes, and .* 1.05"):
            gb.process(np.invert, NOISE, path, **given)
        assert np.load(path, mmap_mode="r")[:1].min() == 7
        (disk / "other").unlink()
        gb.process(np.invert, NOISE, path, **given)
        assert np.array_equal(np.load(path), ~NOISE)

    @pytest.mark.parametrize("format", sorted(COMPRESSED))
    def test_what_gets_small_fits(self, small_disk, format):
        # Voxels of packed formats are there as they are before.
        disk = small_disk("1300k" if format in PACKED else "512k")
        new = COMPRESSED[format](disk)
        with pytest.warns(RuntimeWarning, match=r"needs up to .* free: if compression does not"):
            gb.process(np.invert, NOISE * 0, new, overlap=0, executor="serial")
        assert np.asarray(io.as_source(new.location)).min() == 255


class TestRules:
    @pytest.mark.parametrize("options", [{"codec": None}, {"levels": 2}])
    def test_what_takes_its_room_in_any_case(self, tmp_path, room, options):
        room(100)
        new = io.zarr.Sink(tmp_path / "x.zarr", **options)
        with pytest.raises(SinkError, match=r"x.zarr needs .* has 100 B free"):
            new.create(NOISE.shape, NOISE.dtype, "C")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("format", sorted(COMPRESSED))
    def test_what_may_fit_is_not_refused(self, tmp_path, room, format):
        new = COMPRESSED[format](tmp_path)
        room(NOISE.nbytes - 1)
        if format in PACKED:
            with pytest.raises(SinkError, match=r"voxels needs 1.05 MB"):
                new.create(NOISE.shape, NOISE.dtype, "C")
        else:
            with pytest.warns(RuntimeWarning, match="needs up to 1"):
                new.create(NOISE.shape, NOISE.dtype, "C").abort()
        assert not [path for path in tmp_path.iterdir() if path.is_file()]

    def test_where_there_is_enough_nothing_is_said(self, tmp_path, room):
        room(1000)
        check_disk(str(tmp_path / "x"), 1000, most=1000)
        with pytest.raises(SinkError, match=r"x needs 1 kB, .* has 1 kB free"):
            check_disk(str(tmp_path / "x"), 1001)
        check_disk(str(tmp_path / "x"), 1001, freed=1)
