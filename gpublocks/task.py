"""What was asked for: function, open sources and sinks, sizes, executor. Pure."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpublocks.budget import Need
from gpublocks.contracts import DType, Executor, NewSink, Sink, Source
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.job import FunctionType
from gpublocks.masking import Mask
from gpublocks.sizing import Sizes

__all__ = [
    "Choice",
    "Task",
    "check_function",
    "check_periodic",
    "declared_dtype",
    "described",
    "name_of",
]

_LIBRARIES = ("scipy", "skimage", "cupyx", "cucim")
"""Where a keyword ``mode`` says what lies beyond the border."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The executor of a run.

    Parameters
    ----------
    name : str
        ``'serial'``, ``'threads'``, ``'processes'``, ``'cuda'``, or the name of `given`.
    workers : int
        Cells in flight at once; for ``'cuda'`` the number of devices.
    reason : str
        Why this one.
    given : Executor or None
        An executor object of the user's.
    devices : tuple of int
        Numbers of the CUDA devices that compute.
    otherwise : Choice or None
        Who does what the devices cannot do; None if nobody may.
    """

    name: str
    workers: int
    reason: str
    given: Executor | None = None
    devices: tuple[int, ...] = ()
    otherwise: "Choice | None" = None


@dataclass(frozen=True, slots=True)
class Task:
    """What the user asked for.

    Parameters
    ----------
    function, kwargs, function_type
        What is called, and how.
    sources : tuple of Source
    sinks : tuple of Sink or NewSink
    choice : Choice
    axes : None, 'all', int or sequence of int
    sizes : Sizes
    overlap_known : bool
        Whether the context that the function needs is known, so that sizes may be chosen.
    one_block : bool
        Whether the whole source is to be one block.
    memory_bytes : int or None
        Limit of host memory, as the user gave it.
    device_bytes : int or None
        Limit of memory on each device, as the user gave it.
    need : Need or None
        What the function takes, where it is known.
    dtype : numpy.dtype or None
        Type of new sinks; None takes that of the first result.
    mask : Mask or None
    """

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    function_type: FunctionType
    sources: tuple[Source, ...]
    sinks: tuple[Sink | NewSink, ...]
    choice: Choice
    axes: Any = None
    sizes: Sizes = field(default_factory=Sizes)
    overlap_known: bool = False
    one_block: bool = False
    memory_bytes: int | None = None
    device_bytes: int | None = None
    need: Need | None = None
    dtype: DType | None = None
    casting: str | None = None
    mask: Mask | None = None
    as_memory: bool = False
    neighbours: bool = False
    return_result: bool = False
    recorded: bool = False

    @property
    def name(self) -> str:
        """Name of the function, for messages."""
        return name_of(self.function)

    @property
    def existing_sinks(self) -> tuple[Sink, ...]:
        """The sinks that exist."""
        return tuple(sink for sink in self.sinks if not isinstance(sink, NewSink))

    @property
    def automatic(self) -> bool:
        """Whether the sizes of blocks are chosen here."""
        given = (self.sizes.size_max, self.sizes.size_min, self.sizes.size_multiple_of)
        return self.overlap_known and not self.one_block and all(size is None for size in given)

    @property
    def loads_blocks(self) -> bool:
        """Whether nothing but whole blocks is read of the sources, each of them once."""
        in_memory = self.as_memory and not self.neighbours
        known = self.choice.name in ("serial", "threads", "processes", "cuda")
        return known and (in_memory or self.function_type == "array")


def described(sink: NewSink, source: Source, shape: tuple[int, ...]) -> NewSink:
    """Return a new sink with what a source tells of its voxels, if it has a place for that.

    That is an attribute ``metadata``, which is None where the user has told nothing. It gets no
    ``scaling``: results need not mean what the voxels did that they were made of.
    """
    told = {k: v for k, v in getattr(source, "metadata", {}).items() if k != "scaling"}
    if not told or len(shape) != len(source.shape) or getattr(sink, "metadata", told) is not None:
        return sink
    given: Any = sink
    return replace(given, metadata=told)  # type: ignore[no-any-return]


def declared_dtype(task: Task) -> DType | None:
    """Return the type of result that a filter declares for the first source, if it does."""
    result_dtype = getattr(task.function, "result_dtype", None)
    declared = result_dtype(task.sources[0].dtype) if callable(result_dtype) else None
    return None if declared is None else np.dtype(declared)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function; partials have that of what they call."""
    while hasattr(function, "func"):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def check_periodic(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a filter's context is beside its voxels, as that of a block is.

    Raises
    ------
    PlanError
        If it is a filter of a known library that is told to take the far side of the volume.
    """
    keywords = dict(kwargs)
    while isinstance(function, functools.partial):
        keywords = {**function.keywords, **keywords}
        function = function.func
    library = str(getattr(function, "__module__", "")).partition(".")[0]
    mode = keywords.get("mode")
    for name in mode if isinstance(mode, tuple | list) else [mode]:
        if library in _LIBRARIES and name in ("wrap", "grid-wrap"):
            raise PlanError(
                f"function {name_of(function)!r} with mode={name!r} takes voxels of the far side "
                "of the volume, which no block has; use another mode, or size_max='full'"
            )


def check_function(
    function: Any,
    function_type: str | None,
    n_arrays: int,
    kwargs: Mapping[str, Any],
    own: Iterable[str],
    reserved: Iterable[str],
) -> None:
    """Check that a function can be called with so many arrays and these keyword arguments.

    Parameters
    ----------
    own : iterable of str
        Keywords of `process`, for suggestions.
    reserved : iterable of str
        Keywords of `process` that were passed, but do not belong to the documented ones: the
        function must not have them too.

    Raises
    ------
    ArgumentTypeError
        If it is not a plain callable, or a keyword is unknown.
    PlanError
        If it takes another number of arrays, or a keyword is ambiguous.
    """
    if function_type not in ("array", "source", "block"):
        raise PlanError(f"function_type is {function_type!r}; use 'array', 'source' or 'block'")
    if not callable(function):
        raise ArgumentTypeError(f"function is a {type(function).__name__}; give a callable")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ArgumentTypeError(
            f"function {name_of(function)!r} is async or a generator; give a plain function"
        )
    while isinstance(function, functools.partial) and not hasattr(function, "__signature__"):
        n_arrays += len(function.args)
        kwargs = {**function.keywords, **kwargs}
        reserved = [name for name in reserved if name not in function.keywords]
        function = function.func
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    names = set(signature.parameters)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    for name in reserved:
        if name in names and not isinstance(function, np.ufunc):
            raise PlanError(
                f"{name!r} is a keyword of process and of function {name_of(function)!r}; "
                f"give the function's with functools.partial(function, {name}=...)"
            )
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in kwargs:
            if name not in names:
                from difflib import get_close_matches

                close = get_close_matches(name, [*own, *names], n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ArgumentTypeError(
                    f"unknown keyword {name!r}: neither process nor function "
                    f"{name_of(function)!r} takes it{hint}"
                )
    try:
        signature.bind(*[None] * n_arrays, **kwargs)
    except TypeError as error:
        raise PlanError(
            f"function {name_of(function)!r} cannot be called with {n_arrays} arrays: {error}"
        ) from None
