"""What a person looks at after a run: `report.html`, the model card, and the table printed at the end.

`report.html` is one file without network access: style and charts are inline. Everything that comes from the user's
data or machine is escaped by the template engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from lorry.data.pairs import Health, Pairs
from lorry.evaluation.metrics import query_ndcg
from lorry.logs import duration
from lorry.names import BUNDLED_MODEL_ID, METRICS, OFFICIAL_NDCG
from lorry.report import charts

SCORERS = {"random": "random", "bm25": "BM25", "base": "base", "tuned": "tuned"}
SHOWN = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
    "spearman": "Spearman",
    "pair_accuracy": "Pair accuracy",
    OFFICIAL_NDCG: "nDCG@10, official scorer’s gains",
}
# Options that name places on the user's machine: no business of those who get the model.
_PRIVATE = {"train", "validation", "test", "model_dir", "output_data_dir", "checkpoint_dir", "pretrained_model"}


@dataclass(frozen=True)
class ScoresByLabel:
    """Similarities of a split's pairs before and after, with the label of each.

    Args:
        label_names: Names of the labels, best first.
        label: Row in `label_names` of each pair, [N].
        base: Similarity under the base model, [N].
        tuned: Similarity under the tuned model, [N].
    """

    label_names: Sequence[str]
    label: np.ndarray
    base: np.ndarray
    tuned: np.ndarray


@dataclass(frozen=True)
class QueryChange:
    """One query's nDCG@10 and best-ranked product, before and after; labels are those of the products."""

    query: str
    before: float
    after: float
    top_before: str
    top_after: str
    label_before: str
    label_after: str


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report and the model card say.

    Args:
        metrics: What `metrics.json` holds.
        config: The resolved hyperparameters, in the order to show them.
        command: Command line that repeats the run.
        environment: Device, precision, versions: whatever the run should be remembered by.
        log: The lines of `training.jsonl`: of training (`step`, `loss`, ...) and evaluation (`step`, `eval_loss`,
            metrics).
        intervals: 95 % interval of tuned - base, by split and metric (`metrics.compare`).
        undefined: Metrics that the labels of a split do not define (`metrics.undefined`).
        scores: Similarities by label, for each split.
        health: How the rows fared, for each channel.
        changes: Queries to show; the largest changes are picked.
        pooling: How the model pools token vectors: mean, cls or lasttoken.
        stopped_at: The step at which the run was stopped before its end, if it was.
    """

    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    command: str
    environment: Mapping[str, str]
    log: Sequence[Mapping[str, Any]] = ()
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    undefined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scores: Mapping[str, ScoresByLabel] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    changes: Sequence[QueryChange] = ()
    pooling: str = "mean"
    stopped_at: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The answer to "is it better?".

    Args:
        kind: better, worse, mixed or unclear.
        headline: The answer in a sentence.
        figures: What it rests on, a sentence a metric.
        caveats: What must be known with it.
    """

    kind: str
    headline: str
    figures: list[str]
    caveats: list[str]


def judge(facts: ReportFacts) -> Verdict:
    """Judge the tuned model by the intervals of the ranking metrics, on the test split where there is one."""
    split = judged_split(facts.metrics)
    block, intervals = facts.metrics["splits"][split], facts.intervals.get(split, {})
    undefined = facts.undefined.get(split, ())
    known = {name: interval for name, interval in intervals.items() if name not in undefined}
    up = [name for name, (low, _) in known.items() if low > 0]
    down = [name for name, (_, high) in known.items() if high < 0]
    where = f"on the {split} split ({block['queries']:,} queries)"
    if up and down:
        kind = "mixed"
        headline = f"Mixed {where}: {_names(up)} better, {_names(down)} worse than the base model."
    elif up or down:
        kind = "better" if up else "worse"
        headline = f"The tuned model ranks {kind} than the base model {where}."
    elif known:
        kind, headline = "unclear", f"No clear difference between the tuned and the base model {where}."
    else:
        kind, headline = (
            "unclear",
            f"Ranking cannot be judged {where}: within a query, the labels do not differ enough.",
        )
    return Verdict(kind, headline, _figures(block, known), _caveats(facts, split, block, undefined))


def judged_split(metrics: Mapping[str, Any]) -> str:
    """Return the split that the verdict is about: test, else validation, else the first."""
    splits = list(metrics["splits"])
    return next((name for name in ("test", "validation") if name in splits), splits[0])


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write `report.html` into `folder`, whole or not at all, and return its path."""
    page = (
        _templates()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            verdict=judge(facts),
            judged=judged_split(facts.metrics),
            tables=_tables(facts),
            loss_curve=Markup(charts.loss_curve(facts.log)),
            metric_curve=Markup(
                charts.metric_curve(facts.log, {k: SHOWN[k] for k in ("ndcg@10", "pair_accuracy", "roc_auc")})
            ),
            similarities={
                split: Markup(charts.similarity_by_label(s.label_names, s.label, s.base, s.tuned))
                for split, s in facts.scores.items()
            },
            improved=[c for c in sorted(facts.changes, key=lambda c: c.before - c.after) if c.after > c.before][:8],
            worsened=[c for c in sorted(facts.changes, key=lambda c: c.after - c.before) if c.after < c.before][:8],
            scorers=SCORERS,
        )
    )
    return _write(folder / "report.html", page)


def write_model_card(folder: Path, facts: ReportFacts) -> None:
    """Write the Hugging Face model card, `README.md`, into `folder`; it names no file or row of the user's data."""
    name = str(facts.config.get("pretrained_model", ""))
    on_hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    card = (
        _templates()
        .get_template("model_card.md.j2")
        .render(
            facts=facts,
            base_model=BUNDLED_MODEL_ID if name == "bundled" else name if on_hub else None,
            tables=_tables(facts),
            verdict=judge(facts),
            options={
                key: value for key, value in facts.config.items() if key not in _PRIVATE and value not in ("", None)
            },
            scorers=SCORERS,
        )
    )
    _write(folder / "README.md", card)


