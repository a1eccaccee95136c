"""The meaning of labels: their scale, the gain of each label, and which labels count as relevant.

The scale is found once, from the training pairs, and used for all other pairs.

| labels | gain | relevant, unless `positive_threshold` says otherwise |
| --- | --- | --- |
| E, S, C, I or Exact, Substitute, Complement, Irrelevant | 1, .1, .01, 0 | E and S |
| Exact, Partial, Irrelevant | 1, .5, 0 | Exact |
| 1, true or t, and 0, false, f or -1 | 1, 0 | 1 |
| other numbers, or the numbers of a `label_map` | number - lowest of the scale | the upper third of the scale |

The lowest grade of a scale is 1 where grades start at 1 or above, 0 where they start between 0 and 1, else the smallest
grade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.wording import quoted
from lorry.errors import UserError

ESCI = {"e": 1.0, "s": 0.1, "c": 0.01, "i": 0.0, "exact": 1.0, "substitute": 0.1, "complement": 0.01, "irrelevant": 0.0}
WANDS = {"exact": 1.0, "partial": 0.5, "irrelevant": 0.0}
BOOLEANS = {"true": 1.0, "false": 0.0, "t": 1.0, "f": 0.0}  # t and f are what Postgres writes
NUMBER = r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"
DECIMAL_COMMA = r"^([-+]?[0-9]+),([0-9]{1,2})$"  # with three digits, it may be one thousand and more
MAX_LEVELS = 16  # a scale with more grades is shown in STEPS steps
STEPS = 9
BINARY = ((0.0, 1.0), (-1.0, 1.0))
LARGEST = float(np.finfo(np.float32).max)
RARE = 100  # labels are rare that fewer than one of so many rows has, or very few rows at all
FEW = 3  # such a number of rows, but not more than a tenth of them
FAR = 3  # rare labels are outliers if they are farther from the others than so many times the range of these
# On a scale that is otherwise 0/1 or -1/1, one other number may be a mistake that is made more often. As 3 in 0, 1 and
# 3, it must leave out at least one step: rare 2s, or rare 2s and 3s, are those of an honest scale.
RARE_ALONE, FAR_ALONE = 20, 2
NEAR_ROWS = 20  # in so many rows or more, a single row with another number than 0 and 1 is a mistake, too


@dataclass(frozen=True)
class Scale:
    """A scale of labels.

    Attributes:
        name: What it is called in logs and reports, e.g. "ESCI" or "grades 1..3".
        words: Grade of every label that is a word, by the word in lower case.
        numbers: Which numbers are labels: none, only those of the levels, or all.
        levels: [L] grades in descending order, by which pairs are grouped in reports.
        names: [L] names of the levels.
        lowest: The highest grade that has gain 0.
        threshold: The lowest grade that counts as relevant.
    """

    name: str
    words: dict[str, float]
    numbers: Literal["none", "levels", "all"]
    levels: tuple[float, ...]
    names: tuple[str, ...]
    lowest: float
    threshold: float

    @property
    def lowest_relevant(self) -> str:
        """Return the lowest label that counts as relevant: its name where labels are words, else the threshold."""
        names = [name for name, level in zip(self.names, self.levels, strict=True) if level >= self.threshold]
        return names[-1] if self.numbers == "none" and names else f"{self.threshold:g}"

    def grades(self, labels: pa.Array) -> NDArray[np.float64]:
        """Return the grade of each label [N]; NaN for labels that are not on the scale."""
        normal = _normal(labels)
        grades = _lookup(normal, self.words)
        if self.numbers == "none":
            return grades
        numbers = _numbers(normal)
        if self.numbers == "levels":
            numbers = np.where(np.isin(numbers, self.levels), numbers, np.nan)
        return np.where(np.isnan(grades), numbers, grades)

    def gains(self, grades: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the gain of each grade [N]: at least 0."""
        return np.maximum(grades - self.lowest, 0).astype(np.float32)

    def relevant(self, grades: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether each grade [N] counts as relevant."""
        return grades >= self.threshold

    def nearest_level(self, grades: NDArray[np.float64]) -> NDArray[np.int8]:
        """Return the index of the level nearest to each grade [N]."""
        rising = np.array(self.levels[::-1])
        above = np.searchsorted((rising[1:] + rising[:-1]) / 2, grades)
        return (len(rising) - 1 - above).astype(np.int8)


@dataclass(frozen=True)
class Outlier:
    """A label that does not belong on the scale of the others.

    Attributes:
        index: Which label it is.
        why: What is wrong with it, as the rest of a sentence.
        refused: Whether it must not be read; else it is told of.
    """

    index: int
    why: str
    refused: bool = True


def find_scale(labels: pa.Array, counts: NDArray[np.int64], label_map: str, threshold: float | None) -> Scale:
    """Find the scale that most rows are on.

    Args:
        labels: [L] the distinct labels as they were read.
        counts: [L] number of rows with each label.
        label_map: `name=number,name=number`; "" to choose among the known scales.
        threshold: Lowest grade that counts as relevant, on the scale of the labels; None: see the table above.

    Raises:
        UserError: `label_map` is malformed, or no label is known.
    """
    if label_map:
        return _mapped(parse_label_map(label_map), threshold)
    normal = _normal(labels)
    numbers, words = _numbers(normal), {"ESCI": ESCI, "WANDS": WANDS}
    rows = {name: counts[~np.isnan(_lookup(normal, known))].sum() for name, known in words.items()}
    rows["numbers"] = counts[~np.isnan(numbers)].sum()
    name = max(rows, key=lambda name: rows[name])
    if not rows[name]:
        shown = ", ".join(map(quoted, labels.drop_null()[:5].to_pylist())) or "none"
        raise UserError(f"unknown labels: {shown}", "Give their grades: --label_map good=1,fair=0.5,bad=0")
    if name == "ESCI":
        return Scale(name, ESCI, "none", (1, 0.1, 0.01, 0), ("E", "S", "C", "I"), 0, _or(threshold, 0.1))
    if name == "WANDS":
        return Scale(name, WANDS, "none", (1, 0.5, 0), ("Exact", "Partial", "Irrelevant"), 0, _or(threshold, 1))
    return _numeric(np.unique(numbers[~np.isnan(numbers)]), threshold)


def find_outlier(labels: pa.Array, counts: NDArray[np.int64], known: Scale | None = None) -> Outlier | None:
    """Return a number that does not belong on the scale of the others; None if there is none.

    Rare labels that are far from all others are a mistake or mean "not judged", as 11 among 0 and 1, or -999. So may
    be a very rare number outside 0 and 1, or -1 and 1, where nearly all labels are these two.

    Args:
        labels: [L] the distinct labels as they were read.
        counts: [L] number of rows with each label.
        known: The scale of the training pairs, where it is given; no label within it can move it.
    """
    numbers = np.where(counts > 0, _numbers(_normal(labels)), np.nan)
    if (too_large := np.abs(numbers) > LARGEST).any():
        return Outlier(int(too_large.argmax()), "is a larger number than Lorry can compute with")
    grades, place = np.unique(numbers[~np.isnan(numbers)], return_inverse=True)
    if len(grades) < 3:
        return None
    rows = np.bincount(place, weights=counts[~np.isnan(numbers)]).astype(np.int64)
    far, near = _find_outside(grades, rows)
    outside = far | near
    if known:
        outside &= (grades < known.levels[-1]) | (grades > known.levels[0])
    if not outside.any():
        return None
    below = grades[outside][0] < grades[~outside][0]
    refused = bool(below) or len(grades) <= MAX_LEVELS  # of many numbers, as of clicks, the highest may be far above
    chosen = int(np.flatnonzero(outside)[0 if refused else -1])
    why = _why_far(grades[~outside]) if far[chosen] else _why_near(grades, rows, outside, chosen)
    return Outlier(int(np.flatnonzero(numbers == grades[chosen])[0]), why, refused)


def has_decimal_commas(labels: pa.Array) -> bool:
    """Tell whether some labels have a comma, and all of these are numbers such as 2,33."""
    plain = pc.utf8_trim_whitespace(labels)
    with_comma = plain.filter(pc.match_substring(plain, ","))
    return len(with_comma) > 0 and bool(pc.all(pc.match_substring_regex(with_comma, DECIMAL_COMMA)).as_py())


def numbers_of(strings: pa.Array) -> NDArray[np.float64]:
    """Return strings [N] as numbers, written as labels may be; words are NaN."""
    normal = _normal(strings)
    is_word = pc.match_substring_regex(normal, NUMBER).to_numpy(zero_copy_only=False) == 0
    return np.where(is_word, np.nan, _numbers(normal))


def label_map_of(labels: pa.Array, counts: NDArray[np.int64]) -> str:
    """Return a `label_map` by which every label that is a number means that number; "" where it would be too long."""
    normal = _normal(labels)
    numbers = np.where(counts > 0, _numbers(normal), np.nan)
    places = [int(place) for place in np.argsort(numbers) if not np.isnan(numbers[place])]
    names = dict.fromkeys(normal[place].as_py() for place in places)
    if len(names) > MAX_LEVELS or (np.abs(numbers) > LARGEST).any():
        return ""
    return ",".join(f"{name}={BOOLEANS[name]:g}" if name in BOOLEANS else f"{name}={name}" for name in names)


def _why_far(others: NDArray[np.float64]) -> str:
    return f"is far from nearly all others, {others[0]:g} to {others[-1]:g}"


def _why_near(grades: NDArray[np.float64], rows: NDArray[np.int64], outside: NDArray[np.bool_], chosen: int) -> str:
    most = np.sort(grades[~outside][np.argsort(rows[~outside])[-2:]])  # one alone where 1 is outside as well
    others = " and ".join(f"{grade:g}" for grade in most)
    have = "has" if rows[chosen] == 1 else "have"
    return (
        f"may be a mistake: only {rows[chosen]:,} of {rows.sum():,} rows {have} it, and nearly all others are {others}"
    )


def _find_outside(grades: NDArray[np.float64], rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of the rising grades [G] are rare ones far from the others, and which are very rare ones near."""
    far, near = np.zeros(len(grades), bool), np.zeros(len(grades), bool)
    for sign in (1, -1):
        pairs = [tuple(sorted(sign * grade for grade in binary)) for binary in BINARY]
        rising, counts = (sign * grades)[::sign], rows[::sign]
        # A scale starts at 0 or 1 anyhow, so a low grade that is not negative, as 1 star among 4 and 5, moves nothing.
        moves = (grades < 0) | (sign > 0)
        far |= _far_above(rising, counts, pairs)[::sign] & moves
        near |= _just_above(rising, counts, pairs, low_side=sign < 0)[::sign] & moves
    return far, near


def _far_above(
    grades: NDArray[np.float64], rows: NDArray[np.int64], pairs: Sequence[Sequence[float]]
) -> NDArray[np.bool_]:
    """Return which of the rising grades [G] are rare ones that lie far above the others; `pairs` are BINARY scales."""
    total = int(rows.sum())
    limit = np.full(len(grades), max(total // RARE, min(FEW, total // 10)))
    distance = np.full(len(grades), float(FAR))
    if len(grades) == 3 and tuple(grades[:2]) in pairs:
        limit[2], distance[2] = max(limit[2], total // RARE_ALONE), FAR_ALONE
    rare = rows[::-1].cumsum()[::-1] <= limit
    ranges = grades[:-1] - grades[0]
    wanted = distance[1:] * ranges * (1 - 1e-9)  # 0.9 - 0.3 is below 3 x 0.2
    far = rare[1:] & (ranges > 0) & (np.diff(grades) >= wanted)
    return np.append(False, np.logical_or.accumulate(far))


def _just_above(
    grades: NDArray[np.float64], rows: NDArray[np.int64], pairs: Sequence[Sequence[float]], low_side: bool
) -> NDArray[np.bool_]:
    """Return which of the rising grades [G] are very rare ones above 0 and 1, but no further steps of such a scale.

    Several rows with a 2 on 0/1 are its best matches. On the low side, where the signs of all grades are changed,
    several rows with -1 may still be those that nobody judged.
    """
    total = int(rows.sum())
    found = np.zeros(len(grades), bool)
    for low, high in pairs:
        others, above = ~np.isin(grades, (low, high)), grades > high
        rare = rows[others].sum() <= max(total // RARE, total >= NEAR_ROWS)
        several = (above if low_side else rows[above]).sum() > 1
        steps = several and (np.diff(grades[grades >= high]) <= high - low).all()
        if np.isin((low, high), grades).all() and rare and not steps:
            found |= above
    return found


def parse_label_map(text: str) -> dict[str, float]:
    """Parse `good=1,bad=0` to names in lower case and numbers.

    Raises:
        UserError: It is malformed.
    """
    known = {}
    for item in text.split(","):
        label, _, number = item.rpartition("=")
        name = _normal(pa.array([label], pa.large_string()))[0].as_py()
        try:
            known[name] = float(number)
        except ValueError:
            known[name] = math.nan
        if not name or not abs(known[name]) <= LARGEST:
            raise UserError(
                f"label_map has {quoted(item)}", "Write name=number,name=number, e.g. good=1,fair=0.5,bad=0"
            )
    return known


def _numeric(grades: NDArray[np.float64], threshold: float | None) -> Scale:
    """Return the scale of numeric labels; `grades` are distinct and in ascending order."""
    found = set(grades.tolist())
    if found <= {0.0, 1.0}:
        return Scale("0/1", {}, "levels", (1, 0), ("1", "0"), 0, _or(threshold, 1))
    if found <= {-1.0, 1.0}:
        return Scale("-1/1", {}, "levels", (1, -1), ("1", "-1"), 0, _or(threshold, 1))
    low, high = _lowest(grades[0]), float(grades[-1])
    levels = grades if len(grades) <= MAX_LEVELS else np.linspace(grades[0], high, STEPS)
    descending = tuple(levels[::-1].tolist())
    names = tuple(f"{level:.3g}" for level in descending)
    return Scale(
        f"grades {low:g}..{high:g}", {}, "all", descending, names, low, _or(threshold, _upper_third(low, high))
    )


def _mapped(known: dict[str, float], threshold: float | None) -> Scale:
    descending = tuple(sorted(set(known.values()), reverse=True))
    names = tuple("/".join(name for name, grade in known.items() if grade == level) for level in descending)
    low, high = _lowest(descending[-1]), descending[0]
    return Scale("mapped labels", known, "none", descending, names, low, _or(threshold, _upper_third(low, high)))


def _lowest(smallest: float) -> float:
    return float(smallest) if smallest < 0 else float(min(1, math.floor(smallest)))


def _upper_third(low: float, high: float) -> float:
    """Return where the upper third starts, cut to two decimals: 7/3, the mean of three raters, is written 2.33."""
    return math.floor(round((low + (high - low) * 2 / 3) * 100, 6)) / 100


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _normal(labels: pa.Array) -> pa.Array:
    """Return labels in lower case, 2,33 as 2.33, and whole numbers without the .0 that pandas writes."""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(labels))
    if has_decimal_commas(labels):
        plain = pc.replace_substring_regex(plain, DECIMAL_COMMA, r"\1.\2")
    return pc.replace_substring_regex(plain, r"^([-+]?[0-9]+)\.0+$", r"\1")


def _numbers(labels: pa.Array) -> NDArray[np.float64]:
    """Return labels [N] as numbers: true and false are 1 and 0, other words are NaN."""
    looks = pc.match_substring_regex(labels, NUMBER)
    digits = pc.if_else(looks, pc.ascii_ltrim(labels, "+"), pa.scalar(None, pa.large_string()))
    numbers = digits.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(numbers), _lookup(labels, BOOLEANS), numbers)


def _lookup(labels: pa.Array, known: dict[str, float]) -> NDArray[np.float64]:
    index = pc.index_in(labels, pa.array(list(known), pa.large_string())).fill_null(-1).to_numpy(zero_copy_only=False)
    grades: NDArray[np.float64] = np.array([*known.values(), np.nan])[index]
    return grades
