"""Read csv and tsv files with Arrow, block by block, and know in which line of the file every row begins.

A cell in quotation marks may span lines. A quotation mark that is never closed would then turn the rest of the file
into one cell, without an error, so `_find_rows` follows the quotation marks by itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from lorry.data.rows import MISSING, Rows, RowSkipped
from lorry.data.several_rows import Span, SpanCheck, find_span
from lorry.data.text_lines import Lines, check_length, read_lines
from lorry.data.wording import quoted
from lorry.errors import UserError

MAX_CELL_LINES = 1000
SAID = re.compile(rb"sep=([\t,;|])\n", re.IGNORECASE)  # Excel's first line, which says what the separator is


def read_header(path: Path) -> list[str]:
    """Return the columns of a csv or tsv file."""
    return next(_read_blocks(path)).header


def read_csv(path: Path, columns: Sequence[str], skipped: RowSkipped) -> Iterator[Rows]:
    """Yield the given columns of a csv or tsv file.

    Args:
        path: The file.
        columns: Some of `read_header(path)`.
        skipped: Called with a description of every row that has too many or too few cells.

    Raises:
        UserError: The file is empty or not UTF-8, a quotation mark is never closed, or one closes in another row.
        pyarrow.ArrowException: It cannot be parsed.
    """
    blocks = _read_blocks(path)
    first = next(blocks)  # which has no rows
    check = SpanCheck([first.header.index(column) for column in columns])
    for block in blocks:
        if len(block.lines):
            rows = _parse(path.name, block, columns, skipped)
            check.add(rows.cells, block.spans)
            yield rows
    if span := check.find_several(first.separator):
        _refuse_several(path, span)


@dataclass(frozen=True)
class _Block:
    """Whole rows of a file.

    Attributes:
        content: Their bytes.
        lines: [N] the line of the file in which each row begins; blank lines, and those of empty cells, are no rows.
        spans: Those that span lines and may be several rows.
        separator: Of cells.
        header: The columns of the file.
    """

    content: bytes
    lines: NDArray[np.int32]
    spans: list[Span]
    separator: bytes
    header: list[str]


def _read_blocks(path: Path) -> Iterator[_Block]:
    """Yield the rows of a file, block by block; the first block has none, and comes before any row is looked at."""
    header: list[str] = []
    separator, said, rest = b"", b"", b""
    for lines in read_lines(path):
        block = Lines(rest + lines.content, lines.first - rest.count(b"\n"))
        if block.first == 1:
            said, block = _split_said(block)
        if not header:
            separator = said or _find_separator(path, block.content)
            header, block = _split_header(path, block, separator)
            if header:
                yield _Block(b"", np.empty(0, np.int32), [], separator, header)
        numbers, spans, end = _find_rows(path, block, separator, len(header))
        rest, line = block.content[end:], block.first + block.content.count(b"\n", 0, end)
        check_length(path, line, rest)
        if header:
            content, numbers = _drop_empty(block.content[:end], numbers, block.first, separator)
            yield _Block(content, numbers, spans, separator, header)
    if rest:
        _refuse_quotation(path, line, "and never closed")
    if not header:
        raise UserError(f"{path} is empty", "Write it again, or remove it.")


def _split_said(block: Lines) -> tuple[bytes, Lines]:
    """Return the separator that the first line of a file says, if it does, and the lines below that."""
    found = SAID.match(block.content)
    return (found[1], Lines(block.content[found.end() :], block.first + 1)) if found else (b"", block)


def _find_separator(path: Path, content: bytes) -> bytes:
    """Return the most frequent of tab, comma, semicolon and bar in the header."""
    header = content.lstrip(b"\n").split(b"\n", 1)[0]
    usual = b"\t,;|" if ".tsv" in path.name.lower() else b",\t;|"
    return max((bytes([mark]) for mark in usual), key=header.count)


def _split_header(path: Path, block: Lines, separator: bytes) -> tuple[list[str], Lines]:
    """Return the columns, and the lines below them; no columns where the header is not complete yet."""
    blank = len(block.content) - len(block.content.lstrip(b"\n"))
    row = _find_row(path, block.content, blank, block.first + blank, separator)
    if not row:
        return [], block
    options = pa.csv.ParseOptions(delimiter=separator.decode(), newlines_in_values=True)
    names: list[str] = pa.csv.read_csv(io.BytesIO(row), parse_options=options).column_names
    return names, Lines(block.content[blank + len(row) :], block.first + blank + row.count(b"\n"))


def _parse(name: str, block: _Block, columns: Sequence[str], skipped: RowSkipped) -> Rows:
    left_out: list[int] = []

    def leave_out(row: Any) -> str:
        left_out.append(row.number - 1)
        cells = f"{row.actual_columns} cells instead of {row.expected_columns}"
        skipped(f"{name} line {block.lines[row.number - 1]}: {cells}: {quoted(row.text)}")
        return "skip"

    places = [str(block.header.index(column)) for column in columns]
    table = pa.csv.read_csv(
        io.BytesIO(block.content),
        pa.csv.ReadOptions(
            column_names=[str(place) for place in range(len(block.header))],  # names may occur twice
            block_size=len(block.content) + 1,
            use_threads=False,  # else Arrow does not say which row it leaves out
        ),
        pa.csv.ParseOptions(delimiter=block.separator.decode(), newlines_in_values=True, invalid_row_handler=leave_out),
        pa.csv.ConvertOptions(
            include_columns=places,
            column_types=dict.fromkeys(places, pa.large_string()),
            null_values=["", MISSING],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )
    cells = [table[place] for place in places]
    return Rows(pa.table(cells, names=list(columns)), np.delete(block.lines, left_out))


def _find_rows(path: Path, block: Lines, separator: bytes, columns: int) -> tuple[NDArray[np.int32], list[Span], int]:
    """Return in which line of the file each row [N] begins, the spans, and where in the block the last whole row ends.

    Args:
        path: The file, for errors.
        block: It begins where a row begins.
        separator: Of cells.
        columns: Number of columns; 0 where it is not known yet.
    """
    ends = np.flatnonzero(np.frombuffer(block.content, np.uint8) == ord("\n")) + 1
    begins = np.append(0, ends[:-1])
    is_row, end = ends - begins > 1, len(block.content)  # a blank line is no row
    free = 0  # the first line that belongs to no row yet
    spans: list[Span] = []
    for line in _lines_that_open(block.content, ends, separator):
        if line < free:
            continue
        begin, number = int(begins[line]), block.first + line
        row = _find_row(path, block.content, begin, number, separator)
        free = line + row.count(b"\n") if row else len(ends)
        if free - line > MAX_CELL_LINES:
            _refuse_quotation(path, number, f"and not closed in the next {MAX_CELL_LINES:,} lines")
        is_row[line + 1 : free] = False
        if span := find_span(number, row, separator, columns):
            spans.append(span)
        if not row:
            is_row[line], end = False, begin
    return (np.flatnonzero(is_row) + block.first).astype(np.int32), spans, end


def _drop_empty(
    content: bytes, lines: NDArray[np.int32], first: int, separator: bytes
) -> tuple[bytes, NDArray[np.int32]]:
    """Make blank lines of rows that are only separators, as Excel writes them below a table.

    Args:
        content: Whole rows.
        lines: [N] in which they begin.
        first: The first line.
        separator: Of cells.
    """
    if not content.startswith(separator) and b"\n" + separator not in content:
        return content, lines
    marks = np.frombuffer(content, np.uint8).copy()
    begins = np.append(0, np.flatnonzero(marks == ord("\n")) + 1)[lines - first]
    empty = np.zeros(len(lines), np.bool_)
    mark, behind = marks[begins], marks[begins + 1]  # a look at both spares most rows of which the first cell is empty
    likely = (mark == ord(separator)) & ((behind == ord(separator)) | (behind == ord("\n")))
    for row in np.flatnonzero(likely).tolist():
        if found := _patterns(separator).empty_row.match(content, begins[row]):
            marks[found.start() : found.end()] = ord("\n")
            empty[row] = True
    return marks.tobytes(), lines[~empty]


def _lines_that_open(content: bytes, ends: NDArray[np.int64], separator: bytes) -> list[int]:
    """Return the lines that open a cell and do not close it, if they begin outside quotation marks."""
    if b'"' not in content:
        return []
    offsets = pa.py_buffer(np.append(0, ends))
    lines = pa.Array.from_buffers(pa.large_binary(), len(ends), [None, offsets, pa.py_buffer(content)])
    marked = np.flatnonzero(pc.match_substring(lines, '"'))
    opening = pc.match_substring_regex(lines.take(pa.array(marked)), _patterns(separator).opening_line)
    found: list[int] = marked[np.flatnonzero(opening)].tolist()
    return found


def _find_row(path: Path, content: bytes, begin: int, number: int, separator: bytes) -> bytes:
    """Return the row that begins at a place, in line `number`; nothing if it is not finished.

    Raises:
        UserError: A cell that spans lines goes on behind its quotation mark: that one opens another cell.
    """
    patterns = _patterns(separator)
    if row := patterns.row.match(content, begin):
        return row[0]
    cell = patterns.cells.match(content, begin).end()  # type: ignore[union-attr]  # it may match nothing
    inside = patterns.inside.match(content, cell + 1).end()  # type: ignore[union-attr]
    if inside < len(content):
        opened, closed = (number + content.count(b"\n", begin, place) for place in (cell, inside))
        _refuse_quotation(path, opened, f"and closed in the middle of line {closed}")
    return b""


def _refuse_several(path: Path, span: Span) -> NoReturn:
    others = span.count - 1
    rows = "rows" if others > 1 else "row"
    _refuse_quotation(path, span.line, f"and closed in line {span.line + others}, after {others} other {rows}")


@dataclass(frozen=True)
class _Patterns:
    """Arrow's rules: a quotation mark at the beginning of a cell opens it, and the next single one closes it.

    What follows in the cell is text. Where the cell spans lines, only blanks may follow: see `_find_row`.

    Attributes:
        opening_line: A line, with its line feed, that opens a cell and does not close it; for Arrow.
        row: A whole row, with its line feed.
        cells: Whole cells of a row, each with its separator.
        inside: What is inside quotation marks.
        empty_row: A row of which every cell is empty, with its line feed.
    """

    opening_line: str
    row: re.Pattern[bytes]
    cells: re.Pattern[bytes]
    inside: re.Pattern[bytes]
    empty_row: re.Pattern[bytes]


@lru_cache
def _patterns(separator: bytes) -> _Patterns:
    mark = re.escape(separator.decode())
    text = rf'[^"{mark}\n][^{mark}\n]*'  # of a cell, but for one in quotation marks
    opening = rf'^(?:(?:"(?:[^"]|"")*"(?:{text})?|{text})?{mark})*"(?:[^"]|"")*$'
    inside, inside_line = r'(?:[^"]++|"")*+', r'(?:[^"\n]++|"")*+'
    cell = rf'(?:"{inside}"[ ]*+(?=[{mark}\n])|"{inside_line}"{text}|{text})?+'
    return _Patterns(
        opening_line=opening,
        row=re.compile(rf"{cell}(?:{mark}{cell})*+\n".encode()),
        cells=re.compile(rf"(?:{cell}{mark})*+".encode()),
        inside=re.compile(inside.encode()),
        empty_row=re.compile(rf"{mark}++\n".encode()),
    )


def _refuse_quotation(path: Path, line: int, how: str) -> NoReturn:
    raise UserError(
        f"{path} line {line}: a quotation mark is opened {how}",
        "Close it; if it belongs to the text, write it twice within a cell in quotation marks; or save as parquet.",
    )
