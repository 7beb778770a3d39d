"""The adapter to CUDA, over a CuPy that computes in host memory; and on a GPU if there is one."""

import ast
import gc
import inspect
import sys
import threading
import traceback
import warnings
import weakref
from collections import namedtuple
from contextlib import suppress
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from contracts.devices import DeviceContract
from test_cupy_names import NAMES, find, signature, used_names

from gpublocks import gpus
from gpublocks.contracts import StreamDevice
from gpublocks.devices import cuda
from gpublocks.devices.cuda import CudaDevice, release_pinned, retired
from gpublocks.errors import BlockError, DeviceMemoryError
from gpublocks.executors.stream import StreamExecutor
from gpublocks.grid import Grid
from gpublocks.io import as_sink, as_source
from gpublocks.job import Job
from gpublocks.splitting import split_axis

MIB = 1 << 20
HERE = 1
"""The device under test: not the one that is current in a new thread."""

Pair = namedtuple("Pair", "one two")


@pytest.fixture
def fresh(monkeypatch):
    """No memory kept from other tests, and no device retired by them."""
    release_pinned()
    monkeypatch.setattr(cuda, "_retired", {})
    monkeypatch.setattr(cuda, "_abandoned", [])
    yield
    release_pinned()


@pytest.fixture
def fake(fresh, monkeypatch):
    """Two GPUs of 64 MiB."""
    return fake_cupy.install(monkeypatch, 64 * MIB, 64 * MIB)


@pytest.fixture
def device(fake):
    device = CudaDevice(HERE)
    yield device
    device.close()
    assert fake.complaints == []


@pytest.fixture
def stream(device):
    return device.stream()


def computed(device, call, stream=None, **keywords):
    stream = device.stream() if stream is None else stream
    return device.compute(call, stream, reads=(), writes=(), **keywords)


def in_a_thread(call):
    """Return what a call returns in a thread that has done nothing with CUDA."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


class TestContractOverFake(DeviceContract):
    @pytest.fixture
    def device(self, device, fake):
        yield device
        device.close()
        assert fake.device == 0
        assert fake_cupy.get_current_stream() is fake_cupy.Stream.null

    def array(self, values):
        return fake_cupy.asarray(values)

    def take(self, device, nbytes):
        fake_cupy.ndarray((nbytes,), np.uint8)


def test_it_is_a_device() -> None:
    def names(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    assert names(CudaDevice) == names(StreamDevice)


# --- the fake is like CuPy -----------------------------------------------------------------------


@pytest.fixture
def wheel():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", reason="the wheel of CuPy is not installed")


def offered(name):
    """Return what the fake has under a name of CuPy's; None if nothing."""
    return reduce(
        lambda value, part: getattr(value, part, None),
        name.split(".")[1:],
        fake_cupy.FakeCuda().cupy,
    )


IN_FAKE = [n for n in NAMES if n.startswith("cupy.") and NAMES[n] is not None and offered(n)]


def test_the_fake_has_all_that_is_used():
    device = Path(cuda.__file__)
    paths = [device, *device.parents[1].joinpath("filters").rglob("*.py")]
    names = {name for path in paths for name in used_names(ast.parse(path.read_text()))}
    assert {"cupy.cuda.Memory", "cupy.RawKernel", "cupy.rint"} <= names
    assert [name for name in names if offered(name) is None] == []


@pytest.mark.parametrize("name", IN_FAKE)
def test_the_fake_takes_the_arguments_of_cupy(wheel, name):
    told, known = signature(offered(name)), signature(find(name))
    told, known = (
        [word.replace("<class 'float'>", "float") for word in words] for words in (told, known)
    )
    if name.startswith("cupy.cuda.runtime.") or name.endswith("Error"):
        told = [word.partition("=")[0] for word in told]
        known = [word.partition("=")[0] for word in known]
    for here, there in zip(told, known, strict=True):
        assert here == there or (here.startswith("*") and there.startswith("*"))


def test_the_fake_complains(fake):
    here, there = fake_cupy.Device(0), fake_cupy.Device(1)
    with here:
        stream, event = fake_cupy.Stream(non_blocking=True), fake_cupy.Event()
        pointer = fake_cupy.MemoryPointer(fake_cupy.Memory(1024), 0)
        pinned = fake_cupy.PinnedMemory(1024)
    with there:
        other = fake_cupy.Stream()
        with pytest.raises(RuntimeError, match="does not match"), stream:
            pass
        with pytest.raises(fake_cupy.CUDARuntimeError, match="Handle"):
            event.record(other)
        with pytest.raises(AssertionError, match="is current"):
            pointer.copy_from_host_async(pinned.ptr, 10, stream)
        with pytest.warns(fake_cupy.PerformanceWarning):
            fake_cupy.ndarray((4,), "u1", pointer) + 1
    with pytest.raises(AssertionError, match="stream of device 1"):
        pointer.copy_from_host_async(pinned.ptr, 10, other)
    with pytest.raises(AssertionError, match="beyond memory"):
        (pointer + 1000).copy_from_host_async(pinned.ptr, 100, stream)
    with pytest.raises(AssertionError, match="beyond page-locked"):
        pointer.copy_from_host_async(pinned.ptr + 1000, 100, stream)
    with pytest.raises(AssertionError, match="never recorded"):
        stream.wait_event(event)
    address = pinned.ptr
    del pinned
    with pytest.raises(AssertionError, match="unlocked"):
        pointer.copy_from_host_async(address, 100, stream)
    array = fake_cupy.ndarray((4,), "u1", pointer)
    for convert in (np.asarray, np.array, lambda a: np.zeros(4) + a.get() + np.asarray(a)):
        with pytest.raises(TypeError, match="Implicit"):
            convert(array)
    with pytest.raises(TypeError, match="Unsupported type"):
        array + np.zeros(4)


