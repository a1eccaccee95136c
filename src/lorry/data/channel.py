"""One channel as rows of (query, text, label): its files read, its tables joined, nothing judged yet.

Files stream into memory-mapped Arrow, every step works on whole columns, and a row is never a Python object. What
remains in memory is each distinct string once and four bytes a row for each column.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.config import PairOptions
from lorry.data.cleaning import clean
from lorry.data.files import map_column, read_batches, spool
from lorry.data.schema import Source, find_schema
from lorry.errors import UserError
from lorry.names import SPLITS

BUCKET_BYTES = 128 << 20  # of a column whose distinct strings are found at once


@dataclass(frozen=True)
class Column:
    """A column of N strings: each distinct one once, and an index into them for every row.

    Attributes:
        strings: [U] the distinct strings; large_string.
        codes: [N] index into `strings`, -1 where the row has none.
        unmatched: [N] rows whose id is not in the table that the string should have come from.
    """

    strings: pa.ChunkedArray
    codes: NDArray[np.int32]
    unmatched: NDArray[np.bool_]

    def __getitem__(self, row: int) -> str | None:
        return self.strings[self.codes[row]].as_py() if self.codes[row] >= 0 else None


@dataclass(frozen=True)
class Channel:
    """What the files of a channel hold, row by row, bad rows and all.

    Attributes:
        query: The cleaned queries.
        text: The cleaned product texts.
        label: The labels as they were written.
        splits: Rows [N] (masks) that belong to each split, after the filters; "all" where no column says.
        sources: Names of the files of every table: judgements, queries, products.
        ends: For each file of judgements, how many rows it and those before it have.
        broken: How many rows of the files had too many or too few cells and were left out.
        broken_examples: Some of them, described.
    """

    query: Column
    text: Column
    label: Column
    splits: dict[str, NDArray[np.bool_]]
    sources: list[list[str]]
    ends: list[int]
    broken: int
    broken_examples: list[str]

    def describe(self, row: int) -> str:
        """Say in one line where a row is and what it holds."""
        file = int(np.searchsorted(self.ends, row, side="right"))
        number = row - ([0, *self.ends])[file] + 1
        cells = {"query": self.query[row], "text": self.text[row], "label": self.label[row]}
        held = ", ".join(f"{name} {_short(value)}" for name, value in cells.items())
        return f"{self.sources[0][file]} row {number}: {held}"


def read_tables(folder: Path, options: PairOptions) -> Channel:
    """Read the files of a channel and join its tables.

    Raises:
        UserError: A file or a column is not as it should be, or the filters leave no row.
    """
    schema = find_schema(folder, options)
    broken = _Broken()
    with tempfile.TemporaryDirectory(prefix="lorry-") as scratch:
        judgements, queries, products = (
            _load(table, Path(scratch) / f"{number}.arrow", broken) for number, table in enumerate(schema.tables)
        )
        wanted = _wanted(folder, judgements, options)
        return Channel(
            query=_resolve("query", judgements, queries, ["query_id"]),
            text=_resolve("text", judgements, products, ["product_id", "locale"]),
            label=_encode(judgements["label"]),
            splits=_splits(judgements, wanted),
            sources=[[source.path.name for source in table] for table in schema.tables],
            ends=judgements.ends,
            broken=broken.count,
            broken_examples=broken.examples,
        )


@dataclass
class _Broken:
    """Counts rows that could not be read and remembers a few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __call__(self, description: str) -> None:
        self.count += 1
        if self.count <= 3:
            self.examples.append(description)


@dataclass(frozen=True)
class _Table:
    """An Arrow file with columns under our own names; memory-mapped afresh at each access."""

    path: Path
    columns: list[str]
    ends: list[int]  # for each file that it came from, how many rows it and those before it have

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return map_column(self.path, column)


