"""What a run says while it works: lines of the log, `training.jsonl`, and a progress bar on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("lorry")


class TrainingLog:
    """Keeps every logged step and shows it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines: list[dict[str, Any]] = []
        self._bar: tqdm[Any] | None = None

    def start(self, step: int) -> None:
        """Begin at this step: where a person watches, with a bar for how far it is and how long it will take."""
        self._began, self._first, self._pairs = time.perf_counter(), step, 0
        if sys.stderr.isatty():
            self._bar = tqdm(total=self.steps, initial=step, desc="training", unit="step")

    def step(self, step: int, pairs: int) -> None:
        """Count a finished step."""
        self._pairs += pairs
        if self._bar is not None:
            self._bar.update(1)

    def train(self, step: int, *, epoch: float, loss: float, rate: float) -> None:
        """Log the mean training loss since the last line."""
        seconds = time.perf_counter() - self._began
        speed = self._pairs / seconds
        left = seconds / max(step - self._first, 1) * (self.steps - step)
        self.lines.append(
            {"step": step, "epoch": round(epoch, 4), "loss": loss, "lr": rate, "pairs_per_second": round(speed, 1)}
        )
        self.say(
            f"step={step}/{self.steps}; epoch={epoch:.2f}; training loss {loss:.4f}; lr={rate:.3g}; "
            f"pairs_per_second={speed:.1f}; seconds_left={left:.0f};"
        )

    def evaluate(self, step: int, *, epoch: float, split: str, loss: float, metrics: dict[str, float]) -> None:
        """Log an evaluation during training."""
        self.lines.append({"step": step, "epoch": round(epoch, 4), "eval_loss": loss, **metrics})
        values = " ".join(f"{split}:{name}={value:.4f};" for name, value in metrics.items())
        self.say(f"step={step}/{self.steps}; epoch={epoch:.2f}; eval loss {loss:.4f}; {values}")

    def begin_with(self, *, loss: float, metrics: dict[str, float]) -> None:
        """Put the evaluation of the base model, step 0, before all other lines."""
        self.lines.insert(0, {"step": 0, "epoch": 0.0, "eval_loss": loss, **metrics})

    def evaluated(self, step: int) -> bool:
        """Return whether there was an evaluation after this step, in this run or the one it continues."""
        return any(line["step"] == step and "eval_loss" in line for line in self.lines)

    def say(self, text: str) -> None:
        """Log a line without tearing the bar."""
        with tqdm.external_write_mode() if self._bar is not None else nullcontext():
            log.info("%s", text)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()

    def write(self, path: Path) -> None:
        """Write the lines as JSON, one each."""
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")
