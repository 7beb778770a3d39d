"""The simulated device: it is a device, and its oracle finds what is missing and nothing else."""

import random
from contextlib import nullcontext, suppress
from functools import partial
from itertools import product

import numpy as np
import pytest
from contracts.devices import DeviceContract
from simulated_device import (
    POISON,
    MisuseError,
    RaceError,
    SimulatedDevice,
    SimulatedDeviceLost,
    SimulatedOutOfMemory,
)
from simulated_threads import DeadlockError, SimulatedThreads

POLICIES = ["eager", "lazy", "random"]
policies = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture
def world():
    with SimulatedThreads(0) as world:
        yield world


class TestDevice(DeviceContract):
    @pytest.fixture(params=[*product(POLICIES, ["outcome"]), ("eager", "compute")], ids="-".join)
    def device(self, request, world):
        policy, raises = request.param
        device = SimulatedDevice(world, policy=policy, raises=raises)
        yield device
        device.close()

    def array(self, values):
        return np.array(values)

    def take(self, device, nbytes):
        device.take(nbytes)


NBYTES = 24
WAITS = [
    "write a page-locked slot only when it was copied",
    "fill a slot of the device only when it was computed on",
    "compute only on a slot that was filled",
    "compute only to a slot that was copied from",
    "copy only what was computed",
    "read a page-locked slot only when it was copied to",
]
TOKENS = ["host in", "device in", "to compute", "to store", "host out"]


class Pipeline:
    """Cells that are gathered, uploaded, doubled, downloaded and scattered, by three threads.

    Parameters
    ----------
    without : str
        A wait that is left out.
    forgets : str
        A queue to which nothing is put from the fourth cell on.
    hurries : str
        A queue to which tokens are passed on before the event is recorded that the next one waits
        for.
    """

    def __init__(self, world, device, *, without=None, forgets=None, hurries=None, cells=7):
        self.world, self.device = world, device
        self.without, self.forgets, self.hurries = without, forgets, hurries
        self.values = np.random.default_rng(0).integers(0, 100, (cells, NBYTES), np.uint8)
        self.results = np.zeros_like(self.values)
        self.queues = {name: world.queue(0) for name in TOKENS}
        self.streams = [device.stream() for _ in range(3)]
        self.device_out = [(device.allocate(NBYTES), *self.events(2)) for _ in range(2)]
        for _ in range(2):
            self.put("host in", (device.allocate_pinned(NBYTES), *self.events(1)))
            self.put("host out", (device.allocate_pinned(NBYTES), *self.events(1)))
            self.put("device in", (device.allocate(NBYTES), *self.events(2)))

    def events(self, count):
        return [self.device.event() for _ in range(count)]

    def put(self, queue, token, cell=None):
        if queue != self.forgets or cell is None or cell < 3:
            self.queues[queue].put(token)

    def only(self, reason, wait, *arguments):
        if reason != self.without:
            wait(*arguments)

    def record_and_put(self, queue, token, cell, *records):
        """Record events and put a token on a queue: first the one, then the other."""
        steps = [partial(self.device.record, *record) for record in records]
        hurried = queue == self.hurries
        steps.insert(0 if hurried else len(steps), partial(self.put, queue, token, cell))
        for step in steps:
            step()

    def run(self):
        names = [self.load, self.compute, self.store]
        threads = [self.world.start(name, name.__name__) for name in names]
        for thread in threads:
            thread.join()
        self.device.close()

    def load(self):
        for cell, values in enumerate(self.values):
            pinned, copied = self.queues["host in"].get()
            self.only(WAITS[0], self.device.sync, copied)
            self.device.host_access(pinned, "w")
            pinned[:] = values
            memory, filled, emptied = self.queues["device in"].get()
            self.only(WAITS[1], self.device.wait, self.streams[0], emptied)
            self.device.upload(memory, pinned, self.streams[0])
            self.device.record(copied, self.streams[0])
            self.put("host in", (pinned, copied), cell)
            token = (memory, filled, emptied)
            self.record_and_put("to compute", token, cell, (filled, self.streams[0]))

    def compute(self):
        for cell in range(len(self.values)):
            there = memory, filled, emptied = self.queues["to compute"].get()
            back, ready, drained = self.device_out[cell % 2]
            self.only(WAITS[2], self.device.wait, self.streams[1], filled)
            self.only(WAITS[3], self.device.wait, self.streams[1], drained)
            call = partial(self.double, memory, back)
            outcome = self.device.compute(call, self.streams[1], reads=(memory,), writes=(back,))
            self.device.record(ready, self.streams[1])
            self.record_and_put("device in", there, cell, (emptied, self.streams[1]))
            pinned, copied = self.queues["host out"].get()
            self.only(WAITS[4], self.device.wait, self.streams[2], ready)
            self.device.download(pinned, back, self.streams[2])
            records = ((drained, self.streams[2]), (copied, self.streams[2]))
            self.record_and_put("to store", (pinned, copied, outcome), cell, *records)

    def double(self, memory, back):
        array = self.device.view(memory, 0, (NBYTES,), np.dtype("u1"), "C")
        array *= 2
        self.device.copy(self.device.view(back, 0, (NBYTES,), np.dtype("u1"), "C"), array)

    def store(self):
        for cell in range(len(self.values)):
            pinned, copied, outcome = self.queues["to store"].get()
            self.only(WAITS[5], self.device.sync, copied)
            self.device.host_access(pinned, "r")
            self.results[cell] = pinned
            outcome.result()
            self.put("host out", (pinned, copied), cell)


