"""The process in which a program is measured. Touches standard streams."""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["serve_requests"]


def serve_requests() -> None:
    """Answer requests, one line of JSON each, until the standard input ends.

    ``{"load": [program, folder, options]}`` comes first; then ``{"do": name}`` calls a method of
    the program. The answer is ``{"value": …}`` or ``{"error": text}``.
    """
    # Whatever a program prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    program: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        value = None
        try:
            if "load" in request:
                name, folder, options = request["load"]
                module, _, attribute = name.partition(":")
                program = getattr(import_module(module), attribute)(Path(folder), **options)
            else:
                value = getattr(program, request["do"])()
            answer = {"value": value}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
