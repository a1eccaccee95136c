"""Rows as every source yields them: columns of text, in batches, each row with its number.

Every column is read as text, so that the product id "0123" keeps its zero and "NA" is a word. An empty cell is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.wording import short
from lorry.errors import UserError

BATCH_ROWS = 1 << 16  # rows read at once from a file in columns
MISSING = r"\N"  # what MySQL and PostgreSQL write into a text file for a value that is missing
EXACT = 2.0**53  # below it, a double holds every whole number exactly

RowSkipped = Callable[[str], None]  # called with a description of every row that is left out


@dataclass(frozen=True)
class Rows:
    """Some rows of a source.

    Attributes:
        cells: Columns of large_string; a cell without a value is null, never empty.
        numbers: [N] by which a user finds each row: its line in a text file, else its place among the rows.
    """

    cells: pa.Table
    numbers: NDArray[np.int32]


def text_rows(cells: pa.Table, first: int) -> Rows:
    """Return columns of text as rows that are numbered from `first`."""
    return Rows(cells, np.arange(first, first + cells.num_rows, dtype=np.int32))


def select_text(table: pa.Table, columns: Sequence[str], source: str) -> pa.Table:
    """Return the given columns as large_string; an empty string, and a column that is not there, become null.

    Args:
        table: The rows as they were read.
        columns: The columns to return.
        source: The name of the table in an error.

    Raises:
        UserError: A column cannot be read as text, or is not UTF-8.
        pyarrow.ArrowException: A column is damaged.
    """
    missing = pa.nulls(table.num_rows, pa.large_string())
    arrays = [_as_text(table[name], name, source) if name in table.column_names else missing for name in columns]
    return pa.table(arrays, names=list(columns))


def flatten_structs(table: pa.Table) -> pa.Table:
    """Return the table with a column for every field within a field, named with a dot, as in `fields.title`."""
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def without_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text with null in place of empty strings."""
    return pc.if_else(pc.equal(column, ""), None, column)


def _as_text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    try:
        column.validate(full=True)  # Arrow files and parquet files may hold text that is not UTF-8
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if _is_list(column.type):
            column = pa.chunked_array([_join_items(chunk) for chunk in column.chunks], pa.large_string())
        return without_empty(_words(column))
    except pa.ArrowNotImplementedError:
        kind = str(column.type).split("<", 1)[0]
        raise UserError(
            f"column {short(name)} of {source} is of type {kind}, which cannot be read as text", "Name another column."
        ) from None
    except pa.ArrowInvalid as error:
        if "utf8" not in str(error).lower().replace("-", ""):
            raise
        raise UserError(
            f"column {short(name)} of {source} is not UTF-8", "Save it as UTF-8, or name another column."
        ) from error


def _words(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return values as text; whole numbers have no exponent, else ids would not join where some are missing."""
    words = values.cast(pa.large_string())
    if not pa.types.is_floating(values.type):
        return words
    numbers = values.cast(pa.float64())
    whole = pc.and_(pc.less(pc.abs(numbers), EXACT), pc.equal(numbers, pc.trunc(numbers)))
    return pc.if_else(whole, pc.if_else(whole, numbers, 0.0).cast(pa.int64()).cast(pa.large_string()), words)


def _is_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and not pa.types.is_nested(kind.value_type)


def _join_items(lists: pa.Array) -> pa.Array:
    """Return the items of each list [N], one after the other with a space between; null items are left out."""
    items = _words(pc.list_flatten(lists))
    ends = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    kept_before = np.append(0, np.cumsum(items.is_valid().to_numpy(zero_copy_only=False), dtype=np.int64))
    offsets = kept_before[np.append(0, ends)]
    joined = pa.LargeListArray.from_arrays(pa.array(offsets), items.drop_null())
    return pc.binary_join(joined, pa.scalar(" ", pa.large_string()))
