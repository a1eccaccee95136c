"""Gather what the report says from what training and evaluation have left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorry.config import as_dict
from lorry.data.pairs import Pairs
from lorry.evaluation.intervals import Change, compare
from lorry.evaluation.metrics import rankable_queries, undefined
from lorry.evaluation.scoring import SplitScores, baselines
from lorry.report.changes import query_changes
from lorry.report.facts import ReportFacts, ScoresByLabel
from lorry.report.provenance import environment
from lorry.report.verdict import verdict_split
from lorry.training.loop import Progress
from lorry.training.memory import peak_memory
from lorry.training.progress import TrainingLog
from lorry.training.setup import TrainingSetup


def gather_facts(
    setup: TrainingSetup,
    progress: Progress,
    training_log: TrainingLog,
    before: Mapping[str, SplitScores],
    after: Mapping[str, SplitScores],
    command: str,
    interpolation: float = 1.0,
) -> ReportFacts:
    """Return everything that the report and the model card say; its `metrics` are the content of `metrics.json`.

    Args:
        setup: What the run stood on.
        progress: What training did.
        training_log: The logged steps.
        before: What the base model gives the pairs of each split.
        after: What the tuned model gives them.
        command: Command line that repeats the run.
        interpolation: Share of the trained update that the tuned model has.
    """
    splits, seed = {name: setup.splits[name] for name in before}, setup.config.seed
    differences = {
        name: compare(pairs.query, pairs.gain, pairs.relevant, before[name].scores, after[name].scores, seed=seed)
        for name, pairs in splits.items()
    }
    metrics = {
        "splits": {
            name: _split_block(pairs, before[name], after[name], differences[name], seed)
            for name, pairs in splits.items()
        },
        "training": _training_block(setup, progress),
    }
    shown = verdict_split(metrics)
    return ReportFacts(
        metrics=metrics,
        config=as_dict(setup.config),
        command=command,
        environment=environment(setup.encoder.device, setup.encoder.precision),
        log=training_log.lines,
        differences=differences,
        undefined={name: undefined(pairs.query, pairs.gain, pairs.relevant) for name, pairs in splits.items()},
        scores={
            name: ScoresByLabel(pairs.label_names, pairs.label, before[name].scores, after[name].scores)
            for name, pairs in splits.items()
        },
        health={name: pairs.health for name, pairs in setup.splits.items()},
        changes=query_changes(splits[shown], before[shown].scores, after[shown].scores),
        pooling=setup.base.pooling,
        interpolation=interpolation,
    )


def _split_block(
    pairs: Pairs, before: SplitScores, after: SplitScores, differences: Mapping[str, Change], seed: int
) -> dict[str, Any]:
    rankable = rankable_queries(pairs.query, pairs.gain)
    return {
        "pairs": len(pairs),
        "queries": len(pairs.queries),
        "queries_rankable": rankable,
        **baselines(pairs, seed),
        "base": before.metrics,
        "tuned": after.metrics,
        "change": {name: asdict(difference) for name, difference in differences.items()},
    }


def _training_block(setup: TrainingSetup, progress: Progress) -> dict[str, Any]:
    seconds = max(progress.seconds, 1e-9)
    return {
        "pairs": progress.pairs,
        "tokens": progress.tokens,
        "seconds": round(seconds, 3),
        "pairs_per_second": round(progress.pairs / seconds, 2),
        "tokens_per_second": round(progress.tokens / seconds, 1),
        "peak_memory_bytes": peak_memory(setup.encoder.device),
        "steps": progress.step,
        "weights_of_step": progress.weights_of_step,
    }
