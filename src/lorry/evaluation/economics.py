"""What an index of smaller vectors costs in quality: bytes a million products against nDCG@10 and recall@10.

Queries stay as they are, products are stored in the form: so do vector databases. The forms are those of
sentence-transformers' `quantize_embeddings` (int8 by the range of each dimension, binary by the sign), and vectors cut
to their first numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.evaluation.catalogue import SearchQueries
from lorry.evaluation.metrics import PerQuery
from lorry.evaluation.scoring import cosines
from lorry.evaluation.search import Found, measure, nearest
from lorry.signals import heard

RESCORED = 40  # products that binary search hands on
KEPT = 10  # and that are left then


@dataclass(frozen=True)
class Form:
    """How embeddings are stored, as the vectors whose dot products are the scores.

    Args:
        name: What to call it.
        dims: Numbers of a vector.
        bytes: Of a stored product.
        query: Turns the embeddings of queries [Q, D] into what is compared.
        product: The same for products, as they are read back from the store.
        rescored: Turns queries into what orders the first products that were found; None: the order stays.
    """

    name: str
    dims: int
    bytes: int
    query: Callable[[Tensor], Tensor]
    product: Callable[[Tensor], Tensor]
    rescored: Callable[[Tensor], Tensor] | None = None


def forms(product_CD: Tensor, dims: Sequence[int]) -> list[Form]:
    """Return the forms to compare, the largest first.

    Args:
        product_CD: Embeddings of the catalogue, of length 1, which int8 takes its ranges from.
        dims: Numbers to cut vectors to; empty: a half and a quarter.
    """
    width = product_CD.shape[1]
    low_D, high_D = product_CD.amin(0), product_CD.amax(0)
    step_D = ((high_D - low_D) / 255).clamp_min(1e-12)

    def same(rows: Tensor) -> Tensor:
        return rows

    def int8(rows: Tensor) -> Tensor:
        return ((rows - low_D) / step_D).trunc().clamp(0, 255) * step_D + low_D

    def sign(rows: Tensor) -> Tensor:
        return (rows > 0).float() * 2 - 1

    def cut(size: int) -> Callable[[Tensor], Tensor]:
        return lambda rows: torch.nn.functional.normalize(rows[:, :size], dim=-1)

    packed = -(-width // 8)
    shorter = [Form("float32", size, 4 * size, cut(size), cut(size)) for size in dims or (width // 2, width // 4)]
    return [
        Form("float32", width, 4 * width, same, same),
        Form("float16", width, 2 * width, same, lambda rows: rows.half().float()),
        Form("int8", width, width, same, int8),
        *shorter,
        Form("binary, rescored", width, packed, sign, sign, rescored=same),
        Form("binary", width, packed, sign, sign),
    ]


def economics(
    pairs: Pairs,
    sides: tuple[Tensor, Tensor],
    asked: SearchQueries,
    product_CD: Tensor,
    dims: Sequence[int],
    stop: threading.Event | None = None,
) -> list[dict[str, Any]]:
    """Return for each form its bytes and what they buy.

    Args:
        pairs: The judged pairs.
        sides: Embeddings of their queries [Q, D] and of their product texts [T, D], of length 1.
        asked: The queries that search is measured with.
        product_CD: Embeddings of the catalogue, of length 1.
        dims: Numbers to cut vectors to; empty: a half and a quarter.
        stop: Give up when this is set.

    Returns:
        Of each form `form`, `dims`, `bytes_per_million` products (vectors alone), `ndcg@10` and `ndcg@10_rankable` on
        the judged pairs, and `recall@10` in full-catalogue search.

    Raises:
        StopRequestedError: `stop` was set.
    """
    rows = []
    asked_QD = sides[0][torch.from_numpy(asked.rows)]
    for form in heard(forms(product_CD, dims), stop):
        stored_CD = form.product(product_CD)
        score = cosines(pairs, (form.rescored or form.query)(sides[0]), form.product(sides[1]))
        judged = PerQuery.of(pairs.query, pairs.gain, pairs.relevant, score)
        found = nearest(form.query(asked_QD), stored_CD, stop, RESCORED if form.rescored else KEPT)
        if form.rescored:
            found = _rescored(form.rescored(asked_QD), stored_CD, found)
        recall_Q = measure(found, asked, len(product_CD))["recall@10"]
        rows.append(
            {
                "form": form.name,
                "dims": form.dims,
                "bytes_per_million": form.bytes * 1_000_000,
                "ndcg@10": _mean(judged.ndcg[judged.has_gain]),
                "ndcg@10_rankable": _mean(judged.ndcg[judged.rankable]),
                "recall@10": float(recall_Q.mean()),
            }
        )
    return rows


def _rescored(query_QD: Tensor, stored_CD: Tensor, found: Found) -> Found:
    """Return what was found in the order of the dot products with `query_QD`."""
    best = [
        torch.from_numpy(row)[torch.argsort(stored_CD[torch.from_numpy(row)] @ query_D, descending=True, stable=True)]
        for query_D, row in zip(query_QD, found, strict=True)
    ]
    return torch.stack(best).numpy()[:, :KEPT]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
