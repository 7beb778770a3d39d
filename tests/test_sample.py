"""The synthetic brain: the same for a seed, and with the traits that its docstring names."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.sample import brain

SHAPE = (40, 64, 72)


@pytest.fixture(scope="module")
def image() -> Any:
    return brain(SHAPE)


def test_shape_and_type(image: Any) -> None:
    assert image.shape == SHAPE
    assert image.dtype == np.uint16
    assert image.flags.c_contiguous


def test_the_same_seed_gives_the_same_voxels_in_any_process(image: Any) -> None:
    program = (
        "import sys, hashlib; from gpublocks.sample import brain;"
        f"print(hashlib.sha256(brain({SHAPE}).tobytes()).hexdigest());"
        "heavy = {'scipy', 'cupy', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert found.stdout.decode().strip() == hashlib.sha256(image.tobytes()).hexdigest()


def test_the_global_random_state_plays_no_part(image: Any) -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    assert np.array_equal(brain(SHAPE), image)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]


def test_another_seed_gives_another_image(image: Any) -> None:
    assert np.mean(brain(SHAPE, seed=1) == image) < 0.2


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 40, 23), np.array([20, 18, 16])])
@pytest.mark.parametrize("seed", [0, 7])
def test_any_shape_from_sixteen_voxels(shape: Sequence[int], seed: int) -> None:
    assert brain(shape, seed).shape == tuple(shape)


def test_the_medium_is_dark_and_the_tissue_bright(image: Any) -> None:
    corners = image[:, :4, :4]
    assert 90 < corners.mean() < 115
    assert corners.std() < 15
    middle = image[18:22, 24:32, 10:30]
    assert np.median(middle) > 180


def test_cells_are_bright_small_and_many() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = brain((64, 80, 80)).astype("float32")
    background = ndimage.median_filter(volume, (3, 5, 5))
    _, cells = ndimage.label(volume - background > 150)
    assert 100 < cells < 1000


def test_the_light_falls_off_from_left_to_right(image: Any) -> None:
    left, right = image[:, :, : SHAPE[2] // 2], image[:, :, SHAPE[2] // 2 :]
    assert np.median(left[left > 180]) > 1.1 * np.median(right[right > 180])


@pytest.mark.parametrize(
    ("shape", "seed", "error", "text"),
    [
        ((64, 64), 0, PlanError, "shape has 2 axes"),
        ((64, 64, 8), 0, PlanError, r"shape\[2\] is 8; it must be at least 16"),
        ((64, 64, 64.5), 0, ArgumentTypeError, r"shape\[2\] is 64.5"),
        ((64, 64, 64), -1, PlanError, "seed is -1"),
    ],
)
def test_wrong_arguments_are_named(
    shape: Any, seed: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        brain(shape, seed)
