"""Read JSON lines: one object a line, every value as it is written.

Python's own parser hands out numbers as they are written, which Arrow's does not: it makes doubles of all ids where one
does not fit into 64 bits, and dates of texts that look like dates. A block of lines is parsed at once, as one list,
which costs about as much as Arrow's parser.

The first block says which fields there are. One that occurs only later, and would change what is read, is refused: it
would be ignored, and with a field `split` test rows would be trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lorry.data.column_names import changes_choice
from lorry.data.rows import Rows, without_empty
from lorry.data.text_lines import Lines, read_lines
from lorry.data.wording import quoted, short
from lorry.errors import UserError

ONE_A_LINE = "Write one JSON object per line (JSON lines)"
NOT_ONE_LIST = f"{ONE_A_LINE}, not one list; or move it elsewhere if it holds no pairs."


def read_fields(path: Path) -> list[str]:
    """Return the fields that the first objects have; a field within a field is named with a dot.

    A file .json of one object over several lines, as programs write their settings, has no fields of pairs.
    """
    for block in read_lines(path):
        first = block.content.lstrip().split(b"\n", 1)[0]
        if first and ".json" in map(str.lower, path.suffixes) and _begins_object(first.decode()):
            return []
        objects, _ = _parse(path, block)
        if objects:
            try:
                return list(dict.fromkeys(name for item in objects for name in _names(item)))
            except RecursionError:
                raise UserError(f"{path} is nested too deeply", f"{ONE_A_LINE}.") from None
    raise UserError(f"{path} is empty", "Write it again, or remove it.")


def read_json(path: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield the given fields of the objects of a file; a line may lack a field, which then is missing.

    Raises:
        UserError: A line is no JSON object, or a value cannot be read as text.
    """
    quick, known = True, set[str]()
    for block in read_lines(path):
        parsed = _parse_quickly(block) if quick else None
        quick = parsed is not None
        objects, numbers = parsed or _parse(path, block)
        found = _names_at_any_depth(objects, top_only=quick)
        known = known or found
        late = {name for name in found - known if changes_choice(name, known)}
        _refuse_late(path, late, objects, numbers)
        cells = [_column(path, name, _values(objects, name), numbers) for name in columns]
        yield Rows(pa.table(cells, names=list(columns)), numbers)


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object, and refuse two of one name."""
    item = dict(members)
    if len(item) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {quoted(twice)} twice")
    return item


# Numbers stay as they are written; NaN, which is not JSON but is written by Python, is a missing value.
QUICK = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
CAREFUL = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None, object_pairs_hook=_unique)


def _begins_object(line: str) -> bool:
    """Tell whether a line begins an object that it does not end."""
    try:
        QUICK.decode(line)
    except (ValueError, RecursionError):
        return line.startswith("{")
    return False


def _parse_quickly(block: Lines) -> tuple[list[dict[str, Any]], NDArray[np.int32]] | None:
    """Return what `_parse` does, if it is plain to see that no object has a field twice or a field within a field."""
    objects = _as_one_list(block, QUICK)
    if objects is None or not _has_names(block.content, sum(map(len, objects))):
        return None
    return objects, np.arange(block.first, block.first + len(objects), dtype=np.int32)


def _has_names(content: bytes, count: int) -> bool:
    """Tell whether there are surely no more than so many names of fields: a colon follows each of them.

    To parse carefully instead would make reading short lines slower by half.
    """
    marks = np.frombuffer(content, np.uint8)
    before = marks[np.flatnonzero(marks == ord(":")) - 1]
    blank = (before == ord(" ")) | (before == ord("\t"))
    if blank.any() and re.search(rb'"[ \t]+:', content):
        return False
    return len(before) == count or int((before == ord('"')).sum()) == count


def _parse(path: Path, block: Lines) -> tuple[list[dict[str, Any]], NDArray[np.int32]]:
    """Return the objects [N] of a block and the line of each; blank lines are left out."""
    objects = _as_one_list(block, CAREFUL)
    if objects is not None:
        return objects, np.arange(block.first, block.first + len(objects), dtype=np.int32)
    # line by line, to find out where something is wrong; or there are blank lines
    lines = [
        (number, line) for number, line in enumerate(block.content.decode().split("\n"), block.first) if line.strip()
    ]
    return [_parse_line(path, line, number) for number, line in lines], np.array(
        [number for number, _ in lines], np.int32
    )


def _as_one_list(block: Lines, decoder: json.JSONDecoder) -> list[dict[str, Any]] | None:
    """Return the objects of a block, read as one list; None if they are not one object a line."""
    try:  # there is no line feed within an object that is valid
        objects = decoder.decode(f"[{block.content[:-1].decode().replace(chr(10), ',')}]")
    except (ValueError, RecursionError):
        return None
    whole = len(objects) == block.content.count(b"\n") and set(map(type, objects)) <= {dict}
    return objects if whole else None


def _names_at_any_depth(objects: Sequence[dict[str, Any]], *, top_only: bool) -> set[str]:
    """Return the names of all fields, each without the names of those around it."""
    names: set[str] = set()
    while objects:
        names.update(*objects)
        objects = [] if top_only else [v for item in objects for v in item.values() if type(v) is dict]
    return names


def _refuse_late(path: Path, names: set[str], objects: list[dict[str, Any]], numbers: NDArray[np.int32]) -> None:
    """Refuse fields that the first block of the file does not have."""
    for name in sorted(names):
        place = next(p for p, item in enumerate(objects) if name in _names_at_any_depth([item], top_only=False))
        raise UserError(
            f"{path} line {numbers[place]} has the field {short(name)}, which no earlier line has: it would be ignored",
            "To have it read, give it in the first line as well, at least as null; else rename it or leave it out.",
        )


def _parse_line(path: Path, line: str, number: int) -> dict[str, Any]:
    try:
        item = CAREFUL.decode(line)
    except RecursionError:
        raise UserError(f"{path} line {number} is nested too deeply", f"{ONE_A_LINE}.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {number} is no JSON object: {error.msg} (character {error.pos + 1})",
            NOT_ONE_LIST if line.startswith("[") else f"{ONE_A_LINE}.",
        ) from None
    except ValueError as error:
        raise UserError(f"{path} line {number}: {error}", "Give every field a name of its own.") from None
    if not isinstance(item, dict):
        kinds = {list: "a list", str: "a word or number", bool: "true or false", type(None): "null"}
        raise UserError(
            f"{path} line {number} is {kinds[type(item)]}, not a JSON object",
            NOT_ONE_LIST if isinstance(item, list) else f"{ONE_A_LINE}.",
        )
    return item


def _names(item: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in item.items():
        if isinstance(value, dict):
            yield from _names(value, f"{before}{name}.")
        else:
            yield before + name


def _values(objects: list[dict[str, Any]], name: str) -> list[Any]:
    return [item.get(name) for item in objects] if "." not in name else [_field(item, name) for item in objects]


def _field(item: dict[str, Any], name: str) -> Any:
    if name in item or "." not in name:
        return item.get(name)
    head, _, tail = name.partition(".")
    inner = item.get(head)
    return _field(inner, tail) if isinstance(inner, dict) else None


def _column(path: Path, name: str, values: list[Any], numbers: NDArray[np.int32]) -> pa.ChunkedArray:
    try:
        cells = pa.array(values, pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError):  # there is something else than text, numbers and null
        texts = []
        for value, number in zip(values, numbers, strict=True):
            try:
                texts.append(_as_text(value))
            except ValueError as error:
                where = f"column {short(name)} of {path} line {number}"
                raise UserError(f"{where} holds {error}", "Correct it, or name another column.") from None
        cells = pa.array(texts, pa.large_string())
    return without_empty(pa.chunked_array([cells]))


def _as_text(value: Any) -> str | None:
    """Return a value as text: the items of a list one after the other, without those that are null."""
    if isinstance(value, list):
        return " ".join(text for item in value if (text := _scalar_as_text(item)) is not None)
    return _scalar_as_text(value)


def _scalar_as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        raise ValueError("an object" if isinstance(value, dict) else "a list within a list")
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"half a character: {quoted(value)}") from None
    text: str | None = value
    return text
