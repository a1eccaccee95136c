"""Ranking and classification metrics: pure functions of flat arrays, one entry per judged pair.

Products are ranked among those judged for the query, never against the whole catalogue: a product that nobody judged is
unknown, not wrong. Where scores tie, a ranking metric is its mean over the random orders of the tied products, so that
a scorer gains nothing from ties (BM25 gives zero to every product without a word of the query).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorry.names import METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG

CUTOFF = 10


def evaluate(
    query: np.ndarray,
    gain: np.ndarray,
    relevant: np.ndarray,
    score: np.ndarray,
    *,
    official_gain: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the metrics of one scorer over judged pairs.

    - `ndcg@10`: mean over the queries that have a gain above 0, gains linear as in the ESCI paper. Queries whose gains
      are all equal are kept, as scikit-learn and trec_eval keep them: they score 1 whatever the order and lift every
      scorer, random order included, by the same amount. Compare it with the random score.
    - `ndcg@10_rankable`: the same over the queries that can be ranked: their gains are not all equal.
    - `mrr@10`: mean over the queries that have a relevant product of 1 / rank of the first one, 0 beyond rank 10.
    - `roc_auc`, `average_precision`: relevant against the rest, over all pairs of all queries (scikit-learn).
    - `spearman`: rank correlation of score and gain over all pairs (SciPy).
    - `pair_accuracy`: of all pairs of unequal gain within a query, the share put in the right order; a tie is half.

    Where the labels leave a metric undefined (see `undefined`) it takes the value of a scorer that knows nothing:
    .5 for `roc_auc` and `pair_accuracy`, 0 for the others.

    Args:
        query: Query of each pair, integers, [N]; in any order.
        gain: How good the product is for the query, 0 or more, [N].
        relevant: Whether it counts as relevant, [N].
        score: What the scorer gave it, higher is better, [N].
        official_gain: Other gains, [N], for a second nDCG under the key `ndcg@10_official_scorer`: the `trec_eval`
            mapping that ESCI's authors publish swaps the gains of S and C. They measure it over the whole list of a
            query's products, which is `ndcg_official_scorer`.

    Raises:
        ValueError: The arrays differ in length, are empty, or a score or gain is not finite or a gain below 0.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    judged = PerQuery.of(query, gain, relevant, score)
    one_class = relevant.all() or not relevant.any()
    result = {
        "ndcg@10": _mean(judged.ndcg, judged.has_gain),
        "ndcg@10_rankable": _mean(judged.ndcg, judged.rankable),
        "mrr@10": _mean(judged.reciprocal_rank, judged.has_relevant),
        "roc_auc": 0.5 if one_class else float(roc_auc_score(relevant, score)),
        "average_precision": float(average_precision_score(relevant, score)) if relevant.any() else 0.0,
        "spearman": _spearman(gain, score),
        "pair_accuracy": float(judged.right.sum() / judged.unequal.sum()) if judged.unequal.any() else 0.5,
    }
    if official_gain is not None:
        official = PerQuery.of(query, official_gain, relevant, score)
        result[OFFICIAL_NDCG] = _mean(official.ndcg, official.has_gain)
        whole = PerQuery.of(query, official_gain, relevant, score, cutoff=len(query))
        result[OFFICIAL_WHOLE_NDCG] = _mean(whole.ndcg, whole.has_gain)
    return result


def undefined(query: np.ndarray, gain: np.ndarray, relevant: np.ndarray) -> list[str]:
    """Return the metrics that cannot separate two scorers on these labels, in the order of `METRICS`.

    The arguments are those of `evaluate`.
    """
    _, index = np.unique(query, return_inverse=True)
    pairs = np.bincount(index)
    relevant_pairs = np.bincount(index, weights=relevant)
    lowest, highest = np.full(len(pairs), np.inf), np.full(len(pairs), -np.inf)
    np.minimum.at(lowest, index, gain)
    np.maximum.at(highest, index, gain)
    ordered = bool(np.any(lowest < highest))
    mixed = bool(np.any((relevant_pairs > 0) & (relevant_pairs < pairs)))
    both = bool(relevant.any() and not relevant.all())
    separates = {
        "ndcg@10": ordered,
        "ndcg@10_rankable": ordered,
        "mrr@10": mixed,
        "roc_auc": both,
        "average_precision": both,
        "spearman": bool(np.ptp(gain) > 0),
        "pair_accuracy": ordered,
    }
    return [name for name in METRICS if not separates[name]]


def query_ndcg(query: np.ndarray, gain: np.ndarray, score: np.ndarray) -> dict[int, float]:
    """Return nDCG@10 of every query that has a gain above 0; the arguments are those of `evaluate`."""
    judged = PerQuery.of(query, gain, np.zeros(len(gain), dtype=bool), score)
    kept = judged.has_gain
    return dict(zip(np.unique(query)[kept].tolist(), judged.ndcg[kept].tolist(), strict=True))


def rankable_queries(query: np.ndarray, gain: np.ndarray) -> int:
    """Return the number of queries whose gains are not all equal; the arguments are those of `evaluate`."""
    pairs = np.unique(np.stack([query, gain]), axis=1)  # each gain of a query once
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


@dataclass(frozen=True)
class PerQuery:
    """What each query adds to the ranking metrics; arrays over the Q distinct queries, ascending."""

    ndcg: np.ndarray
    has_gain: np.ndarray
    reciprocal_rank: np.ndarray
    has_relevant: np.ndarray
    right: np.ndarray  # unequal-gain pairs in the right order, ties half
    unequal: np.ndarray  # unequal-gain pairs

    @property
    def rankable(self) -> np.ndarray:
        """Whether a query's gains are not all equal, so that one order is better than another."""
        return self.unequal > 0

    @classmethod
    def of(
        cls, query: np.ndarray, gain: np.ndarray, relevant: np.ndarray, score: np.ndarray, *, cutoff: int = CUTOFF
    ) -> PerQuery:
        """Return what each query adds; the arguments are those of `evaluate`, and the last rank that nDCG counts."""
        _check(query, gain, relevant, score)
        _, index = np.unique(query, return_inverse=True)
        best_first = np.lexsort((-score, index))
        index, gain, relevant, score = index[best_first], gain[best_first], relevant[best_first], score[best_first]
        sizes = np.bincount(index)
        rank = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        new_score = np.r_[True, score[1:] != score[:-1]] | (rank == 0)
        tied = np.cumsum(new_score) - 1  # group of equal scores within one query

        dcg = np.bincount(index, weights=_tie_means(gain, tied) * _discount(rank, cutoff))
        ideal = np.bincount(index, weights=gain[np.lexsort((-gain, index))] * _discount(rank, cutoff))
        right, unequal = _ordered_pairs(sizes, rank, index, gain, score)
        return cls(
            ndcg=np.divide(dcg, ideal, out=np.zeros_like(dcg), where=ideal > 0),
            has_gain=ideal > 0,
            reciprocal_rank=_reciprocal_ranks(index, rank, tied, relevant),
            has_relevant=np.bincount(index, weights=relevant) > 0,
            right=right,
            unequal=unequal,
        )


