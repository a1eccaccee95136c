"""Stop when asked to: SIGTERM (docker stop, spot, StopTrainingJob) and Ctrl-C set a flag, read once per step."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

log = logging.getLogger("lorry")

T = TypeVar("T")


class StopRequestedError(BaseException):
    """Work that can be done again was given up because a stop was requested.

    Like KeyboardInterrupt it is no Exception: libraries try what may fail, and would take it for such a failure.
    """


class Stop(threading.Event):
    """Set when a stop is requested.

    Training reads it once per step. Work that can simply be done again is given up at once: inside `immediately` the
    signal's handler raises.
    """

    raises = False

    @contextmanager
    def immediately(self) -> Iterator[None]:
        """Let a request raise `StopRequestedError` inside the block, also one that came before it."""
        self.raises = True
        try:
            if self.is_set():
                raise StopRequestedError
            yield
            if self.is_set():  # raised where Python drops exceptions, as in the destructor of an object
                raise StopRequestedError
        except Exception as error:
            if self.is_set():  # whatever it was raised in, such as the import of a library, may end in another error
                raise StopRequestedError from error
            raise
        finally:
            self.raises = False

    def request(self, number: int, _: FrameType | None) -> None:
        """Handle the signal; a second Ctrl-C ends the process."""
        if self.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        log.info("%s received: stopping%s", name, "" if self.raises else " after this step")
        self.set()
        if self.raises:
            raise StopRequestedError


def stop_on_signals() -> Stop:
    """Return an event that SIGTERM and SIGINT set, also those that came blocked before there was a handler."""
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.request)
    signal.signal(signal.SIGINT, stop.request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    return stop


def heard(items: Iterable[T], stop: threading.Event | None) -> Iterator[T]:
    """Yield the items until a stop is requested.

    Raises:
        StopRequestedError: `stop` was set.
    """
    for item in items:
        if stop is not None and stop.is_set():
            raise StopRequestedError
        yield item
