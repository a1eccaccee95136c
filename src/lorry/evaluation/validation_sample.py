"""A few validation queries, measured many times an epoch: the curve of training at next to no cost."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.distributed.ranks import Ranks
from lorry.evaluation.metrics import rankable_queries
from lorry.evaluation.scoring import measure, score
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.training.progress import SAMPLE
from lorry.training.selection import CRITERION
from lorry.training.setup import TrainingSetup

FEWEST_QUERIES, MOST_QUERIES = 10, 200
# Tokens of all points of an epoch, as a share of those that the epoch trains on. A token takes about a third of the
# time in encoding, so that the points take about 2 % of the training.
SHARE_OF_TOKENS = 0.05


@dataclass(frozen=True)
class ValidationSample:
    """Validation queries that can be ranked, with all their judged products."""

    rows: np.ndarray
    """Their pairs among those of the split."""
    pairs: Pairs
    texts: TokenizedTexts
    documents_TD: Tensor | None
    """Embeddings of the product texts, where these are not trained."""

    def measure(self, setup: TrainingSetup, encoder: Encoder, stop: threading.Event | None) -> dict[str, float]:
        """Return the metrics that weights are chosen by, under names of their own; all ranks call this.

        Raises:
            StopRequestedError: `stop` was set.
        """
        ranks: Ranks = setup.ranks
        found = score(encoder, self.texts, self.pairs, setup.config, stop, self.documents_TD, ranks)
        return _named(found.metrics)

    def of_all(self, scores: np.ndarray) -> dict[str, float]:
        """Return the same from the scores [N] of all pairs of the split."""
        return _named(measure(self.pairs, scores[self.rows]))


def sample_validation(setup: TrainingSetup) -> ValidationSample | None:
    """Choose queries by the seed, as many as are cheap to measure; None where no point is wanted or can be measured."""
    config, pairs, texts = setup.config, setup.splits["validation"], setup.texts["validation"]
    if not config.evals_per_epoch or not rankable_queries(pairs.query, pairs.gain):
        return None
    lowest, highest = (np.full(len(pairs.queries), fill, np.float32) for fill in (np.inf, -np.inf))
    np.minimum.at(lowest, pairs.query, pairs.gain)
    np.maximum.at(highest, pairs.query, pairs.gain)
    tokens = np.bincount(pairs.query, texts.lengths_of(pairs.text + texts.queries), len(pairs.queries))
    shuffled = np.random.default_rng(config.seed).permutation(np.flatnonzero(lowest < highest))
    affordable = SHARE_OF_TOKENS * _tokens_per_epoch(setup) / config.evals_per_epoch
    many = int((np.cumsum(tokens[shuffled]) <= affordable).sum())
    chosen = shuffled[: min(max(many, FEWEST_QUERIES), MOST_QUERIES)]
    rows = np.flatnonzero(np.isin(pairs.query, chosen))
    used = np.unique(pairs.text[rows])
    own = texts.take(np.concatenate([np.sort(chosen), used + texts.queries]))
    offsets = np.append(0, np.cumsum(own.lengths))
    documents_TD = setup.documents.get("validation")
    return ValidationSample(
        rows,
        pairs.select(rows),
        TokenizedTexts(own.ids, offsets, len(chosen)),
        None if documents_TD is None else documents_TD[used],
    )


def _tokens_per_epoch(setup: TrainingSetup) -> int:
    pairs, texts = setup.splits["train"], setup.texts["train"]
    return int(texts.lengths_of(pairs.text + texts.queries).sum() + texts.lengths[: texts.queries].sum())


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"{SAMPLE}{name}": metrics[name] for name in CRITERION}
