"""What the tuned model must reach (`--require "ndcg@10>=+0.005"`), and what it falls short of."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lorry.errors import UserError, nearest
from lorry.names import METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.options import LONGEST

NAMED_SPLITS = ("validation", "test", "probe")
PROBE_METRICS = ("spearman",)
DEFAULT_SPLITS = ("test", "validation", "all", "train")
"""Where a requirement without a split is measured: the first of these that there is."""

ROUNDING = 1e-12  # more than adding a number to the base model's figure can be off by

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_BOUND = re.compile(
    rf"(?P<reference>base|bm25|random)?\s*(?P<difference>[+-]\s*{_NUMBER})?|(?P<value>{_NUMBER})",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Requirement:
    """One bound that a metric must reach."""

    text: str
    """As the user wrote it."""
    split: str
    """validation, test, probe, or "": see `DEFAULT_SPLITS`."""
    metric: str
    reference: str
    """Whose figure the number is added to: base, bm25, random, or "" for none."""
    number: float

    def split_of(self, splits: Collection[str]) -> str:
        """Return the one of `splits` that it is about."""
        return self.split or next(name for name in DEFAULT_SPLITS if name in splits)


class RequirementError(UserError):
    """The tuned model is not as good as required.

    Args:
        phrases: What it falls short of, as `unmet` says it.
        folder: Where the model is kept.
    """

    def __init__(self, phrases: Sequence[str], folder: Path) -> None:
        super().__init__(
            f"the tuned model does not meet --require: {'; '.join(phrases)}",
            f"The model is kept in {folder}, model_dir is as it was.",
        )


def read_requirements(text: str) -> list[Requirement]:
    """Read requirements such as `ndcg@10>=+0.005,test:roc_auc>=0.7`; none where the text is empty.

    Each is `[validation:|test:|probe:]METRIC>=BOUND`. A bound with a sign is counted from the base model's figure,
    one without is the figure itself; `base`, `bm25` or `random` may be followed by a number with a sign.

    Raises:
        UserError: One of them cannot be read, or no metric could reach it.
    """
    return [_read(part.strip()) for part in text.split(",")] if text.strip() else []


def check_measurable(requirements: Sequence[Requirement], measurable: Mapping[str, Collection[str]]) -> None:
    """Check that every requirement is about a split that there is, and a metric that its labels define.

    Args:
        requirements: What must be reached.
        measurable: By split, the metrics that its labels define.

    Raises:
        UserError: There are no such pairs, or their labels do not define the metric.
    """
    for requirement in requirements:
        split = requirement.split_of(measurable)
        if split not in measurable:
            raise UserError(
                f"require has {requirement.text!r}, but there are no {requirement.split} pairs",
                f"Give {requirement.split} pairs, or leave out the {requirement.split}: before the metric.",
            )
        if split == "probe" and requirement.reference not in ("", "base"):
            raise UserError(
                f"require has {requirement.text!r}, but {requirement.reference} does not score a probe",
                "Compare with the base model, e.g. probe:spearman>=-0.01.",
            )
        if requirement.metric not in measurable[split]:
            whose = "pairs" if split == "all" else f"{split} pairs"
            raise UserError(
                f"require has {requirement.text!r}, but the labels of the {whose} do not define {requirement.metric}",
                "Require another metric, or give pairs whose labels define it.",
            )


def unmet(requirements: Sequence[Requirement], splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a phrase for every requirement that is not met: the figures, and by how much they fall short.

    Args:
        requirements: What must be reached; `check_measurable` has passed them.
        splits: By split, the metrics of `random`, `bm25`, `base` and `tuned`, as in metrics.json.
    """
    phrases = (_shortfall(requirement, splits) for requirement in requirements)
    return [phrase for phrase in phrases if phrase]


def missed(require: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return what `unmet` says of a run, whose `metrics` are the content of metrics.json."""
    probe = {"probe": metrics["probe"]} if "probe" in metrics else {}
    return unmet(read_requirements(require), {**metrics["splits"], **probe})


def _read(part: str) -> Requirement:
    name, sign, bound = (piece.strip() for piece in part.partition(">="))
    if not (name and sign and bound):
        _refuse(
            part, "it is not METRIC>=BOUND", 'Write e.g. --require "ndcg@10>=+0.005", quoted: > is special to a shell.'
        )
    split, colon, metric = (piece.strip() for piece in name.rpartition(":"))
    if colon and split not in NAMED_SPLITS:
        hint = "Write validation: or test: before the metric, or neither; or probe:spearman."
        _refuse(part, "there is no such split", hint)
    known = (*METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG)
    if metric not in known:
        guess = nearest(metric.lower(), known)
        _refuse(
            part,
            "there is no such metric",
            f"Did you mean {guess}?" if guess else f"The metrics are {', '.join(known)}.",
        )
    found = _BOUND.fullmatch(bound)
    if not found:
        _refuse(
            part,
            "the bound cannot be read",
            "Give a number to reach, e.g. 0.72, a difference to the base model, e.g. +0.005, or e.g. bm25+0.01.",
        )
    number = float("".join((found["value"] or found["difference"] or "0").split()))
    if not -1 <= number <= 1:
        _refuse(part, f"no metric is beyond 1, and the number is {number:g}", "Give a share, e.g. 0.72 for 72 %.")
    return Requirement(part, split, metric, "" if found["value"] else (found["reference"] or "base").lower(), number)


def _refuse(part: str, reason: str, hint: str) -> NoReturn:
    shown = part if len(part) <= LONGEST else part[: LONGEST - 1] + "…"
    raise UserError(f"require has {shown!r}: {reason}", hint)


def _shortfall(requirement: Requirement, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the phrase of `unmet` for one requirement, "" where it is met."""
    split, metric, block = requirement.split_of(splits), requirement.metric, splits[requirement.split_of(splits)]
    figure = f"{metric} on {'all pairs' if split == 'all' else split}"
    value = block["tuned"][metric]
    start = block[requirement.reference][metric] if requirement.reference else 0.0
    gap = start + requirement.number - value
    if gap <= ROUNDING:
        return ""
    digits = next(count for count in range(4, 13) if round(gap, count))  # as many as it takes to see the gap
    phrase = (
        f"{figure} is {value:.{digits}f}, {gap:.{digits}f} below the required {start + requirement.number:.{digits}f}"
    )
    if not requirement.reference:
        return phrase
    added = f" {'-' if requirement.number < 0 else '+'} {abs(requirement.number):g}" if requirement.number else ""
    return f"{phrase} ({requirement.reference} {start:.{digits}f}{added})"
