"""A synthetic light-sheet brain, for demonstrations and tests. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.errors import PlanError
from gpublocks.splitting import as_count

__all__ = ["brain"]

Floats = npt.NDArray[Any]
Shape = tuple[int, int, int]

_HEMISPHERE = ((0.00, -0.08, 0.38), (0.80, 0.62, 0.44))
"""Centre and radii of an ellipsoid (z, y, x); the volume is 2 wide, and mirrored at x = 0."""
_BULB = ((0.05, -0.68, 0.14), (0.34, 0.26, 0.14))
_CEREBELLUM = ((-0.05, 0.66, 0.22), (0.56, 0.25, 0.44))
_STEM = ((0.25, 0.34, 0.00), (0.50, 0.58, 0.26))

_CORTEX = {
    # distance from the surface: counts, share of cells
    -0.07: (0, 0.0),
    -0.012: (14, 0.0),
    0.004: (330, 0.0),
    0.016: (350, 0.0),
    0.032: (205, 0.04),
    0.050: (245, 0.55),
    0.072: (300, 0.40),
    0.086: (335, 0.10),
    0.100: (255, 0.65),
    0.122: (285, 0.45),
    0.134: (290, 0.10),
    0.146: (455, 0.02),
    0.162: (440, 0.02),
    0.178: (270, 0.08),
    0.300: (245, 0.12),
    0.450: (285, 0.12),
}
_CELLS_PER_VOXEL = 1.2e-3
_TRIES = 20
"""Random places tried for each cell; about one in eighteen is taken."""
_CLUSTERED = 0.35
_CELL_COUNTS = 700.0
_CELL_SIGMA = (1.1, 0.75, 0.75)
_SHADOWS_PER_ROW = 1.4e-2
_CAMERA_OFFSET = 100.0
_READ_NOISE = 4.0
_COUNTS_PER_PHOTON = 1.5


def brain(shape: Sequence[int] = (128, 160, 160), seed: int = 0) -> npt.NDArray[np.uint16]:
    """Return a synthetic light-sheet image of a cleared brain with labelled cells.

    Modelled are

    * tissue: two hemispheres with a layered cortex, callosal fibres, hippocampus and ventricles,
      olfactory bulbs, a folded cerebellum and a brain stem, autofluorescent and uneven, in a dark
      medium;
    * cells: blobs of about a voxel (longer along z, as the point spread function is), of
      log-normal brightness, some scattered by layer, some in clusters;
    * the light sheet: it comes from the left, falls off along x and towards the edges in y, and
      casts the shadows that run as stripes along x in each plane;
    * the camera: an offset, shot noise and read noise.

    Parameters
    ----------
    shape : sequence of int
        Planes, rows and columns (z, y, x); each at least 16.
    seed : int
        Seeds everything that is random: the same seed gives the same voxels.

    Returns
    -------
    ndarray of uint16
        Shape `shape`, C order. It takes about 8 bytes a voxel to make.

    Raises
    ------
    ArgumentTypeError, PlanError
        If the shape is not three whole numbers of at least 16, or the seed none.
    """
    if len(shape) != 3:
        raise PlanError(f"shape has {len(shape)} axes; give planes, rows and columns (z, y, x)")
    planes, rows, columns = [as_count(f"shape[{n}]", size, 16) for n, size in enumerate(shape)]
    rng = np.random.default_rng(as_count("seed", seed, 0))
    z, y, x = [np.linspace(-1, 1, n, dtype=np.float32) for n in (planes, rows, columns)]
    coarse = _texture(rng, (planes, rows, columns), 9)
    fine = _texture(rng, (planes, rows, columns), 3)
    stripes = _texture(rng, (planes, rows, 1), 2)
    shadows = _shadows(rng, (planes, rows, columns))
    cells = _cells(rng, (planes, rows, columns))
    sheet = _sheet(y, x)
    image = np.empty((planes, rows, columns), dtype=np.uint16)
    for n in range(planes):
        signal, _ = _anatomy(z[n : n + 1, None], y[:, None], x[None, :])
        signal *= 1 + 0.13 * _plane(coarse, n, 9) + 0.10 * _plane(fine, n, 3)
        signal += cells[n]
        signal *= sheet * (1 + 0.06 * _plane(stripes, n, 2))
        _cast_shadows(signal, n, shadows)
        np.maximum(signal, 0, out=signal)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        noise *= np.sqrt(_COUNTS_PER_PHOTON * signal + _READ_NOISE**2)
        image[n] = np.clip(np.rint(signal + noise + _CAMERA_OFFSET), 0, 65535)
    return image


def _anatomy(z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return autofluorescence in counts, and the relative density of cells, at some places."""
    x, bent = np.abs(x + 0.03 * y * z + 0.012 * np.sin(7 * y - 3 * z + 1)), np.sin(5 * x + 2 * z)
    y = y + 0.10 * x * x - 0.04 * z * z + 0.012 * bent
    cerebrum = _union(_inside(_HEMISPHERE, z, y, x), _inside(_BULB, z, y, x), 0.08)
    tissue, density = _cerebrum(cerebrum, z, y, x)

    cerebellum = _inside(_CEREBELLUM, z, y, x)
    lobule = np.abs((y - 0.30 * x * x + 0.15 * z) * 13 % 1 - 0.5) * 2
    folded = _curve(lobule, [0, 0.1, 0.3, 0.62, 0.78, 1], [0.25, 0.6, 0.66, 1.0, 1.25, 1.5])
    folded += (1.35 - folded) * _curve(cerebellum, [0.06, 0.16], [0.0, 0.6])
    there, edge = _ramp(cerebellum - cerebrum), _soft(cerebellum, 0.03)
    tissue += (250 * folded * edge - tissue) * there
    density += (0.25 * (lobule > 0.55) * edge - density) * there

    stem = _inside(_STEM, z, y, x)
    there, edge = _ramp(stem - np.maximum(cerebrum, cerebellum)), _soft(stem, 0.03)
    trunk = _curve(stem, [0, 0.05, 0.12, 0.26], [330, 270, 230, 260])
    tissue += (trunk * edge - tissue) * there
    density += (0.08 * edge - density) * there
    return tissue, density