def test_gpus_are_found_over_the_fake(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert [gpu.name for gpu in gpus.gpus(exact=True)] == ["NVIDIA Fake"] * 2


# --- devices, threads, streams --------------------------------------------------------------------


def test_methods_work_in_any_thread_and_leave_its_device(device, fake):
    def use():
        memory, pinned = device.allocate(1000), device.allocate_pinned(1000)
        stream, event = device.stream(), device.event()
        pinned[:] = 3
        device.upload(memory, pinned, stream)
        device.record(event, stream)
        device.wait(stream, event)
        device.sync(event)
        outcome = computed(device, lambda: 1, stream)
        device.download(pinned, memory, stream)
        device.memory()
        device.trim()
        return fake.device, outcome

    assert in_a_thread(use)[0] == 0
    fake_cupy.setDevice(HERE)
    _, outcome = use()
    assert fake.device == HERE
    assert in_a_thread(lambda: outcome.seconds) >= 0
    fake_cupy.setDevice(0)
    assert {device for name, device, _ in fake.done if name != "setDevice"} == {HERE}


def test_streams_and_events_are_of_the_kinds_that_copies_need(device, fake):
    assert device.stream().non_blocking
    event = device.event()
    assert event.block
    assert not event.timed
    assert ("eventRecord", HERE, 0) in fake.done


def test_streams_begin_after_what_was_asked_before(device, fake):
    device.stream()
    asked = [(name, device) for name, device, _ in fake.done if name != "setDevice"]
    assert asked == [("deviceSynchronize", HERE), ("streamCreate", HERE)]


def test_blocks_are_copied_in_pieces(device, stream, fake, monkeypatch):
    monkeypatch.setattr(cuda, "_PIECE_BYTES", 1000)
    memory, pinned = device.allocate(4500), device.allocate_pinned(4500)
    pinned[:] = np.random.default_rng(0).integers(0, 256, 4500, np.uint8)
    back = device.allocate_pinned(4500)
    device.upload(memory, pinned, stream)
    device.download(back, memory, stream)
    np.testing.assert_array_equal(back, pinned)
    assert fake.names().count("memcpyHtoD") == fake.names().count("memcpyDtoH") == 5
    assert "pageable" not in fake.names()


@pytest.mark.parametrize("error", [None, ValueError("of the function")])
@pytest.mark.parametrize("leave", [None, 0])
def test_functions_leave_threads_as_they_were(device, stream, fake, error, leave):
    """Whatever they raise, and if they make another device current."""
    seen = []

    def function():
        seen.append((fake.device, fake_cupy.get_current_stream(), fake.local.allocator))
        if leave is not None:
            fake_cupy.setDevice(leave)
        if error is not None:
            raise error

    def use():
        with suppress(ValueError):
            computed(device, function, stream)
        currents, stacks, entered = fake.streams()
        assert set(currents.values()) == {fake_cupy.Stream.null}
        assert all(stack == [fake_cupy.Stream.null] for stack in stacks.values())
        return entered, fake.device, fake.local.allocator

    assert in_a_thread(use) == ([], 0, None)
    current, used, allocator = seen[0]
    assert (current, used) == (HERE, stream)
    assert allocator.__self__ is not fake.default_pool


@pytest.mark.parametrize("told", [False, True])
def test_a_lost_device_does_not_take_others_along(device, fake, told):
    """Threads begin on device 0, and to go back to it fails when it is lost."""
    fake.lost.add(0)
    if told:
        CudaDevice(0).retire("no more")
    assert in_a_thread(lambda: computed(device, lambda: 5).result()) == 5
    assert (("setDevice", 0, None) in fake.done) is not told


# --- memory ---------------------------------------------------------------------------------------


def test_limits_are_kept_before_cuda_is_asked(fake):
    device = CudaDevice(HERE, 10 * MIB)
    device.allocate(6 * MIB)
    before = fake.names().count("malloc")
    with pytest.raises(
        DeviceMemoryError, match=r"cuda:1 has no 5\.24 MB .* 6\.29 MB of 10\.5 MB"
    ) as caught:
        device.allocate(5 * MIB)
    assert fake.names().count("malloc") == before
    assert device.classify(caught.value) == "memory"
    device.allocate(4 * MIB)
    device.close()
    device.allocate(10 * MIB)
    device.close()


def test_functions_get_what_copies_leave(fake):
    device = CudaDevice(HERE, 10 * MIB)
    device.allocate(6 * MIB)
    stream = device.stream()

    def take(nbytes):
        return computed(device, lambda: fake_cupy.ndarray((nbytes,), "u1").nbytes, stream)

    assert take(4 * MIB).peak_bytes == 4 * MIB
    for nbytes in (4 * MIB + 1, 60 * MIB):
        with pytest.raises(fake_cupy.OutOfMemoryError) as caught:
            take(nbytes)
        assert device.classify(caught.value) == "memory"
    device.trim()
    device.allocate(4 * MIB)
    with pytest.raises(fake_cupy.OutOfMemoryError):
        take(1)
    device.close()
    assert take(10 * MIB).result() == 10 * MIB
    device.close()


def test_without_a_limit_all_may_be_taken(device, fake):
    assert computed(device, lambda: fake_cupy.ndarray((60 * MIB,), "u1").nbytes).result()
    assert device._pool.get_limit() == 0


def test_memory_that_cuda_refuses_is_not_counted(fake):
    device = CudaDevice(HERE, 100 * MIB)
    with pytest.raises(fake_cupy.CUDARuntimeError) as caught:
        device.allocate(90 * MIB)
    assert device.classify(caught.value) == "memory"
    device.allocate(50 * MIB)
    device.close()


def test_closing_frees_what_others_still_refer_to(device, fake):
    kept = [device.allocate(60 * MIB), device.stream(), device.event(), device.allocate_pinned(9)]
    device.close()
    assert fake.taken == [0, 0]
    kept.append(device.allocate(60 * MIB))


@pytest.mark.parametrize("outside", [0, 5 * MIB, -MIB])
def test_peaks_count_what_is_taken_beside_the_pool(device, stream, fake, outside):
    def function():
        for nbytes in (3 * MIB, 2 * MIB):
            fake_cupy.ndarray((nbytes,), "u1")
        fake.outside[HERE] += outside

    computed(device, lambda: fake_cupy.ndarray((30 * MIB,), "u1").nbytes, stream)
    outcome = computed(device, function, stream, measure=True)
    assert outcome.peak_bytes == 3 * MIB
    assert outcome.outside_bytes == max(0, outside)
    asked = [name for name in fake.names() if name != "setDevice"]
    assert asked[-2:] == ["streamSynchronize", "memGetInfo"]
    assert computed(device, function, stream).peak_bytes == 3 * MIB
    fake.outside[HERE] = 0


def test_what_is_taken_after_the_function_is_no_need_of_its(device, stream, fake):
    def both():
        device.call(lambda: fake_cupy.ndarray((3 * MIB,), "u1").nbytes)
        fake_cupy.ndarray((9 * MIB,), "u1")

    assert computed(device, both, stream, measure=True).peak_bytes == 3 * MIB


def test_what_follows_waits_for_the_stream_that_a_function_left_current(device, stream, fake):
    def function():
        fake_cupy.Stream(non_blocking=True).use()
        return fake_cupy.asarray(np.arange(6.0))

    def store():
        assert device.call(function).shape == (6,)
        assert fake_cupy.get_current_stream() is stream

    before = len(fake.done)
    computed(device, store, stream)
    names = [(name, place) for name, _, place in fake.done[before:] if "Event" in name]
    assert any(name == "streamWaitEvent" and place == stream.ptr for name, place in names)


def test_plans_of_the_computing_thread_are_let_go(device, fake, monkeypatch):
    cleared = []
    cache = SimpleNamespace(clear=lambda: cleared.append(threading.get_ident()))
    monkeypatch.setitem(sys.modules, "cupy.cuda.cufft", SimpleNamespace())
    config = SimpleNamespace(get_plan_cache=lambda: cache)
    monkeypatch.setattr(sys.modules["cupy"], "fft", SimpleNamespace(config=config), raising=False)
    device.rest()
    assert cleared == [threading.get_ident()]


def test_seconds_are_those_between_events(device, stream, fake, monkeypatch):
    clock = iter([0.0, 10.0, 10.5, 12.0, 12.25, 12.0, 13.0, 20.0, 21.0, 21.5, 30.0, 31.0])
    monkeypatch.setattr(fake_cupy.time, "perf_counter", lambda: next(clock))
    device.event()
    first, second, other = (
        computed(device, lambda: 1, where) for where in (stream, stream, device.stream())
    )
    assert (first.seconds, first.idle_seconds) == (0.5, None)
    assert (second.seconds, second.idle_seconds) == (0.25, 1.5)
    assert (other.seconds, other.idle_seconds) == (1.0, 0.0)
    with pytest.raises(ZeroDivisionError):
        computed(device, lambda: 1 / 0, stream)
    assert computed(device, lambda: 3, stream).idle_seconds is None
    device.close()
    assert computed(device, lambda: 3, stream).idle_seconds is None


def test_memory_kept_for_later_is_given_back(device, fake, monkeypatch):
    def fill():
        computed(device, lambda: fake_cupy.ndarray((20 * MIB,), "u1").nbytes)
        fake_cupy.setDevice(HERE)
        fake_cupy.ndarray((10 * MIB,), "u1")
        fake_cupy.setDevice(0)

    fill()
    assert fake.taken[HERE] == 30 * MIB
    device.trim()
    assert fake.taken == [0, 0]
    assert "clearPlans" not in fake.names()
    monkeypatch.setitem(sys.modules, "cupy.cuda.cufft", SimpleNamespace())
    device.trim()
    assert ("clearPlans", HERE, None) in fake.done


def test_garbage_that_holds_memory_is_collected(device, fake):
    def tangle():
        ring = [fake_cupy.ndarray((10 * MIB,), "u1")]
        ring.append(ring)

    gc.disable()
    try:
        computed(device, tangle)
        assert fake.taken[HERE] == 10 * MIB
        device.trim()
        assert fake.taken[HERE] == 0
    finally:
        gc.enable()


# --- page-locked memory ---------------------------------------------------------------------------


def locks(fake):
    return fake.names().count("hostAlloc")


def test_page_locked_memory_is_used_again(device, fake):
    address = device.allocate_pinned(10_000).ctypes.data
    assert list(fake.locked.values()) == [10_000]
    device.close()
    other = CudaDevice(0)
    for nbytes in (5000, 10_000):
        before = locks(fake)
        array = other.allocate_pinned(nbytes)
        assert (array.ctypes.data, locks(fake)) == (address, before)
        assert (array.shape, array.dtype) == ((nbytes,), np.uint8)
        other.close()


@pytest.mark.parametrize("nbytes", [4999, 10_001])
def test_page_locked_memory_that_does_not_fit_is_freed_first(device, fake, nbytes):
    device.allocate_pinned(10_000)
    device.close()
    device.allocate_pinned(nbytes)
    assert list(fake.locked.values()) == [nbytes]


def test_the_smallest_page_locked_memory_is_taken_that_is_large_enough(device, fake):
    addresses = {n: device.allocate_pinned(n).ctypes.data for n in (9000, 6000, 8000)}
    device.close()
    assert device.allocate_pinned(5000).ctypes.data == addresses[6000]


def test_page_locked_memory_may_be_used_by_all_devices(device, fake):
    array = device.allocate_pinned(100)
    pointer = device._pinned[0]
    assert pointer.mem.flags == fake.cupy.cuda.runtime.hostAllocPortable
    assert array.flags.writeable


def test_no_more_page_locked_memory_is_kept_than_stated(device, fake, monkeypatch):
    monkeypatch.setattr(cuda, "_STORE_BYTES", 1000)
    for nbytes in (400, 300, 500):
        device.allocate_pinned(nbytes)
    device.close()
    assert sorted(fake.locked.values()) == [300, 500]
    device.allocate_pinned(2000)
    device.close()
    assert list(fake.locked.values()) == []
    device.allocate_pinned(700)
    device.close()
    assert list(fake.locked.values()) == [700]
    release_pinned()
    assert list(fake.locked.values()) == []


def test_many_threads_share_what_is_kept(device, fake):
    for _ in range(40):
        device.allocate_pinned(1000)
    device.close()
    locked, found = locks(fake), []
    others = [CudaDevice(0) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda one=one: found.extend(one.allocate_pinned(1000) for _ in range(5))
            )
            for one in others
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len({array.ctypes.data for array in found}) == 40
    assert locks(fake) == locked
    for one in others:
        one.close()
    assert len(cuda._store._pieces) == 40


def test_where_no_memory_can_be_locked_plain_memory_does(device, stream, fake):
    device.allocate_pinned(1000)
    device.close()
    fake.faults["hostAlloc"] = fake_cupy.CUDARuntimeError(304)
    memory, plain = device.allocate(5000), device.allocate_pinned(5000)
    assert fake.locked == {}, "what was kept is given back before"
    assert (plain.shape, plain.dtype) == ((5000,), np.uint8)
    plain[:] = 7
    device.upload(memory, plain, stream)
    plain[:] = 0
    device.download(plain, memory, stream)
    assert (plain == 7).all()
    assert "pageable" in fake.names()
    kept = weakref.ref(plain)
    del plain
    assert kept() is not None, "a copy may be under way"
    device.close()
    assert kept() is None
    assert cuda._store._pieces == []


def test_what_is_kept_makes_room_for_other_sizes(device, fake):
    fake.lockable = 2400
    device.allocate_pinned(2000)
    device.close()
    device.allocate_pinned(500)
    assert list(fake.locked.values()) == [500]


def test_a_lost_device_locks_no_memory(device, fake):
    fake.faults["hostAlloc"] = fake_cupy.CUDARuntimeError(700)
    with pytest.raises(fake_cupy.CUDARuntimeError):
        device.allocate_pinned(10)


# --- arrays ---------------------------------------------------------------------------------------


@pytest.fixture
def target(device):
    """A view of the device's memory, in which copies end."""
    memory = device.allocate(4096)
    return lambda shape, dtype: device.view(memory, 512, shape, np.dtype(dtype), "C")


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("dtype", ["f4", "i2", "u1", "?", "c8"])
def test_complex_numbers_are_cast_without_a_word(device, target, dtype, place):
    voxels = np.array([0, 1.75 + 2j, 3j, -0.0, 200 + 1j], "c16")

    def store():
        view = target(5, dtype)
        device.copy(view, fake_cupy.asarray(voxels) if place == "device" else voxels)
        return view.get()

    expected = voxels.astype(dtype) if dtype in ("?", "c8") else voxels.real.astype(dtype)
    np.testing.assert_array_equal(computed(device, store).result(), expected)


def test_arrays_of_the_device_take_one_kernel(device, stream, target, fake):
    def store():
        array = fake_cupy.asarray(np.arange(6.0))
        fake.done.clear()
        device.copy(target(6, "u1"), array)
        return list(fake.done)

    assert computed(device, store, stream).result() == [("copy", HERE, stream.ptr)]


def test_copies_go_to_the_right_device_whatever_is_current(device, stream, target, fake):
    def store():
        array = fake_cupy.asarray(np.arange(6.0))
        fake_cupy.setDevice(0)
        device.copy(target(6, "u1"), array)
        return device.to_host(target(6, "u1"))

    np.testing.assert_array_equal(computed(device, store, stream).result(), np.arange(6))


def test_arrays_on_another_gpu_are_refused_by_name(device, target):
    with fake_cupy.Device(0):
        array = fake_cupy.asarray(np.zeros(4))
    with pytest.raises(BlockError, match="returned an array on cuda:0, expected one on cuda:1"):
        computed(device, lambda: device.copy(target(4, "f4"), array))


def test_nothing_is_spread_over_another_shape(device, target):
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(3, 4\)"):
        computed(device, lambda: device.copy(target((3, 4), "f4"), np.zeros(4)))


class Foreign:
    """An array of another library that computes on GPUs, with streams of its own."""

    def __init__(self, voxels):
        self.voxels = voxels
        self.shape = voxels.shape

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.voxels.dtype.str,
            "data": (self.voxels.ctypes.data, False),
            "version": 2,
        }


