"""The answer to "is the tuned model better?", with the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry.report.facts import METRIC_TITLES, ReportFacts
from lorry.report.rendering import signed


@dataclass(frozen=True)
class Verdict:
    """The answer to "is it better?".

    Args:
        kind: better, worse, mixed or unclear.
        headline: The answer in a sentence.
        figures: The evidence, one sentence per metric.
        caveats: What limits the answer.
    """

    kind: str
    headline: str
    figures: list[str]
    caveats: list[str]


def verdict_of(facts: ReportFacts) -> Verdict:
    """Compare the models by the intervals of the ranking metrics, on the test split if there is one."""
    split = verdict_split(facts.metrics)
    block, undefined = facts.metrics["splits"][split], facts.undefined.get(split, ())
    intervals = {name: interval for name, interval in facts.intervals.get(split, {}).items() if name not in undefined}
    kind, headline = _answer(intervals, where=f"on the {split} split ({block['queries']:,} queries)")
    caveats = [*_overlap(facts, split), *_caveats(split, block, undefined)]
    return Verdict(kind, headline, _figures(block, intervals), caveats)


def verdict_split(metrics: Mapping[str, Any]) -> str:
    """Return the split that the verdict is about: test, else validation, else the first."""
    splits = list(metrics["splits"])
    return next((name for name in ("test", "validation") if name in splits), splits[0])


def _answer(intervals: Mapping[str, tuple[float, float]], where: str) -> tuple[str, str]:
    """Return the kind and the headline: a metric has changed if its interval excludes 0."""
    better = [METRIC_TITLES[name] for name, (low, _) in intervals.items() if low > 0]
    worse = [METRIC_TITLES[name] for name, (_, high) in intervals.items() if high < 0]
    if not intervals:
        return "unclear", f"Ranking cannot be compared {where}: labels differ within too few queries."
    if better and worse:
        ups, downs = " and ".join(better), " and ".join(worse)
        return "mixed", f"Mixed {where}: better than the base model in {ups}, worse in {downs}."
    if better:
        return "better", f"The tuned model ranks better than the base model {where}."
    if worse:
        return "worse", f"The tuned model ranks worse than the base model {where}."
    return "unclear", f"No clear difference between the tuned and the base model {where}."


def _figures(block: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"{METRIC_TITLES[name]} {block['base'][name]:.4f} → {block['tuned'][name]:.4f} "
        f"({signed(block['tuned'][name] - block['base'][name])}; 95% interval {signed(low)} to {signed(high)})."
        for name, (low, high) in intervals.items()
    ]


def _overlap(facts: ReportFacts, split: str) -> list[str]:
    overlap = facts.health[split].overlap if split in facts.health else None
    if overlap is None or not overlap.shared_queries:
        return []
    return [f"Of the {split} split, {overlap}: the figures may be too good."]


def _caveats(split: str, block: Mapping[str, Any], undefined: Sequence[str]) -> list[str]:
    caveats = []
    main_metric = next((name for name in ("ndcg@10", "pair_accuracy", "roc_auc") if name not in undefined), None)
    if main_metric:
        tuned = block["tuned"][main_metric]
        for scorer, who in (("bm25", "BM25, which needs no training,"), ("random", "Random order")):
            score = block[scorer][main_metric]
            if score > tuned:
                caveats.append(f"{who} scores higher: {METRIC_TITLES[main_metric]} {score:.4f} against {tuned:.4f}.")
    if split == "validation":
        caveats.append(
            "There is no test split. These queries were held out of training, but training was monitored on them."
        )
    if undefined:
        titles = ", ".join(METRIC_TITLES[name] for name in undefined)
        caveats.append(f"Not defined here, because the labels do not differ: {titles}.")
    return caveats
