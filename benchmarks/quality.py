"""What each recipe does to ranking, on Home Depot: the tables that the defaults were chosen by.

    python benchmarks/quality.py recipes [--row NAME ...]      losses, adapters, learning rates: on validation
    python benchmarks/quality.py peers [--row NAME ...]        beside sentence-transformers + PEFT: on the test split
    python benchmarks/quality.py small [--row NAME ...]        500, 1,000 and 3,000 pairs: on the test split
    python benchmarks/quality.py show                          print the tables of the results file, do nothing else

`make quality` makes all. The pairs come from LORRY_DATA (default ../shared/data): `homedepot/{train,validation,test}`
and `stsb/sts-dev.csv`. Rows are added to the results file, benchmarks/results/quality.json, as they are made; a row of
the same name is replaced. Each row says on which machine it was made, and in which precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quality_peers
import records
from homedepot import METRICS, Embed, HomeDepot, bundled, general_similarity, quality
from lorry.config import TrainConfig
from lorry.data.pairs import Pairs, split_by_query
from lorry.data.sampler import BatchSampler
from lorry.evaluation.scoring import score
from lorry.hardware import make_accelerator
from lorry.loss_sum import TEACHER_LOSSES, loss_terms
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.tokens import load_tokenizer, tokenize
from lorry.training.loop import fit
from lorry.training.progress import TrainingLog
from lorry.training.selection import choose_share
from lorry.training.setup import trainable_encoder
from lorry.training.update import Trainer

RESULTS = Path(__file__).with_name("results") / "quality.json"
DEFAULT = TrainConfig()
SHARE = 0.5  # of the update, beside the whole of it
SHORT = 64  # numbers of an embedding that the rows about short embeddings are scored with, too
FIRST = "infonce+5*ranknet+0.2*cosent"  # the loss that adapters and learning rate were chosen with
# Every row is the default but for these options.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    **{
        loss: {"loss": loss}
        for loss in (
            *("infonce", "cosent", "ranknet", "lambda", "listnet", "bce"),
            *("infonce+cosent", "infonce+3*ranknet", "infonce+5*ranknet"),
            *(FIRST, "infonce+10*ranknet+0.2*cosent", "infonce+5*lambda+0.2*cosent"),
            *("infonce+5*listnet+0.2*cosent", "infonce+5*ranknet+0.5*bce", "0.3*infonce+5*ranknet+0.2*cosent"),
            *("2*ranknet+cosent", "5*ranknet+cosent", "0.1*infonce+5*ranknet+cosent"),
            *("0.2*infonce+5*ranknet+cosent", "0.3*infonce+5*ranknet+cosent"),
            *("0.3*infonce+2*ranknet+cosent", "0.3*infonce+2*ranknet+4*cosent"),
        )
    },
    **{
        f"{FIRST}, {name}": {"loss": FIRST} | options
        for name, options in {
            "temperature 0.02": {"temperature": 0.02},
            "scale 10": {"scale": 10.0},
            "learning rate 5e-4": {"lr": 5e-4},
            "learning rate 2e-3": {"lr": 2e-3},
            "batch size 240": {"batch_size": 240},
            "rank 32": {"lora_rank": 32, "lora_alpha": 64.0},
            "query, key and value, rank 16": {"lora_targets": "qkv"},
            "query, key and value, rank 8": {"lora_targets": "qkv", "lora_rank": 8},
            "3 epochs": {"epochs": 3},
        }.items()
    },
    "seed 1": {"seed": 1},
    "batch size 64": {"batch_size": 64},
    "learning rate 5e-4": {"lr": 5e-4},
    "3 epochs": {"epochs": 3},
    "all weights, learning rate 5e-5": {"lora_rank": 0, "lr": 5e-5},
    "hard_negatives 2": {"hard_negatives": 2},
    "matryoshka_dims 192,64": {"matryoshka_dims": "192,64"},
    "train_side query": {"train_side": "query"},
    "train_side query, learning rate 3e-4": {"train_side": "query", "lr": 3e-4},
    "train_side query, learning rate 1e-4": {"train_side": "query", "lr": 1e-4},
    "train_side query, infonce, learning rate 3e-4": {"train_side": "query", "loss": "infonce", "lr": 3e-4},
    "the default and 2*kl of a cross-encoder": {"loss": f"{DEFAULT.loss}+2*kl"},
    "kl of a cross-encoder": {"loss": "kl"},
}
ABOUT_SHORT = ("base model", "default", "matryoshka_dims 192,64")
LORRY: dict[str, dict[str, Any]] = {
    "Lorry, 1 epoch": {},
    "Lorry, all weights (lora_rank 0, lr 5e-5)": {"lora_rank": 0, "lr": 5e-5},
}
SMALL = (500, 1_000, 3_000)

Row = dict[str, Any]


class Lab:
    """The pairs, the base model, and what every row needs."""

    def __init__(self) -> None:
        self.data, self.base = HomeDepot.read(), bundled()
        self.accelerator, self.precision = make_accelerator("auto")
        self.tokenizer = load_tokenizer(self.base).backend_tokenizer
        self.tokenizer.enable_truncation(self.base.max_length)
        self.tokenizer.no_padding()

    @cached_property
    def seconds_of_epoch(self) -> float:
        """Seconds that Lorry's default takes for an epoch of all training pairs, here and now."""
        return self.train(DEFAULT, self.data.train, self.data.validation)[1]

    @cached_property
    def taught(self) -> Pairs:
        """The pairs of the categories that are trained on, with scores of a cross-encoder trained on them."""
        train = self.data.known[0]
        return dataclasses.replace(train, teacher=quality_peers.cross_encoder(train, self.precision))

    def encoder(self) -> Encoder:
        """Return the base model."""
        return Encoder(self.base, self.precision, self.accelerator.device)

    def embedder(self, encoder: Encoder) -> Embed:
        """Return the function that embeds texts with `encoder`."""

        def embed(texts: list[str]) -> Tensor:
            ids = [np.array(item.ids) for item in self.tokenizer.encode_batch(texts)]
            with torch.inference_mode():
                return encoder.embed(TokenSequences(np.concatenate(ids), np.array([len(item) for item in ids]))).cpu()

        return embed

    def train(self, config: TrainConfig, train: Pairs, validation: Pairs) -> tuple[Encoder, float]:
        """Train as `lorry train` does, up to the merge; return the encoder and the seconds of training."""
        encoder = trainable_encoder(config, self.base, self.precision, self.accelerator.device)
        texts, held_out = (tokenize(pairs, self.base) for pairs in (train, validation))
        fixed: list[Tensor | None] = [None, None]
        if config.train_side == "query":
            fixed = [embed_all(encoder, split, side="document") for split in (texts, held_out)]

        def validate() -> tuple[float, dict[str, float]]:
            found = score(encoder, held_out, validation, config, documents_TD=fixed[1])
            return found.loss, found.metrics

        sampler = BatchSampler(train.query, config.batch_size, config.epochs, config.seed)
        trainer = Trainer(encoder, texts, config, self.accelerator, documents_TD=fixed[0])
        progress = fit(trainer, train, sampler, TrainingLog(sampler.steps), validate=validate)
        return encoder, progress.seconds


