"""Kernels of CUDA on the CPU: compiled as C++, one thread of the kernel after the other.

For kernels whose threads do not work together. They are called as those of `cupy.RawKernel`.
"""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_BEFORE = """
#include <cmath>
#include <tuple>
#include <utility>
#define __global__
#define __device__
struct Dim { unsigned x, y, z; };
static thread_local Dim blockIdx, threadIdx, blockDim, gridDim;
"""

_AFTER = """
template <class... A, std::size_t... N>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<N...>) {
    kernel(*static_cast<A*>(arguments[N])...);
}
template <class... A>
static void run(void (*kernel)(A...), Dim grid, Dim block, void** arguments) {
    gridDim = grid; blockDim = block;
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x)
            call(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A>
static unsigned size_of(void (*)(A...), unsigned n) {
    const unsigned sizes[] = {sizeof(A)...};
    return n < sizeof...(A) ? sizes[n] : 0;
}
extern "C" unsigned argument_size(unsigned n) { return size_of(NAME, n); }
extern "C" void run_kernel(unsigned blocks, unsigned threads, void** arguments) {
    run(NAME, Dim{blocks, 1, 1}, Dim{threads, 1, 1}, arguments);
}
"""

_SIZES = {"i": ctypes.c_int32, "q": ctypes.c_int64, "l": ctypes.c_int64, "d": ctypes.c_double}


class HostKernel:
    """What `cupy.RawKernel` is, with arguments in host memory."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        # Without it a GPU would round otherwise than a CPU.
        assert "--fmad=false" in options
        self._library = _library(code, name)

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        """Run it; arrays are those of NumPy, numbers have the type that the kernel has."""
        held = [
            _SIZES[arg.dtype.char](arg) if isinstance(arg, np.generic) else _address(arg)
            for arg in args
        ]
        sizes = [self._library.argument_size(n) for n in range(len(held) + 1)]
        assert sizes == [*map(ctypes.sizeof, held), 0], "the kernel has other arguments"
        addresses = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        self._library.run_kernel(ctypes.c_uint(*grid), ctypes.c_uint(*block), addresses)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _library(code: str, name: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("kernels of CUDA are tested with a compiler for C++, which is not installed")
    folder = Path(tempfile.gettempdir()) / "gpublocks-host-kernels"
    folder.mkdir(exist_ok=True)
    text = f"{_BEFORE}{code}{_AFTER.replace('NAME', name)}"
    built = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as here:
            source = Path(here, "kernel.cpp")
            source.write_text(text)
            command = [
                compiler,
                "-std=c++17",
                "-O2",
                "-ffp-contract=off",
                "-Wall",
                "-Wextra",
                "-Werror",
            ]
            command += [
                "-Wno-unused-parameter",
                "-shared",
                "-fPIC",
                "-o",
                str(source.with_suffix(".so")),
                str(source),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            source.with_suffix(".so").replace(built)
    return ctypes.CDLL(str(built))
