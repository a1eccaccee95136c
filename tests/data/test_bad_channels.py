"""Channels as they should not be: each ends in one line that says what is wrong and where, and never in a crash."""

import gzip
import io
import json
import os
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from small_channels import csv_text, judged

from lorry.config import TrainConfig
from lorry.data import unpacking
from lorry.data.pairs import read_splits
from lorry.errors import UserError

PAIRS = csv_text(judged(20))
OBJECTS = "\n".join(json.dumps({"query": q, "title": t, "label": n}) for q, t, n in judged(20)) + "\n"
LONG = "x" * 100_000


def parquet(**columns):
    return parquet_of(list(columns.values()), list(columns))


def parquet_of(arrays, names, **how):
    sink = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(array) if isinstance(array, list) else array for array in arrays], names=names), sink, **how
    )
    return sink.getvalue()


def good(**changes):
    queries, titles, labels = map(list, zip(*judged(20), strict=True))
    return parquet(**{"query": queries, "title": titles, "label": labels} | changes)


def with_rows(*rows, header="query,title,label"):
    return csv_text([*judged(20), *rows], header)


def with_line(line):
    return OBJECTS + line + "\n" + OBJECTS.replace("query ", "question ")


def labels(*values):
    return csv_text([(f"query {row // 2}", f"title {row}", label) for row, label in enumerate(values)])


DAMAGED_TEXT = pa.Array.from_buffers(
    pa.string(), 20, [None, pa.py_buffer(np.arange(21, dtype=np.int32)), pa.py_buffer(b"\xff" * 20)]
)

