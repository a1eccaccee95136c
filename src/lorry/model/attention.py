"""Attention over packed texts: the function that transformers' models call in place of their own.

It is registered with transformers as `lorry_packed`; every architecture that goes through `AttentionInterface` uses it
unchanged and hands it the layout as a keyword argument of the forward call (`packed_layout`). transformers builds no
mask for an implementation that it does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorry.model.packing import PackedLayout

NAME = "lorry_packed"
# Attention scores computed at once on a CPU: as many as its caches hold (4 MB in fp32).
SCORES_PER_BLOCK = 1 << 20


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    relative_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of the packed row; the signature is that of transformers' attention functions.

    Args:
        module: The attention layer; says whether it is causal.
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: [1, key heads, T, width].
        attention_mask: Not used: the layout says which tokens see each other.
        packed_layout: Where each text lies in the row.
        scaling: Factor on the scores; default 1 / sqrt(width).
        sliding_window: Tokens this far apart or farther do not see each other.
        is_causal: Overrides what the layer says.
        relative_bias: [heads, 2 * widest line - 1] added to the scores of a key so many places before (first) to after
            (last) the query.

    Returns:
        [1, T, heads, width] and None in place of the weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped-query attention: each key head serves several query heads
        key, value = (item.repeat_interleave(groups, dim=1) for item in (key, value))
    # Under autocast some models normalise queries and keys, not values, in fp32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    own = query.device.type == "cpu" and not (torch.is_inference_mode_enabled() and _sdpa_is_faster(value.dtype))
    attention = PackedAttention.apply if own else attend_with_sdpa
    q, k, v = (item.squeeze(0).transpose(0, 1) for item in (query, key, value))
    relative = None if relative_bias is None else relative_bias.float()  # its gradient is a long sum
    return attention(q, k, v, relative, packed_layout, scale, causal, sliding_window)[None], None


@functools.cache
def _sdpa_is_faster(dtype: torch.dtype) -> bool:
    """Return whether PyTorch's CPU kernel encodes faster than `PackedAttention`.

    In 16 bits it does with AMX alone, and there it needs AVX-512: it fails where `ATEN_CPU_CAPABILITY` forbids that.
    """
    with_amx = torch.cpu._is_amx_tile_supported() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return dtype is torch.float32 or with_amx


def attend_with_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor | None,
    layout: PackedLayout,
    scale: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Return the same as `PackedAttention`, through PyTorch's own kernels: [T, heads, width].

    For GPUs, where the memory-efficient kernel takes a mask in fp16 and bf16 and runs on every capability from 5.0 on,
    and for encoding on CPUs where PyTorch's kernel is the faster one.
    """
    sizes = [group.end - group.start for group in layout.groups]
    pieces = []
    each = zip(layout.groups, *(_split(item, sizes) for item in (query, key, value)), strict=True)
    for index, (group, *parts) in enumerate(each):
        q, k, v = (part.unflatten(0, (group.lines, group.width)).transpose(1, 2) for part in parts)
        bias = layout.bias(index, causal, window, query.dtype)
        if relative is not None:
            bias = _with_relative(bias, relative, layout, index, query.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _split(item: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return item.split(sizes) if len(sizes) > 1 else (item,)  # the gradient of a split is a copy


def _with_relative(
    bias: Tensor | None, relative_HR: Tensor, layout: PackedLayout, index: int, dtype: torch.dtype
) -> Tensor | None:
    """Return a group's bias [1 or lines, heads, width, width] with that by relative position, made for all layers."""
    key = ("relative", index, dtype)
    if key not in layout.biases:
        by_place = _by_place(relative_HR, layout.groups[index].width).to(dtype)[None]
        layout.biases[key] = by_place if bias is None else bias + by_place
    return layout.biases[key]


def _by_place(relative_HR: Tensor, width: int) -> Tensor:
    """Return the bias [heads, width, width] of every key (last) for every query of a line, by their distance."""
    middle = relative_HR.shape[1] // 2
    near = relative_HR[:, middle - width + 1 : middle + width]
    return near.unfold(1, width, 1).flip(1)  # row i begins at distance -i


class PackedAttention(torch.autograd.Function):
    """softmax(scale * Q K^T) V in every line, as one node of the graph, for training on CPUs.

    Scores are made and used a few lines at a time, so that they stay in the processor's caches. The backward pass makes
    those of wide lines again: kept, they would take more memory than anything else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        relative: Tensor | None,
        layout: PackedLayout,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        """Return [T, heads, width]; query, key and value have that shape too; `relative` as in `attend`."""
        ctx.layout, ctx.scale, ctx.causal, ctx.window = layout, scale, causal, window
        out, kept = torch.empty(query.shape, dtype=query.dtype), list[Tensor]()
        for block in _blocks(layout, query, relative, causal, window):
            probs = block.probabilities(block.take(query) * scale, block.take(key))
            block.give(torch.bmm(probs, block.take(value)), out)
            kept += [probs] if block.shared else []
        ctx.save_for_backward(query, key, value, relative, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value, each [T, heads, width], and that of `relative`."""
        query, key, value, relative, *kept = ctx.saved_tensors
        grad_relative = torch.zeros_like(relative) if ctx.needs_input_grad[3] else None
        # One tensor holds all three, so that a fused projection gets its gradient in one piece.
        rows, heads, width = grad.shape
        grads = torch.empty((rows, 3, heads, width), dtype=grad.dtype)
        grad_q, grad_k, grad_v = grads.unbind(1)
        for block in _blocks(ctx.layout, grad, relative, ctx.causal, ctx.window):
            q, k, v, g = block.take(query) * ctx.scale, block.take(key), block.take(value), block.take(grad)
            probs = kept.pop(0) if block.shared else block.probabilities(q, k)
            block.give(torch.bmm(probs.transpose(1, 2), g), grad_v)
            through = torch.bmm(g, v.transpose(1, 2))
            scores = torch._softmax_backward_data(through, probs, -1, probs.dtype)
            block.give(torch.bmm(scores, k).mul_(ctx.scale), grad_q)
            block.give(torch.bmm(scores.transpose(1, 2), q), grad_k)
            if grad_relative is not None:
                block.add_by_distance(scores, grad_relative)
        return grad_q, grad_k, grad_v, grad_relative, None, None, None, None


@dataclass(frozen=True)
class LineBlock:
    """Lines of a group that are computed at once; matrices are [lines * heads, width of the line, …]."""

    start: int
    end: int
    lines: int
    shared: bool
    hidden: Tensor | None
    """Bias that hides tokens from each other; broadcasts to [lines, heads, width, width]."""
    relative: Tensor | None
    """[heads, width, width] bias by relative position."""

    def take(self, x_THD: Tensor) -> Tensor:
        """Return this block of [T, heads, D] as [lines * heads, width, D]."""
        lines: Tensor = x_THD[self.start : self.end].unflatten(0, (self.lines, -1))
        return lines.transpose(1, 2).flatten(0, 1)

    def give(self, x: Tensor, out_THD: Tensor) -> None:
        """Write [lines * heads, width, D] into this block of [T, heads, D]."""
        out_THD[self.start : self.end].unflatten(0, (self.lines, -1)).copy_(
            x.unflatten(0, (self.lines, -1)).transpose(1, 2)
        )

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return softmax(Q K^T + biases): [lines * heads, width, width]."""
        scores = torch.bmm(q, k.transpose(1, 2))
        for bias in (self.relative, self.hidden):
            if bias is not None:
                scores.unflatten(0, (self.lines, -1)).add_(bias)
        return torch.softmax(scores, -1)

    def add_by_distance(self, scores: Tensor, out_HR: Tensor) -> None:
        """Add up [lines * heads, width, width] by head and distance of places in fp32 [heads, 2 * widest line - 1]."""
        sums = scores.unflatten(0, (self.lines, -1)).sum(0, dtype=torch.float32)
        place = torch.arange(sums.shape[-1])
        distance = place[None, :] - place[:, None] + out_HR.shape[1] // 2
        out_HR.index_add_(1, distance.flatten(), sums.flatten(1))


def _blocks(
    layout: PackedLayout, query_THD: Tensor, relative_HR: Tensor | None, causal: bool, window: int | None
) -> Iterator[LineBlock]:
    heads = query_THD.shape[1]
    for index, group in enumerate(layout.groups):
        bias = layout.bias(index, causal, window, query_THD.dtype)
        relative = None if relative_HR is None else _by_place(relative_HR, group.width).to(query_THD.dtype)
        max_lines = max(1, SCORES_PER_BLOCK // (heads * group.width**2))
        for first in range(0, group.lines, max_lines):
            lines = min(max_lines, group.lines - first)
            some = bias if bias is None or len(bias) == 1 else bias[first : first + lines]
            start = group.start + first * group.width
            yield LineBlock(start, start + lines * group.width, lines, group.shared, some, relative)


def register() -> None:
    """Make the packed attention known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