def run_pipeline(policy, seed, **faults):
    with SimulatedThreads(seed) as world:
        device = SimulatedDevice(world, policy=policy, seed=seed, speed=seed % 3)
        pipeline = Pipeline(world, device, **faults)
        pipeline.run()
        return pipeline


@policies
def test_nothing_is_found_where_nothing_is_missing(policy):
    for seed in range(40):
        pipeline = run_pipeline(policy, seed)
        np.testing.assert_array_equal(pipeline.results, 2 * pipeline.values)


@policies
@pytest.mark.parametrize("without", WAITS)
def test_a_missing_wait_is_a_race_in_every_schedule(policy, without):
    for seed in range(8):
        with pytest.raises(RaceError, match="may come before"):
            run_pipeline(policy, seed, without=without)


@policies
@pytest.mark.parametrize("hurries", ["device in", "to compute", "to store"])
def test_a_token_before_its_event_is_a_race_in_every_schedule(policy, hurries):
    for seed in range(8):
        with pytest.raises(RaceError, match="may come before"):
            run_pipeline(policy, seed, hurries=hurries)


@policies
@pytest.mark.parametrize("forgets", TOKENS)
def test_a_forgotten_token_is_a_deadlock(policy, forgets):
    for seed in range(5):
        with pytest.raises(DeadlockError, match=r"main: join.*: get"):
            run_pipeline(policy, seed, forgets=forgets)


@pytest.fixture
def _blind(monkeypatch):
    """An oracle that tells nothing."""
    monkeypatch.setattr(SimulatedThreads, "report", lambda self, error: None)
    monkeypatch.setattr("simulated_device._Outcome._reached", lambda self: self)


@pytest.mark.usefixtures("_blind")
def test_schedules_show_some_of_it_and_miss_the_rest():
    wrong = dict.fromkeys(POLICIES, 0)
    for policy, without, seed in product(POLICIES, WAITS, range(5)):
        pipeline = run_pipeline(policy, seed, without=without)
        wrong[policy] += not np.array_equal(pipeline.results, 2 * pipeline.values)
    assert wrong["eager"] == 0
    assert 0 < wrong["lazy"] < 30
    assert 0 < wrong["random"] < 30


def test_a_seed_repeats_a_run():
    def trace(policy, seed):
        pipeline = run_pipeline(policy, seed)
        return pipeline.world.trace, pipeline.device.done

    for policy in POLICIES:
        assert [trace(policy, seed) for seed in range(8)] == [trace(policy, s) for s in range(8)]
        assert len({str(trace(policy, seed)) for seed in range(8)}) == 8


def test_the_history_stays_short(world):
    device = SimulatedDevice(world, policy="random")
    pipeline = Pipeline(world, device, cells=60)
    memories = [*device._memories, *device._pinned]
    pipeline.run()
    assert all(len(memory.touched) <= 3 for memory in memories)
    assert len(device.done) > 500


MEMORIES = STREAMS = 2
ACTORS = 3
EVENTS = ACTORS * STREAMS
BYTES = 8
ORDERING = ["record", "tell", "sync", "wait"]


