"""Plans for GPUs: what devices have left, what blocks take there, and which blocks are chosen."""

import ast
import json
import re
from dataclasses import replace
from math import prod

import fake_nvml as fake
import numpy as np
import pytest
from fake_nvml import FakeCudaDevice, FakeCupy, FakeGpu, FakeNvml, install
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sizing import check_ranges

from gpublocks import gpus, machine
from gpublocks.budget import SLOTS, Budget, Need, Traffic
from gpublocks.contracts import CellDone
from gpublocks.dividing import common_unit
from gpublocks.drafting import plan_task, replan
from gpublocks.errors import BudgetError, DeviceError, PlanError
from gpublocks.geometry import Region
from gpublocks.gpus import Gpu
from gpublocks.io import new_array
from gpublocks.io.npy import Source
from gpublocks.sizing import Layout, Sizes, device_cost, device_grid, documented_grid
from gpublocks.slots import places, total_bytes
from gpublocks.task import Choice, Task

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
    with pytest.raises(DeviceError, match="no cuda:2: gpublocks info shows"):
        machine.device_budget([0, 2])
    install(monkeypatch, None, None)
    with pytest.raises(DeviceError, match="no cuda:0: nvidia-ml-py is not installed"):
        machine.device_budget([0])
    with pytest.raises(PlanError, match="number of devices is 0"):
        machine.device_budget([])


@pytest.mark.usefixtures("host")
def test_a_device_whose_free_memory_nobody_tells_is_refused(monkeypatch):
    gpu = Gpu(0, "H200", "", 141 * GB, None, "NVML does not tell (Not Supported)", None)
    monkeypatch.setattr(gpus, "gpus", lambda exact, only: (gpu,))
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
    device = slots + traffic.input_bytes(block) + int(per_voxel * block) + fixed
    assert traffic.device_bytes(block, need) == device
    assert traffic.longest_bytes(block) == max(
        region.size * array.dtype.itemsize for region, array in zip(regions, arrays, strict=True)
    )


# --- which blocks are chosen -------------------------------------------------------------------

lengths = st.one_of(st.integers(1, 40), st.integers(100, 3000))
amounts = st.sampled_from([1 << 14, 1 << 18, 1 << 22, 1 << 26, 1 << 30, 1 << 33, 1 << 37, 1 << 45])
needs = st.builds(Need, st.sampled_from([0.0, 4.0, 32.5, 1000.0]), st.sampled_from([0, 10_000]))


@st.composite
def layouts(draw):
    """Return a layout and the traffic of one to three sources and none to two sinks."""
    shape = tuple(draw(st.lists(lengths, min_size=1, max_size=3)))
    axes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    inputs = draw(st.lists(st.sampled_from([1, 2, 4, 8, 12]), min_size=1, max_size=3))
    outputs = draw(st.lists(st.sampled_from([1, 4, 16]), max_size=2))
    layout = Layout(
        shape=shape,
        itemsize=sum(inputs),
        order=draw(st.sampled_from(["C", "F"])),
        axes=tuple(axes),
        overlap=tuple(min(draw(st.integers(0, 64)), shape[axis] - 1) for axis in axes),
        unit=tuple(draw(st.sampled_from([1, 1, 16, 7])) for _ in shape),
        bytes_per_voxel=0.0,
    )
    return layout, traffic_of(shape, inputs, outputs)


def traffic_of(shape, inputs=(4,), outputs=(4,)):
    size = prod(shape)
    return Traffic(size, tuple(size * n for n in inputs), tuple(size * n for n in outputs))


def budget_of(device_bytes, host_bytes=1 << 45, devices=1):
    return Budget(
        host_bytes, devices, reason="<host>", device_bytes=device_bytes, device_reason="<device>"
    )


