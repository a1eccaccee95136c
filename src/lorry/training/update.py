"""One update: a batch's pairs, the gradients of its loss, and what to do where memory does not hold it whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.errors import UserError
from lorry.evaluation.scoring import judge
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.training.losses import PairLabels, batch_loss
from lorry.training.memory import is_exhausted

log = logging.getLogger("lorry")


@dataclass(frozen=True)
class Batch:
    """Pairs of a batch and the unique texts they need."""

    rows: np.ndarray
    """[n] rows in the table of texts: the unique queries, then the unique product texts."""
    queries: int
    judged: PairLabels
    pairs: int


def make_batch(texts: TokenizedTexts, pairs: Pairs, chosen: np.ndarray, device: torch.device) -> Batch:
    """Gather what a step needs of the chosen pairs: each unique text once."""
    queries, query = np.unique(pairs.query[chosen], return_inverse=True)
    products, text = np.unique(pairs.text[chosen], return_inverse=True)
    rows = np.concatenate([queries, products.astype(np.int64) + texts.queries])
    return Batch(rows, len(queries), judge(pairs, chosen, query, text, device), len(chosen))


def update_within_memory(
    encoder: Encoder,
    texts: TokenizedTexts,
    batch: Batch,
    config: TrainConfig,
    step: int,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler,
    most: int,
) -> tuple[Tensor, int]:
    """Call `update`; where memory runs out, again with parts of half the tokens, as often as it takes.

    Returns:
        The loss, and the most tokens of a part that there was memory for.

    Raises:
        UserError: Not even one text at a time fits.
    """
    lengths = texts.lengths_of(batch.rows)
    while True:
        try:
            return update(encoder, texts, batch, config, step, accelerator, scaler, most), most
        except RuntimeError as error:
            if not is_exhausted(error):
                raise
        tokens, longest = min(most or int(lengths.sum()), int(lengths.sum())), int(lengths.max())
        if tokens <= longest:
            raise UserError(
                f"there is no memory for a single text of {longest} tokens",
                "Lower max_length, or take a smaller model.",
            )
        for weight in encoder.adapters().values():
            weight.grad = None  # what came of the parts before
        if encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        most = max(tokens // 2, longest)
        log.warning("memory ran out on %d tokens: from now on at most %d go in one forward pass", tokens, most)


def update(
    encoder: Encoder,
    texts: TokenizedTexts,
    batch: Batch,
    config: TrainConfig,
    step: int,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler,
    most: int = 0,
) -> Tensor:
    """Add the gradients of the batch's loss to the adapters and return the loss.

    A batch of more than `most` tokens (0: any number) is encoded in parts: first without a graph, to get the loss and
    its gradient at every embedding; then part by part with one, each pulling its own share back. In-batch losses need
    this, since they compare texts of different parts. Gao et al. 2021 (GradCache), https://arxiv.org/abs/2101.06983
    """

    def loss_of(embeddings_ND: Tensor) -> Tensor:
        query_QD, text_ND = embeddings_ND.split([batch.queries, len(batch.rows) - batch.queries])
        return batch_loss(config, query_QD, text_ND, batch.judged)

    lengths = texts.lengths_of(batch.rows)
    parts = encoder.split(lengths, most) if most and lengths.sum() > most else []
    if len(parts) < 2:
        loss = loss_of(_embed(encoder, texts, batch.rows, config, step, 0))
        accelerator.backward(scaler.scale(loss))
        return loss.detach()
    with torch.no_grad():
        pieces = [_embed(encoder, texts, batch.rows[part], config, step, at) for at, part in enumerate(parts)]
    whole = torch.from_numpy(np.concatenate(parts))
    embeddings_ND = torch.empty_like(torch.cat(pieces))
    embeddings_ND[whole] = torch.cat(pieces)
    embeddings_ND.requires_grad_()
    loss = loss_of(embeddings_ND)
    accelerator.backward(scaler.scale(loss))
    assert embeddings_ND.grad is not None
    for at, part in enumerate(parts):
        piece = _embed(encoder, texts, batch.rows[part], config, step, at)
        piece.backward(embeddings_ND.grad[torch.from_numpy(part)])
    return loss.detach()


def _embed(
    encoder: Encoder, texts: TokenizedTexts, rows: np.ndarray, config: TrainConfig, step: int, part: int
) -> Tensor:
    if config.lora_dropout > 0:
        # The same dropout in both passes over a part, and in a run that was stopped and continued.
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step, part)).generate_state(1)[0]))
    return encoder.embed(texts.take(rows), dropout=True)