class Program:
    """Steps of several threads, in an order in which they can be done.

    Each event is recorded by one thread on one stream, so that no schedule changes what is before
    what.
    """

    def __init__(self, seed):
        self.steps = []
        choose = random.Random(seed)
        earlier = []
        for _ in range(choose.randrange(3, 12)):
            kind = choose.choice(["upload", "download", "compute", "host r", "host w"])
            actor, stream = choose.randrange(ACTORS), choose.randrange(STREAMS)
            if earlier:
                # What is not after the step before may still touch other bytes.
                last = earlier[-1] if choose.random() < 0.9 else choose.choice(earlier)
                self.hand_over(choose.random(), *last, kind, actor, stream)
            earlier.append((kind, actor, stream))
            memory, other = choose.randrange(MEMORIES), choose.randrange(MEMORIES)
            part = choose.choice([(0, BYTES), (0, 4), (4, BYTES)])
            if kind == "compute":
                self.steps.append((kind, actor, memory, other, stream))
            elif kind in ("upload", "download"):
                self.steps.append((kind, actor, memory, other, part[1], stream))
            else:
                self.steps.append((kind, actor, memory, part))
        for _ in range(choose.choice([0, 0, 1, 3])):
            orders = [n for n, step in enumerate(self.steps) if step[0] in ORDERING]
            if orders:
                del self.steps[choose.choice(orders)]

    def hand_over(self, chance, kind, actor, stream, next_kind, next_actor, next_stream):
        """Let a step come after another one."""
        event = actor + ACTORS * stream
        waits = kind[:4] != "host"
        if waits:
            self.steps.append(("record", actor, event, stream))
        if next_actor != actor:
            self.steps.append(("tell", actor, next_actor))
        if waits and (next_kind[:4] == "host" or chance < 0.3):
            self.steps.append(("sync", next_actor, event))
        elif waits:
            self.steps.append(("wait", next_actor, event, next_stream))

    def races(self):
        """Return the pairs of steps that touch the same bytes in no order."""
        before, last = {}, {}
        asked = {stream: [] for stream in range(STREAMS)}
        records = {event: [] for event in range(EVENTS)}

        def is_before(one, other):
            seen, rest = set(), [other]
            while rest:
                node = rest.pop()
                if node == one:
                    return True
                rest += [n for n in before.get(node, ()) if n not in seen]
                seen.update(rest)
            return False

        for n, (kind, actor, *given) in enumerate(self.steps):
            call, done = ("call", n), ("done", n)
            before[call] = [last[actor]] if actor in last else []
            last[actor] = call
            if kind == "tell":
                told = ("told", n)
                before[told] = [call, *([last[given[0]]] if given[0] in last else [])]
                last[given[0]] = told
            marks = [r for r in records.get(given[0], ()) if is_before(("call", r), call)]
            if kind == "sync":
                before[call] += [("done", mark) for mark in marks[-1:]]
            elif kind in ("upload", "download", "compute", "record", "wait"):
                stream = asked[given[-1]]
                before[done] = [call]
                before[done] += [("done", n) for n in stream if is_before(("call", n), call)]
                if kind == "wait":
                    before[done] += [("done", mark) for mark in marks[-1:]]
                stream.append(n)
            if kind == "record":
                records[given[0]].append(n)
        touches = [(n, touch) for n, step in enumerate(self.steps) for touch in self.touches(step)]
        node = {
            n: ("call" if step[0][:4] == "host" else "done", n) for n, step in enumerate(self.steps)
        }
        return [
            (one, other)
            for (one, a), (other, b) in product(touches, touches)
            if one < other and a[0] == b[0] and "w" in (a[2], b[2])
            if a[1][0] < b[1][1] and b[1][0] < a[1][1]
            if not is_before(node[one], node[other])
        ]

    def touches(self, step):
        """Return memory, bytes and mode of what a step touches."""
        kind, _, *given = step
        if kind in ("upload", "download"):
            memory, pinned, stop, _ = given
            modes = "wr" if kind == "upload" else "rw"
            return [(f"m{memory}", (0, stop), modes[0]), (f"p{pinned}", (0, stop), modes[1])]
        if kind == "compute":
            return [(f"m{memory}", (0, BYTES), "w") for memory in given[:2]]
        return [(f"p{given[0]}", given[1], kind[-1])] if kind[:4] == "host" else []

    def do(self, n, memories, pinned, seen):
        """Do to bytes what a step does."""
        kind, _, *given = self.steps[n]
        if kind == "upload":
            memories[given[0]][: given[2]] = pinned[given[1]][: given[2]]
        elif kind == "download":
            pinned[given[1]][: given[2]] = memories[given[0]][: given[2]]
        elif kind == "compute":
            memories[given[1]][:] = 3 * memories[given[1]] + memories[given[0]] + n
        elif kind == "host w":
            pinned[given[0]][slice(*given[1])] = n
        elif kind == "host r":
            seen[n] = pinned[given[0]][slice(*given[1])].tolist()

    def in_order(self):
        """Return all bytes, and what was read, when the steps are done one after the other."""
        memories = np.full((MEMORIES, BYTES), POISON, np.uint8)
        pinned, seen = memories.copy(), {}
        for n in range(len(self.steps)):
            self.do(n, memories, pinned, seen)
        return memories.tolist(), pinned.tolist(), seen


def run_program(program, policy, seed):
    """Return the races that were found, all bytes, and what was read."""
    with SimulatedThreads(seed) as world:
        device = SimulatedDevice(world, policy=policy, seed=seed, speed=seed % 2)
        streams = [device.stream() for _ in range(STREAMS)]
        events = [device.event() for _ in range(EVENTS)]
        memories = [device.allocate(BYTES) for _ in range(MEMORIES)]
        pinned = [device.allocate_pinned(BYTES) for _ in range(MEMORIES)]
        told = [world.queue(0) for _ in program.steps]
        data, seen = [memory.data for memory in memories], {}

        def act(actor):
            for n, (kind, by, *given) in enumerate(program.steps):
                if kind == "tell" and given[0] == actor:
                    told[n].get()
                if by == actor:
                    step(n, kind, given)

        def step(n, kind, given):
            if kind == "upload":
                device.upload(memories[given[0]], pinned[given[1]][: given[2]], streams[given[3]])
            elif kind == "download":
                device.download(pinned[given[1]][: given[2]], memories[given[0]], streams[given[3]])
            elif kind == "compute":
                call = partial(program.do, n, data, pinned, seen)
                reads, writes = ((memories[m],) for m in given[:2])
                device.compute(call, streams[given[2]], reads=reads, writes=writes)
            elif kind == "record":
                device.record(events[given[0]], streams[given[1]])
            elif kind == "wait":
                device.wait(streams[given[1]], events[given[0]])
            elif kind == "sync":
                device.sync(events[given[0]])
            elif kind == "tell":
                told[n].put(None)
            else:
                device.host_access(pinned[given[0]][slice(*given[1])], kind[-1])
                world.pause()
                program.do(n, data, pinned, seen)

        threads = [world.start(partial(act, actor), f"{actor}") for actor in range(ACTORS)]
        for thread in threads:
            thread.join()
        for stream in streams:
            device.record(events[0], stream)
            device.sync(events[0])
        found, world.found = world.found, []
        return found, ([d.tolist() for d in data], [p.tolist() for p in pinned], seen)


