"""What the user did, and what to do about it: the one exception that becomes one line and exit code 1."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


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


def as_shown(error: BaseException) -> Exception:
    """Return the error as a `UserError` where the user can do something about it, else as an `Exception`."""
    if isinstance(error, MemoryError):
        return UserError("out of memory", "Lower batch_size or micro_batch_tokens, or take a larger machine.")
    if isinstance(error, OSError):  # also a full disk, a name that is too long, too many open files
        hint = "Check the folder and its disk."
        if isinstance(error, PermissionError):
            hint = 'Change its permissions, or start the container as its owner: --user "$(id -u):$(id -g)".'
        return UserError(f"{error.filename or 'the system'}: {error.strerror or error}", hint)
    if isinstance(error, KeyboardInterrupt):
        return UserError("interrupted by a second Ctrl-C", "Run it again; earlier checkpoints stay as they are.")
    if isinstance(error, Exception):
        return error
    # A panic of a library written in Rust. The toolkit catches only an Exception, and exits with 0 after others.
    return RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


def crash_text(error: BaseException, limit: int) -> str:
    """Return an exception, and the last line of Lorry that it passed through, in at most so many characters."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parent
    frame = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(package)), frames[-1])
    file = Path(frame.filename)
    name = file.relative_to(package) if file.is_relative_to(package) else file.name
    place = f" (at {name}:{frame.lineno} in {frame.name}; the log has the whole traceback)"
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said[: limit - len(place)] + place
