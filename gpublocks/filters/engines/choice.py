"""Which engine computes: CUDA for arrays of a GPU, Numba where it works, else SciPy and NumPy.

Touches no array; imports Numba when first asked.
"""

from functools import cache
from typing import Any, Literal

from gpublocks.arrays import is_cupy_array

__all__ = ["Engine", "engine_of"]

Engine = Literal["cuda", "numba", "scipy"]


def engine_of(array: Any) -> Engine:
    """Return the engine for an array of CuPy or NumPy."""
    if is_cupy_array(array):
        return "cuda"
    return "numba" if _numba_works() else "scipy"


@cache
def _numba_works() -> bool:
    """Tell whether Numba can be imported: it refuses releases of NumPy that it does not know."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True
