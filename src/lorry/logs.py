"""What Lorry says: plain lines on standard output, and times in words."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from typing import Any

log = logging.getLogger("lorry")


class OutputClosedError(Exception):
    """Standard output takes no more lines: the reader has gone (`lorry ... | head`), or its disk is full."""


def configure_logging() -> None:
    """Send plain lines to standard output; what libraries say to their own developers is not for users."""
    warnings.simplefilter("ignore", FutureWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows ASCII alone gets question marks
    handler = _Handler(sys.stdout)
    handler.setFormatter(_PlainFormatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def give_up_output(error: OutputClosedError) -> None:
    """Say why on standard error, unless the reader has just had enough, and let Python end without a traceback."""
    cause = error.__cause__
    with contextlib.suppress(OSError):
        if cause is not None and not isinstance(cause, BrokenPipeError):
            print(f"error: standard output cannot be written: {cause}", file=sys.stderr)  # noqa: T201
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Handler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """End the command where logging would print a traceback and go on without a log."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise OutputClosedError from error
        super().handleError(record)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Mark what is worse than information."""
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units, as in "2 min 05 s"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
