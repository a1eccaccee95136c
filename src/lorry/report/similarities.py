"""The spread of the similarities of each label's pairs, under both models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (5, 25, 50, 75, 95)
RARE = 1 / 200  # a label with a smaller share of the pairs is left out


@dataclass(frozen=True)
class LabelSpread:
    """One label's cosine similarities at `PERCENTILES`."""

    label: str
    pairs: int
    base: list[float]
    tuned: list[float]


def spread_by_label(
    label_names: Sequence[str], label: np.ndarray, base: np.ndarray, tuned: np.ndarray
) -> list[LabelSpread]:
    """Return the spread of every label that is not rare, best first.

    Args:
        label_names: Names of the labels, best first.
        label: Index into `label_names` of each pair, [N].
        base: Similarity under the base model, [N].
        tuned: Similarity under the tuned model, [N].
    """
    pairs = np.bincount(label, minlength=len(label_names))
    return [
        LabelSpread(
            label_names[index],
            int(pairs[index]),
            *(np.percentile(score[label == index], PERCENTILES).round(5).tolist() for score in (base, tuned)),
        )
        for index in np.flatnonzero((pairs > 0) & (pairs >= RARE * len(label))).tolist()
    ]
