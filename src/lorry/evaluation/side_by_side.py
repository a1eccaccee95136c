"""Several models on the same judged pairs: what each of them gives, and how the later ones differ from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.errors import UserError
from lorry.evaluation.catalogue import Catalogue
from lorry.evaluation.evidence import Evidence, Sides, gather_evidence, product_embeddings
from lorry.evaluation.gate import DEFAULT_SPLITS
from lorry.evaluation.intervals import compare
from lorry.evaluation.outcomes import outcomes
from lorry.evaluation.scoring import cosines, measure, official_scorer_gain
from lorry.evaluation.search import bm25_search, compare_searches
from lorry.evaluation.threshold import fit_calibration, measure_calibration

Block = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What one model gives, by split.

    Attributes:
        scores: [N] cosine of each pair.
        metrics: What follows from them.
        evidence: What it finds in the catalogue, if there is one.
    """

    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]
    evidence: Evidence = field(default_factory=Evidence)


def judge(
    name: str,
    sides: Mapping[str, Sides],
    channel: Mapping[str, Pairs],
    catalogue: Catalogue | None,
    config: TrainConfig,
) -> Judged:
    """Return what a model gives the pairs, wherever its embeddings come from.

    Args:
        name: What to call the model.
        sides: By split, the embeddings of queries [Q, D] and of product texts [T, D], of length 1.
        channel: The pairs of each split.
        catalogue: Made of `channel`; None: there is no search.
        config: See `gather_evidence`.

    Raises:
        UserError: A similarity is not a finite number.
    """
    scores = {split: cosines(pairs, *sides[split]) for split, pairs in channel.items()}
    if not all(np.isfinite(found).all() for found in scores.values()):
        raise UserError(f"the similarities of {name} are not finite numbers", "Take another precision, or model.")
    judged = Judged(scores, {split: measure(pairs, scores[split]) for split, pairs in channel.items()})
    if not catalogue:
        return judged
    product_CD = product_embeddings(catalogue, {split: both[1] for split, both in sides.items()})
    about = next(split for split in DEFAULT_SPLITS if split in channel)
    return Judged(
        scores, judged.metrics, gather_evidence(catalogue, channel, sides, product_CD, config, economics_of=about)
    )


def differences(models: Mapping[str, Judged], channel: Mapping[str, Pairs], seed: int) -> dict[str, Block]:
    """Return by split the change of every metric from the first model to each other one, and its wins and losses."""
    first, *others = models
    blocks: dict[str, Block] = {}
    for split, pairs in channel.items():
        labels = pairs.query, pairs.gain, pairs.relevant
        both = {name: (models[first].scores[split], models[name].scores[split]) for name in others}
        official = official_scorer_gain(pairs)
        change = {name: compare(*labels, *scores, seed=seed, official_gain=official) for name, scores in both.items()}
        blocks[split] = {
            "change": {
                name: {metric: asdict(found) for metric, found in changes.items()} for name, changes in change.items()
            },
            "outcomes": {name: outcomes(*labels, *scores) for name, scores in both.items()},
        }
    return blocks


def thresholds(models: Mapping[str, Judged], channel: Mapping[str, Pairs]) -> dict[str, Block]:
    """Return by split each model's threshold, fitted on validation pairs if there are any, else on these pairs."""
    blocks: dict[str, Block] = {}
    for split, pairs in channel.items():
        fitted_on = "validation" if "validation" in channel else split
        found = {}
        for name, judged in models.items():
            if fitted := fit_calibration(channel[fitted_on].relevant, judged.scores[fitted_on]):
                found[name] = measure_calibration(fitted, pairs.relevant, judged.scores[split])
        blocks[split] = {"threshold": {"fitted_on": fitted_on, "models": found}} if found else {}
    return blocks


def searches(
    models: Mapping[str, Judged], channel: Mapping[str, Pairs], catalogue: Catalogue, seed: int
) -> dict[str, Block]:
    """Return by split what each model finds, alone and fused with BM25, and what other vectors of it would give."""
    blocks: dict[str, Block] = {split: {} for split in channel}
    for split, bm25 in bm25_search(catalogue, channel).items():
        found = {name: judged.evidence.found[split] for name, judged in models.items()}
        said, alone, hybrid, change = compare_searches(catalogue, split, bm25, found, seed)
        blocks[split]["search"] = {**said, "models": alone, "hybrid": hybrid, "change": change}
    for name, judged in models.items():
        for split, kinds in judged.evidence.standardized.items():
            for kind, values in kinds.items():
                blocks[split].setdefault("standardize", {}).setdefault(kind, {})[name] = values
        for split, rows in judged.evidence.economics.items():
            blocks[split].setdefault("economics", {})[name] = rows
    return blocks
