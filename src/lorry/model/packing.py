"""Token ids of texts of different lengths, and their division into forward passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """Return the texts that begin at these places of `ids` and have these lengths."""
    ends = np.cumsum(lengths)
    at = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    return TokenSequences(ids[at], lengths)


def split(lengths: np.ndarray, most: int, *, most_texts: int = 0, line: int = 0) -> list[np.ndarray]:
    """Divide texts into parts of at most so many tokens; a text longer than that is a part of its own.

    Texts longer than a line, which get one of their own, are put with their like: few widths occur in a part. Shorter
    ones, which share lines, are dealt out like cards, longest first: every part gets its share of each length, and its
    lines are filled as well as those of the whole.

    Args:
        lengths: [n] tokens of each text.
        most: Tokens of a part, 0: any number.
        most_texts: Texts of a part, 0: any number.
        line: Width of a line that short texts share, 0: none does.

    Returns:
        The rows of each part; all in one, in order, where that is allowed.
    """
    most, most_texts = most or int(lengths.sum()), most_texts or len(lengths)
    if lengths.sum() <= most and len(lengths) <= most_texts:
        return [np.arange(len(lengths))]
    by_length = np.argsort(-lengths, kind="stable")
    alone = int((lengths > line).sum())
    parts: list[np.ndarray] = []
    first, total = 0, 0
    for place, length in enumerate(lengths[by_length[:alone]].tolist()):
        if place > first and (total + length > most or place - first == most_texts):
            parts.append(by_length[first:place])
            first, total = place, 0
        total += length
    if alone:
        parts.append(by_length[first:alone])
    return parts + _deal(by_length[alone:], lengths, most, most_texts)


def _deal(by_length: np.ndarray, lengths: np.ndarray, most: int, most_texts: int) -> list[np.ndarray]:
    """Deal out these rows, longest first: no part has more than the mean and one text's tokens."""
    if not len(by_length):
        return []
    room = max(most - int(lengths[by_length[0]]), 1)
    parts = max(-(-int(lengths[by_length].sum()) // room), -(-len(by_length) // most_texts))
    return [by_length[first::parts] for first in range(min(parts, len(by_length)))]