@pytest.mark.parametrize("convert", [lambda array: array, fake_cupy.asarray])
def test_arrays_of_other_libraries_are_waited_for(device, stream, target, fake, convert):
    def store():
        array = convert(Foreign(np.arange(5, dtype="f4")))
        fake.done.clear()
        device.copy(target(5, "i4"), array)
        names = fake.names()
        assert names.index("deviceSynchronize") < names.index("copy")
        assert ("streamSynchronize", HERE, stream.ptr) in fake.done
        return target(5, "i4").get()

    np.testing.assert_array_equal(computed(device, store, stream).result(), np.arange(5))


def test_values_on_any_gpu_come_to_the_host(device):
    with fake_cupy.Device(0):
        there = fake_cupy.asarray(np.arange(3))
    found = computed(device, lambda: device.to_host((there, [1]))).result()
    assert type(found[0]) is np.ndarray
    np.testing.assert_array_equal(found[0], np.arange(3))


def test_only_plain_collections_are_looked_into(device):
    class Own(list):
        pass

    def give():
        array = fake_cupy.asarray(np.asfortranarray(np.ones((2, 3))))
        own = Own([array])
        return device.to_host((own, {"a": Pair(array, own)}, {array.ndim})), own, array

    (first, second, third), own, array = computed(device, give).result()
    assert first is own
    assert second["a"].two is own
    assert own[0] is array
    assert type(second["a"]) is Pair
    assert third == {2}


