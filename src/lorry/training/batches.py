"""A batch: the unique texts that some pairs need, each encoded once, and the labels that the loss compares them by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.hardware import to_device
from lorry.model.tokens import TokenizedTexts
from lorry.training.objective import PairLabels, TeacherLabels


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


def make_batch(
    texts: TokenizedTexts,
    pairs: Pairs,
    chosen: np.ndarray,
    device: torch.device,
    negatives: np.ndarray | None = None,
) -> Batch:
    """Gather what a step needs of the chosen pairs: each unique text once.

    Args:
        texts: The table of texts that the pairs refer to.
        pairs: All pairs.
        chosen: [B] rows of `pairs`.
        device: Where the labels go.
        negatives: [queries, k] more texts for each query of `pairs`, -1 for none: negatives of all its pairs.
    """
    queries, query = np.unique(pairs.query[chosen], return_inverse=True)
    products, text = np.unique(pairs.text[chosen], return_inverse=True)
    gain = pairs.gain[chosen]
    better, worse = _ordered_pairs(query, gain)

    labels = PairLabels(
        query_B=to_device(query, device),
        text_B=to_device(text, device),
        gain_B=to_device(gain, device),
        grade_B=to_device(gain / pairs.highest_gain, device),
        relevant_B=to_device(pairs.relevant[chosen], device),
        better_P=to_device(better, device),
        worse_P=to_device(worse, device),
        teacher=None if pairs.teacher is None else _teacher_labels(query, pairs.teacher[chosen], device),
    )
    if negatives is not None:
        mined = np.setdiff1d(negatives[queries], [*products, -1])
        products = np.concatenate([products, mined])
    rows = np.concatenate([queries, products.astype(np.int64) + texts.queries])
    return Batch(rows, len(queries), labels, len(chosen))


def _teacher_labels(query: np.ndarray, score: np.ndarray, device: torch.device) -> TeacherLabels:
    row = np.flatnonzero(~np.isnan(score))
    items = (row, score[row], *_ordered_pairs(query[row], score[row]))
    return TeacherLabels(*(to_device(item, device) for item in items))


def _ordered_pairs(query: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every two entries of one query with unequal values: the higher ones, [P], and the lower ones, [P]."""
    order = np.lexsort((-value, query))
    query, value = query[order], value[order]
    higher, lower = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    upper = np.arange(len(order) - 1)
    lag = 1
    while len(upper):  # each pass pairs every entry with the one `lag` places below it
        upper = upper[query[upper] == query[upper + lag]]
        unequal = upper[value[upper] != value[upper + lag]]
        higher.append(order[unequal])
        lower.append(order[unequal + lag])
        lag += 1
        upper = upper[upper < len(order) - lag]
    return np.concatenate(higher), np.concatenate(lower)
