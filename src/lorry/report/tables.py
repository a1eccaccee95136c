"""The before/after tables: rows for the page and the card, plain text for the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorry.evaluation.intervals import Change
from lorry.names import OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.report.facts import METRIC_TITLES, SCORER_TITLES, SEARCHER_TITLES, ReportFacts
from lorry.report.verdict import verdict_split

OFFICIAL = (OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG)


@dataclass(frozen=True)
class Row:
    """One metric of a split.

    Args:
        metric: The metric's name in `metrics.json`.
        title: The name to show.
        scores: The value of each scorer.
        change: Tuned minus base.
        difference: The change with its 95% interval, if known.
        defined: Whether the labels of the split define the metric.
        best: Scorers with the highest value.
    """

    metric: str
    title: str
    scores: dict[str, float]
    change: float
    difference: Change | None
    defined: bool
    best: set[str]


def before_and_after(facts: ReportFacts) -> dict[str, list[Row]]:
    """Return the rows of each split's table, the split of the verdict first."""
    first = verdict_split(facts.metrics)
    return {split: _rows(facts, split) for split in sorted(facts.metrics["splits"], key=lambda split: split != first)}


def summary_table(metrics: Mapping[str, Any], split: str) -> str:
    """Return the before/after table of a split as plain text of fixed width."""
    block = metrics["splits"][split]
    names = [name for name in METRIC_TITLES if name in block["tuned"]]
    width = max(map(len, names))
    queries = f"{block['queries']:,} queries, of which {block['queries_rankable']:,} can be ranked"
    lines = [f"{split}: {block['pairs']:,} pairs, {queries}"]
    lines.append(" " * width + "".join(f"{title:>9}" for title in (*SCORER_TITLES.values(), "change")))
    for name in names:
        scores = "".join(f"{block[scorer][name]:9.4f}" for scorer in SCORER_TITLES)
        lines.append(f"{name:<{width}}{scores}{block['tuned'][name] - block['base'][name]:+9.4f}")
    return "\n".join(lines)


def search_table(metrics: Mapping[str, Any], split: str) -> str:
    """Return what search found of all products, as plain text of fixed width; "" where it was not measured."""
    block = metrics["splits"][split].get("search")
    if not block:
        return ""
    names = list(block["bm25"])
    width = max(map(len, SEARCHER_TITLES.values()))
    of = f" of {block['products_all']:,}" if block["products"] < block["products_all"] else ""
    about = f"{block['queries']:,} queries, {block['seconds']:.0f} s"
    lines = [f"{split}, search among {block['products']:,}{of} products, {about}"]
    lines.append(" " * width + "".join(f"{name:>12}" for name in names))
    for searcher, title in SEARCHER_TITLES.items():
        lines.append(f"{title:<{width}}" + "".join(f"{block[searcher][name]:12.4f}" for name in names))
    return "\n".join(lines)


def _rows(facts: ReportFacts, split: str) -> list[Row]:
    block, undefined = facts.metrics["splits"][split], facts.undefined.get(split, ())
    rows = []
    for metric, title in METRIC_TITLES.items():
        if metric not in block["tuned"]:
            continue
        scores = {scorer: float(block[scorer][metric]) for scorer in SCORER_TITLES}
        defined = ("ndcg@10" if metric in OFFICIAL else metric) not in undefined
        difference = facts.differences.get(split, {}).get(metric) if defined else None
        highest = round(max(scores.values()), 4)
        best = {scorer for scorer, score in scores.items() if defined and round(score, 4) == highest}
        rows.append(Row(metric, title, scores, scores["tuned"] - scores["base"], difference, defined, best))
    return rows
