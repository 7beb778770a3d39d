"""Sources and sinks: one module a format, chosen here by type or suffix. Touches what they touch.

The modules are loaded when they are first used: ``gpublocks.io.npy``, ``.memmap``, ``.sma`` ...
"""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpublocks.arrays import is_cupy_array, is_device_array
from gpublocks.contracts import Array, NewSink, Sink, Source
from gpublocks.errors import ArgumentTypeError, DeviceError, SinkError, SourceError
from gpublocks.formats.files.mapping import MappedSource
from gpublocks.formats.hdf5.datasets import split_path

if TYPE_CHECKING:
    from gpublocks.io import (
        dask,
        duck,
        hdf5,
        memmap,
        mhd,
        nifti,
        npy,
        nrrd,
        permuted,
        raw,
        repeated,
        sliced,
        sma,
        staged,
        told,
        xarray,
    )
    from gpublocks.io import tiff as tiff
    from gpublocks.io import zarr as zarr

MODULES = frozenset(
    {
        "dask",
        "device",
        "duck",
        "hdf5",
        "memmap",
        "mhd",
        "nifti",
        "npy",
        "nrrd",
        "permuted",
        "raw",
        "repeated",
        "sliced",
        "sma",
        "staged",
        "tiff",
        "told",
        "xarray",
        "zarr",
    }
)

__all__ = [
    "as_sink",
    "as_source",
    "dask",
    "device",
    "duck",
    "hdf5",
    "memmap",
    "mhd",
    "new_array",
    "nifti",
    "npy",
    "nrrd",
    "permuted",
    "raw",
    "repeated",
    "sliced",
    "sma",
    "staged",
    "suffix_of",
    "tiff",
    "told",
    "xarray",
    "zarr",
]

READERS = {
    ".npy": "memmap",
    ".npz": "memmap",
    ".zarr": "zarr",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "mhd",
    ".mhd": "mhd",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",
    ".hdr.gz": "nifti",
    ".img": "nifti",
    ".img.gz": "nifti",
    ".raw": "raw",
    ".bin": "raw",
    ".dat": "raw",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".he5": "hdf5",
    ".ims": "hdf5",
    ".mat": "hdf5",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".btf": "tiff",
}
"""The module that opens files of a suffix, by its ``Source(path, writable)``."""

WRITERS = {
    ".npy": "memmap",
    ".zarr": "zarr",
    ".nrrd": "nrrd",
    ".mha": "mhd",
    ".mhd": "mhd",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".raw": "raw",
    ".bin": "raw",
    ".dat": "raw",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".btf": "tiff",
}
"""The module that creates files of a suffix, by its ``Sink(path)``."""

WRAPPERS = {"dask": "dask", "h5py": "hdf5", "zarr": "zarr", "tifffile": "tiff"}
"""The module that takes objects of a library, by its ``wrap(x)``."""


def __getattr__(name: str) -> ModuleType:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def as_source(x: Any, slicing: Any = None) -> Source:
    """Return anything array-like as a source. Nothing is copied, created or changed.

    Parameters
    ----------
    x : array_like, path, Source or Block
        An ndarray or nested list; a `numpy.memmap`; an array in shared memory; a path of a file;
        an array of zarr, h5py, tifffile, Dask or xarray; or any object with ``shape``, ``dtype``
        and ``[...]``.
    slicing : int, slice or tuple of these, optional
        The part of it that is to be seen.

    Raises
    ------
    ArgumentTypeError
        If it is no array, or one of Python objects.
    PlanError
        If it is a scalar, or the slicing does not fit it.
    SourceError
        If a file cannot be read.
    DeviceError
        If it lies in the memory of a GPU, and is no array of CuPy's.

    Examples
    --------
    >>> as_source(np.zeros((50, 100, 200), order="F"))
    Numpy-Source(50, 100, 200)[float64]|F|
    """
    source = _as_source(x)
    return source if slicing is None else _module("sliced").Sliced(source, slicing)


def as_sink(x: Any) -> Sink | NewSink:
    """Return anything that can be written into as a sink. Nothing is created or changed.

    Parameters
    ----------
    x : ndarray, path, Source, Block, or any object with ``shape``, ``dtype`` and ``[...] = ``
        A path that exists is opened for writing; one that does not is created later.

    Returns
    -------
    Sink or NewSink
        The latter where something is still to be created.

    Raises
    ------
    SinkError
        If it cannot be written or created.
    ArgumentTypeError, PlanError, DeviceError
        As `as_source`.
    """
    if isinstance(x, str | bytes | os.PathLike):
        return _sink_of_path(os.fspath(x))
    if hasattr(x, "create") and hasattr(x, "check"):
        x.check()
        return x  # type: ignore[no-any-return]
    if not isinstance(x, np.ndarray) and not hasattr(x, "__setitem__"):
        raise ArgumentTypeError(
            f"the sink is a {_kind(x)}, which cannot be assigned to; give an array or a path"
        )
    if isinstance(x, list):
        raise ArgumentTypeError("the sink is a list of numbers; give an ndarray")
    if "xarray" in _libraries(x):
        x, _ = _module("xarray").unwrap(x)
    sink = _as_source(x)
    if isinstance(sink, MappedSource):
        sink = sink.for_writing()
    array = getattr(sink, "array", None)
    if isinstance(array, np.ndarray):
        _check_strides(array)
    if not getattr(sink, "writable", False):
        raise SinkError(f"the sink {sink!r} is read-only; give one that was opened for writing")
    return sink  # type: ignore[return-value]


