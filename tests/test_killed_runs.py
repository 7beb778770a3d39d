"""Runs that are killed, whatever they write: a file has its final name when it is complete.

Programs are real ones, with worker processes, killed by signal 9 at any time of a run.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import fork

import gpublocks.block_processing as bp
from gpublocks import io

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

SHAPE = (24, 20, 18)

SINKS = {
    "npy": ("a.npy", "path"),
    "raw": ("a.raw", "path"),
    "nrrd": ("a.nrrd", "path"),
    "nrrd, gzip": ("a.nrrd", "io.nrrd.Sink(path, encoding='gzip')"),
    "mha": ("a.mha", "path"),
    "mhd": ("a.mhd", "path"),
    "nii": ("a.nii", "path"),
    "nii, gzip": ("a.nii.gz", "path"),
    "tiff": ("a.tif", "path"),
    "tiff, zlib": ("a.tif", "io.tiff.Sink(path, compression='zlib')"),
    "ome-tiff": ("a.ome.tif", "path"),
    "planes": ("planes/a<Z,3>.tif", "path"),
    "hdf5": ("a.h5:/group/a", "path"),
    "hdf5, gzip": ("a.h5:/a", "io.hdf5.Sink(path, compression='gzip')"),
    "zarr": ("a.zarr", "path"),
    "zarr, shards": ("a.zarr", "io.zarr.Sink(path, chunks=4, shards=8)"),
    "ome-zarr": ("a.ome.zarr", "io.zarr.Sink(path, chunks=8, levels=2)"),
}

PROGRAM = """
import sys, time
import numpy as np
import gpublocks.block_processing as bp
from gpublocks import io

def slow(block):
    time.sleep(0.03)
    return block + np.uint16(1)

def watch(event):
    print(".", file=sys.stderr, flush=True)

source, path = np.load(sys.argv[1]), sys.argv[2]
options = {"axes": [0], "size_max": 8, "overlap": 0, "processes": 2}
bp.process(slow, source, eval(sys.argv[3]), progress=watch, **options)
"""


def left_of(path: str, whole: Any) -> bool:
    """Tell whether something has the final name; it must be complete then."""
    file = path.partition(":")[0]
    place = Path(file).parent if "<" in file else Path(file)
    if not place.exists():
        return False
    source = io.raw.Source(path, SHAPE, "u2") if path.endswith(".raw") else io.as_source(path)
    assert np.array_equal(np.asarray(source), whole)
    return True


def moments() -> Iterator[tuple[int, float]]:
    """Yield after how many events a program is killed, and how much later."""
    yield 3, 0.01
    # In the end, when files are synced, packed and renamed.
    yield 6, 0.035


@pytest.mark.parametrize("name", SINKS)
def test_what_has_its_name_is_complete(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, sink = SINKS[name]
    image = np.random.default_rng(1).integers(0, 5000, SHAPE, dtype=np.uint16)
    np.save("source.npy", image)
    for events, delay in moments():
        program = fork(PROGRAM, "source.npy", path, sink)
        assert program.stderr is not None
        for _ in range(events):
            program.stderr.readline()
        time.sleep(delay)
        program.kill()
        program.communicate()
        if left_of(path, image + 1):
            break
    else:
        # What the killed ones left is in nobody's way.
        made = eval(sink, {"io": io, "path": path})
        bp.process(lambda block: block + 1, image, made, processes="serial", overlap=0)
    assert left_of(path, image + 1)
