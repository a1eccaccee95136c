"""What one model's embeddings say beyond the judged pairs: search, an index's economics, and standardisation.

Measured while the embeddings are there, so that those of two models are never held at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.evaluation.catalogue import Catalogue
from lorry.evaluation.economics import economics
from lorry.evaluation.scoring import cosines, measure
from lorry.evaluation.search import Found, nearest
from lorry.loss_sum import dims_of
from lorry.model.standardizing import fit_standardizer

STANDARDS = ("center", "whiten")
Sides = tuple[Tensor, Tensor]
"""Embeddings of a split's queries [Q, D] and of its product texts [T, D], of length 1."""


@dataclass(frozen=True)
class Evidence:
    """What a model gives, by split; empty for a split without queries to search with.

    Attributes:
        found: What search finds for each of the catalogue's queries.
        standardized: Metrics of the judged pairs with standardised embeddings, by kind.
        economics: What smaller forms of the vectors cost, a row each, where it was asked for.
        seconds: That all of it took, encoding included where that was for the search alone.
    """

    found: dict[str, Found] = field(default_factory=dict)
    standardized: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    economics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0


def gather_evidence(
    catalogue: Catalogue,
    splits: Mapping[str, Pairs],
    sides: Mapping[str, Sides],
    product_CD: Tensor,
    config: TrainConfig,
    *,
    economics_of: str,
    stop: threading.Event | None = None,
) -> Evidence:
    """Return what these embeddings say.

    Args:
        catalogue: What search looks through.
        splits: The judged pairs of each split.
        sides: The embeddings of each held-out split.
        product_CD: Those of the catalogue, from `product_embeddings`.
        config: Says to which sizes embeddings are cut.
        economics_of: The split that the economics are measured on; "": none.
        stop: Give up when this is set.

    Raises:
        StopRequestedError: `stop` was set.
    """
    began = time.perf_counter()
    standards = {kind: fit_standardizer(kind, product_CD[catalogue.in_train]) for kind in STANDARDS}
    found, standardized, costs = {}, {}, {}
    for name, both in sides.items():
        pairs = splits[name]
        standardized[name] = {
            kind: measure(pairs, cosines(pairs, *(normalize(standard(side), dim=-1) for side in both)))
            for kind, standard in standards.items()
        }
        if asked := catalogue.queries.get(name):
            found[name] = nearest(both[0][torch.from_numpy(asked.rows)], product_CD, stop)
            if name == economics_of:
                costs[name] = economics(pairs, both, asked, product_CD, dims_of(config.matryoshka_dims), stop)
    return Evidence(found, standardized, costs, time.perf_counter() - began)


def product_embeddings(catalogue: Catalogue, text_TD: Mapping[str, Tensor], train_PD: Tensor | None = None) -> Tensor:
    """Return the embeddings of the catalogue, [C, D].

    Args:
        catalogue: Says which product comes from where.
        text_TD: By split, the embeddings of its product texts.
        train_PD: Those of the catalogue's products from the training split alone, in its order, where `text_TD` lacks
            that split.
    """
    first = next(iter(text_TD.values()))
    product_CD = first.new_empty(len(catalogue), first.shape[1])
    for name, rows in catalogue.rows.items():
        here = torch.from_numpy(np.flatnonzero(rows >= 0))
        if name in text_TD:
            product_CD[here] = text_TD[name][torch.from_numpy(rows[rows >= 0])]
        elif train_PD is not None:
            product_CD[here] = train_PD
    return product_CD