@policies
def test_the_oracle_agrees_with_the_graph_of_what_comes_first(policy):
    racy = 0
    for seed in range(100):
        program = Program(seed)
        races = program.races()
        found, state = run_program(program, policy, seed)
        assert all(isinstance(fault, RaceError) for fault in found)
        assert bool(found) == bool(races), (seed, program.steps, races, found)
        if not races:
            assert state == program.in_order(), seed
        racy += bool(races)
    assert 20 < racy < 80


def rush(world, *targets):
    """Run threads, and wait for them."""
    threads = [world.start(target, f"thread {n}") for n, target in enumerate(targets)]
    for thread in threads:
        thread.join()


def find(check, count=20):
    """Return what is found in some schedules, which is the same in each: one message or None."""
    found = set()
    for policy, seed in product(POLICIES, range(count)):
        with SimulatedThreads(seed) as world:
            check(world, SimulatedDevice(world, policy=policy, seed=seed))
            assert all(isinstance(fault, RaceError) for fault in world.found)
            found.add(bool(world.found))
            world.found = []
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("told", [False, True])
def test_calls_for_a_stream_in_an_order_of_chance(told):
    def check(world, device):
        stream, memory, queue = device.stream(), device.allocate(8), world.queue(0)
        one, two = device.allocate_pinned(8), device.allocate_pinned(8)

        def first():
            device.upload(memory, one, stream)
            queue.put(None)

        def second():
            if told:
                queue.get()
            device.upload(memory, two, stream)

        rush(world, first, second)
        event = device.event()
        device.record(event, stream)
        device.sync(event)
        for pinned in (one, two):
            device.host_access(pinned, "w")

    assert find(check) is not told


def test_calls_that_a_third_thread_knows_of_come_first():
    def check(world, device):
        stream, event = device.stream(), device.event()
        one, two = device.allocate_pinned(8), device.allocate_pinned(8)
        memories = device.allocate(8), device.allocate(8)
        rush(
            world,
            lambda: device.upload(memories[0], one, stream),
            lambda: device.upload(memories[1], two, stream),
        )
        device.compute(lambda: None, stream, reads=memories, writes=())
        device.record(event, stream)
        device.sync(event)
        device.host_access(one, "w")
        device.host_access(two, "w")

    assert find(check) is False


@pytest.mark.parametrize("again", [False, True])
def test_an_event_that_two_threads_record(again):
    def check(world, device):
        event = device.event()
        pinned = [device.allocate_pinned(8) for _ in range(2)]
        streams = [device.stream() for _ in range(2)]

        def send(n):
            device.upload(device.allocate(8), pinned[n], streams[n])
            device.record(event, streams[n])

        rush(world, partial(send, 0), partial(send, 1))
        if again:
            device.wait(streams[0], event)
            other = device.event()
            device.record(other, streams[1])
            device.wait(streams[0], other)
            device.record(event, streams[0])
        device.sync(event)
        device.host_access(pinned[1], "w")

    assert find(check) is not again


def test_an_event_may_be_recorded_once_more_at_any_time():
    def check(world, device):
        event, stream, queue = device.event(), device.stream(), world.queue(0)
        pinned = device.allocate_pinned(8)

        def send():
            device.upload(device.allocate(8), pinned, stream)
            device.record(event, stream)
            queue.put(None)
            device.record(event, stream)

        def write():
            queue.get()
            device.sync(event)
            device.host_access(pinned, "w")

        rush(world, send, write)

    assert find(check) is False


@pytest.mark.parametrize("how", ["lock", "condition", "queue"])
def test_only_tokens_order_threads(how):
    def check(world, device):
        pinned, lock = device.allocate_pinned(8), getattr(world, how)(*[0] * (how == "queue"))

        def touch():
            if how == "queue":
                lock.get()
                device.host_access(pinned, "w")
                lock.put(None)
            else:
                with lock:
                    device.host_access(pinned, "w")

        if how == "queue":
            lock.put(None)
        rush(world, touch, touch)

    assert find(check) is (how != "queue")


