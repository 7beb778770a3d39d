"""Threads that do small tasks for others, several at once. Touches threads."""

from collections.abc import Callable, Sequence
from typing import Any

from gpublocks.concurrency import Concurrency

__all__ = ["Crew"]


class Crew:
    """Threads that copy parts of a block at the same time.

    Parameters
    ----------
    size : int
        Number of threads. Where it is 1, whoever has tasks does them.
    concurrency : Concurrency
    """

    def __init__(self, size: int, concurrency: Concurrency) -> None:
        self._concurrency = concurrency
        self._tasks: Any = concurrency.queue(0)
        self._threads: list[Any] = []
        try:
            for n in range(size if size > 1 else 0):
                self._threads.append(concurrency.start(self._work, f"copy:{n}"))
        except BaseException:
            self.close()
            raise

    def do(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Do all tasks; return when they are over.

        Raises
        ------
        BaseException
            What the first of them raised that raised something.
        """
        if not self._threads or len(tasks) < 2:
            for task in tasks:
                task()
            return
        over = self._concurrency.queue(0)
        for task in tasks:
            self._tasks.put((task, over))
        errors = [over.get() for _ in tasks]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (entry := self._tasks.get()) is not None:
            task, over = entry
            try:
                task()
                over.put(None)
            except BaseException as error:
                over.put(error)
