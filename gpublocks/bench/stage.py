"""The process in which a program is measured. Touches standard streams, and forks itself."""

import gc
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from gpublocks.bench.loading import load

__all__ = ["serve_requests"]


def serve_requests() -> None:
    """Answer requests, one line of JSON each, until the standard input ends, or an interrupt.

    ``{"import": [names]}`` imports modules. ``{"load": [program, folder, options]}`` makes a
    program, and ``{"do": name}`` calls a method of it. The answer is ``{"value": …}`` or
    ``{"error": text}``.

    After ``{"fork": true}`` a copy of this process answers, which has all that is imported, until
    ``{"end": true}``, or until it dies; then this process answers for it, and goes on.
    """
    # Whatever a program prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with suppress(KeyboardInterrupt):
        _answer(answers)


def _answer(answers: TextIO) -> None:
    program: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if "end" in request:
            break
        try:
            value: Any = None
            if "fork" in request:
                value = _fork()
            elif "import" in request:
                for name in request["import"]:
                    import_module(name)
            elif "load" in request:
                name, folder, options = request["load"]
                program = load(name)(Path(folder), **options)
            else:
                value = getattr(program, request["do"])()
            answer: dict[str, Any] = {"value": value}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fork() -> int:
    """Return the number of the copy, in the copy; in this process 0 once that has ended.

    Raises
    ------
    ChildProcessError
        In this process, if the copy died.
    """
    # Objects that are collected in the copy would be copied with their pages.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if not pid:
        return os.getpid()
    # An interrupt is for the copy, whose end this process tells.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, ended = os.waitpid(pid, 0)
    signal.signal(signal.SIGINT, before)
    status = os.waitstatus_to_exitcode(ended)
    if status:
        raise ChildProcessError(f"its process ended with status {status}")
    return 0
