"""Gather what the report says from what training and evaluation have left."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lorry.data.pairs import Pairs
from lorry.evaluation.catalogue import Catalogue
from lorry.evaluation.evidence import Evidence
from lorry.evaluation.first_place import first_place
from lorry.evaluation.held_out import ModelScores
from lorry.evaluation.intervals import Change, compare
from lorry.evaluation.metrics import evaluate, rankable_queries, undefined
from lorry.evaluation.outcomes import outcomes
from lorry.evaluation.scoring import SplitScores, baselines, official_scorer_gain
from lorry.evaluation.search import bm25_search, compare_searches
from lorry.evaluation.slices import slices
from lorry.evaluation.threshold import fit_calibration, measure_calibration
from lorry.options import as_dict
from lorry.report.changes import query_changes
from lorry.report.facts import ReportFacts
from lorry.report.provenance import environment
from lorry.report.similarities import spread_by_label
from lorry.report.verdict import verdict_split
from lorry.signals import heard
from lorry.training.loop import Progress
from lorry.training.memory import peak_memory
from lorry.training.progress import TrainingLog
from lorry.training.setup import TrainingSetup


def gather_facts(
    setup: TrainingSetup,
    progress: Progress,
    training_log: TrainingLog,
    before: ModelScores,
    after: ModelScores,
    command: str,
    interpolation: float = 1.0,
    catalogue: Catalogue | None = None,
    stop: threading.Event | None = None,
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
        catalogue: What both have searched, if anything.
        stop: Give up when this is set.

    Raises:
        StopRequestedError: `stop` was set.
    """
    splits, seed = {name: setup.splits[name] for name in before.splits}, setup.config.seed
    base, tuned = before.splits, after.splits
    differences = {
        name: compare(
            pairs.query,
            pairs.gain,
            pairs.relevant,
            base[name].scores,
            tuned[name].scores,
            seed=seed,
            official_gain=official_scorer_gain(pairs),
        )
        for name, pairs in heard(splits.items(), stop)
    }
    metrics: dict[str, Any] = {
        "splits": {
            name: _split_block(pairs, base[name], tuned[name], differences[name], seed, stop)
            | _threshold_block(splits, base, tuned, name)
            for name, pairs in heard(splits.items(), stop)
        },
        "training": _training_block(setup, progress),
    }
    if setup.probe and before.probe is not None and after.probe is not None:
        metrics["probe"] = _probe_block(setup.probe, before.probe, after.probe, seed)
    if catalogue:
        for name, block in _search_blocks(catalogue, splits, before.evidence, after.evidence, seed, stop).items():
            metrics["splits"][name] |= block
    shown = verdict_split(metrics)
    return ReportFacts(
        metrics=metrics,
        config=as_dict(setup.config),
        command=command,
        environment=environment(setup.encoder.device, setup.encoder.precision),
        log=training_log.lines,
        differences=differences,
        undefined={name: undefined(pairs.query, pairs.gain, pairs.relevant) for name, pairs in splits.items()},
        similarities={
            name: spread_by_label(pairs.label_names, pairs.label, base[name].scores, tuned[name].scores)
            for name, pairs in splits.items()
        },
        health={name: pairs.health for name, pairs in setup.splits.items()},
        changes=query_changes(splits[shown], base[shown].scores, tuned[shown].scores),
        pooling=setup.base.pooling,
        interpolation=interpolation,
        used={name: len(pairs) for name, pairs in setup.splits.items()},
        standardized=setup.encoder.standardizer is not None,
    )


def _split_block(
    pairs: Pairs,
    before: SplitScores,
    after: SplitScores,
    differences: Mapping[str, Change],
    seed: int,
    stop: threading.Event | None,
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
        "best_first": {
            scorer: first_place(pairs.query, pairs.gain, found.scores)
            for scorer, found in (("base", before), ("tuned", after))
        },
        "outcomes": outcomes(pairs.query, pairs.gain, pairs.relevant, before.scores, after.scores),
        "slices": slices(pairs, before.scores, after.scores, seed=seed, stop=stop),
    }


def _probe_block(probe: Pairs, before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, Any]:
    """Return how well the models keep to the order of the probe's scores."""
    labels = probe.query, probe.gain, probe.relevant
    changes = compare(*labels, before, after, seed=seed)
    return {
        "pairs": len(probe),
        "base": {"spearman": evaluate(*labels, before)["spearman"]},
        "tuned": {"spearman": evaluate(*labels, after)["spearman"]},
        "change": {name: asdict(change) for name, change in changes.items() if name == "spearman"},
    }


def _threshold_block(
    splits: Mapping[str, Pairs], before: Mapping[str, SplitScores], after: Mapping[str, SplitScores], name: str
) -> dict[str, Any]:
    """Return the threshold that suits the validation pairs, measured on a split; nothing where they define none."""
    found = {}
    for scorer, scores in (("base", before), ("tuned", after)):
        if fitted := fit_calibration(splits["validation"].relevant, scores["validation"].scores):
            found[scorer] = measure_calibration(fitted, splits[name].relevant, scores[name].scores)
    return {"threshold": {"fitted_on": "validation", **found}} if found else {}


def _search_blocks(
    catalogue: Catalogue,
    splits: Mapping[str, Pairs],
    before: Evidence,
    after: Evidence,
    seed: int,
    stop: threading.Event | None,
) -> dict[str, dict[str, Any]]:
    """Return by split what was found among all products, and what standardised and smaller vectors would give."""
    began = time.perf_counter()
    bm25 = bm25_search(catalogue, splits, stop)
    blocks: dict[str, dict[str, Any]] = {}
    for name, found in bm25.items():
        models = {"base": before.found[name], "tuned": after.found[name]}
        said, alone, hybrid, change = compare_searches(catalogue, name, found, models, seed)
        fused = {f"hybrid_{model}": values for model, values in hybrid.items()}
        blocks[name] = {"search": {**said, **alone, **fused, "change": change["tuned"]}}
    seconds = before.seconds + after.seconds + time.perf_counter() - began
    for block in blocks.values():
        block["search"]["seconds"] = round(seconds, 3)
    for name in before.standardized:
        kinds = {
            kind: {"base": values, "tuned": after.standardized[name][kind]}
            for kind, values in before.standardized[name].items()
        }
        blocks.setdefault(name, {})["standardize"] = kinds
    for name, rows in after.economics.items():
        blocks[name]["economics"] = rows
    return blocks


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
