"""What a run says while it trains: log lines, `training.jsonl`, and a progress bar on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lorry.outputs import write_text

log = logging.getLogger("lorry")

SAMPLE = "sample_"
"""Before the name of a metric that was measured on a sample of the validation queries."""


class TrainingLog:
    """Keeps every logged step and shows it.

    Args:
        steps: Optimizer steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines: list[dict[str, Any]] = []
        self._bar: tqdm[Any] | None = None
        self._timed: tuple[int, float] | None = None

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Measure speed from this step on; on a terminal, show a progress bar that log lines do not break."""
        self._began, self._first, self._pairs, self._timed = time.perf_counter(), step, 0, None
        if not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO):  # nor on ranks that log nothing
            yield
            return
        with (
            tqdm(total=self.steps, initial=step, desc="training", unit="step") as self._bar,
            logging_redirect_tqdm([log]),
        ):
            yield
        self._bar = None

    def step(self, pairs: int) -> None:
        """Count a finished step and its pairs."""
        self._pairs += pairs
        if self._bar is not None:
            self._bar.update(1)

    def pause(self, seconds: float) -> None:
        """Leave out seconds in which nothing was trained."""
        self._began += seconds

    def train(self, step: int, epoch: float, *, loss: float, lr: float) -> None:
        """Log the mean training loss since the last line."""
        seconds = time.perf_counter() - self._began
        speed = self._pairs / seconds
        left = seconds / max(step - self._first, 1) * (self.steps - step)
        line = {"step": step, "epoch": round(epoch, 4), "loss": loss, "lr": lr, "pairs_per_second": round(speed, 1)}
        self.lines.append(line | self._expected(step, seconds))
        log.info(
            f"step={step}/{self.steps}; epoch={epoch:.2f}; training loss {loss:.4f}; lr={lr:.3g}; "
            f"pairs_per_second={speed:.1f}; seconds_left={left:.0f};"
        )

    def _expected(self, step: int, seconds: float) -> dict[str, float]:
        """Return the seconds that all of training should take, once, between the first two lines of a run.

        The steps before the first line are not typical: memory and kernels are being prepared.
        """
        if self._timed is None:
            self._timed = step, seconds
            return {}
        first, then = self._timed
        if self._first or len([line for line in self.lines if "loss" in line]) != 1 or 2 * step > self.steps:
            return {}
        return {"expected_seconds": round(then + (seconds - then) / (step - first) * (self.steps - first), 1)}

    def evaluate(self, step: int, epoch: float, *, loss: float, metrics: dict[str, float]) -> None:
        """Log an evaluation of the validation pairs during training."""
        self.lines.append({"step": step, "epoch": round(epoch, 4), "eval_loss": loss, **metrics})
        log.info(f"step={step}/{self.steps}; epoch={epoch:.2f}; eval loss {loss:.4f}; {_values(metrics)}")

    def sample(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Log what a sample of the validation queries gave within an epoch."""
        self.lines.append({"step": step, "epoch": round(epoch, 4), **metrics})
        log.info(f"step={step}/{self.steps}; epoch={epoch:.2f}; {_values(metrics)}")

    def begin_with(self, *, loss: float, metrics: dict[str, float]) -> None:
        """Put the evaluation of the base model, step 0, before all other lines."""
        self.lines.insert(0, {"step": 0, "epoch": 0.0, "eval_loss": loss, **metrics})

    def evaluated(self, step: int) -> bool:
        """Return whether there was an evaluation after this step, in this run or the one it continues."""
        return any(line["step"] == step and "eval_loss" in line for line in self.lines)

    def sampled(self, step: int) -> bool:
        """Return whether the sample was measured after this step, in this run or the one it continues."""
        return any(line["step"] == step and any(name.startswith(SAMPLE) for name in line) for line in self.lines)

    def write(self, path: Path) -> None:
        """Write the lines as JSON, one object per line."""
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))


def _values(metrics: dict[str, float]) -> str:
    return " ".join(f"validation:{name}={value:.4f};" for name, value in metrics.items())
