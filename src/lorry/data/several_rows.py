"""Find rows of a csv file that span lines and are likely to be several rows, swallowed by a stray quotation mark.

A row that spans lines is several rows if each of its lines, split at the separators, has as many cells as a row has,
none of them empty where no row of the file is, and, in every column that takes few values, one of the values that the
rows of the file have there. A label or a locale is such a column: lines of an honest text may have the right number of
commas, but no label in the right place. Where there is no such column, the number of lines decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lorry.data.rows import MISSING

MAX_VALUES = 1000  # a column with more values is looked at no further
# If so many rows over several lines are honest texts, the others are, too; they are held in memory.
MAX_SPANS = 100_000
MAX_HELD_BYTES = 64 << 20
# So many lines are several rows where no column takes few values. Tabs are rarer in texts than commas.
MANY_LINES = {b"\t": 2}
MANY_LINES_ELSE = 10


@dataclass(frozen=True)
class Span:
    """A row over several lines, each of which has as many cells as a row has.

    Attributes:
        line: In which it begins.
        count: Number of its lines.
        content: Their bytes.
    """

    line: int
    count: int
    content: bytes


def find_span(line: int, row: bytes, separator: bytes, columns: int) -> Span | None:
    """Return a row that begins in this line, with its line feed, as a span, if it is one."""
    count = row.count(b"\n")
    if columns < 2 or count < 2 or row.count(separator) != count * (columns - 1):
        return None
    alike = all(text.count(separator) == columns - 1 for text in row[:-1].split(b"\n"))
    return Span(line, count, row) if alike else None


@dataclass
class SpanCheck:
    """Holds the spans of a file against the values of its columns, which are known only at its end.

    Attributes:
        places: The columns that are read, by their places.
        rows: How many rows were read.
        values: What they have in each of these columns, "" for an empty cell; without columns of very many values.
        filled: Those of these columns in which no row has an empty cell.
        spans: The first ones.
        held: Number of bytes of these.
    """

    places: Sequence[int]
    rows: int = 0
    values: dict[int, set[str]] = field(init=False)
    filled: set[int] = field(init=False)
    spans: list[Span] = field(default_factory=list)
    held: int = 0

    def __post_init__(self) -> None:
        self.values = {place: set() for place in self.places}
        self.filled = set(self.places)

    def add(self, cells: pa.Table, spans: Sequence[Span]) -> None:
        """Take note of some rows, read as they are, in the order of `places`, and of the spans among them."""
        self.rows += len(cells)
        for span in spans:
            if len(self.spans) < MAX_SPANS and self.held < MAX_HELD_BYTES:
                self.spans.append(span)
                self.held += len(span.content)
        for place, column in zip(self.places, cells.columns, strict=True):
            if column.null_count:
                self.filled.discard(place)
            if place in self.values:
                found = pc.unique(column)
                if len(found) <= MAX_VALUES:
                    self.values[place].update(value or "" for value in found.to_pylist())
                if max(len(found), len(self.values[place])) > MAX_VALUES:
                    del self.values[place]

    def find_several(self, separator: bytes) -> Span | None:
        """Return the first span that is likely to be several rows."""
        few = {
            place: known
            for place, known in self.values.items()
            if len(known) ** 2 <= self.rows and any(known)  # a column that is always empty says nothing
        }
        many = MANY_LINES.get(separator, MANY_LINES_ELSE)
        for span in self.spans:
            lines = [line.split(separator.decode()) for line in span.content.decode().removesuffix("\n").split("\n")]
            likely = _have_values(lines, few) if few else span.count >= many
            if likely and all(line[place] for line in lines for place in self.filled):
                return span
        return None


def _have_values(lines: Sequence[Sequence[str]], few: Mapping[int, Set[str]]) -> bool:
    """Tell whether all lines have a known value in every column of few values."""
    return all(_value(line[place]) in known for line in lines for place, known in few.items())


def _value(cell: str) -> str:
    """Return what a cell, as it is written, says; "" where it is missing."""
    cell = cell.strip('"')
    return "" if cell == MISSING else cell
