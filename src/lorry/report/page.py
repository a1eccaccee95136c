"""`report.html`: one file without network access, with its style and charts inline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lorry.evaluation.intervals import Change
from lorry.names import OFFICIAL_NDCG
from lorry.outputs import write_text
from lorry.report import charts, evidence_charts
from lorry.report.account import PHASES
from lorry.report.facts import METRIC_TITLES, SCORER_TITLES, SEARCHER_TITLES, ReportFacts
from lorry.report.rendering import render
from lorry.report.tables import before_and_after
from lorry.report.verdict import verdict_of, verdict_split
from lorry.training.progress import SAMPLE
from lorry.training.selection import CRITERION

SLICES = {
    "query_length": "Length of the query",
    "judged_products": "Judged products of the query",
    "lexical_overlap": "Words of the query in its relevant products",
    "label": "Label: mean cosine similarity",
}
"""Kinds of slices in the order of the page, in words."""
SHOWN = 0.005  # smaller changes of a query cannot be seen in two decimal places


def write_report(path: Path, facts: ReportFacts) -> None:
    """Write the page of a run, whole or not at all."""
    tables, split = before_and_after(facts), verdict_split(facts.metrics)
    html = render(
        "report.html.j2",
        facts=facts,
        verdict=verdict_of(facts),
        verdict_split=split,
        block=facts.metrics["splits"][split],
        tables=tables,
        scorers=SCORER_TITLES,
        searchers=SEARCHER_TITLES,
        best_found=_best_found(facts.metrics["splits"][split].get("search")),
        slices=SLICES,
        phases=PHASES,
        held_out_here=_held_out_of_train(facts),
        sampled=_is_sampled(facts),
        official_ndcg=any(row.metric == OFFICIAL_NDCG for rows in tables.values() for row in rows),
        charts={name: Markup(chart) for name, chart in _charts(facts, split).items()},
        similarities={
            name: Markup(charts.similarity_by_label(spreads)) for name, spreads in facts.similarities.items() if spreads
        },
        improved=[change for change in facts.changes if change.after - change.before > SHOWN],
        worsened=[change for change in facts.changes if change.before - change.after > SHOWN],
    )
    write_text(path, html)


def changes_by_title(facts: ReportFacts, split: str) -> dict[str, Change]:
    """Return the change of every metric that a split defines, by the metric's title, in the order of the tables."""
    found, undefined = facts.differences.get(split, {}), facts.undefined.get(split, ())
    return {title: found[name] for name, title in METRIC_TITLES.items() if name in found and name not in undefined}


def _charts(facts: ReportFacts, split: str) -> dict[str, str]:
    block = facts.metrics["splits"][split]
    outcomes = {METRIC_TITLES[name]: found for name, found in block.get("outcomes", {}).items() if name != "ndcg@10"}
    start = SAMPLE if _is_sampled(facts) else ""
    return {
        "intervals": evidence_charts.interval_chart(changes_by_title(facts, split)),
        "outcomes": evidence_charts.outcome_chart(outcomes),
        "reliability": evidence_charts.reliability_chart(
            block.get("threshold", {}).get("tuned", {}).get("reliability", ())
        ),
        "loss": charts.loss_curve(facts.log),
        "metrics": charts.metric_curve(facts.log, {f"{start}{name}": METRIC_TITLES[name] for name in CRITERION}),
    }


def _is_sampled(facts: ReportFacts) -> bool:
    return any(f"{SAMPLE}{name}" in line for line in facts.log for name in CRITERION)


def _best_found(search: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the highest value of every metric of the search."""
    if not search:
        return {}
    return {
        metric: max(search[searcher][metric] for searcher in SEARCHER_TITLES if searcher in search)
        for metric in search["bm25"]
    }


def _held_out_of_train(facts: ReportFacts) -> int:
    """Return how many pairs of the training channel were held out for validation; 0 where validation has its own."""
    if "train" not in facts.health or "train" not in facts.used:
        return 0
    return facts.health["train"].kept - facts.used["train"]
