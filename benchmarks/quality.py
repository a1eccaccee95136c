"""What each loss gives on Home Depot after one epoch: `make quality` makes the table in the docs.

    python benchmarks/quality.py [--recipe NAME ...] [--output benchmarks/results/quality.json]
    python benchmarks/quality.py --show benchmarks/results/quality.json      the table of an earlier run

The pairs come from LORRY_DATA (default ../shared/data): `homedepot/{train,validation}`, and `stsb/sts-dev.csv` to
measure what the model forgets (Spearman correlation of general sentence similarity). The test split is not read. The
results file is rewritten after every recipe.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import records
from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
from lorry.data.sampler import BatchSampler
from lorry.evaluation import scoring
from lorry.hardware import make_accelerator
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import load_tokenizer, tokenize
from lorry.training.loop import fit
from lorry.training.progress import TrainingLog
from lorry.training.update import Trainer

DATA = Path(os.environ.get("LORRY_DATA", "../shared/data"))
RECIPES: dict[str, dict[str, Any]] = {
    "cosine, the blog post's settings": {"loss": "cosine", "lr": 1e-6, "batch_size": 120},
    "cosine": {"loss": "cosine"},
    "infonce": {"loss": "infonce"},
    "cosent": {"loss": "cosent"},
    "infonce+cosent": {"loss": "infonce+cosent"},
}
NAMES = {"random": "random order", "bm25": "BM25", "base": "base model"}
COLUMNS = {
    "nDCG@10": "ndcg@10",
    "MRR@10": "mrr@10",
    "ROC-AUC": "roc_auc",
    "average precision": "average_precision",
    "Spearman": "spearman",
    "pair accuracy": "pair_accuracy",
    "STS-B": "sts",
}


def main() -> None:
    """Train every recipe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", action="append", help="only these; name or name:option=value,option=value")
    parser.add_argument("--output", default="benchmarks/results/quality.json", help="results file")
    parser.add_argument("--show", help="print the table of an earlier run's results file, and do nothing else")
    arguments = parser.parse_args()
    if arguments.show:
        print(table(records.load(arguments.show)))
        return
    logging.getLogger("lorry").setLevel(logging.WARNING)
    record: dict[str, Any] = {}
    try:
        for record in measure(arguments.recipe or list(RECIPES)):
            records.save(record, Path(arguments.output))
    finally:  # also after Ctrl-C: what there is
        if record:
            print(table(record))


def measure(recipes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train each recipe; yield the record of all results after the base model and after every recipe."""
    home = DATA / "homedepot"
    common = TrainConfig(
        pretrained_model="bundled", train=str(home / "train"), validation=str(home / "validation"), epochs=1
    )
    splits = read_splits(common)
    base = find_pretrained("bundled")
    texts = {name: tokenize(pairs, base) for name, pairs in splits.items()}
    sts = _sts(base)
    accelerator, precision = make_accelerator("auto")
    results: dict[str, dict[str, float]] = scoring.baselines(splits["validation"], common.seed)
    record = {**records.new_record(precision), "results": results}
    for name in ["base", *recipes]:
        config = common if name == "base" else dataclasses.replace(common, **_options(name))
        encoder = Encoder(base, precision, accelerator.device)
        if name != "base":
            encoder.add_lora(
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets="",
                seed=config.seed,
            )
            sampler = BatchSampler(splits["train"].query, config.batch_size, config.epochs, config.seed)
            trainer = Trainer(encoder, texts["train"], config, accelerator)
            fit(trainer, splits["train"], sampler, TrainingLog(sampler.steps), validate=lambda: (0.0, {}))
        scored = scoring.score(encoder, texts["validation"], splits["validation"], config)
        results[name] = {**scored.metrics, "sts": sts(encoder)}
        yield record


def _options(name: str) -> dict[str, Any]:
    recipe, _, changes = name.partition(":")
    kinds = {item.name: type(item.default) for item in dataclasses.fields(TrainConfig)}
    options = dict(RECIPES[recipe])
    for change in filter(None, changes.split(",")):
        key, value = change.split("=")
        options[key] = kinds[key](value)
    return options


def _sts(base: Any) -> Any:
    """Return a function that gives a model's Spearman correlation on STS-B (dev)."""
    with (DATA / "stsb" / "sts-dev.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    grades = np.array([float(row[4]) for row in rows])
    backend = load_tokenizer(base).backend_tokenizer
    backend.enable_truncation(base.max_length)
    backend.no_padding()
    ids = [np.array(item.ids) for item in backend.encode_batch([row[column] for column in (5, 6) for row in rows])]

    def correlation(encoder: Encoder) -> float:
        lengths = np.array([len(item) for item in ids])
        with torch.inference_mode():
            both = encoder.embed(TokenSequences(np.concatenate(ids), lengths))
        left, right = both.split(len(rows))
        return float(spearmanr((left * right).sum(1).numpy(), grades).statistic)

    return correlation


def table(record: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, with date and machine above."""
    rows = [
        [NAMES.get(name, name), *(f"{block[key]:.4f}" if key in block else "" for key in COLUMNS.values())]
        for name, block in record["results"].items()
    ]
    return f"{records.describe(record)}\n\n{records.markdown(['', *COLUMNS], rows)}"


if __name__ == "__main__":
    main()
