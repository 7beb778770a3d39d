"""Other processes, forked from a clean interpreter that has imported NumPy: quick to start."""

import multiprocessing
import os
import sys
from io import TextIOWrapper
from multiprocessing.connection import Connection

__all__ = ["Fork"]

# None but the imports that all share are done beforehand: what a source or a sink imports on its
# way, it imports in each process anew.
_quick = "forkserver" in multiprocessing.get_all_start_methods()
_context = multiprocessing.get_context("forkserver" if _quick else "spawn")
if _quick:
    _context.set_forkserver_preload(["numpy", "gpublocks.contracts", "gpublocks.io", __name__])


class Fork:
    """A process that runs a piece of code, used like a `subprocess.Popen` with a `stderr`.

    Of this process it has nothing but `sys.path`, the current folder, the environment and what it
    is given.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        reader, writer = _context.Pipe(duplex=False)
        given = (code, [str(argument) for argument in arguments], dict(os.environ), writer)
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
