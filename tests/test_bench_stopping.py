"""Benchmarks that are stopped, or whose processes die: nothing stays, and nobody waits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpublocks.bench.case import Way
from gpublocks.bench.stages import Nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies of processes: Linux")
ROOT = Path(__file__).parents[1]
RUN = """\
import sys
from test_bench_stopping import SLEEPING
from benchmarks.__main__ import main
from gpublocks import bench
from gpublocks.bench.case import Case
ways = (SLEEPING,)
case = Case("sleeping", "nothing", {}, "none", ways, (), 1, group="promises")
bench.cases = lambda **options: [case, case]
sys.exit(main(["run", "sleeping", *sys.argv[1:]]))
"""


class Sleeping:
    """A program that says which processes it has, then sleeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        other = subprocess.Popen(["sleep", "600"])
        note = self.folder.parent / "pids"
        note.with_suffix(".part").write_text(f"{os.getpid()} {os.getppid()} {other.pid}")
        note.with_suffix(".part").rename(note)

    def act(self) -> dict[str, float]:
        time.sleep(600)
        return {}

    def check(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)


SLEEPING = Way(
    "sleeper", "test_bench_stopping:Sleeping", {}, fresh=True, imports=("test_bench_stopping",)
)


def waited(condition: Any) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def gone(pid: int) -> bool:
    """Say whether a process has ended, though nobody may have waited for it."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def stopped(number: int, *, group: bool, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Return what a run of two cases said that got a signal in the first one."""
    (volumes := tmp_path / "volumes").mkdir()
    output = tmp_path / "found.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "--folder", str(volumes), "-o", str(output)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    note = volumes / "pids"
    assert waited(note.exists)
    pids = list(map(int, note.read_text().split()))
    note.unlink()
    (os.killpg if group else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert waited(lambda: all(map(gone, pids)))
    assert list(tmp_path.iterdir()) == [volumes]
    assert list(volumes.iterdir()) == []
    return subprocess.CompletedProcess((), process.returncode, "", told)


@pytest.mark.parametrize("group", [False, True])
def test_an_interrupt_ends_everything_and_leaves_nothing(group: bool, tmp_path: Path) -> None:
    done = stopped(signal.SIGINT, group=group, tmp_path=tmp_path)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "benchmarks: interrupted"
    assert "failed" not in done.stderr
    assert "Traceback" not in done.stderr


def test_termination_leaves_nothing_either(tmp_path: Path) -> None:
    assert stopped(signal.SIGTERM, group=False, tmp_path=tmp_path).returncode == 143


def test_a_copied_process_that_died_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Nursery() as nursery:
        with (
            pytest.raises(RuntimeError, match=r"sleeper: its process ended with status -9"),
            nursery(SLEEPING, tmp_path) as copy,
        ):
            copy.do("check")
        with nursery(SLEEPING, tmp_path) as copy:
            assert copy.pid > 0


def test_what_ended_a_measurement_is_told_rather_than_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Nursery() as nursery:
        copy = nursery(SLEEPING, tmp_path)
        with pytest.raises(RuntimeError):
            copy.do("check")
        copy.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
