"""Read the files of a channel as streams of Arrow batches: parquet, csv, tsv and JSON lines, plain or compressed.

Every column is read as text, so that a product id "0123" stays what it is and "NA" is a word; an empty cell is missing.
Files are streamed, never loaded whole: `spool` writes what is needed into an Arrow file, `map_column` reads it back.
"""

from __future__ import annotations

import codecs
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from lorry.errors import UserError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 16 << 20  # read at once; also the longest row that a text file may have
BATCH_ROWS = 1 << 16

Skipped = Callable[[str], None]  # told of every row that is left out, in words


def list_files(folder: Path) -> list[Path]:
    """Return the data files of a channel in the order of their names; `folder` may also be one file.

    Hidden files and other suffixes are left out, and folders within are not entered: a parent of train, validation
    and test must not be read as one channel.

    Raises:
        UserError: The folder is not there, or holds nothing that can be read.
    """
    if not folder.exists():
        raise UserError(f"{folder} is not there", "Give the folder that holds the pairs.")
    suffixes = f"{' '.join(SUFFIXES)} (also with {' '.join(COMPRESSIONS)} behind)"
    if folder.is_file():
        if not _format(folder):
            raise UserError(f"{folder} is of no known kind", f"Give a folder or a file of these: {suffixes}.")
        return [folder]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _format(path)]
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"{folder} holds no file of pairs, but {inside}", f"Put files there: {suffixes}.")
    return files


def column_names(path: Path) -> list[str]:
    """Return the columns of a file; a field within a field is named with a dot, as in `fields.title`."""
    with _reading(path), _opened(path) as stream:
        if _format(path) == ".parquet":
            return list(_flat(pa.parquet.ParquetFile(stream).schema_arrow.empty_table()).column_names)
        if _format(path) in (".csv", ".tsv"):
            with _open_csv(path, stream, pa.csv.ConvertOptions(check_utf8=False), lambda row: "skip") as reader:
                return list(reader.schema.names)
        return next((table.column_names for table in _json_tables(stream)), [])


def read_batches(path: Path, columns: Sequence[str], skipped: Skipped) -> Iterator[pa.Table]:
    """Yield the given columns of a file, batch by batch, all as large_string; "" and null are both null.

    Args:
        path: The file.
        columns: Names out of `column_names(path)`; JSON lines may lack a field, which then is null.
        skipped: Called with a description of every row of a csv file that has too many or too few cells.

    Raises:
        UserError: The file is damaged, truncated or not UTF-8; the message names it and, where known, the row.
    """
    kind = _format(path)
    with _reading(path), _opened(path) as stream:
        if kind == ".parquet":
            tables: Iterable[pa.Table] = _parquet_tables(stream, columns)
        elif kind in (".csv", ".tsv"):
            tables = _csv_tables(path, stream, columns, skipped)
        else:
            tables = _json_tables(stream)
        for table in tables:
            arrays = [_as_text(table[name]) if name in table.column_names else None for name in columns]
            nothing = pa.nulls(table.num_rows, pa.large_string())
            yield pa.table([nothing if array is None else array for array in arrays], names=list(columns))


def spool(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write `tables` into the Arrow file `path` as they come.

    Raises:
        UserError: It cannot be written, for want of space most likely.
    """
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in tables:
                writer.write_table(table)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}", "Set TMPDIR to a folder with more room.") from error


def map_column(path: Path, column: str) -> pa.ChunkedArray:
    """Return a column of an Arrow file, mapped into memory, not loaded; its pages are let go with it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()[column]


def _format(path: Path) -> str:
    """Return the suffix that tells the kind of file, without compression; "" for none of ours and hidden files."""
    name = path.name.lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES and not name.startswith((".", "_")) else ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if _format(path) == ".parquet":
        with pa.OSFile(str(path)) as stream:
            if not compression:
                yield stream
                return
            with tempfile.TemporaryFile() as plain:  # parquet is read from its end, a compressed stream cannot be
                shutil.copyfileobj(pa.CompressedInputStream(stream, compression), plain)
                yield plain
    else:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield stream


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow says of a bad file into what the user can do about it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, UnicodeDecodeError) or "utf8" in said.lower().replace("-", ""):
            raise UserError(f"{path} is not UTF-8{_first_bad_byte(path)}", "Save it as UTF-8.") from error
        hint = "Is the file whole and of the kind its name says?"
        if "from object to array" in said:
            hint = "Write one JSON object a line (JSON lines), not one list."
        elif "straddling" in said:
            hint = f"A row is longer than {BLOCK_BYTES >> 20} MB, or a quotation mark is never closed."
        raise UserError(f"cannot read {path}: {said}", hint) from error


def _first_bad_byte(path: Path) -> str:
    """Say in which line of a text file UTF-8 ends, "" where that cannot be told."""
    if _format(path) == ".parquet":
        return ""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with _opened(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            pending, _ = decoder.getstate()
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                good = (pending + block)[: error.start]
                return f": line {line + good.count(10)}, byte {hex((pending + block)[error.start])}"
            line += block.count(b"\n")
    return ""


def _flat(table: pa.Table) -> pa.Table:
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar(" ", pa.large_string()))
    column = column.cast(pa.large_string())
    column.validate(full=True)  # that it is UTF-8: not every reader looks
    return pc.if_else(pc.equal(column, ""), None, column)


def _parquet_tables(stream: Any, columns: Sequence[str]) -> Iterator[pa.Table]:
    file = pa.parquet.ParquetFile(stream)
    for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
        yield _flat(pa.table(batch))


def _csv_tables(path: Path, stream: Any, columns: Sequence[str], skipped: Skipped) -> Iterator[pa.Table]:
    def leave_out(row: Any) -> str:
        skipped(f"{path.name}: {row.actual_columns} cells, not {row.expected_columns}: {row.text[:80]!r}")
        return "skip"

    options = pa.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.large_string()),
        check_utf8=False,  # done for all kinds of file in one place
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    with _open_csv(path, stream, options, leave_out) as reader:
        for batch in reader:
            yield pa.table(batch)


def _open_csv(path: Path, stream: Any, options: Any, bad_row: Callable[[Any], str]) -> Any:
    """Open a csv reader whose separator is whichever of tab, comma, semicolon and bar the header has most of."""
    with _opened(path) as head:
        header = head.read(1 << 20).split(b"\n", 1)[0].decode()
    separator = max("\t,;|", key=header.count) if _format(path) == ".tsv" else max(",\t;|", key=header.count)
    return pa.csv.open_csv(
        stream,
        pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=bad_row),
        options,
    )


def _json_tables(stream: Any) -> Iterator[pa.Table]:
    """Parse JSON lines a block at a time, so that a block may have fields or types of its own."""
    rest, rows = b"", 0
    while block := stream.read(BLOCK_BYTES):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield (table := _parse_json(whole, rows))
            rows += table.num_rows
    if rest.strip():
        yield _parse_json(rest, rows)


def _parse_json(lines: bytes, rows_before: int) -> pa.Table:
    if not lines.strip():
        return pa.table({})
    try:
        table = pa.json.read_json(io.BytesIO(lines), pa.json.ReadOptions(block_size=len(lines) + 1))
    except pa.ArrowInvalid as error:  # Arrow counts from the block's start, and from nought
        raise pa.ArrowInvalid(
            re.sub(r"in row (\d+)", lambda row: f"in row {int(row[1]) + rows_before + 1}", str(error))
        ) from error
    return _flat(table)