PARTS = {
    "halves": (np.s_[:3], np.s_[3:], False),
    "one voxel in both": (np.s_[:4], np.s_[3:], True),
    "columns": (np.s_[:, :5], np.s_[:, 5:], False),
    "columns that overlap": (np.s_[:, :5], np.s_[:, 4:], True),
    "interleaved": (np.s_[:, ::-2], np.s_[:, ::2], False),
    "corners": (np.s_[:2, :2], np.s_[2:, 2:], False),
    "nothing": (np.s_[:0], np.s_[:], False),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_of_a_slot_are_told_apart(part, order):
    def check(world, device):
        array = device.allocate_pinned(6 * 8 * 2).view("u2").reshape((6, 8), order=order)
        rush(
            world,
            lambda: device.host_access(array[one], "w"),
            lambda: device.host_access(array[other], "w"),
        )
        device.host_access(array, "w")

    one, other, racy = PARTS[part]
    assert find(check, 3) is racy


@pytest.mark.parametrize(("one", "other"), ["rr", "rw", "wr", "ww"])
def test_only_writes_race(one, other):
    def check(world, device):
        pinned = device.allocate_pinned(8)
        accesses = [partial(device.host_access, pinned, mode) for mode in (one, other)]
        rush(world, *accesses)

    assert find(check, 3) is ("w" in one + other)


LINES = {
    "a write after two reads": [("r", 0, 8, ()), ("r", 0, 8, ()), ("w", 0, 8, (0, 1))],
    "two reads after a write": [("w", 0, 8, ()), ("r", 0, 8, (0,)), ("r", 0, 8, (0,))],
    "two writes after one": [("w", 0, 8, ()), ("w", 0, 4, (0,)), ("w", 4, 8, (0,))],
    "two reads after two writes": [
        *(("w", 0, 5, ()), ("w", 5, 8, ())),
        *(("r", 3, 8, (0, 1)), ("r", 0, 8, (0, 1))),
    ],
}
"""Accesses of a thread each: mode, bytes, and those that it is told of before."""


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("told", [False, True])
def test_one_access_hides_no_other(line, told):
    def check(world, device):
        pinned = device.allocate_pinned(8)
        queues = {(n, m): world.queue(0) for n, m in product(range(4), range(4))}

        def access(n, mode, start, stop, after):
            if n == len(LINES[line]) - 1 and not told:
                after = after[1:]
            for other in after:
                queues[other, n].get()
            device.host_access(pinned[start:stop], mode)
            for m in range(4):
                queues[n, m].put(None)

        rush(world, *[partial(access, n, *given) for n, given in enumerate(LINES[line])])

    assert find(check) is not told


@pytest.mark.parametrize("joined", [False, True])
def test_memory_that_is_in_use_cannot_be_given_back(joined):
    def check(world, device):
        pinned, queue = device.allocate_pinned(8), world.queue(0)

        def read():
            device.host_access(pinned, "r")
            queue.put(None)

        thread = world.start(read, "reader")
        if joined:
            queue.get()
        else:
            world.wait(lambda: thread._thread.over, "see by chance that it is over")
        device.close()
        thread.join()

    assert find(check) is not joined


@policies
def test_a_race_names_both_sides(world, policy):
    device = SimulatedDevice(world, policy=policy)
    pinned, memory, stream = device.allocate_pinned(100), device.allocate(64), device.stream()
    device.upload(memory, pinned[10:74], stream)
    device.host_access(pinned[:20], "w")
    with pytest.raises(
        RaceError,
        match=r'host write of cuda:0 pinned#1 by "main" may come before upload to cuda:0 memory#2 '
        r'on cuda:0 stream#3 by "main" is over: .* cuda:0 pinned#1\[10:20\]',
    ) as caught:
        world.check()
    assert "test_a_race_names_both_sides" in caught.value.__notes__[0]


def test_nobody_can_hide_a_race():
    with pytest.raises(RaceError, match="host write"):
        hide_a_race()


def hide_a_race():
    with SimulatedThreads(0) as world:
        device = SimulatedDevice(world)
        pinned, memory, stream = device.allocate_pinned(8), device.allocate(8), device.stream()

        def send():
            with suppress(BaseException):
                device.upload(memory, pinned, stream)
                device.host_access(pinned, "w")

        world.start(send, "sender").join()
        raise LookupError("something else")


def test_lazy_does_only_what_is_waited_for(world):
    device = SimulatedDevice(world, policy="lazy")
    one, two, three = (device.stream() for _ in range(3))
    done, event, other = [], device.event(), device.event()
    for n, stream in enumerate([one, two, one, three]):
        device.compute(partial(done.append, n), stream, reads=(), writes=())
        if n == 1:
            device.record(event, two)
            device.wait(one, event)
    device.record(other, one)
    assert done == []
    device.sync(event)
    assert done == [1]
    device.sync(other)
    assert done == [1, 0, 2]
    device.close()
    assert done == [1, 0, 2, 3]


def test_eager_does_all_at_once(world):
    device = SimulatedDevice(world)
    memory, stream = device.allocate(8), device.stream()
    sent, got = device.allocate_pinned(8), device.allocate_pinned(8)
    sent[:] = range(8)
    device.upload(memory, sent, stream)
    device.download(got, memory, stream)
    assert got.tolist() == list(range(8))


def test_copies_read_their_source_when_they_are_done(world):
    device = SimulatedDevice(world, policy="lazy")
    memory, stream, event = device.allocate(8), device.stream(), device.event()
    pinned = device.allocate_pinned(8)
    device.upload(memory, pinned, stream)
    pinned[:] = 5
    device.record(event, stream)
    device.sync(event)
    assert memory.data.tolist() == [5] * 8


@policies
def test_all_who_wait_see_the_end_of_an_operation(policy):
    for seed in range(20):
        with SimulatedThreads(seed) as world:
            device = SimulatedDevice(world, policy=policy, seed=seed, speed=9)
            stream, event, done, seen = device.stream(), device.event(), [], []
            compute = partial(device.compute, reads=(), writes=())
            compute(partial(done.append, 1), device.stream())
            compute(partial(done.append, 2), stream)
            device.record(event, stream)

            def wait(device=device, event=event, done=done, seen=seen):
                device.sync(event)
                seen.append(2 in done)

            rush(world, wait, wait, wait)
            assert seen == [True] * 3


@policies
def test_closing_waits_for_the_end_of_an_operation(policy):
    for seed in range(20):
        with SimulatedThreads(seed) as world:
            device = SimulatedDevice(world, policy=policy, seed=seed, speed=9)
            stream, done = device.stream(), []
            ask = partial(device.compute, lambda d=done: d.append(1), stream, reads=(), writes=())
            thread = world.start(ask, "asks")
            world.wait(lambda device=device: device.computes == 1, "computation")
            world.pause()
            device.close()
            assert done == [1]
            thread.join()


@policies
def test_what_was_computed_is_known_once_the_device_is_closed(world, policy):
    device = SimulatedDevice(world, policy=policy)
    outcome = device.compute(lambda: 7, device.stream(), reads=(), writes=())
    device.close()
    assert outcome.result() == 7


def test_random_does_some_of_it():
    def done_at_once(seed):
        with SimulatedThreads(0) as world:
            device = SimulatedDevice(world, policy="random", seed=seed)
            streams = [device.stream() for _ in range(3)]
            for _ in range(3):
                for stream in streams:
                    device.compute(lambda: None, stream, reads=(), writes=())
            return tuple(device.done)

    assert len({done_at_once(seed) for seed in range(20)}) > 15
    assert [done_at_once(seed) for seed in range(5)] == [done_at_once(s) for s in range(5)]


def test_fast_devices_do_more():
    counts = {1: 0, 8: 0}
    for seed in range(5):
        with SimulatedThreads(seed) as world:
            cells = list(range(20))

            def work(speed, cells=cells, world=world):
                device = SimulatedDevice(world, f"cuda:{speed}", speed=speed)
                stream = device.stream()
                while cells:
                    cells.pop()
                    device.compute(lambda: None, stream, reads=(), writes=())
                counts[speed] += device.computes

            rush(world, partial(work, 1), partial(work, 8))
    assert counts[1] > 2 * counts[8]
    assert sum(counts.values()) == 100


def simple(device):
    """Return a stream, memory of the device and page-locked memory."""
    return device.stream(), device.allocate(64), device.allocate_pinned(64)


def use(device, call, memory=()):
    """Compute something, wait, and return the outcome."""
    stream, event = device.stream(), device.event()
    outcome = device.compute(call, stream, reads=memory, writes=())
    device.record(event, stream)
    device.sync(event)
    return outcome


def in_function(call):
    return lambda device: use(device, partial(call, device, device.allocate(64))).result()


MISUSES = [
    ("never recorded", lambda d: d.wait(d.stream(), d.event(recorded=False))),
    ("never recorded", lambda d: d.sync(d.event(recorded=False))),
    ("not in page-locked", lambda d: d.upload(d.allocate(8), np.zeros(8, "u1"), d.stream())),
    ("not in page-locked", lambda d: d.host_access(np.zeros(8, "u1"), "r")),
    ("do not fit", lambda d: d.upload(d.allocate(8), d.allocate_pinned(9), d.stream())),
    ("gaps", lambda d: d.download(d.allocate_pinned(9)[::2], d.allocate(9), d.stream())),
    ("not of this device", lambda d: d.upload(None, d.allocate_pinned(8), d.stream())),
    ("not said to be used", in_function(lambda d, m: d.view(m, 0, (8,), np.dtype("u1"), "C"))),
    ("not said to be used", in_function(lambda d, m: d.copy(m.data, np.zeros(64, "u1")))),
    ("is for functions", lambda d: d.view(d.allocate(8), 0, (8,), np.dtype("u1"), "C")),
    ("is for functions", lambda d: d.copy(np.zeros(8), np.zeros(8))),
    ("is for functions", lambda d: use(d, list) and d.take(5)),
]


@policies
@pytest.mark.parametrize(("text", "misuse"), MISUSES)
def test_misuse_is_an_error_that_nobody_can_hide(world, policy, text, misuse):
    with pytest.raises(MisuseError, match=text):
        misuse(SimulatedDevice(world, policy=policy))
    with pytest.raises(MisuseError, match=text):
        world.check()


@pytest.mark.parametrize(("offset", "count"), [(2, 1), (0, 17), (60, 2), (-4, 1)])
def test_views_lie_within_memory_and_are_aligned(world, offset, count):
    device = SimulatedDevice(world)
    memory = (device.allocate(64),)
    view = partial(device.view, memory[0], offset, (count,), np.dtype("f4"), "C")
    with pytest.raises(MisuseError, match="float32 at"):
        use(device, view, memory).result()
    world.found.clear()


def test_what_was_given_back_is_not_used_again(world):
    device = SimulatedDevice(world)
    stream, memory, pinned = simple(device)
    event = device.event()
    device.close()
    assert (memory.data == POISON).all()
    for call in (
        lambda: device.sync(event),
        lambda: device.record(device.event(), stream),
        lambda: device.upload(memory, pinned, device.stream()),
    ):
        with pytest.raises(MisuseError, match="given back"):
            call()
    with pytest.raises(MisuseError, match="not in page-locked"):
        device.host_access(pinned, "r")
    world.found.clear()


def test_things_of_another_device(world):
    one, two = SimulatedDevice(world, "cuda:0"), SimulatedDevice(world, "cuda:1")
    for call in (
        lambda: one.record(one.event(), two.stream()),
        lambda: one.wait(one.stream(), two.event()),
        lambda: one.compute(lambda: None, one.stream(), reads=(two.allocate(8),), writes=()),
    ):
        with pytest.raises(MisuseError, match=r"cuda:1 .* not of this device"):
            call()
    world.found.clear()


@policies
def test_an_outcome_is_known_when_it_was_waited_for(world, policy):
    device = SimulatedDevice(world, policy=policy)
    stream, event = device.stream(), device.event()
    outcome = device.compute(lambda: 7, stream, reads=(), writes=())
    for look in (outcome.result, lambda: outcome.seconds, lambda: outcome.peak_bytes):
        with pytest.raises(RuntimeError, match="does not know that it is over"):
            look()
    world.found.clear()
    device.record(event, stream)
    device.sync(event)
    assert outcome.result() == 7


def test_memory_comes_poisoned(world):
    device = SimulatedDevice(world)
    _, memory, pinned = simple(device)
    assert (memory.data == POISON).all()
    assert (pinned == POISON).all()
    pinned[:] = 0
    device.close()
    assert (device.allocate_pinned(64) == POISON).all()


def test_memory_that_a_failed_function_was_to_write_is_poisoned(world):
    device = SimulatedDevice(world)
    stream, memory, _ = simple(device)
    memory.data[:] = 0
    device.compute(lambda: 1 / 0, stream, reads=(), writes=(memory,))
    assert (memory.data == POISON).all()


@policies
def test_allocations_fail_by_number(world, policy):
    device = SimulatedDevice(world, policy=policy)
    device.fail_allocation(2, 3)
    device.fail_allocation(5)
    device.allocate(8)
    for allocate in (device.allocate, device.allocate_pinned):
        with pytest.raises(SimulatedOutOfMemory, match="allocation") as caught:
            allocate(8)
        assert device.classify(caught.value) == "memory"

    def function():
        device.take(100)
        assert device.memory()[0] == device.memory()[1] - 108
        device.take(50)

    outcome = use(device, function)
    with pytest.raises(SimulatedOutOfMemory, match="allocation 5"):
        outcome.result()
    assert outcome.peak_bytes == 100
    assert use(device, partial(device.take, 9)).peak_bytes == 9
    assert device.allocations == 6


@policies
def test_memory_is_counted(world, policy):
    device = SimulatedDevice(world, policy=policy, memory_bytes=1000)
    device.allocate(300)
    device.allocate_pinned(900)
    assert device.memory() == (700, 1000)
    device.set_other_usage(400)
    assert device.memory() == (300, 1000)
    with pytest.raises(SimulatedOutOfMemory):
        device.allocate(301)
    with pytest.raises(SimulatedOutOfMemory):
        use(device, partial(device.take, 301)).result()
    use(device, partial(device.take, 300)).result()
    assert device.memory() == (300, 1000)
    device.set_other_usage(900)
    assert device.memory() == (0, 1000)
    with pytest.raises(SimulatedOutOfMemory):
        device.allocate_pinned(101)
    device.set_other_usage(0)
    device.close()
    assert device.memory() == (1000, 1000)
    device.allocate_pinned(1000)


def calls(device, stream, event, memory, pinned):
    """Return every call that a lost device answers with an error."""
    return [
        device.memory,
        partial(device.allocate, 8),
        partial(device.allocate_pinned, 8),
        device.stream,
        device.event,
        partial(device.record, event, stream),
        partial(device.wait, stream, event),
        partial(device.sync, event),
        partial(device.upload, memory, pinned, stream),
        partial(device.download, pinned, memory, stream),
        partial(device.compute, list, stream, reads=(), writes=()),
        partial(device.view, memory, 0, (8,), np.dtype("u1"), "C"),
        partial(device.copy, pinned, pinned),
        partial(device.to_host, pinned),
        device.trim,
    ]


@policies
@pytest.mark.parametrize("when", ["issue", "sync", "lost"])
def test_errors_that_stick(world, policy, when):
    device = SimulatedDevice(world, policy=policy)
    stream, memory, pinned = simple(device)
    event, done = device.event(), []
    if when != "lost":
        device.fail_sticky_at(2, when)
    compute = partial(device.compute, partial(done.append, 1), stream, reads=(), writes=())
    compute()
    device.record(event, stream)
    if when == "issue":
        with pytest.raises(SimulatedDeviceLost):
            compute()
    elif when == "sync":
        outcome = compute()
        with suppress(SimulatedDeviceLost):
            device.record(event, stream)
        with pytest.raises(SimulatedDeviceLost):
            device.sync(event)
        with pytest.raises(SimulatedDeviceLost):
            outcome.result()
    else:
        device.lose("it fell off the bus")
    for call in calls(device, stream, event, memory, pinned):
        with pytest.raises(SimulatedDeviceLost) as caught:
            call()
        assert device.classify(caught.value) == "fatal"
    device.host_access(pinned, "r")
    assert done in ([], [1])
    device.close()
    with pytest.raises(SimulatedDeviceLost):
        device.memory()
    device.retire("it is lost")
    assert device.retired == "it is lost"


def test_what_is_pending_on_a_lost_device_is_never_done(world):
    device = SimulatedDevice(world, policy="lazy")
    done = []
    stream, memory, pinned = simple(device)
    device.upload(memory, pinned, stream)
    device.compute(partial(done.append, 1), stream, reads=(), writes=())
    device.lose()
    device.close()
    assert done == []


def test_those_who_wait_for_a_lost_device_are_told():
    for seed in range(20):
        with SimulatedThreads(seed) as world:
            device = SimulatedDevice(world, policy="lazy")
            stream, event, told = device.stream(), device.event(), []
            for _ in range(5):
                device.compute(world.pause, stream, reads=(), writes=())
            device.record(event, stream)

            def wait(device=device, event=event, told=told):
                try:
                    device.sync(event)
                except SimulatedDeviceLost:
                    told.append(1)

            rush(world, wait, wait, device.lose)
            assert len(told) <= 2
            with pytest.raises(SimulatedDeviceLost):
                device.sync(event)


def test_trims_are_counted(world):
    device = SimulatedDevice(world)
    device.trim()
    device.trim()
    assert device.trims == 2


@pytest.mark.parametrize("raises", ["outcome", "compute"])
def test_where_errors_come_out(world, raises):
    device = SimulatedDevice(world, raises=raises)
    with pytest.raises(ZeroDivisionError) if raises == "compute" else nullcontext():
        device.compute(lambda: 1 / 0, device.stream(), reads=(), writes=())


@policies
def test_interrupts_are_errors_like_others(world, policy):
    def interrupt():
        raise KeyboardInterrupt

    outcome = use(SimulatedDevice(world, policy=policy), interrupt)
    with pytest.raises(KeyboardInterrupt):
        outcome.result()


def test_knowledge_goes_with_tokens_starts_and_ends(world):
    queue, seen = world.queue(0), {}

    def first():
        seen["first"] = world.knowledge
        world.learn(2)
        queue.put(None)
        world.learn(4)

    def second():
        queue.get()
        seen["second"] = world.knowledge
        world.learn(8)

    world.learn(1)
    threads = [world.start(first, "first"), world.start(second, "second")]
    assert world.knowledge == 1
    for thread, known in zip(threads, (7, 15), strict=True):
        thread.join()
        assert world.knowledge == known
    assert seen == {"first": 1, "second": 3}


@pytest.mark.parametrize("seed", range(10))
def test_conditions_wake_all_who_wait(seed):
    with SimulatedThreads(seed) as world:
        condition, gone, inside = world.condition(), [], []

        def wait(n):
            with condition, condition:
                while not gone:
                    condition.wait()
                inside.append(n)
                world.pause()
                assert inside.pop() == n
                gone.append(n)

        def wake():
            with condition:
                gone.append("go")
                condition.notify_all()

        rush(world, *[partial(wait, n) for n in range(3)], wake)
        assert sorted(gone[1:]) == [0, 1, 2]


def test_who_is_never_notified_is_in_a_deadlock():
    with pytest.raises(DeadlockError, match="waiting: be notified"):
        wait_in_vain()


def wait_in_vain():
    with SimulatedThreads(0) as world:
        condition = world.condition()

        def wait():
            with condition:
                condition.wait()

        world.start(wait, "waiting").join()


def test_a_condition_is_used_by_who_holds_its_lock(world):
    condition = world.condition()
    for use in (condition.wait, condition.notify_all):
        with pytest.raises(RuntimeError, match="does not hold"):
            use()
