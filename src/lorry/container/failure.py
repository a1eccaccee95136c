"""The failure file: what SageMaker shows as the reason of a failed job."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorry.container.contract import is_sagemaker
from lorry.errors import UserError
from lorry.logs import OutputClosedError

log = logging.getLogger("lorry")

LIMIT = 1024  # characters of the file that SageMaker shows


def remove_failure(root: Path) -> None:
    """Remove the failure file of an earlier run."""
    with contextlib.suppress(OSError):
        (root / "output" / "failure").unlink(missing_ok=True)


@contextmanager
def recorded(root: Path) -> Iterator[None]:
    """Write the reason of an error inside the block to the failure file.

    Raises:
        UserError: Something that the user can fix, of whatever type it was.
        OutputClosedError: Standard output takes no more lines.
        Exception: A crash.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        shown = _translate(error)
        _write(root, failure_text(shown))
        if shown is error:
            raise
        raise shown from error


def failure_text(error: Exception) -> str:
    """Return what the failure file says of an error, the hint always included."""
    if isinstance(error, OutputClosedError):
        error = UserError(f"standard output cannot be written: {error.__cause__}", "Check the disk of the log.")
    if not isinstance(error, UserError):
        return _crash(error)
    text = str(error)
    if len(text) <= LIMIT:
        return text
    hint = error.hint[: LIMIT // 2]
    return f"{error.cause[: LIMIT - len(hint) - 2]}… {hint}"


def _translate(error: BaseException) -> Exception:
    """Return the error as a `UserError` where the user can do something about it."""
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


def _crash(error: Exception) -> str:
    """Return the exception, and the last line of Lorry that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    frame = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(package)), frames[-1])
    file = Path(frame.filename)
    name = file.relative_to(package) if file.is_relative_to(package) else file.name
    place = f" (at {name}:{frame.lineno} in {frame.name}; the log has the whole traceback)"
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said[: LIMIT - len(place)] + place


def _write(root: Path, text: str) -> None:
    try:
        (root / "output").mkdir(parents=True, exist_ok=True)
        (root / "output" / "failure").write_text(text, "utf-8")
    except OSError as error:
        if is_sagemaker() or (root / "output").is_dir():  # else nobody expects the file
            with contextlib.suppress(OutputClosedError):
                log.warning("%s/output/failure cannot be written: %s", root, error.strerror)
