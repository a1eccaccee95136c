"""Metrics against arithmetic done by hand, and against scikit-learn and SciPy on random cases."""

import warnings

import numpy as np
import pytest
from scipy.stats import somersd
from sklearn.metrics import ndcg_score

from lorry.evaluation.metrics import evaluate, query_ndcg, rankable_queries, undefined
from lorry.names import METRICS, OFFICIAL_NDCG

LOG2_3 = np.log2(3)


def arrays(*rows):
    """Rows of (query, gain, relevant, score) as the arguments of evaluate."""
    query, gain, relevant, score = zip(*rows, strict=True)
    return np.array(query), np.array(gain, float), np.array(relevant, bool), np.array(score, float)


def random_case(seed, pairs=400, queries=40, decimals=1):
    rng = np.random.default_rng(seed)
    gain = rng.choice([1.0, 0.1, 0.01, 0.0], pairs)
    return rng.integers(0, queries, pairs), gain, gain > 0.05, rng.random(pairs).round(decimals)


def test_two_queries_by_hand():
    # Query 7, by falling score: S(.1), E(1), I(0); query 3: I(0), E(1). The rows of the queries alternate.
    found = evaluate(
        *arrays((7, 1, True, 0.5), (3, 1, True, 0.1), (7, 0.1, True, 0.9), (3, 0, False, 0.6), (7, 0, False, 0.2))
    )
    # nDCG: query 7 (.1 + 1 / log2(3)) / (1 + .1 / log2(3)); query 3 1 / log2(3)
    assert found["ndcg@10"] == pytest.approx(((0.1 + 1 / LOG2_3) / (1 + 0.1 / LOG2_3) + 1 / LOG2_3) / 2)
    # MRR: query 7 finds a relevant product first (1), query 3 second (1/2)
    assert found["mrr@10"] == pytest.approx(0.75)
    # Relevant scores .5 .1 .9, others .6 .2: of 6 comparisons .5>.2, .9>.6 and .9>.2 hold
    assert found["roc_auc"] == pytest.approx(3 / 6)
    # By score .9+ .6- .5+ .2- .1+: precision at the relevant ones 1/1, 2/3, 3/5
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Unequal pairs: query 7 has three (1>.1 wrong, 1>0 right, .1>0 right), query 3 one (wrong)
    assert found["pair_accuracy"] == pytest.approx(2 / 4)
    # Ranks of score (.1 .2 .5 .6 .9): 3 1 5 4 2; of gain (0 0 .1 1 1): 4.5 4.5 3 1.5 1.5 in the same order of rows.
    # Deviations from 3: 0 -2 2 1 -1 and 1.5 1.5 0 -1.5 -1.5: products 0 -3 0 -1.5 1.5 = -3; norms sqrt(10), sqrt(9)
    assert found["spearman"] == pytest.approx(-3 / (np.sqrt(10) * 3))
    assert list(found) == list(METRICS)
    assert all(type(value) is float for value in found.values())


def test_ties_count_as_random_order():
    # One query, one relevant product (gain 1) among four with equal scores: every place is equally likely.
    rows = arrays((0, 0, False, 0.5), (0, 1, True, 0.5), (0, 0, False, 0.5), (0, 0, False, 0.5))
    found = evaluate(*rows)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / LOG2_3 + 1 / 2 + 1 / np.log2(5)) / 4)
    assert found["pair_accuracy"] == 0.5
    assert found["roc_auc"] == 0.5


def test_mrr_of_a_tie_below_the_top():
    # Rank 1 is irrelevant; then three tie, two of them relevant: first relevant at rank 2 (2/3) or 3 (1/3).
    rows = arrays((0, 0, False, 0.9), (0, 1, True, 0.5), (0, 1, True, 0.5), (0, 0, False, 0.5))
    assert evaluate(*rows)["mrr@10"] == pytest.approx(2 / 3 / 2 + 1 / 3 / 3)


