"""Functions as machine code that other threads run beside. Touches the cache of Numba."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function when it is first called, and keep its code for later processes.

    Where no folder can be written it is compiled anew in each process.
    """
    compiler: Any = numba.njit
    try:
        return cast(F, compiler(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast(F, compiler(nogil=True)(function))
