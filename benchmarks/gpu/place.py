"""A process in which parts are done, and can be ended with. Touches processes and their streams."""

import faulthandler
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.lab import Lab
from benchmarks.gpu.schedule import Ending, Part

__all__ = ["Child", "plain", "serve_parts"]

_GRACE_SECONDS = 4.0
"""After its time a process tells where each of its threads is, and ends, or is ended."""
_CLOSE_SECONDS = 10.0
_LAST_WORDS = 6000
_ROOT = Path(__file__).parents[2]


class Child:
    """A process of its own, and of its own group, for parts.

    Parameters
    ----------
    code : str
        What the interpreter is told to do.
    grace_seconds : float
        How long after its time it is killed.
    """

    def __init__(
        self,
        code: str = "from benchmarks.gpu import serve; serve()",
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        self._grace = grace_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        path = os.pathsep.join([str(_ROOT), *[entry or os.getcwd() for entry in sys.path]])
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
        """Do a part; what it notes is handed on at once."""
        end = time.monotonic() + seconds
        request = {
            "program": part.program,
            "options": dict(part.options),
            "seconds": seconds,
            "exit_seconds": seconds + self._grace / 2,
        }
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end + self._grace - time.monotonic()))
            except queue.Empty:
                self._kill()
                return Ending("hung", f"not done after {seconds:.0f} s\n{self._said()}", False)
            if not line:
                status = self._process.wait()
                if time.monotonic() >= end:
                    return Ending("hung", f"not done after {seconds:.0f} s\n{self._said()}", False)
                return Ending("died", f"ended with status {status}\n{self._said()}", False)
            answer = json.loads(line)
            if "path" in answer:
                note(answer["path"], answer["value"])
            elif "error" in answer:
                return Ending("failed", answer["error"], False)
            else:
                return Ending("done", usable=not answer["failed"])

    def close(self) -> None:
        """End the process, and whatever it started."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _kill(self) -> None:
        # Nobody else has been given this number: the process has not been waited for.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        # One that a driver holds ends later, if ever.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()


def serve_parts(open_cuda: Callable[[], Any]) -> None:
    """Do the parts that are asked for on the standard input, until it ends.

    A request is a line ``{"program": …, "options": …, "seconds": …, "exit_seconds": …}``; the
    answers are lines ``{"path": …, "value": …}`` and at last ``{"failed": …}`` or
    ``{"error": text}``. A part that takes `exit_seconds` ends the process, telling where it was.
    """
    # Whatever a part prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, default=plain) + "\n")
        answers.flush()

    lab = Lab(lambda path, value: send({"path": path, "value": value}), open_cuda)
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["exit_seconds"], exit=True)
        lab.begin(request["seconds"])
        try:
            module, _, name = request["program"].partition(":")
            getattr(import_module(module), name)(lab, **request["options"])
            answer: dict[str, Any] = {"failed": lab.failed}
        except Exception as error:
            last = "".join(traceback.format_exception(error)[-6:])
            answer = {"error": f"{type(error).__name__}: {error}\n{last}"}
        finally:
            faulthandler.cancel_dump_traceback_later()
        send(answer)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers and arrays of NumPy, else text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
