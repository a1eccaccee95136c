"""Scores that another model, the teacher, gave the judged pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.channel import Channel
from lorry.data.labels import numbers_of
from lorry.data.wording import quoted
from lorry.errors import UserError


def teacher_scores(channel: Channel, wanted: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Return the teacher's score of each row [N], nan where there is none; None where there is no such column.

    An empty cell is no score, and so is NaN, which many libraries write for it.

    Args:
        channel: The rows.
        wanted: Which of them [N] are used.

    Raises:
        UserError: A cell of a used row holds something else than a finite number.
    """
    column = channel.teacher
    if column is None:
        return None
    with np.errstate(over="ignore"):
        scores = numbers_of(column.strings).astype(np.float32)
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(column.strings))
    empty = pc.is_in(plain, value_set=pa.array(["", "nan"], plain.type)).to_numpy(zero_copy_only=False)
    wrong = np.append(~np.isfinite(scores) & ~empty, False)[column.codes]  # the last one for rows without a cell
    if (wrong & wanted).any():
        row = int(np.flatnonzero(wrong & wanted)[0])
        raise UserError(
            f"{channel.place_of(row)}: the teacher's score {quoted(column.strings[column.codes[row]].as_py())} is not "
            "a finite number",
            "Correct it; leave the cell empty if the teacher did not score the pair.",
        )
    return np.append(np.where(empty, np.float32(np.nan), scores), np.float32(np.nan))[column.codes]