def new_array(*, shared: bool = False) -> NewSink:
    """Return a sink that becomes a new array in memory.

    Parameters
    ----------
    shared : bool
        Whether in shared memory, which other processes write into directly.
    """
    return _module("sma" if shared else "npy").NewArray()  # type: ignore[no-any-return]


def _as_source(x: Any) -> Source:
    if isinstance(x, str | bytes | os.PathLike):
        return _source_of_path(os.fspath(x), writable=False)
    if isinstance(x, np.ndarray):
        return _source_of_array(x)
    libraries = _libraries(x)
    if "xarray" in libraries:
        voxels, metadata = _module("xarray").unwrap(x)
        return _module("told").Told(_as_source(voxels), metadata)  # type: ignore[no-any-return]
    for library in libraries:
        if library in WRAPPERS:
            return _module(WRAPPERS[library]).wrap(x)  # type: ignore[no-any-return]
    if hasattr(x, "read") and hasattr(x, "extent"):
        return x  # type: ignore[no-any-return]
    if is_device_array(x):
        if is_cupy_array(x):
            return _module("device").Source(x)  # type: ignore[no-any-return]
        raise DeviceError(
            f"the {_kind(x)} lies in the memory of a GPU; convert it with cupy.asarray, or to host "
            "memory with its .get(), .cpu() or the like"
        )
    if isinstance(x, list | tuple) or np.isscalar(x):
        return _module("npy").Source(x)  # type: ignore[no-any-return]
    array = getattr(x, "array", None)
    if isinstance(array, np.ndarray) and array.shape == tuple(getattr(x, "shape", ())):
        return _source_of_array(array)
    return _module("duck").Source(x)  # type: ignore[no-any-return]


def _libraries(x: Any) -> list[str]:
    """Return the libraries of an object's classes, the most derived one first."""
    return [base.__module__.partition(".")[0] for base in type(x).__mro__]


def _source_of_array(array: Array) -> Source:
    """Return the source of the furthest reach that an array can have."""
    memmap, sma, npy = _module("memmap"), _module("sma"), _module("npy")
    plain = npy.Source(array)
    view = plain.array
    mapped = memmap.find(view)
    if mapped is not None:
        if mapped.address is not None:
            return MappedSource(mapped.address, array=view.view(np.ndarray))
        return npy.Source(view, extent=mapped.extent)  # type: ignore[no-any-return]
    shared = sma.find(view)
    if shared is None:
        return plain  # type: ignore[no-any-return]
    if view.flags.forc:
        return sma.Source(view)  # type: ignore[no-any-return]
    return npy.Source(view, extent=shared.extent)  # type: ignore[no-any-return]


def _source_of_path(path: str | bytes, *, writable: bool) -> Source:
    path = os.fsdecode(path)
    module = READERS.get(suffix_of(path))
    if module is None and "://" in path:
        # Of what lies elsewhere, only Zarr is read.
        module = "zarr"
    if module is not None:
        return _module(module).Source(path, writable=writable)  # type: ignore[no-any-return]
    if "\0" in path or not os.path.exists(split_path(path)[0]):
        raise SourceError(f"no such file: {path!r}")
    raise SourceError(f"{path} {_unsupported(path, READERS)}")


def _sink_of_path(path: str | bytes) -> Sink | NewSink:
    path = os.fsdecode(path)
    if "\0" not in path and ("://" in path or os.path.exists(split_path(path)[0])):
        try:
            return _source_of_path(path, writable=True)  # type: ignore[return-value]
        except SourceError as error:
            numbered = [] if error.errno is None else [error.errno]
            raise SinkError(*numbered, f"cannot write into it: {error}") from error
    module = WRITERS.get(suffix_of(path))
    if module is None:
        raise SinkError(f"{path!r} {_unsupported(path, WRITERS)}")
    sink = _module(module).Sink(path)
    sink.check()
    return sink  # type: ignore[no-any-return]


def _check_strides(array: Array) -> None:
    """Refuse an array whose voxels share memory, as those of broadcast arrays do."""
    inner = array.itemsize
    axes = sorted(range(array.ndim), key=lambda axis: abs(array.strides[axis]))
    for axis in axes:
        length, stride = array.shape[axis], abs(array.strides[axis])
        if length > 1 and array.size and stride < inner:
            raise SinkError(
                f"the sink has stride {stride} on axis {axis}, so that several voxels share "
                "memory; give a copy of it"
            )
        inner += (length - 1) * stride


def suffix_of(path: str) -> str:
    """Return how a name ends, in small letters: ``'.npy'``, ``'.nii.gz'``.

    Whatever is in a folder of Zarr is of that format.
    """
    if ".zarr" in [os.path.splitext(name)[1] for name in path.lower().split("/")]:
        return ".zarr"
    stem, suffix = os.path.splitext(split_path(path)[0].rstrip("/\\").lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def _unsupported(path: str, formats: dict[str, str]) -> str:
    suffix = suffix_of(path)
    folder = "is a directory and " if os.path.isdir(path) else ""
    what = f"has the suffix {suffix!r}" if suffix else "has no suffix"
    supported = ", ".join(known for known in formats if known != ".npz")
    return f"{folder}{what}; supported: {supported}"


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
