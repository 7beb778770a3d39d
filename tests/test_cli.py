"""The command line: what it prints, where to, its exit status, and that errors create nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nvml import FakeCupy, FakeGpu, FakeNvml, NVMLError_NotSupported, install
from scipy import ndimage

import gpublocks
from gpublocks import block_processing as bp
from gpublocks import machine
from gpublocks.cli import main
from gpublocks.cli.demo import CELLS
from gpublocks.cli.functions import parse_keywords
from gpublocks.errors import BudgetError

Say = Callable[..., tuple[int, str, str]]

SHAPE = (24, 20, 18)
VERSIONS = {"python": "3.11", "platform": "Linux", "cupy": "14.2.0 (cupy-cuda13x)"}
MODULE = """
import sys, time

def double(image):
    print("told by the function")
    return 2 * image

def typed(image, dtype=None, axes=None, mode="plain", progress=None):
    return image + (dtype == "own") + 2 * (axes == 1) + 4 * (mode == "fast")

typed.halo = 2

def fail(image):
    raise LookupError("no\\nsuch thing")

def wait(image):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)
    return image

class Cells:
    @staticmethod
    def negate(image):
        return -image

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("cli_filters.py").write_text(MODULE)
    Path("cli_broken.py").write_text("import not_there_at_all")
    image = (np.random.default_rng(0).integers(0, 256, SHAPE) / 256).astype(np.float32)
    np.save("a.npy", image)
    return tmp_path


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Call `main` with the words of a command line; return exit status, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        status = main([word for text in words for word in text.split()])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def command(words: str, *, wanted: int = 0) -> tuple[str, str]:
    """Run the command in a process of its own; return its stdout and stderr."""
    arguments = [sys.executable, "-m", "gpublocks", *words.split()]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == wanted, done.stderr
    return done.stdout, done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(gpublocks.__file__).parents[1])}


