"""Data sets of the library `datasets`: folders that `save_to_disk` wrote, and the rows of any data set.

Rows are record batches of memory-mapped Arrow files. Only the columns that are needed are touched: an image column, for
example, is not decoded and costs nothing. `datasets` takes more than a second to import, so it is imported where it is
used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from lorry.data.rows import BATCH_ROWS, Rows, RowSkipped, flatten_structs, select_text, text_rows
from lorry.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

DICT_FILE, STATE_FILE, INFO_FILE = JSON_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")


@dataclass(frozen=True)
class DatasetSource:
    """A data set, or one split of a larger one, as a table of a channel.

    Attributes:
        dataset: The rows. Their files stay memory-mapped for as long as this object exists.
        name: What log, report and errors call it.
        split: "train", "validation" or "test" where the split decides what the rows are for, else "".
    """

    dataset: Dataset
    name: str
    split: str
    unit: ClassVar[str] = "row"

    def column_names(self) -> list[str]:
        """Return the columns; a field within a field is named with a dot, as in `fields.title`."""
        names: list[str] = flatten_structs(self.dataset.features.arrow_schema.empty_table()).column_names
        return names

    def read_batches(self, columns: Sequence[str], skipped: RowSkipped) -> Iterator[Rows]:
        """Yield the given columns, batch by batch; class labels become the names of their classes.

        Rows are numbered from 0, as `datasets` does.

        Raises:
            UserError: The data set is damaged, or a column cannot be read as text.
        """
        from datasets import ClassLabel

        features = self.dataset.features.flatten()
        labels = {name: features[name].names for name in columns if isinstance(features.get(name), ClassLabel)}
        whole = [name for name in self.dataset.column_names if any(f"{c}.".startswith(f"{name}.") for c in columns)]
        first = 0
        with _reading(self.name):
            for batch in self.dataset.with_format("arrow", columns=whole).iter(BATCH_ROWS):
                table = flatten_structs(batch)
                for name, classes in labels.items():
                    table = table.set_column(table.column_names.index(name), name, _class_names(table[name], classes))
                yield text_rows(select_text(table, columns, self.name), first)
                first += len(table)


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` wrote this folder, completely or not."""
    has_state = (folder / STATE_FILE).is_file() and (folder / INFO_FILE).is_file()
    return has_state or (folder / DICT_FILE).is_file() or any(folder.glob("data-*-of-*.arrow"))


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits of a saved `DatasetDict`; none for a saved `Dataset`.

    Raises:
        UserError: The file that lists them is damaged.
    """
    if not (folder / DICT_FILE).is_file():
        return []
    with _reading(str(folder)):
        names = [str(name) for name in json.loads((folder / DICT_FILE).read_text("utf-8"))["splits"]]
    if not names:
        raise UserError(f"the data set {folder} has no splits", "Save one that has a split train.")
    return names


def open_saved(folder: Path) -> Dataset:
    """Open a saved `Dataset`, memory-mapped.

    Raises:
        UserError: It is incomplete or damaged, or was written by a version of `datasets` that this one cannot read.
    """
    from datasets import load_from_disk

    with _reading(str(folder)):
        return load_from_disk(str(folder), keep_in_memory=False)


def _class_names(codes: pa.ChunkedArray, classes: Sequence[str]) -> pa.ChunkedArray:
    """Return the class of each code [N]; the code -1, by which `datasets` means "no label", becomes null."""
    known = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(classes)))
    return pc.take(pa.array(classes, pa.large_string()), pc.if_else(known, codes, None))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what `datasets` and Arrow say about a bad data set into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot read the data set {name}: {type(error).__name__}: {said}",
            "It may be incomplete: save it again with save_to_disk.",
        ) from error
