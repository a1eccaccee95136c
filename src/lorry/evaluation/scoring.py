"""Encode a split, score its pairs, and measure the order that results."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.distributed.ranks import ALONE, Ranks
from lorry.errors import UserError
from lorry.evaluation import metrics
from lorry.model.encoder import Encoder
from lorry.model.shared_embedding import embed_shared
from lorry.model.tokens import TokenizedTexts
from lorry.names import METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.training.batches import make_batch
from lorry.training.objective import batch_loss

# ESCI's official scorer gives trec_eval a table in which substitutes and complements are swapped.
OFFICIAL_SCORER_GAIN = {"E": 1.0, "S": 0.01, "C": 0.1, "I": 0.0}
PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True)
class SplitScores:
    """What a model gives the pairs of a split."""

    scores: np.ndarray
    """[N] cosine of each pair."""
    metrics: dict[str, float]
    loss: float
    """Training loss, averaged over the pairs."""


def score(
    encoder: Encoder,
    texts: TokenizedTexts,
    pairs: Pairs,
    config: TrainConfig,
    stop: threading.Event | None = None,
    documents_TD: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> SplitScores:
    """Score every pair by the cosine of its two embeddings and measure the result.

    Args:
        encoder: The model.
        texts: The queries and product texts of the pairs.
        pairs: What to score.
        config: Says how, and which loss to compute.
        stop: Give up when this is set.
        documents_TD: Embeddings of the product texts by another model; None: `encoder` embeds them too.
        ranks: Those that share the texts to encode; rank 0 does the rest, and all get the result.

    Raises:
        StopRequestedError: `stop` was set.
        UserError: A similarity is not a finite number.
    """
    all_ND = embed_pairs(encoder, texts, config, stop, documents_TD, ranks)
    return score_embeddings(all_ND, texts, pairs, config, ranks)


def embed_pairs(
    encoder: Encoder,
    texts: TokenizedTexts,
    config: TrainConfig,
    stop: threading.Event | None = None,
    documents_TD: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the embeddings of queries and product texts [n, D], of length 1; on rank 0, and none on the others.

    The arguments are those of `score`.

    Raises:
        StopRequestedError: `stop` was set.
    """
    side = "both" if documents_TD is None else "query"
    all_ND = embed_shared(encoder, texts, config.eval_batch_size, stop, ranks, side=side, everywhere=False)
    if documents_TD is not None and ranks.first:
        all_ND = torch.cat([all_ND, documents_TD])
    return torch.nn.functional.normalize(all_ND, dim=-1, out=all_ND)  # in place: these may be gigabytes


def score_embeddings(
    all_ND: Tensor, texts: TokenizedTexts, pairs: Pairs, config: TrainConfig, ranks: Ranks = ALONE
) -> SplitScores:
    """Score every pair by the cosine of its two embeddings and measure the result.

    Args:
        all_ND: From `embed_pairs`.
        texts: As for `score`, like `pairs`, `config` and `ranks`.
        pairs: See `texts`.
        config: See `texts`.
        ranks: See `texts`.

    Raises:
        UserError: A similarity is not a finite number.
    """
    return ranks.from_first(lambda: _scored(all_ND, texts, pairs, config), "scoring pairs")


def cosines(pairs: Pairs, query_QD: Tensor, text_TD: Tensor) -> np.ndarray:
    """Return the dot product of each pair's embeddings, [N] float32, which for a length of 1 is their cosine."""
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        query_BD = query_QD[torch.from_numpy(pairs.query[part].astype(np.int64))]
        text_BD = text_TD[torch.from_numpy(pairs.text[part].astype(np.int64))]
        scores[part] = (query_BD * text_BD).sum(-1).numpy()
    return scores


def _scored(all_ND: Tensor, texts: TokenizedTexts, pairs: Pairs, config: TrainConfig) -> SplitScores:
    scores = cosines(pairs, all_ND[: texts.queries], all_ND[texts.queries :])
    if not np.isfinite(scores).all():
        raise UserError("the model's similarities are not finite numbers", "Lower lr, or take another precision.")
    return SplitScores(scores, measure(pairs, scores), _loss(config, all_ND, texts, pairs))


def measure(pairs: Pairs, scores: np.ndarray) -> dict[str, float]:
    """Return the metrics of these scores; with ESCI labels also nDCG as the official scorer computes it."""
    return metrics.evaluate(pairs.query, pairs.gain, pairs.relevant, scores, official_gain=official_scorer_gain(pairs))


def official_scorer_gain(pairs: Pairs) -> np.ndarray | None:
    """Return the gain of each pair by ESCI's official scorer, [N]; None where the labels are not ESCI's."""
    if not _has_official_scorer(pairs):
        return None
    gain: np.ndarray = np.array([OFFICIAL_SCORER_GAIN[name] for name in pairs.label_names])[pairs.label]
    return gain


def measurable(pairs: Pairs) -> list[str]:
    """Return the metrics that the labels of these pairs define."""
    undefined = metrics.undefined(pairs.query, pairs.gain, pairs.relevant)
    found = [name for name in METRICS if name not in undefined]
    official = [OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG] if "ndcg@10" in found and _has_official_scorer(pairs) else []
    return found + official


def baselines(pairs: Pairs, seed: int) -> dict[str, dict[str, float]]:
    """Return the metrics of random order and of BM25."""
    from lorry.evaluation.baselines import bm25_scores, random_scores

    bm25 = bm25_scores(pairs.queries, pairs.texts, pairs.query, pairs.text)
    return {"random": measure(pairs, random_scores(len(pairs), seed)), "bm25": measure(pairs, bm25)}


def _has_official_scorer(pairs: Pairs) -> bool:
    return set(pairs.label_names) == set(OFFICIAL_SCORER_GAIN)


def _loss(config: TrainConfig, all_ND: torch.Tensor, texts: TokenizedTexts, pairs: Pairs) -> float:
    """Return the training loss, averaged over the pairs of a fixed order of batches.

    Losses that learn from a teacher are 0 where it scored nothing: validation and test pairs need no scores of it.
    """
    if pairs.teacher is None and config.learns_from_teacher:
        pairs = replace(pairs, teacher=np.full(len(pairs), np.nan, np.float32))
    sampler = BatchSampler(pairs.query, config.batch_size, 1, seed=0)
    total = 0.0
    for step in range(sampler.steps):
        batch = make_batch(texts, pairs, sampler.batch(step), all_ND.device)
        total += batch_loss(config, *batch.sides(all_ND[batch.rows]), batch.labels).item() * batch.pairs
    return total / max(len(pairs), 1)
