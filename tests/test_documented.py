"""The documented examples, as they stand: in this process, in scripts, in ``python -c``."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpublocks
import gpublocks.block_processing as bp
import gpublocks.io as io

SPLITTING = """\
import numpy as np
import gpublocks.block_processing as bp
import gpublocks.io as io

source = io.as_source(np.asarray(np.random.rand(50, 100, 200), order='F'))
blocks = bp.split_into_blocks(source, processes=10, axes=[2], size_min=30, size_max=50, overlap=20)
print(blocks[0])
print(repr(blocks[0].info()))
print(blocks[0].valid)
print(blocks[0].valid.base_shape)
print(blocks[0].valid.base_slicing)
print(blocks[0].iteration)
"""

SPLITTING_PRINTS = """\
Block-Numpy-Source(50, 100, 38)[float64]|F|
'0/10<(0, 0, 0)/(1, 1, 10)> (50, 100, 38)@(50, 100, 200)[(:,:,0:38)]'
Sliced-Block-Numpy-Source(50, 100, 28)[float64]|F|
(50, 100, 200)
(slice(None, None, None), slice(None, None, None), slice(None, 28, None))
0
"""

PROCESSING = """\
import numpy as np
import gpublocks.block_processing as bp
import gpublocks.io as io

shape = (2, 3, 20)
source = io.npy.Source(array=np.random.rand(*shape))
sink = io.npy.Source(array=np.zeros(shape))

def process_image(source, sink=None):
    if sink is None:
        sink = np.zeros(source.shape)
    sink[:] = 100 * source[:]
    return sink

bp.process(process_image, source, sink,
           processes='serial', size_max=4, size_min=1, overlap=0, axes=[2],
           optimization=True, verbose=True)
assert np.all(sink[:] == process_image(source))

sink = io.npy.Source(array=np.zeros(shape))
bp.process(process_image, source, sink,
           processes=None, size_max=10, size_min=6, overlap=3, axes='all',
           optimization=True, verbose=True)
assert np.all(sink[:] == process_image(source))
"""

FUNCTIONS = """\
import os
import numpy as np
import gpublocks.block_processing as bp

FACTOR = 3
seen = None

def scaled(block):
    return FACTOR * block

def power(exponent):
    return lambda block: block**exponent

class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, block):
        return block + self.by

source = np.arange(60.0).reshape(3, 20)

for function, expected in (
    (scaled, 3 * source),
    (power(2), source**2),
    (lambda block: block - FACTOR, source - 3),
    (Shift(7), source + 7),
):
    sink = np.zeros(source.shape)
    bp.process(function, source, sink, axes=1, size_max=6, overlap=2, processes=2)
    assert np.array_equal(sink, expected)

pids = bp.process(lambda block: os.getpid(), source, size_max=1, overlap=0, processes=2,
                  return_result=True)
print(len(pids), os.getpid() in pids)
"""


def run(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python program that finds the package, in a folder of its own."""
    home = str(Path(gpublocks.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_blocks_of_an_array() -> None:
    source = io.as_source(np.asarray(np.random.rand(50, 100, 200), order="F"))
    blocks = bp.split_into_blocks(
        source, processes=10, axes=[2], size_min=30, size_max=50, overlap=20
    )

    assert repr(blocks[0]) == "Block-Numpy-Source(50, 100, 38)[float64]|F|"
    assert blocks[0].info() == "0/10<(0, 0, 0)/(1, 1, 10)> (50, 100, 38)@(50, 100, 200)[(:,:,0:38)]"
    assert repr(blocks[0].valid) == "Sliced-Block-Numpy-Source(50, 100, 28)[float64]|F|"
    assert blocks[0].valid.base_shape == (50, 100, 200)
    assert blocks[0].valid.base_slicing == (slice(None), slice(None), slice(None, 28))
    assert blocks[0].iteration == 0


def test_processing_of_an_array(executor: str) -> None:
    shape = (2, 3, 20)
    source = io.npy.Source(array=np.random.rand(*shape))
    sink = io.npy.Source(array=np.zeros(shape))

    def process_image(source, sink=None):  # type: ignore[no-untyped-def]
        if sink is None:
            sink = np.zeros(source.shape)
        sink[:] = 100 * source[:]
        return sink

    returned = bp.process(
        process_image,
        source,
        sink,
        processes="serial",
        size_max=4,
        size_min=1,
        overlap=0,
        axes=[2],
        optimization=True,
        verbose=True,
    )
    assert returned is sink
    assert np.all(sink[:] == process_image(source))

    fresh = io.npy.Source(array=np.zeros(shape))
    bp.process(
        process_image,
        source,
        fresh,
        processes=None,
        size_max=10,
        size_min=6,
        overlap=3,
        axes="all",
        optimization=True,
        verbose=True,
        executor=executor,
    )
    assert np.all(fresh[:] == process_image(source))


@pytest.mark.parametrize(
    ("how", "program", "prints"),
    [
        pytest.param("script", SPLITTING, SPLITTING_PRINTS, id="splitting"),
        pytest.param("script", PROCESSING, None, id="processing"),
        pytest.param("script", FUNCTIONS, "3 False\n", id="functions"),
        pytest.param("command", FUNCTIONS, "3 False\n", id="functions of a command"),
    ],
)
def test_without_a_main_guard(how: str, program: str, prints: str | None, tmp_path: Path) -> None:
    arguments = ["-c", program]
    if how == "script":
        (tmp_path / "program.py").write_text(program)
        arguments = ["program.py"]

    ended = run(*arguments, folder=tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    if prints is not None:
        assert ended.stdout == prints


def test_lines_of_the_example(tmp_path: Path) -> None:
    ended = run("-c", PROCESSING, folder=tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0] == "Processing 5 blocks with function 'process_image'."
    assert lines[1] == "Processing block 0/5<(0, 0, 0)/(1, 1, 5)> (2, 3, 4)@(2, 3, 20)[(:,:,0:4)]"
    assert lines[2].startswith(f"{lines[1]}: elapsed time: 0:00:0")
    assert lines[11].startswith(
        "Processed 5 blocks with function 'process_image': elapsed time: 0:00:0"
    )
