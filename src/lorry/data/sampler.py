"""Which pairs are in which batch: a function of seed, epoch and step only.

The pairs of a query stay together, and queries are shuffled in every epoch. So each query of a batch is encoded once,
and all products judged for it are in the same loss: they are hard negatives that the shop already has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class BatchSampler:
    """The order of a training run.

    Args:
        query: [N] query of each pair.
        batch_size: Maximum pairs per batch.
        epochs: Passes over the pairs.
        seed: Seed of the order.
    """

    query: np.ndarray
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        self.steps_per_epoch = -(-len(self.query) // self.batch_size)
        self.steps = self.steps_per_epoch * self.epochs
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Return the pairs of a step, counted over all epochs; batch sizes within an epoch differ by at most one."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        first, last = (at * len(self.query) // self.steps_per_epoch for at in (place, place + 1))
        return self._order[first:last]

    def epoch(self, step: int) -> float:
        """Return the epochs that are done after `step` steps."""
        return step / self.steps_per_epoch

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        rank = rng.permutation(int(self.query.max()) + 1)
        within = rng.permutation(len(self.query))  # the pairs of a query that spans two batches are divided at random
        return within[np.argsort(rank[self.query[within]], kind="stable")]
