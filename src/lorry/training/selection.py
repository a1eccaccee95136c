"""Which weights a run keeps, chosen on the validation pairs: of which epoch, and how far from the base model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

log = logging.getLogger("lorry")

CRITERION = ("ndcg@10_rankable", "pair_accuracy", "roc_auc")
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the trained update, the largest first; the base model is 0."""
NOISE = 0.001  # by which the criterion of two shares differs for no reason

Metrics = Mapping[str, float]


@dataclass
class Best:
    """The weights of the epoch that ranked best so far."""

    step: int = 0
    """Optimizer steps at the end of that epoch; 0 for none yet."""
    score: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, step: int, metrics: Metrics, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of the weights if they rank better than those before."""
        score = criterion(metrics)
        if self.step == 0 or score > self.score:
            self.step, self.score = step, score
            self.weights = {name: weight.detach().cpu().clone() for name, weight in weights.items()}

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put the kept weights back."""
        for name, weight in weights.items():
            weight.data.copy_(self.weights[name])


def criterion(metrics: Metrics) -> float:
    """Return the mean of the metrics that weights are chosen by: order within a query, and a threshold across them."""
    return sum(metrics[name] for name in CRITERION) / len(CRITERION)


def choose_share(base: Metrics, measure: Callable[[float], Metrics]) -> float:
    """Return the share of the trained update to keep: what ranks best of those that are nowhere below the base model.

    A smaller share must be better by more than `NOISE`: to choose among nearly equal ones would follow chance.

    Args:
        base: Metrics of the base model on the validation pairs.
        measure: Returns the metrics of the model with a share of the update.

    Returns:
        One of `SHARES`, or 0: with none of them is every metric of the criterion as high as the base model's.
    """
    scores = {0.0: criterion(base)}
    for share in SHARES:
        found = measure(share)
        log.info("%.0f%% of the update: %s", 100 * share, " ".join(f"{name} {found[name]:.4f}" for name in CRITERION))
        if all(found[name] >= base[name] for name in CRITERION):
            scores[share] = criterion(found)
    best = max(scores, key=lambda share: scores[share])
    if best == 0:
        return best
    return next(share for share in SHARES if scores.get(share, 0.0) >= scores[best] - NOISE)
