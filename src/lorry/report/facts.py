"""The facts of a run that the report and the model card are made from, and the names they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorry.data.health import Health
from lorry.evaluation.intervals import Change
from lorry.names import OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.report.changes import QueryChange
from lorry.report.similarities import LabelSpread

METRIC_TITLES = {
    "ndcg@10": "nDCG@10",
    "ndcg@10_rankable": "nDCG@10, rankable queries",
    "mrr@10": "MRR@10",
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
    "spearman": "Spearman",
    "pair_accuracy": "Pair accuracy",
    OFFICIAL_NDCG: "nDCG@10, official ESCI scorer",
    OFFICIAL_WHOLE_NDCG: "nDCG, official ESCI scorer",
}
"""What a metric is called where people read it, in the order of the tables."""

SCORER_TITLES = {"random": "random", "bm25": "BM25", "base": "base", "tuned": "tuned"}
"""What a scorer is called where people read it, in the order of the tables."""

SEARCHER_TITLES = {
    "bm25": "BM25",
    "base": "base",
    "tuned": "tuned",
    "hybrid_base": "BM25 + base",
    "hybrid_tuned": "BM25 + tuned",
}
"""What searches the whole catalogue, as people read it, in the order of the tables."""


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report and the model card say.

    Args:
        metrics: The content of `metrics.json`.
        config: The resolved hyperparameters, in the order to show them.
        command: Command line that repeats the run.
        environment: Device, precision and versions.
        log: The lines of `training.jsonl`: of training (`step`, `loss`, ...) and evaluation (`step`, `eval_loss`,
            metrics).
        differences: Tuned - base with its interval, by split and metric (`intervals.compare`).
        undefined: Metrics that the labels of a split do not define (`metrics.undefined`).
        similarities: Spread of the similarities of each label, for each split.
        health: Rows read and rows left out, for each channel.
        changes: Queries whose ranking changed, in the order to show them.
        pooling: How the model pools token vectors: mean, cls or lasttoken.
        interpolation: Share of the trained update that the merged model has; 0 for the weights of the base model.
        used: Pairs of each split that were used as that: less than were kept, where some were held out or excluded.
        fingerprints: sha256 of the pairs of each split, and of the base model.
        standardized: Whether the merged model standardises its embeddings.
    """

    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    command: str
    environment: Mapping[str, str]
    log: Sequence[Mapping[str, Any]] = ()
    differences: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)
    undefined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    similarities: Mapping[str, Sequence[LabelSpread]] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    changes: Sequence[QueryChange] = ()
    pooling: str = "mean"
    interpolation: float = 1.0
    used: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    standardized: bool = False
