"""What the engines take from the threading library, for a test to drive. Touches threads."""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Concurrency", "Threads"]


class Concurrency(Protocol):
    """Threads, and what they wait for each other with."""

    def start(self, target: Callable[[], None], name: str, *, lasting: bool = False) -> Any:
        """Start a thread, to be waited for with its ``join()``.

        Parameters
        ----------
        lasting : bool
            Take a thread that stays for the next `target` of this name, if it is free: libraries
            keep plans and handles for each thread.
        """

    def queue(self, maxsize: int) -> Any:
        """Return a queue with ``put`` and ``get``; bounded where `maxsize` is above 0."""

    def lock(self) -> Any:
        """Return a lock, used as a context manager."""

    def condition(self) -> Any:
        """Return a lock with ``wait()`` and ``notify_all()``, used as a context manager."""


class Threads:
    """Threads of the standard library."""

    def start(
        self, target: Callable[[], None], name: str, *, lasting: bool = False
    ) -> "threading.Thread | _Task":
        """Start a thread that does not keep the interpreter alive, or take one that stays."""
        if lasting:
            return _lasting(target, name)
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    def queue(self, maxsize: int) -> "queue.Queue[Any]":
        """Return a queue."""
        return queue.Queue(maxsize)

    def lock(self) -> threading.Lock:
        """Return a lock."""
        return threading.Lock()

    def condition(self) -> threading.Condition:
        """Return a condition."""
        return threading.Condition()


class _Task:
    """Something that a lasting thread does."""

    def __init__(self, target: Callable[[], None]) -> None:
        self.target = target
        self.over = threading.Event()
        self.error: BaseException | None = None

    def join(self) -> None:
        """Wait for its end, and raise what it raised."""
        self.over.wait()
        if self.error is not None:
            raise self.error


_idle: dict[str, list["queue.SimpleQueue[_Task]"]] = {}
"""Where the lasting threads that have nothing to do wait, by name."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


def _lasting(target: Callable[[], None], name: str) -> _Task:
    task = _Task(target)
    try:
        tasks = _idle.setdefault(name, []).pop()
    except IndexError:
        tasks = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(tasks, name), name=name, daemon=True).start()
    tasks.put(task)
    return task


def _serve(tasks: "queue.SimpleQueue[_Task]", name: str) -> None:
    while True:
        task = tasks.get()
        try:
            task.target()
        except BaseException as error:
            task.error = error
        over = task.over
        # What the task refers to, arrays among it, is not to live until the next one comes.
        del task
        _idle.setdefault(name, []).append(tasks)
        over.set()
