"""Stop when asked to: SIGTERM (docker stop, spot, StopTrainingJob) and Ctrl-C set a flag, read once per step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger("lorry")


class StopRequestedError(Exception):
    """Work that can be done again was given up because a stop was requested."""


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def request_stop(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("%s received: stopping after this step", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    return stop
