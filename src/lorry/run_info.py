"""What is to be said of a run beside its results: its command, the instance that it was rented on, its phases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


def _starting() -> dict[str, float]:
    return {"starting": max(0.0, time.time() - psutil.Process().create_time())}


@dataclass
class RunInfo:
    """One process's account of a run."""

    command: str = ""
    """Command line that repeats it."""
    instance: str = ""
    """SageMaker instance type; empty where it is not known."""
    seconds: dict[str, float] = field(default_factory=_starting)
    """Seconds by phase: what `timing` measured, and `starting`, which also counts what was before this object."""

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
