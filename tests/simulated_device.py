"""A device in host memory whose operations are done late, and an oracle that finds races. Pure.

`SimulatedDevice` is a `gpublocks.contracts.StreamDevice` in a world of `SimulatedThreads`. What is
asked of a stream is put in its queue and done when the policy says so:

* ``'eager'``: at once;
* ``'lazy'``: only what a host thread waits for, and only when it does;
* ``'random'``: now and then, whatever may come next in any stream, as a seed says.

Schedules alone seldom show what is missing. The `Oracle` does, in each of them: it knows for every
operation and every access of a host thread which others are over before it, whatever the schedule,
and reports two accesses to the same bytes, at least one of them a write, of which neither is over
before the other. It takes as given

* the order of the calls for one stream, as far as the thread that makes a call knows of the
  earlier ones: else they might have come in another order;
* events: what is behind a wait comes after what is before the record. Which record is the last one
  may depend on chance too; all that counts is what those have in common that may be;
* what a thread knows to be over: what it did itself, what it waited for with `sync`, and what it
  was told by tokens through queues (`SimulatedThreads`).

Races, and calls that a real device would not survive, are reported to the world, which raises the
first at its end: an engine may catch what it wants.
"""

import random
import threading
import time
import traceback
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from simulated_threads import SimulatedThreads

from gpublocks.contracts import DType, Order, Trouble

__all__ = [
    "MisuseError",
    "Oracle",
    "RaceError",
    "SimulatedDevice",
    "SimulatedDeviceLost",
    "SimulatedOutOfMemory",
]

POISON = 0xCD
"""What all bytes of new memory are: a float32 of -4e8, a uint16 of 52685."""

_FRAMES = 8
"""Calls that are shown where a race was found."""

Array = npt.NDArray[Any]


class SimulatedOutOfMemory(MemoryError):  # noqa: N818 - it says what is wrong
    """The device, or the page-locked memory, is full."""


class SimulatedDeviceLost(RuntimeError):  # noqa: N818 - it says what is wrong
    """An error that sticks: every further call for the device raises it."""


class RaceError(AssertionError, RuntimeError):
    """Two accesses to the same bytes that nothing orders."""


class MisuseError(AssertionError, RuntimeError):
    """A call that no device could do."""


@dataclass(frozen=True, slots=True)
class _Touch:
    """An access to some bytes, from `start` to `stop`."""

    start: int
    stop: int
    writes: bool
    over: int
    name: str


@dataclass(slots=True, eq=False, repr=False)
class _Memory:
    """Memory of the device, or page-locked memory."""

    name: str
    device: "SimulatedDevice"
    data: Array
    freed: bool = False
    touched: list[_Touch] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.name

    @property
    def start(self) -> int:
        return _address(self.data)


@dataclass(slots=True, eq=False)
class _Operation:
    """Something asked of a stream.

    Parameters
    ----------
    after : _Operation or None
        What the stream waits for, in another stream.
    call, over : int
        The bits that stand for the call that asked for it, and for its end.
    known : int
        All that is over when it is over.
    """

    name: str
    stream: "_Stream"
    run: Callable[[], None] | None
    after: "_Operation | None"
    call: int
    over: int
    known: int
    done: bool = False


@dataclass(slots=True, eq=False, repr=False)
class _Stream:
    name: str
    device: "SimulatedDevice"
    asked: list[_Operation] = field(default_factory=list)
    calls: int = 0
    pending: deque[_Operation] = field(default_factory=deque)
    busy: bool = False
    freed: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def able(self) -> bool:
        """Whether its next operation can be done now."""
        if self.busy or not self.pending:
            return False
        after = self.pending[0].after
        return after is None or after.done


@dataclass(slots=True, eq=False, repr=False)
class _Event:
    name: str
    device: "SimulatedDevice"
    recorded: bool
    records: list[_Operation] = field(default_factory=list)
    calls: int = 0
    freed: bool = False

    def __repr__(self) -> str:
        return self.name