def write_unfinished_card(folder: Path, base_model: str, steps: int) -> None:
    """Write `README.md` for a model whose training was stopped: it has no results to show."""
    text = _templates().get_template("unfinished_card.md.j2").render(base_model=base_model, steps=steps)
    _write(folder / "README.md", text)


def summary_table(metrics: Mapping[str, Any], split: str) -> str:
    """Return the before/after table of a split as plain text of fixed width."""
    block = metrics["splits"][split]
    names = [name for name in (*METRICS, OFFICIAL_NDCG) if name in block["tuned"]]
    width = max(map(len, names))
    lines = [f"{split}: {block['pairs']:,} pairs, {block['queries']:,} queries"]
    lines.append(" " * width + "".join(f"{shown:>9}" for shown in (*SCORERS.values(), "change")))
    for name in names:
        scores = "".join(f"{block[scorer][name]:9.4f}" for scorer in SCORERS)
        lines.append(f"{name:<{width}}{scores}{block['tuned'][name] - block['base'][name]:+9.4f}")
    return "\n".join(lines)


def query_changes(pairs: Pairs, base: np.ndarray, tuned: np.ndarray, *, most: int = 8) -> list[QueryChange]:
    """Return the queries whose nDCG@10 rose or fell most, at most `most` of each.

    Args:
        pairs: The judged pairs of a split.
        base: Similarity of each pair under the base model, [N].
        tuned: Similarity of each pair under the tuned model, [N].
        most: Number of queries each way.
    """
    before, after = (query_ndcg(pairs.query, pairs.gain, score) for score in (base, tuned))
    by_rise = sorted(before, key=lambda query: (before[query] - after[query], query))
    changes = []
    for query in dict.fromkeys(by_rise[:most] + by_rise[::-1][:most]):
        if before[query] == after[query]:
            continue
        judged = np.flatnonzero(pairs.query == query)
        tops = [judged[np.argmax(score[judged])] for score in (base, tuned)]
        texts = (pairs.texts[int(pairs.text[top])].as_py() for top in tops)
        labels = (pairs.label_names[int(pairs.label[top])] for top in tops)
        changes.append(QueryChange(pairs.queries[query].as_py(), before[query], after[query], *texts, *labels))
    return changes


@dataclass(frozen=True)
class _Row:
    """A line of the before/after table."""

    name: str
    values: dict[str, float]
    change: float
    interval: tuple[float, float] | None
    defined: bool
    best: set[str]  # scorers with the highest value


def _tables(facts: ReportFacts) -> dict[str, list[_Row]]:
    """Return the table of each split, the judged one first."""
    judged = judged_split(facts.metrics)
    return {split: _table(facts, split) for split in sorted(facts.metrics["splits"], key=lambda split: split != judged)}


def _table(facts: ReportFacts, split: str) -> list[_Row]:
    block = facts.metrics["splits"][split]
    rows = []
    for key, shown in SHOWN.items():
        if key not in block["tuned"]:
            continue
        values = {scorer: float(block[scorer][key]) for scorer in SCORERS}
        defined = key.replace(OFFICIAL_NDCG, "ndcg@10") not in facts.undefined.get(split, ())
        interval = facts.intervals.get(split, {}).get(key) if defined else None
        top = max(values.values())
        best = {scorer for scorer, value in values.items() if defined and round(value, 4) == round(top, 4)}
        rows.append(_Row(shown, values, values["tuned"] - values["base"], interval, defined, best))
    return rows


def _names(metrics: Sequence[str]) -> str:
    return " and ".join(SHOWN[name] for name in metrics)


def _figures(block: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"{SHOWN[name]} {block['base'][name]:.4f} → {block['tuned'][name]:.4f} "
        f"({_signed(block['tuned'][name] - block['base'][name])}; 95 % interval {_signed(low)} to {_signed(high)})."
        for name, (low, high) in intervals.items()
    ]


def _caveats(facts: ReportFacts, split: str, block: Mapping[str, Any], undefined: Sequence[str]) -> list[str]:
    caveats = []
    headline = next((name for name in ("ndcg@10", "pair_accuracy", "roc_auc") if name not in undefined), None)
    if headline:
        tuned = block["tuned"][headline]
        for scorer, who in (("bm25", "BM25, which needs no training,"), ("random", "Random order")):
            if block[scorer][headline] > tuned:
                caveats.append(
                    f"{who} scores higher still: {SHOWN[headline]} {block[scorer][headline]:.4f} against {tuned:.4f}."
                )
    if split == "validation":
        caveats.append("There is no test split: these queries were held out of training, but watched during it.")
    if undefined:
        caveats.append(
            f"Not defined here, because the labels do not differ: {', '.join(SHOWN[name] for name in undefined)}."
        )
    if facts.stopped_at is not None:
        caveats.append(
            f"The run was stopped at step {facts.stopped_at:,}, before its end: the model is as trained so far."
        )
    return caveats


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("lorry.report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "score": lambda number: f"{number:.4f}".replace("-", "\N{MINUS SIGN}"),
        "signed": _signed,
        "duration": duration,
        "gib": lambda number: f"{number / 2**30:.2f} GiB",
        "cell": lambda value: " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split()),
    }
    return environment


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "\N{MINUS SIGN}")


def _write(path: Path, text: str) -> Path:
    """Write beside and rename in, so that a reader never finds half a page."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
