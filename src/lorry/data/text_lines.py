"""Text files in blocks of whole lines: UTF-8, checked, with line ends of one kind and the numbers of the lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorry.data.unpacking import read_blocks
from lorry.errors import UserError

MAX_ROW_BYTES = 16 << 20  # a longer line or row is refused: it would have to fit into memory several times

# What a file is that begins with these bytes, and what to do about it.
OTHER_KINDS = {
    b"\xff\xfe": ("UTF-16, not UTF-8", "Save it as UTF-8."),
    b"\xfe\xff": ("UTF-16, not UTF-8", "Save it as UTF-8."),
    b"\x1f\x8b": ("compressed with gzip", "Let its name end in .gz."),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Let its name end in .zst."),
    b"PAR1": ("a parquet file", "Let its name end in .parquet."),
    b"PK\x03\x04": ("a zip archive or an Excel file", "Save it as csv or parquet."),
}


@dataclass(frozen=True)
class Lines:
    """Some lines of a text file.

    Attributes:
        content: In UTF-8; every line ends in a line feed, the last one of the file as well.
        first: The number of the first line, counted from 1.
    """

    content: bytes
    first: int


def read_lines(path: Path) -> Iterator[Lines]:
    r"""Yield the lines of a file in blocks; lines may end in \n, \r\n or \r, and a byte order mark is dropped.

    Raises:
        UserError: The file is empty, not UTF-8, or has a line that is too long.
        OSError: It cannot be read.
    """
    rest, number = b"", 1
    for block in _normal_line_ends(path):
        if number == 1 and not rest:
            _check_kind(path, block)
            block = block.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield _checked(path, Lines(whole + newline, number))
            number += whole.count(b"\n") + 1
        check_length(path, number, rest)
    if rest:
        yield _checked(path, Lines(rest + b"\n", number))
    elif number == 1:
        raise UserError(f"{path} is empty", "Write it again, or remove it.")


def check_length(path: Path, line: int, row: bytes) -> None:
    """Refuse a row that begins in this line and is not finished yet, if it is too long."""
    if len(row) > MAX_ROW_BYTES:
        raise UserError(f"{path} line {line} begins a row of more than {MAX_ROW_BYTES >> 20} MB", "Shorten its texts.")


def _normal_line_ends(path: Path) -> Iterator[bytes]:
    kept = b""  # a carriage return at the end of a block: the next block may begin with its line feed
    for block in read_blocks(path):
        block = kept + block  # noqa: PLW2901
        kept = block[-1:] if block.endswith(b"\r") else b""
        block = block[: len(block) - len(kept)]  # noqa: PLW2901
        yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
    if kept:
        yield b"\n"


def _check_kind(path: Path, block: bytes) -> None:
    for begin, (kind, hint) in OTHER_KINDS.items():
        if block.startswith(begin):
            raise UserError(f"{path} is {kind}", hint)
    if b"\0" in block[:1000].split(b"\n", 1)[0]:
        raise UserError(f"{path} has zero bytes in its first line: it is UTF-16 or no text", "Save it as UTF-8.")


def _checked(path: Path, lines: Lines) -> Lines:
    try:
        lines.content.decode()
    except UnicodeDecodeError as error:
        line = lines.first + lines.content.count(b"\n", 0, error.start)
        raise UserError(
            f"{path} is not UTF-8: line {line}, byte {hex(lines.content[error.start])}", "Save it as UTF-8."
        ) from error
    return lines
