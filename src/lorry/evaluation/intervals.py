"""How sure the difference of two scorers is: bootstrap intervals and paired tests over queries.

Queries are drawn with replacement, and both scorers are read on the same draw: a paired percentile bootstrap (Efron &
Tibshirani 1993, ch. 13). A metric that is a sum over queries also gets a randomisation test, in which each query's
difference may change its sign (Smucker, Allan & Carterette 2007, https://dl.acm.org/doi/10.1145/1321440.1321528). One
over all pairs has no value for a query; its p-value is read from the bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lorry.evaluation.metrics import CUTOFF, PerQuery, undefined
from lorry.names import OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG

CELLS = 2_000_000  # numbers held at once: bounds the memory whatever the number of queries and pairs
WORK = 200_000_000  # numbers drawn at most for a metric: bounds the time
FEWEST = 100  # draws, however many queries and pairs


@dataclass(frozen=True)
class Change:
    """What a metric gains from the base model to the tuned one."""

    change: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of it."""
    p: float
    """How likely a change of this size is where the models do not differ."""


def compare(
    query: np.ndarray,
    gain: np.ndarray,
    relevant: np.ndarray,
    base_score: np.ndarray,
    tuned_score: np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
    official_gain: np.ndarray | None = None,
) -> dict[str, Change]:
    """Return the change of every metric from one scorer to the other; one that cannot be compared is left out.

    Args:
        query: Query of each pair, as in `metrics.evaluate`, like `gain` and `relevant`.
        gain: See `query`.
        relevant: See `query`.
        base_score: Scores of the one scorer, [N].
        tuned_score: Scores of the other, [N].
        seed: Seed of the draws.
        resamples: Number of draws. With more than 200,000 queries (pairs, for a metric over all pairs) there are fewer,
            so that the time stays bounded, but at least 100.
        official_gain: As for `metrics.evaluate`.
    """
    base, tuned = (PerQuery.of(query, gain, relevant, score) for score in (base_score, tuned_score))
    has_gain, rankable = base.has_gain.astype(float), base.rankable.astype(float)
    # Each of these is a sum over queries divided by a count over queries.
    parts = {
        "ndcg@10": (tuned.ndcg - base.ndcg, has_gain),
        "ndcg@10_rankable": ((tuned.ndcg - base.ndcg) * rankable, rankable),
        "mrr@10": (tuned.reciprocal_rank - base.reciprocal_rank, base.has_relevant.astype(float)),
        "pair_accuracy": (tuned.right - base.right, base.unequal),
    }
    same = undefined(query, gain, relevant)
    if official_gain is not None and "ndcg@10" not in same:
        for name, cutoff in ((OFFICIAL_NDCG, CUTOFF), (OFFICIAL_WHOLE_NDCG, len(query))):
            one, other = (
                PerQuery.of(query, official_gain, relevant, score, cutoff=cutoff) for score in (base_score, tuned_score)
            )
            parts[name] = (other.ndcg - one.ndcg, one.has_gain.astype(float))
    found = {
        name: change_over_queries(*part, seed, resamples)
        for name, part in parts.items()
        if name not in same and (part[1] > 0).sum() > 1
    }
    if len(base.ndcg) > 1 and np.ptp(gain) > 0:
        found |= _over_pairs(query, gain, relevant, base_score, tuned_score, seed, resamples)
    return found