def test_arrays_keep_their_order(device, stream):
    memory = device.allocate(4096)
    for order in ("C", "F"):
        view = device.view(memory, 0, (3, 4), np.dtype("f4"), order)
        flags = computed(device, lambda view=view: device.to_host(view), stream).result().flags
        assert flags.c_contiguous is (order == "C")
        assert flags.f_contiguous is (order == "F")


# --- errors ---------------------------------------------------------------------------------------


def library_error(name, module, **attributes):
    """Return an error as libraries that are not here raise it."""
    error = type(name, (RuntimeError,), {"__module__": module})("text")
    vars(error).update(attributes)
    return error


def runtime_error(code):
    return library_error("CUDARuntimeError", "cupy_backends.cuda.api.runtime", status=code)


def driver_error(code):
    return library_error("CUDADriverError", "cupy_backends.cuda.api.driver", status=code)


LIBS = "cupy_backends.cuda.libs"
KINDS = [
    (runtime_error(2), "memory"),
    (runtime_error(700), "fatal"),
    (runtime_error(719), "fatal"),
    (runtime_error(999), "fatal"),
    (runtime_error(1), "user"),
    (runtime_error(101), "user"),
    (runtime_error(600), "user"),
    (driver_error(2), "memory"),
    (driver_error(701), "memory"),
    (driver_error(700), "fatal"),
    (driver_error(1), "user"),
    (library_error("OutOfMemoryError", "cupy.cuda.memory"), "memory"),
    (library_error("CUBLASError", f"{LIBS}.cublas", status=3), "memory"),
    (library_error("CUBLASError", f"{LIBS}.cublas", status=13), "user"),
    (library_error("CUSOLVERError", f"{LIBS}.cusolver", status=2), "memory"),
    (library_error("CuSparseError", f"{LIBS}.cusparse", status=11), "memory"),
    (library_error("CuFFTError", "cupy.cuda.cufft", result=2), "memory"),
    (library_error("CuFFTError", "cupy.cuda.cufft", result=5), "user"),
    (library_error("CURANDError", f"{LIBS}.curand", status=102), "memory"),
    (library_error("CuTensorError", f"{LIBS}.cutensor", status=3), "memory"),
    (library_error("CuTensorError", f"{LIBS}.cutensor", status=700), "user"),
    (library_error("CUDARuntimeError", "mine", status=2), "user"),
    (library_error("OutOfMemoryError", "mine"), "user"),
    (DeviceMemoryError("no"), "memory"),
    (MemoryError("std::bad_alloc"), "memory"),
    (MemoryError("std::bad_alloc: out_of_memory: CUDA error at: ..."), "memory"),
    (MemoryError(), "user"),
    (MemoryError("Unable to allocate 3 GiB"), "user"),
    (BlockError("no"), "user"),
    (KeyboardInterrupt(), "user"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda v: repr(v)[:40])
def test_errors_are_known_by_class_and_code(device, error, kind):
    assert device.classify(error) == kind


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("error", "kind"), KINDS[:2], ids=["memory", "fatal"])
def test_errors_are_known_when_they_are_wrapped(device, error, kind, hidden):
    def wrap(wrapped):
        try:
            try:
                raise wrapped
            except Exception as cause:
                if hidden:
                    raise ValueError("wrapped") from None
                raise KeyError("wrapped") from cause
        except Exception as outer:
            return outer

    assert device.classify(wrap(wrap(error))) == kind


