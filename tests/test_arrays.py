"""The arrays room: one body for NumPy and CuPy, and absence of what is not in use."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpublocks.arrays import array_namespace, is_device_array, ndimage
from gpublocks.errors import ArgumentTypeError


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


def test_an_array_finds_its_library_and_ndimage(library: Any) -> None:
    pytest.importorskip("scipy")
    x = library.zeros((3, 4), dtype="float32")
    x[1, 1] = 1
    assert array_namespace(x) is library
    assert is_device_array(x) is (library.__name__ == "cupy")
    smooth = ndimage(x).gaussian_filter(x, 1)
    assert array_namespace(smooth) is library
    assert 0 < float(smooth.max()) < 1


def test_subclasses_of_ndarray_are_arrays(tmp_path: Any) -> None:
    x = np.memmap(tmp_path / "x", dtype="uint8", mode="w+", shape=(2, 2))
    assert array_namespace(x) is np


@pytest.mark.parametrize("x", [[1, 2], 3.0, None, np.float32(1), "abc", object()])
def test_other_kinds_are_refused_by_name(x: Any) -> None:
    for ask in (array_namespace, ndimage):
        with pytest.raises(ArgumentTypeError, match=type(x).__name__):
            ask(x)
    assert not is_device_array(x)


def test_an_array_of_a_loaded_cupy_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy, filters = ModuleType("cupy"), ModuleType("cupyx.scipy.ndimage")
    cupy.ndarray = type("ndarray", (), {"__cuda_array_interface__": {}})  # type: ignore[attr-defined]
    for name in ("cupyx", "cupyx.scipy"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.ndimage", filters)
    x = cupy.ndarray()
    assert array_namespace(x) is cupy
    assert ndimage(x) is filters
    assert is_device_array(x)


def test_a_half_imported_or_blocked_cupy_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ModuleType("cupy"), None):
        monkeypatch.setitem(sys.modules, "cupy", module)
        assert array_namespace(np.zeros(2)) is np
        with pytest.raises(ArgumentTypeError):
            array_namespace([1])


def test_nothing_is_imported_that_is_not_in_use() -> None:
    program = (
        "import sys, numpy; import gpublocks.arrays as a; x = numpy.zeros(2);"
        "a.array_namespace(x); a.is_device_array(x);\n"
        "try: a.ndimage([1])\n"
        "except TypeError: pass\n"
        "heavy = {'scipy', 'cupy', 'cupyx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
