"""`report.html`: one file without network access, with its style and charts inline."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from lorry.names import OFFICIAL_NDCG
from lorry.outputs import write_text
from lorry.report import charts
from lorry.report.facts import METRIC_TITLES, SCORER_TITLES, ReportFacts
from lorry.report.rendering import render
from lorry.report.tables import before_and_after
from lorry.report.verdict import verdict_of, verdict_split

_CURVES = {name: METRIC_TITLES[name] for name in ("ndcg@10", "pair_accuracy", "roc_auc")}


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write `report.html` into `folder`, whole or not at all, and return its path."""
    tables = before_and_after(facts)
    html = render(
        "report.html.j2",
        facts=facts,
        verdict=verdict_of(facts),
        verdict_split=verdict_split(facts.metrics),
        tables=tables,
        scorers=SCORER_TITLES,
        official_ndcg=any(row.metric == OFFICIAL_NDCG for rows in tables.values() for row in rows),
        loss_curve=Markup(charts.loss_curve(facts.log)),
        metric_curve=Markup(charts.metric_curve(facts.log, _CURVES)),
        similarities={
            split: Markup(charts.similarity_by_label(s.label_names, s.label, s.base, s.tuned))
            for split, s in facts.scores.items()
        },
        improved=[change for change in facts.changes if change.after > change.before],
        worsened=[change for change in facts.changes if change.after < change.before],
    )
    path = folder / "report.html"
    write_text(path, html)
    return path
