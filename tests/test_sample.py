"""The demo: the synthetic brain, the same for a seed, and the picture of it before and after."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpublocks.errors import ArgumentTypeError, GpublocksError, PlanError
from gpublocks.grid import Grid
from gpublocks.picture import save_before_after
from gpublocks.sample import brain
from gpublocks.splitting import split_axis

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
    _, cells = ndimage.label(volume - background > 300)
    assert 100 < cells < 400


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


GRID = Grid(SHAPE, (1, 2), (split_axis(64, size_max=30, overlap=8), split_axis(72, size_max=40)))
CYAN, AMBER = (0x00, 0xD5, 0xFF), (0xFF, 0xB0, 0x00)


def coloured(path: Path, colour: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    """Return how many pixels of a PNG have a colour, and its width and height."""
    image = pytest.importorskip("matplotlib.image").imread(path)
    pixels = np.rint(image[..., :3] * 255).astype(int)
    return int((pixels == colour).all(axis=-1).sum()), (image.shape[1], image.shape[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_picture_shows_what_a_block_reads_and_writes(
    image: Any, tmp_path: Path, axis: int
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    save_before_after(path, image, image > 300, GRID, title="A title", axis=axis, thickness=5)
    for colour in (CYAN, AMBER):
        pixels, (width, height) = coloured(path, colour)
        assert pixels > 200
        assert width == 1800
        assert 300 < height < 1500
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_the_block_asked_for_is_shown(image: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for block in (0, 5):
        save_before_after(tmp_path / f"{block}", image, image, GRID, block=block)
    assert (tmp_path / "0").read_bytes() != (tmp_path / "5").read_bytes()


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_a_flat_volume_can_be_shown(tmp_path: Path, value: float) -> None:
    pytest.importorskip("matplotlib")
    flat = np.full(SHAPE, value)
    save_before_after(tmp_path / "flat.png", flat, flat, GRID)
    assert (tmp_path / "flat.png").stat().st_size > 0


def test_what_does_not_fit_the_grid_is_refused(image: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(PlanError, match=r"after has shape \(40, 64, 71\)"):
        save_before_after(path, image, image[..., 1:], GRID)
    with pytest.raises(PlanError, match="block is 6; give a number from 0 to 5"):
        save_before_after(path, image, image, GRID, block=6)
    with pytest.raises(PlanError, match="axis 3"):
        save_before_after(path, image, image, GRID, axis=3)
    assert not path.exists()


def test_without_matplotlib_the_extra_is_named(
    image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GpublocksError, match=r"pip install 'gpublocks\[plot\]'"):
        save_before_after(tmp_path / "picture.png", image, image, GRID)


def test_matplotlib_is_imported_to_draw_and_pyplot_never(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    program = (
        "import sys, numpy as np; from gpublocks.picture import save_before_after as save;"
        "assert 'matplotlib' not in sys.modules;"
        "from gpublocks.grid import Grid; from gpublocks.splitting import split_axis;"
        "v = np.zeros((8, 8, 8)); grid = Grid(v.shape, (0,), (split_axis(8, size_max=4),));"
        f"save({str(tmp_path / 'x.png')!r}, v, v, grid);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
