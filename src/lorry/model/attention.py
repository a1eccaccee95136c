"""Attention over packed sequences: many texts in one row of tokens, next to no padding.

`Layout` says where each text lies. The row is cut into lines: a text of more than LINE tokens has a line of its own,
shorter ones share lines of LINE tokens and are hidden from each other. Lines of one width lie side by side, so queries,
keys and values are plain views `[lines, width]`: nothing is gathered, and few shapes occur, for which the matrix
library prepares its kernels once. What the lines leave empty is 1 to 4 % of the tokens.

The function is registered with transformers under the name `lorry_packed`; every architecture that goes through
`AttentionInterface` uses it unchanged. transformers builds no mask for an implementation it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "lorry_packed"
LINE = 64  # tokens of a line that short texts share
STEP = 8  # tokens by which the widths of other lines differ
# Attention scores that are worked on at once, on a CPU: as many as its caches hold (4 MB in fp32).
CHUNK = 1 << 20


@dataclass(frozen=True)
class Group:
    """Neighbouring lines of one width."""

    start: int
    """First place in the packed row."""
    lines: int
    width: int
    """Places in a line."""
    texts: Tensor
    """[lines, width] number of the text in each place, in the order they were given in; -1 where there is none."""
    positions: Tensor
    """[lines, width] position of each token in its text."""
    shared: bool
    """Whether a line may hold several texts."""

    @property
    def end(self) -> int:
        """One past the last place."""
        return self.start + self.lines * self.width


@dataclass(frozen=True)
class PackedLayout:
    """Where each of n texts lies in a packed row of T places."""

    tokens: np.ndarray
    """[T] which token of the texts, laid end to end as they were given, is in each place; -1 where there is none."""
    groups: tuple[Group, ...]
    positions: Tensor
    """[T] position of each token in its text."""
    starts: Tensor
    """[n] first place of each text, in the order in which they were given."""
    lengths: Tensor
    """[n] tokens of each text, in that order."""
    segments: Tensor
    """[n + lines] places of each text and of each line's empty rest, in packed order: they add up to T."""
    order: Tensor
    """[n] segment of each text."""
    biases: dict[tuple[Any, ...], Tensor | None] = field(default_factory=dict, repr=False)
    """What `bias` has made for this batch: every layer asks for the same."""

    def bias(self, index: int, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return what to add to the scores of a group so that no token sees what is hidden from it.

        Args:
            index: Number of the group.
            causal: Whether a token sees none that follow it.
            window: Tokens farther apart than this, less one, do not see each other.
            dtype: Of the scores.

        Returns:
            Something that broadcasts to [lines, heads, width, width], or None where nothing is hidden.
        """
        key = (index, causal, window, dtype)
        if key not in self.biases:
            hidden = _hidden(self.groups[index], causal, window)
            if hidden is not None:  # half of the lowest number: a score added to it stays finite
                low = torch.finfo(dtype).min / 2
                hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, low)
            self.biases[key] = hidden
        return self.biases[key]


def _hidden(group: Group, causal: bool, window: int | None) -> Tensor | None:
    """Return True where a token (third dimension) must not see another (fourth), or None: [lines, 1, 1 or w, w]."""
    if group.shared:
        hidden = group.texts[:, :, None] != group.texts[:, None, :]
        at = group.positions
    else:
        hidden = (group.texts < 0)[:, None, :]
        at = torch.arange(group.width, device=group.texts.device)[None]
    apart = at[:, :, None] - at[:, None, :]
    if causal:
        hidden = hidden | (apart < 0)
    if window is not None and group.width > window:
        hidden = hidden | (apart.abs() >= window)
    return hidden[:, None] if bool(hidden.any()) else None


def lay_out(lengths: np.ndarray, device: torch.device, *, line: int = LINE, step: int = STEP) -> PackedLayout:
    """Lay texts of these lengths (in tokens, each at least 1) in lines.

    Args:
        lengths: [n] tokens of each text.
        device: Where the layout is used.
        line: Width of the lines that are shared; 0: every text has a line of its own.
        step: The width of any other line is a multiple of this.
    """
    line_of, at, widths = _assign(lengths, line, step)
    by_width = np.argsort(widths, kind="stable")  # lines in packed order
    begins = np.empty(len(widths), np.int64)
    begins[by_width] = np.cumsum(widths[by_width]) - widths[by_width]
    starts = begins[line_of] + at
    total, count = int(widths.sum()), int(lengths.sum())

    within = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(starts, lengths) + within
    tokens, texts, positions = np.full(total, -1), np.full(total, -1), np.zeros(total, np.int64)
    tokens[place], positions[place] = np.arange(count), within
    texts[place] = np.repeat(np.arange(len(lengths)), lengths)

    rests = widths - np.bincount(line_of, lengths, len(widths)).astype(np.int64)
    segments = np.concatenate([lengths, rests])
    first = np.concatenate([starts, begins + widths - rests])
    packed_order = np.lexsort((segments, first))  # an empty segment stands before the text that begins there
    segment = np.empty(len(segments), np.int64)
    segment[packed_order] = np.arange(len(segments))

    texts_T, positions_T, starts_n, lengths_n, segments_s, order_n = (
        torch.from_numpy(item.astype(np.int64)).to(device, non_blocking=True)
        for item in (texts, positions, starts, lengths, segments[packed_order], segment[: len(lengths)])
    )
    groups = _groups(widths[by_width], texts_T, positions_T, line)
    return PackedLayout(tokens, groups, positions_T, starts_n, lengths_n, segments_s, order_n)


def _assign(lengths: np.ndarray, line: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the line of each text [n], its place in that line [n], and the width of each line.

    Texts that share are put, longest first, where they leave the least room (best fit decreasing).
    """
    line_of, at = np.empty(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    alone = np.flatnonzero(lengths > line)
    line_of[alone] = np.arange(len(alone))
    widths: list[int] = (-(-lengths[alone] // step) * step).tolist()
    with_room: list[list[int]] = [[] for _ in range(line + 1)]  # lines by the places left in them
    for text in np.argsort(-lengths, kind="stable")[len(alone) :].tolist():
        length = int(lengths[text])
        room = next((room for room in range(length, line + 1) if with_room[room]), line)
        if not with_room[room]:
            with_room[room].append(len(widths))
            widths.append(line)
        line_of[text], at[text] = with_room[room].pop(), line - room
        with_room[room - length].append(int(line_of[text]))
    if len(widths) == len(alone) + 1:  # the only line that is shared need not be whole
        shared = int(lengths[lengths <= line].sum())
        widths[-1] = -(-shared // step) * step
    return line_of, at, np.array(widths, np.int64)


def _groups(widths: np.ndarray, texts: Tensor, positions: Tensor, line: int) -> tuple[Group, ...]:
    """Return the groups of lines of these widths, ascending; `texts` and `positions` are [T]."""
    groups, start = [], 0
    for width, lines in zip(*(part.tolist() for part in np.unique(widths, return_counts=True)), strict=True):
        places = slice(start, start + lines * width)
        shape = (lines, width)
        groups.append(
            Group(start, lines, width, texts[places].view(shape), positions[places].view(shape), width <= line)
        )
        start = places.stop
    return tuple(groups)


_current: list[PackedLayout] = []


@contextmanager
def packed(layout: PackedLayout) -> Iterator[None]:
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
    attention = PackedAttention.apply if query.device.type == "cpu" else attend_with_sdpa
    q, k, v = (item[0].transpose(0, 1) for item in (query, key, value))
    return attention(q, k, v, layout, scale, causal, sliding_window)[None], None


def attend_with_sdpa(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float, causal: bool, window: int | None
) -> Tensor:
    """Return the same as `PackedAttention`, through PyTorch's own kernels: [T, heads, width].

    For GPUs: the memory-efficient kernel takes a mask in fp16 and bf16 and runs on every capability from 5.0 on.
    """
    sizes = [group.end - group.start for group in layout.groups]
    pieces = []
    each = zip(layout.groups, *(item.split(sizes) for item in (query, key, value)), strict=True)
    for index, (group, *parts) in enumerate(each):
        q, k, v = (part.unflatten(0, (group.lines, group.width)).transpose(1, 2) for part in parts)
        bias = layout.bias(index, causal, window, query.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces)


class PackedAttention(torch.autograd.Function):
    """softmax(scale * Q K^T) V in every line, as one node of the graph, for CPUs.

    Scores are made and used a few lines at a time, so that they stay in the processor's caches. The backward pass makes
    those of wide lines again: kept, they would take more memory than anything else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: PackedLayout,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        """Return [T, heads, width]; query, key and value have that shape too."""
        ctx.layout, ctx.scale, ctx.causal, ctx.window = layout, scale, causal, window
        out, kept = torch.empty(query.shape, dtype=query.dtype), list[Tensor]()
        for part in _parts(layout, query, causal, window):
            probs = part.probabilities(part.take(query) * scale, part.take(key))
            part.give(torch.bmm(probs, part.take(value)), out)
            kept += [probs] if part.shared else []
        ctx.save_for_backward(query, key, value, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value, each [T, heads, width]."""
        query, key, value, *kept = ctx.saved_tensors
        # One tensor holds all three, so that a fused projection gets its gradient in one piece.
        rows, heads, width = grad.shape
        grads = torch.empty((rows, 3, heads, width), dtype=grad.dtype)
        grad_q, grad_k, grad_v = grads.unbind(1)
        for part in _parts(ctx.layout, grad, ctx.causal, ctx.window):
            q, k, v, g = part.take(query) * ctx.scale, part.take(key), part.take(value), part.take(grad)
            probs = kept.pop(0) if part.shared else part.probabilities(q, k)
            part.give(torch.bmm(probs.transpose(1, 2), g), grad_v)
            through = torch.bmm(g, v.transpose(1, 2))
            scores = torch._softmax_backward_data(through, probs, -1, probs.dtype)
            part.give(torch.bmm(scores, k).mul_(ctx.scale), grad_q)
            part.give(torch.bmm(scores.transpose(1, 2), q), grad_k)
        return grad_q, grad_k, grad_v, None, None, None, None


@dataclass(frozen=True)
class Part:
    """Some lines of a group, worked on at once; matrices are [lines * heads, width of the line, …]."""

    start: int
    end: int
    lines: int
    shared: bool
    bias: Tensor | None

    def take(self, x_THD: Tensor) -> Tensor:
        """Return this part of [T, heads, D] as [lines * heads, width, D]."""
        lines: Tensor = x_THD[self.start : self.end].unflatten(0, (self.lines, -1))
        return lines.transpose(1, 2).flatten(0, 1)

    def give(self, x: Tensor, out_THD: Tensor) -> None:
        """Write [lines * heads, width, D] into this part of [T, heads, D]."""
        out_THD[self.start : self.end].unflatten(0, (self.lines, -1)).copy_(
            x.unflatten(0, (self.lines, -1)).transpose(1, 2)
        )

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return softmax(Q K^T + bias): [lines * heads, width, width]."""
        scores = torch.bmm(q, k.transpose(1, 2))
        if self.bias is not None:
            scores.unflatten(0, (self.lines, -1)).add_(self.bias)
        return torch.softmax(scores, -1)


def _parts(layout: PackedLayout, query_THD: Tensor, causal: bool, window: int | None) -> Iterator[Part]:
    heads = query_THD.shape[1]
    for index, group in enumerate(layout.groups):
        bias = layout.bias(index, causal, window, query_THD.dtype)
        most = max(1, CHUNK // (heads * group.width**2))
        for first in range(0, group.lines, most):
            lines = min(most, group.lines - first)
            some = bias if bias is None or len(bias) == 1 else bias[first : first + lines]
            start = group.start + first * group.width
            yield Part(start, start + lines * group.width, lines, group.shared, some)


def register() -> None:
    """Tell transformers of the packed attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