class Oracle:
    """Decides whether accesses are ordered, for all devices of a world.

    Calls and operations are numbered; a set of them is a number with the bit of each one set. All
    sets are closed: whatever is over before something in them is in them too. That is why an
    access that is covered by a later, ordered one can be forgotten.
    """

    def __init__(self, world: SimulatedThreads) -> None:
        self._world = world
        self._numbered = 0
        self._starts: list[int] = []
        self._pinned: list[_Memory] = []

    def number(self) -> int:
        """Return the bit of a new call or operation."""
        self._numbered += 1
        return 1 << self._numbered

    def before(self, stream: _Stream) -> int:
        """Return what is over before anything that this thread asks of a stream now."""
        known = self._world.knowledge
        rest = known & stream.calls
        for operation in reversed(stream.asked):
            if not rest:
                break
            if operation.call & rest:
                known |= operation.known
                rest &= ~operation.known
        return known

    def granted(self, event: _Event) -> int:
        """Return what is over when an event is reached that this thread waits for now.

        The last record is any that is not followed by another one that the thread knows of.
        """
        knowledge, common = self._world.knowledge, -1
        rest = event.calls
        for operation in reversed(event.records):
            if not rest:
                break
            if operation.call & rest:
                common &= operation.known
                rest &= ~(operation.known if operation.call & knowledge else operation.call)
        return common if knowledge & event.calls else 0

    def register(self, memory: _Memory) -> None:
        """Note that an array is page-locked."""
        at = bisect_right(self._starts, memory.start)
        self._starts.insert(at, memory.start)
        self._pinned.insert(at, memory)

    def forget(self, memories: Sequence[_Memory]) -> None:
        """Note that arrays are not page-locked any more."""
        self._pinned = [memory for memory in self._pinned if memory not in memories]
        self._starts = [memory.start for memory in self._pinned]

    def pinned(self, array: Array) -> list[tuple[_Memory, int, int]] | None:
        """Return where in page-locked memory the bytes of an array are; None if they are not."""
        found = []
        for start, stop in _ranges(array):
            at = bisect_right(self._starts, start) - 1
            memory = self._pinned[at] if at >= 0 else None
            if memory is None or stop > memory.start + memory.data.nbytes:
                return None
            found.append((memory, start - memory.start, stop - memory.start))
        return found

    def access(
        self,
        name: str,
        parts: Iterable[tuple[_Memory, int, int]],
        *,
        writes: bool,
        over: int,
        before: int,
    ) -> None:
        """Compare an access with all earlier ones to the same bytes."""
        for memory, start, stop in parts:
            if start < stop:
                new = _Touch(start, stop, writes, over, name)
                self._compare(memory, new, before)

    def _compare(self, memory: _Memory, new: _Touch, before: int) -> None:
        kept = []
        for old in memory.touched:
            if old.stop <= new.start or new.stop <= old.start:
                kept.append(old)
                continue
            ordered = old.over & before
            if not ordered and (old.writes or new.writes):
                self._race(memory, old, new)
            if ordered and (new.writes or not old.writes):
                ends = (replace(old, stop=new.start), replace(old, start=new.stop))
                kept += [end for end in ends if end.start < end.stop]
            else:
                kept.append(old)
        memory.touched = [*kept, new]

    def _race(self, memory: _Memory, old: _Touch, new: _Touch) -> None:
        start, stop = max(old.start, new.start), min(old.stop, new.stop)
        error = RaceError(
            f"{new.name} may come before {old.name} is over: nothing orders them, and both "
            f"touch {memory.name}[{start}:{stop}]"
        )
        error.add_note("".join(traceback.format_stack(limit=_FRAMES)))
        self._world.report(error)


class _Outcome:
    """What came of a computation: an `Outcome`, for threads that know that it is over."""

    def __init__(self, device: "SimulatedDevice", world: SimulatedThreads) -> None:
        self._device, self._world = device, world
        self.operation: _Operation | None = None
        self.memories: tuple[_Memory, ...] = ()
        self.value: Any = None
        self.error: BaseException | None = None
        self.times: tuple[float, float | None] = (0.0, None)
        self.taken = self.most_taken = 0

    @property
    def seconds(self) -> float:
        """How many turns threads took meanwhile."""
        return self._reached().times[0]

    @property
    def idle_seconds(self) -> float | None:
        """How many turns threads took since the computation before."""
        return self._reached().times[1]

    @property
    def peak_bytes(self) -> int | None:
        """What was taken at most with `SimulatedDevice.take`."""
        return self._reached().most_taken

    @property
    def outside_bytes(self) -> int:
        """Nothing: all memory is the device's."""
        return 0

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error = self._reached().error
        if error is not None:
            raise error
        return self.value

    def _reached(self) -> "_Outcome":
        assert self.operation is not None
        if not self.operation.over & self._world.knowledge:
            self._device.check_alive()
            error = RaceError(
                f"{self._world.name} asks what came of {self.operation.name}, "
                "but does not know that it is over"
            )
            self._world.report(error)
            raise error
        return self


