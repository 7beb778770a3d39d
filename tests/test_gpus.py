"""Which GPUs are found and what is said where none is, over fakes of NVML and CUDA."""

import subprocess
import sys
from typing import Any

import fake_nvml as fake
import pytest
from fake_nvml import CUDARuntimeError, FakeCudaDevice, FakeCupy, FakeGpu, FakeNvml, install
from hypothesis import given
from hypothesis import strategies as st

from gpublocks import gpus as room
from gpublocks.gpus import Gpu, gpu_status, gpus

A, B, C = [f"{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "abc"]
PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def mask(text: str, **more: str) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": text, **more}


def three_alike() -> FakeNvml:
    """Three equal GPUs that differ in free memory, listed by NVML against their PCI order."""
    return FakeNvml(
        [
            FakeGpu("H200", f"GPU-{C}", (100, 30), bus=3),
            FakeGpu("H200", f"GPU-{A}", (100, 10), bus=1),
            FakeGpu("H200", f"GPU-{B}", (100, 20), bus=2),
        ]
    )


def mixed() -> FakeNvml:
    return FakeNvml(
        [
            FakeGpu("T400", f"GPU-{A}", (4, 3), bus=1),
            FakeGpu("A6000", f"GPU-{B}", (48, 40), bus=2),
        ]
    )


def with_parts() -> FakeNvml:
    """A GPU in MIG mode before a whole one; its first slot is empty."""
    parts = [
        None,
        FakeGpu("A100 MIG 1g.5gb", f"MIG-{B}", (5, 4), instance=7),
        FakeGpu("A100 MIG 2g.10gb", "MIG-bbbb1111", (10, 9), instance=8),
    ]
    return FakeNvml(
        [
            FakeGpu("A100", f"GPU-{A}", fake.NVMLError_NoPermission(), bus=1, parts=parts),
            FakeGpu("H200", f"GPU-{C}", (100, 60), bus=2),
        ]
    )


def told(nvml: FakeNvml, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the first digits of the UUIDs found, or the names where there are none."""
    install(monkeypatch, nvml)
    found = gpus(environ)
    assert [gpu.index for gpu in found] == list(range(len(found)))
    assert nvml.sessions == 0
    return [gpu.uuid[:5] or gpu.name for gpu in found]


# --- without CUDA ------------------------------------------------------------------------------


def test_a_gpu_is_told_as_nvml_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml([FakeGpu("H200", f"GPU-{A}", (100, 60))]))
    assert gpus({}) == (
        Gpu(0, "H200", f"GPU-{A}", 100, 60, "free GPU memory (NVML)", "580.65", False),
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "abc"),
        (PCI, "abc"),
        (mask("2,0"), "ca"),
        (mask(" 1 ,0 "), "ba"),
        (mask("+1"), "b"),
        (mask("1gpu2,2ampere"), "bc"),
        (mask("0,2,-1,1"), "ac"),
        (mask("0,3,1"), "a"),
        (mask("-1"), ""),
        (mask(""), ""),
        (mask("NoDevFiles"), ""),
        (mask("1,1"), ""),
        (mask("9" * 5000), ""),
        (mask(f"GPU-{B},GPU-{A}"), "ba"),
        (mask("GPU-bb"), "b"),
        (mask("GPU-bb,GPU-x,GPU-a"), "b"),
        (mask("GPU-"), ""),
        (mask("GPU-b,GPU-bb"), ""),
        (mask("GPU-b,0"), "b"),
        (mask("0,GPU-b"), "a"),
        (mask("bbbb"), ""),
        (mask("MIG-bbbb"), ""),
    ],
    ids=str,
)
def test_the_mask_is_read_as_cuda_reads_it(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    names = [f"GPU-{digit}" for digit in expected]
    assert told(three_alike(), environ, monkeypatch) == names


def test_a_prefix_that_two_gpus_share_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml([FakeGpu("H200", "GPU-ab1"), FakeGpu("H200", "GPU-ab2", bus=1)])
    assert told(nvml, mask("GPU-ab"), monkeypatch) == []
    assert told(nvml, mask("GPU-ab2,GPU-ab"), monkeypatch) == ["GPU-a"]


def test_a_mask_may_end_in_a_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml([FakeGpu("H200", f"GPU-{A}")])
    assert told(nvml, mask("GPU-a,"), monkeypatch) == ["GPU-a"]
    assert told(nvml, mask("0,"), monkeypatch) == ["GPU-a"]


def test_gpus_of_one_name_may_differ_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(
        [FakeGpu("A100", f"GPU-{A}", (80, 70)), FakeGpu("A100", f"GPU-{B}", (40, 30), bus=1)]
    )
    assert told(nvml, mask("1"), monkeypatch) == ["A100"]
    assert gpus(mask("1"))[0].free_bytes == 30


@given(entries=st.lists(st.sampled_from(["0", "1", "2", "GPU-a", f"GPU-{B}", "x", "-1"])))
def test_any_mask_shows_a_subset_once(entries: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = told(three_alike(), mask(",".join(entries)), monkeypatch)
    assert len(set(found)) == len(found) <= len(entries)
    assert set(found) <= {"GPU-a", "GPU-b", "GPU-c"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["A6000 or T400"] * 2),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, ["A6000 or T400"] * 2),
        (mask("1"), ["A6000 or T400"]),
        (mask("0,2"), ["A6000 or T400"]),
        (mask("1,1"), []),
        (mask("GPU-b"), ["GPU-b"]),
        (PCI, ["GPU-a", "GPU-b"]),
        (mask("1", **PCI), ["GPU-b"]),
    ],
    ids=str,
)
def test_numbers_of_unlike_gpus_are_mapped_by_pci_order_only(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: list[str]
) -> None:
    assert told(mixed(), environ, monkeypatch) == expected


def test_where_it_is_not_known_which_gpu_the_least_memory_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = mixed()
    install(monkeypatch, nvml)
    found = gpus(mask("1"))[0]
    assert (found.total_bytes, found.free_bytes) == (4, 3)
    assert found.limit.startswith("unmapped: ")
    nvml.gpus[1].memory = fake.NVMLError_NotSupported()
    assert gpus(mask("1"))[0].free_bytes is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["A100 MIG 1g.5gb"]),
        (mask("0"), ["H200"]),
        (mask("1"), ["A100 MIG 1g.5gb"]),
        (mask(f"MIG-{B}"), ["A100 MIG 1g.5gb"]),
        (mask("MIG-bbbb1"), ["A100 MIG 2g.10gb"]),
        (mask("MIG-bbbb"), []),
        (mask(f"MIG-bbbb1111,MIG-{B}"), ["A100 MIG 2g.10gb"]),
        (mask(f"MIG-GPU-{A}/8/0"), ["A100 MIG 2g.10gb"]),
        (mask(f"GPU-{A}"), ["A100 MIG 1g.5gb"]),
        (mask(f"GPU-{C}"), ["H200"]),
    ],
    ids=str,
)
def test_of_mig_devices_a_process_sees_one(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: list[str]
) -> None:
    install(monkeypatch, with_parts())
    found = gpus(environ)
    assert [gpu.name for gpu in found] == expected
    assert [gpu.free_bytes for gpu in found if "1g" in gpu.name] in ([4], [])


@pytest.mark.parametrize(
    "error",
    [
        fake.NVMLError_NotSupported(),
        fake.NVMLError_NoPermission(),
        fake.NVMLError_FunctionNotFound(),
    ],
    ids=str,
)
def test_memory_that_nvml_does_not_tell_is_unknown(
    monkeypatch: pytest.MonkeyPatch, error: fake.NVMLError
) -> None:
    install(monkeypatch, FakeNvml([FakeGpu("GB10", f"GPU-{A}", error)]))
    found = gpus({})[0]
    assert (found.name, found.total_bytes, found.free_bytes) == ("GB10", None, None)
    assert found.limit == f"NVML does not tell ({error})"


def test_an_old_driver_without_the_newer_functions_is_asked_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = fake.NVMLError_FunctionNotFound()
    nvml = FakeNvml([FakeGpu("H200", f"GPU-{A}"), FakeGpu("H200", f"GPU-{B}")])
    for name in ("DeviceGetMigMode", "DeviceGetPciInfo", "SystemGetDriverVersion"):
        nvml.faults[f"nvml{name}"] = missing
    install(monkeypatch, nvml)
    assert [(gpu.name, gpu.free_bytes, gpu.driver) for gpu in gpus({})] == [("H200", 60, None)] * 2


def test_gpus_that_may_not_be_opened_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = three_alike()
    nvml.gpus[1].closed = fake.NVMLError_NoPermission()
    assert told(nvml, mask("0"), monkeypatch) == ["GPU-b"]


def test_free_memory_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml([FakeGpu("H200", f"GPU-{A}", [(100, 90), (100, 20)])]))
    assert [gpus({})[0].free_bytes for _ in range(3)] == [90, 20, 20]


# --- with CUDA ---------------------------------------------------------------------------------


def cuda(digits: str, free: int = 60, **more: Any) -> FakeCudaDevice:
    return FakeCudaDevice(f"CUDA {digits[0]}", digits.replace("-", ""), (free, 100), **more)


def test_cuda_tells_which_gpu_is_which_and_the_least_free_memory_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml, cupy = three_alike(), FakeCupy([cuda(C, 40), cuda(A, 40)])
    install(monkeypatch, nvml, cupy)
    assert gpus({}, exact=True) == (
        Gpu(0, "CUDA c", f"GPU-{C}", 100, 30, "free GPU memory (NVML)", "580.65"),
        Gpu(1, "CUDA a", f"GPU-{A}", 100, 10, "free GPU memory (NVML)", "580.65"),
    )
    cupy.devices[0].memory = (20, 100)
    found = gpus({}, exact=True)[0]
    assert (found.free_bytes, found.limit) == (20, "free GPU memory (CUDA)")
    assert gpu_status({}, exact=True) == ""
    assert (nvml.sessions, cupy.current) == (0, [0])


def test_an_integrated_gpu_has_the_memory_that_the_host_can_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNvml([FakeGpu("GB10", f"GPU-{A}", fake.NVMLError_NotSupported())])
    install(monkeypatch, nvml, FakeCupy([cuda(A, 5, integrated=True)]))
    monkeypatch.setattr(room, "_host_available", lambda: 80)
    found = gpus({}, exact=True)[0]
    assert (found.total_bytes, found.free_bytes, found.integrated) == (100, 80, True)
    assert found.limit == "available host memory, which the GPU shares"


@pytest.mark.parametrize("own", [True, False], ids=["uuid of the part", "uuid of the parent"])
def test_the_memory_of_a_mig_device_is_never_that_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    nvml = with_parts()
    nvml.gpus[0].memory = (100, 1)
    install(monkeypatch, nvml, FakeCupy([cuda(B if own else A, 6)]))
    found = gpus({}, exact=True)[0]
    assert found.uuid == (f"MIG-{B}" if own else f"GPU-{A}")
    assert found.free_bytes == (4 if own else 6)


@pytest.mark.parametrize(
    "nvml",
    [
        None,
        FakeNvml(faults={"nvmlInit": fake.NVMLError_LibraryNotFound()}),
        FakeNvml(),
        FakeNvml([FakeGpu("H200", f"GPU-{A}", fake.NVMLError_NoPermission())]),
        FakeNvml(
            [FakeGpu("H200", f"GPU-{A}", (100, 1))],
            faults={"nvmlDeviceGetHandleByUUID": fake.NVMLError_FunctionNotFound()},
        ),
    ],
    ids=["no pynvml", "no library", "no device", "no permission", "no function"],
)
def test_where_nvml_fails_cuda_is_enough(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    install(monkeypatch, nvml, FakeCupy([cuda(A, 60)]))
    found = gpus({}, exact=True)[0]
    assert (found.uuid, found.free_bytes) == (f"GPU-{A}", 60)
    assert found.limit == "free GPU memory (CUDA)"
    assert gpu_status({}, exact=True) == ""


def test_a_gpu_that_cuda_cannot_use_has_no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakeCudaDevice("H200", B.replace("-", ""), CUDARuntimeError(2, "out of memory"))
    install(monkeypatch, three_alike(), FakeCupy([cuda(A), broken]))
    found = gpus({}, exact=True)
    assert [gpu.free_bytes for gpu in found] == [10, 0]
    assert found[1].limit == "CUDA cannot use it (out of memory)"


def test_cuda_is_asked_only_where_exact_answers_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    install(monkeypatch, three_alike(), FakeCupy([], fault=fault))
    assert len(gpus({})) == 3
    assert gpu_status({}) == ""
    assert gpus({}, exact=True) == ()
    assert gpu_status({}, exact=True) == f"CUDA does not start ({fault})"


# --- why none is used --------------------------------------------------------------------------


ONE = FakeGpu("H200", f"GPU-{A}")
STARTS = FakeCupy([cuda(A)])


@pytest.mark.parametrize(
    ("nvml", "cupy", "environ", "text"),
    [
        (None, STARTS, {}, "nvidia-ml-py is not installed: pip install nvidia-ml-py"),
        (
            FakeNvml(faults={"nvmlInit": fake.NVMLError_LibraryNotFound()}),
            STARTS,
            {},
            "no NVIDIA driver found (libnvidia-ml.so.1): install one if there is a GPU",
        ),
        (
            FakeNvml(faults={"nvmlInit": fake.NVMLError_DriverNotLoaded()}),
            STARTS,
            {},
            "the NVIDIA driver does not answer (Driver Not Loaded)",
        ),
        (
            FakeNvml(faults={"nvmlDeviceGetCount": fake.NVMLError_NoPermission()}),
            STARTS,
            {},
            "the NVIDIA driver does not answer (Insufficient Permissions)",
        ),
        (FakeNvml(), STARTS, {}, "no NVIDIA GPU found"),
        (
            FakeNvml([FakeGpu("H200", "", closed=fake.NVMLError_NoPermission())]),
            STARTS,
            {},
            "no NVIDIA GPU can be opened (Insufficient Permissions)",
        ),
        (
            FakeNvml([FakeGpu("A100", f"GPU-{A}", parts=[None])]),
            STARTS,
            {},
            "the GPU is in MIG mode and has no MIG device: create one with nvidia-smi mig",
        ),
        (
            FakeNvml([ONE]),
            STARTS,
            mask("-1"),
            "CUDA_VISIBLE_DEVICES='-1' hides the H200 of this machine",
        ),
        (
            three_alike(),
            STARTS,
            mask(""),
            "CUDA_VISIBLE_DEVICES='' hides all 3 GPUs of this machine",
        ),
        (
            FakeNvml([ONE], cuda=13010),
            None,
            {},
            "CuPy is not installed: pip install 'gpublocks[cuda13]'",
        ),
        (
            FakeNvml([ONE], cuda=12040),
            None,
            {},
            "CuPy is not installed: pip install 'gpublocks[cuda12]'",
        ),
        (
            FakeNvml([ONE], cuda=11080),
            STARTS,
            {},
            "the NVIDIA driver is too old: it runs CUDA 11.8, CuPy needs 12.0",
        ),
        (
            FakeNvml([ONE], cuda=12040),
            FakeCupy([], driver=12040),
            {},
            "the NVIDIA driver runs CUDA 12.4, too old for this CuPy (13.2): "
            "update it, or replace CuPy: pip install 'gpublocks[cuda12]'",
        ),
        (
            FakeNvml([ONE]),
            FakeCupy([], driver=0),
            {},
            "the CUDA part of the NVIDIA driver is missing (libcuda.so.1)",
        ),
        (
            FakeNvml([ONE]),
            FakeCupy([], libraries=False),
            {},
            "CuPy finds no CUDA libraries (NVRTC): pip install 'cupy-cuda13x[ctk]'",
        ),
        (FakeNvml([ONE]), object(), {}, "CuPy cannot be imported ('object' object has no attribu"),
        (FakeNvml([ONE]), STARTS, {}, ""),
        (FakeNvml([ONE], cuda=13000), FakeCupy([cuda(A)], built=13020, driver=13000), {}, ""),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("exact", [False, True])
def test_one_line_says_why_no_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch,
    nvml: Any,
    cupy: Any,
    environ: dict[str, str],
    text: str,
    exact: bool,
) -> None:
    if exact and cupy is STARTS:
        cupy = FakeCupy([cuda(A)]) if not text else FakeCupy([])
    install(monkeypatch, nvml, cupy)
    status = gpu_status(environ, exact=exact)
    assert status.startswith(text)
    assert bool(status) == bool(text)
    assert "\n" not in status
    if text and exact:
        assert gpus(environ, exact=True) == ()


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, three_alike(), STARTS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert [gpu.uuid for gpu in gpus()] == [f"GPU-{B}"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_status().startswith("CUDA_VISIBLE_DEVICES=''")


def test_looking_without_cuda_imports_no_cupy() -> None:
    code = (
        "import sys; from gpublocks.gpus import gpus; found = gpus();"
        "assert not {'cupy', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_this_machine() -> None:
    found, status = gpus(), gpu_status()
    assert found or status
    assert "\n" not in status