def _load(sources: Sequence[Source], path: Path, broken: _Broken) -> _Table:
    """Stream the files of one table into the Arrow file `path`, under our own names of the columns, texts cleaned."""
    names = list(dict.fromkeys(name for source in sources for name in source.columns))
    schema = pa.schema([(name, pa.large_string()) for name in names])
    ends: list[int] = []

    def batches() -> Iterator[pa.Table]:
        rows = 0
        for source in sources:
            wanted = list(dict.fromkeys(column for columns in source.columns.values() for column in columns))
            for batch in read_batches(source.path, wanted, broken):
                rows += batch.num_rows
                yield pa.table([_cells(batch, name, source) for name in names], schema=schema)
            ends.append(rows)

    spool(batches(), schema, path)
    return _Table(path, names, ends)


def _cells(batch: pa.Table, name: str, source: Source) -> pa.ChunkedArray:
    columns = source.columns.get(name, [])
    if not columns:
        return pa.nulls(batch.num_rows, pa.large_string())
    cells = batch[columns[0]]
    if len(columns) > 1:
        separator = pa.scalar(" ", pa.large_string())
        cells = pc.binary_join_element_wise(*[batch[column] for column in columns], separator, null_handling="skip")
    return clean(cells) if name in ("query", "text") else cells


def _encode(column: pa.ChunkedArray) -> Column:
    """Find the distinct strings of a column, a bucket at a time: all at once would need several times their size.

    Which bucket a string is in follows from its length and its last two bytes.
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
    """Return a column of the judgements, or that of the `other` table joined by those columns of `key` both have."""
    if name in rows.columns:
        return _encode(rows[name])
    shared = [column for column in key if column in rows.columns and column in other.columns]
    index = pc.index_in(_key(rows, shared), value_set=_key(other, shared), skip_nulls=True).fill_null(-1).to_numpy()
    there = _encode(other[name])
    return Column(there.strings, np.append(there.codes, np.int32(-1))[index], index < 0)


def _key(rows: _Table, columns: Sequence[str]) -> pa.ChunkedArray:
    if len(columns) == 1:
        return rows[columns[0]]
    return pc.binary_join_element_wise(*[rows[column] for column in columns], pa.scalar("\x1f", pa.large_string()))


def _wanted(folder: Path, rows: _Table, options: PairOptions) -> NDArray[np.bool_]:
    """Return which rows [N] the filters keep."""
    wanted = np.ones(len(rows), bool)
    filters = {"locale": options.locale.lower(), "small_version": "1" if options.small_version else ""}
    for name, value in filters.items():
        if not value:
            continue
        if name not in rows.columns:
            raise UserError(f"{folder} has no column for the filter {name}", f"Leave {name} out.")
        column = _encode(rows[name])
        held = np.array([_plain(item) for item in column.strings.to_pylist()] + [""])
        if value not in held:
            shown = ", ".join(held[:6]) or "nothing"
            raise UserError(f"{folder} has no row with {name} {value}, but {shown}", f"Change {name} or leave it out.")
        wanted &= (held == value)[column.codes]
    if not wanted.any():
        raise UserError(f"{folder} has no rows" + (" that the filters keep" if len(rows) else ""), "Give judged pairs.")
    return wanted


def _splits(rows: _Table, wanted: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return the rows of each split; a column `split` that says other things than we know of is left alone."""
    if "split" in rows.columns:
        column = _encode(rows["split"])
        names = [_plain(name) for name in column.strings.to_pylist()]
        if set(names) <= set(SPLITS) and (column.codes >= 0).all():
            found = {name: np.array([item == name for item in names])[column.codes] & wanted for name in SPLITS}
            return {name: mask for name, mask in found.items() if mask.any()}
    return {"all": wanted}


def _plain(value: str) -> str:
    """Return a cell of a filter column in its plainest form: 1.0 and true as 1."""
    plain = value.strip().lower().removesuffix(".0")
    return "1" if plain == "true" else plain


def _short(value: str | None) -> str:
    return "missing" if value is None else repr(value if len(value) <= 40 else value[:39] + "…")
