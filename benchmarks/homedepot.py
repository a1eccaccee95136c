"""Home Depot's judged pairs for the quality tables: its splits, a probe of transfer, and general similarity.

The probe holds out whole categories of products. A query's category is its last word (fan, faucet, door); an eighth of
these words, chosen by their hash, is held out. The queries of these categories are scored and never trained on; queries
that have such a word elsewhere are left out altogether.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs, read_splits
from lorry.evaluation.metrics import evaluate
from lorry.model.pretrained import PretrainedModel, find_pretrained

DATA = Path(os.environ.get("LORRY_DATA", "../shared/data"))
CATEGORIES = 8  # one in so many is held out
METRICS = ("ndcg@10_rankable", "roc_auc", "pair_accuracy")

Embed = Callable[[list[str]], Tensor]
"""Returns the embeddings [n, D] of texts."""


@dataclass(frozen=True)
class HomeDepot:
    """The pairs of every split, all read once."""

    train: Pairs
    validation: Pairs
    test: Pairs

    @classmethod
    def read(cls) -> HomeDepot:
        """Read the three channels."""
        folders = {name: str(DATA / "homedepot" / name) for name in ("train", "validation", "test")}
        return cls(**read_splits(TrainConfig(**folders)))

    @cached_property
    def known(self) -> tuple[Pairs, Pairs]:
        """Training and validation pairs of the categories that are trained on."""
        train, validation = (pairs.select(_category(pairs) == 0) for pairs in (self.train, self.validation))
        return train, validation

    @cached_property
    def held_out(self) -> Pairs:
        """Pairs of the categories that are not: the probe of transfer."""
        return self.train.select(_category(self.train) == 1)

    def some(self, count: int) -> Pairs:
        """Return about `count` training pairs, of whole queries drawn at random."""
        rng = np.random.default_rng(0)
        rank = rng.permutation(len(self.train.queries))[self.train.query]
        return self.train.select(np.sort(np.argsort(rank, kind="stable")[:count]))


def bundled() -> PretrainedModel:
    """Return the base model of all tables."""
    return find_pretrained("bundled")


def quality(pairs: Pairs, embed: Embed, documents: Embed | None = None) -> dict[str, float]:
    """Return the metrics of a model on judged pairs.

    Args:
        pairs: What to score.
        embed: The model.
        documents: The model of the product texts, where it is another one.
    """
    sides = (pairs.queries, pairs.query, embed), (pairs.texts, pairs.text, documents or embed)
    query_BD, text_BD = (
        torch.nn.functional.normalize(model(strings.to_pylist()).float(), dim=-1)[torch.from_numpy(rows.astype(int))]
        for strings, rows, model in sides
    )
    return evaluate(pairs.query, pairs.gain, pairs.relevant, (query_BD * text_BD).sum(1).numpy())


def general_similarity(embed: Embed) -> float:
    """Return a model's Spearman correlation on the STS benchmark (dev): what it has not forgotten."""
    with (DATA / "stsb" / "sts-dev.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    left, right = (torch.nn.functional.normalize(embed([row[column] for row in rows]), dim=-1) for column in (5, 6))
    return float(spearmanr((left * right).sum(1).numpy(), [float(row[4]) for row in rows]).statistic)


def _category(pairs: Pairs) -> np.ndarray:
    """Return 1 for each pair [N] whose query's category is held out, -1 if its query has such a word elsewhere."""
    of_query = []
    for query in pairs.queries.to_pylist():
        words = [word.rstrip("s") for word in re.findall(r"[a-z]{3,}", query.lower())]
        of_query.append(1 if words and _is_held_out(words[-1]) else -1 if any(map(_is_held_out, words)) else 0)
    return np.array(of_query)[pairs.query]


def _is_held_out(word: str) -> bool:
    return hashlib.blake2b(word.encode(), digest_size=8).digest()[0] % CATEGORIES == 0
