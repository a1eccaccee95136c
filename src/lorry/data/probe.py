"""The channel `probe`: pairs of sentences with a score of how similar they are, to see what a model forgets.

A file has the columns sentence1, sentence2 and score, or is one of the STS benchmark as published: tab-separated, no
header, with score and sentences in columns 5, 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lorry.data.files import FileSource, list_files
from lorry.data.health import Health
from lorry.data.pairs import Pairs
from lorry.errors import UserError

COLUMNS = ("sentence1", "sentence2", "score")
STS_COLUMNS = (5, 6, 4)
FEWEST = 10  # pairs: a rank correlation of fewer says nothing
FORM = f"Give a file with the columns {', '.join(COLUMNS)}, or one of the STS benchmark as published."


def read_probe(location: str) -> Pairs:
    """Return the sentences of a probe: the first ones as queries, the others as texts, the scores as gains.

    Args:
        location: A folder, or a file.

    Raises:
        UserError: There is nothing to read, a file is not of such a form, or a score is not a number.
    """
    files, _ = list_files(Path(location))
    rows = [row for path in files for row in (_sts_rows(path) if _is_sts(path) else _table_rows(path))]
    if len(rows) < FEWEST:
        raise UserError(f"the probe {location} has {len(rows)} pairs", f"Give {FEWEST} or more.")
    first, second, score = zip(*rows, strict=True)
    (queries, query), (texts, text) = (_coded(sentences) for sentences in (first, second))
    score_N = np.array(score, np.float32)
    gain = score_N - score_N.min()
    return Pairs(
        queries=queries,
        texts=texts,
        query=query,
        text=text,
        gain=gain,
        relevant=gain >= gain.max() * 2 / 3,
        label=np.zeros(len(rows), np.int8),
        label_names=("",),
        health=Health(len(rows), len(rows), {}, {}, [path.name for path in files], "STS pairs"),
    )


def _coded(sentences: tuple[str, ...]) -> tuple[pa.LargeStringArray, NDArray[np.int32]]:
    """Return the distinct sentences, and the row of each among them."""
    coded = pa.array(sentences, pa.large_string()).dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy().astype(np.int32)


def _is_sts(path: Path) -> bool:
    """Tell whether a file is one of the STS benchmark as published."""
    if path.suffix not in (".csv", ".tsv"):
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        cells = file.readline().split("\t")
    return len(cells) > max(STS_COLUMNS) and _number(cells[STS_COLUMNS[2]]) is not None


def _sts_rows(path: Path) -> Iterator[tuple[str, str, float]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")  # quotation marks are part of the sentences
            if len(cells) <= max(STS_COLUMNS):
                raise UserError(f"{path} line {number} has {len(cells)} cells", FORM)
            yield _row(path, number, *(cells[column] for column in STS_COLUMNS))


def _table_rows(path: Path) -> Iterator[tuple[str, str, float]]:
    source = FileSource(path)
    columns = source.column_names()
    if missing := [column for column in COLUMNS if column not in columns]:
        raise UserError(f"{path} has no column {', '.join(missing)}", FORM)
    for batch in source.read_batches(COLUMNS, lambda description: None):
        cells = [batch.cells[column].to_pylist() for column in COLUMNS]
        for number, *row in zip(batch.numbers.tolist(), *cells, strict=True):
            yield _row(path, number, *row)


def _row(path: Path, number: int, first: str | None, second: str | None, score: str | None) -> tuple[str, str, float]:
    found = _number(score or "")
    if not (first and first.strip() and second and second.strip()) or found is None:
        raise UserError(f"{path} line {number}: {first!r:.40}, {second!r:.40}, score {score!r:.20}", FORM)
    return first.strip(), second.strip(), found


def _number(text: str) -> float | None:
    """Return a finite number; None where there is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
