"""Attention over packed sequences: many texts in one row of tokens, no padding.

`Layout` says where each text lies in the row. Texts are packed in order of length, so texts of equal length are
neighbours and their queries, keys and values are a plain view `[texts, length]`: no mask and nothing gathered.
Where few texts share a length, neighbours of nearly equal length are padded to one bucket instead.

The function is registered with transformers under the name `lorry_packed`; every architecture that goes through
`AttentionInterface` uses it unchanged. transformers builds no mask for an implementation it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "lorry_packed"


@dataclass(frozen=True)
class Bucket:
    """Neighbouring texts that are attended to together."""

    start: int
    """First token in the packed row."""
    end: int
    """One past the last token."""
    texts: int
    length: int
    """Longest text of the bucket, in tokens."""
    rows: Tensor | None
    """[texts * length] token of each padded place, the bucket's first token where there is none; None: no padding."""
    places: Tensor | None
    """[end - start] padded place of each token; None: no padding."""
    padding: Tensor | None
    """[texts, 1, 1, length] True where there is no token; None: no padding."""


@dataclass(frozen=True)
class Layout:
    """Where each text lies in a packed row of T tokens."""

    lengths: Tensor
    """[n] tokens of each text, ascending."""
    starts: Tensor
    """[n] first token of each text."""
    positions: Tensor
    """[T] position of each token in its text."""
    buckets: tuple[Bucket, ...]


def lay_out(lengths: np.ndarray, device: torch.device) -> Layout:
    """Lay texts of these lengths (ascending, in tokens, each at least 1) side by side."""
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    buckets, first = [], 0
    for last in _cuts(lengths, device):
        buckets.append(_bucket(lengths[first:last], int(starts[first]), device))
        first = last
    return Layout(_tensor(lengths, device), _tensor(starts, device), _tensor(positions, device), tuple(buckets))


def _cuts(lengths: np.ndarray, device: torch.device) -> list[int]:
    """Return the end of each bucket: a new one begins where padding would cost more than another bucket does."""
    # Tokens of attention work that one more bucket is worth: kernel launches weigh more on a GPU.
    price = 2000 if device.type == "cpu" else 200_000
    ends, first = [], 0
    wasted = 0
    for index in range(1, len(lengths)):
        here, before = int(lengths[index]), int(lengths[index - 1])
        grown = (index - first) * (here * here - before * before)
        if here != before and wasted + grown > price:
            ends.append(index)
            first, wasted = index, 0
        else:
            wasted += grown
    return [*ends, len(lengths)]


def _bucket(lengths: np.ndarray, start: int, device: torch.device) -> Bucket:
    texts, longest, total = len(lengths), int(lengths[-1]), int(lengths.sum())
    if lengths[0] == longest:
        return Bucket(start, start + total, texts, longest, None, None, None)
    real = np.arange(longest) < lengths[:, None]  # [texts, length]
    places = np.flatnonzero(real)
    rows = np.zeros(texts * longest, np.int64)
    rows[places] = np.arange(total)
    padding = torch.from_numpy(~real)[:, None, None, :].to(device)
    return Bucket(start, start + total, texts, longest, _tensor(rows, device), _tensor(places, device), padding)


def _tensor(numbers: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int64)).to(device, non_blocking=True)


_current: list[Layout] = []


@contextmanager
def packed(layout: Layout) -> Iterator[None]:
    """Make `layout` the one that attention uses inside the `with` block."""
    _current.append(layout)
    try:
        yield
    finally:
        _current.pop()


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of the packed row; the signature is that of transformers' attention functions.

    Args:
        module: The attention layer; tells whether it is causal.
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: [1, key heads, T, width].
        attention_mask: Not used: the layout says it all.
        scaling: Factor on the scores; default 1 / sqrt(width).
        sliding_window: Tokens farther apart than this, less one, do not see each other.
        is_causal: Overrides the layer's own word.

    Returns:
        [1, T, heads, width] and None in place of the weights.
    """
    layout = _current[-1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped-query attention: each key head serves several query heads
        key, value = (item.repeat_interleave(groups, dim=1) for item in (key, value))
    out = PackedAttention.apply(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout,
        scale,
        causal,
        sliding_window,
    )
    return out[None], None


def _hidden(bucket: Bucket, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Return what no token of the bucket may see, True where hidden, or None: [texts or 1, 1, length, length]."""
    hidden = bucket.padding
    if causal or (window is not None and bucket.length > window):
        at = torch.arange(bucket.length, device=device)
        apart = at[:, None] - at[None, :]
        rule = torch.zeros_like(apart, dtype=torch.bool)
        if causal:
            rule |= apart < 0
        if window is not None:
            rule |= apart.abs() >= window
        hidden = rule[None, None] if hidden is None else hidden | rule
    return hidden


def _take(x_THD: Tensor, bucket: Bucket) -> Tensor:
    """Return the bucket's rows of [T, heads, width] as [texts, heads, length, width]."""
    part = x_THD[bucket.start : bucket.end]
    if bucket.rows is not None:
        part = part.index_select(0, bucket.rows)
    return part.view(bucket.texts, bucket.length, *part.shape[1:]).transpose(1, 2)


def _give(part: Tensor, bucket: Bucket, out_THD: Tensor) -> None:
    """Write [texts, heads, length, width] back into the bucket's rows of [T, heads, width]."""
    rows = part.transpose(1, 2)
    if bucket.places is None:
        out_THD[bucket.start : bucket.end].view(rows.shape).copy_(rows)
    else:
        flat = rows.reshape(bucket.texts * bucket.length, *rows.shape[2:])
        torch.index_select(flat, 0, bucket.places, out=out_THD[bucket.start : bucket.end])


class PackedAttention(torch.autograd.Function):
    """softmax(scale * Q K^T) V in every bucket, as one node of the graph.

    One node instead of a dozen a bucket, and gradients written straight into their packed place: padded places
    carry no gradient, so nothing has to be added up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        """Return [T, heads, width]; query, key and value have that shape too."""
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        weights = []
        for bucket in layout.buckets:
            q, k, v = (_take(x, bucket) for x in (query, key, value))
            scores = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
            hidden = _hidden(bucket, causal, window, query.device)
            if hidden is not None:
                scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
            probs = torch.softmax(scores, -1)
            _give(torch.matmul(probs, v), bucket, out)
            weights.append(probs)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value, each [T, heads, width]."""
        query, key, value, *weights = ctx.saved_tensors
        # One tensor holds all three, so that a fused projection gets its gradient in one piece.
        rows, heads, width = query.shape
        grads = torch.empty((rows, 3, heads, width), dtype=grad.dtype, device=grad.device)
        grad_q, grad_k, grad_v = grads.unbind(1)
        for bucket, probs in zip(ctx.layout.buckets, weights, strict=True):
            q, k, v, g = (_take(x, bucket) for x in (query, key, value, grad))
            if bucket.padding is not None:  # padded places repeat a real token: they must not pull on the keys
                g = g.masked_fill(bucket.padding.transpose(-1, -2), 0)
            _give(torch.matmul(probs.transpose(-1, -2), g), bucket, grad_v)
            through = torch.matmul(g, v.transpose(-1, -2))
            scores = torch._softmax_backward_data(through, probs, -1, probs.dtype).mul_(ctx.scale)
            _give(torch.matmul(scores, k), bucket, grad_q)
            _give(torch.matmul(scores.transpose(-1, -2), q), bucket, grad_k)
        return grad_q, grad_k, grad_v, None, None, None, None


def register() -> None:
    """Tell transformers of the packed attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
