"""The threshold and the probabilities that are made of a cosine."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from lorry.evaluation.threshold import fit_calibration, measure_calibration

RNG = np.random.default_rng(0)
SCORE = RNG.random(4000).astype(np.float32)
RELEVANT = RNG.random(4000) < 1 / (1 + np.exp(-(10 * SCORE - 4)))  # a logistic model is true of these


def test_no_other_threshold_has_a_better_f1():
    fitted = fit_calibration(RELEVANT, SCORE)
    best = max(f1_score(RELEVANT, value <= SCORE) for value in np.unique(SCORE))
    found = measure_calibration(fitted, RELEVANT, SCORE)
    assert found["f1"] == pytest.approx(best)
    chosen = fitted.threshold <= SCORE
    assert found["precision"] == pytest.approx(precision_score(RELEVANT, chosen))
    assert found["recall"] == pytest.approx(recall_score(RELEVANT, chosen))


def test_probabilities_are_those_of_the_model_that_made_the_labels():
    found = measure_calibration(fit_calibration(RELEVANT[:2000], SCORE[:2000]), RELEVANT[2000:], SCORE[2000:])
    assert (found["slope"], found["intercept"]) == (pytest.approx(10, abs=1), pytest.approx(-4, abs=0.5))
    assert found["calibration_error"] < 0.03
    bins = found["reliability"]
    assert sum(row["pairs"] for row in bins) == 2000
    assert all(row["low"] <= row["predicted"] <= row["high"] for row in bins)
    weighted = sum(row["pairs"] * abs(row["predicted"] - row["observed"]) for row in bins) / 2000
    assert found["calibration_error"] == pytest.approx(weighted)


def test_probabilities_that_are_wrong_elsewhere_have_an_error():
    fitted = fit_calibration(RELEVANT, SCORE)
    assert measure_calibration(fitted, ~RELEVANT, SCORE)["calibration_error"] > 0.3


def test_labels_of_one_kind_define_no_threshold():
    assert fit_calibration(np.ones(3, bool), SCORE[:3]) is None
    assert fit_calibration(np.zeros(3, bool), SCORE[:3]) is None


def test_where_nothing_relevant_is_found_the_figures_are_0():
    found = measure_calibration(fit_calibration(RELEVANT, SCORE), np.array([True, False]), np.array([-1.0, -1.0]))
    assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
