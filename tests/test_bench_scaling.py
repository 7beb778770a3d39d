"""Many blocks without voxels, the line that is fitted, what follows for a large volume."""

import json
import os
import pickle
import sys
from dataclasses import replace
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpublocks import bench
from gpublocks.bench.cells import Hollow, HollowRun
from gpublocks.bench.forecast import Site, Work, cube_of, forecast
from gpublocks.bench.outlook import Stated, predict
from gpublocks.bench.outlook_tables import outlook_tables
from gpublocks.bench.scaling import fit_line, flatness, growth, scaling_case
from gpublocks.bench.tables import as_text

SITE = Site(
    nodes=1,
    workers=1,
    block=(4, 4),
    voxels_per_second=2.0,
    storage_per_second=4.0,
    copied_per_second=8.0,
    cell_seconds=0.5,
    start_seconds=3.0,
)


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    block=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    halo=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    nodes=st.integers(1, 4),
    workers=st.integers(1, 4),
)
def test_forecast_is_what_comes_of_dealing_blocks(
    shape: tuple[int, int],
    block: tuple[int, int],
    halo: tuple[int, int],
    nodes: int,
    workers: int,
) -> None:
    boxes = list(product(*[range(0, n, side) for n, side in zip(shape, block, strict=True)]))
    read = 0
    for corner in boxes:
        touched = np.zeros(shape, bool)
        touched[
            tuple(
                slice(max(0, start - around), start + side + around)
                for start, side, around in zip(corner, block, halo, strict=True)
            )
        ] = True
        read += int(touched.sum())
    of_node = max(len(boxes[n::nodes]) for n in range(nodes))
    of_worker = max(len(boxes[:of_node][n::workers]) for n in range(workers))
    site = replace(SITE, nodes=nodes, workers=workers, block=block, link_per_second=16.0)
    found = forecast(Work(shape, 2, halo), site)
    mean_in, mean_out = read / len(boxes), prod(shape) / len(boxes)
    assert found.cells == len(boxes)
    assert found.over_read == pytest.approx(read / prod(shape))
    assert found.parts == pytest.approx(
        {
            "storage": of_node * 2 * (mean_in + mean_out) / 4,
            "memory": of_node * 2 * (mean_in + mean_out) / 8,
            "handing out": of_node * 0.5,
            "computing": of_worker * mean_in / 2,
            "link": of_worker * 2 * mean_in / 16,
        }
    )
    assert found.seconds(3.0) == 3.0 + max(found.parts.values())
    assert found.parts[found.bound] == max(found.parts.values())


def test_what_is_not_known_is_left_out() -> None:
    found = forecast(Work((8, 8), 2, (0, 0)), replace(SITE, voxels_per_second=None))
    assert set(found.parts) == {"storage", "memory", "handing out"}


def test_ten_terabytes_are_so_many_voxels() -> None:
    assert prod(cube_of(10e12, 2)) * 2 == pytest.approx(10e12, rel=1e-3)


@given(start=st.floats(0, 1), cell=st.floats(1e-6, 1e-3))
def test_line_is_found_again(start: float, cell: float) -> None:
    line = fit_line({n: start + n * cell for n in (1000, 10_000, 100_000)})
    assert line.cell == pytest.approx(cell, rel=1e-6)
    assert line.start == pytest.approx(start, rel=1e-4, abs=1e-6)
    assert line.error < 1e-6
    assert line.seconds(50_000) == pytest.approx(start + 50_000 * cell)


def test_line_does_not_start_before_nothing() -> None:
    line = fit_line({1000: 0.5, 2000: 2.0, 4000: 5.0})
    assert line.start == 0.0
    assert line.cell > 0
    assert line.error > 0.1


def test_flatness_looks_at_long_runs() -> None:
    assert flatness({1000: 9.0, 10_000: 1.0, 100_000: 15.0}) == pytest.approx(1.5)


def test_hollow_arrays_take_no_memory_and_are_seen_by_workers(tmp_path: Path) -> None:
    from gpublocks.contracts import Reach
    from gpublocks.io import as_source

    array = Hollow((10**6,) * 3, "uint16", os.devnull)
    assert as_source(array).reach == Reach.MACHINE
    part = array[5:105, 0:7, 999_990:2_000_000]
    assert part.shape == (100, 7, 10)
    assert part.base is not None
    assert len(pickle.dumps(array)) < 500


def test_runs_over_nothing_do_every_block(tmp_path: Path, executor: str) -> None:
    run = HollowRun(tmp_path, cells=300, executor=executor, workers=2)
    run.prepare()
    assert run.act()["seconds"] > 0
    run.check()
    run._done -= 1
    with pytest.raises(ValueError, match="299 blocks were done instead of 300"):
        run.check()