def test_a_lost_device_is_worse_than_one_without_memory(device):
    error = runtime_error(2)
    error.__cause__ = runtime_error(700)
    error.__cause__.__context__ = error
    assert device.classify(error) == "fatal"


def test_errors_of_the_wheel_are_known(wheel, device):
    memory, runtime, driver = wheel.cuda.memory, wheel.cuda.runtime, wheel.cuda.driver
    assert device.classify(memory.OutOfMemoryError(1, 2, 3)) == "memory"
    assert device.classify(runtime.CUDARuntimeError(2)) == "memory"
    assert device.classify(runtime.CUDARuntimeError(700)) == "fatal"
    assert device.classify(runtime.CUDARuntimeError(1)) == "user"
    error = driver.CUDADriverError.__new__(driver.CUDADriverError)
    for code, kind in ((2, "memory"), (719, "fatal"), (1, "user")):
        error.status = code
        assert device.classify(error) == kind


LOST = """
DevicesUnavailable NoDevice ECCUncorrectable NvlinkUncorrectable Contained IllegalAddress
LaunchTimeout ContextIsDestroyed Assert HardwareStackError IllegalInstruction MisalignedAddress
InvalidAddressSpace InvalidPc LaunchFailure TensorMemoryLeak MpsClientTerminated ExternalDevice
Unknown
"""


