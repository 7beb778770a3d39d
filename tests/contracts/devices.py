"""What every device with memory and streams of its own promises: a test class to be inherited."""

import time
from collections import namedtuple
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

SIZES = [1, 3, 511, 513, 4096, 100_003]
"""Numbers of bytes."""
DTYPES = ["?", "u1", "u2", "i4", "f2", "f4", "f8", "c8"]
VIEWS = [(0, (5, 3, 4)), (512, (7,)), (1024, (2, 0, 3)), (512, ()), (0, (1, 1, 6)), (2048, (3, 5))]
"""Where in memory an array begins, and its shape."""
ENOUGH = 1 << 16
"""Bytes for any of these arrays."""
ABSURD = 1 << 55
"""More bytes than any device has."""

CASTS = [
    ("f4", "i4"),
    ("f8", "u2"),
    ("f4", "f2"),
    ("f8", "f4"),
    ("i4", "f4"),
    ("i4", "u1"),
    ("u2", "f8"),
    ("f4", "c8"),
    ("c16", "c8"),
    ("c8", "c8"),
    ("c8", "f4"),
    ("c16", "i4"),
    ("?", "f4"),
    ("?", "u1"),
    ("i4", "?"),
    ("f4", "?"),
    ("f2", "u2"),
]
"""Types of an array and of the view that it is copied to."""

LAYOUTS = [
    lambda array: array,
    lambda array: array.T.copy().T,
    lambda array: array[::-1].copy()[::-1],
    lambda array: array.repeat(2, axis=1)[:, ::2],
]
"""Arrays of the same values, laid out in memory in other ways."""

Pair = namedtuple("Pair", "one two")


class OddError(Exception):
    pass


def values(shape, dtype):
    """Return an array of different numbers, with fractions and signs where there are any."""
    count = int(np.prod(shape))
    numbers = np.arange(count).reshape(shape)
    if dtype == "?":
        return numbers % 3 == 1
    if np.dtype(dtype).kind in "iu":
        return (numbers % 120).astype(dtype)
    return ((numbers % 120) * 1.25 + (0.5j * numbers if dtype[0] == "c" else 0)).astype(dtype)


