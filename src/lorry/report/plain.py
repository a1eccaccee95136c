"""What has changed for the shop's customers, for readers who know no metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorry.evaluation.gate import missed
from lorry.report.facts import ReportFacts

_ANSWERS = {
    "better": ("Customers will see better results.", "Chance alone does not explain the difference."),
    "worse": (
        "Customers would see worse results: keep the model that you have.",
        "Chance alone does not explain the difference.",
    ),
    "unclear": (
        "Whether customers would see better results cannot be told.",
        "The difference is too small, or the queries are too few, to tell it from chance.",
    ),
}


def plain_words(facts: ReportFacts, kind: str, split: str, *, comparable: bool) -> tuple[str, str]:
    """Return the verdict in everyday words: the answer in a sentence or two, and what it rests on.

    Args:
        facts: Those of the run.
        kind: The verdict: better, worse or unclear.
        split: What it is about.
        comparable: Whether the labels of the split can tell the models apart.
    """
    refused = missed(facts.config["require"], facts.metrics)
    answer, evidence = _ANSWERS[kind]
    block = facts.metrics["splits"][split]
    rests_on = " ".join([_counted(facts, block, split), *_first_place(block, kind), evidence])
    if not comparable:
        answer = "Whether customers would see better results cannot be told."
        rests_on = "Hardly any of the queries has products of different grades, so that every order is as good."
    if facts.interpolation == 0 and not facts.standardized:
        answer, rests_on = "Customers will see no difference.", "The model is the base model, unchanged."
    if refused:
        but = " It is better than the base model, but not by enough." if kind == "better" else ""
        answer = f"The tuned model was not put in place: it is not as good as was required.{but}"
    return answer, rests_on


def _counted(facts: ReportFacts, block: Mapping[str, Any], split: str) -> str:
    """Say on how many queries this was measured, and for how many the order of the products is better or worse."""
    queries = f"{block['queries_rankable']:,} {'query' if block['queries_rankable'] == 1 else 'queries'}"
    overlap = facts.health[split].overlap if split in facts.health else None
    shared = overlap.shared_queries if overlap else 0
    where = f"{queries}, some of them queries of the training" if shared else f"{queries} that nobody trained on"
    if "outcomes" not in block:
        return f"It was measured on {where}."
    found = block["outcomes"]["ndcg@10_rankable"]
    return (
        f"Of {where}, {found['wins']:,} have their products in a better order, {found['losses']:,} in a worse one, "
        f"and {found['ties']:,} are as before."
    )


def _first_place(block: Mapping[str, Any], kind: str) -> list[str]:
    if "best_first" not in block:
        return []
    before, after = (round(100 * block["best_first"][scorer]) for scorer in ("base", "tuned"))
    if before == after:
        return [f"The best product stands first in {after} of 100 searches, as before."]
    against = (kind == "better" and after < before) or (kind == "worse" and after > before)
    but = "Even so, the" if against else "The"
    return [f"{but} best product stands first in {after} of 100 searches; it was {before}."]
