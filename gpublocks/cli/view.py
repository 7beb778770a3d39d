"""The command `view`: a picture of a source. Touches the source and one PNG."""

from argparse import Namespace

from gpublocks.contracts import Source
from gpublocks.errors import PlanError

__all__ = ["view"]


def view(options: Namespace, source: Source) -> None:
    """Save a picture of a source, and print a line about it.

    Parameters
    ----------
    options : Namespace
        What the parser found: ``source``, ``output``, ``max``, ``channel``, ``index``.
    source : Source
        What is shown.
    """
    from gpublocks.picture import check_path, save_panels
    from gpublocks.viewing import maximum_panels, plane_panels, scene_of

    check_path(options.output)
    indices = _indices(options.index)
    scenes = [scene_of(source, indices | chosen) for chosen in _channels(options.channel)]
    shown = [scenes[0].names[axis] for axis in scenes[0].shown]
    if options.max and any(key in shown or key in scenes[0].shown for key in indices):
        raise PlanError(f"--max shows all of {', '.join(shown)}; give --index for other axes")
    panels = maximum_panels if options.max else plane_panels
    rows = [(scene.text, panels(scene)) for scene in scenes]
    title = f"{options.source}: {' x '.join(map(str, source.shape))} {source.dtype}"
    save_panels(options.output, rows, title=title)
    print(f"picture of {title}: {options.output}")


def _indices(texts: list[str]) -> dict[int | str, int]:
    """Return the index of each axis that texts such as ``'z:120'`` and ``'0:3'`` give."""
    found: dict[int | str, int] = {}
    for text in texts:
        axis, colon, index = text.rpartition(":")
        if not colon or not axis:
            raise PlanError(f"--index is {text!r}; give AXIS:N, such as z:120 or 0:3")
        found[int(axis) if axis.isdecimal() else axis] = _number("--index", index)
    return found


def _channels(text: str | None) -> list[dict[int | str, int]]:
    if text is None:
        return [{}]
    return [{"c": _number("--channel", part)} for part in text.split(",")]


def _number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise PlanError(f"{flag} is {text!r}; give a number, 0 or more")
    return int(text)
