"""The files of a channel as its tables: parquet, csv, tsv and JSON lines, plain or compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorry.data.csv_files import read_csv, read_header
from lorry.data.json_files import read_fields, read_json
from lorry.data.parquet_files import read_parquet, read_schema
from lorry.data.rows import Rows, RowSkipped
from lorry.data.unpacking import COMPRESSIONS, reading
from lorry.data.wording import listed, plain
from lorry.errors import UserError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
FORMATS = f"{' '.join(SUFFIXES)} (also compressed: {' '.join(COMPRESSIONS)})"


@dataclass(frozen=True)
class FileSource:
    """A file as a table of a channel."""

    path: Path
    split: ClassVar[str] = ""
    """Files do not belong to a split; a column may say which row does."""

    @property
    def name(self) -> str:
        """Return what log, report and errors call the file."""
        return self.path.name

    @property
    def unit(self) -> str:
        """Return what the number of a row counts: lines of a text file, rows of a parquet file."""
        return "row" if file_format(self.path) == ".parquet" else "line"

    def column_names(self) -> list[str]:
        """Return the columns; a field within a field is named with a dot, as in `fields.title`."""
        read = {".parquet": read_schema, ".csv": read_header, ".tsv": read_header}
        with reading(self.path):
            return read.get(file_format(self.path), read_fields)(self.path)

    def read_batches(self, columns: Sequence[str], skipped: RowSkipped) -> Iterator[Rows]:
        """Yield the given columns, batch by batch.

        Args:
            columns: Some of `column_names()`. A JSON line may lack a field, which then is missing.
            skipped: Called with a description of every row of a csv file that has too many or too few cells.

        Raises:
            UserError: The file is damaged, truncated or not UTF-8, or a column cannot be read as text; the message
                names the file and, where known, the line.
        """
        with reading(self.path):
            if file_format(self.path) == ".parquet":
                yield from read_parquet(self.path, columns)
            elif file_format(self.path) in (".csv", ".tsv"):
                yield from read_csv(self.path, columns, skipped)
            else:
                yield from read_json(self.path, columns)


def list_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the data files of a channel, sorted by name, and why each other file is not one, by its name.

    Sub-folders are not searched: the parent folder of train, validation and test must not be read as one channel.
    Hidden files are not mentioned unless they may be meant as pairs.

    Args:
        folder: It may also be a single file.

    Raises:
        UserError: The folder does not exist, or has no file that can be read.
    """
    _check_name(folder)
    with reading(folder):
        if not folder.exists():
            raise UserError(f"{folder} does not exist", "Give the folder that holds the pairs.")
        if not folder.is_dir():
            fault = _fault(folder)
            if fault:
                raise UserError(f"{folder} is no file of pairs: it is {fault}", f"Give a folder, or one of: {FORMATS}.")
            return [folder], {}
        faults = {path: _fault(path) for path in sorted(folder.iterdir())}
    files = [path for path, fault in faults.items() if not fault]
    unused = {plain(path.name): fault for path, fault in faults.items() if fault and not _is_aside(path)}
    if not files:
        inside = listed([path.name for path in faults][:6], "")
        found = f"has no file of pairs, only {inside}" if inside else "is empty"
        raise UserError(f"{folder} {found}", f"Put files there: {FORMATS}.")
    for path in files:
        _check_name(path)
    return files, unused


def file_format(path: Path) -> str:
    """Return the suffix of the format, without that of the compression; "" for other formats and hidden files."""
    name = path.name.lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES and not name.startswith((".", "_")) else ""


def _check_name(path: Path) -> None:
    """Refuse a name that is not UTF-8: Arrow, the log and the report could not name the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the name {plain(path.name)} in {plain(str(path.parent))} is not UTF-8", "Rename it."
        ) from None


def _fault(path: Path) -> str:
    """Return why something is not a data file; "" if it is one."""
    if path.is_dir():
        return "a folder"
    if not path.exists():
        return "a link that leads nowhere"
    if not path.is_file():
        return "neither a file nor a folder"
    if not file_format(_unhidden(path)):
        return f"of another format, {plain(path.suffix)}" if path.suffix else "of another format"
    return "" if file_format(path) else "hidden by its name"


def _is_aside(path: Path) -> bool:
    """Tell whether a file is one that systems and programs leave aside, such as .DS_Store, ._pairs.csv and _SUCCESS."""
    hidden = path.name.startswith((".", "_"))
    return path.name.startswith("._") or (hidden and not file_format(_unhidden(path)))


def _unhidden(path: Path) -> Path:
    return path.with_name(path.name.lstrip("._") or "_")
