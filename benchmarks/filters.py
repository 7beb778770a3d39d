"""``python -m benchmarks filters``: each filter against those of other libraries. Touches files.

One core: array to array, each library in turn, several rounds; slow ones on part of the volume.
Two processes: file to file by `gpublocks.process`, ours and the fastest other one.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from gpublocks import filters, process
from gpublocks.errors import PlanError
from gpublocks.sample import brain

__all__ = ["CASES", "FilterCase", "as_text", "chosen", "measure"]

Function = Callable[[Any], Any]

_SLOW_SECONDS = 4.0
"""What would take longer is done on so many planes of the volume as take about that."""
_PLANES = 24
"""Planes of which that is estimated, beside the halo."""
_BOUND = 1.1
_LIBRARIES = ("numpy", "scipy", "scikit-image", "itk")


@dataclass(frozen=True, slots=True)
class FilterCase:
    """A filter, and the functions of other libraries that do the same.

    Parameters
    ----------
    name : str
    make : callable
        Makes the filter.
    others : callable
        From the type of the volume to functions by library.
    dtypes : tuple of str
    least : float or None
        How many times faster than SciPy it is to be; None if that was not promised.
    """

    name: str
    make: Callable[[], filters.Filter]
    others: Callable[[Any], Mapping[str, Function | None]]
    dtypes: tuple[str, ...] = ("uint16", "float32")
    least: Mapping[str, float] = field(default_factory=dict)


def _library(name: str) -> Any:
    """Return a module; None if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _itk(name: str, **parameters: Any) -> Function | None:
    """Return a filter of SimpleITK, in one thread."""
    itk = _library("SimpleITK")
    if itk is None:
        return None
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    make = getattr(itk, name)

    def run(array: Any) -> Any:
        image = itk.GetImageFromArray(array)
        return itk.GetArrayFromImage(make(image, **parameters))

    return run


def _skimage(path: str, **parameters: Any) -> Function | None:
    module, _, name = path.rpartition(".")
    found = _library(f"skimage.{module}")
    return None if found is None else partial(getattr(found, name), **parameters)


def _scipy(name: str, *args: Any, **parameters: Any) -> Function:
    from scipy import ndimage

    function = getattr(ndimage, name)
    return lambda array: function(array, *args, **parameters)


