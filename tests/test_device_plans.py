"""Plans for GPUs: what devices have left, what blocks take there, and which blocks are chosen."""

from math import prod

import fake_nvml as fake
import numpy as np
import pytest
from fake_nvml import FakeCudaDevice, FakeCupy, FakeGpu, FakeNvml, install
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks import gpus, machine
from gpublocks.budget import SLOTS, Need, Traffic
from gpublocks.errors import DeviceError, PlanError
from gpublocks.geometry import Region
from gpublocks.gpus import Gpu
from gpublocks.io.npy import Source
from gpublocks.slots import places, total_bytes

some = settings(max_examples=100, deadline=None)
GB = 10**9
A, B = "a" * 32, "b" * 32


def uuid(digits):
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


# --- what there is -----------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch):
    """100 GB of host memory are available."""
    monkeypatch.setattr(
        machine, "memory_available", lambda root: machine.Limit(100 * GB, "available memory")
    )


def two_gpus(monkeypatch, free_a=60 * GB, free_b=40 * GB, told_b=40 * GB, **more):
    """CUDA counts them the other way round than NVML."""
    nvml = FakeNvml(
        [
            FakeGpu("H200", uuid(A), (141 * GB, free_a)),
            FakeGpu("H200", uuid(B), (141 * GB, told_b)),
        ]
    )
    cuda = [
        FakeCudaDevice("H200", B, (free_b, 141 * GB), **more),
        FakeCudaDevice("H200", A, (free_a, 141 * GB)),
    ]
    install(monkeypatch, nvml, FakeCupy(cuda))


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("devices", "free", "reason"),
    [
        ([1], 60, "80 % of free GPU memory (CUDA) on cuda:1, H200 (60 GB)"),
        ([0], 40, "80 % of free GPU memory (CUDA) on cuda:0, H200 (40 GB)"),
        ([1, 0], 40, "80 % of free GPU memory (CUDA) on cuda:0, H200 (40 GB)"),
    ],
)
def test_the_device_with_the_least_memory_decides(monkeypatch, devices, free, reason):
    two_gpus(monkeypatch)
    budget = machine.device_budget(devices)
    assert budget.device_bytes == free * GB * 80 // 100
    assert budget.device_reason == reason
    assert budget.workers == len(devices)


@pytest.mark.usefixtures("host")
def test_free_memory_is_the_least_that_anybody_tells(monkeypatch):
    two_gpus(monkeypatch, told_b=10 * GB)
    budget = machine.device_budget([0, 1])
    assert budget.device_bytes == 8 * GB
    assert budget.device_reason == "80 % of free GPU memory (NVML) on cuda:0, H200 (10 GB)"


@pytest.mark.usefixtures("host")
def test_free_memory_is_read_anew_for_each_run(monkeypatch):
    two_gpus(monkeypatch)
    assert machine.device_budget([0]).device_bytes == 32 * GB
    two_gpus(monkeypatch, free_b=20 * GB)
    assert machine.device_budget([0]).device_bytes == 16 * GB


@pytest.mark.usefixtures("host")
def test_a_limit_on_devices_bounds_what_is_taken_of_each(monkeypatch):
    two_gpus(monkeypatch)
    budget = machine.device_budget([0, 1], device_memory=39 * GB)
    assert budget.device_bytes == 39 * GB
    assert budget.device_reason.startswith("memory={'device': '39GB'} on cuda:0, H200")
    budget = machine.device_budget([0, 1], device_memory=50 * GB)
    assert budget.device_bytes == 40 * GB
    assert budget.device_reason == (
        "free GPU memory (CUDA) on cuda:0, H200 (40 GB), below memory={'device': '50GB'} on "
        "cuda:0, H200"
    )


@pytest.mark.usefixtures("host")
def test_page_locked_memory_takes_a_quarter_unless_told_otherwise(monkeypatch):
    two_gpus(monkeypatch)
    budget = machine.device_budget([0, 1])
    assert budget.host_bytes == 25 * GB
    assert budget.reason == "25 % of available memory (100 GB)"
    budget = machine.device_budget([0], 50 * GB)
    assert (budget.host_bytes, budget.reason) == (50 * GB, "memory=50GB")
    budget = machine.device_budget([0], 200 * GB)
    assert budget.host_bytes == 100 * GB
    assert budget.reason == "available memory (100 GB), below memory=200GB"


