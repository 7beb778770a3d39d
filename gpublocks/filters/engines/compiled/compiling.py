"""Functions as machine code that other threads run beside. Touches the cache of Numba."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function when it is first called, and keep its code for later processes.

    Where no folder can be written it is compiled anew in each process. Divisions by zero give what
    IEEE 754 says, not errors, which would keep loops from becoming vector instructions.
    """
    compiler: Any = numba.njit
    try:
        return cast(F, compiler(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:
        return cast(F, compiler(nogil=True, error_model="numpy")(function))
