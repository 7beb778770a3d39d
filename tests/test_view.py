"""Planes and projections of sources, compared with NumPy's; and the pictures of the command."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks import io, viewing
from gpublocks.cli import main
from gpublocks.contracts import Array
from gpublocks.errors import ArgumentTypeError, GpublocksError, PlanError
from gpublocks.geometry import Region
from gpublocks.viewing import maximum_panels, plane_panels, scene_of

Say = Callable[..., tuple[int, str, str]]


class Stored:
    """An array stored in pieces, which keeps the regions that are read of it."""

    name = "Stored-Source"

    def __init__(self, voxels: Array, unit: tuple[int, ...], order: str = "C", **told: Any) -> None:
        self.voxels, self.unit, self.order, self.metadata = voxels, unit, order, told
        self.shape, self.dtype = voxels.shape, voxels.dtype
        self.regions: list[Region] = []

    def read(self, region: Region, out: Array | None = None) -> Array:
        assert Region.whole(self.shape).contains(region)
        self.regions.append(region)
        return self.voxels[region.slices].copy()

    def pieces(self, axis: int) -> set[int]:
        """Return which pieces along an axis were read."""
        found: set[int] = set()
        for region in self.regions:
            found |= {n // self.unit[axis] for n in range(region.start[axis], region.stop[axis])}
        return found


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        status = main(words.split())
        out, err = capsys.readouterr()
        return status, out, err

    return call


def volume(shape: tuple[int, ...], dtype: Any = np.uint16) -> Array:
    voxels = np.random.default_rng(prod(shape)).permutation(prod(shape))
    return voxels.astype(dtype).reshape(shape)


def size_of_png(path: str) -> tuple[int, int]:
    head = Path(path).read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


# --- panels ------------------------------------------------------------------------------------


def test_planes_are_those_in_the_middle() -> None:
    voxels = volume((5, 6, 7))
    panels = plane_panels(scene_of(io.as_source(voxels)))
    assert [panel.text for panel in panels] == ["z = 2", "y = 3", "x = 3"]
    assert [panel.names for panel in panels] == [("y", "x"), ("z", "x"), ("z", "y")]
    for panel, plane in zip(panels, (voxels[2], voxels[:, 3], voxels[:, :, 3]), strict=True):
        assert np.array_equal(panel.image, plane)
        assert (panel.steps, panel.lengths) == ((1, 1), plane.shape)


def test_axes_are_seen_by_their_names_whatever_their_order() -> None:
    voxels = volume((4, 3, 5, 6))
    told = {"axes": ("x", "c", "z", "y"), "spacing": (0.5, None, 2.0, 1.0), "units": ("um",) * 4}
    source = Stored(voxels, (2, 1, 2, 2), **told)
    scene = scene_of(source, {"c": 2, 2: 1})
    panels = plane_panels(scene)
    assert scene.text == "c = 2"
    assert np.array_equal(panels[0].image, voxels[:, 2, 1].T)
    assert np.array_equal(panels[1].image, voxels[:, 2, :, 3].T)
    assert np.array_equal(panels[2].image, voxels[2, 2])
    assert (panels[1].names, panels[1].spacing) == (("z", "x"), (2.0, 0.5))
    whole = maximum_panels(scene)
    for panel, axis in zip(whole, (1, 2, 0), strict=True):
        seen = voxels[:, 2].max(axis=axis)
        assert np.array_equal(panel.image, seen if axis == 0 else seen.T)


def test_the_first_axes_are_those_of_space_where_the_first_is_the_fastest() -> None:
    voxels = np.asfortranarray(volume((4, 5, 6, 3)))
    scene = scene_of(io.as_source(voxels))
    assert (scene.shown, scene.text) == ((2, 1, 0), "c = 0")
    assert np.array_equal(plane_panels(scene)[0].image, voxels[:, :, 3, 0].T)


@pytest.mark.parametrize("make", [plane_panels, maximum_panels])
def test_an_image_is_one_panel(make: Callable[..., list[viewing.Panel]]) -> None:
    voxels = volume((5, 6), np.float32)
    (panel,) = make(scene_of(io.as_source(voxels)))
    assert np.array_equal(panel.image, voxels)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reduced_panels_are_those_of_the_whole_array(data: st.DataObject) -> None:
    lengths = st.integers(1, 23)
    shape = tuple(data.draw(st.lists(lengths, min_size=2, max_size=4), "shape"))
    unit = tuple(data.draw(st.integers(1, n + 1), "unit") for n in shape)
    dtype = data.draw(st.sampled_from([np.uint16, np.int32, np.float32, np.bool_]), "dtype")
    order = data.draw(st.sampled_from("CF"), "order")
    stored = Stored(volume(shape, dtype), unit, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewing, "SIDE", data.draw(st.integers(1, 25), "side"))
        patch.setattr(viewing, "BOX_BYTES", data.draw(st.integers(1, 500), "bytes"))
        scene = scene_of(stored)
        planes, most = plane_panels(scene), maximum_panels(scene)
        in_memory = plane_panels(scene_of(io.as_source(stored.voxels), None))
    for panel, brightest in zip(planes, most, strict=True):
        down, across = [scene.names.index(name) for name in panel.names]
        kept: list[Any] = [scene.indices[axis] for axis in range(len(shape))]
        kept[down], kept[across] = [slice(None, None, step) for step in panel.steps]
        plane = stored.voxels[tuple(kept)]
        assert np.array_equal(panel.image, plane if down < across else plane.T)
        assert brightest.steps == panel.steps
        assert np.array_equal(brightest.image, reduced(stored.voxels, scene, panel))
    if order == "C":
        assert all(np.array_equal(a.image, b.image) for a, b in zip(planes, in_memory, strict=True))


def reduced(voxels: Array, scene: viewing.Scene, panel: viewing.Panel) -> Array:
    """Return the maximum along the third axis of space, and of the voxels of each pixel."""
    down, across = [scene.names.index(name) for name in panel.names]
    for axis in set(range(voxels.ndim)) - set(scene.shown):
        voxels = voxels.take([scene.indices[axis]], axis=axis)
    flat = voxels.max(axis=tuple(set(range(voxels.ndim)) - {down, across}))
    flat = flat if down < across else flat.T
    rows, columns = [range(0, n, step) for n, step in zip(panel.lengths, panel.steps, strict=True)]
    pixels = [[flat[r : r + rows.step, c : c + columns.step].max() for c in columns] for r in rows]
    return np.array(pixels)


def test_numbers_that_are_none_do_not_hide_the_maximum() -> None:
    voxels = volume((3, 4, 5), np.float32)
    voxels[1] = np.nan
    voxels[:, 2, 2] = np.nan
    image = maximum_panels(scene_of(io.as_source(voxels)))[0].image
    assert np.isnan(image[2, 2])
    assert np.array_equal(image, np.fmax.reduce(voxels), equal_nan=True)


def test_memory_and_reading_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "SIDE", 4)
    monkeypatch.setattr(viewing, "BOX_BYTES", 1000)
    stored = Stored(volume((40, 30, 20)), (2, 5, 5))
    scene = scene_of(stored)
    maximum_panels(scene)
    assert sum(region.size for region in stored.regions) == stored.voxels.size
    assert max(region.size for region in stored.regions) * 2 <= 1000
    stored.regions.clear()
    plane_panels(scene)
    assert max(region.size for region in stored.regions) * 2 <= 1000
    assert sum(region.size for region in stored.regions) < stored.voxels.size / 4
    assert stored.pieces(1) == {0, 1, 2, 3, 4, 5}
    stored = Stored(volume((40, 30, 20)), (1, 30, 20))
    plane_panels(scene_of(stored))
    assert stored.pieces(0) == {0, 10, 20, 30}


@pytest.mark.parametrize(
    ("voxels", "indices", "text"),
    [
        (np.zeros(5), {}, "at least two axes"),
        (np.zeros((3, 0, 5)), {}, "cannot be shown"),
        (np.zeros((3, 4)), {"z": 1}, "there is no axis z; the source has axes 0 (y), 1 (x)"),
        (np.zeros((3, 4)), {2: 1}, "there is no axis 2"),
        (np.zeros((3, 4)), {1: 4}, "give one from 0 to 3"),
    ],
)
def test_what_cannot_be_shown_is_refused(voxels: Array, indices: Any, text: str) -> None:
    with pytest.raises(PlanError) as error:
        scene_of(io.as_source(voxels), indices)
    assert text in str(error.value)


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="real numbers"):
        scene_of(io.as_source(np.zeros((3, 4), complex)))


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "panels"),
    [((6, 20, 30), "", 3), ((6, 20, 30), "--max", 3), ((20, 30), "", 1), ((2, 5, 6, 7), "", 3)],
)
def test_a_picture_has_a_panel_for_each_plane(
    say: Say, shape: tuple[int, ...], options: str, panels: int
) -> None:
    pytest.importorskip("matplotlib")
    np.save("a.npy", volume(shape))
    status, out, err = say(f"view a.npy -o a.png {options}")
    assert (status, err) == (0, "")
    assert out == f"picture of a.npy: {' x '.join(map(str, shape))} uint16: a.png\n"
    width, _ = size_of_png("a.png")
    assert width // 500 == panels


def test_each_channel_is_a_row(say: Say) -> None:
    pytest.importorskip("matplotlib")
    np.save("a.npy", volume((2, 3, 9, 9)))
    assert say("view a.npy -o one.png --channel 1 --index 1:0")[0] == 0
    assert say("view a.npy -o two.png --channel 0,1 --index z:1")[0] == 0
    one, two = size_of_png("one.png"), size_of_png("two.png")
    assert one[0] == two[0]
    assert two[1] > 1.7 * one[1]


@pytest.mark.parametrize("value", [7, np.nan, np.inf])
def test_voxels_without_contrast_are_shown(say: Say, value: float) -> None:
    pytest.importorskip("matplotlib")
    np.save("a.npy", np.full((3, 4, 5), value, np.float32))
    assert say("view a.npy -o a.png") == (0, "picture of a.npy: 3 x 4 x 5 float32: a.png\n", "")
    assert say("view a.npy -o a.png --max")[0] == 0


def test_a_level_of_a_pyramid_is_shown(say: Say) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("zarr")
    np.save("a.npy", volume((8, 16, 16)))
    assert say("convert a.npy a.ome.zarr --levels 2 --processes serial")[0] == 0
    assert "4 x 8 x 8 uint16" in say("view a.ome.zarr -o a.png --level 1")[1]
    assert "8 x 16 x 16 uint16" in say("view a.ome.zarr -o a.png")[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("-o nowhere/a.png", "no folder that can be written to"),
        ("-o .", "it is a folder"),
        ("-o a.png --level 1", "--level is not for .npy, which takes none of these"),
        ("-o a.png --channel 0", "there is no axis c"),
        ("-o a.png --index 3", "--index is '3'; give AXIS:N"),
        ("-o a.png --index z:-1", "--index is '-1'"),
        ("-o a.png --index t:1", "there is no axis t"),
        ("-o a.png --max --index z:1", "--max shows all of z, y, x"),
        ("", "required: -o/--output"),
    ],
)
def test_what_is_given_wrong_is_told(say: Say, options: str, text: str) -> None:
    np.save("a.npy", volume((3, 4, 5)))
    status, out, err = say(f"view a.npy {options}")
    assert (status, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["a.npy"]


def test_a_picture_has_a_scale_bar_where_spacing_is_known(monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from gpublocks import picture

    shown = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: shown.update({path: figure}))
    told = {"axes": ("z", "y", "x"), "spacing": (5.0, 2.0, 2.0), "units": ("um", "um", "um")}
    unitless = told | {"units": (None, None, None)}
    for name, metadata in (("known", told), ("unknown", unitless)):
        scene = scene_of(Stored(volume((6, 40, 50)), (1, 40, 50), **metadata))
        picture.save_panels(name, [(scene.text, plane_panels(scene))])
    known, unknown = [shown[name].axes for name in ("known", "unknown")]
    assert [ax.texts[0].get_text() for ax in known[:3]] == ["20 \N{MICRO SIGN}m"] * 3
    assert [len(ax.texts) for ax in unknown[:3]] == [0, 0, 0]
    assert (known[0].get_xlabel(), known[1].get_ylabel()) == ("x (voxels)", "z (voxels)")
    assert known[1].get_aspect() == 2.5
    line = known[0].lines[0].get_xdata()
    assert line[1] - line[0] == pytest.approx(10)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from gpublocks import picture

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    scene = scene_of(io.as_source(volume((3, 4))))
    with pytest.raises(GpublocksError, match=r"gpublocks\[plot\]"):
        picture.save_panels("a.png", [("", plane_panels(scene))])
