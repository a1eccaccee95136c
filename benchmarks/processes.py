"""A process that works when it is told to, and whose end, whatever the cause, is noted rather than raised."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

OUT_OF_MEMORY, TIMED_OUT = "out of memory", "timed out"


class WorkerProcess:
    """A process that is told what to do in lines and answers in lines.

    Attributes:
        failed: Why it cannot continue: `out of memory`, `timed out`, or the last line of its error; "" while it can.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        """Start the process.

        Args:
            command: Program and arguments.
            timeout: Seconds after which a process that does not answer is killed.
        """
        self.failed = ""
        self._timeout, self._timed_out, self._last_line = timeout, False, ""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, closed in end()
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            self.failed = f"cannot start: {error.strerror}"

    def answer(self) -> dict[str, Any]:
        """Return the next answer, a line of JSON; {} if the process failed, by itself or in its own words."""
        line = self.line('{"')
        answer: dict[str, Any] = json.loads(line) if line else {}
        self.failed = self.failed or answer.pop("error", "")
        return {} if self.failed else answer

    def tell(self, line: str) -> None:
        """Send a line; that a process has ended shows in its answer."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def line(self, start: str) -> str:
        """Return the next line that starts like this, or "" with the reason in `failed`."""
        if self.failed or self._process is None or self._process.stdout is None:
            return ""
        timer = threading.Timer(self._timeout, self._time_out)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith(start) and line.endswith("\n"):  # a process that is killed may leave half a line
                    return line
                self._last_line = line.strip() or self._last_line
            self.failed = self._reason(self._process.wait())
            return ""
        finally:
            timer.cancel()

    def end(self) -> None:
        """Kill the process if it still runs, and release what it held."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError), self._process:  # closes the pipes and waits
                self._process.kill()
        self._errors.close()

    def _time_out(self) -> None:
        self._timed_out = True
        if self._process is not None:
            self._process.kill()

    def _reason(self, code: int) -> str:
        if self._timed_out:
            return TIMED_OUT
        if code == -signal.SIGKILL:  # not by us, so by the kernel, for memory
            return OUT_OF_MEMORY
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return (said[-1] if said else self._last_line)[:300] or f"ended with exit code {code}"
