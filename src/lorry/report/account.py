"""What a run took and cost, beside what it had expected to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorry.instances import PRICES_FROM, price_of
from lorry.report.facts import ReportFacts
from lorry.run_info import RunInfo
from lorry.training.loop import Progress

PHASES = {
    "starting": "loading Python and its libraries",
    "reading": "reading pairs, model and texts",
    "training": "training",
    "evaluation": "evaluation",
    "merging": "merging and proving the merge",
}
"""The phases of a run, in their order, in words."""


def with_account(
    facts: ReportFacts, about: RunInfo, progress: Progress, hosts: int, fingerprints: Mapping[str, str]
) -> ReportFacts:
    """Return the facts with `time` and `cost` in their metrics, and the fingerprints of what was measured on.

    Training is that of all runs, where one has continued another; all else is this run's.

    Args:
        facts: Those of a run that has been evaluated.
        about: Its phases and its instance.
        progress: Its training.
        hosts: Instances that shared it.
        fingerprints: sha256 of pairs and base model.
    """
    seconds = about.seconds | {"training": progress.seconds}
    seconds["evaluation"] = seconds.get("evaluation", 0.0) + progress.evaluating
    total = sum(seconds.values())
    account: dict[str, Any] = {
        "time": {
            "seconds": round(total, 3),
            "phases": {name: round(seconds[name], 3) for name in PHASES if name in seconds},
            "expected_training_seconds": _expected(facts),
        },
        "cost": cost(about.instance, hosts, total),
    }
    return replace(facts, metrics={**facts.metrics, **account}, fingerprints=dict(fingerprints))


def cost(instance: str, hosts: int, seconds: float) -> dict[str, Any] | None:
    """Return what so many seconds cost on these instances; None where no price is known."""
    price = price_of(instance)
    if price is None:
        return None
    return {
        "instance": instance,
        "instances": hosts,
        "dollars_per_hour": price,
        "prices_from": PRICES_FROM,
        "dollars": round(seconds / 3600 * price * hosts, 4),
    }


def _expected(facts: ReportFacts) -> float | None:
    """Return the seconds that the run expected to train for, after its first steps; None where it did not say."""
    return next((line["expected_seconds"] for line in facts.log if "expected_seconds" in line), None)
