"""A batch: the unique texts that some pairs need, each encoded once, and the labels that the loss compares them by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.model.tokens import TokenizedTexts
from lorry.training.losses import PairLabels


@dataclass(frozen=True)
class Batch:
    """Pairs of a batch and the unique texts that they need."""

    rows: np.ndarray
    """[n] rows in the table of texts: the unique queries, then the unique product texts."""
    queries: int
    """How many of the rows are queries."""
    labels: PairLabels
    pairs: int

    def sides(self, embeddings_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Split the embeddings of `rows` into those of queries [Q, D] and of product texts [N, D]."""
        query_QD, text_ND = embeddings_ND.split([self.queries, len(self.rows) - self.queries])
        return query_QD, text_ND


def make_batch(texts: TokenizedTexts, pairs: Pairs, chosen: np.ndarray, device: torch.device) -> Batch:
    """Gather what a step needs of the chosen pairs: each unique text once.

    Args:
        texts: The table of texts that the pairs refer to.
        pairs: All pairs.
        chosen: [B] rows of `pairs`.
        device: Where the labels go.
    """
    queries, query = np.unique(pairs.query[chosen], return_inverse=True)
    products, text = np.unique(pairs.text[chosen], return_inverse=True)
    labels = PairLabels(
        *(torch.from_numpy(item).to(device) for item in (query, text, pairs.gain[chosen], pairs.relevant[chosen]))
    )
    rows = np.concatenate([queries, products.astype(np.int64) + texts.queries])
    return Batch(rows, len(queries), labels, len(chosen))
