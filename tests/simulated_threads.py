"""Threads of which one runs at a time, chosen by a seed: a run can be repeated, a deadlock seen.

`SimulatedThreads` is a `gpublocks.concurrency.Concurrency`. Its threads are real ones, but
only the one that holds the baton runs; it hands the baton on at every operation of a queue, a lock
or a thread. A thread can be chosen when what it waits for is there. Where none can be chosen, all
are ended, and the thread that made the `SimulatedThreads` gets a `DeadlockError` that says what
each of them waits for.

Each thread carries what it *knows* to be over, as the bits of a number. It learns what it does, and
what others knew when they started it, ended before it joined them, or put what it gets from a
queue. Locks and conditions teach nothing: what is only true because one thread happened to take a
lock before another one is not to be relied on.
"""

import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["DeadlockError", "LeftRunningError", "SimulatedThreads"]

T = TypeVar("T")


class DeadlockError(AssertionError):
    """No thread can go on."""


class LeftRunningError(AssertionError):
    """Threads were not over when the simulation ended."""


class _EndedError(BaseException):
    """Ends a thread that will never get the baton again."""


class _Thread:
    """A thread that waits for its turn, or for something."""

    def __init__(self, name: str, knowledge: int = 0) -> None:
        self.name = name
        self.knowledge = knowledge
        self.baton: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.ready: Callable[[], bool] = lambda: True
        self.doing = "begin"
        self.over = False
        self.real: threading.Thread | None = None


class SimulatedThreads:
    """A world of threads, entered by the thread that makes it.

    Parameters
    ----------
    seed : int
        Decides which thread goes on, at each operation.

    Attributes
    ----------
    trace : list of (str, str)
        Who went on, to do what.
    found : list of BaseException
        Faults that were reported; the end of the world raises the first.
    """

    def __init__(self, seed: int) -> None:
        self.trace: list[tuple[str, str]] = []
        self.found: list[BaseException] = []
        self._random = random.Random(seed)
        self._main = self._current = _Thread("main")
        self._alive = [self._main]
        self._all: list[_Thread] = []
        self._end: str | None = None
        self._errors: list[BaseException] = []
        self._shared: dict[Any, Any] = {}

    @property
    def name(self) -> str:
        """Name of the thread that runs."""
        return self._current.name

    @property
    def knowledge(self) -> int:
        """What the thread that runs knows to be over."""
        return self._current.knowledge

    def learn(self, knowledge: int) -> None:
        """Add to what the thread that runs knows."""
        self._current.knowledge |= knowledge

    def shared(self, kind: "Callable[[SimulatedThreads], T]") -> T:
        """Return the one object of a kind that this world has, made when first asked for."""
        if kind not in self._shared:
            self._shared[kind] = kind(self)
        found: T = self._shared[kind]
        return found

    def report(self, fault: BaseException) -> None:
        """Note a fault, which nobody can catch before the end of the world."""
        self.found.append(fault)

    def check(self) -> None:
        """Raise the first fault that was reported, if there is one, and forget them all."""
        found, self.found = self.found, []
        if found:
            raise found[0]

    def start(self, target: Callable[[], None], name: str, *, lasting: bool = False) -> "_Handle":
        """Start a thread; one that lasts is as good as a new one."""
        thread = _Thread(name, self.knowledge)
        thread.real = threading.Thread(target=self._run, args=(thread, target), daemon=True)
        self._alive.append(thread)
        self._all.append(thread)
        thread.real.start()
        self.pause(f"start {name}")
        return _Handle(self, thread)

    def queue(self, maxsize: int) -> "_Queue":
        """Return a queue; bounded where `maxsize` is above 0."""
        return _Queue(self, maxsize)

    def lock(self) -> "_Lock":
        """Return a lock, used as a context manager."""
        return _Lock(self)

    def condition(self) -> "_Condition":
        """Return a condition, used as a context manager."""
        return _Condition(self)

    def pause(self, doing: str = "pause") -> None:
        """Let others go on, if the seed says so."""
        self.wait(lambda: True, doing)

    def rest(self) -> None:
        """Let the others go on until none of them can."""
        me = self._current
        self.wait(lambda: not any(t.ready() for t in self._alive if t is not me), "rest")

    def wait(self, ready: Callable[[], bool], doing: str) -> None:
        """Hand the baton on; return when this thread is chosen, which takes `ready` to be true."""
        if self._end is not None:
            raise self._ending()
        me = self._current
        me.ready, me.doing = ready, doing
        if self._hand_on(me):
            me.baton.get()
        if self._end is not None:
            raise self._ending()

    def _hand_on(self, me: _Thread) -> bool:
        """Choose who goes on; tell whether it is another thread."""
        able = [thread for thread in self._alive if thread.ready()]
        if not able:
            stuck = ", ".join(f"{thread.name}: {thread.doing}" for thread in self._alive)
            self._finish(f"no thread can go on ({stuck})")
            return False
        chosen = self._random.choice(able)
        self.trace.append((chosen.name, chosen.doing))
        self._current = chosen
        if chosen is not me:
            chosen.baton.put(None)
        return chosen is not me

    def _run(self, thread: _Thread, target: Callable[[], None]) -> None:
        thread.baton.get()
        try:
            if self._end is None:
                target()
        except _EndedError:
            pass
        except BaseException as error:
            self._errors.append(error)
        thread.over = True
        self._alive.remove(thread)
        if self._end is None:
            self._hand_on(thread)

    def _ending(self) -> BaseException:
        if threading.current_thread() in [thread.real for thread in self._all]:
            return _EndedError()
        return DeadlockError(self._end)

    def _finish(self, reason: str) -> None:
        """End all threads: each raises where it waits."""
        self._end = reason
        for thread in [self._main, *self._all]:
            thread.baton.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = [thread.name for thread in self._alive if thread is not self._main]
        if self._end is None:
            self._finish("the simulation is over")
        for thread in self._all:
            assert thread.real is not None
            thread.real.join()
        if error not in self.found:
            self.check()
        if error is None and self._errors:
            raise self._errors[0]
        if error is None and left:
            raise LeftRunningError(f"threads are left: {', '.join(left)}")


