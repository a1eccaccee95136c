"""Arrow files of our own on the disk, so that what is read need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from lorry.errors import UserError


def spool(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write `tables` into the Arrow file `path`, one after the other.

    Raises:
        UserError: It cannot be written, most likely because the disk is full.
    """
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in tables:
                writer.write_table(table)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}", "Set TMPDIR to a folder with more space.") from error


def map_column(path: Path, column: str) -> pa.ChunkedArray:
    """Return a column of an Arrow file, memory-mapped; its pages are released together with it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()[column]