def test_codes_mean_what_they_are_taken_for(wheel):
    def name(code):
        return str(wheel.cuda.runtime.CUDARuntimeError(code)).partition(":")[0]

    assert {name(code) for code in cuda._LOST} == {f"cudaError{name}" for name in LOST.split()}
    assert [name(code) for code in cuda._OUT_OF_MEMORY["CUDARuntimeError"]] == [
        "cudaErrorMemoryAllocation",
        "cudaErrorLaunchOutOfResources",
    ]


MODULES = {
    "CUBLASError": f"{LIBS}.cublas",
    "CUSOLVERError": f"{LIBS}.cusolver",
    "CuSparseError": f"{LIBS}.cusparse",
    "CURANDError": f"{LIBS}.curand",
    "CuTensorError": f"{LIBS}.cutensor",
    "CuFFTError": "cupy.cuda.cufft",
    "CUDARuntimeError": "cupy_backends.cuda.api.runtime",
    "CUDADriverError": "cupy_backends.cuda.api.driver",
}


def library(name):
    """Return a module of CuPy that may need a library of CUDA, which its package looks for."""
    package, _, last = name.rpartition(".")
    try:
        return getattr(import_module(package), last)
    except ImportError as error:
        pytest.skip(str(error).partition("\n")[0])


@pytest.mark.parametrize("name", MODULES)
def test_libraries_have_the_errors_that_are_known(wheel, name):
    assert set(MODULES) == set(cuda._OUT_OF_MEMORY)
    kind = getattr(library(MODULES[name]), name)
    assert kind.__module__ == MODULES[name]
    if name == "CUDADriverError" and wheel.cuda.runtime.driverGetVersion() == 0:
        pytest.skip("there is no CUDA driver to tell what its errors mean")
    for code in cuda._OUT_OF_MEMORY[name]:
        error = kind(code)
        assert getattr(error, "result" if name == "CuFFTError" else "status") == code
        assert any(word in str(error).upper() for word in ("ALLOC", "MEMORY", "RESOURCES"))


def test_functions_survive_want_of_memory(device, stream):
    def greedy():
        kept = fake_cupy.ndarray((30 * MIB,), "u1")
        return kept, fake_cupy.ndarray((50 * MIB,), "u1")

    with pytest.raises(fake_cupy.OutOfMemoryError) as caught:
        computed(device, greedy, stream)
    assert device.classify(caught.value) == "memory"
    traceback.clear_frames(caught.value.__traceback__)
    device.trim()
    assert computed(device, lambda: fake_cupy.ndarray((60 * MIB,), "u1").size, stream).result()


# --- lost devices ---------------------------------------------------------------------------------