def largest(grid):
    """Return the voxels of the largest block, looked for."""
    longest = list(grid.shape)
    for axis, split in zip(grid.axes, grid.splits, strict=True):
        longest[axis] = max(hi - lo for lo, hi in map(split.block, range(split.count)))
    return prod(longest)


def smallest(layout):
    """Return the voxels of a block that can be had whatever the units are."""
    lengths = list(layout.shape)
    for axis, overlap in zip(layout.axes, layout.overlap, strict=True):
        lengths[axis] = min(lengths[axis], 2 * overlap + 3 * layout.unit[axis])
    return prod(lengths)


@some
@given(layouts(), needs, amounts, amounts, st.integers(1, 9))
def test_automatic_blocks_fit_devices_and_host(layout_and_traffic, need, on_device, on_host, n):
    layout, traffic = layout_and_traffic
    budget = budget_of(on_device, on_host, n)
    try:
        grid = device_grid(layout, traffic, need, budget)
    except BudgetError:
        block = smallest(layout)
        fits = traffic.device_bytes(block, need) <= on_device
        assert not (fits and traffic.pinned_bytes(block) <= on_host)
        return
    block = largest(grid)
    assert traffic.device_bytes(block, need) <= on_device
    assert traffic.pinned_bytes(block) <= on_host
    check_ranges(grid, layout)
    assert device_grid(layout, traffic, need, budget) == grid


@some
@given(layouts(), st.sampled_from([20_000, 100_000, 3_000_000]))
def test_arrays_of_a_block_are_below_2_gib(layout_and_traffic, itemsize):
    layout, _ = layout_and_traffic
    traffic = traffic_of(layout.shape, (4,), (4, itemsize))
    grid = device_grid(layout, traffic, Need(0), budget_of(1 << 60, 1 << 60))
    longest = traffic.longest_bytes(largest(grid))
    assert longest < 2**31 or traffic.longest_bytes(smallest(layout)) >= 2**31
    assert longest < 2**31 or traffic.longest_bytes(prod(layout.shape)) >= 2**31


@some
@given(
    layouts(), needs, st.lists(amounts, min_size=2, max_size=4), st.integers(1, 5), st.booleans()
)
def test_more_memory_is_never_slower(layout_and_traffic, need, memory, devices, on_host):
    layout, traffic = layout_and_traffic
    costs = []
    for nbytes in sorted(memory):
        fewer = {"host_bytes": nbytes} if on_host else {"device_bytes": nbytes}
        budget = replace(budget_of(1 << 45, devices=devices), **fewer)
        try:
            grid = device_grid(layout, traffic, need, budget)
        except BudgetError:
            costs.append(float("inf"))
        else:
            costs.append(device_cost(grid, layout, traffic, budget))
    assert costs == sorted(costs, reverse=True)


def volume(overlap=16, shape=(1000, 1000, 1000), **changes):
    layout = Layout(shape, 4, "C", (0, 1, 2), (overlap,) * 3, (1, 1, 1), 0.0)
    return replace(layout, **changes), traffic_of(shape)


def grid_of(layout_and_traffic, budget, need=8.0):
    return device_grid(*layout_and_traffic, Need(need), budget)


