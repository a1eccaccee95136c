"""What validation and test pairs have in common with the training pairs.

Strings that differ only in case or in their Unicode form are the same: most models see no difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.health import Overlap
from lorry.data.strings import fold
from lorry.errors import UserError

if TYPE_CHECKING:
    from lorry.data.pairs import Pairs

log = logging.getLogger("lorry")

# What the training pairs are that `exclude_overlap` leaves out: their kind in the counts of rows.
LEFT_OUT = {"pairs": "also in validation or test", "queries": "query also in validation or test"}
NAMED = {"pairs": "pairs that are", "queries": "pairs of queries that are"}


def compare_with_training(train: Pairs, others: Mapping[str, Pairs], exclude: str) -> dict[str, Pairs]:
    """Say what validation and test pairs have in common with the training pairs, and leave that out of training.

    Args:
        train: The training pairs.
        others: The pairs of the other splits.
        exclude: Which training pairs to leave out: none, pairs or queries (see `TrainConfig.exclude_overlap`).

    Raises:
        UserError: No training pairs are left.
    """
    if exclude != "none":
        shared = [_find_shared(train, other) for other in others.values()]
        excluded = np.logical_or.reduce([item.pairs if exclude == "pairs" else item.queries for item in shared])
        if excluded.all():
            raise UserError(
                f"all {len(train):,} training pairs are left out by exclude_overlap={exclude}",
                "Give training pairs that are not in validation and test as well.",
            )
        train = _leave_out(train, excluded, exclude)
    found = {"train": train}
    for name, other in others.items():
        overlap = _find_shared(train, other).overlap
        found[name] = replace(other, health=replace(other.health, overlap=overlap))
        if overlap.shared_queries:
            log.warning("%s: %s; --exclude_overlap queries leaves them out of training", name, overlap)
        else:
            log.info("%s: %s", name, overlap)
    return found


@dataclass(frozen=True)
class _Shared:
    """What N training pairs and those of another split have in common.

    Attributes:
        queries: [N] which training pairs have a query that the other split has.
        pairs: [N] which have a query and text that a pair of the other split has.
        overlap: The same from the side of the other split.
    """

    queries: NDArray[np.bool_]
    pairs: NDArray[np.bool_]
    overlap: Overlap


def _find_shared(train: Pairs, other: Pairs) -> _Shared:
    query, other_query = _codes(train.queries, other.queries)
    same_query, same_pair, shared_pairs = query[train.query] >= 0, np.zeros(len(train), bool), 0
    if same_query.any():
        rows = np.flatnonzero(same_query)
        text, other_text = _codes(train.texts, other.texts, train.text[rows])
        rows = rows[text[train.text[rows]] >= 0]
        pairs = query[train.query[rows]] * len(other.texts) + text[train.text[rows]]
        other_pairs = other_query[other.query] * len(other.texts) + other_text[other.text]
        same_pair[rows] = np.isin(pairs, other_pairs)
        shared_pairs = int(np.isin(other_pairs, pairs).sum())
    shared_queries = int(np.isin(other_query, query).sum())
    return _Shared(same_query, same_pair, Overlap(shared_queries, len(other.queries), shared_pairs, len(other)))


def _codes(
    strings: pa.LargeStringArray, others: pa.LargeStringArray, used: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return numbers [U] of strings and [V] of other strings, equal for equal ones; -1 where no other one is equal.

    Args:
        strings: [U]
        others: [V]
        used: Which of `strings` to look at; all others are -1.
    """
    known = fold(others).dictionary_encode()
    places = np.arange(len(strings)) if used is None else np.unique(used)
    codes = np.full(len(strings), -1, np.int64)
    codes[places] = pc.index_in(fold(strings.take(pa.array(places))), value_set=known.dictionary).fill_null(-1)
    return codes, known.indices.to_numpy().astype(np.int64)


def _leave_out(train: Pairs, excluded: NDArray[np.bool_], exclude: str) -> Pairs:
    count, health = int(excluded.sum()), train.health
    log.info("left out of training: %s %s also in validation or test", f"{count:,}", NAMED[exclude])
    bad = health.bad | ({LEFT_OUT[exclude]: count} if count else {})
    return replace(train.select(~excluded), health=replace(health, kept=health.kept - count, bad=bad))
