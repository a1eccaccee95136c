"""Which pairs make which batch: a function of (seed, epoch, step) alone.

Pairs of a query stay together, queries come in a new random order every epoch. So a batch encodes each query once, and
the products judged against it meet in one loss: the hard negatives that a shop already has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class BatchSampler:
    """The order of a training run.

    Args:
        query: [N] query of each pair.
        batch_size: Most pairs a batch.
        epochs: Passes over the pairs.
        seed: Of the order.
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
        """Return the pairs of this step, counted over all epochs; an epoch's batches differ by a pair at most."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        first, last = (at * len(self.query) // self.steps_per_epoch for at in (place, place + 1))
        return self._order[first:last]

    def _shuffled(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, epoch))
        rank = random.permutation(int(self.query.max()) + 1)
        within = random.permutation(len(self.query))  # a query that spans two batches is cut at random
        return within[np.argsort(rank[self.query[within]], kind="stable")]
