"""A real head, the MNI template at 1 mm: results in blocks are those of SciPy, bit for bit."""

import functools
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi

import gpublocks.block_processing as bp

Array = np.ndarray[Any, Any]

HEAD = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"

FILTERS: dict[str, tuple[Callable[..., Array], dict[str, Any]]] = {
    # a filter of SciPy, and on which voxels its result depends
    "gaussian": (functools.partial(ndi.gaussian_filter, sigma=2), {"halo": 8}),
    "median": (functools.partial(ndi.median_filter, size=3), {"halo": 1}),
    "white top-hat": (
        functools.partial(ndi.white_tophat, size=(5, 9, 9)),
        {"halo": [4, 8, 8], "axes": "all"},
    ),
}


@pytest.fixture(scope="module")
def head() -> Array:
    """The whole head: 197 x 233 x 189 voxels of uint8, in Fortran order."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads the head")
    try:
        path = importlib.metadata.distribution("nilearn").locate_file(HEAD)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nilearn, whose wheel holds the head, is not installed")
    voxels = np.asanyarray(nibabel.load(path).dataobj)
    assert (voxels.shape, voxels.dtype) == ((197, 233, 189), np.uint8)
    return voxels


@pytest.fixture(scope="module")
def expected(head: Array) -> Callable[[str, Any], tuple[Array, Array]]:
    """The part of the head that a filter is tried on, and the result of the whole of it."""

    @functools.cache
    def both(name: str, dtype: Any) -> tuple[Array, Array]:
        part = head[40:130, 50:150, 60:150] if name == "median" else head
        source = part.astype(dtype, order="K")
        return source, FILTERS[name][0](source)

    return both


@pytest.mark.parametrize(
    ("executor", "stored"),
    [("serial", "files"), ("threads", "memory"), ("processes", "files"), ("processes", "memory")],
    indirect=["executor"],
)
@pytest.mark.parametrize("name", FILTERS)
def test_the_head(
    executor: str,
    name: str,
    stored: str,
    expected: Callable[[str, Any], tuple[Array, Array]],
    tmp_path: Path,
) -> None:
    source, whole = expected(name, np.float32 if stored == "files" else np.uint8)
    function, known = FILTERS[name]
    give: Any = source
    sink: Any = None
    if stored == "files":
        give, sink = tmp_path / "head.npy", tmp_path / "result.npy"
        np.save(give, source)

    result = bp.process(function, give, sink, processes=2, executor=executor, **known)

    result = np.load(sink) if stored == "files" else result
    assert result.dtype == whole.dtype
    assert result.flags.f_contiguous
    assert np.array_equal(result, whole)
    assert len(bp.plan(function, give, processes=2, executor=executor, **known).grid) > 1


@pytest.mark.parametrize("sizes", [{"size_max": 40, "overlap": 8}, {"size_max": 31, "halo": 4}])
def test_documented_sizes(executor: str, sizes: dict[str, int], head: Array) -> None:
    source = head[50:150, 60:160, 70:130]
    sink = np.zeros(source.shape, np.uint8)

    bp.process(
        functools.partial(ndi.gaussian_filter, sigma=1),
        source,
        sink,
        axes="all",
        processes=2,
        executor=executor,
        **sizes,
    )

    assert np.array_equal(sink, ndi.gaussian_filter(source, 1))


def test_two_heads(head: Array, tmp_path: Path) -> None:
    """Two heads in 69 MB, from file to file in processes and in memory with threads."""
    source = np.tile(head.astype(np.float32), (1, 1, 2))
    path, target = tmp_path / "heads.npy", tmp_path / "result.npy"
    function, known = FILTERS["gaussian"]
    whole = function(source)
    np.save(path, source)

    try:
        bp.process(function, path, target, processes=2, executor="processes", **known)
        assert np.array_equal(np.load(target), whole)
        result = bp.process(function, source, processes=2, executor="threads", **known)
        assert np.array_equal(result, whole)
    finally:
        path.unlink()
        target.unlink(missing_ok=True)
