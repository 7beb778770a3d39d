"""Runs on GPUs that fail by script: what CPUs take over, what is told, and that all is right."""

import functools
import os
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from fake_machine import Machine
from fake_nvml import CUDARuntimeError
from simulated_device import SimulatedDevice
from simulated_executor import Devices, SimulatedExecutor, uneven
from simulated_threads import SimulatedThreads

import gpublocks.block_processing as bp
from gpublocks import executors, io, machine
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRefused,
    CellRetried,
    CellStarted,
    Event,
)
from gpublocks.errors import (
    BlockError,
    BudgetError,
    DeviceError,
    DeviceMemoryError,
    RunCancelledError,
    SourceError,
)
from gpublocks.geometry import Cell
from gpublocks.job import Job, execute, explained
from gpublocks.running import EventRun

Array = np.ndarray[Any, Any]
Script = Callable[[Job, Cell], Exception | None]

SHAPE = (24, 10, 6)
SIZES = {"size_max": 6, "overlap": 2, "optimization": False}
IMAGE = np.random.default_rng(3).integers(0, 1000, SHAPE, dtype=np.uint16)
WHOLE = ndi.minimum_filter(IMAGE, 3)
BLOCKS = 6


def smallest(block: Array) -> Array:
    return ndi.minimum_filter(block, 3)


class LostError(Exception):
    """In a script: the device is lost."""


class Gpus:
    """In the place of the executor of GPUs: computes with NumPy, and fails by a script.

    As the executor does, it refuses what it has no memory for, or fails; and what it had in
    flight when it was lost, after which it takes no more cells.
    """

    name = "cuda"

    def __init__(self, script: Script, devices: tuple[int, ...], refuse: bool) -> None:
        self._script, self._refuse = script, refuse
        self._worker = f"cuda:{devices[0]}"
        self.workers = len(devices)

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        return EventRun(functools.partial(self._drive, job, cells))

    def _drive(
        self, job: Job, cells: Iterable[Cell], run: EventRun
    ) -> Generator[Event, None, None]:
        for cell in cells:
            if run.cancelled:
                return
            yield CellStarted(cell, self._worker)
            trouble = self._script(job, cell)
            if trouble is None:
                yield execute(job, cell, self._worker, lambda call: call())
            elif self._refuse and isinstance(trouble, DeviceMemoryError | LostError):
                lost = DeviceError(f"{self._worker} is lost for this process: {trouble}")
                yield CellRefused(
                    cell, self._worker, lost if isinstance(trouble, LostError) else trouble
                )
            else:
                stage = "load" if isinstance(trouble, SourceError) else "compute"
                error = explained(trouble, job, cell, stage)
                yield CellFailed(cell, self._worker, stage, error)
            if isinstance(trouble, LostError):
                return


