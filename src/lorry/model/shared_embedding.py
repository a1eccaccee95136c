"""Embeddings of a whole table of texts, shared out over the ranks of a run."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from lorry.distributed.ranks import ALONE, Ranks
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.signals import StopRequestedError


def embed_shared(
    encoder: Encoder,
    texts: TokenizedTexts,
    batch_size: int = 0,
    stop: threading.Event | None = None,
    ranks: Ranks = ALONE,
    *,
    side: str = "both",
    everywhere: bool = True,
) -> Tensor:
    """Return what `embed_all` returns, each rank having encoded its share.

    Args:
        encoder: The model, the same on every rank.
        texts: What to encode.
        batch_size: Texts per forward pass; 0 for as many as suit the device.
        stop: Give up when this is set on any rank.
        ranks: Those that share the work.
        side: "query" for the queries alone, "document" for the product texts alone.
        everywhere: Whether all ranks need the embeddings; else rank 0 has them, and the others none.

    Raises:
        StopRequestedError: `stop` was set.
    """
    if ranks.alone:
        return embed_all(encoder, texts, batch_size, stop, side=side)
    first = texts.queries if side == "document" else 0
    last = texts.queries if side == "query" else len(texts)
    shares = ranks.shares(texts.lengths[first:last])
    own = texts.take(shares[ranks.rank] + first)
    share = TokenizedTexts(own.ids, np.append(0, np.cumsum(own.lengths)), len(own.lengths))
    own_PD, stopped = torch.empty(0, encoder.width), False
    try:
        if len(share):
            own_PD = embed_all(encoder, share, batch_size, stop)
    except StopRequestedError:
        stopped = True
    if ranks.any_after_work(stopped, "encoding texts"):
        raise StopRequestedError
    return ranks.collect(own_PD, shares, everywhere=everywhere)
