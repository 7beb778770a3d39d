"""In a notebook: functions of cells, lambdas, closures; five functions of other libraries."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import gpublocks

nbformat = pytest.importorskip("nbformat", reason="nbformat writes the notebook")
nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebook")
pytest.importorskip("ipykernel", reason="ipykernel is the notebook's kernel")

SETUP = """\
import os
import warnings
warnings.simplefilter("error")
import numpy as np
import gpublocks.block_processing as bp
from gpublocks.sample import brain

volume = brain((48, 64, 64))
same = np.array_equal
"""

FUNCTIONS = [
    """\
offset = 3

def shifted(block):
    return block.astype(np.int32) + offset

same(bp.process(shifted, volume, overlap=0, size_max=20), volume.astype(np.int32) + 3)
""",
    """\
offset = 5
same(bp.process(shifted, volume, overlap=0, size_max=20), volume.astype(np.int32) + 5)
""",
    """\
same(bp.process(lambda block: block // 2, volume, axes="all", size_max=30, overlap=4), volume // 2)
""",
    """\
def above(level):
    def threshold(block):
        return block > level
    return threshold

sink = np.zeros(volume.shape, bool)
bp.process(above(300), volume, sink, size_max=20, overlap=2)
same(sink, volume > 300)
""",
    """\
class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, source, sink):
        sink.valid[:] = self.factor * source.valid[:].astype(float)

sink = np.zeros(volume.shape)
bp.process(Scale(0.5), volume, sink, function_type="block", size_max=20, overlap=2)
same(sink, volume * 0.5)
""",
    """\
pids = bp.process(lambda block: os.getpid(), volume, size_max=8, overlap=0, return_result=True)
bp.plan(shifted, volume).executor == "processes" and os.getpid() not in pids
""",
    """\
class Missing(Exception):
    pass

def fail(block):
    raise Missing("nothing here")

try:
    bp.process(fail, volume, size_max=20)
except Missing as error:
    found = str(error) == "nothing here" and "fail" in "".join(error.__notes__)
found
""",
    """\
with warnings.catch_warnings():
    warnings.simplefilter("default")
    again = bp.process(shifted, volume, overlap=0, size_max=20, progress=True, verbose=True)
same(again, volume.astype(np.int32) + 5)
""",
]

# Functions as their authors wrote them, and how far each looks: the Gaussian of scikit-image is
# cut at four sigma, those of SciPy too; the others look half their size to each side, a top-hat
# (two passes) its whole size less one half.
LIBRARIES = [
    ("from scipy.ndimage import gaussian_filter", "gaussian_filter", "sigma=1.5", 6),
    ("from scipy.ndimage import white_tophat", "white_tophat", "size=(3, 5, 5)", 4),
    ("from scipy.ndimage import median_filter", "median_filter", "size=3", 1),
    ("from skimage.filters import gaussian", "gaussian", "sigma=1", 4),
    ("from skimage.filters import sobel", "sobel", "", 1),
]

LIBRARY = """\
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    {line}
blocks = len(bp.plan({name}, volume, halo={halo}, processes=2{keywords}).grid)
result = bp.process({name}, volume, halo={halo}, processes=2{keywords})
whole = {name}(volume{keywords})
blocks > 1 and result.dtype == whole.dtype and same(result, whole)
"""


def executed(cells: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a notebook and return the value that each cell shows."""
    monkeypatch.setenv("PYTHONPATH", str(Path(gpublocks.__file__).parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
    )
    client = nbclient.NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [shown(cell) for cell in notebook.cells]


def shown(cell: Any) -> str:
    texts = [output.data["text/plain"] for output in cell.outputs if "data" in output]
    return str(texts[-1]) if texts else ""


# nbclient starts a loop of its own; how it ends it is not ours to judge.
@pytest.mark.filterwarnings("default")
def test_functions_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("worker processes need Linux")

    values = executed([SETUP, *FUNCTIONS], tmp_path, monkeypatch)

    assert values[1:] == ["True"] * len(FUNCTIONS)
    assert sorted(os.listdir(tmp_path)) in ([], ["ipython"])


@pytest.mark.filterwarnings("default")
def test_functions_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="two of the functions are scikit-image's")
    cells = [
        LIBRARY.format(line=line, name=name, halo=halo, keywords=keywords and f", {keywords}")
        for line, name, keywords, halo in LIBRARIES
    ]

    values = executed([SETUP, *cells], tmp_path, monkeypatch)

    assert values[1:] == ["True"] * len(LIBRARIES)
