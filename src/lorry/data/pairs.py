"""Judged pairs: from a channel's files to queries, product texts, and what each label is worth.

ESCI as published (two tables) or joined, Home Depot, WANDS (three tables) and tables of your own are all read alike:
see `schema` for how columns are recognised and `labels` for what labels mean. A row that cannot be used is counted by
kind and left out. Of several rows with the same query and text the first is kept.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.config import PairOptions, TrainConfig
from lorry.data.channel import Channel, read_tables
from lorry.data.labels import Scale, find_scale
from lorry.errors import UserError

log = logging.getLogger("lorry")

MOST_BAD = 0.1  # share of bad rows above which a channel is refused
EXAMPLES = 3  # shown of each kind of bad row
GOOD = 0
# What can be wrong with a row, the index being its code; the last is harmless: a copy of a row before.
KINDS = (
    "",
    "unknown query id",
    "missing query",
    "unknown product",
    "missing text",
    "missing label",
    "unknown label",
    "conflicting duplicate",
    "repeated",
)
CONFLICT, REPEATED = KINDS.index("conflicting duplicate"), KINDS.index("repeated")
BROKEN = "wrong number of cells"  # such a row never gets as far as to have a code
HINTS = {
    "unknown query id": "Put the missing queries into the table of queries.",
    "missing query": "Name another column, --query_column NAME, or correct the rows.",
    "unknown product": "Put the missing products into the table of products (same id and locale).",
    "missing text": "Name other columns, --text_columns NAME,NAME, or correct the rows.",
    "missing label": "Name another column, --label_column NAME, or correct the rows.",
    "unknown label": "Say what each label is worth: --label_map good=1,fair=0.5,bad=0",
    "conflicting duplicate": "Keep one label for each query and text.",
    BROKEN: "Put quotation marks round cells that hold the separator, or save as parquet.",
}


@dataclass(frozen=True)
class Health:
    """What reading found.

    Attributes:
        rows: Rows read, after the filters (locale, small_version, split).
        kept: Rows that became pairs.
        bad: Rows left out, by kind; "repeated" (an exact copy of a row before) is harmless.
        examples: Up to three of each kind, in a line each, with file and row.
        sources: Names of the files read.
        form: What the channel looked like, e.g. "ESCI, two tables" or "grades 1..3 pairs".
    """

    rows: int
    kept: int
    bad: dict[str, int]
    examples: dict[str, list[str]]
    sources: list[str]
    form: str


@dataclass(frozen=True)
class Pairs:
    """N judged pairs of Q distinct queries and T distinct product texts.

    Attributes:
        queries: [Q] distinct, cleaned; large_string.
        texts: [T] distinct, cleaned; large_string.
        query: [N] index into `queries`.
        text: [N] index into `texts`.
        gain: [N] graded relevance, 0 or above.
        relevant: [N] whether the label counts as relevant.
        label: [N] index into `label_names`.
        label_names: What the labels are called, the best first; the nearest of nine steps where grades are many.
        health: What reading found.
    """

    queries: pa.LargeStringArray
    texts: pa.LargeStringArray
    query: NDArray[np.int32]
    text: NDArray[np.int32]
    gain: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    label: NDArray[np.int8]
    label_names: tuple[str, ...]
    health: Health

    def __len__(self) -> int:
        return len(self.query)

    def select(self, rows: NDArray[np.integer | np.bool_]) -> Pairs:
        """Return the given rows (indices or a mask), with only the strings they use, in the order they have here."""
        queries, query = _compact(self.queries, self.query[rows])
        texts, text = _compact(self.texts, self.text[rows])
        return replace(
            self,
            queries=queries,
            texts=texts,
            query=query,
            text=text,
            gain=self.gain[rows],
            relevant=self.relevant[rows],
            label=self.label[rows],
        )

    def fingerprint(self) -> str:
        """Return the sha256 of the content, in order: equal for equal pairs, whatever files they came from."""
        digest = hashlib.sha256()
        for strings in (self.queries, self.texts):
            digest.update(pc.binary_length(strings).to_numpy().astype("<i8").tobytes())
            offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
            if len(strings):
                digest.update(memoryview(strings.buffers()[2])[offsets[0] : offsets[-1]])
        for array in (self.query, self.text, self.gain, self.relevant, self.label):
            digest.update(np.ascontiguousarray(array).data)
        digest.update("\n".join(self.label_names).encode())
        return digest.hexdigest()


def read_channel(folder: Path, options: PairOptions) -> dict[str, Pairs]:
    """Read one channel by itself.

    Args:
        folder: The channel's folder, or one file.
        options: Which columns and rows to read, and what the labels are worth.

    Returns:
        The pairs by the values of an ESCI `split` column ("train", "test"), or under "all" where there is none.

    Raises:
        UserError: There is nothing to read, a file or column is not as it should be, or too many rows are bad.
    """
    return _judge(folder, options)[0]


def read_splits(config: TrainConfig) -> dict[str, Pairs]:
    """Read the "train", "validation" and, where there is one, "test" pairs of a run.

    Rows that ESCI marks split=test become the test pairs, or are left out where there is a test folder; validation and
    test folders are used whole. Without a validation folder, queries of the training pairs are held out. Labels mean
    everywhere what they mean in the training pairs.

    Raises:
        UserError: As `read_channel`; or training pairs are all relevant, or none is.
    """
    if not config.train:
        raise UserError("no training pairs are given", "Give the folder that holds them: --train FOLDER")
    found, scale = _judge(Path(config.train), config)
    if not {"all", "train"} & found.keys():
        raise UserError(f"{config.train} has no row with split=train", "Give the training rows: --train FOLDER")
    splits = {"train": found["all"] if "all" in found else found["train"]}
    for name in ("validation", "test"):
        if folder := getattr(config, name):
            splits[name] = _judge(Path(folder), config, scale, by_split=False)[0]["all"]
        elif name in found:
            splits[name] = found[name]
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_by_query(splits["train"], config.validation_fraction)
    check_both_classes(splits["train"], "training")
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def split_by_query(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """Split pairs into (train, held out) so that no query is on both sides.

    A query's side follows from its hash alone, so it does not depend on the order of the rows or on other queries.

    Args:
        pairs: At least two queries.
        fraction: Share of the queries to hold out, above 0 and below 1.

    Raises:
        UserError: There are fewer than two queries.
    """
    if len(pairs.queries) < 2:
        raise UserError("the pairs have fewer than two queries", "Add queries, or give a validation folder.")
    hashes = np.empty(len(pairs.queries), np.uint64)
    for start in range(0, len(hashes), 1 << 16):
        batch = pairs.queries.slice(start, 1 << 16).to_pylist()
        digests = b"".join(hashlib.blake2b(query.encode(), digest_size=8).digest() for query in batch)
        hashes[start : start + len(batch)] = np.frombuffer(digests, "<u8")
    held = hashes < fraction * 2.0**64
    held[hashes.argmin()], held[hashes.argmax()] = True, False  # neither side is ever empty
    rows = held[pairs.query]
    return pairs.select(~rows), pairs.select(rows)


def check_both_classes(pairs: Pairs, name: str) -> None:
    """Refuse pairs from which nothing can be learnt.

    Raises:
        UserError: No pair is relevant, or all are.
    """
    relevant = int(pairs.relevant.sum())
    if relevant in (0, len(pairs)):
        which = "no" if not relevant else "every"
        labels = ", ".join(pairs.label_names[index] for index in np.unique(pairs.label))
        raise UserError(
            f"{which} one of the {len(pairs):,} {name} pairs is relevant (labels: {labels})",
            "Give pairs of both kinds, or say from which grade on a pair is relevant: --positive_threshold NUMBER",
        )


def _judge(
    folder: Path, options: PairOptions, scale: Scale | None = None, *, by_split: bool = True
) -> tuple[dict[str, Pairs], Scale]:
    """Read a channel, its labels on `scale`, or on the one found, which is returned too; whole unless `by_split`."""
    channel = read_tables(folder, options)
    wanted = np.logical_or.reduce(list(channel.splits.values()))
    splits = channel.splits if by_split else {"all": wanted}
    codes = channel.label.codes[wanted]
    counts = np.bincount(codes[codes >= 0], minlength=len(channel.label.strings))
    scale = scale or find_scale(channel.label.strings, counts, options.label_map, options.positive_threshold)
    grades = np.append(scale.grades(channel.label.strings), np.nan)[channel.label.codes]
    fault = _faults(channel, grades, wanted)
    form = scale.name + (" pairs", ", two tables", ", three tables")[sum(map(bool, channel.sources)) - 1]
    _refuse_if_bad(folder, _health(channel, fault, wanted, form, broken=True))
    whole = Pairs(
        queries=channel.query.strings,
        texts=channel.text.strings,
        query=channel.query.codes,
        text=channel.text.codes,
        gain=scale.gains(grades),
        relevant=scale.relevant(grades),
        label=scale.nearest_level(grades),
        label_names=scale.names,
        health=Health(0, 0, {}, {}, [], form),
    )
    found: dict[str, Pairs] = {}
    for name, mask in splits.items():
        health = _health(channel, fault, mask, form, broken=not found)
        found[name] = replace(whole.select(mask & (fault == GOOD)), health=health)
        _log(folder, name, found[name])
    return found, scale


def _faults(channel: Channel, grades: NDArray[np.float64], wanted: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return what is wrong with each row [N], an index into KINDS; rows not `wanted` are nobody's duplicates."""
    query, text, label = channel.query, channel.text, channel.label
    fault = np.select(
        [query.unmatched, query.codes < 0, text.unmatched, text.codes < 0, label.codes < 0, np.isnan(grades)],
        list(range(1, CONFLICT)),
        GOOD,
    ).astype(np.int8)
    rows = np.flatnonzero(wanted & (fault == GOOD))
    pair = query.codes[rows].astype(np.int64) * len(text.strings) + text.codes[rows]
    order = np.argsort(pair, kind="stable")  # equal pairs side by side, the first to come first
    rows, pair = rows[order], pair[order]
    again = np.flatnonzero(pair[1:] == pair[:-1]) + 1
    begins = np.arange(len(pair))
    begins[again] = 0
    first = rows[np.maximum.accumulate(begins)[again]]
    same = grades[rows[again]] == grades[first]
    fault[rows[again]] = np.where(same, REPEATED, CONFLICT)
    return fault


