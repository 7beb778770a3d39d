"""Other processes, forked from a clean interpreter that has imported NumPy: quick to start."""

import multiprocessing
import os
import subprocess
import sys
from io import TextIOWrapper
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["fork"]

# Elsewhere libraries do not survive a fork, or there is none.
_context: Any = multiprocessing.get_context("forkserver") if sys.platform == "linux" else None
if _context is not None:
    # None but the imports that all share are done beforehand: what a source or a sink imports on
    # its way, it imports in each process anew.
    _context.set_forkserver_preload(["numpy", "gpublocks.contracts", "gpublocks.io", __name__])


def fork(code: str, *arguments: object) -> "Fork | subprocess.Popen[str]":
    """Run a piece of code in another process.

    Of this one it has nothing but `sys.path`, the current folder, the environment and what it is
    given, as text.
    """
    given = [str(argument) for argument in arguments]
    if _context is not None:
        return Fork(code, given)
    return subprocess.Popen([sys.executable, "-c", code, *given], stderr=subprocess.PIPE, text=True)


class Fork:
    """A process, used like a `subprocess.Popen` with a `stderr`."""

    def __init__(self, code: str, arguments: list[str]) -> None:
        reader, writer = _context.Pipe(duplex=False)
        given = (code, arguments, dict(os.environ), writer)
        self._process = _context.Process(target=_execute, args=given, daemon=True)
        self._process.start()
        writer.close()
        self.stderr = TextIOWrapper(os.fdopen(os.dup(reader.fileno()), "rb"))
        reader.close()
        self.returncode: int | None = None

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self._process.kill()

    def communicate(self) -> tuple[None, str]:
        """Wait for the end; return None, and what was written to standard error."""
        with self.stderr:
            errors = self.stderr.read()
        self._process.join()
        self.returncode = self._process.exitcode
        self._process.close()
        return None, errors


def _execute(
    code: str, arguments: list[str], environment: dict[str, str], stderr: Connection
) -> None:
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
