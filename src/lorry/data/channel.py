"""A channel as rows of (query, text, label): its sources read and its tables joined; rows are not checked yet.

Sources are streamed into memory-mapped Arrow files, every step works on whole columns, and no row becomes a Python
object. What stays in memory is every distinct string once, and four bytes per row and column.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.config import PairOptions
from lorry.data.cleaning import clean
from lorry.data.files import map_column, spool
from lorry.data.schema import SourceSchema, find_schema
from lorry.data.sources import find_sources
from lorry.errors import UserError
from lorry.names import SPLITS

BUCKET_BYTES = 128 << 20  # bytes of a column in which distinct strings are found at once


@dataclass(frozen=True)
class Column:
    """A column of N strings: the distinct ones, and for every row an index into them.

    Attributes:
        strings: [U] the distinct strings; large_string.
        codes: [N] index into `strings`, -1 where the row has no string.
        unmatched: [N] whether the row's id is missing from the table that the string should come from.
    """

    strings: pa.ChunkedArray
    codes: NDArray[np.int32]
    unmatched: NDArray[np.bool_]

    def __getitem__(self, row: int) -> str | None:
        return self.strings[self.codes[row]].as_py() if self.codes[row] >= 0 else None


@dataclass(frozen=True)
class Channel:
    """What the sources of a channel hold, row by row, bad rows included.

    Attributes:
        query: The cleaned queries.
        text: The cleaned product texts.
        label: The labels as they were written.
        splits: For each split, whether a row [N] belongs to it and passes the filters; "all" where there are no splits.
        tables: How many tables were joined: judgements, queries, products.
        sources: Name and split of every source of these tables, in order.
        ends: For each source of judgements, the number of rows in it and those before it.
        first_row: The number of the first row of a source: 1 in files, 0 in data sets.
        skipped: Rows that have the wrong number of cells and were left out.
    """

    query: Column
    text: Column
    label: Column
    splits: dict[str, NDArray[np.bool_]]
    tables: int
    sources: list[tuple[str, str]]
    ends: list[int]
    first_row: int
    skipped: SkippedRows

    def describe(self, row: int) -> str:
        """Return in one line where a row is and what it holds."""
        source = int(np.searchsorted(self.ends, row, side="right"))
        number = row - ([0, *self.ends])[source] + self.first_row
        cells = {"query": self.query[row], "text": self.text[row], "label": self.label[row]}
        held = ", ".join(f"{name} {_short(value)}" for name, value in cells.items())
        return f"{self.sources[source][0]} row {number}: {held}"

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
    schema = find_schema(location, find_sources(location, names, purpose), options)
    sources = [(part.source.name, part.source.split) for table in schema.tables for part in table]
    first_row = schema.judgements[0].source.first_row
    tables = sum(map(bool, schema.tables))
    skipped = SkippedRows()
    with tempfile.TemporaryDirectory(prefix="lorry-") as scratch:
        judgements, queries, products = (
            _load(table, Path(scratch) / f"{number}.arrow", skipped) for number, table in enumerate(schema.tables)
        )
        del schema  # and with it the memory-mapped files of data sets
        wanted = _filter(location, judgements, options)
        return Channel(
            query=_resolve("query", judgements, queries, ["query_id"]),
            text=_resolve("text", judgements, products, ["product_id", "locale"]),
            label=_encode(judgements["label"]),
            splits=_split(judgements, wanted, [split for _, split in sources]),
            tables=tables,
            sources=sources,
            ends=judgements.ends,
            first_row=first_row,
            skipped=skipped,
        )


@dataclass(frozen=True)
class _Table:
    """An Arrow file with our own column names; a column is memory-mapped again at each access."""

    path: Path
    columns: list[str]
    ends: list[int]  # for each of its sources, the number of rows in it and those before it

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return map_column(self.path, column)


def _load(parts: Sequence[SourceSchema], path: Path, skipped: SkippedRows) -> _Table:
    """Stream the sources of one table into the Arrow file `path`, with our own column names and cleaned texts."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    schema = pa.schema([(name, pa.large_string()) for name in names])
    ends: list[int] = []

    def batches() -> Iterator[pa.Table]:
        rows = 0
        for part in parts:
            needed = list(dict.fromkeys(column for columns in part.columns.values() for column in columns))
            for batch in part.source.read_batches(needed, skipped.add):
                rows += batch.num_rows
                yield pa.table([_cells(batch, part.columns.get(name, []), name) for name in names], schema=schema)
            ends.append(rows)

    spool(batches(), schema, path)
    return _Table(path, names, ends)


