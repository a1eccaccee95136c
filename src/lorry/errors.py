"""What the user did, and what to do about it: the one exception that becomes one line and exit code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix; shown without a traceback.

    Args:
        cause: What is wrong and where (file, column, row, value).
        hint: What to do about it.
    """

    def __init__(self, cause: str, hint: str) -> None:
        self.cause = " ".join(cause.split())
        self.hint = " ".join(hint.split())
        super().__init__(f"{self.cause.rstrip('.')}. {self.hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else ""
