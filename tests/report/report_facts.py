"""Facts as a run would hand them to the report."""

import dataclasses

import numpy as np

from lorry.config import TrainConfig
from lorry.data.health import Health, Overlap
from lorry.evaluation.intervals import Change
from lorry.names import METRICS
from lorry.options import as_dict
from lorry.report.changes import QueryChange
from lorry.report.facts import ReportFacts
from lorry.report.similarities import spread_by_label

NO_CHARTS = {"log": [], "similarities": {}}  # drawing takes most of the time


def block(**tuned):
    low = dict.fromkeys(METRICS, 0.5)
    base = dict.fromkeys(METRICS, 0.7)
    counts = {"pairs": 1200, "queries": 90, "queries_rankable": 80}
    return {**counts, "random": low, "bm25": {**low}, "base": base, "tuned": {**base, **tuned}}


def found_change(change):
    return {"change": change, "low": change - 0.01, "high": change + 0.01, "p": 0.01}


def evidence(text="2 words"):
    """What a split's block of metrics holds beside the judged pairs; `text` stands where names are the user's."""
    found = {"recall@10": 0.1, "recall@100": 0.3, "mrr@10": 0.2, "ndcg@10": 0.15}
    better = {name: value + 0.1 for name, value in found.items()}
    threshold = {"threshold": 0.41, "precision": 0.8, "recall": 0.9, "f1": 0.85, "calibration_error": 0.03}
    bins = [
        {"low": at, "high": at + 0.1, "pairs": 40, "predicted": at + 0.05, "observed": at + 0.02}
        for at in (0, 0.4, 0.8)
    ]
    part = {"queries": 50, "queries_rankable": 45, "pairs": 600, "base": 0.7, "tuned": 0.75}
    return {
        "best_first": {"base": 0.5, "tuned": 0.61},
        "outcomes": {"ndcg@10_rankable": {"wins": 41, "ties": 30, "losses": 9}},
        "slices": {
            "query_length": [
                {"name": text, **part, "change": found_change(0.05)},
                {"name": "1 word", **part, "base": None, "tuned": None, "change": None},
            ],
            "label": [
                {"name": text, "relevant": False, "pairs": 20, "base": 0.3, "tuned": 0.4, "change": found_change(0.1)}
            ],
        },
        "search": {
            "products": 500, "products_all": 900, "queries": 90, "queries_all": 90, "seconds": 1.0,
            "bm25": found, "base": found, "tuned": better, "hybrid_base": found, "hybrid_tuned": better,
            "change": {name: found_change(0.1) for name in found},
        },
        "threshold": {
            "fitted_on": "validation", "base": {**threshold, "reliability": []},
            "tuned": {**threshold, "reliability": bins},
        },
        "economics": [
            {"form": "float32", "dims": 384, "bytes_per_million": 1_536_000_000, "ndcg@10_rankable": 0.75},
            {"form": "binary", "dims": 384, "bytes_per_million": 48_000_000, "ndcg@10_rankable": 0.7},
        ],
        "standardize": {"center": {scorer: dict.fromkeys(METRICS, 0.6) for scorer in ("base", "tuned")}},
    }  # fmt: skip


def with_evidence(text="2 words", **changes):
    """The same facts, with evidence beyond the judged pairs, time and cost."""
    facts = make_facts()
    splits = {**facts.metrics["splits"], "test": {**facts.metrics["splits"]["test"], **evidence(text)}}
    more = {
        "splits": splits,
        "time": {
            "seconds": 4000.0,
            "phases": {"starting": 5.0, "reading": 20.0, "training": 3725.0, "evaluation": 240.0, "merging": 10.0},
            "expected_training_seconds": 3600.0,
        },
        "cost": {
            "instance": "ml.g4dn.xlarge", "instances": 1, "dollars_per_hour": 0.7364, "prices_from": "July 2026",
            "dollars": 0.8182,
        },
        "probe": {"pairs": 1500, "base": {"spearman": 0.867}, "tuned": {"spearman": 0.864},
                  "change": {"spearman": found_change(-0.003)}},
    }  # fmt: skip
    sampled = [{"step": step, "sample_ndcg@10_rankable": 0.7 + step / 1e5} for step in range(0, 2001, 200)]
    return dataclasses.replace(
        facts,
        metrics={**facts.metrics, **more},
        log=[*facts.log, *sampled],
        used={"train": 90, "test": 1200},
        **changes,
    )


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
        + [{"step": step, "eval_loss": 1.0, "ndcg@10_rankable": 0.7 + step / 1e5} for step in (0, 1000, 2000)],
        differences={
            "test": {
                "ndcg@10_rankable": Change(0.05, 0.04, 0.06, 0.001),
                "pair_accuracy": Change(0.0, -0.01, 0.02, 0.8),
            }
        },
        similarities={"test": spread_by_label(("E", "I"), label, rng.random(400), rng.random(400))},
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
