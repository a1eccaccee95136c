"""What each loss gives on Home Depot, after one epoch: `make quality` writes the table that the README shows.

    python benchmarks/quality.py [--recipe NAME ...] [--output benchmarks/results/quality.json]

The pairs come from LORRY_DATA (default ../shared/data): `homedepot/{train,validation}`, and `stsb/sts-dev.csv` as a
probe of what the model forgets (Spearman of general sentence similarity). The test split is not looked at here.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

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
    "cosine, the post's": {"loss": "cosine", "lr": 1e-6, "batch_size": 120},
    "cosine": {"loss": "cosine"},
    "infonce": {"loss": "infonce"},
    "cosent": {"loss": "cosent"},
    "infonce+cosent": {"loss": "infonce+cosent"},
}
SHOWN = ("ndcg@10", "mrr@10", "roc_auc", "average_precision", "spearman", "pair_accuracy")


def main() -> None:
    """Train every recipe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", action="append", help="only these; name or name:option=value,option=value")
    parser.add_argument("--output", default="benchmarks/results/quality.json")
    arguments = parser.parse_args()
    logging.getLogger("lorry").setLevel(logging.WARNING)
    home = DATA / "homedepot"
    common = TrainConfig(
        pretrained_model="bundled", train=str(home / "train"), validation=str(home / "validation"), epochs=1
    )
    splits = read_splits(common)
    base = find_pretrained("bundled")
    texts = {name: tokenize(pairs, base) for name, pairs in splits.items()}
    probe = _sts(base)
    accelerator, precision = make_accelerator("auto")

    results: dict[str, dict[str, float]] = {}
    results.update(scoring.baselines(splits["validation"], common.seed))
    for name in ["base", *(arguments.recipe or RECIPES)]:
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
        results[name] = {**scored.metrics, "sts": probe(encoder)}
        print(_row(name, results[name]), flush=True)
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print("\n" + table(results))


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


def _row(name: str, block: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{block[key]:.4f}" if key in block else "" for key in (*SHOWN, "sts")) + " |"


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the results as a Markdown table."""
    head = "| | " + " | ".join((*SHOWN, "STS-B")) + " |\n| --- |" + " ---: |" * (len(SHOWN) + 1)
    return "\n".join([head, *(_row(name, block) for name, block in results.items())])


if __name__ == "__main__":
    main()