def recipes(lab: Lab, name: str) -> Row:
    """Train a recipe on the known categories; score it on their validation queries and on the other categories."""
    train, validation = lab.data.known
    config = dataclasses.replace(DEFAULT, **RECIPES.get(name, {}))
    if any(loss in TEACHER_LOSSES for loss in loss_terms(config.loss)):
        train = lab.taught
    encoder, seconds = (lab.encoder(), 0.0) if name == "base model" else lab.train(config, train, validation)
    embed, base = lab.embedder(encoder), lab.embedder(lab.encoder())
    documents = base if config.train_side == "query" else None

    def measured(embed: Embed = embed) -> dict[str, Any]:
        splits = {"own": validation, "other": lab.data.held_out}
        found: dict[str, Any] = {key: quality(pairs, embed, documents) for key, pairs in splits.items()}
        return found | {"sts": general_similarity(embed)}

    row = {"seconds": seconds, "pairs": len(train), "whole": measured()}
    if name in ABOUT_SHORT:
        row["short"] = measured(lambda texts: embed(texts)[:, :SHORT])
    if name != "base model":
        tuned = {key: weight.detach().clone() for key, weight in encoder.trainable().items()}
        encoder.interpolate(tuned, SHARE)
        row["half"] = measured()
    return row


def peers(lab: Lab, name: str) -> Row:
    """Train on all categories, with Lorry or sentence-transformers; score on the test queries."""
    test, row = lab.data.test, {"seconds": 0.0, "share": 1.0}
    if name == "base model":
        embed = lab.embedder(lab.encoder())
    elif name in LORRY:
        config = dataclasses.replace(DEFAULT, **LORRY[name])
        encoder, row["seconds"] = lab.train(config, lab.data.train, lab.data.validation)
        if config == DEFAULT:
            lab.seconds_of_epoch = row["seconds"]
        row["share"] = _choose_share(lab, encoder, lab.data.validation)
        embed = lab.embedder(encoder)
    else:
        data = lab.data
        found, row["lr"] = quality_peers.train(
            name, data.train, data.some(quality_peers.TUNED_ON), data.validation, lab.precision, lab.seconds_of_epoch
        )
        embed, row["seconds"] = found.embed, found.seconds
    return row | {"test": quality(test, embed), "sts": general_similarity(embed)}


