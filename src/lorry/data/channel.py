"""A channel as rows of (query, text, label): its sources read and its tables joined; rows are not checked yet.

Sources are streamed into memory-mapped Arrow files, every step works on whole columns, and no row becomes a Python
object. What stays in memory is every distinct string once, and four bytes per row and column.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.config import PairOptions
from lorry.data.cleaning import clean
from lorry.data.schema import SourceSchema, find_schema
from lorry.data.sources import OTHER_NAMES, find_sources
from lorry.data.spool import map_column, spool
from lorry.data.strings import Column, encode, join, join_ids
from lorry.data.wording import listed, plain
from lorry.errors import UserError
from lorry.names import SPLITS

log = logging.getLogger("lorry")


@dataclass(frozen=True)
class Channel:
    """What the sources of a channel hold, row by row, bad rows included.

    Attributes:
        query: The cleaned queries.
        text: The cleaned product texts.
        label: The labels as they were written.
        teacher: Scores of another model as they were written, if there is such a column.
        splits: For each split, whether a row [N] belongs to it and passes the filters; "all" where there are no splits.
        split: What a column `split` says, if there is one.
        unsorted: [N] whether that column should say which split a row belongs to, but says something else.
        tables: How many tables were joined: judgements, queries, products.
        sources: Name and split of every source of these tables, in order.
        ends: For each source of judgements, the number of rows in it and those before it.
        units: For each source of judgements, what the numbers of its rows count: "line" or "row".
        numbers: [N] the number of each row in its source.
        skipped: Rows that have the wrong number of cells and were left out.
        unused: Why a file of the channel is not read, by its name.
    """

    query: Column
    text: Column
    label: Column
    teacher: Column | None
    splits: dict[str, NDArray[np.bool_]]
    split: Column | None
    unsorted: NDArray[np.bool_]
    tables: int
    sources: list[tuple[str, str]]
    ends: list[int]
    units: list[str]
    numbers: NDArray[np.int32]
    skipped: SkippedRows
    unused: dict[str, str]

    def place_of(self, row: int) -> str:
        """Return where a row is, as in "pairs.csv line 7"."""
        source = int(np.searchsorted(self.ends, row, side="right"))
        return f"{self.sources[source][0]} {self.units[source]} {self.numbers[row]}"

    def describe(self, row: int) -> str:
        """Return in one line where a row is and what it holds."""
        held = f"query {self.query.describe(row)}, text {self.text.describe(row)}, label {self.label.describe(row)}"
        if self.split and self.unsorted[row]:
            held += f", split {self.split.describe(row)}"
        return f"{self.place_of(row)}: {held}"

    def sources_of(self, split: str) -> list[str]:
        """Return the names of the sources that may have rows of a split."""
        return [name for name, own in self.sources if split == "all" or own in ("", split)]


@dataclass
class SkippedRows:
    """Counts rows that could not be read, and remembers the first three."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, description: str) -> None:
        """Count one row, described in a line."""
        self.count += 1
        if self.count <= 3:
            self.examples.append(description)


def read_tables(location: str, options: PairOptions, names: Collection[str], purpose: str) -> Channel:
    """Read the sources of a channel and join its tables.

    Args:
        location: A folder, a file, or the URI of a data set on the Hub.
        options: Which columns and rows to read.
        names: The splits to read of a data set that has several.
        purpose: "train", "validation" or "test" where the channel is given as that, else "".

    Raises:
        UserError: A source or a column is not as it should be, or the filters leave no row.
    """
    sources = find_sources(location, names, purpose)
    schema = find_schema(location, sources.tables, options, purpose)
    unused = sources.unused | schema.unused
    for name, reason in unused.items():
        log.warning("%s: %s is not read: %s", location, name, reason)
    read = [(plain(part.source.name), part.source.split) for table in schema.tables for part in table]
    units = [part.source.unit for part in schema.judgements]
    tables = sum(map(bool, schema.tables))
    skipped = SkippedRows()
    with tempfile.TemporaryDirectory(prefix="lorry-") as scratch:
        judgements, queries, products = (
            _load(table, Path(scratch) / f"{number}.arrow", skipped) for number, table in enumerate(schema.tables)
        )
        del schema, sources  # and with them the memory-mapped files of data sets
        if not len(judgements):
            _refuse_empty(location, skipped)
        wanted = _filter(location, judgements, options)
        split = encode(judgements["split"]) if "split" in judgements.columns else None
        splits = _split(location, judgements.ends, split, wanted, [name for _, name in read])
        return Channel(
            query=_resolve("query", judgements, queries, ["query_id"]),
            text=_resolve("text", judgements, products, ["product_id", "locale"]),
            label=encode(judgements["label"]),
            teacher=encode(judgements["teacher"]) if "teacher" in judgements.columns else None,
            splits={name: mask for name, mask in splits.items() if name and mask.any()},
            split=split,
            unsorted=splits.get("", np.zeros(len(judgements), bool)),
            tables=tables,
            sources=read,
            ends=judgements.ends,
            units=units,
            numbers=judgements.numbers,
            skipped=skipped,
            unused=unused,
        )