def under_way(device):
    """Take everything that can be taken; return what the engine would hold of it."""
    stream, event = device.stream(), device.event()
    memory, pinned = device.allocate(1000), device.allocate_pinned(1000)
    device.upload(memory, pinned, stream)
    outcome = computed(device, lambda: fake_cupy.ndarray((1000,), "u1").nbytes, stream)
    return stream, event, memory, pinned, outcome


@pytest.mark.parametrize("told", ["retired", "found out"])
def test_nothing_of_a_lost_device_is_freed(fake, told):
    """Each attempt would fail, and CuPy's destructors print what fails."""
    device = CudaDevice(HERE)
    kept = under_way(device)
    fake.lost.add(HERE)
    with pytest.raises(fake_cupy.CUDARuntimeError) as caught:
        device.sync(kept[1])
    assert device.classify(caught.value) == "fatal"
    if told == "retired":
        device.retire("an illegal memory access was encountered")
    device.close()
    device.close()
    device.trim() if told == "retired" else None
    del kept, device, caught
    gc.collect()
    release_pinned()
    assert fake.complaints == []
    assert cuda._store._pieces == []
    assert fake.taken[HERE] > 1000


def test_nothing_is_asked_of_a_retired_device(fake):
    device = CudaDevice(HERE)
    kept = under_way(device)
    device.retire("by another run")
    fake.done.clear()
    device.trim()
    device.close()
    assert fake.done == []
    del kept


def test_retired_devices_are_told(device):
    assert retired() == {}
    device.retire("a reason")
    CudaDevice(0).retire("another")
    assert retired() == {1: "a reason", 0: "another"}
    retired().clear()
    assert len(retired()) == 2


@pytest.mark.parametrize("fault", ["streamSynchronize", "setDevice"])
def test_closing_never_fails(fake, fault):
    device = CudaDevice(HERE)
    kept = under_way(device)
    fake.faults[fault] = fake_cupy.CUDARuntimeError(700)
    device.close()
    fake.faults.clear()
    assert len(cuda._abandoned) == 1
    del kept
    memory = device.allocate(10)
    device.close()
    assert memory.pointer is None


# --- with the engine ------------------------------------------------------------------------------


def blur(array):
    """Sum up neighbours along the first axis, with the operators that all arrays have."""
    total = array * 2.0
    total[1:] += array[:-1]
    total[:-1] += array[1:]
    return total


def whole_and_blocks(function, devices, *, order="C", size_max=40, **keywords):
    """Return what a function makes of a volume in blocks and in one piece, and the events."""
    shape = (120, 30, 20)
    volume = np.asarray(np.arange(np.prod(shape)).reshape(shape) % 251, np.uint8, order=order)
    sink = np.zeros(shape, np.float32, order="F" if order == "C" else "C")
    grid = Grid(shape, (0,), (split_axis(shape[0], size_max=size_max, overlap=2),))
    sources, sinks = (as_source(volume),), (as_sink(sink),)
    job = Job(function, sources, sinks, grid, outputs=1, divisible=True, **keywords)
    events = list(StreamExecutor(devices, "cuda", copiers=2).run(job, grid))
    return sink, blur(volume), events


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_go_through_several_devices(fake, order):
    sink, expected, _ = whole_and_blocks(blur, [CudaDevice(0), CudaDevice(1)], order=order)
    np.testing.assert_array_equal(sink, expected)
    assert fake.taken == [0, 0]
    assert fake.complaints == []
    streams = {name: stream for name, _, stream in fake.done if name[:6] in ("memcpy", "launch")}
    assert len(set(streams.values())) == 3


def test_blocks_for_which_there_is_no_memory_are_halved(fake):
    # There are two slots for 40 planes of 600 voxels, as bytes and as floats. What is left holds 25
    # planes of what the function takes: its input, its result, and as much for what is added.
    device = CudaDevice(HERE, 2 * 40 * 600 * (1 + 4) + 25 * 600 * (1 + 8 + 8))
    sink, expected, events = whole_and_blocks(blur, [device])
    np.testing.assert_array_equal(sink, expected)
    assert {type(event).__name__ for event in events} >= {"CellRetried", "CellSplit"}
    assert fake.taken == [0, 0]


def test_blocks_of_a_lost_device_go_to_another(fake):
    def harm(array):
        if array.device.id == 0:
            fake.lost.add(0)
        return blur(array)

    devices = [CudaDevice(0), CudaDevice(1)]
    sink, expected, _ = whole_and_blocks(harm, devices, size_max=10)
    np.testing.assert_array_equal(sink, expected)
    assert retired() == {0: "cudaErrorIllegalAddress: an illegal memory access was encountered"}
    gc.collect()
    assert fake.complaints == []


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.fixture
def gpu(fresh):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cupy  # noqa: F401
    device = CudaDevice(0)
    yield device
    device.close()
    device.trim()
    assert retired() == {}


@pytest.mark.gpu
class TestContractOnGpu(DeviceContract):
    @pytest.fixture
    def device(self, gpu):
        return gpu

    def array(self, values):
        import cupy

        return cupy.asarray(values)

    def take(self, device, nbytes):
        import cupy

        cupy.ndarray((nbytes,), cupy.uint8)


