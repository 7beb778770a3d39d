"""The command `check`: how far a function looks. Touches what `verify` does; prints."""

import sys
from argparse import Namespace
from contextlib import redirect_stdout
from typing import Any

from gpublocks.errors import PlanError
from gpublocks.filters import verify

__all__ = ["check"]


def check(options: Namespace, function: Any, keywords: dict[str, Any], halo: Any) -> int:
    """Print what samples show of a function; return 1 if its halo is too small."""
    with redirect_stdout(sys.stderr):
        found = verify(
            function,
            options.source,
            halo,
            samples=_number("samples", options.samples, int),
            tolerance=_number("tolerance", options.tolerance, float),
            **keywords,
        )
    print(found)
    return 0 if found.safe else 1


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise PlanError(f"--{name} is {text!r}; give a number") from None
