"""Where programs are measured: processes of their own. Touches processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gpublocks.bench.case import Way

__all__ = ["Copy", "Nursery", "Stage"]

_CLOSE_SECONDS = 30
_STOP_SECONDS = 5
"""What is interrupted may take so long to clean up."""
_SERVE = "from gpublocks.bench import serve; serve()"


class _Server:
    """A process that obeys `gpublocks.bench.stage.serve_requests`.

    It and its descendants have a process group of their own: an interrupt from the terminal is for
    the process that measures, which then stops them.
    """

    def __init__(self) -> None:
        path = os.pathsep.join([entry or os.getcwd() for entry in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, name: str, request: Mapping[str, Any]) -> Any:
        """Return the answer to a request.

        Raises
        ------
        RuntimeError
            If it failed or the process ended; the text begins with `name`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            status = self._process.wait()
            raise RuntimeError(f"{name}: its process ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """Let it end, and wait for it."""
        self._wait(_CLOSE_SECONDS)

    def stop(self) -> None:
        """Interrupt it and its descendants, and end what is left of them."""
        self._signal("SIGINT")
        self._wait(_STOP_SECONDS)
        self._signal("SIGKILL")

    def leave(self, exception: object) -> None:
        """Close it, or stop it where more than a failure ends the with block."""
        if exception is None or isinstance(exception, Exception):
            self.close()
        else:
            self.stop()

    def _wait(self, seconds: float) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal("SIGKILL")
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _signal(self, name: str) -> None:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, getattr(signal, name))
        else:
            self._process.kill()


class Stage:
    """A process of its own for one program.

    Parameters
    ----------
    way : Way
    folder : Path
        Where volumes lie.

    Raises
    ------
    RuntimeError
        If the program cannot be loaded.
    """

    def __init__(self, way: Way, folder: Path) -> None:
        self._name = way.name
        self._server = _Server()
        try:
            self._server.ask(way.name, _load(way, folder))
        except BaseException as error:
            self._server.leave(error)
            raise

    @property
    def pid(self) -> int:
        """Process in which the program is."""
        return self._server.pid

    def do(self, method: str) -> Any:
        """Call a method of the program and return its answer.

        Raises
        ------
        RuntimeError
            If it failed or the process ended.
        """
        return self._server.ask(self._name, {"do": method})

    def close(self) -> None:
        """End the process and wait for it."""
        self._server.close()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.leave(exception[1])


class Copy:
    """A copy of a process for one program: as good as a new one that has imported the same.

    Parameters
    ----------
    server : _Server
        Is copied, and waits meanwhile.
    way, folder
        As for `Stage`.

    Raises
    ------
    RuntimeError
        If the program cannot be loaded.
    """

    def __init__(self, server: _Server, way: Way, folder: Path) -> None:
        self._name = way.name
        self._server = server
        self._open = False
        try:
            self.pid: int = server.ask(way.name, {"fork": True})
            self._open = True
            self._ask(_load(way, folder))
        except BaseException as error:
            self._leave(error)
            raise

    def do(self, method: str) -> Any:
        """Call a method of the program, as that of `Stage`."""
        return self._ask({"do": method})

    def close(self) -> None:
        """End the copy and wait for it."""
        if self._open:
            self._open = False
            self._server.ask(self._name, {"end": True})

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave(exception[1])

    def _leave(self, exception: object) -> None:
        if exception is None:
            self.close()
        elif isinstance(exception, Exception):
            # Why it is left says more than that the copied process died too.
            with suppress(RuntimeError):
                self.close()
        else:
            # The answer to what it was asked last would be taken for that to its end.
            self._open = False
            self._server.stop()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        try:
            return self._server.ask(self._name, request)
        except RuntimeError as error:
            # The copied process speaks for a copy that died.
            self._open = self._open and "ChildProcessError" not in str(error)
            raise


class Nursery:
    """Opens stages: new processes, or copies of one that has imported what a way needs.

    What takes a second to import then takes it once for all measurements. Copies are made where
    the system can, of ways that say what they import and begin each measurement in a new process.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[tuple[str, ...], _Server] = {}

    def __call__(self, way: Way, folder: Path) -> "Stage | Copy":
        """Open a stage for a way."""
        if not (way.fresh and way.imports and sys.platform == "linux"):
            return Stage(way, folder)
        return Copy(self._server(way), way, folder)

    def _server(self, way: Way) -> _Server:
        server = self._servers.get(way.imports)
        if server is None or not server.alive:
            server = _Server()
            self._stack.callback(server.close)
            server.ask(way.name, {"import": list(way.imports)})
            self._servers[way.imports] = server
        return server

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def _load(way: Way, folder: Path) -> dict[str, Any]:
    return {"load": [way.program, str(folder), dict(way.options)]}