@pytest.mark.parametrize("overlap", [0, 16])
@pytest.mark.parametrize("devices", range(1, 10))
@pytest.mark.parametrize("on_device", [1 << 27, 1 << 32, 1 << 37])
def test_every_device_is_busy_to_the_end(devices, overlap, on_device):
    cells = len(grid_of(volume(overlap), budget_of(on_device, devices=devices)))
    assert cells >= devices
    assert cells >= 0.9 * devices * -(-cells // devices)


def test_more_devices_get_smaller_blocks():
    sizes = [
        prod(grid_of(volume(), budget_of(1 << 37, devices=devices)).largest)
        for devices in (1, 2, 4, 8)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize(("order", "rows"), [("C", 2), ("F", 0)])
@pytest.mark.parametrize("overlap", [0, 2, 16])
def test_the_fastest_axis_stays_whole(order, rows, overlap):
    grid = grid_of(volume(overlap, order=order), budget_of(1 << 32))
    assert len(grid) > 1
    assert rows not in grid.axes
    if not overlap:
        assert grid.axes == (2 - rows,)


def test_a_small_volume_is_one_block():
    assert len(grid_of(volume(4, (40, 40, 40)), budget_of(1 << 37))) == 1


def test_a_device_that_is_short_of_memory_gets_small_blocks():
    sizes = [
        prod(grid_of(volume(), budget_of(nbytes)).largest) for nbytes in (1 << 24, 1 << 28, 1 << 33)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_a_large_volume_is_more_blocks_than_would_fit_so_that_the_pipeline_fills():
    assert len(grid_of(volume(0), budget_of(1 << 40))) > 10


@pytest.mark.parametrize("on_host", [1 << 27, 1 << 29, 1 << 31])
def test_page_locked_memory_is_shared_out_so_that_all_devices_take_part(on_host):
    given = volume(0)
    grid = grid_of(given, budget_of(1 << 37, on_host, devices=4))
    assert 4 * given[1].pinned_bytes(prod(grid.largest)) <= on_host


def test_fewer_devices_where_the_page_locked_memory_of_all_does_not_fit():
    layout, traffic = volume(0, (1000, 1, 1), unit=(1000, 1, 1))
    pinned = traffic.pinned_bytes(1000)
    grid = device_grid(layout, traffic, Need(0), budget_of(1 << 30, 2 * pinned, devices=4))
    assert len(grid) == 1
    with pytest.raises(
        BudgetError, match=r"16.4 kB of page-locked host memory .* <host> leaves 16.4 kB; use a"
    ):
        device_grid(layout, traffic, Need(0), budget_of(1 << 30, pinned - 1, devices=4))


def test_a_block_that_does_not_fit_a_device_is_refused_with_numbers():
    with pytest.raises(
        BudgetError,
        match=r"the smallest block, of \(\d+, \d+, \d+\) voxels, needs .* MB on the device, but "
        "<device> leaves 10 MB; use a smaller overlap, more memory, or device='cpu'",
    ) as caught:
        grid_of(volume(200), budget_of(10_000_000))
    assert isinstance(caught.value, MemoryError)


# --- plans of tasks ----------------------------------------------------------------------------


def identity(array):
    return array


def hollow(shape, dtype="float32"):
    """Return an array that takes no memory."""
    return np.lib.stride_tricks.as_strided(np.zeros((), dtype), shape, [0] * len(shape))


def task_of(source, *sinks, devices=(0,), function=identity, **changes):
    sources = source if isinstance(source, list) else [source]
    given = {"overlap": 4, "processes": len(devices), **changes.pop("sizes", {})}
    return Task(
        function=function,
        kwargs={},
        function_type="array",
        sources=tuple(Source(array=array) for array in sources),
        sinks=tuple(
            new_array() if sink is None else Source(array=sink) for sink in sinks or (None,)
        ),
        choice=Choice("cuda", len(devices), "device='cuda'", devices=devices),
        sizes=Sizes(**given),
        **{"overlap_known": given["overlap"] is not None, **changes},
    )


def planned(task, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "device_budget", lambda devices, host, device: budget)
        return plan_task(task)


@st.composite
def tasks(draw, **sizes):
    shape = tuple(draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    ndim = len(shape)
    many = draw(st.lists(dtypes, min_size=2, max_size=4))
    sources = [hollow(shape, many[0]), *(hollow((*shape, 2), d) for d in many[2:])]
    sink = draw(st.sampled_from([None, hollow(shape, many[1]), hollow((*shape, 3), many[1])]))
    overlap = [min(draw(st.integers(0, 40)), length - 1) for length in shape]
    return task_of(
        sources,
        sink,
        devices=tuple(range(draw(st.integers(1, 4)))),
        axes=list(range(ndim)),
        sizes={"overlap": overlap, **sizes},
        dtype=draw(st.sampled_from([None, np.dtype("float64")])) if sink is None else None,
        need=draw(st.sampled_from([None, Need(2.5, origin="filter"), Need(9, 777, "filter")])),
    )


def certain(plan):
    return plan.need if plan.need.origin != "default" else Need(0)


@some
@given(tasks(), amounts, amounts)
def test_a_plan_keeps_what_devices_and_host_have(task, on_device, on_host):
    budget = budget_of(on_device, on_host, len(task.choice.devices))
    try:
        plan = planned(task, budget)
    except BudgetError:
        return
    cells = list(plan.grid) if len(plan.grid) < 300 else [plan.grid[0], plan.grid[-1]]
    outs = [(s.shape, s.dtype) for s in task.existing_sinks] or [
        (task.sources[0].shape, task.dtype or task.sources[0].dtype)
    ]
    for cell in cells:
        ins = [(s.shape, s.dtype) for s in task.sources]
        slots = [cell.read_in(shape).size * dtype.itemsize for shape, dtype in (*ins, *outs)]
        need = plan.need.of(cell.read_in(plan.grid.shape).size) + sum(slots[: len(ins)])
        assert 2 * sum(slots) + need <= plan.device_peak_bytes <= on_device
        assert 2 * sum(slots) * len(plan.devices) <= plan.peak_bytes <= on_host
        assert max(slots) < 2**31
    assert plan.devices == task.choice.devices[: len(plan.devices)]
    assert 1 <= len(plan.devices) <= len(plan.grid)
    assert plan.budget.device_bytes == on_device
    assert planned(task, budget) == plan


@some
@given(tasks(size_max=50, optimization=False), amounts, amounts)
def test_sizes_that_are_given_are_kept_or_refused_with_some_that_fit(task, on_device, on_host):
    task = replace(task, sizes=replace(task.sizes, overlap=2))
    if any(length < 3 for length in task.sources[0].shape):
        return
    budget = budget_of(on_device, on_host, len(task.choice.devices))
    try:
        plan = planned(task, budget)
    except BudgetError as error:
        message = str(error)
    else:
        assert plan.sizing in ("as given", "one block")
        shape = task.sources[0].shape
        unit = common_unit(plan.units, len(shape))
        assert plan.grid == documented_grid(shape, task.axes, task.sizes, unit)
        assert plan.traffic.device_bytes(plan.voxels, certain(plan)) <= on_device
        assert plan.peak_bytes <= on_host
        return
    advice = re.search(r"use size_max=(\S+|\[.*?\]) on ax[ei]s (\S+|\[.*?\])$", message)
    if advice is None:
        assert message.endswith(
            "use smaller blocks, or give overlap or halo without sizes, which are then chosen"
        )
        return
    sizes = replace(task.sizes, size_max=ast.literal_eval(advice[1]))
    plan = planned(replace(task, sizes=sizes), budget)
    assert plan.traffic.device_bytes(plan.voxels, certain(plan)) <= on_device


def fixed_sizes(**changes):
    """Return a task with ten blocks, whose bytes are a multiple of 512."""
    sizes = {"size_max": 128, "overlap": 0, "optimization": False}
    return task_of(hollow((1280, 100, 100)), sizes=sizes, **changes)


BLOCK = 128 * 100 * 100
SLOTS_BYTES = 2 * (4 * BLOCK + 4 * BLOCK)
CERTAIN_BYTES = SLOTS_BYTES + 4 * BLOCK


def test_what_is_only_guessed_of_a_function_refuses_no_sizes():
    plan = planned(fixed_sizes(), budget_of(CERTAIN_BYTES))
    assert len(plan.grid) == 10
    assert plan.device_peak_bytes == CERTAIN_BYTES + 32 * BLOCK
    assert plan.peak_origin == "estimated"


def test_slots_that_do_not_fit_a_device_are_refused():
    with pytest.raises(
        BudgetError,
        match=r"one block of \(128, 100, 100\) voxels needs 25.6 MB on the device \(3 x in "
        r"5.12 MB \+ 2 x out 5.12 MB\), but <device> leaves 25.5 MB; use size_max=127 on axis 0",
    ):
        planned(fixed_sizes(), budget_of(CERTAIN_BYTES - 100_000))


def test_a_function_that_is_known_to_take_too_much_is_refused():
    task = fixed_sizes(need=Need(10, origin="filter"))
    assert len(planned(task, budget_of(CERTAIN_BYTES + 10 * BLOCK)).grid) == 10
    with pytest.raises(
        BudgetError,
        match=r"needs 38.4 MB on the device \(.* \+ function 10 B per voxel\), but <device> leaves "
        "20 MB; use size_max=66 on axis 0",
    ):
        planned(task, budget_of(20 * 10**6))


def test_the_budget_wins_over_optimising_for_devices():
    task = fixed_sizes(devices=(0, 1, 2))
    optimised = {"optimization": True, "optimization_fix": "increase"}
    task = replace(task, sizes=replace(task.sizes, **optimised))
    assert len(planned(task, budget_of(1 << 40, devices=3)).grid) == 9
    assert len(planned(task, budget_of(CERTAIN_BYTES, devices=3)).grid) == 10


def test_no_size_is_advised_that_does_not_fit():
    task = task_of(hollow((1200,), "uint8"), sizes={"size_max": 1200, "overlap": 0})
    with pytest.raises(BudgetError, match=r"<device> leaves 5 kB; use smaller blocks, or give"):
        planned(task, budget_of(5_000))


def test_page_locked_memory_decides_how_many_devices_take_part():
    task = fixed_sizes(devices=(3, 1, 0))
    plan = planned(task, budget_of(1 << 40, 2 * SLOTS_BYTES + 1, 3))
    assert plan.devices == (3, 1)
    assert plan.budget.workers == 2
    with pytest.raises(
        BudgetError,
        match=r"needs 20.5 MB of page-locked host memory for one device .* <host> leaves 5.12 MB; "
        "use size_max=32 on axis 0",
    ):
        planned(task, budget_of(1 << 40, SLOTS_BYTES // 4, 3))


def test_no_more_devices_than_blocks():
    task = task_of(hollow((10, 10)), devices=(0, 1, 2), one_block=True)
    plan = planned(task, budget_of(1 << 40, devices=3))
    assert len(plan.grid) == 1
    assert plan.devices == (0,)


@pytest.mark.parametrize(
    ("changes", "itemsize"),
    [({}, 2), ({"dtype": np.dtype("float64")}, 8), ({"declared": "complex64"}, 8)],
)
def test_new_sinks_are_expected_to_be_of_the_type_that_is_known(changes, itemsize):
    def function(array):
        raise AssertionError("planning calls nothing")

    if "declared" in changes:
        function.result_dtype = lambda dtype: changes["declared"]
    dtype = changes.get("dtype")
    task = task_of(hollow((64, 64), "uint16"), None, None, function=function, dtype=dtype)
    traffic = planned(task, budget_of(1 << 40)).traffic
    assert traffic == Traffic(64 * 64, (64 * 64 * 2,), (64 * 64 * itemsize,) * 2)


def test_without_sinks_nothing_comes_back_through_slots():
    task = replace(task_of(hollow((64, 64))), sinks=(), return_result=True)
    assert planned(task, budget_of(1 << 40)).traffic.outputs == ()


def test_an_empty_volume_is_planned():
    plan = planned(task_of(hollow((0, 5))), budget_of(1 << 20))
    assert (plan.device_peak_bytes, plan.peak_bytes) == (0, 0)
    assert plan.devices == (0,)


def test_a_plan_for_devices_prints_itself():
    task = fixed_sizes(devices=(0, 1), need=Need(10, 5000, origin="filter"))
    plan = planned(task, budget_of(10**9, 10**8, 2))
    rows = [(name, text) for name, text in plan.rows() if name in MEMORY]
    assert rows == [
        ("host peak", "41 MB of page-locked memory (estimated)"),
        ("", "= 2 x 2 x (in 5.12 MB + out 5.12 MB)"),
        ("host limit", "100 MB (<host>)"),
        ("device peak", "38.4 MB on each of cuda:0, cuda:1 (estimated)"),
        ("", "= 3 x in 5.12 MB + 2 x out 5.12 MB + function 10 B x 1280000 voxels + 5 kB"),
        ("device limit", "1 GB (<device>)"),
    ]
    assert dict(plan.rows())["executor"] == "cuda, 2 at once: device='cuda'"
    numbers = plan.to_dict()
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["devices"] == [0, 1]
    assert numbers["device_peak_bytes"] == CERTAIN_BYTES + 10 * BLOCK + 5000
    assert numbers["device_bytes"] == 10**9
    assert numbers["device_limit"] == "<device>"
    assert numbers["peak_bytes"] == 2 * SLOTS_BYTES
    one = planned(fixed_sizes(), budget_of(10**9))
    assert dict(one.rows())["device peak"] == "66.6 MB on cuda:0 (estimated)"


MEMORY = ("host peak", "", "host limit", "device peak", "device limit")


@pytest.mark.usefixtures("host")
def test_a_plan_is_made_for_what_is_free_right_now(monkeypatch):
    two_gpus(monkeypatch)
    task = task_of(hollow((400, 1000, 1000)), devices=(0, 1), device_bytes=3 * GB)
    plan = plan_task(replace(task, memory_bytes=GB))
    assert plan.budget.device_bytes == 3 * GB
    assert plan.device_peak_bytes <= 3 * GB
    assert plan.peak_bytes <= plan.budget.host_bytes == GB
    assert plan.sizing == "chosen for throughput and memory of devices"
    two_gpus(monkeypatch, free_b=GB // 10)
    assert plan_task(task).device_peak_bytes <= GB // 10


# --- plans after the first cell ----------------------------------------------------------------


def first_of(plan, per_voxel, dtype=None, shape=()):
    """Return the first cell, done, with what the function took of the device for each voxel."""
    cell = plan.grid[0]
    region = cell.read_in(plan.grid.shape)
    read = region.size * plan.sources[0].dtype.itemsize
    valid = cell.valid_in(plan.grid.shape).shape
    outputs = () if dtype is None else (hollow((*valid, *shape), dtype),)
    peak = None if per_voxel is None else read + int(per_voxel * region.size)
    return CellDone(cell, "cuda:0", 0.0, (1.0, 1.0, 1.0), read, 0, None, outputs, peak)


def automatic(**changes):
    return task_of(hollow((1000, 1000, 1000)), **changes)


def test_what_was_measured_replaces_the_guess():
    task, budget = automatic(), budget_of(1 << 36)
    plan = planned(task, budget)
    found = replan(task, plan, first_of(plan, 30.0))
    assert found.grid is plan.grid
    assert found.need == Need(30.0, origin="measured")
    assert found.peak_origin == "measured"
    assert found.device_peak_bytes < plan.device_peak_bytes


@pytest.mark.parametrize("devices", [(0,), (0, 1, 2)])
def test_a_function_that_takes_more_than_was_guessed_gets_smaller_blocks(devices):
    task, budget = automatic(devices=devices), budget_of(1 << 30, devices=len(devices))
    plan = planned(task, budget)
    found = replan(task, plan, first_of(plan, 500.0))
    assert prod(found.grid.largest) < prod(plan.grid.largest)
    assert found.device_peak_bytes <= 1 << 30
    assert found.need.per_voxel == 500
    assert found.devices == devices
    with pytest.raises(BudgetError, match=r"the smallest block, .* <device> leaves"):
        replan(task, plan, first_of(plan, 1e9))


def test_what_the_driver_takes_for_good_does_not_grow_with_the_block():
    task, budget = automatic(), budget_of(1 << 36)
    plan = planned(task, budget)
    first = replace(first_of(plan, 30.0), outside_bytes=1 << 30)
    need = replan(task, plan, first).need
    assert (need.per_voxel, need.fixed) == (30, 1 << 30)


def test_larger_blocks_are_taken_where_they_are_much_faster():
    task = automatic(sizes={"overlap": 64})
    plan = planned(task, budget_of(1 << 29))
    found = replan(task, plan, first_of(plan, 4.0))
    assert prod(found.grid.largest) > prod(plan.grid.largest)
    assert found.device_peak_bytes <= 1 << 29
    again = replan(task, plan, first_of(plan, 31.0))
    assert again.grid is plan.grid
    layout = Layout((1000,) * 3, 4, "C", (0, 1, 2), (64,) * 3, (1, 1, 1), 0.0)
    costs = [device_cost(p.grid, layout, p.traffic, p.budget) for p in (plan, found)]
    assert costs[1] <= 0.9 * costs[0]


@pytest.mark.parametrize("per_voxel", [0.0, 1000.0])
def test_sizes_that_were_given_stay_whatever_was_measured(per_voxel):
    task, budget = fixed_sizes(), budget_of(CERTAIN_BYTES + 20 * BLOCK)
    plan = planned(task, budget)
    found = replan(task, plan, first_of(plan, per_voxel))
    assert found.grid is plan.grid
    assert found.need == Need(per_voxel, origin="measured")
    task = automatic(return_result=True)
    plan = planned(task, budget_of(1 << 32))
    assert replan(task, plan, first_of(plan, per_voxel)).grid is plan.grid


def test_results_that_are_larger_than_expected_count():
    task, budget = automatic(), budget_of(1 << 40, 1 << 29)
    plan = planned(task, budget)
    found = replan(task, plan, first_of(plan, None, "complex128", (3,)))
    assert found.traffic.outputs == (1000**3 * 16 * 3,)
    assert found.peak_bytes <= 1 << 29
    assert found.need.origin == "default"
    fixed = fixed_sizes()
    plan = planned(fixed, budget_of(CERTAIN_BYTES))
    with pytest.raises(BudgetError, match=r"5.12 MB \+ 2 x out 20.5 MB.* size_max=58 on axis 0"):
        replan(fixed, plan, first_of(plan, 1.0, "complex128"))
    converted = replace(fixed, dtype=np.dtype("float32"))
    assert replan(converted, plan, first_of(plan, 1.0, "complex128")).traffic == plan.traffic


def test_axes_along_which_results_are_shorter_stay_whole():
    task = task_of(hollow((4000, 100, 100)))
    plan = planned(task, budget_of(1 << 40))
    assert plan.grid.axes == (0,)
    projection = replace(first_of(plan, 2000.0), outputs=(hollow((plan.grid[0].valid[0][1], 1)),))
    found = replan(task, plan, projection)
    assert found.grid.axes == (0,)
    tight = replace(plan, budget=budget_of(1 << 27))
    assert replan(task, tight, first_of(plan, 2000.0)).grid.axes != (0,)
    assert replan(task, tight, projection).grid.axes == (0,)


def test_what_was_free_before_the_run_is_the_budget_to_its_end(monkeypatch):
    def unexpected(*args):
        raise AssertionError("slots of this run would count as not free")

    task = automatic()
    plan = planned(task, budget_of(1 << 32))
    monkeypatch.setattr(machine, "device_budget", unexpected)
    assert replan(task, plan, first_of(plan, 500.0)).budget == plan.budget
