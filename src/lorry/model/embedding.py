"""Embeddings of a whole table of texts, in as many forward passes as it takes."""

from __future__ import annotations

import threading

import torch

from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.signals import StopRequestedError


def embed_all(
    encoder: Encoder,
    texts: TokenizedTexts,
    batch_size: int = 0,
    stop: threading.Event | None = None,
    *,
    side: str = "both",
) -> torch.Tensor:
    """Return the embeddings [n, width] of texts, fp32, on the CPU.

    Args:
        encoder: The model.
        texts: What to encode.
        batch_size: Texts per forward pass; 0 for as many as suit the device.
        stop: Give up when this is set.
        side: "query" for the queries alone, "document" for the product texts alone.

    Raises:
        StopRequestedError: `stop` was set.
    """
    first = texts.queries if side == "document" else 0
    last = texts.queries if side == "query" else len(texts)
    out = torch.empty(last - first, encoder.width)
    lengths = texts.lengths[first:last]
    with torch.inference_mode(), encoder.prepared():
        for rows in encoder.split(lengths, max_texts=batch_size) if batch_size else encoder.passes(lengths):
            if stop is not None and stop.is_set():
                raise StopRequestedError
            out[torch.from_numpy(rows)] = encoder.embed_pass(texts.take(rows + first)).cpu()
    return out
