"""What becomes of a cell that a device failed at: tried again, halved, left to others. Pure."""

import traceback
from collections.abc import Callable
from dataclasses import replace

from gpublocks.budget import format_bytes
from gpublocks.contracts import CellFailed, CellRetried, CellSplit, Event, Stage, StreamDevice
from gpublocks.errors import DeviceError, DeviceMemoryError, chain_of, text_of
from gpublocks.feed import Feed, Work
from gpublocks.geometry import Cell
from gpublocks.job import Job, explained

__all__ = ["MOST_HALVINGS", "Recovery"]

MOST_HALVINGS = 4
"""A sixteenth of a block and what it reads beside it: less is not worth a device."""
_MOST_LOSSES = 2
"""So many devices are lost to one cell before it, and not they, is taken to be at fault."""


class Recovery:
    """Decides for the cells of one device.

    A cell for which the device has no memory is tried once more, then halved. A device that has
    none even for small parts, or is lost, does nothing more in this run: its cells go back to the
    feed, for other devices.

    Parameters
    ----------
    job : Job
    device : StreamDevice
    feed : Feed
    put : callable
        Called with each event.
    """

    def __init__(
        self, job: Job, device: StreamDevice, feed: Feed, put: Callable[[Event], None]
    ) -> None:
        self._job = job
        self._device = device
        self._feed = feed
        self._put = put
        self._blamed = False
        self._too_many_voxels = float("inf")
        self.lost: Exception | None = None
        """Why the device does nothing any more."""
        self.full = False
        """Whether memory is to be given back before the next cell is computed."""

    @property
    def skips(self) -> bool:
        """Whether what is under way is not to be finished."""
        return self.lost is not None or self._feed.over

    def takes(self, cell: Cell) -> bool:
        """Tell whether there may be memory for a cell, as far as is known from others."""
        return self._voxels(cell) < self._too_many_voxels

    def note(self, error: BaseException) -> None:
        """Take in an error as soon as it is seen; frames that hold device memory are cleared."""
        trouble = self._device.classify(error)
        if trouble == "memory":
            self.full = True
            for one in chain_of(error):
                traceback.clear_frames(one.__traceback__)
        elif trouble == "fatal":
            self.lose(error)

    def lose(self, error: BaseException) -> None:
        """Do nothing more on this device in this run; if the error is fatal, in this process."""
        if self.lost is not None:
            return
        name, reason = self._device.name, _line(error)
        if self._device.classify(error) == "fatal":
            self._device.retire(reason)
            self.lost = DeviceError(f"{name} is lost for this process: {reason}; start it again")
        else:
            self.lost = DeviceMemoryError(
                f"{name} has not enough memory, even for smaller blocks as far as they can be "
                f"divided: {reason}{self._free()}; use a smaller size_max, with the "
                "overlap or halo that the function needs, or device='cpu'"
            )
            self._blamed = True
        self.lost.__cause__ = error

    def settle(self, work: Work, stage: Stage, error: BaseException | None) -> None:
        """Decide about a cell that is not done; called in the order in which cells were computed.

        Parameters
        ----------
        stage : {'load', 'compute', 'store'}
            How far it came.
        error : BaseException or None
            None if it was left alone, since the device was lost or the run is over.
        """
        trouble = None if error is None else self._device.classify(error)
        if error is not None and trouble == "user":
            self._end(work, stage, error)
        elif self._feed.over:
            self._feed.give_back(work)
        elif error is not None and trouble == "memory":
            self._retry(work, stage, error)
        else:
            self._move(work, stage)

    def divide(self, work: Work, reason: str) -> bool:
        """Put a cell back as two halves; tell whether there are any."""
        halves = self._job.halves(work.cell) if work.halvings < MOST_HALVINGS else None
        if halves is None:
            return False
        self._too_many_voxels = min(self._too_many_voxels, self._voxels(work.cell))
        self._put(CellSplit(work.whole.cell, self._device.name, reason))
        parts = [replace(work, cell=half, halvings=work.halvings + 1) for half in halves]
        self._feed.give_back(work, *parts)
        return True

    def _retry(self, work: Work, stage: Stage, error: BaseException) -> None:
        """Try once more, after all memory was freed that can be, then in halves."""
        reason = f"{self._device.name} is out of memory: {_line(error)}"
        if not work.tries:
            self._put(CellRetried(work.whole.cell, self._device.name, reason))
            self._feed.give_back(work, replace(work, tries=1))
        elif not self.divide(work, reason):
            self.lose(error)
            self._move(work, stage)

    def _move(self, work: Work, stage: Stage) -> None:
        """Leave a cell to other devices; the first that was not over may have done the harm."""
        tried = work
        if not self._blamed and stage != "load":
            self._blamed = True
            tried = replace(work, losses=work.losses + 1)
        if tried.losses >= _MOST_LOSSES:
            text = f"{tried.losses} devices were lost while they computed this block; {self.lost}"
            self._end(work, stage, DeviceError(text))
        else:
            self._put(CellRetried(work.whole.cell, self._device.name, str(self.lost)))
            self._feed.give_back(work, tried)

    def _end(self, work: Work, stage: Stage, error: BaseException) -> None:
        """Let the run fail."""
        self._feed.stop()
        self._feed.give_back(work)
        told = explained(error, self._job, work.cell, stage)
        self._put(CellFailed(work.whole.cell, self._device.name, stage, told))

    def _free(self) -> str:
        try:
            free, total = map(format_bytes, self._device.memory())
        except Exception:  # of a device that fails meanwhile; the error to be told is another one
            return ""
        return f" ({free} of {total} are free)"

    def _voxels(self, cell: Cell) -> int:
        return cell.read_in(self._job.grid.shape).size


def _line(error: BaseException) -> str:
    return next(iter(text_of(error).strip().splitlines()), "") or type(error).__name__