def _box(size: int) -> dict[str, Any]:
    """Return what SimpleITK's morphology calls a box."""
    itk = _library("SimpleITK")
    return {"kernelRadius": [size // 2] * 3, "kernelType": getattr(itk, "sitkBox", None)}


def _cube(size: int) -> Any:
    return np.ones((size,) * 3, np.uint8)


_SHORT = ("uint8", "uint16")
"""What scikit-image's rank filters take; with more than 12 bits they are slow."""


def _cases() -> tuple[FilterCase, ...]:
    all_types = ("uint8", "uint16", "float32")
    return (
        FilterCase("gaussian 2", lambda: filters.gaussian(2), lambda dtype: {
            "scipy": _scipy("gaussian_filter", 2),
            "itk": _itk("DiscreteGaussian", variance=4.0, maximumKernelWidth=17),
        }),
        FilterCase("uniform 15", lambda: filters.uniform(15), lambda dtype: {
            "scipy": _scipy("uniform_filter", 15), "itk": _itk("BoxMean", radius=[7] * 3),
        }, least={"uint16": 3, "float32": 3}),
        FilterCase("median 3", lambda: filters.median(3), lambda dtype: {
            "scipy": _scipy("median_filter", 3), "itk": _itk("Median", radius=[1] * 3),
            "scikit-image": _ranked("median", 3, dtype),
        }, all_types),
        FilterCase("median 5", lambda: filters.median(5), lambda dtype: {
            "scipy": _scipy("median_filter", 5), "itk": _itk("Median", radius=[2] * 3),
            "scikit-image": _ranked("median", 5, dtype),
        }, all_types, least={"uint8": 3, "uint16": 3}),
        FilterCase("percentile 10 of 5", lambda: filters.percentile(10, 5), lambda dtype: {
            "scipy": _scipy("percentile_filter", 10, 5),
            "itk": _itk("Rank", rank=0.1, radius=[2] * 3),
        }, least={"uint16": 3, "float32": 3}),
        FilterCase("percentile 10 of 15", lambda: filters.percentile(10, 15), lambda dtype: {
            "scipy": _scipy("percentile_filter", 10, 15),
            "itk": _itk("Rank", rank=0.1, radius=[7] * 3),
        }, least={"uint16": 3, "float32": 3}),
        FilterCase("minimum 15", lambda: filters.minimum(15), lambda dtype: {
            "scipy": _scipy("minimum_filter", 15), "itk": _itk("GrayscaleErode", **_box(15)),
        }),
        FilterCase("maximum 3", lambda: filters.maximum(3), lambda dtype: {
            "scipy": _scipy("maximum_filter", 3), "itk": _itk("GrayscaleDilate", **_box(3)),
        }),
        FilterCase("grey_opening 5", lambda: filters.grey_opening(5), lambda dtype: {
            "scipy": _scipy("grey_opening", 5),
            "itk": _itk("GrayscaleMorphologicalOpening", **_box(5)),
        }),
        FilterCase("white_tophat 15", lambda: filters.white_tophat(15), lambda dtype: {
            "scipy": _scipy("white_tophat", 15), "itk": _itk("WhiteTopHat", **_box(15)),
        }, all_types, least={"uint16": 3, "float32": 3}),
        FilterCase("morphological_gradient 3", lambda: filters.morphological_gradient(3),
                   lambda dtype: {
            "scipy": _scipy("morphological_gradient", 3),
        }),
        FilterCase("laplace", filters.laplace, lambda dtype: {
            "scipy": _scipy("laplace", output="float32"),
            "itk": _itk("Laplacian") if dtype.kind == "f" else None,
        }),
        FilterCase("gaussian_laplace 2", lambda: filters.gaussian_laplace(2), lambda dtype: {
            "scipy": _scipy("gaussian_laplace", 2, output="float32"),
            "itk": _itk("LaplacianRecursiveGaussian", sigma=2.0),
        }),
        FilterCase("difference_of_gaussians 2 3.2",
                   lambda: filters.difference_of_gaussians(2, 3.2), lambda dtype: {
            "scipy": _two_gaussians,
            "scikit-image": _skimage(
                "filters.difference_of_gaussians", low_sigma=2, high_sigma=3.2, mode="reflect"
            ),
        }),
        FilterCase("gaussian_gradient_magnitude 2",
                   lambda: filters.gaussian_gradient_magnitude(2), lambda dtype: {
            "scipy": _scipy("gaussian_gradient_magnitude", 2, output="float32"),
            "itk": _itk("GradientMagnitudeRecursiveGaussian", sigma=2.0),
        }),
        FilterCase("sobel", lambda: filters.sobel(0), lambda dtype: {
            "scipy": _scipy("sobel", 0, output="float32"),
        }),
        FilterCase("sobel, magnitude", lambda: filters.sobel(None), lambda dtype: {
            "scikit-image": _skimage("filters.sobel"),
            "itk": _itk("SobelEdgeDetection") if dtype.kind == "f" else None,
        }),
        FilterCase("sato 2", lambda: filters.sato((2,), black_ridges=False), lambda dtype: {
            "scikit-image": _skimage("filters.sato", sigmas=(2,), black_ridges=False),
        }),
        FilterCase("normalize_local_contrast 15",
                   lambda: filters.normalize_local_contrast(15), lambda dtype: {
            "scipy": _normalised,
        }),
        FilterCase("subtract_background 15", lambda: filters.subtract_background(15),
                   lambda dtype: {"scipy": _scipy("white_tophat", 15)}),
        FilterCase("local_threshold 15", lambda: filters.local_threshold(15), lambda dtype: {
            "scikit-image": _above_local(),
        }),
        FilterCase("local_maxima 5", lambda: filters.local_maxima(5), lambda dtype: {
            "scipy": lambda array: array == _scipy("maximum_filter", 5)(array),
        }),
        FilterCase("rescale", lambda: filters.rescale((0, 1000), (0, 255), dtype="uint8"),
                   lambda dtype: {
            "scikit-image": _skimage(
                "exposure.rescale_intensity", in_range=(0, 1000), out_range="uint8"
            ),
        }),
        FilterCase("threshold", lambda: filters.threshold(300), lambda dtype: {
            "numpy": lambda array: array > 300,
        }),
        FilterCase("bilateral 1", lambda: filters.bilateral(100, 1), lambda dtype: {
            "itk": _itk("Bilateral", domainSigma=1.0, rangeSigma=100.0),
        }),
        FilterCase("richardson_lucy 10", lambda: filters.richardson_lucy(_PSF, 10, clip=False),
                   lambda dtype: {
            "scikit-image": _skimage(
                "restoration.richardson_lucy", psf=_PSF, num_iter=10, clip=False
            ),
        }, ("float32",)),
    )  # fmt: skip


def _psf() -> Any:
    z, y, x = np.ogrid[-4:5, -2:3, -2:3]
    psf = np.exp(-(z**2 / 8 + (y**2 + x**2) / 2)).astype(np.float32)
    return psf / psf.sum()


_PSF = _psf()


def _ranked(name: str, size: int, dtype: Any) -> Function | None:
    if str(dtype) not in _SHORT:
        return None
    return _skimage(f"filters.rank.{name}", footprint=_cube(size))


def _two_gaussians(array: Any) -> Any:
    from scipy import ndimage

    low = ndimage.gaussian_filter(array, 2, output="float32")
    return low - ndimage.gaussian_filter(array, 3.2, output="float32")


def _normalised(array: Any) -> Any:
    from scipy import ndimage

    values = array.astype(np.float64)
    mean = ndimage.uniform_filter(values, 15)
    square = ndimage.uniform_filter(values * values, 15)
    return (values - mean) / np.sqrt(np.maximum(square - mean * mean, 1e-12))


def _above_local() -> Function | None:
    threshold = _skimage("filters.threshold_local", block_size=15)
    return None if threshold is None else lambda array: array > threshold(array)


CASES = _cases()


def chosen(names: Sequence[str]) -> tuple[FilterCase, ...]:
    """Return the cases whose names begin so; all if there are no names.

    Raises
    ------
    PlanError
        If none begins so.
    """
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            there = ", ".join(case.name for case in CASES)
            raise PlanError(f"no filter begins with {name!r}; there are {there}")
    return tuple(case for case in CASES if not names or case.name.startswith(tuple(names)))


def measure(
    cases: Sequence[FilterCase],
    *,
    side: int = 256,
    rounds: int = 3,
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Return for each filter and type the times of all libraries.

    Parameters
    ----------
    cases : sequence of FilterCase
    side : int
        Of the cubes.
    rounds : int
        How often each is measured; the median counts.
    """
    found = []
    volume = brain((side,) * 3)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for case in cases:
            for dtype in case.dtypes:
                tell(f"{case.name}, {dtype}")
                array = _as(volume, dtype)
                others = {k: f for k, f in case.others(array.dtype).items() if f is not None}
                found.append(
                    {
                        "name": case.name,
                        "dtype": dtype,
                        "shape": list(array.shape),
                        "least": case.least.get(dtype),
                        **_one_core(case.make(), others, array, rounds),
                        **_two_processes(case.make(), others, array, rounds, Path(place)),
                    }
                )
    return found


def _as(volume: Any, dtype: str) -> Any:
    if dtype == "uint8":
        return filters.rescale((0, 1500), (0, 255), dtype="uint8")(volume)
    return volume.astype(dtype)


def _one_core(
    ours: filters.Filter, others: Mapping[str, Function], array: Any, rounds: int
) -> dict[str, Any]:
    """Return nanoseconds for a voxel of each round, of ours and of all others."""
    ways: dict[str, tuple[Function, Any]] = {"gpublocks": (ours, array)}
    ours(array)
    for name, function in others.items():
        ways[name] = function, _part(function, array)
    raw: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            function, part = ways[name]
            raw[name].append(_seconds(function, part) / part.size * 1e9)
    return {"one_core_ns": raw, "planes": {name: len(part) for name, (_, part) in ways.items()}}


def _part(function: Function, array: Any) -> Any:
    """Return so much of an array as a function filters in a bearable time."""
    sample = array[:_PLANES]
    seconds = _seconds(function, sample) * len(array) / len(sample)
    planes = len(array) if seconds < _SLOW_SECONDS else int(len(array) * _SLOW_SECONDS / seconds)
    return array[: max(_PLANES, planes)]


def _two_processes(
    ours: filters.Filter,
    others: Mapping[str, Function],
    array: Any,
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    """Return nanoseconds for a voxel, file to file with two workers, of ours and of SciPy's."""
    ways: dict[str, Function] = {"gpublocks": ours}
    ways |= {name: function for name, function in others.items() if name != "itk"}
    raw: dict[str, list[float]] = {}
    for name, function in ways.items():
        part = array if name == "gpublocks" else _part(function, array)
        np.save(folder / f"{name}.npy", part)
        sink = folder / f"{name}.sink.npy"
        sink.unlink(missing_ok=True)
        run = partial(process, function, folder / f"{name}.npy", sink, processes=2, halo=ours.halo)
        run()
        raw[name] = [_seconds(run) / part.size * 1e9 for _ in range(rounds)]
    return {"two_processes_ns": raw}


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    begun = perf_counter()
    function(*args)
    return perf_counter() - begun


def as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table: nanoseconds for a voxel, and whether the bounds hold."""
    rows = [("filter", "type", "ours", *_LIBRARIES, "to the best", "2 processes", "SciPy in 2")]
    for one in found:
        middle = {name: median(values) for name, values in one["one_core_ns"].items()}
        two = {name: median(values) for name, values in one["two_processes_ns"].items()}
        best = min((ns for name, ns in middle.items() if name != "gpublocks"), default=float("nan"))
        ratio = middle["gpublocks"] / best
        listed = [_number(middle.get(name)) for name in _LIBRARIES]
        rows.append(
            (
                one["name"],
                one["dtype"],
                _number(middle["gpublocks"]),
                *listed,
                f"{ratio:.2f}{'' if ratio <= _BOUND else ' (above 1.10)'}",
                _number(two["gpublocks"]),
                _number(two.get("scipy")),
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
