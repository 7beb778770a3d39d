"""Kernels of CUDA: compilers for GPUs take them; all are started as they are declared."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gpublocks.filters.engines import launching

FOLDER = Path(launching.__file__).parent / "cuda"
KERNELS = sorted(path.stem for path in FOLDER.glob("*.cu") if path.stem != "common")


@pytest.mark.parametrize("name", KERNELS)
def test_nvcc_compiles_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc of the CUDA toolkit is not installed")
    types = ("Index", "long long"), ("Source", "unsigned short"), ("Target", "float")
    source = tmp_path / f"{name}.cu"
    source.write_text(launching.source_of(name, types))
    command = [compiler, "--ptx", "-Werror", "all-warnings", "-o", "/dev/null", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