class _Handle:
    def __init__(self, world: SimulatedThreads, thread: _Thread) -> None:
        self._world, self._thread = world, thread

    def join(self) -> None:
        self._world.wait(lambda: self._thread.over, f"join {self._thread.name}")
        self._world.learn(self._thread.knowledge)


class _Queue:
    def __init__(self, world: SimulatedThreads, maxsize: int) -> None:
        self._world, self._maxsize = world, maxsize
        self._items: deque[tuple[Any, int]] = deque()

    def put(self, item: Any) -> None:
        self._world.wait(lambda: not 0 < self._maxsize <= len(self._items), "put")
        self._items.append((item, self._world.knowledge))
        self._world.pause("put done")

    def get(self) -> Any:
        self._world.wait(lambda: bool(self._items), "get")
        item, knowledge = self._items.popleft()
        self._world.learn(knowledge)
        return item


class _Lock:
    def __init__(self, world: SimulatedThreads) -> None:
        self._world, self._held = world, False

    def __enter__(self) -> None:
        self._world.wait(lambda: not self._held, "acquire")
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        self._world.pause("release")


class _Condition:
    """A condition like that of `threading`: who holds its lock may take it again."""

    def __init__(self, world: SimulatedThreads) -> None:
        self._world = world
        self._owner: _Thread | None = None
        self._depth = 0
        self._waiting: list[_Thread] = []

    def __enter__(self) -> None:
        me = self._world._current
        self._world.wait(lambda: self._owner in (None, me), "acquire")
        self._owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._world.pause("release")

    def wait(self) -> None:
        me = self._holder()
        depth, self._depth = self._depth, 0
        self._owner = None
        self._waiting.append(me)
        self._world.wait(lambda: me not in self._waiting and self._owner is None, "be notified")
        self._owner, self._depth = me, depth

    def notify_all(self) -> None:
        self._holder()
        self._waiting.clear()

    def _holder(self) -> _Thread:
        if self._owner is not self._world._current:
            raise RuntimeError(f"{self._world.name} does not hold the lock of the condition")
        return self._owner
