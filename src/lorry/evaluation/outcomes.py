"""For how many queries one scorer is better than another, and for how many it is worse."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from lorry.evaluation.metrics import PerQuery

EQUAL = 1e-9  # a smaller difference is rounding


@dataclass(frozen=True)
class Outcome:
    """Queries by what became of them."""

    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, difference: np.ndarray) -> Outcome:
        """Count the differences of single queries, new minus old, [Q]."""
        wins, losses = int((difference > EQUAL).sum()), int((difference < -EQUAL).sum())
        return cls(wins, len(difference) - wins - losses, losses)


def outcomes(
    query: np.ndarray, gain: np.ndarray, relevant: np.ndarray, base_score: np.ndarray, tuned_score: np.ndarray
) -> dict[str, dict[str, int]]:
    """Return wins, ties and losses of the second scorer, by metric, over the queries that the metric counts.

    The metrics are those that have a value for a single query; the arguments are those of `intervals.compare`.
    """
    base, tuned = (PerQuery.of(query, gain, relevant, score) for score in (base_score, tuned_score))
    ndcg, right = tuned.ndcg - base.ndcg, tuned.right - base.right
    found = {
        "ndcg@10": ndcg[base.has_gain],
        "ndcg@10_rankable": ndcg[base.rankable],
        "mrr@10": (tuned.reciprocal_rank - base.reciprocal_rank)[base.has_relevant],
        "pair_accuracy": right[base.rankable],
    }
    return {name: asdict(Outcome.of(difference)) for name, difference in found.items()}
