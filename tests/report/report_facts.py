"""Facts as a run would hand them to the report."""

import dataclasses

import numpy as np

from lorry.config import TrainConfig, as_dict
from lorry.data.health import Health, Overlap
from lorry.evaluation.intervals import Change
from lorry.names import METRICS
from lorry.report.changes import QueryChange
from lorry.report.facts import ReportFacts, ScoresByLabel

NO_CHARTS = {"log": [], "scores": {}}  # drawing takes most of the time


def block(**tuned):
    low = dict.fromkeys(METRICS, 0.5)
    base = dict.fromkeys(METRICS, 0.7)
    counts = {"pairs": 1200, "queries": 90, "queries_rankable": 80}
    return {**counts, "random": low, "bm25": {**low}, "base": base, "tuned": {**base, **tuned}}


def overlapping():
    """The same, but for a test split that shares queries and pairs with the training pairs."""
    health = make_facts().health
    test = dataclasses.replace(health["test"], overlap=Overlap(12, 90, 1034, 1200))
    return make_facts(health={**health, "test": test}, **NO_CHARTS)


def make_facts(**changes):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    facts = ReportFacts(
        metrics={
            "splits": {"validation": block(), "test": block(**{"ndcg@10": 0.75, "ndcg@10_rankable": 0.75})},
            "training": {
                "pairs": 5000,
                "tokens": 123_456,
                "seconds": 3725.0,
                "pairs_per_second": 340.0,
                "tokens_per_second": 9100.0,
                "peak_memory_bytes": 2**31,
                "steps": 40,
            },
        },
        config=as_dict(TrainConfig(train="/home/me/secret/train", lr=0.00123)),
        command="lorry train --train '/home/me/secret/train' --lr 0.00123",
        environment={"device": "CPU", "precision": "bf16", "torch": "2.13.0"},
        log=[{"step": step, "loss": 2 / step, "lr": 1e-3} for step in range(10, 2000, 10)]
        + [{"step": step, "eval_loss": 1.0, "ndcg@10": 0.7 + step / 1e5} for step in (0, 1000, 2000)],
        differences={
            "test": {
                "ndcg@10_rankable": Change(0.05, 0.04, 0.06, 0.001),
                "pair_accuracy": Change(0.0, -0.01, 0.02, 0.8),
            }
        },
        scores={"test": ScoresByLabel(("E", "I"), label, rng.random(400), rng.random(400))},
        health={
            "train": Health(
                110,
                100,
                {"missing text": 10},
                {"missing text": ["a.csv row 3"]},
                ["a.csv"],
                "0/1 pairs",
                unused={"notes.txt": "of another format, .txt"},
            ),
            "test": Health(1200, 1200, {}, {}, ["a.csv"], "0/1 pairs", overlap=Overlap(0, 90, 0, 1200)),
        },
        changes=[
            QueryChange("saw", 0.5, 0.9, "hammer", "hand saw", "I", "E"),
            QueryChange("nail", 0.9, 0.4, "nails", "nail polish", "E", "I"),
        ],
    )
    return dataclasses.replace(facts, **changes)