def table(text: str) -> list[str]:
    """Return the lines of a table with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def one_error(text: str) -> str:
    """Return the message of an error that is told in one line, and without a traceback."""
    assert text.startswith("gpublocks: error: "), text
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return text.removeprefix("gpublocks: error: ")


# --- run ---------------------------------------------------------------------------------------


def test_run_filters_a_file_as_one_call_would(folder: Path) -> None:
    words = "run scipy.ndimage:gaussian_filter a.npy s.npy --arg sigma=1.5 --halo 6 --processes 2"
    out, err = command(words)
    assert np.array_equal(np.load("s.npy"), ndimage.gaussian_filter(np.load("a.npy"), 1.5))
    assert out.count("\n") == 1
    assert out.startswith("scipy.ndimage:gaussian_filter: ")
    for part in (" blocks of a.npy in ", " MB/s, "):
        assert part in out
    assert out.endswith(" -> s.npy\n")
    assert err == ""
    assert sorted(os.listdir()) == ["a.npy", "cli_broken.py", "cli_filters.py", "s.npy"]


def test_run_finds_modules_of_the_current_folder_in_worker_processes_too(folder: Path) -> None:
    out, err = command("run cli_filters:double a.npy d.npy --overlap 0 --size-max 12 --processes 2")
    assert np.array_equal(np.load("d.npy"), 2 * np.load("a.npy"))
    assert out.startswith("cli_filters:double: 2 blocks of a.npy")
    assert err == "told by the function\n" * 2


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_only_the_result_goes_to_standard_output(say: Say, executor: str) -> None:
    words = "run cli_filters:double a.npy d.npy --size-max 12 --processes 2 --verbose"
    status, out, err = say(words, "--executor", executor)
    assert (status, out.count("\n")) == (0, 1)
    assert err.startswith("Processing 2 blocks with function 'double'.\n")
    assert err.count("told by the function\n") == 2
    assert "Processed 2 blocks with function 'double': elapsed time: " in err


def test_a_name_may_have_several_parts(say: Say) -> None:
    status, _, err = say("run cli_filters:Cells.negate a.npy n.npy --processes serial")
    assert (status, err) == (0, "")
    assert np.array_equal(np.load("n.npy"), -np.load("a.npy"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (24, 20, 18)),
        ("--size-max full --halo 2", (24, 20, 18)),
        ("--size-max 6,9 --axes 0,2", (6, 20, 9)),
        ("--size-max 6 --axes all", (6, 5, 6)),
        ("--size-max 7 --size-min 6 --axes=-1", (24, 20, 6)),
        ("--size-max 8 --size-min fixed --overlap 2", (8, 20, 18)),
        ("--size-max 9 --size-multiple-of 4", (8, 20, 18)),
    ],
)
def test_options_reach_the_plan(say: Say, options: str, expected: Sequence[int]) -> None:
    status, out, err = say(f"plan numpy:sqrt a.npy --processes serial --json {options}")
    assert (status, err) == (0, "")
    assert json.loads(out)["block"] == list(expected)


@pytest.mark.parametrize(
    ("options", "added", "dtype"),
    [
        ("", 0, np.float32),
        ("-a mode=fast", 4, np.float32),
        ("--arg axes=1 --arg dtype=own", 3, np.float32),
        ("--dtype float64", 0, np.float64),
        ("--dtype float64 --axes 2 -a axes=1 -a dtype=own -a mode=fast", 7, np.float64),
    ],
)
def test_arguments_of_the_function_and_options_are_kept_apart(
    say: Say, options: str, added: int, dtype: Any
) -> None:
    words = f"run cli_filters:typed a.npy t.npy --size-max 9 --processes serial {options}"
    status, _, err = say(words)
    assert (status, err) == (0, "")
    result = np.load("t.npy")
    assert result.dtype == dtype
    assert np.array_equal(result, np.load("a.npy") + np.float32(added))


@pytest.mark.parametrize("options", ["", "--dtype float64", "-a dtype=own"])
def test_what_a_function_declares_is_heeded(say: Say, options: str) -> None:
    words = f"plan cli_filters:typed a.npy --processes serial --size-max 8 --json {options}"
    status, out, err = say(words)
    assert (status, err) == (0, "")
    assert set(json.loads(out)["overlap"]) == {4}


def test_a_ufunc_may_be_given_with_a_dtype_of_the_sink(folder: Path) -> None:
    command("run numpy:sqrt a.npy r.npy --overlap 0 --dtype float64 --processes 2")
    assert np.array_equal(np.load("r.npy"), np.sqrt(np.load("a.npy")).astype(np.float64))


def test_keyword_values_are_literals_or_text() -> None:
    texts = ["a=2", "b=1,5,5", "c=nearest", "d=None", "e=[1, 2]", "f=a=b", "g=", "h='3'"]
    values = list(parse_keywords(texts).values())
    assert values == [2, (1, 5, 5), "nearest", None, [1, 2], "a=b", "", "3"]


def test_a_mask_skips_blocks(say: Say) -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:6] = True
    np.save("m.npy", mask)
    words = "run numpy:negative a.npy n.npy --mask m.npy --size-max 6 --processes serial --progress"
    status, out, err = say(words)
    assert status == 0
    assert " 1 block of a.npy" in out
    assert " 1/1 " in err
    assert np.array_equal(np.load("n.npy"), np.where(mask, -np.load("a.npy"), 0))


def test_a_mask_may_be_a_file_of_any_format(say: Say) -> None:
    pytest.importorskip("tifffile")
    mask = np.zeros((12, 10, 9), np.uint8)
    mask[:3] = 255
    bp.process(np.copy, mask, "m.tif", overlap=0, processes="serial")
    words = "run numpy:negative a.npy n.npy --mask m.tif --size-max 6 --processes serial"
    status, out, err = say(words)
    assert (status, err) == (0, "")
    assert " 1 block of a.npy" in out
    image = np.load("a.npy")
    wanted = np.where(np.arange(SHAPE[0])[:, None, None] < 6, -image, 0)
    assert np.array_equal(np.load("n.npy"), wanted)
    result = bp.process(
        np.negative, image, size_max=6, overlap=0, processes="serial", mask=Path("m.tif")
    )
    assert np.array_equal(result, wanted)


def test_a_mask_too_large_for_memory_is_refused(say: Say) -> None:
    np.save("m.npy", np.ones(SHAPE, np.int64))
    with pytest.raises(
        BudgetError, match=r"m\.npy of shape .* takes 77\.8 kB of memory, and 50 kB"
    ):
        bp.process(np.negative, "a.npy", overlap=0, memory="50kB", mask="m.npy")
    status, _, err = say("run numpy:negative a.npy n.npy --mask m.npy --memory 50kB")
    assert status == 2
    assert "give a coarser one" in one_error(err)


@pytest.mark.parametrize("option", ["", "--no-progress"])
def test_no_bar_where_standard_error_is_no_terminal(say: Say, option: str) -> None:
    assert say(f"run numpy:sqrt a.npy r.npy --processes serial {option}")[2] == ""


def test_an_existing_sink_is_written_into_unless_it_may_be_replaced(say: Say) -> None:
    np.save("old.npy", np.zeros(SHAPE))
    before = os.stat("old.npy").st_ino
    words = "run numpy:sqrt a.npy old.npy --processes serial"
    assert say(words)[0] == 0
    assert np.load("old.npy").dtype == np.float64
    assert os.stat("old.npy").st_ino == before
    assert say(f"{words} --overwrite")[0] == 0
    assert np.load("old.npy").dtype == np.float32


# --- plan and info -----------------------------------------------------------------------------


def test_plan_prints_the_plan_and_creates_nothing(folder: Path) -> None:
    before = sorted(os.listdir())
    words = "scipy.ndimage:median_filter a.npy m.npy -a size=3 --halo 1 --processes 2"
    out, err = command(f"plan {words} --json")
    expected = bp.plan(ndimage.median_filter, "a.npy", "m.npy", halo=1, processes=2, size=3)
    told, wanted = json.loads(out), expected.to_dict()
    for moving in ("host_bytes", "host_limit", "worker_limit_bytes"):
        del told[moving], wanted[moving]
    assert (told, err) == (wanted, "")
    assert sorted(os.listdir()) == before


def test_plan_is_a_table_for_people(say: Say) -> None:
    status, out, _ = say("plan numpy:sqrt a.npy --size-max 8 --processes serial")
    assert status == 0
    assert "blocks        3 (3 x 1 x 1)" in out


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
def test_a_trial_measures(folder: Path) -> None:
    words = "plan cli_filters:double a.npy --size-max 8 --processes 1 --json"
    assert json.loads(command(words)[0])["peak_origin"] == "estimated"
    assert json.loads(command(f"{words} --trial")[0])["peak_origin"] == "measured"


def test_info_tells_of_the_machine() -> None:
    out, err = command("info --json")
    facts = json.loads(out)
    assert facts["gpublocks"] == gpublocks.__version__
    assert facts["cpus"] >= 1
    assert facts["memory_available_bytes"] > 0
    assert facts["gpus"] or facts["gpu_status"]
    assert "serial" in facts["executors"]
    assert "numpy" in facts["libraries"]
    assert err == ""


def test_info_is_a_table_for_people(say: Say) -> None:
    status, out, err = say("info")
    assert (status, err) == (0, "")
    for title in ("gpublocks", "python", "CPUs", "cache", "memory limit", "GPU use", "executors"):
        assert f"\n{title}" in f"\n{out}"


def test_info_tells_of_gpus(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu("H200", "GPU-1", (140 * 10**9, 60 * 10**9))
    other = FakeGpu("H200", "GPU-2", NVMLError_NotSupported(), bus=1)
    install(monkeypatch, FakeNvml([gpu, other]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(machine, "versions", lambda: VERSIONS)
    lines = table(say("info")[1])
    assert "GPU 0 H200, 60 GB of 140 GB free, driver 580.65" in lines
    assert "limited by free GPU memory (NVML)" in lines
    assert "GPU 1 H200, ? of ? free, driver 580.65" in lines
    assert "limited by NVML does not tell (Not Supported)" in lines
    assert "GPU use none: CuPy is not installed: pip install 'gpublocks[cuda13]'" in lines
    assert "executors serial, threads, processes" in lines
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy([]))
    lines = table(say("info")[1])
    assert "GPU use cuda:0, cuda:1, with CuPy 14.2.0 (cupy-cuda13x)" in lines
    assert "executors serial, threads, processes, cuda" in lines
    facts = json.loads(say("info --json")[1])
    assert (facts["gpu_status"], [gpu["uuid"] for gpu in facts["gpus"]]) == ("", ["GPU-1", "GPU-2"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("--device cuda:1", {"device": "cuda:1"}),
        ("--device cuda:0,cuda:2", {"device": ["cuda:0", "cuda:2"]}),
        ("--memory 8GB", {"memory": {"host": "8GB", "device": None}}),
        (
            "--device cuda --memory 8GB --device-memory 20GB",
            {"device": "cuda", "memory": {"host": "8GB", "device": "20GB"}},
        ),
    ],
)
def test_options_name_devices(
    say: Say, monkeypatch: pytest.MonkeyPatch, options: str, expected: dict[str, Any]
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(bp, "plan", lambda *arguments, **keywords: given.append(keywords) or "")
    assert say(f"plan numpy:sqrt a.npy {options}")[0] == 0
    assert given == [{"trial": False, **expected}]


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("run scipy.ndimage.gaussian_filter a.npy s.npy", "such as scipy.ndimage:gaussian_filter"),
        ("run sqrt a.npy s.npy", "give module:name"),
        ("run scipyy:sqrt a.npy s.npy", "there is no module 'scipyy'"),
        ("run numpy.nowhere:sqrt a.npy s.npy", "there is no module 'numpy.nowhere'"),
        ("run cli_filters.py:double a.npy s.npy", "did you mean 'cli_filters'?"),
        ("run cli_broken:f a.npy s.npy", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("run numpy:sqr a.npy s.npy", "numpy has no attribute 'sqr'; did you mean 'sqrt'?"),
        ("run cli_filters:Cells.negat a.npy s.npy", "cli_filters.Cells has no attribute 'negat'"),
        ("run cli_filters:number a.npy s.npy", "function is a int; give a callable"),
        ("run cli_filters:double a.npy s.npy -a axes=1", "unexpected keyword argument 'axes'"),
        ("run scipy.ndimage:laplace a.npy s.npy -a mod=wrap", "did you mean 'mode'?"),
        ("run numpy:sqrt a.npy s.npy -a sigma", "--arg is 'sigma'"),
        ("run numpy:sqrt a.npy s.npy --halo wide", "--halo is 'wide'"),
        ("run numpy:sqrt a.npy s.npy --axes most", "or 'all'"),
        ("run numpy:sqrt a.npy s.npy --axes 3 --size-max 5", "the source has axes 0..2"),
        ("run numpy:sqrt a.npy s.npy --memory 8XB", "memory is '8XB'"),
        ("run numpy:sqrt a.npy s.npy --memory 8kB", "memory=8kB leaves 8 kB"),
        ("run numpy:sqrt a.npy s.npy --processes many", "processes is 'many'"),
        ("run numpy:sqrt a.npy s.npy --executor magic", "executor is 'magic'"),
        ("run numpy:sqrt a.npy s.npy --device magic", "device is 'magic'; give 'auto', 'cpu'"),
        ("run numpy:sqrt a.npy s.npy --device cuda:0,cpu", "device is ['cuda:0', 'cpu']"),
        ("run numpy:sqrt a.npy s.npy --device-memory 8XB", "memory is '8XB'"),
        ("run numpy:sqrt a.npy s.npy --dtype vloat", "vloat"),
        ("run numpy:sqrt a.npy s.npy --casting loose", "casting is 'loose'"),
        ("run numpy:sqrt a.npy s.npy --mask a.npy", "give an array of bool"),
        ("run numpy:sqrt b.npy s.npy", "b.npy"),
        ("run numpy:sqrt a.npy nowhere/s.npy", "no folder "),
        ("run numpy:sqrt a.npy s.xyz", "supported: .npy"),
        ("run numpy:sqrt a.npy s.xyz --overwrite", "supported: .npy"),
        ("run numpy:sqrt cli_filters.py s.npy", "'.py'"),
        ("run numpy:sqrt a.npy", "required: SINK; see 'gpublocks run --help'"),
        ("run numpy:sqrt a.npy s.npy --hal 3", "--hal"),
        ("plan numpy:sqrt b.npy", "b.npy"),
        ("demo -o nowhere/x.png", "nowhere is no folder"),
        ("demo -o .", "it is a folder"),
        ("demo --shape 9", "shape"),
        ("demo --shape big", "--shape is 'big'"),
        ("frobnicate", "frobnicate"),
        ("", "COMMAND"),
    ],
)
def test_what_is_given_wrong_is_told_in_one_line_before_anything_is_created(
    say: Say, words: str, text: str
) -> None:
    before = sorted(os.listdir())
    status, out, err = say(words)
    assert status == 2
    assert text in one_error(err)
    assert out == ""
    assert sorted(set(os.listdir()) - {"__pycache__"}) == before


def test_a_sink_that_does_not_fit_is_left_as_it_is(say: Say) -> None:
    np.save("small.npy", np.zeros((3, 4)))
    before = Path("small.npy").read_bytes()
    status, _, err = say("run numpy:sqrt a.npy small.npy --size-max 9")
    assert status == 2
    assert "(3, 4)" in one_error(err)
    assert Path("small.npy").read_bytes() == before


@pytest.mark.parametrize("processes", ["serial", "2"])
def test_a_block_that_fails_is_named(folder: Path, processes: str) -> None:
    words = f"run cli_filters:fail a.npy f.npy --size-max 12 --processes {processes}"
    out, err = command(words, wanted=1)
    message = one_error(err)
    assert message.startswith("block 0/2<(0, 0, 0)/(2, 1, 1)> failed in stage 'compute': ")
    assert message.endswith("LookupError: no such thing\n")
    assert out == ""
    assert not [name for name in os.listdir() if name.startswith("f.npy")]


def test_a_result_that_cannot_be_stored_is_an_error_of_its_block(say: Say) -> None:
    status, _, err = say("run numpy:sum a.npy s.npy --size-max 12 --processes serial")
    assert status == 1
    assert one_error(err).startswith("block 0/2<(0, 0, 0)/(2, 1, 1)>: function returned a float32")
    assert not Path("s.npy").exists()


def test_debug_shows_the_traceback_too(folder: Path) -> None:
    _, err = command("run numpy:sqrt b.npy s.npy --debug", wanted=2)
    assert err.startswith("Traceback (most recent call last):")
    one_error(err.splitlines(keepends=True)[-1])
    _, err = command("run cli_filters:fail a.npy s.npy --processes 1 --debug", wanted=1)
    assert 'raise LookupError("no\\nsuch thing")' in err


def test_an_interrupted_run_says_so_and_leaves_nothing(folder: Path) -> None:
    before = sorted(os.listdir())
    words = "run cli_filters:wait a.npy w.npy --size-max 12 --processes 2"
    process = subprocess.Popen(
        [sys.executable, "-m", "gpublocks", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.removeprefix("begun\n") == (
        "gpublocks: interrupted after 0 of 2 blocks; w.npy was not created\n"
    )
    assert sorted(set(os.listdir()) - {"__pycache__"}) == before


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "gpublocks", "plan", "numpy:sqrt", "a.npy"]
    done = subprocess.run(
        words, stdout=writer, stderr=subprocess.PIPE, env=environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# --- help and demo -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "info", "plan", "run", "convert", "view", "demo"])
def test_help_is_plain_text_with_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    assert "\x1b" not in out
    assert name in ("info", "demo") or "\nexamples:\n  gpublocks " in out


def test_the_demo_checks_itself_and_leaves_a_picture_only(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("matplotlib")
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = set(os.listdir())
    status, out, err = say("demo -o picture.png --shape 32,48,40")
    assert (status, err) == (0, "")
    assert "all 61440 voxels equal those of one call, bit for bit\n" in out
    assert out.endswith("picture: picture.png\n")
    assert set(os.listdir()) - before == {"picture.png"}
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(temporary) == []


def test_the_demo_tells_when_voxels_differ(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    short_sighted = gpublocks.filters.filter(halo=1)(lambda array: CELLS(array))
    monkeypatch.setattr("gpublocks.cli.demo.CELLS", short_sighted)
    status, _, err = say("demo --shape 32,48,40")
    assert status == 1
    assert "of 61440 voxels differ" in one_error(err)
    assert not Path("gpublocks-demo.png").exists()


@pytest.mark.parametrize("name", ["run.html", "run.json", "run.trace.json"])
def test_a_run_leaves_a_report(folder: Path, name: str) -> None:
    words = f"run scipy.ndimage:laplace a.npy s.npy --halo 1 --processes serial --report {name}"
    assert main(words.split()) == 0
    text = Path(name).read_text()
    assert "laplace" in text
    assert len(text) > 500


def test_a_run_that_fails_leaves_a_report_too(folder: Path) -> None:
    words = "run failing_filters:fail a.npy s.npy --halo 1 --processes serial --report run.json"
    Path("failing_filters.py").write_text("def fail(array):\n    raise OSError('no')\n")
    assert main(words.split()) == 1
    assert gpublocks.Report.load("run.json").runs[0].error == "OSError: no"


def test_a_name_that_is_no_letters_keeps_no_report_from_being_saved(folder: Path) -> None:
    words = "run odd_names:fail a.npy s.npy --halo 1 --processes serial --report run.html"
    Path("odd_names.py").write_text("def fail(array):\n    raise OSError('caf\\udce9')\n")
    command = [sys.executable, "-m", "gpublocks", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert "OSError: caf" in done.stderr
    assert "caf\\udce9" in Path("run.html").read_text()


def test_what_ended_a_run_is_told_where_its_report_cannot_be_saved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "run full_disks:fail a.npy s.npy --halo 1 --processes serial --report run.json"
    Path("full_disks.py").write_text(
        "import os\ndef fail(array):\n    os.mkdir('run.json')\n    raise OSError('no room')\n"
    )
    assert main(words.split()) == 1
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r.txt", "use .json, .html or .trace.json"),
        ("no/r.html", "cannot save no/r.html"),
    ],
)
def test_a_report_that_cannot_be_saved_is_refused_first(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    words = f"run scipy.ndimage:laplace a.npy s.npy --halo 1 --report {name}"
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("s.npy").exists()