def change_over_queries(difference_Q: np.ndarray, count_Q: np.ndarray, seed: int, resamples: int = 1000) -> Change:
    """Return the change of a metric that is the sum of differences over that of counts.

    Args:
        difference_Q: What each query adds to the change, [Q].
        count_Q: What it counts, [Q]: 1 for a metric that is a mean over queries; those of 0 are left out, and more than
            one must remain.
        seed: Seed of the draws.
        resamples: Number of draws, as in `compare`.
    """
    from scipy.stats import bootstrap, permutation_test

    difference_C, count_C = difference_Q[count_Q > 0], count_Q[count_Q > 0]
    draws, at_once = _affordable(resamples, len(count_C)), max(1, CELLS // len(count_C))
    options = {"vectorized": True, "n_resamples": draws, "batch": at_once}
    drawn = bootstrap(
        (difference_C, count_C),
        _ratio,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
        **options,
    ).confidence_interval
    flipped = permutation_test(
        (difference_C,), np.sum, permutation_type="samples", rng=np.random.default_rng(seed), **options
    )
    change = float(_ratio(difference_C, count_C, 0))
    return Change(change, float(drawn.low), float(drawn.high), float(min(1.0, flipped.pvalue)))


def _affordable(resamples: int, numbers: int) -> int:
    """Return how many draws to make of so many numbers each."""
    return min(resamples, max(FEWEST, WORK // numbers))


def _ratio(difference: np.ndarray, count: np.ndarray, axis: int) -> np.ndarray:
    ratio: np.ndarray = difference.sum(axis=axis) / count.sum(axis=axis)
    return ratio


def _over_pairs(
    query: np.ndarray,
    gain: np.ndarray,
    relevant: np.ndarray,
    base_score: np.ndarray,
    tuned_score: np.ndarray,
    seed: int,
    resamples: int,
) -> dict[str, Change]:
    """Return the changes of the metrics over all pairs of all queries."""
    _, index_N = np.unique(query, return_inverse=True)
    base, tuned = _Order.of(base_score), _Order.of(tuned_score)
    grades = _Order.of(gain)
    draws = _affordable(resamples, len(query))
    differences: dict[str, list[np.ndarray]] = {}
    for weight_RN in _draws(index_N, draws, seed):
        before, after = (_weighted(weight_RN, relevant, grades, order) for order in (base, tuned))
        for name in before:
            differences.setdefault(name, []).append(after[name] - before[name])
    found = {}
    for name, parts in differences.items():
        first, *drawn = np.concatenate(parts)  # the first are the pairs as they are, then the draws
        kept = np.array(drawn)[np.isfinite(drawn)]
        if np.isfinite(first) and len(kept) > FEWEST // 2:
            low, high = np.percentile(kept, [2.5, 97.5])
            one_sided = (min((kept <= 0).sum(), (kept >= 0).sum()) + 1) / (len(kept) + 1)
            found[name] = Change(float(first), float(low), float(high), float(min(1.0, 2 * one_sided)))
    return found


def _draws(index_N: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each pair counts, [r, N]: first once each, then as often as its query was drawn."""
    yield np.ones((1, len(index_N)))
    rng, queries = np.random.default_rng(seed), int(index_N.max()) + 1
    at_once = max(1, CELLS // len(index_N))
    for start in range(0, draws, at_once):
        drawn_RQ = rng.multinomial(queries, np.full(queries, 1 / queries), size=min(at_once, draws - start))
        yield drawn_RQ[:, index_N].astype(float)


@dataclass(frozen=True)
class _Order:
    """N values in ascending order, equal ones in one of G groups."""

    order_N: np.ndarray
    start_G: np.ndarray
    group_N: np.ndarray
    """Group of each value, as they were given."""

    @classmethod
    def of(cls, values: np.ndarray) -> _Order:
        _, group_N = np.unique(values, return_inverse=True)
        order_N = np.argsort(group_N, kind="stable")
        return cls(order_N, np.searchsorted(group_N[order_N], np.arange(group_N.max() + 1)), group_N)

    def sums(self, weight_RN: np.ndarray) -> np.ndarray:
        """Return the weight of each group, [R, G]."""
        sums: np.ndarray = np.add.reduceat(weight_RN[:, self.order_N], self.start_G, axis=1)
        return sums

    def centred_ranks(self, weight_RN: np.ndarray) -> np.ndarray:
        """Return the rank of each value less the mean rank, [R, N], where value i stands there weight_i times."""
        weight_RG = self.sums(weight_RN)
        below_RG = weight_RG.cumsum(1) - weight_RG
        ranks_RG = below_RG + weight_RG / 2 - weight_RG.sum(1, keepdims=True) / 2
        ranks_RN: np.ndarray = ranks_RG[:, self.group_N]
        return ranks_RN


def _weighted(weight_RN: np.ndarray, relevant: np.ndarray, grades: _Order, scores: _Order) -> dict[str, np.ndarray]:
    """Return the metrics [R] of pairs that count as often as `weight_RN` says; nan where they are not defined.

    They are those of scikit-learn and SciPy on the pairs repeated so often.
    """
    positive_RG, all_RG = scores.sums(weight_RN * relevant), scores.sums(weight_RN)
    negative_RG = all_RG - positive_RG
    positives_R, negatives_R = positive_RG.sum(1), negative_RG.sum(1)
    beaten_RG = negative_RG.cumsum(1) - negative_RG / 2
    found_RG = positive_RG[:, ::-1].cumsum(1)  # the best first
    with np.errstate(divide="ignore", invalid="ignore"):
        auc_R = (positive_RG * beaten_RG).sum(1) / (positives_R * negatives_R)
        precision_RG = np.nan_to_num(found_RG / all_RG[:, ::-1].cumsum(1))  # 0 / 0 before the first pair drawn
        precision_R = (positive_RG[:, ::-1] * precision_RG).sum(1) / positives_R
        one_RN, other_RN = scores.centred_ranks(weight_RN), grades.centred_ranks(weight_RN)
        spread_R = (weight_RN * one_RN**2).sum(1) * (weight_RN * other_RN**2).sum(1)
        spearman_R = (weight_RN * one_RN * other_RN).sum(1) / np.sqrt(spread_R)
    one_class = (positives_R == 0) | (negatives_R == 0)
    return {
        "roc_auc": np.where(one_class, np.nan, auc_R),
        "average_precision": np.where(one_class, np.nan, precision_R),
        "spearman": np.where(spread_R > 0, spearman_R, np.nan),
    }
