"""Read the files of a channel as streams of Arrow batches: parquet, csv, tsv and JSON lines, plain or compressed.

Every column is read as text, so that the product id "0123" keeps its zero and "NA" is a word. An empty cell is missing.
Files are streamed, never loaded whole: `spool` writes the columns needed to an Arrow file, `map_column` reads one back.
"""

from __future__ import annotations

import codecs
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from lorry.errors import UserError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 16 << 20  # bytes read at once; also the maximum length of a row in a text file
BATCH_ROWS = 1 << 16  # rows read at once from a file in columns

RowSkipped = Callable[[str], None]  # called with a description of every row that is left out


@dataclass(frozen=True)
class FileSource:
    """A file as a table of a channel; see the functions below."""

    path: Path
    split: ClassVar[str] = ""
    """Files do not belong to a split; a column may say which row does."""
    first_row: ClassVar[int] = 1
    """The number of the first row below the header."""

    @property
    def name(self) -> str:
        """Return what log, report and errors call the file."""
        return self.path.name

    def column_names(self) -> list[str]:
        """Return the columns, as `column_names` does."""
        return column_names(self.path)

    def read_batches(self, columns: Sequence[str], skipped: RowSkipped) -> Iterator[pa.Table]:
        """Yield the given columns, as `read_batches` does."""
        return read_batches(self.path, columns, skipped)


