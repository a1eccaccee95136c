"""Judged pairs: queries, product texts, and how relevant each text is to its query.

ESCI as published (two tables) or joined, Home Depot, WANDS (three tables) and your own tables are all read in the same
way: see `sources` for what a channel may be, `schema` for how columns are recognised and `labels` for what labels mean.
A row that cannot be used is counted by kind and left out, see `health`. Of several rows of a split with the same query
and text, the first is kept.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.config import PairOptions, TrainConfig
from lorry.data.channel import Channel, read_tables
from lorry.data.health import GOOD, Health, find_faults, health_of, refuse_if_bad
from lorry.data.labels import Scale, find_outlier, find_scale, has_decimal_commas, label_map_of
from lorry.data.overlap import compare_with_training
from lorry.data.strings import fold
from lorry.data.teacher import teacher_scores
from lorry.data.wording import listed, quoted
from lorry.errors import UserError
from lorry.names import SPLITS

log = logging.getLogger("lorry")

FEW_RELEVANT = 0.05  # a smaller share of relevant training pairs is told of
HELD_OUT = ("validation", "test")  # splits that may be channels of their own or come with the training pairs
HELD_OUT_FILE = re.compile(r"(test|testing|val|valid|validation|dev)[^a-z]", re.IGNORECASE)


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
        label_names: What the labels are called, the best first; with many grades, the nearest of nine steps.
        health: What was found while reading.
        teacher: [N] score that another model gave each pair, nan where it gave none; None without such a column.
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
    teacher: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.query)

    @cached_property
    def highest_gain(self) -> float:
        """The gain of the best pairs; 1 where all gains are 0."""
        return float(self.gain.max(initial=0)) or 1.0

    def select(self, rows: NDArray[np.integer | np.bool_]) -> Pairs:
        """Return the given rows (indices or a mask) with only the strings that they use, in unchanged order."""
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
            teacher=None if self.teacher is None else self.teacher[rows],
        )

    def fingerprint(self) -> str:
        """Return the sha256 of the content, in order: equal for equal pairs, whatever they were read from."""
        digest = hashlib.sha256()
        for strings in (self.queries, self.texts):
            digest.update(pc.binary_length(strings).to_numpy().astype("<i8").tobytes())
            offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
            if len(strings):
                digest.update(memoryview(strings.buffers()[2])[offsets[0] : offsets[-1]])
        for array in (self.query, self.text, self.gain, self.relevant, self.label):
            digest.update(np.ascontiguousarray(array).data)
        digest.update("\n".join(self.label_names).encode())
        if self.teacher is not None:
            digest.update(np.ascontiguousarray(self.teacher).data)
        return digest.hexdigest()


def read_channel(location: Path | str, options: PairOptions) -> dict[str, Pairs]:
    """Read one channel on its own.

    Args:
        location: A folder, a file, or the URI of a data set on the Hub (hf://datasets/OWNER/NAME).
        options: Which columns and rows to read, and the grades of the labels.

    Returns:
        The pairs of each split ("train", "validation", "test"): the splits of a data set, or what an ESCI column
        `split` says; or all pairs under "all".

    Raises:
        UserError: There is nothing to read, a source or column is not as it should be, or too many rows are bad.
    """
    return _read(str(location), options, SPLITS)[0]


def read_splits(config: TrainConfig) -> dict[str, Pairs]:
    """Read the "train", "validation" and, where there are any, "test" pairs of a run.

    Validation and test pairs come from their own channels. Without such a channel, they are the split of that name of
    the training channel, if it has one; without that, some queries of the training pairs are held out for validation.
    Labels mean everywhere what they mean in the training channel.

    Raises:
        UserError: As `read_channel`; or all training pairs are relevant, or none.
    """
    if not config.train:
        raise UserError("no training pairs are given", "Give the folder that holds them: --train FOLDER")
    others = [name for name in HELD_OUT if not getattr(config, name)]
    found, scale = _read(config.train, config, ("train", *others), "train")
    splits = {"train": found["all"] if "all" in found else found["train"]}
    for name in HELD_OUT:
        if location := getattr(config, name):
            splits[name] = _read(location, config, [name], name, scale)[0]["all"]
        elif name in found:
            splits[name] = found[name]
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_by_query(splits["train"], config.validation_fraction)
    others_found = {name: splits[name] for name in HELD_OUT if name in splits}
    splits = compare_with_training(splits["train"], others_found, config.exclude_overlap)
    check_both_classes(splits["train"], "training")
    _warn_of_few_relevant(splits["train"], scale)
    return splits


def split_by_query(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """Split pairs into (train, held out) so that no query is on both sides.

    The side of a query follows from its hash alone, not from the order of the rows or from other queries. Queries that
    differ only in case or in their Unicode form are one.

    Args:
        pairs: They must have at least two queries.
        fraction: Share of the queries to hold out, above 0 and below 1.

    Raises:
        UserError: There are fewer than two queries.
    """
    hashes = np.empty(len(pairs.queries), np.uint64)
    for start in range(0, len(hashes), 1 << 16):
        batch = fold(pairs.queries.slice(start, 1 << 16)).to_pylist()
        digests = b"".join(hashlib.blake2b(query.encode(), digest_size=8).digest() for query in batch)
        hashes[start : start + len(batch)] = np.frombuffer(digests, "<u8")
    if not len(hashes) or hashes.min() == hashes.max():
        raise UserError("the pairs have fewer than two queries", "Add queries, or give validation pairs.")
    held = hashes < fraction * 2.0**64
    held[hashes == hashes.min()], held[hashes == hashes.max()] = True, False  # neither side is ever empty
    rows = held[pairs.query]
    return pairs.select(~rows), pairs.select(rows)


def check_both_classes(pairs: Pairs, name: str) -> None:
    """Refuse pairs from which nothing can be learnt.

    Args:
        pairs: The pairs.
        name: What they are for, e.g. "training".

    Raises:
        UserError: No pair is relevant, or all are.
    """
    relevant = int(pairs.relevant.sum())
    if relevant in (0, len(pairs)):
        which = "none" if not relevant else "every one"
        labels = ", ".join(pairs.label_names[index] for index in np.unique(pairs.label))
        raise UserError(
            f"{which} of the {len(pairs):,} {name} pairs is relevant (labels: {labels})",
            "Give pairs of both kinds, or set the lowest grade that counts as relevant: --positive_threshold NUMBER",
        )


def _warn_of_few_relevant(train: Pairs, scale: Scale) -> None:
    """Say so where few pairs are relevant: an odd label may have moved the threshold."""
    relevant = int(train.relevant.sum())
    if relevant < FEW_RELEVANT * len(train):
        log.warning(
            f"only {relevant:,} of the {len(train):,} training pairs are relevant: those with the label "
            f"{scale.lowest_relevant} or a better one ({scale.name}); --positive_threshold sets another limit"
        )


def _warn_of_held_out_files(location: str, channel: Channel) -> None:
    """Say so where files are trained on that seem to be meant for validation or test."""
    names = [name for name, _ in channel.sources[: len(channel.ends)] if (Path(location) / name).is_file()]
    held_out = [name for name in names if HELD_OUT_FILE.match(name)]
    if held_out and "all" in channel.splits:
        log.warning(
            "%s: the rows of %s are trained on; if they are for validation or test, move them to a folder of their "
            "own and give that: --validation FOLDER or --test FOLDER",
            location,
            listed(held_out),
        )


def _read(
    location: str, options: PairOptions, names: Collection[str], purpose: str = "", scale: Scale | None = None
) -> tuple[dict[str, Pairs], Scale]:
    """Return the pairs of a channel by split, and the scale of its labels.

    Args:
        location: A folder, a file, or the URI of a data set on the Hub.
        options: Which columns and rows to read, and the grades of the labels.
        names: The splits to read, if the channel has splits.
        purpose: "train", "validation" or "test" where the channel is given as that, else "".
        scale: The scale of the labels; None: find it.
    """
    channel = _choose_splits(location, read_tables(location, options, names, purpose), names, purpose)
    wanted = np.logical_or.reduce(list(channel.splits.values()))
    codes = channel.label.codes[wanted]
    counts = np.bincount(codes[codes >= 0], minlength=len(channel.label.strings))
    if has_decimal_commas(channel.label.strings):
        log.info("%s: the comma in labels is read as the decimal point, as in 2,33", location)
    if purpose == "train":
        _warn_of_held_out_files(location, channel)
    if not options.label_map and (scale is None or scale.numbers == "all"):
        _refuse_outlier(channel, wanted, counts, scale)
    scale = scale or find_scale(channel.label.strings, counts, options.label_map, options.positive_threshold)
    grades = np.append(scale.grades(channel.label.strings), np.nan)[channel.label.codes]
    fault = find_faults(channel, grades)
    form = scale.name + (" pairs", ", two tables", ", three tables")[channel.tables - 1]
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
        teacher=teacher_scores(channel, wanted) if options.learns_from_teacher else None,
    )
    found: dict[str, Pairs] = {}
    for name, mask in channel.splits.items():
        rows = mask if found else mask | channel.unsorted  # which belong to no split, so the first one counts them
        health = health_of(channel, fault, name, rows, form, skipped=not found)
        instead = f" Or give other {name} pairs: --{name} FOLDER" if purpose == "train" and name in HELD_OUT else ""
        refuse_if_bad(health, _named(location, name), instead)
        found[name] = replace(whole.select(mask & (fault == GOOD)), health=health)
        _log(location, name, found[name])
    return found, scale


def _choose_splits(location: str, channel: Channel, names: Collection[str], purpose: str) -> Channel:
    """Return the channel with the splits to use; a channel of validation or test pairs is used as a whole."""
    if purpose in HELD_OUT:
        whole = np.logical_or.reduce([*channel.splits.values(), channel.unsorted])
        return replace(channel, splits={"all": whole}, unsorted=np.zeros_like(whole))
    used = {name: mask for name, mask in channel.splits.items() if name in (*names, "all")}
    if not used or (purpose and not {purpose, "all"} & used.keys()):
        instead = f"Give other pairs: --{purpose} FOLDER" if purpose else "Give other pairs."
        raise UserError(f"{location} has no rows of the split {purpose or ' or '.join(SPLITS)}", instead)
    if others := ", ".join(channel.splits.keys() - used.keys()):
        log.info("%s: not using the rows of split %s, which has a channel of its own", location, others)
    return replace(channel, splits=used)


def _refuse_outlier(
    channel: Channel, wanted: NDArray[np.bool_], counts: NDArray[np.int64], known: Scale | None
) -> None:
    """Refuse a label that a single mistake may have put far outside the scale: it would move the whole scale.

    Args:
        channel: The channel.
        wanted: [N] the rows that are used.
        counts: [L] number of such rows with each label.
        known: The scale of the training pairs; None where these are read.
    """
    labels = channel.label.strings
    outlier = find_outlier(labels, counts, known)
    if not outlier:
        return
    row = int(np.flatnonzero(wanted & (channel.label.codes == outlier.index))[0])
    said = f"{channel.place_of(row)}: the label {quoted(labels[outlier.index].as_py())} {outlier.why}"
    if outlier.refused:
        raise UserError(said, _hint_for_outlier(label_map_of(labels, counts), known))
    log.warning("%s; one very large value makes all others small: cap it, or put the numbers into a few grades", said)


def _hint_for_outlier(label_map: str, known: Scale | None) -> str:
    hint = "Correct it; leave the cell empty if it means that nobody judged the pair"
    if not label_map:
        return f"{hint}."
    if known:  # whose labels the map must have, too
        return f"{hint}; or, if it is right, give the grade of every label, those for training included: --label_map"
    joint = "=" if label_map.startswith("-") else " "  # else the command line takes -1=-1 for an option
    return f"{hint}; or, if it is right, give the grade of every label: --label_map{joint}{label_map}"


def _log(location: str, name: str, pairs: Pairs) -> None:
    health = pairs.health
    bad = ", ".join(f"{count:,} {kind}" for kind, count in health.bad.items())
    log.info(
        f"{_named(location, name)} ({health.form}): {health.rows:,} rows, {len(pairs):,} pairs of "
        f"{len(pairs.queries):,} queries and {len(pairs.texts):,} texts; left out: {bad or 'none'}"
    )


def _named(location: str, split: str) -> str:
    return location if split == "all" else f"{location} split {split}"


def _compact(
    strings: pa.LargeStringArray | pa.ChunkedArray, codes: NDArray[np.int32]
) -> tuple[pa.LargeStringArray, NDArray[np.int32]]:
    """Return the strings that some code refers to, in one piece, and the codes that refer to them there."""
    used = np.zeros(len(strings), bool)
    used[codes] = True
    if not used.all():
        strings, codes = strings.filter(pa.array(used)), (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
    return strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings, codes
