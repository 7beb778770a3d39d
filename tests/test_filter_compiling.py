"""Machine code is kept, and is never older than what it was made of."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpublocks

pytest.importorskip("numba")

INNER = """
from gpublocks.filters.engines.compiled.compiling import compiled
@compiled
def inner(x):
    return x + {more}
"""
OUTER = """
from gpublocks.filters.engines.compiled.compiling import compiled
from gpublocks.filters.engines.compiled.inner import inner
@compiled
def outer(x):
    return inner(x)
"""
PROGRAM = """
import resource
from gpublocks.filters.engines.compiled.outer import outer
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
print(outer(1), sum(outer.stats.cache_hits.values()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a package of which a compiled function calls another one."""
    package = Path(gpublocks.__file__).parent
    shutil.copytree(package, tmp_path / "gpublocks", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path, "outer", OUTER)
    write(tmp_path, "inner", INNER.format(more=1))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"gpublocks/filters/engines/compiled/{name}.py").write_text(text)


def run(folder: Path, limit: int = 1 << 30) -> str:
    """Return what the function returns for 1, and how much of it was compiled before."""
    program = PROGRAM.format(limit=limit)
    command = [sys.executable, "-c", program]
    environment = {"PYTHONPATH": str(folder), "HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_code_is_kept_until_something_it_calls_changes(folder: Path) -> None:
    assert run(folder) == "2 0"
    assert run(folder) == "2 1"
    write(folder, "inner", INNER.format(more=100))
    assert run(folder) == "101 0"
    assert run(folder) == "101 1"


def test_code_that_cannot_be_kept_is_used(folder: Path) -> None:
    assert run(folder, limit=100) == "2 0"
    assert run(folder) == "2 0"
