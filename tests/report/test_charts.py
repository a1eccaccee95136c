"""The charts: what is drawn and what is left out."""

import numpy as np

from lorry.report import charts
from lorry.report.similarities import spread_by_label


def test_nothing_logged_draws_nothing():
    assert charts.loss_curve([]) == ""
    assert charts.metric_curve([{"step": 0, "ndcg@10": 0.7}], {"ndcg@10": "nDCG@10"}) == ""  # one point is no curve


def test_a_long_run_draws_a_chart_of_bounded_size():
    noisy = np.random.default_rng(0).random(20_000).tolist()
    log = [{"step": step, "loss": loss} for step, loss in enumerate(noisy)]
    assert len(charts.loss_curve(log)) < 40_000
    points = [{"step": step, "roc_auc": value} for step, value in enumerate(noisy)]
    assert len(charts.metric_curve(points, {"roc_auc": "ROC-AUC"})) < 40_000


def test_rare_labels_are_left_out():
    label = np.r_[np.zeros(500, int), 1]
    (spread,) = spread_by_label(("common", "rare"), label, label * 0.1, label * 0.2)
    assert (spread.label, spread.pairs) == ("common", 500)
    assert "common  (500)" in charts.similarity_by_label([spread])