def list_files(folder: Path) -> list[Path]:
    """Return the data files of a channel, sorted by name; `folder` may also be a single file.

    Hidden files and files with other suffixes are left out. Sub-folders are not searched: the parent folder of train,
    validation and test must not be read as one channel.

    Raises:
        UserError: The folder does not exist, or has no file that can be read.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist", "Give the folder that holds the pairs.")
    suffixes = f"{' '.join(SUFFIXES)} (also compressed: {' '.join(COMPRESSIONS)})"
    if folder.is_file():
        if not file_format(folder):
            raise UserError(f"{folder} is not a file that Lorry can read", f"Give a folder, or one of: {suffixes}.")
        return [folder]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and file_format(path)]
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6])
        found = f"has no file of pairs, only {inside}" if inside else "is empty"
        raise UserError(f"{folder} {found}", f"Put files there: {suffixes}.")
    return files


def column_names(path: Path) -> list[str]:
    """Return the columns of a file; a field within a field is named with a dot, as in `fields.title`."""
    with _reading(path), _opened(path) as stream:
        if file_format(path) == ".parquet":
            return list(flatten_structs(pa.parquet.ParquetFile(stream).schema_arrow.empty_table()).column_names)
        if file_format(path) in (".csv", ".tsv"):
            with _open_csv(path, stream, pa.csv.ConvertOptions(check_utf8=False), lambda row: "skip") as reader:
                return list(reader.schema.names)
        return next((table.column_names for table in _json_tables(stream)), [])


def read_batches(path: Path, columns: Sequence[str], skipped: RowSkipped) -> Iterator[pa.Table]:
    """Yield the given columns of a file in batches, all as large_string; an empty string becomes null.

    Args:
        path: The file.
        columns: Some of `column_names(path)`. A JSON line may lack a field, which then is null.
        skipped: Called with a description of every row of a csv file that has too many or too few cells.

    Raises:
        UserError: The file is damaged, truncated or not UTF-8, or a column cannot be read as text; the message names
            the file and, where known, the row.
    """
    kind = file_format(path)
    with _reading(path), _opened(path) as stream:
        if kind == ".parquet":
            tables: Iterable[pa.Table] = _parquet_tables(stream, columns)
        elif kind in (".csv", ".tsv"):
            tables = _csv_tables(path, stream, columns, skipped)
        else:
            tables = _json_tables(stream)
        for table in tables:
            yield select_text(table, columns, str(path))


def select_text(table: pa.Table, columns: Sequence[str], source: str) -> pa.Table:
    """Return the given columns as large_string; an empty string, and a column that is not there, become null.

    Args:
        table: The rows as they were read.
        columns: The columns to return.
        source: The name of the table in an error.

    Raises:
        UserError: A column cannot be read as text.
        pyarrow.ArrowException: A column is damaged, or not UTF-8.
    """
    missing = pa.nulls(table.num_rows, pa.large_string())
    arrays = [_as_text(table[name], name, source) if name in table.column_names else missing for name in columns]
    return pa.table(arrays, names=list(columns))


def flatten_structs(table: pa.Table) -> pa.Table:
    """Return the table with a column for every field within a field, named with a dot, as in `fields.title`."""
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


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


def file_format(path: Path) -> str:
    """Return the suffix of the format, without that of the compression; "" for other formats and hidden files."""
    name = path.name.lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES and not name.startswith((".", "_")) else ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if file_format(path) == ".parquet":
        with pa.OSFile(str(path)) as stream:
            if not compression:
                yield stream
                return
            with tempfile.TemporaryFile() as plain:  # parquet is read from its end; a compressed stream cannot be
                shutil.copyfileobj(pa.CompressedInputStream(stream, compression), plain)
                yield plain
    else:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield stream


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow says about a bad file into what the user can do about it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, UnicodeDecodeError) or "utf8" in said.lower().replace("-", ""):
            raise UserError(f"{path} is not UTF-8{_first_bad_byte(path)}", "Save it as UTF-8.") from error
        hint = "Is the file complete, and in the format that its name says?"
        if "from object to array" in said:
            hint = "Write one JSON object per line (JSON lines), not one list."
        elif "straddling" in said:
            hint = f"A row is longer than {BLOCK_BYTES >> 20} MB, or a quotation mark is never closed."
        raise UserError(f"cannot read {path}: {said}", hint) from error


def _first_bad_byte(path: Path) -> str:
    """Return the line and byte of a text file that is not UTF-8, in words; "" where they are not known."""
    if file_format(path) == ".parquet":
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


def _as_text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    column.validate(full=True)  # not every reader checks that text is UTF-8
    try:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar(" ", pa.large_string()))
        column = column.cast(pa.large_string())
    except pa.ArrowNotImplementedError:
        kind = str(column.type).split("<", 1)[0]
        raise UserError(
            f"column {name} of {source} is of type {kind}, which cannot be read as text", "Name another column."
        ) from None
    return pc.if_else(pc.equal(column, ""), None, column)


def _parquet_tables(stream: Any, columns: Sequence[str]) -> Iterator[pa.Table]:
    file = pa.parquet.ParquetFile(stream)
    for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
        yield flatten_structs(pa.table(batch))


def _csv_tables(path: Path, stream: Any, columns: Sequence[str], skipped: RowSkipped) -> Iterator[pa.Table]:
    def leave_out(row: Any) -> str:
        skipped(f"{path.name}: {row.actual_columns} cells instead of {row.expected_columns}: {row.text[:80]!r}")
        return "skip"

    options = pa.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.large_string()),
        check_utf8=False,  # checked in one place for all formats
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    with _open_csv(path, stream, options, leave_out) as reader:
        for batch in reader:
            yield pa.table(batch)


def _open_csv(path: Path, stream: Any, options: Any, bad_row: Callable[[Any], str]) -> Any:
    """Open a csv reader; the separator is the most frequent of tab, comma, semicolon and bar in the header."""
    with _opened(path) as head:
        header = head.read(1 << 20).split(b"\n", 1)[0].decode()
    separator = max("\t,;|", key=header.count) if file_format(path) == ".tsv" else max(",\t;|", key=header.count)
    return pa.csv.open_csv(
        stream,
        pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=bad_row),
        options,
    )


def _json_tables(stream: Any) -> Iterator[pa.Table]:
    """Parse JSON lines block by block, so that fields and types may change from one block to the next."""
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
    except pa.ArrowInvalid as error:  # Arrow counts rows within the block, from 0
        raise pa.ArrowInvalid(
            re.sub(r"in row (\d+)", lambda row: f"in row {int(row[1]) + rows_before + 1}", str(error))
        ) from error
    return flatten_structs(table)