STATED = Stated(volume_bytes=10**13, gpus=8, nodes=64, gpu_block=512)


@pytest.mark.skipif(sys.platform != "linux", reason="copies of processes: Linux")
def test_scaling_is_measured_and_told(tmp_path: Path) -> None:
    case = scaling_case(quick=True, workers=2)
    kept = [way for way in case.ways if "50000" not in way.name and "10000 " not in way.name]
    text = json.dumps([dict(way.options) for way in kept]).replace("10000", "2000")
    few = replace(
        case,
        parameters={"cells": (1000,), "workers": 2, "cells_by_workers": 1000},
        ways=tuple(
            replace(way, options=options)
            for way, options in zip(kept, json.loads(text), strict=True)
        ),
    )
    results = bench.run([few], quick=True, folder=tmp_path)
    assert "error" not in results["cases"][0]
    for name in ("serial", "threads", "processes", "plan"):
        assert set(growth(results["cases"][0], name)) == {1000}
        assert set(growth(results["cases"][0], name, "peak_bytes")) == {1000}
    assert set(results["floors"]) >= {"copied_per_second", "written_per_second"}


def told(**stated: Any) -> tuple[dict[str, Any], str]:
    def raw(each: float, size: int) -> dict[str, list[float]]:
        return {
            "seconds": [0.01 + each * size],
            "walk_seconds": [0.0],
            "peak_bytes": [float(1 << 20)],
        }

    sizes = (1000, 10_000, 100_000)
    workers = {"serial": 1, "threads": 2, "processes": 2, "plan": 1}
    each = {"serial": 30e-6, "threads": 40e-6, "processes": 50e-6, "plan": 5e-6}
    case = {
        "parameters": {"cells": sizes, "workers": 2, "cells_by_workers": 10_000},
        "raw": {
            f"{name}, {workers[name]} workers, {size} blocks": raw(each[name], size)
            for name in workers
            for size in sizes
        }
        | {"a CPU computes": {"seconds": [128**3 / 1e7]}},
    }
    floors = {"copied_per_second": 1e10, "written_per_second": 1e9, "read_per_second": 2e9}
    results: dict[str, Any] = {"cases": [case], "floors": floors}
    results["forecast"] = predict(results, replace(STATED, **stated))
    return results["forecast"]["sites"], "\n".join(map(as_text, outlook_tables(results)))


def links(text: str) -> list[str]:
    """Return the column of links of the predicted sites."""
    lines = text[text.index("predicted: ") :].splitlines()
    at = lines[1].index("link")
    return [line[at:].split("  ")[0].strip() for line in lines[3:7]]


def test_nothing_is_made_up_of_gpus() -> None:
    sites, text = told()
    assert "computing" not in sites["1 node of 8 GPUs"]["parts"]
    assert "link" not in sites["64 nodes of 8 GPUs"]["parts"]
    assert "at least" in text
    assert "- how much a GPU computes is not stated (--gpu-voxels-per-second): computing" in text
    assert "- how fast a GPU is linked is not stated (--gpu-link): the link is left out" in text
    assert "- blocks of 512 x 512 x 512 voxels fit into the memory of a GPU" in text
    assert links(text) == ["-", "-", "?", "?"]
    assert "serial: 10.0 ms + 30.0 µs a block, off by at most 0 %" in text


def test_stated_rates_are_used_and_told() -> None:
    sites, text = told(gpu_voxels_per_second=1e9, link_per_second=2e10, storage_per_second=1e11)
    here, many, node, nodes = sites.values()
    assert "at least" not in text
    assert "- a GPU computes 1e+09 voxels/s: as stated" in text
    assert links(text)[:2] == ["-", "-"]
    assert "?" not in links(text)
    cells = ceil(node["cells"] / 8)
    voxels = prod(cube_of(1e13, 2)) * node["over_read"] / node["cells"]
    assert node["parts"]["computing"] == pytest.approx(cells * voxels / 1e9)
    of_node = ceil(nodes["cells"] / 64)
    assert nodes["parts"]["computing"] == pytest.approx(ceil(of_node / 8) * voxels / 1e9)
    assert here["parts"]["computing"] == pytest.approx(
        ceil(here["cells"] / 2) * prod(cube_of(1e13, 2)) * here["over_read"] / here["cells"] / 1e7
    )
    assert here["parts"]["handing out"] == pytest.approx(here["cells"] * 50e-6)
    assert node["parts"]["handing out"] == pytest.approx(node["cells"] * 40e-6)
    assert many["seconds"] == pytest.approx(0.01 + many["parts"][many["bound"]])
