"""The rules of reading once more, in plain Python, row by row: what the property tests hold the readers to.

Nothing here is shared with the package, and nothing is fast.
"""

import html
import itertools
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field


class RefusedError(Exception):
    """The input must be refused."""


# Files


def csv_rows(text, separator):
    """Return (line, cells) of every row of a csv file, the header first; cells that span lines are checked."""
    said = f"sep={separator}\n"
    text = "\n" + text.removeprefix(said) if text.startswith(said) else text
    rows, cells, cell, state = [], [], "", "start"
    spans = []
    line = begin = 1
    head = 0  # where the current row begins
    opened = 0  # the line in which the current cell was opened
    end = len(text)
    for place, mark in enumerate(text):
        after = text[place + 1] if place + 1 < end else ""
        if state == "escaped":  # the second of two quotation marks
            state = "inside"
        elif state == "inside" and mark == '"' and after == '"':
            cell, state = cell + '"', "escaped"
        elif state == "inside" and mark == '"':
            state = "text"
            if line > opened and text[place + 1 :].lstrip(" ")[:1] not in (separator, "\n", ""):
                raise RefusedError
        elif state == "inside":
            cell += mark
        elif state == "start" and mark == '"':
            state, opened = "inside", line
        elif mark in (separator, "\n"):
            cells.append(cell)
            cell, state = "", "start"
            if mark == "\n":
                if text[head:place].strip(separator):  # else a blank line, or one of empty cells
                    rows.append((begin, cells))
                    spans += _span(text, begin, line, separator, len(rows[0][1]) if len(rows) > 1 else 0)
                cells, begin, head = [], line + 1, place + 1
        else:
            cell, state = cell + mark, "text"
        line += mark == "\n"
    if state in ("inside", "escaped"):
        raise RefusedError
    if text[head:].strip(separator):
        rows.append((begin, [*cells, cell]))
        spans += _span(text, begin, line, separator, len(rows[0][1]) if len(rows) > 1 else 0)
    if not rows:
        raise RefusedError
    rows = [(begin, list(map(_value, cells))) for begin, cells in rows]
    _check_spans(spans, [cells for _, cells in rows[1:] if len(cells) == len(rows[0][1])], len(rows[0][1]), separator)
    return rows


def _value(cell):
    return "" if cell == r"\N" else cell


def _span(text, begin, end, separator, columns):
    """Return the lines of a row, split, if each of them has as many cells as a row."""
    lines = [line.split(separator) for line in text.split("\n")[begin - 1 : end]]
    alike = columns > 1 and len(lines) > 1 and all(len(line) == columns for line in lines)
    return [lines] if alike else []


def _check_spans(spans, rows, columns, separator):
    """Refuse lines with what the rows have in all columns of few values, or very many lines if there are none.

    Lines with an empty cell where no row has one are not refused.
    """
    values = [{row[place] for row in rows} for place in range(columns)]
    few = [place for place, known in enumerate(values) if len(known) ** 2 <= len(rows) and known - {""}]
    for lines in spans:
        known = [[_value(line[place].strip('"')) in values[place] for place in few] for line in lines]
        likely = all(map(all, known)) if few else len(lines) >= (2 if separator == "\t" else 10)
        if likely and all(line[place] for line in lines for place in range(columns) if "" not in values[place]):
            raise RefusedError


