"""Who computes, row by row: by what was asked for, and the GPUs that there are."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from fake_machine import Machine, cupy

from gpublocks import block_processing as bp
from gpublocks import choosing, gpus
from gpublocks.choosing import agree, choose, count_workers
from gpublocks.errors import ArgumentTypeError, DeviceError, GpublocksError, PlanError
from gpublocks.executors import SerialExecutor
from gpublocks.task import Choice

LINUX = sys.platform == "linux"
POOL = "processes" if LINUX else "threads"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def chosen(
    *,
    executor: Any = None,
    processes: Any = None,
    device: Any = None,
    function_type: str = "array",
    dtype: Any = "f4",
) -> Choice:
    return choose(
        executor=executor,
        processes=processes,
        device=device,
        function_type=function_type,
        dtypes=[("the source", np.dtype("u2")), ("the sink", np.dtype(dtype))],
    )


class Row(NamedTuple):
    """What is asked for, and what is chosen of two GPUs."""

    given: dict[str, Any]
    name: str
    devices: tuple[int, ...] = ()
    otherwise: str | None = None

    def __str__(self) -> str:
        return str(self.given).replace(str(SERIAL), "SerialExecutor()")


SERIAL = SerialExecutor()
"""Shown as by its class: the name of a test is the same in every process."""

ROWS = [
    Row({}, "cuda", (0, 1), POOL),
    Row({"device": "auto"}, "cuda", (0, 1), POOL),
    Row({"dtype": ">f8"}, "cuda", (0, 1), POOL),
    Row({"device": "cuda"}, "cuda", (0, 1)),
    Row({"device": "cuda:1"}, "cuda", (1,)),
    Row({"device": ["cuda:1", "cuda:0"]}, "cuda", (1, 0)),
    Row({"device": ("cuda:0",)}, "cuda", (0,)),
    Row({"executor": "cuda"}, "cuda", (0, 1)),
    Row({"executor": "cuda", "device": "auto"}, "cuda", (0, 1)),
    Row({"executor": "cuda", "device": "cuda:1"}, "cuda", (1,)),
    Row({"processes": 3, "device": "cuda"}, "cuda", (0, 1)),
    Row({"processes": "serial", "device": "cuda:0"}, "cuda", (0,)),
    Row({"device": "cpu"}, POOL),
    Row({"processes": 3}, POOL),
    Row({"processes": 3, "device": "auto"}, POOL),
    Row({"processes": "serial"}, "serial"),
    Row({"processes": "serial", "device": "cpu"}, "serial"),
    Row({"function_type": "source"}, POOL),
    Row({"function_type": "block", "device": "auto"}, POOL),
    Row({"executor": "serial"}, "serial"),
    Row({"executor": "threads", "device": "cpu"}, "threads"),
    Row({"executor": "threads", "device": "auto"}, "threads"),
    Row({"executor": SERIAL}, "serial"),
    Row({"executor": SERIAL, "device": "cpu"}, "serial"),
    Row({"dtype": "M8[s]"}, POOL),
    Row({"dtype": [("a", "f4")], "device": "auto"}, POOL),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_with_gpus(machine: Machine, row: Row) -> None:
    machine.has(2)
    found = chosen(**row.given)
    assert (found.name, found.devices) == (row.name, row.devices)
    assert (found.otherwise.name if found.otherwise else None) == row.otherwise
    assert found.reason
    if row.devices:
        assert found.workers == len(row.devices)
    if found.otherwise is not None:
        assert found.otherwise == chosen(**{**row.given, "device": "cpu"})


@pytest.mark.parametrize("usable", [True, False], ids=["no GPU", "no CuPy"])
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.filterwarnings("ignore:no GPU is used")
def test_without_gpus(machine: Machine, row: Row, usable: bool) -> None:
    machine.has(0 if usable else 1, usable=usable)
    missing = "no NVIDIA driver found" if usable else "pip install 'gpublocks[cuda13]'"
    if row.name == "cuda" and row.otherwise is None:
        with pytest.raises(DeviceError, match="use device='cpu'") as caught:
            chosen(**row.given)
        assert missing in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        found = chosen(**row.given)
        assert (found.name, found.devices) == (row.otherwise or row.name, ())
        assert found.otherwise is None
        assert (missing in found.reason) == (row.name == "cuda" or "dtype" in row.given)


@pytest.mark.parametrize(
    ("given", "error", "parts"),
    [
        ({"device": "cuda:7"}, DeviceError, ("no cuda:7", "cuda:0, cuda:1", "device='cpu'")),
        ({"device": ["cuda:0", "cuda:2"]}, DeviceError, ("no cuda:2", "cuda:0, cuda:1")),
        ({"device": "gpu"}, DeviceError, ("'gpu'", "'auto', 'cpu', 'cuda'", "'cuda:0'")),
        ({"device": "cuda:x"}, DeviceError, ("'cuda:x'", "'cuda:0'")),
        ({"device": "cuda:-1"}, DeviceError, ("'cuda:-1'",)),
        ({"device": "cuda:" + "9" * 5000}, DeviceError, ("'cuda:0'",)),
        ({"device": "CUDA"}, DeviceError, ("'CUDA'",)),
        ({"device": []}, DeviceError, ("[]", "a list of such")),
        ({"device": ["cpu"]}, DeviceError, ("['cpu']",)),
        ({"device": ["cuda"]}, DeviceError, ("['cuda']",)),
        ({"device": ["cuda:1", "cuda:1"]}, DeviceError, ("one twice",)),
        ({"device": 1}, ArgumentTypeError, ("device is a int", "'cuda:0'")),
        ({"device": np.arange(2)}, ArgumentTypeError, ("device is a ndarray",)),
        ({"device": "cuda", "executor": "serial"}, PlanError, ("'serial'", "'cuda'", "contradict")),
        ({"device": "cuda:0", "executor": "threads"}, PlanError, ("'threads'", "'cuda:0'")),
        ({"device": ["cuda:0"], "executor": "processes"}, PlanError, ("'processes'",)),
        ({"device": "cuda", "executor": SerialExecutor()}, PlanError, ("contradict",)),
        ({"device": "cpu", "executor": "cuda"}, PlanError, ("'cpu'", "'cuda'", "contradict")),
        ({"device": "cuda", "function_type": "source"}, PlanError, ("'source'", "'array'")),
        ({"executor": "cuda", "function_type": "block"}, PlanError, ("'block'", "'array'")),
        ({"device": "cuda", "dtype": "U3"}, DeviceError, ("the sink has the type <U3",)),
        ({"executor": "cuda", "dtype": "m8[s]"}, DeviceError, ("timedelta64[s]", "device='cpu'")),
        ({"executor": "dask"}, PlanError, ("'dask'", "'threads'", "'cuda'")),
        ({"executor": 4}, ArgumentTypeError, ("int", "'cuda'")),
        ({"processes": 0, "device": "cuda"}, PlanError, ("processes is 0",)),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be(
    machine: Machine, given: dict[str, Any], error: type[Exception], parts: tuple[str, ...]
) -> None:
    machine.has(2)
    with pytest.raises(error) as caught:
        chosen(**given)
    assert type(caught.value) is error
    assert isinstance(caught.value, GpublocksError)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("code", [*"?bBhHiIlLqQefdFD", ">f4", "<i2", "g", "G", "S3", "U2", "V4"])
def test_types_of_voxels(machine: Machine, code: str) -> None:
    machine.has(1)
    dtype = np.dtype(code)
    known = dtype.kind in "biufc" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)
    assert (chosen(dtype=dtype).name == "cuda") == known
    if not known:
        assert f"no GPU is used: the sink has the type {dtype}" in chosen(dtype=dtype).reason
        with pytest.raises(DeviceError):
            chosen(dtype=dtype, device="cuda")


# --- GPUs that were lost -----------------------------------------------------------------------


def test_lost_gpus_are_left_out(machine: Machine) -> None:
    machine.has(2)
    machine.lose({0: "an illegal memory access"})
    assert chosen().devices == chosen(device="cuda").devices == (1,)
    assert chosen(device="cuda:1").devices == (1,)
    for device in ("cuda:0", ["cuda:1", "cuda:0"]):
        with pytest.raises(DeviceError, match=r"cuda:0 is lost .*an illegal memory access"):
            chosen(device=device)


def test_where_all_gpus_are_lost_cpus_compute(machine: Machine) -> None:
    machine.has(1)
    machine.lose({0: "an illegal memory access"})
    with pytest.warns(RuntimeWarning, match="cuda:0 is lost for this process"):
        found = chosen()
    assert (found.name, found.otherwise) == (POOL, None)
    assert "an illegal memory access" in found.reason
    with pytest.raises(DeviceError, match="no GPU can be used: cuda:0 is lost"):
        chosen(device="cuda")


# --- calls from what is run here ---------------------------------------------------------------


def within_a_gpu(call: Callable[[], Any]) -> Any:
    """Call in a thread that has the name of those that compute on a GPU."""
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(call())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=work, name="cuda:1 compute")
    thread.start()
    thread.join()
    return came[0]


def test_calls_from_a_function_on_a_gpu(machine: Machine) -> None:
    machine.has(2)
    for given in ({}, {"processes": 3}, {"device": "auto"}, {"device": "cpu"}):
        found = within_a_gpu(lambda given=given: chosen(**given))  # type: ignore[misc]
        assert (found.name, found.reason) == ("serial", "called from a function on cuda:1")
    refused = within_a_gpu(lambda: chosen(device="cuda"))
    assert isinstance(refused, DeviceError)
    assert "a function on cuda:1" in str(refused)
    assert within_a_gpu(lambda: chosen(executor="threads")).name == "threads"


def test_calls_from_a_worker_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(2)
    monkeypatch.setenv("GPUBLOCKS_DEPTH", "1")
    assert chosen().name == chosen(device="auto").name == "serial"
    with pytest.raises(DeviceError, match="from a worker process"):
        chosen(device="cuda:0")


# --- saying so ---------------------------------------------------------------------------------


def test_a_gpu_that_cannot_be_used_is_told_once(machine: Machine) -> None:
    machine.has(1, usable=False)
    with pytest.warns(RuntimeWarning, match="no GPU is used: CuPy is not installed: pip") as caught:
        bp.plan(np.sqrt, np.zeros(3))
    assert [told.filename for told in caught] == [__file__]
    assert "no GPU is used" in bp.plan(np.sqrt, np.zeros(3)).executor_reason
    bp.process(np.sqrt, np.zeros(3), processes="serial")


def test_a_gpu_that_is_not_there_is_told_to_who_asks(machine: Machine) -> None:
    reason = bp.plan(np.sqrt, np.zeros(3)).executor_reason
    assert "no NVIDIA driver found (libnvidia-ml.so.1): install one" in reason
    bp.plan(np.sqrt, np.zeros(3), device="auto", processes=2)
    bp.plan(np.sqrt, np.zeros(3), device="auto", executor="serial")
    with pytest.warns(RuntimeWarning, match="no GPU is used: no NVIDIA driver found") as caught:
        bp.plan(np.sqrt, np.zeros(3), device="auto")
    assert [told.filename for told in caught] == [__file__]
    bp.plan(np.sqrt, np.zeros(3), device="auto")


def test_no_gpu_is_told_where_none_could_do_it(machine: Machine) -> None:
    machine.has(1, usable=False)
    with warnings.catch_warnings(action="error"):
        bp.plan(lambda block: block, np.zeros(3), function_type="source", device="auto")
        bp.plan(np.sqrt, np.zeros(3), device="cpu")


# --- looking -----------------------------------------------------------------------------------


def test_where_there_is_no_driver_one_looks_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(gpus, "gpus", lambda: looks.append(1) or ())
    for _ in range(3):
        assert chosen().name == POOL
    assert len(looks) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    chosen()
    assert len(looks) == 2


def test_what_is_installed_meanwhile_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(1, usable=False)
    with pytest.warns(RuntimeWarning):
        assert chosen().name == POOL
    monkeypatch.setitem(sys.modules, "cupy", cupy(1))
    assert chosen().name == "cuda"


def test_a_named_gpu_that_nvml_does_not_know_is_looked_for_by_cuda(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy(1))
    assert chosen().name == POOL
    assert chosen(device="cuda").devices == (0,)
    with pytest.raises(DeviceError, match="no cuda:1, only cuda:0"):
        chosen(device="cuda:1")


def test_without_a_gpu_cupy_is_not_imported() -> None:
    code = (
        "import sys, numpy as np\n"
        "from gpublocks import plan\n"
        "reason = plan(np.sqrt, np.zeros(3)).executor_reason\n"
        "assert 'cupy' not in sys.modules, reason\n"
    )
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)


# --- defaults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ({"device": "cpu"}, {}, "processes"),
        ({"device": "cpu"}, {"device": "cuda"}, "cuda"),
        ({"device": "cpu"}, {"executor": "cuda"}, "cuda"),
        ({"device": "cuda"}, {}, "cuda"),
        ({"device": "cuda"}, {"processes": 2}, "cuda"),
        ({"device": "cuda"}, {"device": "cpu"}, "processes"),
        ({"device": "cuda"}, {"executor": "threads"}, "threads"),
        ({"executor": "threads"}, {"device": "cuda"}, "cuda"),
        ({"executor": "threads"}, {"device": "cpu"}, "threads"),
        ({"executor": "threads"}, {"processes": 2}, "processes"),
        ({"executor": "cuda"}, {}, "cuda"),
        ({"executor": "cuda"}, {"device": "cpu"}, "processes"),
        ({"executor": "cuda", "device": "cpu"}, {}, "processes"),
        ({"executor": "serial", "device": "cuda"}, {}, "cuda"),
    ],
    ids=str,
)
@pytest.mark.skipif(not LINUX, reason="worker processes need Linux")
def test_what_is_given_wins_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
    defaults: dict[str, str],
    given: dict[str, Any],
    expected: str,
) -> None:
    for name, value in defaults.items():
        monkeypatch.setattr(bp, f"default_{name}", value)
    asked: list[str] = []

    def note(**arguments: Any) -> Choice:
        executor, device = arguments["executor"], arguments["device"]
        assert agree(executor, device)
        on_gpus = executor == "cuda" or device not in (None, "auto", "cpu")
        asked.append("cuda" if on_gpus else executor or "processes")
        return Choice("serial", 1, "for the test")

    monkeypatch.setattr("gpublocks.arguments.choose", note)
    bp.plan(np.sqrt, np.zeros(3), **given)
    assert asked == [expected]


def test_workers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "machine", SimpleNamespace(cpu_count=lambda: 5))
    assert [count_workers(value) for value in (None, "serial", 3, np.int8(4))] == [5, 1, 3, 4]
