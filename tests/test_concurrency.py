"""Threads that last, and crews of threads."""

import gc
import threading
import weakref
from functools import partial

import pytest

from gpublocks.concurrency import Threads
from gpublocks.crew import Crew


def identities(name, *, count=1, lasting=True):
    """Return which thread does each of some tasks, done one after the other."""
    found = []
    for _ in range(count):
        Threads().start(lambda: found.append(threading.get_ident()), name, lasting=lasting).join()
    return found


def test_a_lasting_thread_is_taken_again():
    # A thread that is over may leave its number to the next one, so another one stays between.
    first = identities("a", count=3)
    assert len(set(first)) == 1
    assert identities("b") != identities("a")
    assert identities("a") == first[:1]


def test_a_busy_one_is_not_waited_for():
    go, names = threading.Event(), []
    waiting = Threads().start(go.wait, "busy", lasting=True)
    Threads().start(
        lambda: names.append(threading.current_thread().name), "busy", lasting=True
    ).join()
    go.set()
    waiting.join()
    assert names == ["busy"]
    assert len(set(identities("busy", count=4))) <= 2


def test_a_lasting_thread_holds_nothing_of_what_it_did():
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    Threads().start(lambda thing=thing: None, "forgetful", lasting=True).join()
    del thing
    identities("forgetful")
    gc.collect()
    assert gone() is None


def test_what_a_task_raises_comes_out_and_the_thread_lives_on():
    before = identities("faulty")

    def fail():
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Threads().start(fail, "faulty", lasting=True).join()
    assert identities("faulty") == before


def test_other_threads_end():
    thread = Threads().start(lambda: None, "short")
    thread.join()
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 3])
def test_a_crew_does_all_tasks_and_waits_for_them(size):
    crew = Crew(size, Threads())
    for count in (0, 1, 2, 50):
        done = []
        crew.do([partial(done.append, n) for n in range(count)])
        assert sorted(done) == list(range(count))
    crew.close()


def test_a_crew_works_at_the_same_time():
    crew = Crew(3, Threads())
    together = threading.Barrier(3, timeout=10)
    crew.do([together.wait] * 3)
    crew.close()


@pytest.mark.parametrize("size", [1, 3])
def test_a_crew_raises_what_a_task_raises_and_goes_on(size):
    crew = Crew(size, Threads())

    def fail():
        raise LookupError("a task")

    with pytest.raises(LookupError, match="a task"):
        crew.do([list, fail, list])
    done = []
    crew.do([lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2]
    crew.close()


def test_a_crew_serves_many_at_once_and_leaves_no_thread():
    before = set(threading.enumerate())
    crew = Crew(2, Threads())
    done = {n: [] for n in range(5)}
    users = [
        threading.Thread(target=lambda n=n: crew.do([lambda: done[n].append(1)] * 20))
        for n in range(5)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    crew.close()
    assert all(len(marks) == 20 for marks in done.values())
    assert set(threading.enumerate()) <= before
