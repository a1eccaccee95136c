"""Stop when asked to: SIGTERM (docker stop, spot reclaim, StopTrainingJob) and Ctrl-C set a flag, read once a step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger("lorry")


class StopRequestedError(Exception):
    """Work that can be done again was given up because a stop was asked for."""


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("%s received: stopping after this step", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop
