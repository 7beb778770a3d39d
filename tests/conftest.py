"""What all tests share: the executors, and an end to tests that hang."""

import faulthandler
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from gpublocks.gpus import gpu_status

HANG_SECONDS = 120.0
"""No test takes a tenth of it; one that does waits for something that will never come."""

_stderr = -1


# Busy machines are slow, and a run that must pass tries the same examples each time.
settings.register_profile(
    "gpublocks",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("gpublocks")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 2 for whole folders; chosen tests are over before another process would begin."""
    chosen = config.option.keyword or config.option.markexpr
    return 2 if not chosen and all(map(os.path.isdir, config.args)) else 0


def pytest_configure() -> None:
    # Standard error is captured while a test runs, and what is captured is lost in the exit.
    global _stderr
    _stderr = os.dup(2)
    # Shells start what runs in the background with interrupts ignored, and programs hand that on to
    # those that they start: to those, too, that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    os.close(_stderr)


def pytest_collection_finish(session: pytest.Session) -> None:
    # Modules and tests stay to the end: collecting garbage, as devices do to find memory, need not
    # look through millions of their objects each time.
    gc.collect()
    gc.freeze()
    # CUDA reads which GPUs are hidden when it starts, which must not be in a test that hides all.
    if any(item.get_closest_marker("gpu") for item in session.items):
        _trouble_with_gpus()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (trouble := _trouble_with_gpus()):
        pytest.skip(trouble)


@cache
def _trouble_with_gpus() -> str:
    # CuPy warns of what it finds or misses of CUDA, which is an error in tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gpu_status(exact=True)


@pytest.fixture(autouse=True)
def _end_of_tests_that_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _no_gpu_by_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide GPUs from tests that do not ask for one, so that the same is computed everywhere."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(params=["serial", "threads", "processes"])
def executor(request: pytest.FixtureRequest) -> str:
    """Name of an executor: what is promised holds in each of them."""
    if request.param == "processes" and sys.platform != "linux":
        pytest.skip("worker processes need Linux")
    return str(request.param)