# Of each: the files, by name, and what the message says.
CASES = {
    # text that is no text
    "an empty csv": ({"a.csv": ""}, ["a.csv is empty", "remove it"]),
    "an empty tsv beside a good csv": ({"a.csv": PAIRS, "b.tsv": ""}, ["b.tsv is empty"]),
    "an empty jsonl": ({"a.jsonl": ""}, ["a.jsonl is empty"]),
    "an empty gz": ({"a.csv.gz": gzip.compress(b"")}, ["a.csv.gz is empty"]),
    "an empty parquet file": ({"a.parquet": b""}, ["cannot read", "a.parquet", "complete"]),
    "blank lines alone, csv": ({"a.csv": "\n\n\r\n\r"}, ["a.csv is empty"]),
    "blank lines alone, jsonl": ({"a.jsonl": "\n  \n"}, ["a.jsonl is empty"]),
    "a byte order mark alone": ({"a.csv": b"\xef\xbb\xbf"}, ["a.csv is empty"]),
    "UTF-16 csv": ({"a.csv": PAIRS.encode("utf-16")}, ["a.csv is UTF-16, not UTF-8", "Save it as UTF-8"]),
    "UTF-16 big-endian jsonl": ({"a.jsonl": b"\xfe\xff" + OBJECTS.encode("utf-16-be")}, ["a.jsonl is UTF-16"]),
    "UTF-16 without a mark": ({"a.csv": PAIRS.encode("utf-16-le")}, ["zero bytes in its first line"]),
    "UTF-32": ({"a.csv": PAIRS.encode("utf-32")}, ["a.csv is UTF-16, not UTF-8"]),
    "half a character at the end": ({"a.csv": PAIRS.encode() + b"caf\xc3"}, ["not UTF-8: line 22, byte 0xc3"]),
    "an Excel file named csv": ({"a.csv": b"PK\x03\x04\x14\0\x06\0" * 9}, ["a.csv is a zip archive or an Excel file"]),
    "a parquet file named csv": ({"a.csv": good()}, ["a.csv is a parquet file", ".parquet"]),
    "a gzip file named csv": ({"a.csv": gzip.compress(PAIRS.encode())}, ["a.csv is compressed with gzip", ".gz"]),
    "a zstd file named jsonl": ({"a.jsonl": zstandard.compress(OBJECTS.encode())}, ["compressed with zstd", ".zst"]),
    "a csv named parquet": ({"a.parquet": PAIRS}, ["cannot read", "a.parquet", "format that its name says"]),
    "a csv named gz": ({"a.csv.gz": PAIRS}, ["cannot read", "a.csv.gz"]),
    "a csv named jsonl": ({"a.jsonl": PAIRS}, ["a.jsonl line 1 is no JSON object", "one JSON object per line"]),
    # damage
    "a parquet file without its middle": ({"a.parquet": good()[:30] + good()[90:]}, ["cannot read", "a.parquet"]),
    "a gz with bytes behind": ({"a.csv.gz": gzip.compress(PAIRS.encode()) + b"more"}, ["cannot read", "a.csv.gz"]),
    "a jsonl of one endless line": (
        {"a.jsonl.zst": zstandard.compress(b" " * (120 << 20))},
        ["a.jsonl.zst line 1 begins a row of more than 16 MB"],
    ),
    "a parquet.gz that unpacks to far too much": (
        {"a.parquet.gz": gzip.compress(b"\0" * (120 << 20))},
        ["unpacks to more than 100,000,000 bytes"],
    ),
    # csv
    "a quotation mark never closed": (
        {"a.csv": PAIRS.replace("title 3", '"title 3')},
        ["line 5: a quotation mark is opened and never closed"],
    ),
    "a quotation mark closed by another": (
        {"a.csv": PAIRS.replace("title 3", '"title 3').replace("title 9", '"title 9"')},
        ["line 5", "in the middle of line 11"],
    ),
    "a header of one endless cell": ({"a.csv": LONG + "\n1\n"}, ["a.csv has xxxxx"]),
    "a header of ten thousand cells": (
        {"a.csv": ",".join(f"column {n}" for n in range(10_000))},
        ["column 0, column 1,", "…"],
    ),
    "an odd header": ({"a.csv": 'query,"\x1b[31mtitle",label\n'}, ["\\x1b[31mtitle"]),
    "too few cells": (
        {"a.csv": csv_text([("q", "t")] * 5 + judged(20))},
        ["5 of 25 rows", "5 wrong number of cells", "line 2: 2 cells instead of 3: 'q,t'"],
    ),
    "too many cells": (
        {"a.csv": with_rows(*[("q", "t", 1, LONG)] * 9)},
        ["9 wrong number of cells", "line 22: 4 cells instead of 3: 'q,t,1,xxx"],
    ),
    "two columns of one name": (
        {"a.csv": csv_text([("q", "t", "u", 1)], "query,title,title,label")},
        ["several columns that may be the product text"],
    ),
    # JSON lines
    "null in the first line": ({"a.jsonl": "null\n" + OBJECTS}, ["a.jsonl line 1 is null, not a JSON object"]),
    "a number in the first line": ({"a.jsonl": "1\n" + OBJECTS}, ["line 1 is a word or number"]),
    "a list in the first line": ({"a.jsonl": "[1]\n" + OBJECTS}, ["line 1 is a list"]),
    "one list of objects": ({"a.json": json.dumps([{"query": "q"}])}, ["line 1 is a list", "one JSON object per line"]),
    "one object over several lines": ({"a.jsonl": json.dumps({"query": "q"}, indent=1)}, ["line 1 is no JSON object"]),
    "settings alone": (
        {"a.json": '{\n "query": 1\n}'},
        ["a.json has no columns (a JSON file needs one object per line)"],
    ),
    "null in a later line": ({"a.jsonl": with_line("null")}, ["a.jsonl line 21 is null"]),
    "a line cut short": (
        {"a.jsonl": OBJECTS + '{"query": "q'},
        ["a.jsonl line 21 is no JSON object: Unterminated string"],
    ),
    "a line nested too deeply": ({"a.jsonl": with_line("[" * 200_000)}, ["a.jsonl line 21 is nested too deeply"]),
    "an object nested too deeply": ({"a.jsonl": '{"query":' * 100_000}, ["a.jsonl line 1 is nested too deeply"]),
    "a field twice": (
        {"a.jsonl": '{"query": "q", "title": "t", "label": 1, "title": "u"}'},
        ["line 1: it has 'title' twice"],
    ),
    "an object as a label": (
        {"a.jsonl": with_line('{"query": "q", "title": "t", "label": {"a": 1}}')},
        ["column label", "line 21 holds an object"],
    ),
    "lists within lists": (
        {"a.jsonl": with_line('{"query": "q", "title": [["t"]], "label": 1}')},
        ["column title", "line 21 holds a list within a list"],
    ),
    "half a character": (
        {"a.jsonl": with_line('{"query": "q", "title": "\\udc00", "label": 1}')},
        ["line 21 holds half a character"],
    ),
    "one object of columns": (
        {"a.json": json.dumps({"query": {"0": "q"}, "title": {"0": "t"}, "label": {"0": 1}})},
        ["a.json has query.0, title.0, label.0"],
    ),
    # parquet
    "a struct as a title": (
        {"a.parquet": good(title=[{"en": "t"}] * 20)},
        ["recognised as product text", "a.parquet has query, title.en, label"],
    ),
    "a list of structs": (
        {"a.parquet": good(title=[[{"en": "t"}]] * 20)},
        ["column title", "is of type list, which cannot be read as text"],
    ),
    "lists of lists": ({"a.parquet": good(title=[[["t"]]] * 20)}, ["is of type list, which cannot be read as text"]),
    "a map": (
        {"a.parquet": good(title=pa.array([[("en", "t")]] * 20, pa.map_(pa.string(), pa.string())))},
        ["is of type map"],
    ),
    "two parquet columns of one name": (
        {"a.parquet": parquet_of([["q"], ["t"], ["u"], [1]], ["query", "title", "title", "label"])},
        ["several columns that may be the product text: title, title"],
    ),
    "bytes that are not UTF-8": (
        {"a.parquet": good(title=[b"caf\xe9"] * 20)},
        ["column title", "a.parquet is not UTF-8"],
    ),
    "text that is not UTF-8": ({"a.parquet": good(title=DAMAGED_TEXT)}, ["column title", "a.parquet is not UTF-8"]),
    "no columns": ({"a.parquet": parquet_of([], [])}, ["a.parquet has no columns"]),
    "no rows": (
        {"a.parquet": parquet_of([pa.array([], pa.string())] * 3, ["query", "title", "label"])},
        ["has no rows"],
    ),
    # tables and columns
    "a label column spelled otherwise in one file": (
        {"a.csv": PAIRS, "b.csv": PAIRS.replace("label", "lable")},
        ["b.csv", "looks like judged pairs", "recognised as label: it has query, title, lable"],
    ),
    "products of other ids": (
        {"a.csv": csv_text(judged(4), "query,product_id,label"), "b.csv": "product_id,title\nx,t\n"},
        ["4 unknown product (a.csv line 2: query 'query 0', text of the unknown id 'title 0'"],
    ),
    "products without rows": (
        {"a.csv": csv_text(judged(4), "query,product_id,label"), "b.csv": "product_id,title\n"},
        ["4 unknown product"],
    ),
    "products with several texts": (
        {
            "a.csv": csv_text(judged(4), "query,product_id,label"),
            "b.csv": "product_id,title\n" + "".join(f"title {n},{m}\n" for n in range(4) for m in "ab"),
        },
        ["4 ambiguous product", "one of several of id 'title 0'"],
    ),
    "two label columns": (
        {"a.csv": csv_text([(*row, 1) for row in judged(4)], "query,title,label,relevance")},
        ["several columns that may be the label: label, relevance"],
    ),
    "splits that nobody knows": (
        {
            "a.csv": csv_text(
                [(*row, "train" if n % 2 else "tarin") for n, row in enumerate(judged(20))], "query,title,label,split"
            )
        },
        ["10 of 20 rows", "10 unknown split (a.csv line 2"],
    ),
    # labels and texts
    "an endless label": ({"a.csv": labels(LONG, LONG + "y")}, ["unknown labels: 'xxx", "…'"]),
    "an endless label among others": ({"a.csv": labels(*["1", "0", LONG] * 5)}, ["5 unknown label", "label 'xxx"]),
    "NaN and infinity": ({"a.csv": labels(*["NaN", "inf", "1", "0"] * 9)}, ["18 unknown label", "'NaN'"]),
    "one label of another scale": (
        {"a.csv": labels(*["1", "0"] * 70, "11")},
        ["a.csv line 142: the label '11' is far from nearly all others, 0 to 1"],
    ),
    "a label beyond float32": (
        {"a.jsonl": with_line('{"query": "q", "title": "t", "label": 1e39}')},
        ["a.jsonl line 21: the label '1e39' is a larger number"],
    ),
    "a label beyond a double": (
        {"a.csv": labels(*["1", "0"] * 9, "1e999")},
        ["a.csv line 20: the label '1e999' is a larger number"],
    ),
    "a label of ten thousand digits": (
        {"a.csv": labels(*["1", "0"] * 9, "9" * 10_000)},
        ["a.csv line 20: the label '99999"],
    ),
    "texts of markup alone": (
        {"a.csv": with_rows(*[("q", f"<br>&nbsp;<p>{'<i>' * n}", 1) for n in range(9)])},
        ["9 missing text (a.csv line 22"],
    ),
}