@pytest.mark.usefixtures("host")
def test_a_gpu_with_the_memory_of_the_host_leaves_room_for_page_locked_memory(monkeypatch):
    two_gpus(monkeypatch, integrated=True)
    monkeypatch.setattr(gpus, "_host_available", lambda: 100 * GB)
    budget = machine.device_budget([0], 30 * GB)
    assert (budget.host_bytes, budget.device_bytes) == (30 * GB, 56 * GB)
    assert machine.device_budget([0], 30 * GB, 90 * GB).device_bytes == 70 * GB


@pytest.mark.usefixtures("host")
def test_a_device_that_is_not_there(monkeypatch):
    two_gpus(monkeypatch)
    with pytest.raises(DeviceError, match=r"no cuda:2: CUDA shows cuda:0 \(H200\), cuda:1 \(H200"):
        machine.device_budget([0, 2])
    install(monkeypatch, None, None)
    with pytest.raises(DeviceError, match="no cuda:0: nvidia-ml-py is not installed"):
        machine.device_budget([0])
    with pytest.raises(PlanError, match="number of devices is 0"):
        machine.device_budget([])


@pytest.mark.usefixtures("host")
def test_a_device_whose_free_memory_nobody_tells_is_refused(monkeypatch):
    gpu = Gpu(0, "H200", "", 141 * GB, None, "NVML does not tell (Not Supported)", None)
    monkeypatch.setattr(gpus, "gpus", lambda exact: (gpu,))
    with pytest.raises(DeviceError, match=r"cuda:0, H200.*NVML does not tell .*device='cpu'"):
        machine.device_budget([0])
    lost = fake.CUDARuntimeError(46, "devices unavailable")
    monkeypatch.undo()
    install(monkeypatch, FakeNvml([]), FakeCupy([FakeCudaDevice("H200", A, lost)]))
    with pytest.raises(DeviceError, match=r"CUDA cannot use it \(devices unavailable\)"):
        machine.device_budget([0])


# --- what a block takes ------------------------------------------------------------------------

dtypes = st.sampled_from(["uint8", "uint16", "float32", "complex128"])


@st.composite
def volumes(draw):
    """Return arrays of the same lengths along the first axes, and the lengths of a block."""
    shape = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    arrays = []
    for _ in range(draw(st.integers(1, 4))):
        more = draw(st.lists(st.integers(1, 3), max_size=2))
        strides = [0] * (len(shape) + len(more))
        base = np.zeros((), draw(dtypes))
        array = np.lib.stride_tricks.as_strided(base, (*shape, *more), strides)
        arrays.append(Source(array=array))
    return arrays, [draw(st.integers(1, length)) for length in shape]


@some
@given(volumes(), st.integers(0, 3), st.sampled_from([0.0, 4.0, 32.5]), st.integers(0, 1000))
def test_slots_hold_what_the_pipeline_puts_into_them(volumes, cut, per_voxel, fixed):
    arrays, lengths = volumes
    sources, sinks = arrays[: max(1, cut)], arrays[max(1, cut) :]
    regions = [Region.whole((*lengths, *array.shape[len(lengths) :])) for array in arrays]
    traffic = Traffic(
        prod(sources[0].shape),
        tuple(prod(s.shape) * s.dtype.itemsize for s in sources),
        tuple(prod(s.shape) * s.dtype.itemsize for s in sinks),
    )
    block = regions[0].size
    inputs = total_bytes(places(sources, regions[: len(sources)]))
    outputs = total_bytes(places(sinks, regions[len(sources) :]))
    assert inputs <= traffic.input_bytes(block) < inputs + 512
    assert outputs <= traffic.output_bytes(block) < outputs + 512
    slots = SLOTS * (traffic.input_bytes(block) + traffic.output_bytes(block))
    assert traffic.pinned_bytes(block) == slots
    need = Need(per_voxel, fixed)
    assert traffic.device_bytes(block, need) == slots + int(per_voxel * block) + fixed
    assert traffic.longest_bytes(block) == max(
        region.size * array.dtype.itemsize for region, array in zip(regions, arrays, strict=True)
    )
