"""Functions as machine code that other threads run beside. Touches the cache of Numba."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function when it is first called, and keep its code for later processes.

    Where nothing can be written it is compiled anew in each process. Divisions by zero give what
    IEEE 754 says, not errors, which would keep loops from becoming vector instructions.
    """
    compiler: Any = numba.njit
    dispatcher = compiler(nogil=True, error_model="numpy")(function)
    # Numba raises that if there is no folder that it may write.
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return cast(F, dispatcher)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Machine code that is kept for as long as nothing that it was made of changes.

    Numba's own one looks at the file of a function, but not at those of functions that it calls.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _sources())

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save machine code, unless the disk is full or the like: it is there to save time."""
        with suppress(OSError):
            super().save_overload(sig, data)


@cache
def _sources() -> str:
    """Return what tells the code of all compiled functions from what it was before."""
    folder = files(__package__)
    texts = sorted(item.read_bytes() for item in folder.iterdir() if item.name.endswith(".py"))
    return sha256(b"\0".join(texts)).hexdigest()