def small(lab: Lab, name: str) -> Row:
    """Train on few pairs, a tenth of whose queries are held out for validation; score on the test queries."""
    if name == "base model":
        return {"test": quality(lab.data.test, lab.embedder(lab.encoder()))}
    train, validation = split_by_query(
        lab.data.some(int(name.replace(",", "").split()[0])), DEFAULT.validation_fraction
    )
    encoder, seconds = lab.train(DEFAULT, train, validation)
    embed = lab.embedder(encoder)
    row: Row = {"seconds": seconds, "pairs": len(train), "whole": quality(lab.data.test, embed)}
    row["share"] = _choose_share(lab, encoder, validation)
    return row | {"test": quality(lab.data.test, embed)}


def _choose_share(lab: Lab, encoder: Encoder, validation: Pairs) -> float:
    """Set the encoder to the share of the update that `lorry train` would choose, and return it."""
    tuned = {key: weight.detach().clone() for key, weight in encoder.trainable().items()}
    embed = lab.embedder(encoder)

    def measure(share: float) -> dict[str, float]:
        encoder.interpolate(tuned, share)
        return quality(validation, embed)

    share = choose_share(measure(0.0), measure)
    encoder.interpolate(tuned, share)
    return share


TABLES: dict[str, tuple[Callable[[Lab, str], Row], list[str]]] = {
    "recipes": (recipes, ["base model", *RECIPES]),
    "peers": (peers, ["base model", *LORRY, *quality_peers.PEERS]),
    "small": (small, ["base model", *(f"{count:,} pairs" for count in SMALL)]),
}


def main() -> None:
    """Make the rows that are asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES, "all", "show"])
    parser.add_argument("--row", action="append", default=[], help="only these rows; may be repeated")
    parser.add_argument("--output", type=Path, default=RESULTS, help="results file")
    arguments = parser.parse_args()
    logging.getLogger("lorry").setLevel(logging.WARNING)
    chosen = {"all": list(TABLES), "show": []}.get(arguments.table, [arguments.table])
    lab = Lab() if chosen else None
    for table in chosen:
        make, rows = TABLES[table]
        for name in arguments.row or rows:
            assert lab is not None
            row = make(lab, name) | records.new_record(lab.precision)
            record = records.load(arguments.output) if arguments.output.exists() else {}
            made = record.get(table, {}) | {name: row}
            record[table] = {key: made[key] for key in dict.fromkeys([*rows, *made]) if key in made}
            records.save(record, arguments.output)
            print(f"{table}: {name}: {row}", flush=True)
    print(table_texts(records.load(arguments.output)))


def _figures(block: Mapping[str, float]) -> list[str]:
    return [f"{block[key]:.4f}" for key in METRICS]


def recipes_table(rows: Mapping[str, Row]) -> str:
    """Return the table of recipes as Markdown."""
    head = ["", *(f"{title}, {where}" for where in ("own", "other") for title in TITLES), "STS-B"]
    lines = []
    for name, row in rows.items():
        parts = {"whole": name, "half": f"{name}, half-way to the base", "short": f"{name}, first {SHORT} numbers"}
        for key, label in parts.items():
            if key in row:
                block = row[key]
                lines.append([label, *_figures(block["own"]), *_figures(block["other"]), f"{block['sts']:.4f}"])
    return records.markdown(head, lines)


def peers_table(rows: Mapping[str, Row]) -> str:
    """Return the table beside sentence-transformers as Markdown."""
    lines = [
        [name, *_figures(row["test"]), f"{row['sts']:.4f}", f"{row['seconds']:.0f}", f"{row['share']:.0%}"]
        for name, row in rows.items()
    ]
    return records.markdown(["", *TITLES, "STS-B", "seconds", "share of the update"], lines)


def small_table(rows: Mapping[str, Row]) -> str:
    """Return the table of few pairs as Markdown."""
    lines = []
    for name, row in rows.items():
        if "whole" in row:
            lines.append([f"{name}, whole update", *_figures(row["whole"]), "100%"])
        lines.append([name, *_figures(row["test"]), f"{row['share']:.0%}" if "share" in row else ""])
    return records.markdown(["", *TITLES, "share of the update"], lines)


def table_texts(record: Mapping[str, Mapping[str, Row]]) -> str:
    """Return all tables of a results file as Markdown, with date and machine of their rows."""
    texts = {"recipes": recipes_table, "peers": peers_table, "small": small_table}
    parts = []
    for table, rows in record.items():
        made = "; ".join(dict.fromkeys(records.describe(row).rstrip(".") for row in rows.values()))
        parts.append(f"{made}.\n\n{texts[table](rows)}")
    return "\n\n".join(parts)


TITLES = ("nDCG@10", "ROC-AUC", "pair accuracy")


if __name__ == "__main__":
    main()
