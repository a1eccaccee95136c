"""Lorry's command line called in this process: quick, and leaving loggers and signal handlers as they were."""

import contextlib
import io
import logging
import signal
import sys
import warnings
from dataclasses import dataclass
from unittest import mock

from accelerate.state import AcceleratorState

from lorry import cli
from lorry.training.update import Trainer


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    output: str
    """Standard output and standard error together."""

    @property
    def lines(self):
        return [line for line in self.output.splitlines() if line.strip()]


def lorry(*words, **options):
    """Run `lorry WORDS --option value …` and return how it ended."""
    flags = [item for name, value in options.items() for item in (f"--{name}", str(value))]
    log, output, code = logging.getLogger("lorry"), io.StringIO(), 0
    kept = log.handlers, log.level, log.propagate
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    AcceleratorState._reset_state(True)  # accelerate keeps the precision of a process, which here has many runs
    try:
        with (
            mock.patch.object(sys, "argv", ["lorry", *map(str, words), *flags]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
        ):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        log.handlers, log.level, log.propagate = kept
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Result(code, output.getvalue())


def stopped_after(step):
    """Let the process get a SIGTERM during this step."""
    make_step = Trainer.step

    def stop(self, batch, number, lr, parts):
        if number + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return make_step(self, batch, number, lr, parts)

    return mock.patch.object(Trainer, "step", stop)
