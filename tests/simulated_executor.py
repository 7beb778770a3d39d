"""The stream executor over simulated devices: every run is a world of its own, with an oracle."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial

from simulated_device import SimulatedDevice
from simulated_threads import SimulatedThreads

from gpublocks.contracts import Event
from gpublocks.executors.stream import StreamExecutor
from gpublocks.geometry import Cell
from gpublocks.job import Job
from gpublocks.running import EventRun

Devices = Callable[[SimulatedThreads], Sequence[SimulatedDevice]]


def uneven(policy: str, count: int, seed: int = 0) -> Devices:
    """Return what makes devices of different memory and speed."""

    def make(world: SimulatedThreads) -> list[SimulatedDevice]:
        return [
            SimulatedDevice(
                world,
                f"cuda:{n}",
                policy=policy,
                seed=seed,
                memory_bytes=(n + 1) << 18,
                speed=1 + 3 * n,
                raises="compute" if seed % 2 else "outcome",
            )
            for n in range(count)
        ]

    return make


class SimulatedExecutor:
    """An executor that can be used like any other.

    Parameters
    ----------
    make_devices : callable
        Called with the world of a run.
    seed : int
        Of the threads.
    copiers, refuse
        As for `StreamExecutor`.

    Attributes
    ----------
    devices, trace
        Of the last run.
    """

    name = "cuda"

    def __init__(
        self, make_devices: Devices, seed: int = 0, *, copiers: int = 2, refuse: bool = False
    ) -> None:
        self._make_devices = make_devices
        self._seed = seed
        self._options = {"copiers": copiers, "refuse": refuse}
        self.devices: Sequence[SimulatedDevice] = ()
        self.trace: list[tuple[str, str]] = []
        with suppress(AssertionError), SimulatedThreads(0) as world:
            self.workers = len(make_devices(world))

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        """Begin to process cells."""
        with SimulatedThreads(0) as world:
            StreamExecutor(self._make_devices(world), "cuda", world).run(job, ())
        inner: list[EventRun] = []
        return EventRun(
            partial(self._drive, job, cells, inner), lambda: [run.cancel() for run in inner]
        )

    def _drive(
        self, job: Job, cells: Iterable[Cell], inner: list[EventRun], run: EventRun
    ) -> Generator[Event, None, None]:
        with SimulatedThreads(self._seed) as world:
            self.devices, self.trace = self._make_devices(world), world.trace
            executor = StreamExecutor(self.devices, "cuda", world, **self._options)
            inner.append(executor.run(job, cells))
            if run.cancelled:
                inner[0].cancel()
            with closing(iter(inner[0])) as events:
                yield from events
