"""A stop that is requested while a library works."""

import contextlib
import gc
import os
import signal

import pytest

from lorry.signals import StopRequestedError, stop_on_signals


@pytest.fixture
def stop():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield stop_on_signals()
    for number, handler in kept.items():
        signal.signal(number, handler)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_library_that_tries_what_may_fail_does_not_take_a_stop_for_a_failure(stop):
    went_on = []

    def library():
        with contextlib.suppress(Exception):
            terminate()
        went_on.append(True)

    with pytest.raises(StopRequestedError), stop.immediately():
        library()
    assert not went_on


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_where_python_drops_exceptions_is_heard_at_the_end_of_the_work(stop):
    class Closing:
        def __del__(self):
            terminate()

    def work():
        Closing()
        gc.collect()

    with pytest.raises(StopRequestedError), stop.immediately():
        work()


def test_work_does_not_begin_after_a_stop(stop):
    terminate()
    with pytest.raises(StopRequestedError), stop.immediately():
        pytest.fail("the work began")


def test_a_stop_that_ends_in_another_error_is_a_stop(stop):
    """As where it comes in the middle of an import, which the library then tries again."""

    def library():
        try:
            terminate()
        except BaseException:
            raise ImportError("cannot load module more than once per process") from None

    with pytest.raises(StopRequestedError), stop.immediately():
        library()


def test_an_error_without_a_stop_stays_what_it_is(stop):
    with pytest.raises(ImportError), stop.immediately():
        raise ImportError("no such library")