def _cerebrum(depth: Floats, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return the same of the cerebrum: layers, hippocampus, lateral ventricle, midline."""
    counts, share = zip(*_CORTEX.values(), strict=True)
    tissue, density = _curve(depth, list(_CORTEX), counts), _curve(depth, list(_CORTEX), share)

    v, u = (y - 0.20) / 0.17, (x - 0.34) / 0.21
    radius = np.sqrt(u * u + v * v + np.square(z / 0.55))
    horn = _soft(0.13 - np.abs(radius - 0.95), 0.11) * np.clip(0.9 - 1.2 * u - 0.9 * v, 0, 1)
    dentate = _soft(0.12 - np.abs(radius - 0.48), 0.10) * np.clip(0.4 + 1.2 * u + 1.6 * v, 0, 1)
    band, field = np.maximum(horn, dentate), 0.25 * _soft(1.1 - radius, 0.1)
    tissue += 170 * band - tissue * field
    density += (0.9 - density) * band - density * field

    ventricle = np.square((y + 0.16) / 0.20) + np.square((x - 0.10 - y * y) / 0.032)
    ventricle = _soft(1.15 - np.sqrt(ventricle + np.square(z / 0.4)), 0.4)
    fissure = _soft(1.2 - x / 0.014 - 2 * _soft(depth - 0.1, 0.08), 0.5)
    solid = 1 - 0.85 * np.maximum(ventricle, fissure)
    return tissue * solid, density * solid


def _curve(value: Floats, points: Sequence[float], heights: Sequence[float]) -> Floats:
    """Return the piecewise linear function through some points."""
    return np.interp(value, points, heights).astype(np.float32)


def _ramp(difference: Floats) -> Floats:
    """Return 1 where one body lies over another, 0 where under it; their border is soft."""
    return np.clip(difference * 40 + 0.5, 0, 1)


def _inside(
    ellipsoid: tuple[tuple[float, float, float], tuple[float, float, float]],
    z: Floats,
    y: Floats,
    x: Floats,
) -> Floats:
    """Return about how deep places lie under the surface of an ellipsoid; negative outside."""
    centre, radii = ellipsoid
    deep, down, across = [
        np.square((place - c) / r) for place, c, r in zip((z, y, x), centre, radii, strict=True)
    ]
    inside: Floats = (1 - np.sqrt(deep + down + across)) * min(radii)
    return inside


def _union(a: Floats, b: Floats, width: float) -> Floats:
    """Return the maximum, rounded where the two are closer than `width`."""
    near = np.maximum(width - np.abs(a - b), 0)
    union: Floats = np.maximum(a, b) + near * near / (4 * width)
    return union


def _soft(value: Floats, width: float) -> Floats:
    """Return 0 below 0, 1 above `width`, and a smooth step between."""
    t = np.clip(value / width, 0, 1)
    return t * t * (3 - 2 * t)


def _texture(rng: np.random.Generator, shape: Shape, grain: int) -> Floats:
    """Return smooth noise of unit variance at the nodes, every `grain` planes."""
    nodes = rng.standard_normal([n // grain + 2 for n in shape], dtype=np.float32)
    for axis in (1, 2):
        before, part = np.divmod(np.arange(shape[axis]), grain)
        step = _soft(part.astype(np.float32), grain)
        weight = step[:, None] if axis == 1 else step
        lower, upper = nodes.take(before, axis), nodes.take(before + 1, axis)
        nodes = lower + weight * (upper - lower)
    return nodes


def _plane(texture: Floats, plane: int, grain: int) -> Floats:
    """Return the noise of one plane."""
    before, part = divmod(plane, grain)
    t = part / grain
    step = np.float32(t * t * (3 - 2 * t))
    noise: Floats = texture[before] + step * (texture[before + 1] - texture[before])
    return noise


def _cells(rng: np.random.Generator, shape: Shape) -> Floats:
    """Return the light of the cells, in counts."""
    count = int(_CELLS_PER_VOXEL * shape[0] * shape[1] * shape[2])
    places = _places(rng, rng.uniform(-1, 1, (max(1000, _TRIES * count), 3)))
    size = np.array(shape) - 1
    centres = places[rng.integers(len(places), size=max(1, count // 60))]
    spread = rng.uniform(3, 9, (len(centres), 1)) * (2 / size)
    member = rng.integers(len(centres), size=int(_CLUSTERED * count))
    clustered = centres[member] + spread[member] * rng.standard_normal((len(member), 3))
    places = np.concatenate([places[: count - len(member)], _places(rng, clustered, 0.02)])
    brightness = _CELL_COUNTS * rng.lognormal(-0.2, 0.65, len(places))
    return _blobs(shape, (places + 1) / 2 * size, brightness, rng.uniform(0.85, 1.25, len(places)))


def _places(rng: np.random.Generator, places: Floats, enough: float = 1.0) -> Floats:
    """Return those places that cells take: by chance, and surely where the density is `enough`."""
    _, density = _anatomy(*places.astype(np.float32).T)
    return places[rng.random(len(places)) * enough < density]


def _blobs(shape: Shape, places: Floats, brightness: Floats, scale: Floats) -> Floats:
    """Return an array with a Gaussian blob at each place (in voxels)."""
    reach = np.arange(-4, 5)
    image = np.zeros(shape[0] * shape[1] * shape[2], dtype=np.float32)
    index, weight = [], []
    for axis, sigma in enumerate(_CELL_SIGMA):
        voxels = np.rint(places[:, axis, None]).astype(np.intp) + reach
        distance = (voxels - places[:, axis, None]) / (sigma * scale[:, None])
        inside = (voxels >= 0) & (voxels < shape[axis])
        weight.append(np.exp(-0.5 * distance * distance) * inside)
        index.append(voxels.clip(0, shape[axis] - 1))
    for dz in range(len(reach)):
        for dy in range(len(reach)):
            row = (index[0][:, dz] * shape[1] + index[1][:, dy]) * shape[2]
            light = brightness * weight[0][:, dz] * weight[1][:, dy]
            for dx in range(len(reach)):
                value = (light * weight[2][:, dx]).astype(np.float32)
                np.add.at(image, row + index[2][:, dx], value)
    return image.reshape(shape)


def _sheet(y: Floats, x: Floats) -> Floats:
    """Return how bright the light sheet is over a plane: it is absorbed on its way along x."""
    along = np.exp(-0.30 * (x.astype(np.float64) + 1)) * 1.15
    across = 1 - 0.25 * y.astype(np.float64) ** 2
    return (across[:, None] * along).astype(np.float32)


def _shadows(rng: np.random.Generator, shape: Shape) -> Floats:
    """Return one row per absorber: its z, y, x, the widths in z and y, and how much it takes."""
    count = int(_SHADOWS_PER_ROW * shape[0] * shape[1])
    return np.column_stack(
        [
            rng.uniform(0, shape[0], count),
            rng.uniform(0, shape[1], count),
            rng.uniform(-0.1, 0.6, count) * shape[2],
            rng.uniform(1.0, 3.0, count),
            rng.uniform(0.5, 1.4, count),
            rng.uniform(0.15, 0.60, count),
        ]
    )


def _cast_shadows(signal: Floats, plane: int, shadows: Floats) -> None:
    """Darken a plane behind each absorber, to its right, less and less with distance."""
    rows, columns = signal.shape
    for z, y, x, wide, high, dark in shadows[np.abs(shadows[:, 0] - plane) < 3 * shadows[:, 3]]:
        lo, hi = max(0, int(y - 3 * high)), min(rows, int(y + 3 * high) + 2)
        start = max(0, int(x))
        across = np.exp(-0.5 * np.square((np.arange(lo, hi) - y) / high))
        dark *= np.exp(-0.5 * np.square((plane - z) / wide))
        along = np.linspace(1, 0.4, columns - start)
        signal[lo:hi, start:] *= (1 - dark * across[:, None] * along).astype(np.float32)