class SimulatedDevice:
    """A device that tests can look into, hold back and break.

    Parameters
    ----------
    world : SimulatedThreads
    name : str
    policy : {'eager', 'lazy', 'random'}
        When operations are done.
    seed : int
        Decides for ``'random'``.
    memory_bytes : int
        Memory of the device; as much can be page-locked.
    speed : int
        How many turns a computation takes, at least.
    raises : {'outcome', 'compute'}
        Where errors of functions come out: only from the outcome; or from `compute` if they are
        known by then.

    Attributes
    ----------
    done : list of str
        Operations that were done, in their order.
    allocations, computes, trims, rests : int
        How often memory was asked for, `compute`, `trim` and `rest` called.
    retired : str or None
        The reason given to `retire`.
    """

    def __init__(
        self,
        world: SimulatedThreads,
        name: str = "cuda:0",
        *,
        policy: Literal["eager", "lazy", "random"] = "eager",
        seed: int = 0,
        memory_bytes: int = 1 << 26,
        speed: int = 1,
        raises: Literal["outcome", "compute"] = "outcome",
    ) -> None:
        self.name, self.speed = name, speed
        self.done: list[str] = []
        self.allocations = self.computes = self.trims = self.rests = 0
        self.retired: str | None = None
        self._world = world
        self._oracle = world.shared(Oracle)
        self._policy, self._raises = policy, raises
        self._random = random.Random(f"{name} {seed}")
        self._memory_bytes = memory_bytes
        self._other_bytes = self._taken_bytes = 0
        self._memories: list[_Memory] = []
        self._pinned: list[_Memory] = []
        self._streams: list[_Stream] = []
        self._events: list[_Event] = []
        self._made = 0
        self._failing: set[int] = set()
        self._sticky: dict[int, str] = {}
        self._lost: str | None = None
        self._computing = threading.local()
        self._rests_since: int | None = None

    def fail_allocation(self, *numbers: int) -> None:
        """Let there be no memory for the allocations of these numbers; the first ever is 1."""
        self._failing.update(numbers)

    def fail_sticky_at(self, number: int, when: Literal["issue", "sync"] = "issue") -> None:
        """Lose the device at a computation, the first ever being 1: when asked for, or done."""
        self._sticky[number] = when

    def lose(self, reason: str = "an illegal memory access was encountered") -> None:
        """Lose the device: nothing that is pending is done, and every call raises."""
        self._lost = reason
        for stream in self._streams:
            stream.pending.clear()

    def set_other_usage(self, nbytes: int) -> None:
        """Let other processes take so much of the memory."""
        self._other_bytes = nbytes

    def take(self, nbytes: int) -> None:
        """Take memory of the device until the computation is over; for functions computed on it."""
        self.check_alive()
        outcome = self._current("take")
        self._allocation(nbytes, self._free_bytes)
        self._taken_bytes += nbytes
        outcome.taken += nbytes
        outcome.most_taken = max(outcome.most_taken, outcome.taken)

    def check_alive(self) -> None:
        """Raise if the device is lost."""
        if self._lost is not None:
            raise SimulatedDeviceLost(f"{self.name}: {self._lost}")

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        self.check_alive()
        return self._free_bytes, self._memory_bytes

    def allocate(self, nbytes: int) -> _Memory:
        """Return memory of the device, poisoned."""
        self.check_alive()
        self._allocation(nbytes, self._free_bytes)
        return self._new_memory("memory", nbytes, self._memories)

    def allocate_pinned(self, nbytes: int) -> Array:
        """Return page-locked memory, poisoned."""
        self.check_alive()
        self._allocation(nbytes, self._memory_bytes - _total(self._pinned))
        memory = self._new_memory("pinned", nbytes, self._pinned)
        self._oracle.register(memory)
        return memory.data

    def _allocation(self, nbytes: int, free: int) -> None:
        self.allocations += 1
        if self.allocations in self._failing or nbytes > free:
            raise SimulatedOutOfMemory(
                f"{self.name} is out of memory: {nbytes} bytes asked for, {free} are free "
                f"(allocation {self.allocations})"
            )

    def _new_memory(self, kind: str, nbytes: int, memories: list[_Memory]) -> _Memory:
        # A byte more, so that memory of no bytes has an address of its own.
        data = np.full(nbytes + 1, POISON, np.uint8)[:nbytes]
        memories.append(_Memory(self._new_name(kind), self, data))
        return memories[-1]

    @property
    def _free_bytes(self) -> int:
        used = _total(self._memories) + self._taken_bytes + self._other_bytes
        return max(0, self._memory_bytes - used)

    def _new_name(self, kind: str) -> str:
        self._made += 1
        return f"{self.name} {kind}#{self._made}"

    def stream(self, *, default: bool = False) -> _Stream:
        """Return a new stream; there is no default one for it to wait for."""
        self.check_alive()
        self._streams.append(_Stream(self._new_name("stream"), self))
        return self._streams[-1]

    def event(self, *, recorded: bool = True) -> _Event:
        """Return a new event; waiting for one that was not recorded is an error."""
        self.check_alive()
        self._events.append(_Event(self._new_name("event"), self, recorded))
        return self._events[-1]

    def record(self, event: _Event, stream: _Stream) -> None:
        """Let an event be reached when all that was asked of a stream so far is done."""
        self._check_own(event, stream)
        operation = self._ask(stream, f"record on {stream.name}")
        event.records.append(operation)
        event.calls |= operation.call
        self._proceed()

    def wait(self, stream: _Stream, event: _Event) -> None:
        """Let a stream go on only when an event, as recorded last, is reached."""
        self._check_own(event, stream)
        after, granted = self._last(event), self._oracle.granted(event)
        self._ask(stream, f"wait on {stream.name}", after=after, granted=granted)
        self._proceed()

    def sync(self, event: _Event) -> None:
        """Return when an event, as recorded last, is reached; raise if the device is lost."""
        self._check_own(event)
        last, granted = self._last(event), self._oracle.granted(event)
        self._world.pause("sync")
        self._proceed()
        if last is not None:
            self._reach(last)
        self.check_alive()
        self._world.learn(granted)

    def _last(self, event: _Event) -> _Operation | None:
        if not event.recorded and not event.records:
            raise self._misuse(f"{event!r} is waited for, but was never recorded")
        return event.records[-1] if event.records else None

    def mark(self, stream: _Stream) -> list[float]:
        """Return where the time is noted when all that was asked of a stream is done."""
        self._check_own(stream)
        reached: list[float] = []
        self._ask(stream, f"mark on {stream.name}", lambda: reached.append(time.perf_counter()))
        self._proceed()
        return reached

    def moment(self, mark: list[float]) -> float:
        """Return when a mark was reached."""
        if not mark:
            raise self._misuse("the time of a mark that was not reached is asked for")
        return mark[0]

    def upload(self, target: _Memory, source: Array, stream: _Stream) -> None:
        """Copy page-locked bytes to the first bytes of device memory, when it is done."""
        self._copy_bytes("upload to", target, source, stream, to_device=True)

    def download(self, target: Array, source: _Memory, stream: _Stream) -> None:
        """Copy the first bytes of device memory to page-locked ones, when it is done."""
        self._copy_bytes("download from", source, target, stream, to_device=False)

    def _copy_bytes(
        self, verb: str, memory: _Memory, array: Array, stream: _Stream, *, to_device: bool
    ) -> None:
        self._check_own(memory, stream)
        self._world.pause(verb)
        self.check_alive()
        pinned = self._pinned_parts(array)
        if not array.flags.forc or array.nbytes > memory.data.nbytes:
            raise self._misuse(f"{verb} {memory.name}: {array.nbytes} bytes do not fit, or gaps")
        host, there = array.reshape(-1, order="A").view(np.uint8), memory.data[: array.nbytes]
        source, target = (host, there) if to_device else (there, host)
        self._ask(
            stream,
            f"{verb} {memory.name} on {stream.name}",
            lambda: np.copyto(target, source),
            reads=pinned if to_device else [(memory, 0, array.nbytes)],
            writes=[(memory, 0, array.nbytes)] if to_device else pinned,
        )
        self._proceed()

    def host_access(self, array: Array, mode: Literal["r", "w"]) -> None:
        """Compare what this thread is about to do with all earlier accesses to the same bytes."""
        parts = self._pinned_parts(array)
        over, verb = self._oracle.number(), "write" if mode == "w" else "read"
        where = parts[0][0].name if parts else "nothing"
        name = f'host {verb} of {where} by "{self._world.name}"'
        before = self._world.knowledge
        self._oracle.access(name, parts, writes=mode == "w", over=over, before=before)
        self._world.learn(over)
        self._proceed()

    def compute(
        self,
        call: Callable[[], Any],
        stream: _Stream,
        *,
        reads: tuple[_Memory, ...],
        writes: tuple[_Memory, ...],
        measure: bool = False,
    ) -> _Outcome:
        """Call a function when it is its turn, maybe in another thread."""
        self._check_own(*reads, *writes, stream)
        self._world.pause("compute")
        self.check_alive()
        self.computes += 1
        outcome = _Outcome(self, self._world)
        outcome.memories = tuple(dict.fromkeys([*reads, *writes]))
        when = self._sticky.get(self.computes)
        if when == "issue":
            self.lose()
            self.check_alive()
        outcome.operation = self._ask(
            stream,
            f"compute {self.computes} on {stream.name}",
            self.lose if when == "sync" else lambda: self._call(call, outcome, writes),
            # A function may write to what it reads.
            writes=[(memory, 0, memory.data.nbytes) for memory in outcome.memories],
        )
        self._proceed()
        if self._raises == "compute" and outcome.error is not None:
            raise outcome.error
        return outcome

    def _call(self, call: Callable[[], Any], outcome: _Outcome, writes: Iterable[_Memory]) -> None:
        begun = len(self._world.trace)
        outer = getattr(self._computing, "outcome", None)
        self._computing.outcome = outcome
        try:
            for _ in range(self.speed):
                self._world.pause("go on computing")
            outcome.value = call()
        except BaseException as error:
            outcome.error = error
            for memory in writes:
                memory.data[:] = POISON
        finally:
            self._computing.outcome = outer
            self._taken_bytes -= outcome.taken
        ended, rested = len(self._world.trace), self._rests_since
        outcome.times = (float(ended - begun), None if rested is None else float(begun - rested))
        self._rests_since = ended

    def view(
        self, memory: _Memory, offset: int, shape: tuple[int, ...], dtype: DType, order: Order
    ) -> Array:
        """Return an array in device memory; for functions computed on it."""
        self._check_own(memory)
        dtype = np.dtype(dtype)
        if memory not in self._current("view").memories:
            raise self._misuse(f"a function uses {memory.name}, which is not said to be used")
        nbytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        if offset % dtype.itemsize or offset < 0 or offset + nbytes > memory.data.nbytes:
            raise self._misuse(f"{nbytes} bytes of {dtype} at {offset} of {memory.name}")
        return np.ndarray(shape, dtype, memory.data, offset, order=order)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call the user's function."""
        self._current("call")
        return function()

    def copy(self, target: Array, array: Array) -> None:
        """Copy an array to a view of the same shape, cast to its type."""
        self.check_alive()
        memories = self._current("copy").memories
        for start, stop in _ranges(target):
            if not any(m.start <= start and stop <= m.start + m.data.nbytes for m in memories):
                raise self._misuse("a function copies to memory that is not said to be used")
        if target.shape != array.shape:
            raise ValueError(f"an array of shape {array.shape} is copied to one of {target.shape}")
        real = np.iscomplexobj(array) and target.dtype.kind in "iuf"
        with np.errstate(all="ignore"):
            target[...] = array.real if real else array

    def to_host(self, value: Any) -> Any:
        """Return a value with a copy of each array in it."""
        self.check_alive()
        if isinstance(value, np.ndarray):
            return value.copy("K")
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(map(self.to_host, value))
        if type(value) in (list, tuple):
            return type(value)(map(self.to_host, value))
        if type(value) is dict:
            return {key: self.to_host(item) for key, item in value.items()}
        return value

    def _current(self, what: str) -> _Outcome:
        outcome: _Outcome | None = getattr(self._computing, "outcome", None)
        if outcome is None:
            raise self._misuse(f"{what} is for functions that are computed on the device")
        return outcome

    def classify(self, error: BaseException) -> Trouble:
        """Tell what an error means for this device."""
        if isinstance(error, SimulatedOutOfMemory):
            return "memory"
        return "fatal" if isinstance(error, SimulatedDeviceLost) else "user"

    def trim(self) -> None:
        """Count."""
        self.check_alive()
        self.trims += 1

    def rest(self) -> None:
        """Count."""
        self.rests += 1

    def retire(self, reason: str) -> None:
        """Note why."""
        self.retired = reason

    def close(self) -> None:
        """Wait for what is under way and give everything back; nobody may be using it."""
        self._world.pause("close")
        while self._do_one() or any(stream.busy for stream in self._streams):
            for stream in self._streams:
                self._wait_for(stream)
        before = self._world.knowledge
        for stream in self._streams:
            before |= self._oracle.before(stream)
        for memory in [*self._memories, *self._pinned]:
            name = f'release of {memory.name} by "{self._world.name}"'
            parts = [(memory, 0, memory.data.nbytes)]
            over = self._oracle.number()
            self._oracle.access(name, parts, writes=True, over=over, before=before)
            memory.data[:] = POISON
        self._world.learn(before)
        self._oracle.forget(self._pinned)
        for things in (self._memories, self._pinned, self._streams, self._events):
            for thing in things:
                thing.freed = True
            things.clear()

    def _ask(
        self,
        stream: _Stream,
        name: str,
        run: Callable[[], None] | None = None,
        *,
        reads: Sequence[tuple[_Memory, int, int]] = (),
        writes: Sequence[tuple[_Memory, int, int]] = (),
        after: _Operation | None = None,
        granted: int = 0,
    ) -> _Operation:
        """Put an operation in the queue of a stream, and compare what it touches."""
        call, over = self._oracle.number(), self._oracle.number()
        before = self._oracle.before(stream) | granted | call
        name = f'{name} by "{self._world.name}"'
        self._oracle.access(name, reads, writes=False, over=over, before=before)
        self._oracle.access(name, writes, writes=True, over=over, before=before)
        operation = _Operation(name, stream, run, after, call, over, before | over)
        stream.asked.append(operation)
        stream.calls |= call
        stream.pending.append(operation)
        self._world.learn(call)
        return operation

    def _proceed(self) -> None:
        """Do what the policy says when the device is called."""
        if self._policy == "eager":
            while self._do_one():
                pass
        elif self._policy == "random":
            while self._random.random() < 0.5 and self._do_one():
                pass

    def _reach(self, mark: _Operation) -> None:
        """Do what is needed for an operation to be done, or more if the policy says so."""
        while not mark.done:
            self.check_alive()
            needed = mark.stream
            while (after := needed.pending[0].after) is not None and not after.done:
                needed = after.stream
            if self._policy != "lazy" and self._do_one():
                continue
            if needed.able:
                self._do(needed)
            else:
                self._wait_for(needed)

    def _wait_for(self, stream: _Stream) -> None:
        """Return when no other thread is in the middle of an operation of a stream."""
        self._world.wait(lambda: not stream.busy, "end of an operation")

    def _do_one(self) -> bool:
        """Do an operation that can be done; tell whether there is one."""
        able = [stream for stream in self._streams if stream.able]
        if able:
            self._do(self._random.choice(able) if self._policy == "random" else able[0])
        return bool(able)

    def _do(self, stream: _Stream) -> None:
        operation = stream.pending[0]
        stream.busy = True
        try:
            if operation.run is not None:
                operation.run()
        finally:
            stream.busy = False
        if stream.pending:
            stream.pending.popleft()
            operation.done = True
            operation.run = None
            self.done.append(operation.name)

    def _check_own(self, *things: Any) -> None:
        """Check that the device can be used, and that things are of it and not given back."""
        self.check_alive()
        for thing in things:
            if getattr(thing, "device", None) is not self:
                raise self._misuse(f"{thing!r} is not of this device")
            if thing.freed:
                raise self._misuse(f"{thing!r} was given back")

    def _pinned_parts(self, array: Array) -> list[tuple[_Memory, int, int]]:
        parts = self._oracle.pinned(array)
        if parts is None:
            raise self._misuse("an array is not in page-locked memory")
        return parts

    def _misuse(self, text: str) -> MisuseError:
        error = MisuseError(f"{self.name}, called by {self._world.name!r}: {text}")
        self._world.report(error)
        return error


def _total(memories: Iterable[_Memory]) -> int:
    return sum(memory.data.nbytes for memory in memories)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _ranges(array: Array) -> list[tuple[int, int]]:
    """Return the ranges of addresses in which an array has bytes."""
    begin, size = _address(array), array.itemsize
    if array.flags.forc or not array.size:
        return [(begin, begin + array.nbytes)] if array.size else []
    offsets = np.zeros(1, np.int64)
    for length, stride in zip(array.shape, array.strides, strict=True):
        offsets = np.add.outer(offsets, stride * np.arange(length)).ravel()
    offsets = np.unique(offsets)
    ends = np.flatnonzero(np.diff(offsets) > size)
    starts = offsets[np.concatenate(([0], ends + 1))] + begin
    stops = offsets[np.concatenate((ends, [len(offsets) - 1]))] + begin + size
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
