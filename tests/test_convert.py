"""The command `convert`: any format to any, its options, and what it refuses."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpublocks import io
from gpublocks.cli import main

Say = Callable[..., tuple[int, str, str]]

SHAPE = (7, 11, 13)
LIBRARIES = {
    ".zarr": "zarr",
    ".tif": "tifffile",
    ".h5": "h5py",
    ".nrrd": "nrrd",
    ".nii": "nibabel",
}
CHAIN = [
    ("a.zarr", "--chunks 3,4,5 --shards 6,8,10 --codec gzip:1"),
    ("b.tif", "--compression zlib"),
    ("c.h5:/raw/brain", "--compression gzip --chunks 4,4,4"),
    ("d.nrrd", "--encoding gzip"),
    ("e.nii.gz", ""),
    ("f.mhd", ""),
    ("g.ome.zarr", "--levels 2 --method nearest --zarr-format 2"),
    ("h.mha", ""),
    ("i.ome.tif", ""),
    ("planes/j<Z,3>.tif", ""),
    ("k.nii", ""),
    ("l.npy", ""),
]


@pytest.fixture
def voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    voxels = np.random.default_rng(0).integers(0, 60000, SHAPE, dtype=np.uint16)
    np.save("a.npy", voxels)
    return voxels


@pytest.fixture
def say(voxels: Any, capsys: pytest.CaptureFixture[str]) -> Say:
    def call(words: str) -> tuple[int, str, str]:
        status = main(words.split())
        out, err = capsys.readouterr()
        return status, out, err

    return call


def need(path: str) -> None:
    for suffix, library in LIBRARIES.items():
        if suffix in path:
            pytest.importorskip(library)


def test_voxels_go_through_all_formats(say: Say, voxels: Any) -> None:
    before = "a.npy"
    for path, options in CHAIN:
        need(path)
        words = f"convert {before} {path} {options} --keep-axes --processes serial"
        with warnings.catch_warnings():
            # What it is called elsewhere.
            warnings.filterwarnings("ignore", ".* calls its axes", RuntimeWarning)
            status, out, err = say(words)
        assert (status, err) == (0, ""), path
        assert out.startswith("convert: ")
        assert out.endswith(f" -> {path}\n")
        source = io.as_source(path)
        assert (source.shape, source.dtype) == (SHAPE, voxels.dtype), path
        assert np.array_equal(np.asarray(source), voxels), path
        before = path
    assert not [name for name in os.listdir() if "partial" in name]


@pytest.mark.parametrize("path", ["b.zarr", "b.tif", "b.h5", "b.npy"])
def test_worker_processes_convert_in_blocks(say: Say, voxels: Any, path: str) -> None:
    need(path)
    status, out, err = say(f"convert a.npy {path} --processes 2 --memory 1GB")
    assert (status, err) == (0, "")
    assert ", processes)" in out
    assert np.array_equal(np.asarray(io.as_source(path)), voxels)


def test_axes_and_spacing_go_along(say: Say, voxels: Any) -> None:
    for path in ("a.ome.zarr", "b.ome.tif", "c.nrrd", "d.nii", "e.ome.zarr"):
        need(path)
    units = ("um", "um", "um")
    told = {"axes": ("z", "y", "x"), "spacing": (5.0, 2.0, 0.5), "units": units}
    sink = io.zarr.Sink("a.ome.zarr", metadata=told).create(SHAPE, voxels.dtype, "C")
    sink.finish()
    for before, after in (
        ("a.ome.zarr", "b.ome.tif"),
        ("b.ome.tif", "c.nrrd"),
        ("c.nrrd", "e.ome.zarr"),
        ("a.ome.zarr", "d.nii"),
    ):
        assert say(f"convert {before} {after} --processes serial")[0] == 0
        found: Any = io.as_source(after)
        forth = after != "d.nii"
        assert tuple(found.metadata["spacing"])[:: 1 if forth else -1] == (5.0, 2.0, 0.5), after
        assert "".join(found.metadata["axes"]) == ("zyx" if forth else "xyz"), after


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        ("xyz", "b.ome.tif", "zyx"),
        ("xyz", "b.tif", "zyx"),
        ("xyzt", "b.ome.tif", "tzyx"),
        ("zyx", "b.nii.gz", "xyz"),
        ("zyx", "b.mha", "xyz"),
        ("tzcyx", "b.ome.zarr", "tczyx"),
        ("tczyx", "b.tif", "tzcyx"),
        ("yxc", "b.ome.zarr", "cyx"),
        ("yxc", "b.tif", "yxc"),
        ("yxc", "b.ome.tif", "yxc"),
        ("zyx", "b.nrrd", "zyx"),
        ("zyx", "b.zarr", "zyx"),
        ("qyx", "b.nii", None),
    ],
)
def test_axes_are_put_in_the_order_of_the_format(
    say: Say, names: str, path: str, expected: str | None
) -> None:
    need(path)
    pytest.importorskip("zarr")
    lengths = {"t": 2, "c": 3, "z": 4, "y": 20, "x": 30, "q": 5}
    shape = [lengths[name] for name in names]
    voxels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    told = {"axes": tuple(names), "spacing": tuple([float(lengths[name]) for name in names])}
    created: Any = io.zarr.Sink("x.zarr", metadata=told, chunks=7)
    sink = created.create(tuple(shape), voxels.dtype, "C")
    sink[:] = voxels
    sink.finish()
    status, _, err = say(f"convert x.zarr {path} --processes serial")
    assert (status, err) == (0, "")
    found: Any = io.as_source(path)
    axes = [names.index(name) for name in expected or names]
    assert np.array_equal(np.asarray(found), voxels.transpose(axes))
    if expected is not None:
        assert "".join(found.metadata["axes"]) == expected
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* calls its axes", RuntimeWarning)
        say(f"convert x.zarr {path} --processes serial --keep-axes --overwrite")
    if found.shape == tuple(shape):
        assert np.array_equal(np.asarray(io.as_source(path)), voxels)


def test_the_type_may_be_another(say: Say, voxels: Any) -> None:
    assert say("convert a.npy f.npy --dtype float32 --processes serial")[0] == 0
    assert np.load("f.npy").dtype == np.float32
    assert np.array_equal(np.load("f.npy"), voxels)
    status, _, err = say("convert a.npy b.npy --dtype uint8 --processes serial")
    assert status == 1
    assert "uint8" in err
    words = "convert a.npy b.npy --dtype uint8 --casting unsafe --processes serial"
    assert say(words)[0] == 0
    assert np.array_equal(np.load("b.npy"), voxels.astype(np.uint8))


def test_a_file_without_a_header_is_described(say: Say, voxels: Any) -> None:
    Path("x.raw").write_bytes(b"header" + voxels.astype(">u2").tobytes("F"))
    shape = "--shape 7,11,13 --order F --offset 6"
    assert say(f"convert x.raw a2.npy {shape} --source-dtype >u2 --processes serial")[0] == 0
    assert np.array_equal(np.load("a2.npy"), voxels)
    assert np.load("a2.npy").dtype == np.dtype(">u2")
    voxels.tofile("y.bin")
    assert say("convert y.bin b2.npy --shape 7,11,13 --dtype uint16 --processes serial")[0] == 0
    assert np.array_equal(np.load("b2.npy"), voxels)
    words = "--shape 7,11,13 --source-dtype uint16 --dtype float32 --processes serial"
    assert say(f"convert y.bin c2.npy {words}")[0] == 0
    assert np.load("c2.npy").dtype == np.float32
    assert "blocks" in say("plan numpy:sqrt y.bin --shape 7,11,13 --dtype uint16 --halo 0")[1]


def test_a_level_and_stored_voxels_are_chosen(say: Say, voxels: Any) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, "x.nii")
    status, _, err = say("convert x.nii y.npy --processes serial")
    assert (status, "2.0 * voxel + 1.0" in err, "--as-stored" in err) == (2, True, True)
    assert say("convert x.nii y.npy --as-stored --processes serial")[0] == 0
    assert np.array_equal(np.load("y.npy"), nibabel.load("x.nii").dataobj.get_unscaled())
    pytest.importorskip("zarr")
    assert say("convert a.npy z.ome.zarr --levels 2 --processes serial")[0] == 0
    assert say("convert z.ome.zarr w.npy --level 1 --processes serial")[0] == 0
    assert np.load("w.npy").shape == (4, 6, 7)


def test_what_exists_is_replaced_only_on_demand(say: Say, voxels: Any) -> None:
    np.save("b.npy", np.zeros(SHAPE, np.uint16))
    status, _, err = say("convert a.npy b.npy")
    assert status == 2
    assert "b.npy exists; give --overwrite" in err
    assert not np.load("b.npy").any()
    assert say("convert a.npy b.npy --overwrite --processes serial")[0] == 0
    assert np.array_equal(np.load("b.npy"), voxels)
    assert say("convert a.npy a.npy --overwrite --dtype int32 --processes serial")[0] == 0
    assert np.load("a.npy").dtype == np.int32
    assert np.array_equal(np.load("a.npy"), voxels)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("a.npy b.tif --codec zstd", "--codec is not for .tif, which takes --compression"),
        (
            "a.npy b.zarr --compression zlib",
            "which takes --chunks, --shards, --levels, --zarr-format, --method, --codec",
        ),
        ("a.npy b.npy --shape 7,11,13", "--shape is not for .npy, which takes none of these"),
        ("a.npy b.npy --levels 2", "--levels is not for .npy, which takes none of these"),
        ("a.npy b.nii.gz --encoding gzip", "--encoding is not for .nii.gz"),
        ("a.npy b.zarr --chunks 4,x", "--chunks is '4,x'; give a number, or one for each axis"),
        ("a.npy b.zarr --levels 2,2", "--levels is '2,2'; give a number"),
        ("a.npy b.zarr --chunks 4,4", "chunks"),
        ("a.npy b.zarr --codec zip", "zip"),
        ("a.npy b.xyz", "supported: .npy"),
        ("a.npy b.xyz --levels 2", "supported: .npy"),
        ("a.npy nowhere/b.npy", "no folder"),
        ("b.npy c.npy", "b.npy"),
        ("a.npy", "required: SINK"),
        ("a.npy b.npy --halo 1", "unrecognized arguments: --halo"),
    ],
)
def test_what_is_given_wrong_is_told_before_anything_is_created(
    say: Say, words: str, text: str
) -> None:
    need(words)
    status, out, err = say(f"convert {words} --processes serial")
    assert (status, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1
    assert os.listdir() == ["a.npy"]


def test_run_has_the_same_options(say: Say, voxels: Any) -> None:
    pytest.importorskip("zarr")
    words = "run numpy:negative a.npy n.zarr --overlap 0 --chunks 4,4,4 --processes serial"
    assert say(words)[0] == 0
    sink = io.as_source("n.zarr")
    assert sink.unit == (4, 4, 4)
    assert np.array_equal(np.asarray(sink), np.negative(voxels))
    status, _, err = say(f"{words} --codec none")
    assert status == 2
    assert "n.zarr exists" in err
    status, _, err = say("plan numpy:negative a.npy --codec none")
    assert status == 2
    assert "--codec is for a new sink; give SINK" in err
