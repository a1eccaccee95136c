"""How many tokens one forward pass may hold: measured on the model at hand, not guessed."""

from __future__ import annotations

import logging
import resource
import sys

import numpy as np
import torch
from torch import Tensor

from lorry.hardware import free_memory
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts

log = logging.getLogger("lorry")

PROBE_TOKENS = 1024
# Share of the free memory that activations may take; the rest is for gradients in transit and for other processes.
SHARE = 0.6


def tokens_that_fit(encoder: Encoder, texts: TokenizedTexts) -> int:
    """Return the maximum number of tokens in a forward pass that training has memory for, at least 1.

    Args:
        encoder: With adapters.
        texts: Those that it will be trained on; the longest are tried, since a token needs most memory there.
    """
    lengths = texts.lengths
    longest = np.argpartition(lengths, -min(len(lengths), PROBE_TOKENS))[-PROBE_TOKENS:]
    longest = longest[np.argsort(-lengths[longest], kind="stable")]
    rows = longest[: max(1, int((np.cumsum(lengths[longest]) <= PROBE_TOKENS).sum()))]
    # Adapted weights are kept too, however many tokens there are: two passes tell them from what a token keeps.
    some = rows[: len(rows) // 2]
    fewer = bytes_kept(encoder, texts, some) if len(some) else 0
    token = (bytes_kept(encoder, texts, rows) - fewer) / int(lengths[rows].sum() - lengths[some].sum())
    fixed = max(0.0, fewer - token * int(lengths[some].sum()))
    free = free_memory(encoder.device)
    fit = max(1, int((SHARE * free - fixed) / token))
    log.debug("a token keeps %.0f KB, %.1f GB are free: %d tokens fit", token / 1e3, free / 1e9, fit)
    return fit


def bytes_kept(encoder: Encoder, texts: TokenizedTexts, rows: np.ndarray) -> int:
    """Return the memory that a forward pass over these texts keeps for the backward pass, in bytes."""
    weights = {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = encoder.embed(texts.take(rows))
        total = sum(kept.values())  # while the graph still holds them: no address is given out twice
    del embeddings
    return total


def peak_memory(device: torch.device) -> int:
    """Return the maximum memory used so far, in bytes: the device's on CUDA, the process's elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch says that memory, of the GPU or of the machine, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
