"""Whatever is in the files: the pairs that plain rules give (`oracle`), or one line; never another exception."""

import contextlib
import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings

from lorry.config import PairOptions
from lorry.data import unpacking
from lorry.data.files import FileSource
from lorry.data.pairs import read_channel
from lorry.errors import UserError

REFUSED = "refused"
TIMES = 20  # so many times the examples in the slow tests
PACKED = {"": lambda content: content, ".gz": gzip.compress, ".zst": zstandard.compress}
blocks = st.sampled_from([4 << 20, 64, 7, 1])
packings = st.sampled_from(list(PACKED))


def two_tests(check, *strategies, examples):
    """Return a check as a fast test of some examples, always the same, and as a slow one of many."""

    def test(count):
        return settings(max_examples=count, deadline=None, derandomize=True, database=None)(given(*strategies)(check))

    return test(examples), pytest.mark.slow(test(TIMES * examples))


@contextlib.contextmanager
def file(name, content, block=4 << 20, packing=""):
    """A file of this content, packed, that is read in blocks of so many bytes."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(unpacking, "BLOCK_BYTES", block):
        path = Path(folder) / (name + packing)
        path.write_bytes(PACKED[packing](content))
        yield path


def one_line(work):
    """Return what `work` gives, REFUSED where it ends in one line."""
    try:
        return work()
    except UserError as error:
        line = str(error)
    assert line.isprintable()
    assert len(line) < 1500
    return REFUSED


def by_the_rules(work):
    try:
        return work()
    except oracle.RefusedError:
        return REFUSED


def rows_of(path, columns):
    """Return (line, cells) of every row, and how many were skipped."""
    skipped, found, source = [], [], FileSource(path)
    source.column_names()  # which comes first, and looks at the beginning of the file
    for rows in source.read_batches(columns, skipped.append):
        found += zip(
            rows.numbers.tolist(),
            map(tuple, zip(*map(list, rows.cells.to_pydict().values()), strict=True)),
            strict=True,
        )
    return found, len(skipped)


# csv files, mark by mark

LINES = [
    "a,b", '"a",b', 'a,"b', '",b', '"', "", " ", 'a,"b""c"', 'a"b,"', ",", '"a\n"b,\n",c', '"x, y",z"', '"",""', 'a,5"',
    '"a\r\nb",c', ",,", r"\N,b", r'"\N",a',
]  # fmt: skip
some_lines = st.lists(st.sampled_from(LINES), max_size=25)
FEW_VALUES = [
    "a,b", "b,a", "a,a", 'a,"b', 'b",a', '"a,b', 'a",b', 'a,"c', 'c",a', '"b,c d,', 'b,"c\nd,a"', r"\N,a", '",b', "a,",
]  # fmt: skip
few_lines = st.lists(st.sampled_from(FEW_VALUES), max_size=40)
bodies = st.text(st.sampled_from('"",,\n\nab'), max_size=60) | st.builds("\n".join, some_lines | few_lines)


def check_csv(body, separator, said, block, packing):
    text = f"{said}left,right\n{body}".replace(",", separator)

    def expected():
        rows = oracle.csv_rows(text.replace("\r\n", "\n"), separator)[1:]
        whole = [(line, tuple(cell or None for cell in cells)) for line, cells in rows if len(cells) == 2]
        return whole, len(rows) - len(whole)

    with file("a.tsv" if separator == "\t" else "a.csv", text.encode(), block, packing) as path:
        assert one_line(lambda: rows_of(path, ["left", "right"])) == by_the_rules(expected)


test_csv, test_csv_at_length = two_tests(
    check_csv, bodies, st.sampled_from(",\t;|"), st.sampled_from(["", "", "sep=,\n"]), blocks, packings, examples=150
)


# JSON lines, line by line

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**53 + 1, 10**30, 0.5, 1e400, float("nan")])
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(st.sampled_from(["id", "a", "b.c"]), values, max_size=3)
odd_lines = ["", " ", "{}", '{"id": "\\ud800"}', '{"id": "2024-01-01"}', "null", "1", "[]", '{"id": 1', '{"id": 1},']
json_lines = (
    st.builds(json.dumps, objects, ensure_ascii=st.booleans())
    | st.builds(json.dumps, objects)
    | st.sampled_from(odd_lines)
)


def check_json(lines, block, packing):
    content = "\n".join(lines).encode("utf-8", "surrogatepass")

    def expected():
        items = oracle.json_rows("\n".join(lines))
        return [(line, (oracle.as_text(item.get("id")), oracle.as_text(item.get("a")))) for line, item in items], 0

    with file("a.jsonl", content, block, packing) as path:
        assert one_line(lambda: rows_of(path, ["id", "a"])) == by_the_rules(expected)


test_json, test_json_at_length = two_tests(
    check_json, st.lists(json_lines, max_size=12), blocks, packings, examples=100
)


# Channels

WORDS = [
    "sofa", "red sofa", "lamp", 'a 5" pipe', '"q" r', "x, y; z|w\tv", "two\nlines", "é 日本 👩‍👧", "<b>x</b>",
    "&amp; &lt;", "a\x00b\u200b", "\u00a0", "<br>", "", "=1+1", "NA", "007", "-", "\ufeffx", "\x85", "a  b", "x < y",
]  # fmt: skip
texts = (
    st.none()
    | st.sampled_from(WORDS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.integers(0, 30).map(str)
)
SCALES = [
    ["0", "1"],
    ["1.0", "0.0"],
    ["E", "S", "C", "I"],
    ["exact", " Partial ", "IRRELEVANT"],
    ["1", "2", "3", "2.33"],
    ["-1", "1"],
    ["0", "5", "2.5"],
    ["true", "False"],
    ["t", "f"],
    ["1", "2,33", "3", "2,5"],
]
ODD = [None, "", "x", "11", "-999", "1e39", "NaN", "1e999", "1,5", "1,234", "2"]


@st.composite
def tables(draw):
    """Draw rows of (query, text, label); most labels are of one scale."""
    label = st.sampled_from(draw(st.sampled_from(SCALES)))
    row = st.tuples(st.sampled_from(WORDS[:8]) | texts, st.sampled_from(WORDS[:8]) | texts, label)
    rows = draw(st.lists(row, max_size=40))
    for place in draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=3)):
        if rows:
            rows[place] = (*rows[place][:2], draw(st.sampled_from(ODD)))
    return rows * draw(st.sampled_from([1, 1, 5]))


HEADER = ["query", "title", "label"]


def as_csv(rows, separator, quoting, end):
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=separator, quoting=quoting, lineterminator="\r\n")
    writer.writerows([HEADER, *[[cell or "" for cell in row] for row in rows]])
    return sink.getvalue().replace("\r\n", end).encode()


def as_json(rows, numbers):
    """Return the rows as JSON lines, labels as numbers where they are written like those."""
    lines = []
    for row in rows:
        cells = dict(zip(HEADER, map(json.dumps, row), strict=True))
        if numbers and row[2] and row[2].lstrip("-").replace(".", "", 1).isdigit():
            cells["label"] = row[2]
        lines.append("{" + ", ".join(f'"{name}": {cell}' for name, cell in cells.items() if cell != "null") + "}\n")
    return "".join(lines).encode()


def as_parquet(rows, kind):
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(3)]
    if kind == "dictionary":
        columns = [column.dictionary_encode() for column in columns]
    elif kind == "list":
        columns[1] = pa.array([None if text is None else [None, text] for _, text, _ in rows], pa.list_(pa.string()))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=HEADER), sink)
    return sink.getvalue()


FORMATS = {
    "comma": ("a.csv", lambda rows: as_csv(rows, ",", csv.QUOTE_MINIMAL, "\n")),
    "semicolon": ("a.csv", lambda rows: as_csv(rows, ";", csv.QUOTE_ALL, "\r\n")),
    "bar": ("a.csv", lambda rows: as_csv(rows, "|", csv.QUOTE_ALL, "\r")),
    "tab": ("a.tsv", lambda rows: as_csv(rows, "\t", csv.QUOTE_MINIMAL, "\n")),
    "JSON": ("a.jsonl", lambda rows: as_json(rows, numbers=False)),
    "JSON numbers": ("a.json", lambda rows: as_json(rows, numbers=True)),
    "parquet": ("a.parquet", lambda rows: as_parquet(rows, "text")),
    "parquet dictionary": ("a.parquet", lambda rows: as_parquet(rows, "dictionary")),
    "parquet list": ("a.parquet", lambda rows: as_parquet(rows, "list")),
}


def check_channel(rows, form, block, packing):
    name, write = FORMATS[form]
    if form in ("comma", "tab"):  # written as separators only, such rows are left out
        rows = [row for row in rows if any(row)]

    def found():
        (pairs,) = read_channel(path.parent, PairOptions()).values()
        strings = [
            (pairs.queries[int(q)].as_py(), pairs.texts[int(t)].as_py())
            for q, t in zip(pairs.query, pairs.text, strict=True)
        ]
        assert pairs.health.rows == len(rows)
        assert pairs.health.kept == len(pairs)
        gains = [round(float(gain), 4) for gain in pairs.gain]
        return [(*pair, gain, bool(r)) for pair, gain, r in zip(strings, gains, pairs.relevant, strict=True)], Counter(
            pairs.health.bad
        )

    def expected():
        known = oracle.pairs_of([tuple(cell or None for cell in row) for row in rows])
        return [(query, text, round(gain, 4), relevant) for query, text, gain, relevant in known.pairs], known.bad

    with file(name, write(rows), block, packing) as path:
        assert one_line(found) == by_the_rules(expected)


test_channels, test_channels_at_length = two_tests(
    check_channel, tables(), st.sampled_from(list(FORMATS)), blocks, packings, examples=150
)


# Damage

GOOD = [(f"query {row // 2}", f"title {row}", str(row % 2)) for row in range(20)]
CONTENTS = {
    "a.csv": as_csv(GOOD, ",", csv.QUOTE_ALL, "\n"), "a.jsonl": as_json(GOOD, True), "a.json": as_json(GOOD, False),
    "a.parquet": as_parquet(GOOD, "string"),
}  # fmt: skip
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=6)), min_size=1, max_size=3)


def check_damage(name, packing, changes):
    content = PACKED[packing](CONTENTS[name])
    for place, length, new in changes:
        at = int(place * len(content))
        content = content[:at] + new + content[at + length :]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / (name + packing)).write_bytes(content)
        one_line(lambda: read_channel(folder, PairOptions()))


test_damage, test_damage_at_length = two_tests(
    check_damage, st.sampled_from(list(CONTENTS)), packings, edits, examples=150
)
