"""From what a command line says of a function to the function. Touches modules: imports them."""

import ast
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import isfunction, signature
from typing import Any

from gpublocks.errors import PlanError

__all__ = ["load_function", "parse_keywords"]


def load_function(name: str, keywords: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return a function by its name, and its keyword arguments.

    Parameters
    ----------
    name : str
        ``'module:name'`` or ``'module:Class.method'``, also of modules of the current folder; or
        filters: ``'gaussian'``, made with the keywords, ``'median(3) | gaussian(sigma=2)'``.
    keywords : dict
        Keyword arguments.

    Raises
    ------
    PlanError, ArgumentTypeError
        If there is none, or a filter cannot be made so.
    """
    if ":" not in name and (name in _makers() or "(" in name):
        return _filter(name, keywords), {}
    return _named(name), keywords


def _makers() -> dict[str, Callable[..., Any]]:
    """Return what makes filters, by name."""
    from gpublocks import filters

    found = {name: getattr(filters, name) for name in filters.__all__}
    return {
        name: make
        for name, make in found.items()
        if isfunction(make) and signature(make).return_annotation is filters.Filter
    }


def _filter(text: str, keywords: dict[str, Any]) -> Any:
    """Return the filter that a text stands for: calls with plain values, joined by ``|``."""
    makers = _makers()
    if keywords and "(" in text:
        raise PlanError(
            f"FUNCTION is {text!r}, and --arg gives {', '.join(keywords)} too; write all values "
            "into the calls, or give the name of one filter and --arg"
        )

    def made(node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return made(left) | made(right)
            case ast.Name(id=name) if name in makers:
                return makers[name](**keywords)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=named) if name in makers:
                values = {one.arg: ast.literal_eval(one.value) for one in named if one.arg}
                return makers[name](*map(ast.literal_eval, args), **values)
        close = get_close_matches(ast.unparse(node).partition("(")[0], makers, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PlanError(f"{ast.unparse(node)!r} is no filter{hint}")

    try:
        return made(ast.parse(text, mode="eval").body)
    except TypeError as error:
        raise PlanError(f"FUNCTION is {text!r}: {error}") from None
    except (SyntaxError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        example = "'median(3) | gaussian(sigma=2)'"
        raise PlanError(f"FUNCTION is {text!r}; give filters such as {example}") from None


def _named(name: str) -> Callable[..., Any]:
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        before, dot, after = name.strip(":").rpartition(".")
        close = [] if colon or dot else get_close_matches(name, _makers(), n=1)
        example = f"{before}:{after}" if dot else "scipy.ndimage:gaussian_filter"
        example = f"{example}; did you mean the filter {close[0]!r}?" if close else example
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
