"""Messages over sockets, and errors that travel."""

import os
import socket
import threading

import numpy as np
import pytest

from gpublocks.errors import BlockError
from gpublocks.wire import Wire, WireClosedError, described, pack, pack_anything, portable, revived
from gpublocks.wire import unpack as unpacked


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    pair = Wire(near), Wire(far)
    yield pair
    for wire in pair:
        wire.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 65_523, 65_524, 65_536, 70_000, 3_000_000])
def test_messages_arrive_whole_and_in_order(ends, size):
    near, far = ends
    array = np.arange(size, dtype=np.uint8)
    messages = [("text", "x" * size), ("array", pack({"voxels": array})), ("end",)] * 3

    def send():
        for message in messages:
            near.send(message)

    thread = threading.Thread(target=send)
    thread.start()
    received = [far.receive() for _ in messages]
    thread.join()
    assert [message[0] for message in received] == ["text", "array", "end"] * 3
    assert received[3][1] == "x" * size
    again = unpacked(received[4][1])["voxels"]
    np.testing.assert_array_equal(again, array)
    again[:] = 0


def test_many_threads_may_send(ends):
    near, far = ends

    def send(name):
        for number in range(100):
            near.send((name, number, pack(np.full(20_000, number))))

    threads = [threading.Thread(target=send, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    seen = {name: [] for name in range(3)}
    for _ in range(300):
        name, number, packed = far.receive()
        assert (unpacked(packed) == number).all()
        seen[name].append(number)
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(100)) for numbers in seen.values())


def test_descriptors_come_with_their_message(ends):
    near, far = ends
    read, write = os.pipe()
    near.send(("before",))
    near.send(("job", "x" * 100_000), [write])
    assert far.receive() == ("before",)
    assert far.receive()[0] == "job"
    (received,) = far.descriptors
    assert not os.get_inheritable(received)
    os.write(received, b"voxels")
    assert os.read(read, 6) == b"voxels"
    for number in (read, write, received):
        os.close(number)


def test_messages_amid_a_message_follow_it():
    near, far = socket.socketpair()

    class Interrupted:
        """A socket that is interrupted in the middle of each piece of a message."""

        count = 0

        def sendall(self, data, flags):
            near.sendall(memoryview(data)[:3], flags)
            if self.count < 5:
                self.count += 1
                sender.send(("inner", self.count))
            near.sendall(memoryview(data)[3:], flags)

    sender, receiver = Wire(Interrupted()), Wire(far)
    received = []

    def receive():
        while not received or received[-1] != ("end",):
            received.append(receiver.receive())

    def send():
        sender.send(("outer", pack(np.zeros(100_000)), "x" * 100_000))
        sender.send(("end",))

    threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [message[0] for message in received] == ["outer", *["inner"] * 5, "end"]
    assert [message[1] for message in received[1:-1]] == [1, 2, 3, 4, 5]
    near.close()
    receiver.close()


def test_what_cannot_be_pickled_is_not_sent_in_part(ends):
    near, far = ends
    with pytest.raises(TypeError):
        near.send(("locked", threading.Lock()))
    near.send(("next",))
    assert far.receive() == ("next",)


def test_what_was_sent_before_the_end_is_received(ends):
    near, far = ends
    far.send(("unread",))
    near.send(("last",))
    near.close()
    assert far.receive() == ("last",)
    with pytest.raises(WireClosedError):
        far.receive()
    with pytest.raises(WireClosedError):
        far.send(("late",))


def test_ready(ends):
    near, far = ends
    assert not far.ready(0)
    near.send(("one",))
    near.send(("two",))
    assert far.ready(0)
    assert far.receive() == ("one",)
    assert far.pending
    assert far.ready(0)
    assert far.receive() == ("two",)
    assert not far.pending
    near.close()
    assert far.ready(0)


def test_errors_keep_type_and_notes():
    error = BlockError("told", 3, "store")
    error.add_note("a note")
    packed, text, notes = portable(error)
    again = revived(packed, notes)
    assert type(again) is BlockError
    assert (str(again), again.block, again.stage) == ("told", 3, "store")
    assert text == "BlockError: told"
    assert again.__notes__[0] == "a note"
    assert "in a worker process" in again.__notes__[1]


def test_errors_that_cannot_be_revived_say_so():
    error = ValueError("locked")
    error.lock = threading.Lock()
    packed, text, _ = portable(error)
    assert packed is None
    assert revived(packed, []) is None
    assert text == "ValueError: locked"
    assert revived(pack("no error"), []) is None
    assert revived((b"no pickle", []), []) is None
    assert described(KeyError()) == "KeyError"


def test_functions_without_a_name_are_packed_with_their_code():
    assert unpacked(pack_anything(lambda: 3))() == 3