@dataclass(frozen=True)
class _Table:
    """An Arrow file with our own column names; a column is memory-mapped again at each access."""

    path: Path
    columns: list[str]
    ends: list[int]  # for each of its sources, the number of rows in it and those before it
    numbers: NDArray[np.int32]  # [N] of each row in its source

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return map_column(self.path, column)


def _load(parts: Sequence[SourceSchema], path: Path, skipped: SkippedRows) -> _Table:
    """Stream the sources of one table into the Arrow file `path`, with our own column names and cleaned texts."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    schema = pa.schema([(name, pa.large_string()) for name in names])
    ends: list[int] = []
    numbers = [np.empty(0, np.int32)]

    def batches() -> Iterator[pa.Table]:
        for part in parts:
            needed = list(dict.fromkeys(column for columns in part.columns.values() for column in columns))
            for rows in part.source.read_batches(needed, skipped.add):
                numbers.append(rows.numbers)
                cells = [_cells(rows.cells, part.columns.get(name, []), name) for name in names]
                yield pa.table(cells, schema=schema)
            ends.append(sum(map(len, numbers)))

    spool(batches(), schema, path)
    return _Table(path, names, ends, np.concatenate(numbers))


def _cells(batch: pa.Table, columns: Sequence[str], name: str) -> pa.ChunkedArray:
    """Return the column that Lorry calls `name`, made of these columns of the batch; null if there are none."""
    if not columns:
        return pa.nulls(batch.num_rows, pa.large_string())
    cells = batch[columns[0]]
    if len(columns) > 1:
        separator = pa.scalar(" ", pa.large_string())
        cells = pc.binary_join_element_wise(*[batch[column] for column in columns], separator, null_handling="skip")
    return clean(cells) if name in ("query", "text") else cells


def _refuse_empty(location: str, skipped: SkippedRows) -> NoReturn:
    if not skipped.count:
        raise UserError(f"{location} has no rows", "Give judged pairs.")
    raise UserError(
        f"{location} has no rows: {skipped.count:,} were left out for a wrong number of cells ({skipped.examples[0]})",
        "Let the header have a name for every cell of a row, and put cells that contain the separator in quotation "
        "marks; or save as parquet.",
    )


def _resolve(name: str, rows: _Table, other: _Table, key: Sequence[str]) -> Column:
    """Return a column of the judgements, or of the `other` table, joined on the columns of `key` that both have."""
    if name in rows.columns:
        return encode(rows[name])
    shared = [column for column in key if column in rows.columns and column in other.columns]
    texts = encode(other[name])  # takes most memory, so it comes before the ids
    ids, table_ids = (join_ids([table[column] for column in shared]) for table in (rows, other))
    return join(ids, table_ids, texts)


def _filter(location: str, rows: _Table, options: PairOptions) -> NDArray[np.bool_]:
    """Return which rows [N] the filters keep."""
    wanted = np.ones(len(rows), bool)
    filters = {"locale": options.locale.lower(), "small_version": "1" if options.small_version else ""}
    for name, value in filters.items():
        if not value:
            continue
        if name not in rows.columns:
            raise UserError(f"{location} has no column for the filter {name}", f"Leave {name} out.")
        column = encode(rows[name])
        held = np.array([*(_plain(item) == value for item in column.strings.to_pylist()), False])
        if not held.any():
            shown = listed(column.strings[:6].to_pylist())
            raise UserError(f"no row of {location} has {name} {value}, only {shown}", f"Change {name} or leave it out.")
        wanted &= held[column.codes]
    if not wanted.any():
        raise UserError(f"{location} has no rows that the filters keep", "Give judged pairs.")
    return wanted


def _split(
    location: str, ends: Sequence[int], column: Column | None, wanted: NDArray[np.bool_], of_source: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Return which rows [N] belong to each split: that of their source, else what a column `split` says.

    Where the column names our splits, the rows for which it says something else are those of "". A column that names
    none of them means something else and is not used.
    """
    if any(of_source):
        lengths = np.diff([0, *ends])
        return {name: np.repeat([split == name for split in of_source], lengths) & wanted for name in SPLITS}
    if column is None:
        return {"all": wanted}
    said = [OTHER_NAMES.get(_plain(name), _plain(name)) for name in column.strings.to_pylist()]
    names = np.array([*(name if name in SPLITS else "" for name in said), ""])
    if not (names != "").any():
        log.warning("%s: the column split is not used: it says %s", location, listed(column.strings[:6].to_pylist()))
        return {"all": wanted}
    return {name: (names == name)[column.codes] & wanted for name in (*SPLITS, "")}


def _plain(value: str) -> str:
    """Return a cell of a filter column in its simplest form: 1.0 and true become 1."""
    plain = value.strip().lower().removesuffix(".0")
    return "1" if plain == "true" else plain
