"""Which weights are kept, by hand: the best epoch's, and the share of the update that does no harm."""

import pytest
import torch

from lorry.training.selection import CRITERION, SHARES, Best, choose_share, criterion


def metrics(*values):
    return dict(zip(CRITERION, values, strict=True)) | {"ndcg@10": 0.1}


def test_weights_are_chosen_by_the_mean_of_three_metrics():
    assert criterion(metrics(0.9, 0.6, 0.3)) == pytest.approx(0.6)


def test_the_best_keeps_a_copy_of_its_own():
    weights, best = {"a": torch.nn.Parameter(torch.ones(2))}, Best()
    for step, value in enumerate([0.5, 0.8, 0.8, 0.7], 1):
        weights["a"].data.fill_(float(step))
        best.offer(step, metrics(value, value, value), weights)
    assert (best.step, best.score) == (2, pytest.approx(0.8))
    assert weights["a"].tolist() == [4.0, 4.0]
    best.restore(weights)
    assert weights["a"].tolist() == [2.0, 2.0]
    weights["a"].data.fill_(9.0)
    assert best.weights["a"].tolist() == [2.0, 2.0]


def test_the_first_epoch_is_kept_even_if_it_ranks_nothing_right():
    best = Best()
    best.offer(7, metrics(0.0, 0.0, 0.0), {"a": torch.zeros(1)})
    assert best.step == 7


BASE = metrics(0.5, 0.5, 0.5)
FOUND = {
    "the best": ({1.0: (0.6, 0.6, 0.6), 0.75: (0.7, 0.6, 0.6), 0.5: (0.6, 0.6, 0.6), 0.25: (0.6, 0.5, 0.5)}, 0.75),
    "the largest of equals": (dict.fromkeys(SHARES, (0.6, 0.6, 0.6)), 1.0),
    "nowhere below": (
        {1.0: (0.9, 0.9, 0.49), 0.75: (0.9, 0.49, 0.9), 0.5: (0.49, 0.9, 0.9), 0.25: (0.5, 0.5, 0.6)},
        0.25,
    ),
    "none": (dict.fromkeys(SHARES, (0.9, 0.9, 0.499)), 0.0),
    "no better than the base": (dict.fromkeys(SHARES, (0.5, 0.5, 0.5)), 0.0),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_share_ranks_best_of_those_nowhere_below_the_base(case):
    found, expected = FOUND[case]
    asked = []

    def measure(share):
        asked.append(share)
        return metrics(*found[share])

    assert choose_share(BASE, measure) == expected
    assert asked == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("gain", "expected"), [(0.0005, 1.0), (0.0015, 0.5)])
def test_a_smaller_share_must_be_better_by_more_than_noise(gain, expected):
    found = {1.0: 0.6, 0.75: 0.59, 0.5: 0.6 + gain, 0.25: 0.55}
    assert choose_share(metrics(0.5, 0.5, 0.5), lambda share: metrics(*[found[share]] * 3)) == expected
