"""The cosine from which a product counts as relevant, and how far a probability made from it can be trusted.

Both are fitted on one split and measured on another. The threshold is the one of the best F1. Probabilities are those
of a logistic regression on the cosine (Platt 1999), so that two numbers are all that a shop needs to use them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 10  # of predicted probability, of equal width


@dataclass(frozen=True)
class Calibration:
    """What was fitted on one split; the probability of a cosine is 1 / (1 + exp(-(slope * cosine + intercept)))."""

    threshold: float
    slope: float
    intercept: float


def fit_calibration(relevant: np.ndarray, score: np.ndarray) -> Calibration | None:
    """Return threshold and probabilities that suit these pairs; None where all or none are relevant.

    Args:
        relevant: Whether each pair counts as relevant, [N].
        score: Its cosine, [N].
    """
    if relevant.all() or not relevant.any():
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(relevant, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    platt = LogisticRegression(C=1e6).fit(np.asarray(score, np.float64)[:, None], relevant)  # next to no penalty
    return Calibration(float(thresholds[f1[:-1].argmax()]), float(platt.coef_[0, 0]), float(platt.intercept_[0]))


def measure_calibration(fitted: Calibration, relevant: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Return what the threshold finds among these pairs, and how near the probabilities are to the truth.

    Args:
        fitted: From `fit_calibration`.
        relevant: Whether each pair counts as relevant, [N].
        score: Its cosine, [N].

    Returns:
        The fitted numbers; `precision`, `recall` and `f1` (0 where nothing is found); `reliability`: for each bin of
        predicted probability that has pairs their number, mean probability and share of relevant pairs; and
        `calibration_error`: the mean distance of these two over the pairs (Naeini et al. 2015).
    """
    found = score >= fitted.threshold
    right = int((found & relevant).sum())
    precision, recall = right / max(int(found.sum()), 1), right / max(int(relevant.sum()), 1)
    predicted = 1 / (1 + np.exp(-(fitted.slope * np.asarray(score, np.float64) + fitted.intercept)))
    index = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(index).tolist():
        held = index == number
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "pairs": int(held.sum()),
                "predicted": float(predicted[held].mean()),
                "observed": float(relevant[held].mean()),
            }
        )
    return {
        **asdict(fitted),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "calibration_error": sum(b["pairs"] * abs(b["predicted"] - b["observed"]) for b in bins) / len(score),
        "reliability": bins,
    }
