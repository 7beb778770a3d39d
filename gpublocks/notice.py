"""Warnings that point at the user's own line. Touches the warnings of Python only."""

import sys
import warnings

__all__ = ["warn_user"]


def warn_user(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn, as seen from the first caller outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gpublocks."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
