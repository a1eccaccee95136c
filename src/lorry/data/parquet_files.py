"""Read parquet files with Arrow, plain or compressed as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from lorry.data.rows import BATCH_ROWS, Rows, flatten_structs, select_text, text_rows
from lorry.data.unpacking import open_seekable


def read_schema(path: Path) -> list[str]:
    """Return the columns of a parquet file; a field within a field is named with a dot, as in `fields.title`."""
    with open_seekable(path) as stream:
        table = pa.parquet.ParquetFile(stream).schema_arrow.empty_table()
        return list(flatten_structs(table).column_names)


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield some of the columns of a parquet file; rows are numbered from 1.

    Raises:
        UserError: A column cannot be read as text.
        pyarrow.ArrowException, OSError: The file is damaged or truncated.
    """
    first = 1
    with open_seekable(path) as stream:
        for batch in pa.parquet.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=list(columns)):
            rows = text_rows(select_text(flatten_structs(pa.table(batch)), columns, str(path)), first)
            first += len(rows.numbers)
            yield rows