def _check(query: np.ndarray, gain: np.ndarray, relevant: np.ndarray, score: np.ndarray) -> None:
    if not len(query) == len(gain) == len(relevant) == len(score):
        raise ValueError(f"arrays differ in length: {len(query)}, {len(gain)}, {len(relevant)}, {len(score)}")
    if len(query) == 0:
        raise ValueError("no judged pairs to evaluate")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    if not np.isfinite(gain).all() or gain.min() < 0:
        raise ValueError("a gain is not finite or below 0")


def _discount(rank: np.ndarray, cutoff: int) -> np.ndarray:
    discount: np.ndarray = np.where(rank < cutoff, 1 / np.log2(rank + 2), 0.0)
    return discount


def _tie_means(gain: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Replace each gain by the mean of its tie group: DCG's mean over the orders of the group."""
    means: np.ndarray = (np.bincount(tied, weights=gain) / np.bincount(tied))[tied]
    return means


def _reciprocal_ranks(index: np.ndarray, rank: np.ndarray, tied: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Return each query's expected 1 / rank of its first relevant product, [Q]; 0 beyond the cutoff or with none."""
    result = np.zeros(index[-1] + 1)
    if not relevant.any():
        return result
    # Only the best tie group that holds a relevant product matters: it starts at `start`, has `size` products.
    queries, first = np.unique(index[relevant], return_index=True)
    group = tied[relevant][first]
    start = rank[np.searchsorted(tied, group)]
    size = np.bincount(tied)[group]
    good = np.bincount(tied, weights=relevant)[group]
    none_yet = np.ones(len(queries))
    for place in range(CUTOFF):
        chance = good / np.maximum(size - place, good)  # that this place is relevant when those before are not
        result[queries] += np.where(start + place < CUTOFF, none_yet * chance / (start + place + 1), 0.0)
        none_yet *= 1 - chance
    return result


def _ordered_pairs(
    sizes: np.ndarray, rank: np.ndarray, index: np.ndarray, gain: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each query, its unequal-gain pairs in the right order (ties half) and all of them.

    Entries are sorted by query, best score first. Each pass pairs every entry with the one `lag` places below it in
    the same query: memory stays linear, time is the number of pairs within queries.
    """
    right, unequal = np.zeros(len(sizes)), np.zeros(len(sizes))
    below = sizes[index] - rank - 1  # entries of the same query after this one
    upper = np.flatnonzero(below > 0)
    lag = 1
    while len(upper):
        lower = upper + lag
        differ = gain[upper] != gain[lower]
        value = np.where(score[upper] == score[lower], 0.5, gain[upper] > gain[lower])
        right += np.bincount(index[upper], weights=value * differ, minlength=len(sizes))
        unequal += np.bincount(index[upper], weights=differ, minlength=len(sizes))
        lag += 1
        upper = upper[below[upper] >= lag]
    return right, unequal


def _spearman(gain: np.ndarray, score: np.ndarray) -> float:
    if np.ptp(gain) == 0 or np.ptp(score) == 0:  # SciPy warns and returns NaN
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(score, gain).statistic)


def _mean(values: np.ndarray, counted: np.ndarray) -> float:
    return float(values[counted].mean()) if counted.any() else 0.0
