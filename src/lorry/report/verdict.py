"""The answer to "is the tuned model better?", with the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry.evaluation.gate import missed
from lorry.evaluation.intervals import Change
from lorry.report.facts import METRIC_TITLES, ReportFacts
from lorry.report.plain import plain_words
from lorry.report.rendering import signed

DECIDES = "ndcg@10_rankable"
"""The metric that decides: on other queries every order is as good as any."""


@dataclass(frozen=True)
class Verdict:
    """The answer to "is it better?".

    Args:
        kind: better, worse or unclear.
        answer: The answer for readers who know no metric, in a sentence.
        plain: What it rests on, for the same readers.
        headline: The answer in a sentence.
        line: The answer in one line for logs, with its figures.
        figures: The evidence, one sentence per metric.
        deciding: That of the metric that decides, and what share of the update the model has.
        caveats: What limits the answer.
    """

    kind: str
    answer: str
    plain: str
    headline: str
    line: str
    figures: list[str]
    deciding: list[str]
    caveats: list[str]


def verdict_of(facts: ReportFacts) -> Verdict:
    """Compare the models by the interval of nDCG@10 over the queries that can be ranked, on test if there is a test."""
    split = verdict_split(facts.metrics)
    block, undefined = facts.metrics["splits"][split], facts.undefined.get(split, ())
    differences = {name: item for name, item in facts.differences.get(split, {}).items() if name not in undefined}
    kind = _direction(differences.get(DECIDES))
    answer = {"better": "better", "worse": "worse", "unclear": "no clear difference"}[kind]
    caveats = [
        *_refused(facts),
        *_against(kind, differences),
        *_overlap(facts, split),
        *_caveats(split, block, undefined),
        *_monitored(facts, split),
    ]
    answer_in_words, plain = plain_words(facts, kind, split, comparable=DECIDES in differences)
    return Verdict(
        kind=kind,
        answer=answer_in_words,
        plain=plain,
        headline=_headline(facts, kind, split, differences),
        line=f"VERDICT: {answer}: {_evidence(split, block, differences)}",
        figures=[*(_figure(block, name, item) for name, item in differences.items()), *_share(facts)],
        deciding=[
            *(_figure(block, DECIDES, item) for name, item in differences.items() if name == DECIDES),
            *_share(facts),
        ],
        caveats=caveats,
    )


def verdict_split(metrics: Mapping[str, Any]) -> str:
    """Return the split that the verdict is about: test, else validation, else the first."""
    splits = list(metrics["splits"])
    return next((name for name in ("test", "validation") if name in splits), splits[0])


def _direction(difference: Change | None) -> str:
    """Return whether a metric has changed: it has if the interval excludes 0."""
    if difference is None or difference.low <= 0 <= difference.high:
        return "unclear"
    return "better" if difference.low > 0 else "worse"


def _headline(facts: ReportFacts, kind: str, split: str, differences: Mapping[str, Change]) -> str:
    block = facts.metrics["splits"][split]
    if facts.interpolation == 0:
        why = "Tuning did not help" if _chosen(facts) else "No share of the update was asked for"
        return f"{why}: the model has the weights of the base model."
    if DECIDES not in differences:
        where = f"the {block['queries']:,} queries of the {split} split"
        return f"Ranking cannot be compared: labels differ within too few of {where}."
    before, after = block["base"][DECIDES], block["tuned"][DECIDES]
    figures = f"nDCG@10 {before:.4f} → {after:.4f} over the {block['queries_rankable']:,} queries"
    answer = (
        "No clear difference between the tuned and the base model"
        if kind == "unclear"
        else f"The tuned model ranks {kind} than the base model"
    )
    return f"{answer}: {figures} of the {split} split that can be ranked."


def _evidence(split: str, block: Mapping[str, Any], differences: Mapping[str, Change]) -> str:
    if DECIDES not in differences:
        return f"labels differ within too few of the {block['queries']:,} {split} queries"
    found, before, after = differences[DECIDES], block["base"][DECIDES], block["tuned"][DECIDES]
    queries = f"the {block['queries_rankable']:,} {split} queries that can be ranked"
    return (
        f"nDCG@10 over {queries} {before:.4f} -> {after:.4f} "
        f"({found.change:+.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f}, p {found.p:.3f})"
    )


def _figure(block: Mapping[str, Any], name: str, found: Change) -> str:
    return (
        f"{METRIC_TITLES[name]} {block['base'][name]:.4f} → {block['tuned'][name]:.4f} "
        f"({signed(found.change)}; 95% interval {signed(found.low)} to {signed(found.high)}, p {found.p:.3f})."
    )


def _share(facts: ReportFacts) -> list[str]:
    """Say how much of the trained update the model has, where it is neither all nor nothing."""
    if not 0 < facts.interpolation < 1:
        return []
    how = "chosen on the validation pairs" if _chosen(facts) else "as interpolation says"
    return [f"The merged model has {facts.interpolation:.0%} of the trained update: {how}."]


def _chosen(facts: ReportFacts) -> bool:
    """Return whether the share of the update was chosen on validation, not given by the user."""
    return facts.config["interpolation"] is None


def _against(kind: str, differences: Mapping[str, Change]) -> list[str]:
    """Say which metrics changed the other way."""
    other = {"better": "worse", "worse": "better"}.get(kind)
    names = [METRIC_TITLES[name] for name, item in differences.items() if other and _direction(item) == other]
    return [f"But {', '.join(names)} {'is' if len(names) == 1 else 'are'} {other}."] if names else []


def _refused(facts: ReportFacts) -> list[str]:
    """Say what was required and not reached."""
    return [f"Required, and not reached: {phrase}." for phrase in missed(facts.config["require"], facts.metrics)]


def _overlap(facts: ReportFacts, split: str) -> list[str]:
    overlap = facts.health[split].overlap if split in facts.health else None
    if overlap is None or not overlap.shared_queries:
        return []
    return [f"Of the {split} split, {overlap}: the figures may be too good."]


def _monitored(facts: ReportFacts, split: str) -> list[str]:
    """Say what was chosen on these queries, where there are no others."""
    if split != "validation":
        return []
    config = facts.config
    chosen = [
        *(["the epoch"] if config["best_epoch"] and config["epochs"] > 1 else []),
        *(["the share of the update"] if _chosen(facts) else []),
    ]
    start = "There is no test split. These queries were held out of training, but"
    if not chosen:
        return [f"{start} training was monitored on them."]
    verb = "was" if len(chosen) == 1 else "were"
    return [f"{start} {' and '.join(chosen)} {verb} chosen on them: the figures may be too good."]


def _caveats(split: str, block: Mapping[str, Any], undefined: Sequence[str]) -> list[str]:
    caveats = []
    main_metric = next((name for name in (DECIDES, "pair_accuracy", "roc_auc") if name not in undefined), None)
    if main_metric:
        tuned = block["tuned"][main_metric]
        for scorer, who in (("bm25", "BM25, which needs no training,"), ("random", "Random order")):
            score = block[scorer][main_metric]
            if score > tuned:
                caveats.append(f"{who} scores higher: {METRIC_TITLES[main_metric]} {score:.4f} against {tuned:.4f}.")
    if undefined:
        titles = ", ".join(METRIC_TITLES[name] for name in undefined)
        caveats.append(f"Not defined here, because the labels do not differ: {titles}.")
    return caveats
