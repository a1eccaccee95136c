"""What Lorry says: plain lines on standard output, and times in words."""

from __future__ import annotations

import logging
import sys
import warnings

log = logging.getLogger("lorry")


def configure_logging() -> None:
    """Send plain lines to standard output; what libraries say to their own developers is not for users."""
    warnings.simplefilter("ignore", FutureWarning)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_PlainFormatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


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
