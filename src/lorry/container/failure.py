"""The failure file: what SageMaker shows as the reason of a failed job."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorry.container.contract import is_sagemaker
from lorry.errors import UserError, as_shown, crash_text
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
        shown = as_shown(error)
        _write(root, failure_text(shown))
        if shown is error:
            raise
        raise shown from error


def failure_text(error: Exception) -> str:
    """Return what the failure file says of an error, the hint always included."""
    if isinstance(error, OutputClosedError):
        error = UserError(f"standard output cannot be written: {error.__cause__}", "Check the disk of the log.")
    if not isinstance(error, UserError):
        return crash_text(error, LIMIT)
    text = str(error)
    if len(text) <= LIMIT:
        return text
    hint = error.hint[: LIMIT // 2]
    return f"{error.cause[: LIMIT - len(hint) - 2]}… {hint}"


def _write(root: Path, text: str) -> None:
    try:
        (root / "output").mkdir(parents=True, exist_ok=True)
        (root / "output" / "failure").write_text(text, "utf-8")
    except OSError as error:
        if is_sagemaker() or (root / "output").is_dir():  # else nobody expects the file
            with contextlib.suppress(OutputClosedError):
                log.warning("%s/output/failure cannot be written: %s", root, error.strerror)
