"""Things that are named by text, so that another process can load them. Touches what it imports."""

from importlib import import_module
from typing import Any

__all__ = ["load"]


def load(name: str) -> Any:
    """Return what ``'module:name'`` names.

    Examples
    --------
    >>> load("math:hypot")(3, 4)
    5.0
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
