"""CuPy arrays as sources and sinks: used where they lie, refused where nobody computes there."""

import sys

import fake_cupy
import numpy as np
import pytest

from gpublocks import choosing, filters, io, process
from gpublocks.devices import cuda
from gpublocks.errors import DeviceError, PlanError, SinkError
from gpublocks.geometry import Region

SHAPE = (20, 6, 10)


def volume(order="C"):
    return np.asarray(np.arange(np.prod(SHAPE), dtype="u2").reshape(SHAPE), order=order)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """Two GPUs, seen by CUDA only."""
    cuda.release_pinned()
    monkeypatch.setattr(cuda, "_retired", {})
    monkeypatch.setattr(choosing, "_known", {})
    monkeypatch.setitem(sys.modules, "pynvml", None)
    yield fake_cupy.install(monkeypatch, 1 << 26, 1 << 26)
    cuda.release_pinned()


def on_gpu(array, number=0):
    """Return the array on a GPU, in the same memory order."""
    transposed = np.asarray(array).flags.f_contiguous
    with fake_cupy.Device(number):
        there = fake_cupy.asarray(np.ascontiguousarray(array.T if transposed else array))
        return there.T if transposed else there


def from_gpu(array):
    with array.device:
        return array.get()


def double(block):
    assert isinstance(block, fake_cupy.ndarray)
    return block * 2


@pytest.mark.parametrize("order", ["C", "F"])
def test_says_what_it_is(order):
    source = io.as_source(on_gpu(volume(order)))
    assert repr(source) == f"Cupy-Source{SHAPE}[uint16]|{order}|"
    region = Region((1, 2, 3), (4, 5, 9))
    np.testing.assert_array_equal(source.read(region), volume()[region.slices])
    out = np.zeros(region.shape, "f4")
    assert source.read(region, out) is out
    np.testing.assert_array_equal(out, volume()[region.slices])
    source.write(region, np.zeros(region.shape))
    assert not source.read(region).any()
    with pytest.raises(PlanError, match="does not fit"):
        source.write(region, np.zeros(1))
    with pytest.raises(PlanError, match="scalar"):
        io.as_source(fake_cupy.asarray(np.float32(1)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_from_gpu_to_gpu_nothing_is_copied_to_the_host(fake, number, order):
    source, sink = on_gpu(volume(order), number), on_gpu(np.zeros(SHAPE, "f4"), number)
    before = len(fake.done)
    assert process(double, source, sink, device="cuda", size_max=6, overlap=2) is sink
    np.testing.assert_array_equal(from_gpu(sink), 2 * volume())
    names = [name for name, _, _ in fake.done[before:]]
    assert "memcpyHtoD" not in names


@pytest.mark.parametrize("there", [True, False])
def test_with_arrays_on_the_host(there):
    source = on_gpu(volume()) if there else volume()
    sink = np.zeros(SHAPE, "i4") if there else on_gpu(np.zeros(SHAPE, "i4"))
    other = np.asarray(volume("F"))

    def add(a, b):
        return a + b

    process(add, [source, other], sink, device="cuda", size_max=6, overlap=2, axes=[0, 2])
    found = sink if there else from_gpu(sink)
    np.testing.assert_array_equal(found, 2 * volume().astype("i4"))


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_numbers_of_the_volume(dtype):
    array = volume("F").astype(dtype)
    mask = np.zeros((10, 6, 4), bool)
    mask[3:5, :2] = mask[9, 5, 3] = True
    for inside in (None, mask):
        options = {"device": "cuda", "size_max": 6, "axes": "all", "mask": inside}
        there = mask.repeat(2, 0).repeat(3, 2)[:, :, :10] if inside is not None else ...
        counted = array[there]
        assert filters.minmax(on_gpu(array), **options) == (counted.min(), counted.max())
        assert filters.percentiles(array, 30, **options) == np.percentile(counted.astype(float), 30)
        for bins, limits in ((7, None), ([0, 2.5, 500], None), (9, (3, 99))):
            counts, edges = filters.histogram(on_gpu(array), bins, limits, **options)
            expected, expected_edges = np.histogram(counted, bins, limits)
            np.testing.assert_array_equal(counts, expected)
            np.testing.assert_array_equal(edges, expected_edges)


def test_a_new_result_is_an_array_of_the_host():
    result = process(double, on_gpu(volume(), 1), device="cuda:1", overlap=0)
    np.testing.assert_array_equal(result, 2 * volume())


def test_in_place():
    array = on_gpu(volume())
    process(double, array, array, device="cuda", size_max=6, overlap=0)
    np.testing.assert_array_equal(from_gpu(array), 2 * volume())
    with pytest.raises(SinkError, match="in place"):
        process(double, array, array, device="cuda", size_max=6, overlap=2)


@pytest.mark.parametrize(
    "keywords",
    [{"device": "cpu"}, {"processes": 2}, {"executor": "threads"}, {"device": "cuda:1"}],
)
def test_refused_where_nobody_computes_there(keywords):
    sink = np.full(SHAPE, 7, "u2")
    with pytest.raises(DeviceError, match=r"memory of cuda:0, but .*\.get\(\)"):
        process(double, on_gpu(volume()), sink, overlap=0, **keywords)
    assert (sink == 7).all()


def test_refused_on_two_gpus():
    with pytest.raises(DeviceError, match="cuda:0 and cuda:1"):
        process(double, on_gpu(volume()), on_gpu(volume(), 1), device="cuda", size_max=6, overlap=0)
