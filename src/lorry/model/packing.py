"""Token ids of many texts, their division into forward passes, and their layout in one row of tokens without padding.

`PackedLayout` says where each text lies. The row is cut into lines: a text of more than LINE_WIDTH tokens has a line of
its own, shorter ones share lines of LINE_WIDTH tokens and are hidden from each other. Lines of one width lie side by
side, so queries, keys and values are plain views `[lines, width]`: nothing is gathered, and few shapes occur, for which
the matrix library prepares its kernels once. Between 1 and 4 % of the places stay empty.
Lines that stay empty can be added, so that even fewer shapes occur: see `graphs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lorry.hardware import to_device

LINE_WIDTH = 64  # tokens of a line that short texts share
WIDTH_STEP = 8  # widths of all other lines are multiples of this
# Where lines may be spare: how much of a row the steps in the number of its lines are at most, and how much of it all
# spare lines are at most (texts of many lengths would need more: they get none).
SPARE_STEP, MAX_SPARE = 1 / 16, 1 / 8


@dataclass(frozen=True)
class TokenSequences:
    """Token ids of n texts, end to end."""

    ids: np.ndarray
    """[t]."""
    lengths: np.ndarray
    """[n] tokens of each text, at least 1."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray) -> TokenSequences:
        """Return the texts of these rows."""
        ends = np.cumsum(self.lengths)
        return gather(self.ids, (ends - self.lengths)[rows], self.lengths[rows])


def gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> TokenSequences:
    """Return the texts that begin at `starts` in `ids` and have these lengths."""
    ends = np.cumsum(lengths)
    at = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    return TokenSequences(ids[at], lengths)


def split(
    lengths: np.ndarray, max_tokens: int | None, *, max_texts: int | None = None, line_width: int = 0
) -> list[np.ndarray]:
    """Divide texts into parts of at most `max_tokens` tokens; a longer text becomes a part of its own.

    Texts longer than a line, which get one of their own, are grouped by length, so that few widths occur in a part.
    Shorter ones, which share lines, are dealt out in turn, longest first: every part gets its share of each length, and
    its lines are filled as well as those of the whole.

    Args:
        lengths: [n] tokens of each text.
        max_tokens: Tokens of a part; None for no limit.
        max_texts: Texts of a part; None for no limit.
        line_width: Width of a line that short texts share; 0 where none does.

    Returns:
        The rows of each part; all in one, in order, where the limits allow it.
    """
    max_tokens = int(lengths.sum()) if max_tokens is None else max_tokens
    max_texts = len(lengths) if max_texts is None else max_texts
    if lengths.sum() <= max_tokens and len(lengths) <= max_texts:
        return [np.arange(len(lengths))]
    by_length = np.argsort(-lengths, kind="stable")
    alone = int((lengths > line_width).sum())
    parts: list[np.ndarray] = []
    first, total = 0, 0
    for place, length in enumerate(lengths[by_length[:alone]].tolist()):
        if place > first and (total + length > max_tokens or place - first == max_texts):
            parts.append(by_length[first:place])
            first, total = place, 0
        total += length
    if alone:
        parts.append(by_length[first:alone])
    return parts + _distribute(by_length[alone:], lengths, max_tokens, max_texts)