@pytest.mark.gpu
class TestOnGpu:
    def finished(self, device, call, **keywords):
        stream, event = device.stream(), device.event()
        outcome = computed(device, call, stream, **keywords)
        device.record(event, stream)
        device.sync(event)
        return outcome

    def test_functions_get_no_more_than_the_limit(self, fresh):
        import cupy

        device = CudaDevice(0, 64 * MIB)
        device.allocate(32 * MIB)
        for _ in range(2):
            with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as caught:
                self.finished(device, lambda: cupy.zeros(33 * MIB, "u1"))
            assert device.classify(caught.value) == "memory"
            traceback.clear_frames(caught.value.__traceback__)
            device.trim()
            outcome = self.finished(device, lambda: int(cupy.ones(MIB, "u1").sum()))
            assert outcome.result() == MIB
        with pytest.raises(DeviceMemoryError):
            device.allocate(33 * MIB)
        device.close()

    def test_more_memory_than_there_is(self, gpu):
        with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation") as caught:
            gpu.allocate(gpu.memory()[1] * 2)
        assert gpu.classify(caught.value) == "memory"
        gpu.allocate(1000)

    def test_page_locked_memory_is_locked(self, gpu):
        import cupy

        array = gpu.allocate_pinned(3 * MIB + 5)
        address = array.ctypes.data
        assert cupy.cuda.pinned_memory.is_memory_pinned(address)
        gpu.close()
        again = gpu.allocate_pinned(3 * MIB)
        assert again.ctypes.data == address
        assert cupy.cuda.pinned_memory.is_memory_pinned(address)

    def test_plain_memory_does_too(self, gpu, monkeypatch):
        monkeypatch.setattr(CudaDevice, "_pin", lambda self, nbytes: None)
        memory, plain, stream = gpu.allocate(40 * MIB), gpu.allocate_pinned(40 * MIB), gpu.stream()
        sent = np.random.default_rng(0).integers(0, 256, plain.size, np.uint8)
        plain[:] = sent
        event = gpu.event()
        gpu.upload(memory, plain, stream)
        gpu.record(event, stream)
        gpu.sync(event)
        plain[:] = 0
        gpu.download(plain, memory, stream)
        gpu.record(event, stream)
        gpu.sync(event)
        np.testing.assert_array_equal(plain, sent)

    @pytest.mark.parametrize("dtype", ["f4", "i2", "?", "c8"])
    def test_complex_numbers_are_cast_without_a_word(self, gpu, dtype):
        import cupy

        voxels = np.array([0, 1.75 + 2j, 3j, -0.0, 100 + 1j], "c16")
        memory = gpu.allocate(4096)

        def store():
            view = gpu.view(memory, 512, (5,), np.dtype(dtype), "C")
            gpu.copy(view, cupy.asarray(voxels))
            return gpu.to_host(view)

        expected = voxels.astype(dtype) if dtype in ("?", "c8") else voxels.real.astype(dtype)
        np.testing.assert_array_equal(self.finished(gpu, store).result(), expected)

    def test_arrays_of_other_libraries(self, gpu):
        import cupy

        memory = gpu.allocate(4096)

        def store():
            array = cupy.arange(6, dtype="f4").reshape(2, 3)
            told = array.__cuda_array_interface__
            foreign = SimpleNamespace(__cuda_array_interface__=told, shape=(2, 3), kept=array)
            view = gpu.view(memory, 0, (2, 3), np.dtype("u2"), "F")
            gpu.copy(view, foreign)
            return gpu.to_host(view)

        found = self.finished(gpu, store).result()
        np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_blocks_go_through(self, gpu, order):
        sink, expected, _ = whole_and_blocks(blur, [gpu], order=order)
        np.testing.assert_array_equal(sink, expected)

    def test_threads_are_left_as_they_were(self, gpu):
        import cupy

        def use():
            stream = gpu.stream()
            seen = computed(gpu, cupy.cuda.get_current_stream, stream).result()
            with pytest.raises(ZeroDivisionError):
                computed(gpu, lambda: 1 / 0, stream)
            return seen == stream, cupy.cuda.get_current_stream() == cupy.cuda.Stream.null

        assert in_a_thread(use) == (True, True)

    def test_time_and_memory_are_measured(self, gpu):
        import cupy

        def work():
            array = cupy.ones((8, MIB), "f4")
            for _ in range(20):
                array = cupy.sqrt(array + 1)
            return float(array.max())

        first = self.finished(gpu, work, measure=True)
        second = self.finished(gpu, work, measure=True)
        assert first.idle_seconds is None
        assert second.idle_seconds is not None
        assert second.idle_seconds >= 0
        assert second.seconds > 0
        assert 2 * 32 * MIB <= second.peak_bytes < gpu.memory()[1]

    def test_plans_are_given_back(self, gpu):
        library("cupy.cuda.cufft")
        import cupy

        def transform():
            return float(abs(cupy.fft.fftn(cupy.ones((64, 64, 64), "c8"))).max())

        assert self.finished(gpu, transform).result() == pytest.approx(64**3)
        assert cupy.fft.config.get_plan_cache().get_curr_size() > 0
        gpu.trim()
        assert cupy.fft.config.get_plan_cache().get_curr_size() == 0