def _health(channel: Channel, fault: NDArray[np.int8], mask: NDArray[np.bool_], form: str, *, broken: bool) -> Health:
    counts = np.bincount(fault[mask], minlength=len(KINDS)).tolist()
    bad = {KINDS[code]: count for code, count in enumerate(counts) if count and code != GOOD}
    examples = {
        kind: [channel.describe(int(row)) for row in np.flatnonzero(mask & (fault == KINDS.index(kind)))[:EXAMPLES]]
        for kind in bad
    }
    if broken and channel.broken:
        bad[BROKEN], examples[BROKEN] = channel.broken, channel.broken_examples
    sources = [name for table in channel.sources for name in table]
    return Health(counts[GOOD] + sum(bad.values()), counts[GOOD], bad, examples, sources, form)


def _refuse_if_bad(folder: Path, health: Health) -> None:
    bad = {kind: count for kind, count in health.bad.items() if kind != KINDS[REPEATED]}
    if sum(bad.values()) <= MOST_BAD * health.rows:
        return
    worst = sorted(bad, key=lambda kind: -bad[kind])
    kinds = "; ".join(f"{bad[kind]:,} {kind} ({health.examples[kind][0]})" for kind in worst)
    raise UserError(f"{sum(bad.values()):,} of {health.rows:,} rows of {folder} are bad: {kinds}", HINTS[worst[0]])


def _log(folder: Path, name: str, pairs: Pairs) -> None:
    health = pairs.health
    bad = ", ".join(f"{count:,} {kind}" for kind, count in health.bad.items())
    log.info(
        f"{folder}{'' if name == 'all' else ' split ' + name} ({health.form}): {health.rows:,} rows, {len(pairs):,} "
        f"pairs of {len(pairs.queries):,} queries and {len(pairs.texts):,} texts; left out: {bad or 'none'}"
    )


def _compact(
    strings: pa.LargeStringArray | pa.ChunkedArray, codes: NDArray[np.int32]
) -> tuple[pa.LargeStringArray, NDArray[np.int32]]:
    """Return in one piece the strings that some code refers to, and the codes that they then have."""
    used = np.zeros(len(strings), bool)
    used[codes] = True
    if not used.all():
        strings, codes = strings.filter(pa.array(used)), (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
    return strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings, codes
