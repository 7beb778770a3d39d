"""How far functions look, found out on samples: in Python and from the shell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks import filters, gpus
from gpublocks.cli import main
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters import gaussian, verify
from gpublocks.sample import brain

Array = np.ndarray[Any, Any]

IMAGE = brain((40, 70, 60))


@given(
    st.tuples(*[st.integers(0, 12)] * 2),
    st.tuples(*[st.integers(0, 12)] * 2),
    st.sampled_from(["uint8", "float32"]),
)
@settings(max_examples=20)
def test_the_smallest_halo_of_a_filter_is_found(
    before: tuple[int, int], after: tuple[int, int], dtype: str
) -> None:
    """Windows that look further to one side than to the other need the longer one."""
    window = tuple(b + a + 1 for b, a in zip(before, after, strict=True))
    origin = tuple(b - w // 2 for b, w in zip(before, window, strict=True))
    image = np.random.default_rng(0).integers(0, 255, (120, 110)).astype(dtype)

    def lowest(array: Array) -> Array:
        return ndi.minimum_filter(array, window, origin=origin)

    halo = tuple(map(max, zip(before, after, strict=True)))
    found = verify(lowest, image, halo)
    assert found.needed == halo
    assert found.safe
    short = tuple(max(0, n - 1) for n in halo)
    assert verify(lowest, image, short).safe == (short == halo)


def test_a_filter_knows_its_own_halo() -> None:
    found = verify(gaussian((1, 2, 0)), IMAGE)
    assert (found.given, found.needed, found.safe) == ((4, 8, 0), (4, 8, 0), True)


def test_without_a_halo_the_smallest_one_is_told() -> None:
    found = verify(ndi.uniform_filter, IMAGE, size=(1, 5, 8))
    assert (found.given, found.needed, found.safe) == (None, (0, 2, 4), True)


def test_far_looks_are_found_in_longer_samples() -> None:
    image = np.random.default_rng(0).random((600, 8))
    found = verify(ndi.maximum_filter, image, size=(201, 1))
    assert found.needed == (100, 0)
    assert found.searched[0] > 100


@pytest.mark.parametrize(
    "function",
    [
        lambda array: array - array.mean(),
        lambda array: array + np.arange(array.shape[1]),
        lambda array: np.random.default_rng().random(array.shape),
        lambda array: ndi.label(array > np.median(array))[0],
    ],
    ids=["mean of all", "place", "chance", "labels"],
)
def test_no_halo_is_enough_for_what_is_not_local(function: Callable[[Array], Array]) -> None:
    found = verify(function, np.random.default_rng(0).random((70, 90)), halo=5)
    assert not found.safe
    assert None in found.needed
    assert "no halo up to" in str(found)


def test_smooth_images_hide_nothing_from_it() -> None:
    ramp = np.broadcast_to(np.arange(50, dtype=np.uint8), (50, 50))
    for image in (ramp, np.full((50, 50), 7, np.uint8)):
        assert verify(ndi.median_filter, image, halo=1, size=5).needed == (2, 2)


def test_rounding_is_tolerated_where_it_is_said() -> None:
    image = np.random.default_rng(0).random((60, 60))
    assert not verify(ndi.uniform_filter, image, halo=3, size=7).safe
    assert verify(ndi.uniform_filter, image, halo=3, size=7, tolerance=1e-9).needed == (3, 3)


def test_functions_may_change_their_argument_and_give_nan() -> None:
    def root(array: Array) -> Array:
        array -= 0.5
        with np.errstate(invalid="ignore"):
            return np.sqrt(array)

    assert verify(root, np.random.default_rng(0).random((50, 50))).needed == (0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verify(lambda array: array[1:], IMAGE), r"returned an array of shape \(31"),
        (lambda: verify(lambda array: None, IMAGE), "returned no array"),
        (lambda: verify(gaussian(1), IMAGE, -1), "halo is -1"),
        (lambda: verify(gaussian(1), IMAGE, (1, 2)), "halo has 2 values, but there are 3 axes"),
        (lambda: verify(gaussian(1), IMAGE, samples=1), "samples is 1; give at least 2"),
        (lambda: verify(gaussian(1), IMAGE, seed=-1), "seed is -1; give at least 0"),
        (lambda: verify(gaussian(1), IMAGE, tolerance=-1), "tolerance is -1"),
        (lambda: verify(gaussian(1), np.zeros((0, 4))), "no voxels to try"),
        (lambda: verify(gaussian((1, 1)), IMAGE), "halo has 2 values, but there are 3 axes"),
    ],
)
def test_what_makes_no_sense(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((PlanError, ArgumentTypeError), match=message):
        call()


# --- GPUs ---------------------------------------------------------------------------------------


@filters.filter(halo=0)
def doubled(array: Any) -> Any:
    return array * 2


@filters.filter(halo=0)
def brighter_on_gpus(array: Any) -> Any:
    return array + (3 if isinstance(array, fake_cupy.ndarray) else 0)


@filters.filter(halo=0)
def for_numpy_only(array: Any) -> Any:
    return np.asarray(array)


@pytest.mark.parametrize(
    ("function", "difference"),
    [(doubled, 0), (gaussian(1), 0), (brighter_on_gpus, 3), (for_numpy_only, float("inf"))],
)
def test_results_of_gpus_are_compared(
    monkeypatch: pytest.MonkeyPatch, function: Any, difference: float
) -> None:
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(gpus, "gpu_status", lambda exact: "")
    found = verify(function, IMAGE)
    assert found.difference == difference
    assert f"NumPy and CuPy differ by {difference:g} at most" in str(found)


def test_without_a_gpu_nothing_is_compared() -> None:
    assert verify(doubled, IMAGE).difference is None


# --- from the shell -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", IMAGE[:24, :30, :26])
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("scipy.ndimage:median_filter a.npy --arg size=5 --halo 2", 0, "2 is large enough"),
        ("scipy.ndimage:median_filter a.npy --arg size=5 --halo 2,1,2", 1, "(2, 1, 2) is too"),
        ("gaussian a.npy -a sigma=0.5", 0, "a halo of 2 is large enough"),
        ("scipy.ndimage:laplace a.npy --samples 4", 0, "(4 samples, cut along each axis)"),
        ("scipy.ndimage:laplace a.npy --samples x", 2, "--samples is 'x'; give a number"),
        ("scipy.ndimage:laplace a.npy --halo x", 2, "--halo is 'x'; give a number"),
        ("scipy.ndimage:laplace b.npy", 2, "b.npy"),
    ],
)
def test_check_tells_and_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, status: int, text: str
) -> None:
    assert main(["check", *words.split()]) == status
    told = capsys.readouterr()
    assert text in (told.err if status == 2 else told.out)


def test_filters_run_by_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, chain in (
        ("gaussian(2)", gaussian(2)),
        (
            "gaussian(sigma=(1, 0, 2), mode='nearest') | gaussian(1, order=1)",
            gaussian((1, 0, 2), mode="nearest") | gaussian(1, order=1),
        ),
    ):
        assert main(["run", text, "a.npy", "b.npy", "--processes", "serial"]) == 0
        assert np.array_equal(np.load("b.npy"), chain(IMAGE[:24, :30, :26]))
        Path("b.npy").unlink()
    assert main(["run", "gaussian", "a.npy", "b.npy", "-a", "sigma=1.5", "--processes", "2"]) == 0
    assert np.array_equal(np.load("b.npy"), gaussian(1.5)(IMAGE[:24, :30, :26]))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian", "did you mean the filter 'gaussian'?"),
        ("gausian(2)", "'gausian(2)' is no filter; did you mean 'gaussian'?"),
        ("gaussian(2) | sqrt(3)", "'sqrt(3)' is no filter"),
        ("gaussian(2) + gaussian(3)", "is no filter"),
        ("gaussian(open('a'))", "give filters such as 'median(3) | gaussian(sigma=2)'"),
        ("gaussian(2", "give filters such as"),
        ("gaussian()", "missing a required argument: 'sigma'"),
        ("gaussian(-1)", "sigma is -1; give at least 0"),
        ("verify(1)", "'verify(1)' is no filter"),
    ],
)
def test_texts_that_are_no_filters(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert main(["run", text, "a.npy", "b.npy"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("b.npy").exists()
