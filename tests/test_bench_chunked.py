"""The benchmark from Zarr to Zarr, over a small volume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import chunked
from benchmarks.__main__ import main
from gpublocks.errors import PlanError

PLANE = 128
pytest.importorskip("zarr")


def test_parts_and_job_are_measured_by_turns(tmp_path: Path) -> None:
    found = chunked.measure(256, tmp_path, plane=PLANE, rounds=2)
    assert set(found["seconds"]) == {"ours", "decode", "filter", "encode"}
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    parts = [sum(found["seconds"][name][1] for name in ("decode", "filter", "encode"))]
    assert found["ours_to_parts"][1:] == [found["seconds"]["ours"][1] / parts[0]]
    assert 1 <= found["decoded_to_array"] < 2
    assert "all voxels right" in chunked.as_text(json.loads(json.dumps(found)))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_voxel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(function: Any, source: Any, sink: str, **options: Any) -> None:
        array = chunked.create_array(sink, source.shape, "u2")
        voxels = function(source.read(chunked.Region.whole(source.shape)), options["sigma"])
        voxels[130, 5, 7] += 1
        array[...] = voxels

    monkeypatch.setattr(chunked, "process", wrong)
    with pytest.raises(RuntimeError, match="1 of 4194304 voxels differ"):
        chunked.measure(256, tmp_path, plane=PLANE, rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_encoding_ends_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(chunked, "sync_files", synced.append)
    path = str(tmp_path / "a.zarr")
    assert chunked._encode(path, np.zeros((64, 64, 64), "u2")) > 0
    assert synced == [path]


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chunked", "--planes", "100", "--folder", str(tmp_path)]) == 2
    assert "give a multiple of 256 planes" in capsys.readouterr().err
    with pytest.raises(PlanError, match="multiple of 128"):
        chunked.measure(256, tmp_path, plane=100)
    monkeypatch.setattr(chunked, "missing", lambda names: "zarr")
    assert main(["chunked", "--folder", str(tmp_path)]) == 2
    assert "zarr is not installed: pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