def line_of(train, **others):
    with pytest.raises(UserError) as error:
        read_splits(TrainConfig(train=str(train), **others))
    line = str(error.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 1500, line
    assert error.value.hint
    return line


@pytest.mark.parametrize("case", CASES)
def test_a_bad_channel_is_one_line(tmp_path, case):
    files, says = CASES[case]
    folder = tmp_path / "train"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = line_of(folder)
    assert not [text for text in says if text not in line], line


def test_there_are_many_of_them():
    assert len(CASES) > 60


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_that_unpacks_to_far_too_much_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, kind, pack):
    monkeypatch.setattr(unpacking, "SMALL_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "train").mkdir()
    name = f"a.{kind}.{'gz' if pack is gzip.compress else 'zst'}"
    (tmp_path / "train" / name).write_bytes(pack((PAIRS if kind == "csv" else OBJECTS).encode() * 5000))
    assert f"{name} unpacks to more than " in line_of(tmp_path / "train")
    assert not list((tmp_path / "scratch").iterdir())


def test_what_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe.csv is no file of pairs: it is neither a file nor a folder" in line_of(tmp_path / "pipe.csv")
    (tmp_path / "channel").mkdir()
    os.mkfifo(tmp_path / "channel" / "pipe.csv")
    assert "has no file of pairs, only pipe.csv" in line_of(tmp_path / "channel")
    assert "/dev/null is no file of pairs" in line_of("/dev/null")
    assert "does not exist" in line_of(tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_text(PAIRS)
    assert "does not exist" in line_of(tmp_path / "a.csv" / "b")
    assert "too long" in line_of(tmp_path / LONG[:300])


def test_names_that_are_not_utf8_are_one_line(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{name}.csv").write_text(PAIRS)
    assert r"the name caf\udce9.csv in" in line_of(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.csv").write_text(PAIRS)
    assert r"the name caf\udce9 in" in line_of(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_this_user_may_not_read_is_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(PAIRS)
    path.chmod(0)
    assert "a.csv: permission denied" in line_of(tmp_path)
    tmp_path.chmod(0)
    try:
        assert "permission denied" in line_of(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_an_odd_name_of_a_file_that_is_not_read_does_no_harm(tmp_path, caplog):
    (tmp_path / "a.csv").write_text(PAIRS)
    (tmp_path / os.fsdecode(b"caf\xe9\n.txt")).write_text("x")
    assert len(read_splits(TrainConfig(train=str(tmp_path)))) == 2
    assert r"caf\udce9\n.txt is not read: of another format, .txt" in caplog.text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_do_no_harm(tmp_path, end, mark):
    for name, text in {
        "a.csv": PAIRS,
        "b.jsonl": OBJECTS.replace("title", "name"),
        "c.tsv": PAIRS.replace(",", "\t"),
    }.items():
        (tmp_path / name).write_bytes((mark + text.replace("\n", end)).encode())
    found = read_splits(TrainConfig(train=str(tmp_path)))
    assert sum(map(len, found.values())) == 40  # the rows of c.tsv are those of a.csv
