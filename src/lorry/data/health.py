"""What is wrong with the rows of a channel: bad rows by kind, with examples, and when they are too many."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorry.data.channel import Channel
from lorry.data.strings import Column
from lorry.errors import UserError

MAX_BAD_SHARE = 0.1  # a split with a larger share of bad rows is refused
EXAMPLES = 3  # shown for each kind of bad row
GOOD = 0
# What can be wrong with a row; its code is the index. The last kind, a copy of an earlier row, is harmless.
KINDS = (
    "",
    "unknown split",
    "unknown query id",
    "ambiguous query id",
    "missing query",
    "unknown product",
    "ambiguous product",
    "missing text",
    "missing label",
    "unknown label",
    "conflicting duplicate",
    "repeated",
)
CONFLICT, REPEATED = KINDS.index("conflicting duplicate"), KINDS.index("repeated")
WRONG_CELLS = "wrong number of cells"  # such a row is skipped while reading, so it has no code
HINTS = {
    "unknown split": "Write train, validation or test into every cell of the column split, or give it another name.",
    "unknown query id": "Add the missing queries to the table of queries.",
    "ambiguous query id": "Keep one query for each id in the table of queries.",
    "missing query": "Name another column, --query_column NAME, or correct these rows.",
    "unknown product": "Add the missing products to the table of products (same id and locale).",
    "ambiguous product": "Keep one text for each id (and locale) in the table of products.",
    "missing text": "Name other columns, --text_columns NAME,NAME, or correct these rows.",
    "missing label": "Name another column, --label_column NAME, or correct these rows.",
    "unknown label": "Give the grade of each label: --label_map good=1,fair=0.5,bad=0",
    "conflicting duplicate": "Keep one label for each query and text.",
    WRONG_CELLS: "Put cells that contain the separator in quotation marks, or save as parquet.",
}


@dataclass(frozen=True)
class Overlap:
    """What a split has in common with the training pairs.

    Attributes:
        shared_queries: Number of its queries that are training queries, too.
        queries: Number of its queries.
        shared_pairs: Number of its pairs that are training pairs, too: the same query and text.
        pairs: Number of its pairs.
    """

    shared_queries: int
    queries: int
    shared_pairs: int
    pairs: int

    def __str__(self) -> str:
        if not self.shared_queries:
            return f"none of the {self.queries:,} queries is a training query"
        queries = f"{self.shared_queries:,} of the {self.queries:,} queries"
        if not self.shared_pairs:
            return f"{queries} are training queries as well, but no pair is a training pair"
        pairs = f"{self.shared_pairs:,} of the {self.pairs:,} pairs"
        return f"{queries} and {pairs} are training queries and pairs as well"


@dataclass(frozen=True)
class Health:
    """What was found while reading.

    Attributes:
        rows: Rows read, after the filters (locale, small_version, split).
        kept: Rows that became pairs.
        bad: Rows left out, by kind; "repeated" (an exact copy of an earlier row) is harmless.
        examples: Up to three rows of each kind, one line each, with file (or split) and line (or row).
        sources: Names of the files, or of the data set and its split.
        form: What the channel contains, e.g. "ESCI, two tables" or "grades 1..3 pairs".
        unused: Why a file of the channel was not read, by its name.
        overlap: What the split has in common with the training pairs; None for these themselves.
    """

    rows: int
    kept: int
    bad: dict[str, int]
    examples: dict[str, list[str]]
    sources: list[str]
    form: str
    unused: dict[str, str] = field(default_factory=dict)
    overlap: Overlap | None = None


def find_faults(channel: Channel, grades: NDArray[np.float64]) -> NDArray[np.int8]:
    """Return what is wrong with each row [N], as an index into KINDS; only rows of one split are duplicates."""
    query, text, label = channel.query, channel.text, channel.label
    split = np.full(len(label.codes), -1, np.int8)
    for code, mask in enumerate(channel.splits.values()):
        split[mask] = code
    fault = np.select(
        [
            channel.unsorted,
            *_join_faults(query),
            query.codes < 0,
            *_join_faults(text),
            text.codes < 0,
            label.codes < 0,
            np.isnan(grades),
        ],
        list(range(1, CONFLICT)),
        GOOD,
    ).astype(np.int8)
    rows = np.flatnonzero((split >= 0) & (fault == GOOD))
    pair = query.codes[rows].astype(np.int64) * len(text.strings) + text.codes[rows]
    pair = pair * len(channel.splits) + split[rows]
    order = np.argsort(pair, kind="stable")  # equal pairs side by side, in the order of their rows
    rows, pair = rows[order], pair[order]
    again = np.flatnonzero(pair[1:] == pair[:-1]) + 1
    begins = np.arange(len(pair))
    begins[again] = 0
    first = rows[np.maximum.accumulate(begins)[again]]
    same = grades[rows[again]] == grades[first]
    fault[rows[again]] = np.where(same, REPEATED, CONFLICT)
    return fault


def _join_faults(column: Column) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for which rows [N] the id is unknown, and for which it has several texts."""
    if column.join:
        return column.join.unmatched, column.join.ambiguous
    none = np.zeros(len(column.codes), bool)
    return none, none


def health_of(
    channel: Channel, fault: NDArray[np.int8], split: str, mask: NDArray[np.bool_], form: str, *, skipped: bool
) -> Health:
    """Return what was found in the rows of a split.

    Args:
        channel: The rows.
        fault: [N] what is wrong with each.
        split: The name of the split.
        mask: [N] its rows.
        form: What the channel contains.
        skipped: Whether to count the skipped rows with it: they belong to no split.
    """
    counts = np.bincount(fault[mask], minlength=len(KINDS)).tolist()
    bad = {KINDS[code]: count for code, count in enumerate(counts) if count and code != GOOD}
    examples = {
        kind: [channel.describe(int(row)) for row in np.flatnonzero(mask & (fault == KINDS.index(kind)))[:EXAMPLES]]
        for kind in bad
    }
    if skipped and channel.skipped.count:
        bad[WRONG_CELLS], examples[WRONG_CELLS] = channel.skipped.count, channel.skipped.examples
    rows = counts[GOOD] + sum(bad.values())
    return Health(rows, counts[GOOD], bad, examples, channel.sources_of(split), form, channel.unused)


def refuse_if_bad(health: Health, place: str, instead: str) -> None:
    """Refuse a split with too many bad rows.

    Args:
        health: Of the split.
        place: What the split is called.
        instead: What the user can do besides correcting it.
    """
    bad = {kind: count for kind, count in health.bad.items() if kind != KINDS[REPEATED]}
    if sum(bad.values()) > MAX_BAD_SHARE * health.rows:
        worst = sorted(bad, key=lambda kind: -bad[kind])
        kinds = "; ".join(f"{bad[kind]:,} {kind} ({health.examples[kind][0]})" for kind in worst)
        raise UserError(
            f"{sum(bad.values()):,} of {health.rows:,} rows of {place} are bad: {kinds}", HINTS[worst[0]] + instead
        )
