"""The rooms and their floors, guests that are imported only when used, and the names handed on."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import gpublocks

PACKAGE = Path(gpublocks.__file__).parent

FLOORS = [
    {"errors", "geometry"},
    {
        "splitting",
        "budget",
        "contracts",
        "arrays",
        "wire",
        "placing",
        "cgroups",
        "gpus",
        "slicing",
        "voxels",
        "partial",
        "concurrency",
        "notice",
        "deflating",
        "planes",
        "directories",
        "declared",
        "metadata",
        "parameters",
        "borders",
        "gaussians",
        "compiling",
        "memory",
        "footprints",
        "networks",
    },
    {
        "machine",
        "compressed",
        "dividing",
        "crew",
        "slots",
        "picking",
        "calibration",
        "segments",
        "bytecodecs",
        "numberfilters",
        "confined",
        "paths",
        "room",
        "ome",
        "pyramid",
        "viewing",
        "dtypes",
        "choice",
        "layouts",
        "launching",
        "differences",
        "sheets",
        "storing",
        "pieces",
        "histograms",
        "comparisons",
    },
    {
        "sharing",
        "mapping",
        "datasets",
        "styles",
        "coding",
        "folder",
        "zarr_nodes",
        "steps",
        "correlations",
        "extremes",
        "sums",
        "shifted",
        "bilaterals",
        "ridge_measures",
        "straight_lines",
        "keys",
        "counting",
        "sorting",
    },
    {
        "packing",
        "headers",
        "unpacking",
        "dataset_files",
        "dataset_source",
        "series",
        "filing",
        "paged",
        "boxes",
        "levels",
        "correlating",
        "shapes",
        "windows",
        "ranking",
        "block_counts",
        "pointwise",
        "denoising",
        "deconvolution",
    },
    {
        "stacks",
        "boxed",
        "zarr_layout",
        "smoothing",
        "footprint_extremes",
        "ranks",
        "derivatives",
        "hessians",
        "local",
    },
    {"library", "elements", "ridges", "lightsheets"},
    {"collecting", "spans", "grid", "io", "running", "flow", "workers", "masking", "sample"},
    {"gaps", "storage", "picture", "morphology", "tophats", "masks"},
    {"plotting", "verdict"},
    {"records"},
    {"timeline"},
    {"exporting"},
    {"report"},
    {"sizing", "planning", "caching", "blocks", "devices"},
    {"job"},
    {"parcel", "task", "feed"},
    {"recovery", "cutting"},
    {"pipeline", "chaining"},
    {"executors"},
    {"choosing"},
    {"arguments", "drafting", "telling", "enacting", "results"},
    {"moving"},
    {"trial"},
    {"run", "recorder"},
    {"block_processing"},
    {"passes"},
    {"statistics", "verifying"},
    {"filters"},
    {"case", "loading", "opening", "surroundings", "effort", "floors", "terminating", "saved"},
    {"loops", "volumes", "programs", "stage", "stages", "judging", "works", "cells"},
    {"jobs", "measuring", "contests", "footprint", "overheads", "throughput", "scaling"},
    {"catalogue", "standings", "forecast"},
    {"tables", "charts", "outlook"},
    {"comparing", "outlook_tables"},
    {"bench"},
    {"cli"},
]
ROOF = {"__init__", "__main__"}

GUESTS = {
    "cupy": {"arrays", "gpus", "devices", "launching"},
    "cupyx": {"arrays", "devices"},
    "numba": {"choice", "compiling"},
    "pynvml": {"gpus"},
    "psutil": {"gpus", "machine"},
    "matplotlib": {"picture", "plotting", "timeline", "charts"},
    "tqdm": {"telling"},
    "cloudpickle": {"wire"},
    "scipy": {
        "arrays",
        "sample",
        "loops",
        "cells",
        "outlook",
        "cli",
        "correlating",
        "deconvolution",
        "ranking",
    },
    "zarr": {"zarr_nodes", "opening"},
    "numcodecs": {"bytecodecs", "numberfilters"},
    "google_crc32c": {"bytecodecs"},
    "h5py": {"datasets"},
    "tifffile": {"io"},
    "imagecodecs": {"io"},
    "nrrd": {"io"},
    "nibabel": {"io"},
    "dask": {"io"},
    "xarray": set(),
    "rich": {"tables"},
}

AT_ONCE = {"sample", "compiling"}
"""Rooms that nobody enters who does not need the guest."""


def room_of(parts: Sequence[str]) -> str:
    """Return the room of a module: its folder, but where that is a house of its own, itself."""
    if parts[0] == "bench":
        module = PACKAGE.joinpath(*parts[:2]).with_suffix(".py")
        # Others are names that the door hands on.
        return parts[1] if module.exists() else "bench"
    if parts[0] == "filters":
        rooms = [part for part in parts if any(PACKAGE.glob(f"filters/**/{part}.py"))]
        return rooms[0] if rooms else "filters"
    return parts[min(2, len(parts) - 1)] if parts[0] == "formats" else parts[0]


def modules() -> list[tuple[str, Path]]:
    """Return each module with its room."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found.append((room_of(path.relative_to(PACKAGE).with_suffix("").parts), path))
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return the full names that a module imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    names: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return names


def floor_of(room: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {room for room, _ in modules()} - ROOF
    assert rooms - set().union(*FLOORS) == set()


@pytest.mark.parametrize(
    ("room", "path"), modules(), ids=lambda v: v.name if isinstance(v, Path) else v
)
def test_rooms_use_lower_floors_only(room: str, path: Path) -> None:
    if room in ROOF:
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "gpublocks":
            continue
        used = room_of(parts[1:]) if len(parts) > 1 else ""
        if used == "__version__":
            continue
        if used == room:
            assert path.name == "__init__.py", f"{path} imports its sibling {name}"
        else:
            assert floor_of(used) < floor_of(room), f"{room} imports {used}"


@pytest.mark.parametrize(
    ("room", "path"), modules(), ids=lambda v: v.name if isinstance(v, Path) else v
)
def test_guests_are_let_in_by_their_rooms_and_late(room: str, path: Path) -> None:
    for name, top in imports(path):
        guest = name.split(".")[0]
        if guest in GUESTS:
            assert room in GUESTS[guest], f"{path} imports {guest}"
            assert not top or room in AT_ONCE, f"{path} imports {guest} at once"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, gpublocks\n"
        f"heavy = {sorted(GUESTS)!r} + ['multiprocessing', 'asyncio']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_all_exported_names_exist() -> None:
    for name in gpublocks.__all__:
        assert hasattr(gpublocks, name), name


def test_first_line_of_a_module_says_what_it_touches() -> None:
    for _, path in modules():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert text, f"{path} has no docstring"