class DeviceContract:
    """Subclasses give a device, and say how functions make arrays on it and take its memory.

    What functions do with arrays here are operators and methods that all array libraries have.
    """

    @pytest.fixture
    def device(self):
        """The device under test; closed and checked afterwards."""
        raise NotImplementedError

    def array(self, values):
        """Return a new array of the device; called by functions computed on it."""
        raise NotImplementedError

    def take(self, device, nbytes):
        """Take memory of the device for the rest of a function that is computed on it."""
        raise NotImplementedError

    def upload(self, device, memory, array, stream=None):
        """Copy the bytes of an array to device memory, by way of a new page-locked one."""
        stream = device.stream() if stream is None else stream
        pinned = device.allocate_pinned(max(1, array.nbytes))[: array.nbytes]
        device.host_access(pinned, "w")
        pinned[:] = array.reshape(-1, order="A").view("u1")
        device.upload(memory, pinned, stream)
        return self.reached(device, stream)

    def download(self, device, memory, nbytes, stream=None):
        """Return the first bytes of device memory."""
        stream = device.stream() if stream is None else stream
        pinned = device.allocate_pinned(max(1, nbytes))[:nbytes]
        device.download(pinned, memory, stream)
        self.reached(device, stream)
        device.host_access(pinned, "r")
        return pinned.copy()

    def reached(self, device, stream):
        """Wait until all that was asked of a stream is done."""
        event = device.event()
        device.record(event, stream)
        device.sync(event)
        return event

    def computed(self, device, call, *memories, **keywords):
        """Compute a function that uses some memory, wait, and return the outcome."""
        stream = device.stream()
        outcome = device.compute(call, stream, reads=memories, writes=memories, **keywords)
        self.reached(device, stream)
        return outcome

    def still_works(self, device):
        """Do something simple."""
        memory = device.allocate(1000)
        sent = values((1000,), "u1")
        self.upload(device, memory, sent)
        np.testing.assert_array_equal(self.download(device, memory, 1000), sent)

    def test_it_has_a_name_and_some_memory(self, device):
        assert isinstance(device.name, str)
        free, total = device.memory()
        assert isinstance(free, int)
        assert isinstance(total, int)
        assert 0 < free <= total

    @pytest.mark.parametrize("nbytes", SIZES)
    def test_bytes_come_back_as_they_were(self, device, nbytes):
        sent = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        memory = device.allocate(nbytes)
        self.upload(device, memory, sent)
        np.testing.assert_array_equal(self.download(device, memory, nbytes), sent)
        assert self.download(device, memory, 0).shape == (0,)

    def test_copies_begin_at_the_first_byte(self, device):
        memory = device.allocate(1000)
        first, second = values((1000,), "u1"), values((300,), "u1")[::-1].copy()
        self.upload(device, memory, first)
        self.upload(device, memory, second)
        self.upload(device, memory, second[:0])
        expected = np.concatenate([second, first[300:]])
        np.testing.assert_array_equal(self.download(device, memory, 1000), expected)
        np.testing.assert_array_equal(self.download(device, memory, 17), expected[:17])

    def test_page_locked_memory_is_an_array_of_bytes(self, device):
        pinned = device.allocate_pinned(12_345)
        assert isinstance(pinned, np.ndarray)
        assert (pinned.shape, pinned.dtype) == ((12_345,), np.uint8)
        device.host_access(pinned[5:50], "w")
        pinned[5:50] = 7
        device.host_access(pinned[5:50], "r")
        assert (pinned[5:50] == 7).all()

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_views_show_the_bytes_in_memory(self, device, dtype, order):
        memory = device.allocate(ENOUGH)
        for offset, shape in VIEWS:
            expected = np.asarray(values(shape, dtype), order=order)
            sent = np.zeros(offset + expected.nbytes, "u1")
            sent[offset:] = expected.reshape(-1, order="A").view("u1")
            self.upload(device, memory, sent)
            look = partial(self.look, device, memory, offset, expected, order)
            seen = self.computed(device, look, memory).result()
            assert type(seen) is np.ndarray
            assert seen.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(seen, expected)

    def look(self, device, memory, offset, expected, order):
        """Return what a view shows, on the host; called by functions computed on the device."""
        view = device.view(memory, offset, expected.shape, expected.dtype, order)
        assert (view.shape, view.dtype) == (expected.shape, expected.dtype)
        assert view.flags.c_contiguous if order == "C" else view.flags.f_contiguous
        return device.to_host(view)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_functions_change_arrays_in_place(self, device, order):
        before = np.asarray(values((4, 5, 6), "f4"), order=order)
        memory = device.allocate(ENOUGH)
        self.upload(device, memory, before)

        def change():
            view = device.view(memory, 0, before.shape, before.dtype, order)
            view *= 2
            view[1:3, :, ::2] = 0

        self.computed(device, change, memory)
        after = self.download(device, memory, before.nbytes).view("f4")
        expected = 2 * before
        expected[1:3, :, ::2] = 0
        np.testing.assert_array_equal(after, expected.reshape(-1, order="A"))

    def test_functions_compute_from_one_memory_into_another(self, device):
        sent = values((6, 7), "u2")
        there, back = device.allocate(ENOUGH), device.allocate(ENOUGH)
        self.upload(device, there, sent)
        stream = device.stream()

        def double():
            array = device.view(there, 0, sent.shape, sent.dtype, "C")
            target = device.view(back, 512, (3, 6), np.dtype("f4"), "F")
            device.copy(target, (array * 2.5)[1:4, 1:])
            return "what it returns"

        outcome = device.compute(double, stream, reads=(there,), writes=(back,))
        self.reached(device, stream)
        assert outcome.result() == "what it returns"
        expected = (sent * 2.5)[1:4, 1:].astype("f4")
        got = self.download(device, back, 512 + expected.nbytes)[512:].view("f4")
        np.testing.assert_array_equal(got.reshape(expected.shape, order="F"), expected)
        np.testing.assert_array_equal(
            self.download(device, there, sent.nbytes).view("u2"), sent.reshape(-1)
        )

    @pytest.mark.parametrize("place", ["device", "host"])
    @pytest.mark.parametrize(("from_", "to"), CASTS)
    def test_copies_cast_as_assignment_does(self, device, from_, to, place):
        array = values((4, 5, 3), from_)
        expected = np.empty(array.shape, to)
        # NumPy does the same to complex numbers, with a warning.
        expected[...] = array.real if expected.dtype.kind in "iuf" else array
        memory = device.allocate(ENOUGH)

        places = [2048 * n for n in range(2 * len(LAYOUTS))]

        def store():
            given = [lay(self.array(array) if place == "device" else array) for lay in LAYOUTS]
            for offset, one, order in zip(places, given * 2, "CCCCFFFF", strict=True):
                view = device.view(memory, offset, array.shape, np.dtype(to), order)
                device.copy(view, one)

        self.computed(device, store, memory).result()
        stored = self.download(device, memory, ENOUGH)
        for offset, order in zip(places, "CCCCFFFF", strict=True):
            got = stored[offset : offset + expected.nbytes].view(to)
            np.testing.assert_array_equal(got, expected.reshape(-1, order=order))

    @pytest.mark.parametrize("place", ["device", "host"])
    def test_copies_of_nothing_and_of_one_number(self, device, place):
        memory = device.allocate(ENOUGH)

        def store():
            for offset, shape in ((0, (3, 0)), (512, ())):
                array = values(shape, "f4") + np.float32(2)
                view = device.view(memory, offset, shape, np.dtype("i4"), "C")
                device.copy(view, self.array(array) if place == "device" else array)

        self.computed(device, store, memory).result()
        assert self.download(device, memory, 516)[512:].view("i4") == [2]

    def test_values_come_to_the_host(self, device):
        one, two = values((3, 4), "f4"), values((5,), "u2")

        def give():
            first, second = self.array(one), self.array(two)
            nested = {"a": [first, (second, None)], "b": Pair(first, "text"), 3: {"c": second}}
            return device.to_host((nested, 7, 2.5, "text", np.float32(1.5), one, []))

        value = self.computed(device, give).result()
        nested, *rest, host, empty = value
        assert type(value) is tuple
        assert rest == [7, 2.5, "text", np.float32(1.5)]
        assert empty == []
        assert type(nested["a"][1]) is tuple
        assert nested["a"][1][1] is None
        assert type(nested["b"]) is Pair
        assert nested["b"].two == "text"
        for array in (nested["a"][0], nested["b"].one, host):
            assert type(array) is np.ndarray
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, one)
        for array in (nested["a"][1][0], nested[3]["c"]):
            assert type(array) is np.ndarray
            np.testing.assert_array_equal(array, two)

    def test_values_on_the_host_are_their_own(self, device):
        memory = device.allocate(ENOUGH)
        self.upload(device, memory, values((100,), "f4"))

        def give():
            view = device.view(memory, 0, (100,), np.dtype("f4"), "C")
            value = device.to_host([view, view[10:20]])
            view *= 0
            return value

        whole, part = self.computed(device, give, memory).result()
        np.testing.assert_array_equal(whole, values((100,), "f4"))
        np.testing.assert_array_equal(part, whole[10:20])

    def test_what_is_no_array_is_left_alone(self, device):
        thing = object()
        assert self.computed(device, lambda: device.to_host(thing)).result() is thing

    @pytest.mark.parametrize("rounds", [1, 25])
    def test_events_order_streams(self, device, rounds):
        count = 30_000
        s_in, s_compute, s_out = device.stream(), device.stream(), device.stream()
        there, back = device.allocate(4 * count), device.allocate(4 * count)
        sent, got = device.allocate_pinned(4 * count), device.allocate_pinned(4 * count)
        filled, emptied, ready, drained = (device.event() for _ in range(4))

        def add():
            array = device.view(there, 0, (count,), np.dtype("f4"), "C")
            device.copy(device.view(back, 0, (count,), np.dtype("f4"), "C"), array + 1)

        for turn in range(rounds):
            device.sync(filled)
            device.host_access(sent, "w")
            sent.view("f4")[:] = np.arange(count) * (turn + 1)
            device.wait(s_in, emptied)
            device.upload(there, sent, s_in)
            device.record(filled, s_in)
            device.wait(s_compute, filled)
            device.wait(s_compute, drained)
            device.compute(add, s_compute, reads=(there,), writes=(back,))
            device.record(emptied, s_compute)
            device.record(ready, s_compute)
            if turn:
                device.sync(drained)
                device.host_access(got, "r")
                np.testing.assert_array_equal(got.view("f4"), np.arange(count) * turn + 1)
            device.wait(s_out, ready)
            device.download(got, back, s_out)
            device.record(drained, s_out)
        device.sync(drained)
        device.host_access(got, "r")
        np.testing.assert_array_equal(got.view("f4"), np.arange(count) * rounds + 1)

    def test_nobody_waits_for_a_new_event_in_vain(self, device):
        stream, event = device.stream(), device.event()
        device.sync(event)
        device.wait(stream, event)
        self.reached(device, stream)

    def test_events_are_as_recorded_last(self, device):
        stream, event, memory = device.stream(), device.event(), device.allocate(100)
        for turn in range(3):
            sent = np.full(100, turn, np.uint8)
            pinned = device.allocate_pinned(100)
            device.host_access(pinned, "w")
            pinned[:] = sent
            device.upload(memory, pinned, stream)
            device.record(event, stream)
        device.sync(event)
        np.testing.assert_array_equal(self.download(device, memory, 100), sent)

    def test_errors_of_functions_come_out(self, device):
        def fail():
            raise OddError("of the function")

        with pytest.raises(OddError, match="of the function") as caught:
            self.computed(device, fail).result()
        assert device.classify(caught.value) == "user"
        self.still_works(device)

    def test_operations_after_a_failure_are_done(self, device):
        stream, event, memory = device.stream(), device.event(), device.allocate(ENOUGH)

        def fail():
            raise OddError

        with suppress(OddError):
            device.compute(fail, stream, reads=(memory,), writes=())
        device.record(event, stream)
        device.sync(event)
        assert self.download(device, memory, 100, stream).shape == (100,)
        self.upload(device, memory, values((100,), "u1"), stream)
        got = self.download(device, memory, 100, stream)
        np.testing.assert_array_equal(got, values((100,), "u1"))

    @pytest.mark.parametrize("error", [ValueError("no"), KeyError(1), OddError(), RuntimeError()])
    def test_errors_are_the_users_unless_they_are_of_the_device(self, device, error):
        assert device.classify(error) == "user"

    def test_functions_may_run_out_of_memory(self, device):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            self.computed(device, lambda: self.take(device, ABSURD)).result()
        assert device.classify(caught.value) == "memory"
        device.trim()
        self.still_works(device)

    @pytest.mark.parametrize("method", ["allocate", "allocate_pinned"])
    def test_slots_may_be_too_large(self, device, method):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            getattr(device, method)(ABSURD)
        assert device.classify(caught.value) == "memory"
        device.trim()
        self.still_works(device)

    @pytest.mark.parametrize("measure", [False, True])
    def test_outcomes_tell_time_and_memory(self, device, measure):
        taken = 3 << 20
        for _ in range(2):
            outcome = self.computed(device, lambda: self.take(device, taken), measure=measure)
            assert outcome.seconds >= 0
            assert outcome.idle_seconds is None or outcome.idle_seconds >= 0
            if measure:
                assert isinstance(outcome.peak_bytes, int)
                assert taken <= outcome.peak_bytes <= device.memory()[1]
            else:
                assert outcome.peak_bytes is None or outcome.peak_bytes >= taken
        assert outcome.idle_seconds is not None

    def test_marks_tell_when_they_were_reached(self, device):
        memory, stream = device.allocate(ENOUGH), device.stream()
        begun = time.perf_counter()
        first = device.mark(stream)
        self.upload(device, memory, values((1000,), "u1"), stream)
        device.compute(lambda: time.sleep(0.01), stream, reads=(), writes=())
        last = device.mark(stream)
        self.reached(device, stream)
        ended = time.perf_counter()
        moments = device.moment(first), device.moment(last)
        # Clocks are compared to some 10 us.
        assert begun - 0.001 <= moments[0]
        assert moments[0] + 0.009 <= moments[1] <= ended + 0.001

    def test_what_functions_took_is_given_back(self, device):
        free, _ = device.memory()
        for _ in range(4):
            self.computed(device, lambda: self.take(device, free // 16))
        device.trim()
        assert device.memory()[0] > free - free // 8

    def test_closed_twice(self, device):
        device.close()
        self.still_works(device)
        device.close()
        device.close()

    def test_closed_while_something_is_under_way(self, device):
        stream, memory = device.stream(), device.allocate(ENOUGH)
        done = []
        device.compute(lambda: done.append(1), stream, reads=(memory,), writes=())
        device.download(device.allocate_pinned(ENOUGH), memory, stream)
        device.close()
        assert done == [1]

    def test_closing_gives_memory_back(self, device):
        size = device.memory()[0] // 4
        for _ in range(6):
            device.allocate(size)
            device.close()
        device.trim()

    def test_used_after_it_was_closed(self, device):
        for _ in range(3):
            self.still_works(device)
            assert self.computed(device, lambda: 5).result() == 5
            device.close()
