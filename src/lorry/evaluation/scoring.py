"""Encode a split, score its pairs, and measure the order that results."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.errors import UserError
from lorry.evaluation.metrics import evaluate
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.signals import StopRequestedError
from lorry.training.losses import PairLabels, batch_loss

# ESCI's official scorer hands trec_eval a table in which substitutes and complements have changed places.
OFFICIAL_SCORER_GAIN = {"E": 1.0, "S": 0.01, "C": 0.1, "I": 0.0}


@dataclass(frozen=True)
class SplitScores:
    """What a model makes of a split."""

    scores: np.ndarray
    """[N] cosine of each pair."""
    metrics: dict[str, float]
    loss: float | None = None
    """Mean training loss over the split's batches."""


def embed_all(
    encoder: Encoder, texts: TokenizedTexts, batch_size: int, stop: threading.Event | None = None
) -> torch.Tensor:
    """Return the embeddings [n, width] of all texts, fp32, on the CPU.

    Args:
        encoder: The model.
        texts: What to encode.
        batch_size: Most texts a forward pass.
        stop: Give up when this is set.

    Raises:
        StopRequestedError: `stop` was set.
    """
    out = torch.empty(len(texts), encoder.width)
    with torch.inference_mode():
        for rows in encoder.split(texts.lengths, most_texts=batch_size):
            if stop is not None and stop.is_set():
                raise StopRequestedError
            out[torch.from_numpy(rows)] = encoder.embed(texts.take(rows)).cpu()
    return out


def score(
    encoder: Encoder,
    texts: TokenizedTexts,
    pairs: Pairs,
    config: TrainConfig,
    stop: threading.Event | None = None,
    *,
    with_loss: bool = False,
) -> SplitScores:
    """Score every pair by the cosine of its two embeddings and measure the result."""
    all_ND = torch.nn.functional.normalize(embed_all(encoder, texts, config.eval_batch_size, stop), dim=-1)
    query_QD, text_ND = all_ND[: texts.queries], all_ND[texts.queries :]
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 65_536):
        part = slice(start, start + 65_536)
        query_BD, text_BD = (
            matrix[torch.from_numpy(rows[part].astype(np.int64))]
            for matrix, rows in ((query_QD, pairs.query), (text_ND, pairs.text))
        )
        scores[part] = (query_BD * text_BD).sum(-1).numpy()
    if not np.isfinite(scores).all():
        raise UserError("the model's similarities are not finite numbers", "Lower lr, or take another precision.")
    loss = _loss(config, query_QD, text_ND, pairs) if with_loss else None
    return SplitScores(scores, measure(pairs, scores), loss)


def measure(pairs: Pairs, scores: np.ndarray) -> dict[str, float]:
    """Return the metrics of these scores; with ESCI labels also nDCG as the official scorer computes it."""
    official = None
    if set(pairs.label_names) == set(OFFICIAL_SCORER_GAIN):
        official = np.array([OFFICIAL_SCORER_GAIN[name] for name in pairs.label_names])[pairs.label]
    return evaluate(pairs.query, pairs.gain, pairs.relevant, scores, official_gain=official)


def baselines(pairs: Pairs, seed: int) -> dict[str, dict[str, float]]:
    """Return the metrics of random order and of BM25."""
    from lorry.evaluation.baselines import bm25_scores, random_scores

    bm25 = bm25_scores(pairs.queries, pairs.texts, pairs.query, pairs.text)
    return {"random": measure(pairs, random_scores(len(pairs), seed)), "bm25": measure(pairs, bm25)}


def _loss(config: TrainConfig, query_QD: torch.Tensor, text_ND: torch.Tensor, pairs: Pairs) -> float:
    """Return the training loss, averaged over the pairs of a fixed order of batches."""
    plan = BatchSampler(pairs.query, config.batch_size, 1, seed=0)
    total = 0.0
    for step in range(plan.steps):
        rows = plan.batch(step)
        queries, query = np.unique(pairs.query[rows], return_inverse=True)
        texts, text = np.unique(pairs.text[rows], return_inverse=True)
        judged = judge(pairs, rows, query, text, torch.device("cpu"))
        total += batch_loss(config, query_QD[queries], text_ND[texts], judged).item() * len(rows)
    return total / max(len(pairs), 1)


def judge(pairs: Pairs, rows: np.ndarray, query: np.ndarray, text: np.ndarray, device: torch.device) -> PairLabels:
    """Return the labels of these pairs, whose queries and texts are numbered within the batch."""
    return PairLabels(
        torch.from_numpy(query).to(device),
        torch.from_numpy(text).to(device),
        torch.from_numpy(pairs.gain[rows]).to(device),
        torch.from_numpy(pairs.relevant[rows]).to(device),
    )