def test_cutoff_at_ten():
    # Eleven products; the only good one is last: nothing within the first ten.
    rows = [(0, 0.0, False, 11 - i) for i in range(10)] + [(0, 1.0, True, 0)]
    found = evaluate(*arrays(*rows))
    assert found["ndcg@10"] == 0
    assert found["mrr@10"] == 0
    # Tied with the tenth it is in the ten half of the time, at rank 10.
    rows[-1] = (0, 1.0, True, 2)
    found = evaluate(*arrays(*rows))
    assert found["mrr@10"] == pytest.approx(0.5 / 10)
    assert found["ndcg@10"] == pytest.approx(0.5 / np.log2(11))


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_libraries(seed, decimals):
    query, gain, relevant, score = random_case(seed, decimals=decimals)
    ndcg, right, unequal = [], 0.0, 0.0
    for one in np.unique(query):
        g, s = gain[query == one], score[query == one]
        if g.max() > 0:
            ndcg.append(ndcg_score([g], [s], k=10) if len(g) > 1 else 1.0)
        pairs = sum(a != b for i, a in enumerate(g) for b in g[:i])
        if pairs:
            right += (somersd(g, s).statistic + 1) / 2 * pairs  # Somers' D leaves out pairs tied in its first argument
            unequal += pairs
    found = evaluate(query, gain, relevant, score)
    assert found["ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert found["pair_accuracy"] == pytest.approx(right / unequal)


def test_row_order_and_query_ids_do_not_matter():
    query, gain, relevant, score = random_case(3)
    order = np.random.default_rng(0).permutation(len(query))
    shuffled = evaluate(1000 - 7 * query[order], gain[order], relevant[order], score[order])
    assert shuffled == pytest.approx(evaluate(query, gain, relevant, score))


def test_bounds_of_perfect_and_reversed_order():
    query, gain, relevant, _ = random_case(4)
    best, worst = evaluate(query, gain, relevant, gain), evaluate(query, gain, relevant, -gain)
    assert best["ndcg@10"] == best["pair_accuracy"] == best["roc_auc"] == pytest.approx(1)
    assert worst["pair_accuracy"] == worst["roc_auc"] == 0
    assert worst["spearman"] == pytest.approx(-1)


def test_official_gain_is_named_and_apart():
    # S above C, ranked C first: the swapped mapping calls that the ideal order.
    query, gain, relevant, score = arrays((0, 0.1, True, 0.2), (0, 0.01, False, 0.8))
    found = evaluate(query, gain, relevant, score, official_gain=np.array([0.01, 0.1]))
    assert found[OFFICIAL_NDCG] == 1
    assert found["ndcg@10"] == pytest.approx((0.01 + 0.1 / LOG2_3) / (0.1 + 0.01 / LOG2_3))


@pytest.mark.parametrize(
    ("gain", "relevant", "score", "expected"),
    [
        # all pairs exact: order cannot matter
        ([1, 1, 1], [1, 1, 1], [0.1, 0.2, 0.3], (1, 0, 1, 0.5, 1, 0, 0.5)),
        ([0, 0, 0], [0, 0, 0], [0.1, 0.2, 0.3], (0, 0, 0, 0.5, 0, 0, 0.5)),
        # a scorer that gives everything the same score: AP is the share of relevant pairs
        (
            [1, 0, 0],
            [1, 0, 0],
            [0.1, 0.1, 0.1],
            ((1 + 1 / LOG2_3 + 0.5) / 3, (1 + 1 / LOG2_3 + 0.5) / 3, 11 / 18, 0.5, 1 / 3, 0, 0.5),
        ),
    ],
)
def test_undefined_metrics_stay_neutral_numbers(gain, relevant, score, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(np.zeros(3, int), np.array(gain, float), np.array(relevant, bool), np.array(score))
    assert tuple(found.values()) == pytest.approx(expected)


def test_undefined_names_what_labels_cannot_tell():
    query = np.array([0, 0, 1, 1])
    gain = np.array([1.0, 1.0, 1.0, 1.0])
    assert undefined(query, gain, gain > 0) == list(METRICS)
    # Labels differ between the queries but not within: only the global metrics mean something.
    gain = np.array([1.0, 1.0, 0.0, 0.0])
    assert undefined(query, gain, gain > 0) == ["ndcg@10", "ndcg@10_rankable", "mrr@10", "pair_accuracy"]
    gain = np.array([1.0, 0.1, 1.0, 1.0])
    assert undefined(query, gain, gain > 0) == ["mrr@10", "roc_auc", "average_precision"]
    assert undefined(query, gain, gain > 0.5) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_must_be_finite(bad):
    query, gain, relevant, score = random_case(0)
    score[3] = bad
    with pytest.raises(ValueError, match="1 of 400 scores are not finite"):
        evaluate(query, gain, relevant, score)


def test_arrays_must_fit():
    query, gain, relevant, score = random_case(0)
    with pytest.raises(ValueError, match="length"):
        evaluate(query, gain, relevant, score[1:])
    with pytest.raises(ValueError, match="below 0"):
        evaluate(query, gain - 1, relevant, score)
    with pytest.raises(ValueError, match="no judged pairs"):
        evaluate(query[:0], gain[:0], relevant[:0], score[:0])


def test_queries_of_equal_gains_do_not_dilute_the_rankable_ndcg():
    # The first query is in its ideal order, the second reversed, the third cannot be ranked.
    rows = arrays(
        *((0, 1, True, 0.9), (0, 0, False, 0.1)),
        *((1, 1, True, 0.1), (1, 0, False, 0.9)),
        *((2, 1, True, 0.1), (2, 1, True, 0.9)),
    )
    found = evaluate(*rows)
    assert found["ndcg@10_rankable"] == pytest.approx((1 + 1 / LOG2_3) / 2)
    assert found["ndcg@10"] == pytest.approx((2 + 1 / LOG2_3) / 3)
    assert rankable_queries(rows[0], rows[1]) == 2


@pytest.mark.parametrize("seed", range(3))
def test_rankable_queries_are_those_with_two_gains(seed):
    query, gain, relevant, score = random_case(seed, decimals=2)
    ids = [one for one in np.unique(query) if len(set(gain[query == one])) > 1]
    rows = np.isin(query, ids)
    assert rankable_queries(query, gain) == len(ids)
    expected = evaluate(query[rows], gain[rows], relevant[rows], score[rows])["ndcg@10"]
    assert evaluate(query, gain, relevant, score)["ndcg@10_rankable"] == pytest.approx(expected)


def test_query_ndcg_averages_to_the_metric():
    query, gain, relevant, score = random_case(7)
    each = query_ndcg(query, gain, score)
    assert set(each) == set(query[gain > 0].tolist())
    assert np.mean(list(each.values())) == pytest.approx(evaluate(query, gain, relevant, score)["ndcg@10"])
