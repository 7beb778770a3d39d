"""Arrays stored in pieces, each a file: sources that note what they decode, sinks who writes when.

They stand for the formats that have chunks, and run in worker processes too.
"""

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpublocks.contracts import Extent, Reach
from gpublocks.errors import SourceError
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)


class Folder:
    """An array in a folder of files, one for each piece; missing ones are zeros.

    They hold voxels only: `numpy.load` parses a header as Python, which threads of CPython 3.11 may
    not do at once (python/cpython#106905).
    """

    reach = Reach.MACHINE
    name = "Folder-Source"
    writable = True
    single_writer = False

    def __init__(self, path, shape, dtype, order, unit, read_unit=None):
        self.location, self.shape, self.dtype = str(path), tuple(shape), np.dtype(dtype)
        self.order, self.unit = order, tuple(unit)
        self.read_unit = tuple(read_unit or unit)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @classmethod
    def of(cls, path, array, unit, order="C"):
        """Store an array."""
        Path(path).mkdir(parents=True)
        folder = cls(path, array.shape, array.dtype, order, unit)
        for index, box in folder.pieces(Region.whole(array.shape), folder.unit):
            array[box.slices].tofile(folder.file(index))
        return folder

    @property
    def extent(self):
        status = os.stat(self.location)
        return Extent(("file", status.st_dev, status.st_ino), 0, 1 << 62)

    def file(self, index):
        return Path(self.location, f"{'.'.join(map(str, index))}.voxels")

    def piece(self, index, box):
        """Return what is stored of a piece."""
        path = self.file(index)
        if not path.exists():
            return np.zeros(box.shape, self.dtype)
        return np.fromfile(path, self.dtype).reshape(box.shape)

    def pieces(self, region, unit):
        """Yield index and box of each piece that a region touches."""
        along = [
            range(lo // u, -(-hi // u))
            for lo, hi, u in zip(region.start, region.stop, unit, strict=True)
        ]
        for index in itertools.product(*along):
            start = tuple(i * u for i, u in zip(index, unit, strict=True))
            stop = tuple(min(n, i + u) for n, i, u in zip(self.shape, start, unit, strict=True))
            yield index, Region(start, stop)

    def note(self, what, *numbers):
        with open(Path(self.location, what), "a") as file:
            file.write(" ".join(map(str, numbers)) + "\n")

    def noted(self, what):
        """Return what was noted."""
        path = Path(self.location, what)
        return path.read_text().splitlines() if path.exists() else []

    @property
    def decoded(self):
        """Voxels that were decoded, for each voxel of the array."""
        return sum(int(line.split()[-1]) for line in self.noted("read")) / self.size

    def read(self, region, out=None):
        if not Region.whole(self.shape).contains(region):
            raise SourceError(f"region {region} leaves the folder")
        out = np.empty(region.shape, self.dtype, order=self.order) if out is None else out
        for index, box in self.pieces(region, self.unit):
            voxels = self.piece(index, box)
            self.note("read", *index, voxels.size)
            put(out, region, voxels, box)
        return out

    def write(self, region, array):
        """Read, change and write each piece, as writers of chunks must."""
        for index, box in self.pieces(region, self.unit):
            mark = self.file(index).with_suffix(".busy")
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                self.note("clashes", *index)
            voxels = self.piece(index, box)
            time.sleep(0.0005)
            put(voxels, box, array, region)
            voxels.tofile(self.file(index))
            self.note("written", *index)
            mark.unlink(missing_ok=True)

    def sync(self): ...
    def finish(self): ...
    def abort(self): ...

    def __getitem__(self, slicing):
        return self.read(Region.whole(self.shape))[slicing]

    def __setitem__(self, slicing, value):
        raise NotImplementedError

    def __reduce__(self):
        arguments = self.location, self.shape, self.dtype, self.order, self.unit, self.read_unit
        return type(self), arguments


@dataclass
class NewFolder:
    """A folder that becomes a sink, in one of the units that it offers."""

    location: str
    offers: list
    made: Folder | None = None
    forced: tuple | None = None

    def check(self): ...

    def units(self, shape, dtype):
        """Return the offers, cut off or filled up for this number of axes."""
        return [(*offer, *shape[len(offer) :])[: len(shape)] for offer in self.offers]

    def create(self, shape, dtype, order, unit=None):
        Path(self.location).mkdir()
        unit = self.forced or unit or self.units(shape, dtype)[0]
        self.made = Folder(self.location, shape, dtype, order, unit)
        return self.made


def put(target, where, source, box):
    """Copy what two boxes have in common, from one array to the other."""
    lo = [max(a, b) for a, b in zip(where.start, box.start, strict=True)]
    hi = [min(a, b) for a, b in zip(where.stop, box.stop, strict=True)]
    common = Region(tuple(lo), tuple(hi))
    target[common.within(where).slices] = source[common.within(box).slices]