def _distribute(by_length: np.ndarray, lengths: np.ndarray, max_tokens: int, max_texts: int) -> list[np.ndarray]:
    """Deal out these rows, longest first: no part has more than the mean number of tokens and one text's."""
    if not len(by_length):
        return []
    room = max(max_tokens - int(lengths[by_length[0]]), 1)
    parts = max(-(-int(lengths[by_length].sum()) // room), -(-len(by_length) // max_texts))
    return [by_length[first::parts] for first in range(min(parts, len(by_length)))]


@dataclass(frozen=True)
class LineGroup:
    """Neighbouring lines of one width."""

    start: int
    """First place in the packed row."""
    lines: int
    width: int
    """Places in a line."""
    texts: Tensor
    """[lines, width] number of the text in each place, in the order given; -1 for an empty place."""
    positions: Tensor
    """[lines, width] position of each token in its text."""
    shared: bool
    """Whether a line may hold several texts."""
    mixed: bool
    """Whether a line does, or has an empty place: known here, so that nobody has to ask the device."""

    @property
    def end(self) -> int:
        """One past the last place."""
        return self.start + self.lines * self.width

    def of(self, texts_T: Tensor, positions_T: Tensor) -> LineGroup:
        """Return lines of the same places, with what these rows have there."""
        texts, positions = (item[self.start : self.end].view(self.lines, self.width) for item in (texts_T, positions_T))
        return replace(self, texts=texts, positions=positions)

    def hidden(self, causal: bool, window: int | None) -> Tensor | None:
        """Return True where a token (third dimension) must not see another (fourth), or None where nothing is hidden.

        Args:
            causal: Whether a token sees none that follow it.
            window: Tokens this far apart or farther do not see each other; None for no such limit.

        Returns:
            [lines, 1, 1 or width, width].
        """
        if window is not None and self.width <= window:
            window = None
        if not self.mixed and not (causal and self.width > 1) and window is None:
            return None
        if self.shared:
            hidden = self.texts[:, :, None] != self.texts[:, None, :]
            at = self.positions
        else:
            hidden = (self.texts < 0)[:, None, :]
            at = torch.arange(self.width, device=self.texts.device)[None]
        apart = at[:, :, None] - at[:, None, :]
        if causal:
            hidden = hidden | (apart < 0)
        if window is not None:
            hidden = hidden | (apart.abs() >= window)
        return hidden[:, None]


@dataclass(frozen=True)
class PackedLayout:
    """Where each of n texts lies in a packed row of T places."""

    tokens: np.ndarray
    """[T] which token of the texts, laid end to end in the order given, is in each place; -1 for an empty place."""
    groups: tuple[LineGroup, ...]
    texts: Tensor
    """[T] number of the text in each place, in the order given; -1 for an empty place."""
    positions: Tensor
    """[T] position of each token in its text."""
    starts: Tensor
    """[n] first place of each text, in the order given."""
    lengths: Tensor
    """[n] tokens of each text, in the order given."""
    segments: Tensor
    """[n + lines] places of each text and of each line's empty rest, in packed order: they add up to T."""
    order: Tensor
    """[n] segment of each text."""
    biases: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict, repr=False)
    """What was made of the layout in a forward pass: every layer asks for the same."""

    @property
    def shape(self) -> tuple[tuple[int, int, bool], ...]:
        """Lines and width of each group, and whether it hides anything: what the operations of a pass depend on."""
        return tuple((group.lines, group.width, group.mixed) for group in self.groups)

    def with_places(self, texts: Tensor, positions: Tensor) -> PackedLayout:
        """Return a layout of the same shape for the layers of a model; it does not say where each text lies.

        Args:
            texts: [T] as in this class.
            positions: [T] as in this class.
        """
        groups = tuple(group.of(texts, positions) for group in self.groups)
        return replace(self, groups=groups, texts=texts, positions=positions)

    def bias(self, index: int, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return what to add to the attention scores of a group so that no token sees what is hidden from it.

        Args:
            index: Number of the group.
            causal: See `LineGroup.hidden`.
            window: See `LineGroup.hidden`.
            dtype: Of the scores.

        Returns:
            Something that broadcasts to [lines, heads, width, width], or None where nothing is hidden.
        """
        key = (index, causal, window, dtype)
        if key not in self.biases:
            hidden = self.groups[index].hidden(causal, window)
            if hidden is not None:  # half of the lowest number: a score added to it stays finite
                lowest = torch.finfo(dtype).min / 2
                hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, lowest)
            self.biases[key] = hidden
        return self.biases[key]


def lay_out(
    lengths: np.ndarray,
    device: torch.device,
    *,
    line_width: int = LINE_WIDTH,
    width_step: int = WIDTH_STEP,
    spare_lines: bool = False,
) -> PackedLayout:
    """Lay texts of these lengths in lines.

    Args:
        lengths: [n] tokens of each text, at least 1.
        device: Where the layout is used.
        line_width: Width of the lines that are shared; 0 gives every text a line of its own.
        width_step: The width of every other line is a multiple of this.
        spare_lines: Add lines that stay empty, so that few shapes occur.
    """
    line_of, at, widths = _assign(lengths, line_width, width_step)
    if spare_lines:
        widths = _with_spare_lines(widths)
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
        to_device(item.astype(np.int64), device)
        for item in (texts, positions, starts, lengths, segments[packed_order], segment[: len(lengths)])
    )
    groups = _groups(widths[by_width], texts, texts_T, positions_T, line_width)
    return PackedLayout(tokens, groups, texts_T, positions_T, starts_n, lengths_n, segments_s, order_n)


def _assign(lengths: np.ndarray, line_width: int, width_step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the line of each text [n], its place in that line [n], and the width of each line.

    Texts that share are put, longest first, where they leave the least room (best fit decreasing).
    """
    line_of, at = np.empty(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    alone = np.flatnonzero(lengths > line_width)
    line_of[alone] = np.arange(len(alone))
    widths: list[int] = (-(-lengths[alone] // width_step) * width_step).tolist()
    with_room: list[list[int]] = [[] for _ in range(line_width + 1)]  # lines by the places left in them
    for text in np.argsort(-lengths, kind="stable")[len(alone) :].tolist():
        length = int(lengths[text])
        room = next((room for room in range(length, line_width + 1) if with_room[room]), line_width)
        if not with_room[room]:
            with_room[room].append(len(widths))
            widths.append(line_width)
        line_of[text], at[text] = with_room[room].pop(), line_width - room
        with_room[room - length].append(int(line_of[text]))
    if len(widths) == len(alone) + 1:  # the only line that is shared need not be whole
        shared = int(lengths[lengths <= line_width].sum())
        widths[-1] = -(-shared // width_step) * width_step
    return line_of, at, np.array(widths, np.int64)


def _with_spare_lines(widths: np.ndarray) -> np.ndarray:
    """Return the widths of lines [lines] and of those that bring each width's number of lines to a round one.

    A round number is a multiple of the largest power of two with which the step is small beside the whole row: lines of
    64 come in fours at 5,000 tokens, and one by one below 2,048.
    """
    each, lines = np.unique(widths, return_counts=True)
    step = 2 ** np.log2(np.maximum(SPARE_STEP * widths.sum() / each, 1)).astype(int)
    spare = np.repeat(each, -lines % step)
    return np.concatenate([widths, spare]) if spare.sum() <= MAX_SPARE * widths.sum() else widths


def _groups(
    widths: np.ndarray, texts: np.ndarray, texts_T: Tensor, positions_T: Tensor, line_width: int
) -> tuple[LineGroup, ...]:
    """Return the groups of lines of these widths, ascending; `texts` [T] is what `texts_T` has on the device."""
    groups, start = [], 0
    for width, lines in zip(*(part.tolist() for part in np.unique(widths, return_counts=True)), strict=True):
        places = slice(start, start + lines * width)
        texts_LW, positions_LW = (item[places].view(lines, width) for item in (texts_T, positions_T))
        here = texts[places].reshape(lines, width)
        mixed = bool((here != here[:, :1]).any())
        groups.append(LineGroup(start, lines, width, texts_LW, positions_LW, width <= line_width, mixed))
        start = places.stop
    return tuple(groups)