class Room:
    """A machine with GPUs that follow a script, and what was asked of executors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
        self.machine = machine
        self.script: Script = lambda job, cell: None
        self.devices: Devices | None = None
        """Simulated devices for the executor itself, in place of a script."""
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.computed: list[tuple[int, bool]] = []
        """Cells that GPUs were given, and whether they were only to show what comes of them."""
        self.events: list[Event] = []
        self._make = executors.make
        monkeypatch.setattr(executors, "make", self.make)

    def make(self, name: str, workers: int, **options: Any) -> Any:
        self.made.append((name, {"workers": workers, **options}))
        if name != "cuda":
            return self._make(name, workers, **options)

        if self.devices is not None:
            return SimulatedExecutor(self.devices, refuse=options["refuse"])

        def script(job: Job, cell: Cell) -> Exception | None:
            self.computed.append((cell.number, job.keep_outputs))
            return self.script(job, cell)

        return Gpus(script, options["devices"], options["refuse"])

    def fails(self, error: Exception, *numbers: int) -> None:
        """Let GPUs fail at cells; at all cells if no numbers are given."""

        def script(job: Job, cell: Cell) -> Exception | None:
            return error if cell.number in numbers or not numbers else None

        self.script = script

    def process(
        self, function: Any = smallest, source: Any = IMAGE, *args: Any, **given: Any
    ) -> Any:
        """Call `process` and note the events."""
        self.events.clear()
        return bp.process(
            function, source, *args, **{**SIZES, "progress": self.events.append, **given}
        )

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.made]

    def of(self, kind: type[Event]) -> list[int]:
        """Return the numbers of the cells of events."""
        return [event.cell.number for event in self.events if isinstance(event, kind)]  # type: ignore[union-attr]

    def sane(self, *, failed: bool = False) -> None:
        """Check that each cell was done once, after it was begun."""
        if not failed:
            assert sorted(self.of(CellDone)) == list(range(BLOCKS))
            assert self.of(CellFailed) == []
        for n, event in enumerate(self.events):
            if isinstance(event, CellDone):
                begun = [e.cell.number for e in self.events[:n] if isinstance(e, CellStarted)]
                assert event.cell.number in begun


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    fakes = Machine(monkeypatch)
    fakes.has(2)
    # Two workers are enough, and soon there.
    monkeypatch.setattr("gpublocks.choosing.machine.cpu_count", lambda: 2)
    return Room(monkeypatch, fakes)


LOST = LostError("fell off the bus")
OUT_OF_MEMORY = DeviceMemoryError("cuda:0 has not enough memory")
NOT_ON_GPUS = "'smallest' does not run on cuda:0"


# --- all goes well -----------------------------------------------------------------------------


def test_the_first_cell_is_tried_alone(room: Room) -> None:
    assert np.array_equal(room.process(), WHOLE)
    assert room.computed == [(0, True), *[(n, False) for n in range(1, BLOCKS)]]
    assert room.names == ["cuda", "cuda"]
    assert [made["devices"] for _, made in room.made] == [(0,), (0, 1)]
    assert all(made["refuse"] for _, made in room.made)
    assert all(made["device_bytes"] > 10**9 for _, made in room.made)
    room.sane()


def test_a_named_gpu_does_all_or_fails(room: Room) -> None:
    sink = np.zeros_like(IMAGE)
    assert room.process(smallest, IMAGE, sink, device="cuda:1") is sink
    assert np.array_equal(sink, WHOLE)
    assert room.computed == [(n, False) for n in range(BLOCKS)]
    assert [(made["devices"], made["refuse"]) for _, made in room.made] == [((1,), False)]


# --- a first cell that fails -------------------------------------------------------------------


def sinks(folder: Path) -> dict[str, Any]:
    np.save(folder / "old.npy", np.full_like(IMAGE, 7))
    return {
        "none": None,
        "array": np.full_like(IMAGE, 7),
        "new file": folder / "new.npy",
        "file": folder / "old.npy",
        "several": [np.full_like(IMAGE, 7), folder / "new.npy"],
    }


def contents(result: Any) -> list[Array]:
    if isinstance(result, list):
        return [array for item in result for array in contents(item)]
    return [np.load(result) if isinstance(result, Path) else result]


@pytest.mark.parametrize("kind", ["none", "array", "new file", "file", "several"])
def test_what_does_not_run_on_a_gpu_runs_on_cpus(room: Room, tmp_path: Path, kind: str) -> None:
    def both(block: Array) -> Any:
        result = smallest(block)
        return [result, result] if kind == "several" else result

    room.fails(TypeError("implicit conversion\nof an array"))
    with pytest.warns(RuntimeWarning, match="'both' does not run on cuda:0") as caught:
        result = room.process(both, IMAGE, sinks(tmp_path)[kind])
    assert all(np.array_equal(array, WHOLE) for array in contents(result))
    assert room.computed == [(0, True)]
    assert room.names == ["cuda", "processes", "processes"]
    assert [told.filename for told in caught] == [__file__]
    text = str(caught[0].message)
    for part in ("(TypeError: implicit conversion)", "arrays.ndimage(x)", "device='cpu'"):
        assert part in text
    assert "\n" not in text
    assert len(room.of(CellRetried)) == 1
    room.sane()


def test_results_lie_where_those_who_write_them_see_them(room: Room) -> None:
    assert io.sma.find(room.process()) is None
    room.fails(TypeError("no"))
    with pytest.warns(RuntimeWarning, match=NOT_ON_GPUS):
        assert io.sma.find(room.process()) is not None


def test_values_of_a_run_that_moves(room: Room) -> None:
    room.fails(TypeError("no"))
    with pytest.warns(RuntimeWarning, match="'max' does not run"):
        values = room.process(np.max, IMAGE, return_result=True)
    expected = bp.process(np.max, IMAGE, return_result=True, device="cpu", **SIZES)
    assert values == expected
    assert len(values) == BLOCKS


def test_what_fails_everywhere_is_an_error_of_the_cpu(room: Room, tmp_path: Path) -> None:
    def wrong(block: Array) -> Array:
        raise LookupError("here too")

    room.fails(TypeError("on the GPU"))
    with pytest.raises(LookupError, match="here too") as caught:
        room.process(wrong, IMAGE, tmp_path / "new.npy")
    notes = "\n".join(caught.value.__notes__)
    assert "block 0/6" in notes
    assert "cuda:0 failed before: TypeError: on the GPU" in notes
    assert list(tmp_path.iterdir()) == []
    assert room.of(CellFailed) == [0]


def test_what_cannot_be_read_is_not_tried_again(room: Room) -> None:
    room.fails(SourceError("the disk is gone"))
    with pytest.raises(SourceError, match="the disk is gone"):
        room.process()
    assert room.names == ["cuda"]


def test_a_cell_at_which_several_gpus_are_lost_is_not_tried_again(room: Room) -> None:
    room.fails(DeviceError("2 devices were lost while they computed this block"))
    with pytest.raises(DeviceError, match="2 devices were lost"):
        room.process()
    assert room.names == ["cuda"]


def test_a_later_cell_that_fails_fails_the_run(room: Room) -> None:
    room.fails(TypeError("a rare value"), 2)
    with pytest.raises(TypeError, match="a rare value") as caught:
        room.process()
    assert "block 2/6" in caught.value.__notes__[0]
    assert "processes" not in room.names


def test_a_named_gpu_is_never_replaced(room: Room) -> None:
    for trouble in (TypeError("no"), OUT_OF_MEMORY):
        room.fails(trouble)
        with pytest.raises(type(trouble)):
            room.process(device="cuda", function_type="array", return_result=True)
    assert "processes" not in room.names


def test_a_trial_shows_who_will_compute(room: Room) -> None:
    room.fails(TypeError("no"))
    assert bp.plan(smallest, IMAGE, **SIZES).executor == "cuda"
    with pytest.warns(RuntimeWarning, match=NOT_ON_GPUS):
        plan = bp.plan(smallest, IMAGE, trial=True, **SIZES)
    assert plan.executor == "processes"
    assert plan.executor_reason.endswith("no GPU is used: no")
    assert plan.peak_origin == "measured"


# --- GPUs that leave cells undone --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "array", "new file", "file"])
@pytest.mark.parametrize(
    ("trouble", "numbers", "left"),
    [
        (OUT_OF_MEMORY, (2, 4), 2),
        (LOST, (3,), 3),
        (OUT_OF_MEMORY, (5,), 1),
    ],
    ids=["two refused", "lost midway", "the last one"],
)
def test_cpus_do_what_is_left(
    room: Room, tmp_path: Path, kind: str, trouble: Exception, numbers: tuple[int, ...], left: int
) -> None:
    room.fails(trouble, *numbers)
    with pytest.warns(RuntimeWarning, match=f"^{left} of 6 blocks are computed on CPUs") as caught:
        result = room.process(smallest, IMAGE, sinks(tmp_path)[kind])
    assert np.array_equal(contents(result)[0], WHOLE)
    assert [told.filename for told in caught] == [__file__]
    assert ("fell off the bus" if left == 3 else "not enough memory") in str(caught[0].message)
    assert room.names == ["cuda", "cuda", "processes"]
    assert room.of(CellRefused) == list(numbers)
    room.sane()


def test_values_of_blocks_that_are_left(room: Room) -> None:
    room.fails(LOST, 2)
    with pytest.warns(RuntimeWarning, match="^4 of 6 blocks"):
        values = room.process(np.max, IMAGE, return_result=True)
    assert values == bp.process(np.max, IMAGE, return_result=True, device="cpu", **SIZES)


def test_a_mask_counts_what_is_inside(room: Room, tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[12:] = True
    sink = np.full_like(IMAGE, 7)
    room.fails(OUT_OF_MEMORY, 4)
    with pytest.warns(RuntimeWarning, match=r"^1 of \d blocks"):
        room.process(smallest, IMAGE, sink, mask=mask)
    expected = bp.process(smallest, IMAGE, mask=mask, device="cpu", **SIZES)
    assert np.array_equal(sink, expected)
    assert not sink[0].any()


def test_what_is_left_and_fails_on_cpus_too(room: Room, tmp_path: Path) -> None:
    start = bp.plan(smallest, IMAGE, **SIZES).grid[2].read[0][0]
    corner = IMAGE[start, :, 0].copy()

    def wrong(block: Array) -> Array:
        if np.array_equal(block[0, :, 0], corner):
            raise LookupError("here too")
        return block

    room.fails(OUT_OF_MEMORY, 2)
    with (
        pytest.warns(RuntimeWarning, match="^1 of 6 blocks"),
        pytest.raises(LookupError, match="here too") as caught,
    ):
        room.process(wrong, IMAGE, tmp_path / "new.npy")
    notes = "\n".join(caught.value.__notes__)
    assert "no GPU could do it before: cuda:0 has not enough memory" in notes
    assert list(tmp_path.iterdir()) == []
    room.sane(failed=True)


def test_workers_for_what_is_left_have_the_memory_for_it(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((64, 64, 64), np.float32)
    given = {"halo": 1, "size_max": None, "overlap": None}
    little = machine.Limit(20 * 10**6, "available memory")
    monkeypatch.setattr(machine, "memory_available", lambda *root: little)
    assert bp.plan(smallest, image, halo=1, device="cpu").budget.workers == 2
    room.fails(OUT_OF_MEMORY, 1)
    with pytest.warns(RuntimeWarning, match=r"^1 of \d blocks"):
        room.process(smallest, image, **given)
    assert [made["workers"] for name, made in room.made if name == "processes"] == [1]

    with pytest.raises(BudgetError, match="which no GPU could do, needs") as caught:
        room.process(smallest, image, memory="2MB", **given)
    assert isinstance(caught.value.__cause__, DeviceMemoryError)


# --- no memory for the first cell, or none of the GPU ------------------------------------------


def test_where_not_even_the_first_cell_fits_cpus_do_all(room: Room) -> None:
    room.fails(OUT_OF_MEMORY)
    with pytest.warns(RuntimeWarning, match="^all blocks are computed on CPUs: cuda:0 has"):
        assert np.array_equal(room.process(), WHOLE)
    assert room.names[-2:] == ["processes", "processes"]
    room.sane()
    image = np.zeros((64, 64, 64), np.float32)
    with pytest.raises(BudgetError, match="memory=6MB leaves 6 MB") as caught:
        room.process(smallest, image, size_max="full", memory="6MB")
    assert isinstance(caught.value.__cause__, DeviceMemoryError)


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_first_cell_without_room_is_tried_in_part(room: Room, device: str | None) -> None:
    def script(job: Job, cell: Cell) -> Exception | None:
        large = cell.read_in(SHAPE).shape[0] > 4
        return OUT_OF_MEMORY if large and job.keep_outputs else None

    room.script = script
    assert np.array_equal(room.process(device=device), WHOLE)
    assert [n for n, alone in room.computed if alone] == [0, 0]
    assert [n for n, alone in room.computed if not alone] == list(range(BLOCKS))
    room.sane()


def test_a_gpu_that_is_lost_at_once(room: Room) -> None:
    room.fails(LOST)
    with pytest.warns(RuntimeWarning, match="^all blocks are computed on CPUs: cuda:0 is lost"):
        assert np.array_equal(room.process(), WHOLE)
    room.sane()


def test_a_gpu_that_does_not_start(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    make = executors.make
    broken = [True]

    def started(name: str, *args: Any, **options: Any) -> Any:
        if name == "cuda" and broken[0]:
            raise DeviceError("cuda:0 does not start")
        return make(name, *args, **options)

    monkeypatch.setattr(executors, "make", started)
    with pytest.warns(RuntimeWarning, match="all blocks are computed on CPUs: cuda:0 does not st"):
        assert np.array_equal(room.process(), WHOLE)
    with pytest.raises(DeviceError, match="cuda:0 does not start"):
        room.process(device="cuda")

    def script(job: Job, cell: Cell) -> None:
        broken[0] = True

    room.script = script
    broken[0] = False
    with pytest.warns(RuntimeWarning, match="^5 of 6 blocks are computed on CPUs"):
        assert np.array_equal(room.process(), WHOLE)


# --- plans -------------------------------------------------------------------------------------


def test_what_does_not_fit_a_gpu_is_planned_for_cpus(room: Room) -> None:
    given = {**SIZES, "memory": {"device": "1kB"}}
    room.machine.has(1)
    for optimization in (True, False):
        sizes = {"size_max": 9, "overlap": 0, "optimization": optimization}
        plan = bp.plan(smallest, IMAGE, **{**given, **sizes})
        assert plan.grid == bp.plan(smallest, IMAGE, device="cpu", **sizes).grid
    plan = bp.plan(smallest, IMAGE, **given)
    assert plan.executor == "processes"
    assert "no GPU is used: one block of (6, 10, 6) voxels needs" in plan.executor_reason
    assert np.array_equal(room.process(**given), WHOLE)
    assert "cuda" not in room.names
    with pytest.raises(BudgetError, match="on the device"):
        bp.plan(smallest, IMAGE, device="cuda", **given)


def test_a_gpu_that_tells_nothing_is_not_planned_for(room: Room, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "cupy.cuda.runtime.getDeviceCount",
        lambda: (_ for _ in ()).throw(CUDARuntimeError(3, "initialization error")),
    )
    plan = bp.plan(smallest, IMAGE, **SIZES)
    assert plan.executor == "processes"
    assert "initialization error" in plan.executor_reason
    with pytest.raises(DeviceError, match="initialization error"):
        bp.plan(smallest, IMAGE, device="cuda", **SIZES)


def test_a_first_cell_that_takes_too_much(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Gpus._drive

    def greedy(self: Any, *args: Any) -> Generator[Event, None, None]:
        for event in drive(self, *args):
            yield replace(event, peak_bytes=peak_bytes) if isinstance(event, CellDone) else event

    monkeypatch.setattr(Gpus, "_drive", greedy)
    peak_bytes = 10**12
    assert np.array_equal(room.process(size_max=None, halo=1, overlap=None), WHOLE)
    assert room.computed[0] == (0, True)
    again = [n for n, _ in room.computed[1:]]
    assert again == list(range(len(again)))
    assert len(again) > 1

    peak_bytes = 10**15
    room.computed.clear()
    with pytest.warns(RuntimeWarning, match="^all blocks are computed on CPUs: the smallest"):
        result = room.process(size_max=None, halo=1, overlap=None)
    assert np.array_equal(result, WHOLE)
    assert room.computed == [(0, True)]
    with pytest.raises(BudgetError):
        room.process(size_max=None, halo=1, overlap=None, device="cuda")


def test_parts_of_a_cell_are_not_done_in_place(room: Room) -> None:
    divisible = []

    def script(job: Job, cell: Cell) -> None:
        divisible.append(job.divisible)

    room.script = script
    image = IMAGE.copy()
    given = {"size_max": 6, "overlap": 0, "device": "cuda"}
    room.process(np.negative, image, image, **given)
    assert not any(divisible)
    room.process(np.negative, IMAGE, image, **given)
    assert divisible[-1]
    room.process(np.negative, IMAGE, image, **{**given, "overlap": None})
    assert not divisible[-1]


def test_a_bar_counts_the_blocks_that_there_are(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((64, 64, 64), np.float32)
    given = {"halo": 1, "size_max": None, "overlap": None, "progress": True, "verbose": True}
    expected = bp.plan(smallest, image, halo=1, device="cpu").grid
    assert len(expected) > len(bp.plan(smallest, image, halo=1).grid)
    room.fails(TypeError("no"))
    with pytest.warns(RuntimeWarning, match=NOT_ON_GPUS):
        room.process(smallest, image, **given)
    out, err = capsys.readouterr()
    assert f"{len(expected)}/{len(expected)} [" in err
    assert out.count(": elapsed time: ") == len(expected) + 1
    assert out.splitlines()[-1].startswith(f"Processed {len(expected)} blocks")


# --- over the executor itself ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_devices_do_all(room: Room, tmp_path: Path, seed: int) -> None:
    room.devices = uneven("random", 2, seed)
    result = room.process(smallest, IMAGE, tmp_path / "new.npy")
    assert np.array_equal(np.load(result), WHOLE)
    assert room.names == ["cuda", "cuda"]
    room.sane()
    values = room.process(np.max, IMAGE, return_result=True, device="cuda")
    assert values == bp.process(np.max, IMAGE, return_result=True, device="cpu", **SIZES)


def test_devices_are_lost_midway(room: Room) -> None:
    def devices(world: SimulatedThreads) -> list[SimulatedDevice]:
        made = [SimulatedDevice(world, f"cuda:{n}", policy="lazy") for n in range(2)]
        for device in made:
            device.fail_sticky_at(2)
        return made

    room.devices = devices
    with pytest.warns(
        RuntimeWarning, match=r"^\d of 6 blocks are computed on CPUs: cuda:\d is lost"
    ):
        assert np.array_equal(room.process(), WHOLE)
    room.sane()
    with pytest.raises(DeviceError, match="is lost for this process"):
        room.process(device="cuda")


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_function_that_takes_much_memory(room: Room, device: str | None) -> None:
    executors_used: list[SimulatedExecutor] = []
    make = room.make

    def noted(*args: Any, **options: Any) -> Any:
        executors_used.append(make(*args, **options))
        return executors_used[-1]

    def hungry(block: Array) -> Array:
        if block.shape[0] > 4:
            executors_used[-1].devices[0].take(1 << 40)
        return smallest(block)

    room.devices = uneven("eager", 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(executors, "make", noted)
        assert np.array_equal(room.process(hungry, device=device), WHOLE)
    assert set(room.names) == {"cuda"}
    room.sane()


def test_a_function_for_the_host_only(room: Room, tmp_path: Path) -> None:
    here = os.getpid()

    def scipy(block: Array) -> Array:
        if os.getpid() == here:
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")
        return smallest(block)

    room.devices = uneven("lazy", 2)
    with pytest.warns(RuntimeWarning, match=r"'scipy' does not run on cuda:\d \(TypeError: Impl"):
        result = room.process(scipy, IMAGE, tmp_path / "new.npy")
    assert np.array_equal(np.load(result), WHOLE)
    room.sane()
    with pytest.raises(TypeError, match="Implicit conversion"):
        room.process(scipy, IMAGE, tmp_path / "other.npy", device="cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.npy"]


# --- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3])
def test_a_run_on_gpus_is_cancelled(room: Room, tmp_path: Path, number: int) -> None:
    class Workspace:
        executor: Any = None

    workspace = Workspace()

    def script(job: Job, cell: Cell) -> Exception | None:
        if cell.number == number:
            workspace.executor.cancel()
            return OUT_OF_MEMORY
        return None

    room.script = script
    with pytest.raises(RunCancelledError):
        room.process(smallest, IMAGE, tmp_path / "new.npy", workspace=workspace)
    assert list(tmp_path.iterdir()) == []
    assert "processes" not in room.names


def test_a_warning_that_is_an_error_ends_the_run(room: Room, tmp_path: Path) -> None:
    for error, numbers in ((TypeError("no"), ()), (OUT_OF_MEMORY, (2,))):
        room.fails(error, *numbers)
        with pytest.raises(RuntimeWarning):
            room.process(smallest, IMAGE, tmp_path / "new.npy")
        assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_stored(room: Room) -> None:
    with pytest.raises(BlockError, match="uint8 holds 0 to 255"):
        room.process(lambda block: block + np.uint16(300), IMAGE, np.zeros(SHAPE, np.uint8))
    assert threading.active_count() < 50
