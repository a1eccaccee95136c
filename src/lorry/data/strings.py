"""Columns of strings as the distinct ones and codes, and columns that come from another table by ids."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.wording import quoted

BUCKET_BYTES = 128 << 20  # bytes of a column in which distinct strings are found at once
ID_SEPARATOR = "\x1f"  # between the parts of an id of several columns


@dataclass(frozen=True)
class Join:
    """What went wrong where a column comes from another table, by ids.

    Attributes:
        unmatched: [N] whether the row's id is missing from the table.
        ambiguous: [N] whether the table has several texts for the id.
        rows: [F] the rows of either kind, in order.
        ids: [F] their ids; large_string.
    """

    unmatched: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_]
    rows: NDArray[np.int64]
    ids: pa.ChunkedArray

    def describe_id(self, row: int) -> str:
        """Return the id of a row of either kind, in quotation marks."""
        value: str | None = self.ids[int(np.searchsorted(self.rows, row))].as_py()
        return quoted(value and value.replace(ID_SEPARATOR, " "))


@dataclass(frozen=True)
class Column:
    """A column of N strings: the distinct ones, and for every row an index into them.

    Attributes:
        strings: [U] the distinct strings; large_string.
        codes: [N] index into `strings`, -1 where the row has no string.
        join: What went wrong, where the column comes from another table.
    """

    strings: pa.ChunkedArray
    codes: NDArray[np.int32]
    join: Join | None = None

    def describe(self, row: int) -> str:
        """Return what a row holds, or the id for which there is not exactly one text."""
        if self.join and self.join.unmatched[row]:
            return f"of the unknown id {self.join.describe_id(row)}"
        value = quoted(self.strings[self.codes[row]].as_py() if self.codes[row] >= 0 else None)
        if self.join and self.join.ambiguous[row]:
            return f"{value} (one of several of id {self.join.describe_id(row)})"
        return value


def fold(strings: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return strings [N] without what most models ignore: in lower case, and with accents in one form (NFC).

    Only strings that are not ASCII go through Python.
    """
    folded, other = pc.ascii_lower(strings), pc.invert(pc.string_is_ascii(strings))
    if not pc.any(other, min_count=0).as_py():
        return folded
    texts = [_composed(_composed(text).casefold()) for text in strings.filter(other).to_pylist()]
    return pc.replace_with_mask(folded, other, pa.array(texts, pa.large_string()))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def encode(column: pa.ChunkedArray) -> Column:
    """Find the distinct strings of a column, bucket by bucket: all at once would take several times their size.

    The bucket of a string follows from its length and its last two bytes.
    """
    buckets = 1 + column.nbytes // BUCKET_BYTES
    ends = pc.binary_slice(column.cast(pa.large_binary()), -2, None).combine_chunks().dictionary_encode()
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
    return Column(pa.chunked_array(strings, pa.large_string()), codes)


def join(ids: pa.ChunkedArray, table_ids: pa.ChunkedArray, texts: Column) -> Column:
    """Return the text that a table has for the id of each row [N], the first one where there are several.

    Args:
        ids: [N] of the rows.
        table_ids: [M] of the rows of the table.
        texts: [M] the column of the table.
    """
    known, code, several = _texts_by_id(table_ids, texts)
    index = pc.index_in(ids, value_set=known, skip_nulls=True).fill_null(-1).to_numpy()
    unmatched, ambiguous = index < 0, several[index]
    faulty = np.flatnonzero(unmatched | ambiguous)
    return Column(texts.strings, code[index], Join(unmatched, ambiguous, faulty, ids.take(pa.array(faulty))))


def _texts_by_id(table_ids: pa.ChunkedArray, texts: Column) -> tuple[pa.Array, NDArray[np.int32], NDArray[np.bool_]]:
    """Return the ids [K] of a table, and of each the code of its first text and whether it has several.

    Codes and marks have one entry more, at the end, for ids that are not in the table.
    """
    keys = table_ids.combine_chunks().dictionary_encode()
    key = keys.indices.fill_null(-1).to_numpy()
    rows = np.flatnonzero(key >= 0)[::-1].astype(np.int32)  # the last first, so that the first is what stays
    key = key[rows]
    code = np.full(len(keys.dictionary) + 1, -1, np.int32)
    code[key] = texts.codes[rows]
    several = np.zeros(len(code), bool)
    several[key[texts.codes[rows] != code[key]]] = True
    return keys.dictionary, code, several


def join_ids(parts: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return ids [N] that are made of several columns, as product and locale."""
    plain = [_plain_ids(part) for part in parts]
    if len(plain) == 1:
        return plain[0]
    return pc.binary_join_element_wise(*plain, pa.scalar(ID_SEPARATOR, pa.large_string()))


def _plain_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids without the .0 that pandas writes behind whole numbers where some are missing."""
    if not pc.any(pc.ends_with(ids, ".0"), min_count=0).as_py():
        return ids
    return pc.replace_substring_regex(ids, r"^([0-9]+)\.0$", r"\1")
