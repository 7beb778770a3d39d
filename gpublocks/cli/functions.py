"""From what a command line says of a function to the function. Touches modules: imports them."""

import ast
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from gpublocks.errors import PlanError

__all__ = ["load_function", "parse_keywords"]


def load_function(name: str) -> Callable[..., Any]:
    """Return a function by its name, and let modules of the current folder be found.

    Parameters
    ----------
    name : str
        ``'module:name'`` or ``'module:Class.method'``.

    Raises
    ------
    PlanError
        If there is none.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        before, dot, after = name.strip(":").rpartition(".")
        example = f"{before}:{after}" if dot else "scipy.ndimage:gaussian_filter"
        raise PlanError(f"FUNCTION is {name!r}; give module:name, such as {example}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _load_module(module_name)
    at = module_name
    for part in path.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise PlanError(f"{at} has no attribute {part!r}{hint}")
        found, at = getattr(found, part), f"{at}.{part}"
    return found  # type: ignore[no-any-return]


def parse_keywords(texts: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments that texts such as ``'sigma=2'`` stand for.

    Raises
    ------
    PlanError
        If one has no name.

    Examples
    --------
    >>> parse_keywords(["sigma=2", "size=1,5,5", "mode=nearest"])
    {'sigma': 2, 'size': (1, 5, 5), 'mode': 'nearest'}
    """
    keywords = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise PlanError(f"--arg is {text!r}; give NAME=VALUE, such as sigma=2")
        try:
            keywords[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError):
            keywords[name] = value
    return keywords


def _load_module(name: str) -> Any:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            hint = f"; did you mean {name[:-3]!r}?" if name.endswith(".py") else ""
            raise PlanError(f"there is no module {name!r}{hint}") from error
        raise PlanError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