def _cells(batch: pa.Table, columns: Sequence[str], name: str) -> pa.ChunkedArray:
    """Return the column that Lorry calls `name`, made of these columns of the batch; null if there are none."""
    if not columns:
        return pa.nulls(batch.num_rows, pa.large_string())
    cells = batch[columns[0]]
    if len(columns) > 1:
        separator = pa.scalar(" ", pa.large_string())
        cells = pc.binary_join_element_wise(*[batch[column] for column in columns], separator, null_handling="skip")
    return clean(cells) if name in ("query", "text") else cells


def _encode(column: pa.ChunkedArray) -> Column:
    """Find the distinct strings of a column, bucket by bucket: all at once would take several times their size.

    The bucket of a string follows from its length and its last two bytes.
    """
    buckets = 1 + column.nbytes // BUCKET_BYTES
    ends = pc.binary_slice(column.cast(pa.large_binary()), -2, None).dictionary_encode().combine_chunks()
    codes = np.full(len(column), -1, np.int32)
    strings: list[pa.Array] = []
    bucket_of_row = (
        pc.binary_length(column).fill_null(0).to_numpy() + ends.indices.fill_null(0).to_numpy(zero_copy_only=False)
    ) % buckets
    for bucket in range(buckets):
        mask = bucket_of_row == bucket
        some = (column.filter(pa.array(mask)) if buckets > 1 else column).combine_chunks().dictionary_encode()
        before = sum(map(len, strings))
        codes[mask] = pc.add(some.indices, before).fill_null(-1)
        strings.append(some.dictionary)
    del some
    pa.default_memory_pool().release_unused()
    return Column(pa.chunked_array(strings, pa.large_string()), codes, np.zeros(len(column), bool))


def _resolve(name: str, rows: _Table, other: _Table, key: Sequence[str]) -> Column:
    """Return a column of the judgements, or of the `other` table, joined on the columns of `key` that both have."""
    if name in rows.columns:
        return _encode(rows[name])
    shared = [column for column in key if column in rows.columns and column in other.columns]
    index = pc.index_in(_key(rows, shared), value_set=_key(other, shared), skip_nulls=True).fill_null(-1).to_numpy()
    column = _encode(other[name])
    return Column(column.strings, np.append(column.codes, np.int32(-1))[index], index < 0)


def _key(rows: _Table, columns: Sequence[str]) -> pa.ChunkedArray:
    if len(columns) == 1:
        return rows[columns[0]]
    return pc.binary_join_element_wise(*[rows[column] for column in columns], pa.scalar("\x1f", pa.large_string()))


def _filter(location: str, rows: _Table, options: PairOptions) -> NDArray[np.bool_]:
    """Return which rows [N] the filters keep."""
    wanted = np.ones(len(rows), bool)
    filters = {"locale": options.locale.lower(), "small_version": "1" if options.small_version else ""}
    for name, value in filters.items():
        if not value:
            continue
        if name not in rows.columns:
            raise UserError(f"{location} has no column for the filter {name}", f"Leave {name} out.")
        column = _encode(rows[name])
        held = np.array([_plain(item) for item in column.strings.to_pylist()] + [""])
        if value not in held:
            shown = ", ".join(held[:6]) or "nothing"
            raise UserError(f"no row of {location} has {name} {value}, only {shown}", f"Change {name} or leave it out.")
        wanted &= (held == value)[column.codes]
    if not wanted.any():
        kept = " that the filters keep" if len(rows) else ""
        raise UserError(f"{location} has no rows{kept}", "Give judged pairs.")
    return wanted


def _split(rows: _Table, wanted: NDArray[np.bool_], of_source: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which rows [N] belong to each split: that of their source, else what a column `split` says.

    A column `split` that holds anything but the names of our splits is ignored.
    """
    if any(of_source):
        lengths = np.diff([0, *rows.ends])
        found = {name: np.repeat([split == name for split in of_source], lengths) & wanted for name in SPLITS}
        return {name: mask for name, mask in found.items() if mask.any()}
    if "split" in rows.columns:
        column = _encode(rows["split"])
        names = [_plain(name) for name in column.strings.to_pylist()]
        if set(names) <= set(SPLITS) and (column.codes >= 0).all():
            found = {name: np.array([item == name for item in names])[column.codes] & wanted for name in SPLITS}
            return {name: mask for name, mask in found.items() if mask.any()}
    return {"all": wanted}


def _plain(value: str) -> str:
    """Return a cell of a filter column in its simplest form: 1.0 and true become 1."""
    plain = value.strip().lower().removesuffix(".0")
    return "1" if plain == "true" else plain


def _short(value: str | None) -> str:
    return "missing" if value is None else repr(value if len(value) <= 40 else value[:39] + "…")
