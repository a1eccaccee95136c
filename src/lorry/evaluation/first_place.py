"""How often a best product stands first: what a customer sees of a ranking at once."""

from __future__ import annotations

import numpy as np

from lorry.evaluation.metrics import PerQuery


def first_place(query: np.ndarray, gain: np.ndarray, score: np.ndarray) -> float:
    """Return the share of the queries whose first product is one of their best; 0 where no query can be ranked.

    Only queries whose gains are not all equal count. Where several products tie for the first place, a query counts by
    the share of the best ones among them. The arguments are those of `metrics.evaluate`.
    """
    queries, index = np.unique(query, return_inverse=True)
    highest, best = (np.full(len(queries), -np.inf) for _ in range(2))
    np.maximum.at(highest, index, score)
    np.maximum.at(best, index, gain)
    first = score == highest[index]
    good = np.bincount(index, weights=first & (gain == best[index])) / np.bincount(index, weights=first)
    rankable = PerQuery.of(query, gain, np.zeros(len(gain), dtype=bool), score).rankable
    return float(good[rankable].mean()) if rankable.any() else 0.0