def json_rows(text):
    """Return (line, object) of every line of a JSON lines file, its numbers as they are written."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                item = json.loads(line, parse_int=str, parse_float=str, parse_constant=lambda _: None)
            except ValueError:
                raise RefusedError from None
            if not isinstance(item, dict):
                raise RefusedError
            rows.append((number, item))
    if not rows:
        raise RefusedError
    return rows


def as_text(value):
    """Return a value of a JSON line as text, None where it is missing."""
    if isinstance(value, list):
        return " ".join(scalar_as_text(item) for item in value if item is not None) or None
    return None if value is None else scalar_as_text(value) or None


def scalar_as_text(value):
    if isinstance(value, dict | list):
        raise RefusedError
    if isinstance(value, bool):
        return str(value).lower()
    if any("\ud800" <= mark <= "\udfff" for mark in value):
        raise RefusedError
    return value


# Texts and labels


def clean(text):
    """Return a text without markup, control characters and superfluous white space; None if nothing is left."""
    if text is None:
        return None
    text = re.sub(r"<!--[\s\S]*?-->|<[A-Za-z/!][^<>]*>", " ", text)
    text = re.sub(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);", lambda found: html.unescape(found[0]), text)
    kept = []
    for mark in text:
        code = ord(mark)
        if unicodedata.category(mark).startswith("Z") or mark in "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85":
            kept.append(" ")
        elif not (code < 9 or 14 <= code < 28 or 127 <= code < 160 or mark in "\xad\u200b\ufeff"):
            kept.append(mark)
    return re.sub(" +", " ", "".join(kept)).strip(" ") or None


ESCI = {"e": 1, "s": 0.1, "c": 0.01, "i": 0, "exact": 1, "substitute": 0.1, "complement": 0.01, "irrelevant": 0}
WANDS = {"exact": 1, "partial": 0.5, "irrelevant": 0}


def normal(label):
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", label.strip().lower())


def number(label):
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", label):
        return float(label)
    return {"true": 1.0, "false": 0.0, "t": 1.0, "f": 0.0}.get(label)


def scale_of(labels):
    """Return a function from a label to (gain, relevant), None for unknown labels."""
    words = [normal(label) for label in labels]
    numbers = [number(word) for word in words if number(word) is not None]
    counts = [sum(word in ESCI for word in words), sum(word in WANDS for word in words), len(numbers)]
    refuse_outliers(numbers)
    if not any(counts):
        raise RefusedError
    best = counts.index(max(counts))
    if best < 2:
        known, threshold = ((ESCI, 0.1), (WANDS, 1))[best]
        return lambda label: (
            (known[normal(label)], known[normal(label)] >= threshold) if normal(label) in known else None
        )
    if set(numbers) <= {0, 1} or set(numbers) <= {-1, 1}:
        low = 0 if set(numbers) <= {0, 1} else -1
        grades = {low: (0, False), 1: (1, True)}
        return lambda label: grades.get(number(normal(label)))
    smallest, largest = min(numbers), max(numbers)
    low = smallest if smallest < 0 else min(1, int(smallest))
    threshold = int(round((low + (largest - low) * 2 / 3) * 100, 6) // 1) / 100

    def graded(label):
        grade = number(normal(label))
        return None if grade is None else (max(grade - low, 0), grade >= threshold)

    return graded


def refuse_outliers(numbers):
    if any(abs(grade) > 3.4028234663852886e38 for grade in numbers):
        raise RefusedError
    if len(set(numbers)) < 3:
        return
    if len(set(numbers)) <= 16:
        refuse_above(numbers, [[0, 1], [-1, 1]])
    if min(numbers) < 0:
        refuse_above([-grade for grade in numbers], [[-1, 0], [-1, 1]], low_side=True)


def refuse_above(numbers, pairs, low_side=False):
    levels, count = sorted(set(numbers)), len(numbers)
    few = max(count // 100, min(3, count // 10))
    for place in range(2, len(levels)):
        alone = len(levels) == 3 and levels[:2] in pairs
        limit, times = (max(few, count // 20), 2) if alone else (few, 3)
        rest, gap = levels[place - 1] - levels[0], levels[place] - levels[place - 1]
        above = sum(grade >= levels[place] for grade in numbers)
        if above <= limit and gap >= times * rest * (1 - 1e-9):
            raise RefusedError
    for low, high in pairs:
        others = sum(grade not in (low, high) for grade in numbers)
        above = [grade for grade in numbers if grade > high]
        steps = [high, *sorted(set(above))]
        several = len(steps) > 2 if low_side else len(above) > 1
        honest = several and all(b - a <= high - low for a, b in itertools.pairwise(steps))
        if {low, high} <= set(levels) and others <= max(count // 100, int(count >= 20)) and above and not honest:
            raise RefusedError


# Pairs


@dataclass
class Expected:
    """What is to be read: pairs as (query, text, gain, relevant), and bad rows by kind."""

    pairs: list = field(default_factory=list)
    bad: Counter = field(default_factory=Counter)


def pairs_of(rows, skipped=0):
    """Return what rows of (query, text, label) are, uncleaned, None where something is missing."""
    if not rows:
        raise RefusedError
    commas = [label.strip() for *_, label in rows if label and "," in label]
    if all(re.fullmatch("[-+]?[0-9]+,[0-9]{1,2}", label) for label in commas):
        rows = [(query, text, label and label.replace(",", ".")) for query, text, label in rows]
    grade = scale_of([label for *_, label in rows if label is not None])
    expected, seen = Expected(), {}
    for query, text, label in ((clean(query), clean(text), label) for query, text, label in rows):
        if query is None or text is None or label is None or grade(label) is None:
            missing = [name for name, value in (("query", query), ("text", text), ("label", label)) if value is None]
            expected.bad[f"missing {missing[0]}" if missing else "unknown label"] += 1
        elif (query, text) in seen:
            expected.bad["repeated" if seen[query, text] == grade(label) else "conflicting duplicate"] += 1
        else:
            seen[query, text] = grade(label)
            expected.pairs.append((query, text, *grade(label)))
    if skipped:
        expected.bad["wrong number of cells"] = skipped
    counted = len(expected.pairs) + sum(expected.bad.values())
    if sum(expected.bad.values()) - expected.bad["repeated"] > 0.1 * counted:
        raise RefusedError
    return expected
