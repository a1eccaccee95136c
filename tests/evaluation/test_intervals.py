"""How sure a difference is, against libraries on repeated rows and against known differences."""

import itertools
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from test_metrics import arrays, random_case

from lorry.evaluation import intervals
from lorry.evaluation.intervals import compare
from lorry.evaluation.metrics import evaluate, query_ndcg
from lorry.names import METRICS


@pytest.mark.parametrize("seed", range(8))
def test_weighted_metrics_are_those_of_the_rows_repeated(seed):
    query, gain, relevant, score = random_case(seed, decimals=1)  # with ties
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 3, (2, query.max() + 1))[:, query]  # some queries are not drawn
    orders = intervals._Order.of(gain), intervals._Order.of(score)
    found = intervals._weighted(weight.astype(float), relevant, *orders)
    for draw in range(2):
        rows = np.repeat(np.arange(len(query)), weight[draw])
        assert found["roc_auc"][draw] == pytest.approx(roc_auc_score(relevant[rows], score[rows]))
        assert found["average_precision"][draw] == pytest.approx(average_precision_score(relevant[rows], score[rows]))
        assert found["spearman"][draw] == pytest.approx(spearmanr(score[rows], gain[rows]).statistic)


@pytest.mark.parametrize("seed", range(3))
def test_p_is_the_share_of_sign_flips_that_change_as_much(seed):
    # With eight queries every flip can be tried, and none is left to chance.
    query, gain, relevant, score = random_case(seed, pairs=60, queries=8, decimals=9)
    tuned = score + 0.2 * gain
    before, after = query_ndcg(query, gain, score), query_ndcg(query, gain, tuned)
    difference = np.array([after[one] - before[one] for one in before])
    sums = np.array([difference @ signs for signs in itertools.product([-1, 1], repeat=len(difference))])
    as_much = np.abs(sums) >= abs(difference.sum()) - 1e-12
    assert compare(query, gain, relevant, score, tuned, seed=0)["ndcg@10"].p == pytest.approx(as_much.mean())


def test_intervals_are_those_of_queries_drawn_one_by_one():
    query, gain, relevant, score = random_case(10, pairs=240, queries=30, decimals=2)
    tuned = score + 0.1 * gain
    rows_of = [np.flatnonzero(query == one) for one in range(30)]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        parts = [rows_of[one] for one in rng.integers(0, 30, 30)]
        rows, new_query = np.concatenate(parts), np.repeat(np.arange(30), [len(part) for part in parts])
        before, after = (evaluate(new_query, gain[rows], relevant[rows], s[rows]) for s in (score, tuned))
        drawn.append([after[name] - before[name] for name in METRICS])
    lows, highs = np.percentile(drawn, [2.5, 97.5], axis=0)
    found = compare(query, gain, relevant, score, tuned, seed=0)
    for name, low, high in zip(METRICS, lows, highs, strict=True):
        near = 0.15 * (high - low)  # 400 draws place the ends no better
        assert found[name].low == pytest.approx(low, abs=near), name
        assert found[name].high == pytest.approx(high, abs=near), name


def test_better_and_worse_are_told_in_every_metric():
    query, gain, relevant, noise = random_case(5, pairs=2000, queries=200, decimals=9)
    found = compare(query, gain, relevant, noise, noise + 0.3 * gain, seed=1)
    assert set(found) == set(METRICS)
    for name, change in found.items():
        assert 0 < change.low < change.change < change.high < 1, name
        assert change.p < 0.01, name
    for name, change in compare(query, gain, relevant, noise, noise - 0.3 * gain, seed=1).items():
        assert -1 < change.low < change.change < change.high < 0, name
        assert change.p < 0.01, name


def test_a_difference_is_rarely_seen_where_there_is_none():
    # Two random scorers: a 95 % interval leaves 0 out in about one case of twenty, and so often is p below .05.
    misses, small = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0)
    for seed in range(60):
        query, gain, relevant, score = random_case(seed, decimals=9)
        other = np.random.default_rng(seed + 1000).random(len(score))
        for name, change in compare(query, gain, relevant, score, other, seed=seed, resamples=300).items():
            misses[name] += not change.low < 0 < change.high
            small[name] += change.p < 0.05
    assert max(misses.values()) <= 8, misses
    assert max(small.values()) <= 8, small


def test_the_change_is_that_of_the_metrics_and_repeats():
    query, gain, relevant, score = random_case(6)
    tuned = score + 0.2 * gain
    found = compare(query, gain, relevant, score, tuned, seed=3)
    before, after = evaluate(query, gain, relevant, score), evaluate(query, gain, relevant, tuned)
    for name, change in found.items():
        assert change.change == pytest.approx(after[name] - before[name]), name
        assert change.low < change.change < change.high
    assert found == compare(query, gain, relevant, score, tuned, seed=3)
    assert found != compare(query, gain, relevant, score, tuned, seed=4)


def test_a_model_does_not_differ_from_itself():
    query, gain, relevant, score = random_case(7)
    for change in compare(query, gain, relevant, score, score, seed=0).values():
        assert (change.change, change.low, change.high, change.p) == (0, 0, 0, 1)


def test_drawing_in_pieces_gives_the_same(monkeypatch):
    query, gain, relevant, score = random_case(8)
    whole = compare(query, gain, relevant, score, score + 0.1 * gain, seed=2)
    monkeypatch.setattr(intervals, "CELLS", 3 * len(query))
    pieces = compare(query, gain, relevant, score, score + 0.1 * gain, seed=2)
    assert set(pieces) == set(METRICS)
    for name, change in whole.items():
        assert astuple(pieces[name]) == pytest.approx(astuple(change), abs=1e-12), name


def test_many_queries_and_pairs_get_fewer_draws(monkeypatch):
    query, gain, relevant, score = random_case(11)
    monkeypatch.setattr(intervals, "WORK", 150 * len(query))
    for name, change in compare(query, gain, relevant, score, gain, seed=0).items():
        draws = 150 if name in ("roc_auc", "average_precision", "spearman") else 1000
        assert change.p == pytest.approx(2 / (draws + 1)), name  # the least there is with so many draws
    monkeypatch.setattr(intervals, "WORK", 1)
    for name, change in compare(query, gain, relevant, score, gain, seed=0).items():
        assert change.p == pytest.approx(2 / 101), name


def test_what_cannot_be_compared_is_left_out():
    one_query = arrays((0, 1, True, 0.1), (0, 0, False, 0.2))
    assert compare(*one_query, one_query[3], seed=0) == {}
    query, gain, relevant, score = random_case(9)
    everything = np.ones_like(relevant)
    found = compare(query, gain, everything, score, score[::-1].copy(), seed=0)
    assert not {"roc_auc", "average_precision"} & set(found)
    assert compare(query, np.ones_like(gain), everything, score, score[::-1].copy(), seed=0) == {}
    by_query = np.where(query % 2 == 0, 1.0, 0.0)  # labels differ between queries alone
    found = compare(query, by_query, by_query > 0, score, score[::-1].copy(), seed=0)
    assert set(found) == {"roc_auc", "average_precision", "spearman"}
