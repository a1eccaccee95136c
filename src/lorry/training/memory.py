"""How many tokens one forward pass may hold: measured on the model at hand, not guessed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts

log = logging.getLogger("lorry")

PROBE_TOKENS = 1024
# Share of the free memory that activations may take; the rest is for gradients on their way and for other processes.
SHARE = 0.6


def tokens_that_fit(encoder: Encoder, texts: TokenizedTexts) -> int:
    """Return the most tokens of a forward pass that training has memory for; 0 where free memory is not known.

    Args:
        encoder: With adapters.
        texts: Those that it will be trained on; the longest are tried, for a token costs most in them.
    """
    free = free_memory(encoder.device)
    if not free:
        return 0
    lengths = texts.lengths
    longest = np.argpartition(lengths, -min(len(lengths), PROBE_TOKENS))[-PROBE_TOKENS:]
    longest = longest[np.argsort(-lengths[longest], kind="stable")]
    rows = longest[: max(1, int((np.cumsum(lengths[longest]) <= PROBE_TOKENS).sum()))]
    kept = bytes_kept(encoder, texts, rows) / int(lengths[rows].sum())
    most = int(SHARE * free / kept)
    log.debug("a token keeps %.0f KB, %.1f GB are free: %d tokens fit", kept / 1e3, free / 1e9, most)
    return most


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


def free_memory(device: torch.device) -> int:
    """Return the memory that this process can still take on the device, in bytes; 0 where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = []
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        return 0  # no Linux
    groups = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
    for limit, used in groups:  # of a container, by the second and the first version of control groups
        try:
            free.append(int(_of_group(limit)) - int(_of_group(used)))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(min(free), 1)


def _of_group(name: str) -> str:
    return Path("/sys/fs/cgroup", name).read_text("utf-8")


def is_exhausted(error: RuntimeError) -> bool:
    """Tell whether an error of PyTorch's says that memory, of the GPU or of the machine, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
