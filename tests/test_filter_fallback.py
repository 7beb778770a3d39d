"""Where Numba is missing, filters take no more memory than they say."""

from typing import Any

import numpy as np
import pytest

from gpublocks import filters
from gpublocks.filters.engines import choice
from tests.contracts.filters import bytes_per_voxel

FILTERS = {
    "gaussian": filters.gaussian(1),
    "uniform": filters.uniform(5),
    "minimum": filters.minimum(5),
    "maximum of a footprint": filters.maximum(footprint=np.arange(27).reshape(3, 3, 3) > 0),
    "white_tophat": filters.white_tophat(5),
    "laplace": filters.laplace(),
    "gaussian_gradient_magnitude": filters.gaussian_gradient_magnitude(1),
    "median": filters.median(3),
    "bilateral": filters.bilateral(100, size=3),
    "binary_opening": filters.binary_opening(),
}
SMALL_BYTES = 3_500_000
"""Of arrays that do not grow with the volume."""


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_scipy_takes_no_more_memory(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_numba_works", lambda: False)
    array: Any = np.random.default_rng(0).integers(0, 1000, (256, 64, 64)).astype(dtype)
    said = FILTERS[name].memory(array.dtype)
    assert said is not None
    assert bytes_per_voxel(FILTERS[name], array) <= said + SMALL_BYTES / array.size
