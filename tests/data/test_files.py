"""Files as they come: kinds, compression, separators, quoting, damage."""

import gzip
import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lorry.data import unpacking
from lorry.data.cleaning import clean
from lorry.data.files import FileSource, list_files
from lorry.data.spool import spool
from lorry.errors import UserError

ROWS = [
    {"id": "0123", "text": 'a "quoted", word', "label": "1"},
    {"id": "NA", "text": "two\nlines", "label": "0"},
    {"id": "null", "text": None, "label": "1"},
]


def never(description):
    raise AssertionError(description)


def read(path, columns=("id", "text", "label"), skipped=never):
    return [row for rows in FileSource(path).read_batches(columns, skipped) for row in rows.cells.to_pylist()]


def numbers(path, columns=("id",)):
    return [int(number) for rows in FileSource(path).read_batches(columns, never) for number in rows.numbers]


def column_names(path):
    return FileSource(path).column_names()


def written(folder, name):
    """Write ROWS to a file of the kind that `name` says."""
    kind = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        content = sink.getvalue().to_pybytes()
    elif kind in ("jsonl", "json"):
        content = "\n".join(json.dumps(row) for row in ROWS).encode()
    else:
        mark = "\t" if kind == "tsv" else ","
        cells = [["id", "text", "label"], *[[row["id"], row["text"] or "", row["label"]] for row in ROWS]]
        lines = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        content = ("\r\n".join(lines) + "\r\n").encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        content = zstandard.compress(content)
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "json"])
def test_every_kind_reads_the_same(tmp_path, kind, packed):
    path = written(tmp_path, f"part.{kind}{packed}")
    assert column_names(path) == ["id", "text", "label"]
    assert read(path) == ROWS


def test_only_data_files_of_the_folder_itself_in_order(tmp_path):
    for name in ("b.csv", "a.CSV", "._a.csv", ".DS_Store", "_SUCCESS", "_part.csv", "README.md", "manifest"):
        (tmp_path / name).write_text("id\n1\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.csv").write_text("id\n1\n")
    (tmp_path / "c.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(tmp_path / "d.csv")
    files, unused = list_files(tmp_path)
    assert [path.name for path in files] == ["a.CSV", "b.csv"]
    assert unused == {
        "README.md": "of another format, .md",
        "_part.csv": "hidden by its name",
        "c.csv": "a link that leads nowhere",
        "d.csv": "neither a file nor a folder",
        "manifest": "of another format",
        "test": "a folder",
    }
    assert list_files(tmp_path / "b.csv") == ([tmp_path / "b.csv"], {})


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_the_separator_is_found_and_numbers_stay_text(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text(f"\ufeffid{mark}text{mark}label\n007{mark}1e5{mark}1.0\n", encoding="utf-8")
    assert read(path) == [{"id": "007", "text": "1e5", "label": "1.0"}]


@pytest.mark.parametrize("block", [4 << 20, 8, 1])
@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_rows_of_empty_cells_are_no_rows(tmp_path, monkeypatch, mark, block):
    """Excel writes them where a sheet was once filled."""
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    lines = ["id,text,label", ",,", "1,a,1", ",,", '"2","\n,,\n","0"', ",,", "", ",,,", ",b,", ",,"]
    path.write_text("\n".join([*lines, ",,"]).replace(",", mark))
    assert read(path) == [
        {"id": "1", "text": "a", "label": "1"},
        {"id": "2", "text": f"\n{mark}{mark}\n", "label": "0"},
        {"id": None, "text": "b", "label": None},
    ]
    assert numbers(path) == [3, 5, 11]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("block", [4 << 20, 8])
@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
@pytest.mark.parametrize("said", ["sep=", "SEP=", "\ufeffsep="])
def test_the_first_line_may_say_the_separator(tmp_path, monkeypatch, name, block, mark, said):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    path = tmp_path / name
    other = ",;|\t".replace(mark, "") * 3
    lines = [f"{said}{mark}", "", f"id{mark}{other}", f"1{mark}x"]
    path.write_bytes("\r\n".join(lines).encode())
    assert read(path, column_names(path)) == [{"id": "1", other: "x"}]
    assert numbers(path) == [4]


def test_a_file_that_says_only_the_separator_is_empty(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\n")
    assert "a.csv is empty" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_what_databases_write_for_a_missing_value_is_missing(tmp_path, name):
    path, mark = tmp_path / name, "\t" if name == "a.tsv" else ","
    cells = [["1", r"\N", "0"], ["2", r'"\N"', "1"], [r"\N", r"a \N", r"\n"], ["NULL", r"\N\N", "NA"]]
    path.write_text("\n".join(map(mark.join, [["id", "text", "label"], *cells])))
    assert [list(row.values()) for row in read(path)] == [
        ["1", None, "0"],
        ["2", None, "1"],
        [None, r"a \N", r"\n"],
        ["NULL", r"\N\N", "NA"],
    ]


def test_rows_with_too_few_or_many_cells_are_told_of(tmp_path):
    path, told = tmp_path / "a.csv", []
    path.write_text("id,text,label\n1,a,1\n2,b\n3,c,1,9\n4,d,0\n")
    assert [row["id"] for row in read(path, skipped=told.append)] == ["1", "4"]
    assert told == ["a.csv line 3: 2 cells instead of 3: '2,b'", "a.csv line 4: 4 cells instead of 3: '3,c,1,9'"]


def test_columns_of_other_types_become_text(tmp_path):
    table = pa.table(
        {
            "id": pa.array([7, None], pa.int64()),
            "text": pa.array([["red", None, "sofa"], [None]], pa.list_(pa.string())),
            "sizes": pa.array([None, [1, 2]], pa.large_list(pa.int32())),
            "pair": pa.array([["a", "b"], [None, "c"]], pa.list_(pa.string(), 2)),
            "label": pa.array([2.33, 3.0]),
            "flag": pa.array([True, False]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", table.column_names) == [
        {"id": "7", "text": "red sofa", "sizes": None, "pair": "a b", "label": "2.33", "flag": "true", "kind": "a"},
        {"id": None, "text": None, "sizes": "1 2", "pair": "c", "label": "3", "flag": "false", "kind": "b"},
    ]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.list_(pa.float64())])
def test_whole_numbers_are_written_in_full(tmp_path, kind):
    """Pandas makes doubles of ids where some are missing."""
    values = [123456789012.0, 2.0**53 - 1, -(2.0**53) + 1, 1e5, 0.0, -0.0, -7.0, 1e15, 2.5, None]
    if kind == pa.float32():
        values = [16777215.0, 8388608.0, -16777215.0, 1e5, 0.0, -0.0, -7.0, 1048576.0, 2.5, None]
    column = pa.array([[value] for value in values] if pa.types.is_list(kind) else values, kind)
    pq.write_table(pa.table({"id": column}), tmp_path / "a.parquet")
    whole = ["123456789012", "9007199254740991", "-9007199254740991", "100000", "0", "0", "-7", "1000000000000000"]
    if kind == pa.float32():
        whole = ["16777215", "8388608", "-16777215", "100000", "0", "0", "-7", "1048576"]
    assert [row["id"] for row in read(tmp_path / "a.parquet", ["id"])] == [*whole, "2.5", None]


def test_other_doubles_are_as_arrow_writes_them(tmp_path):
    values = [2.0**53, 1e300, 0.1, math.nan, math.inf, -math.inf, 5e-324]
    pq.write_table(pa.table({"id": pa.array(values)}), tmp_path / "a.parquet")
    expected = pa.array(values).cast(pa.string()).to_pylist()
    assert [row["id"] for row in read(tmp_path / "a.parquet", ["id"])] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_fields_within_fields_have_dotted_names(tmp_path, name):
    rows = [{"put": "x", "fields": {"id": "B1", "more": {"title": "Sofa"}}}]
    if name == "a.jsonl":
        (tmp_path / name).write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    assert column_names(tmp_path / name) == ["put", "fields.id", "fields.more.title"]
    assert read(tmp_path / name, ["fields.more.title", "put"]) == [{"fields.more.title": "Sofa", "put": "x"}]


def test_json_lines_may_change_between_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1}] * 4 + [{"id": "A", "n": 2}] * 4 + [{"id": 0.5}] * 3 + [{"n": "x" * 100}]
    path.write_text("\n".join(json.dumps(row).ljust(31) for row in rows))  # two rows a block
    found = read(path, ["id", "n"])
    assert [row["id"] for row in found] == ["1"] * 4 + ["A"] * 4 + ["0.5"] * 3 + [None]
    assert [row["n"] for row in found] == [None] * 4 + ["2"] * 4 + [None] * 3 + ["x" * 100]


def refused(path):
    with pytest.raises(UserError) as error:
        read(path, column_names(path))
    assert str(path) in error.value.cause
    return str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.csv.zst", "a.jsonl.gz", "a.parquet.zst"])
def test_truncated_files_are_named(tmp_path, name):
    path = written(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-20])
    assert "Is the file complete" in refused(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl"])
def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path, name):
    row = b'{"id": "caf\xe9"}\n' if "json" in name else b"caf\xe9,x\n"
    good = b'{"id": "caf\xc3\xa9"}\n' if "json" in name else b"caf\xc3\xa9,x\n"
    content = (b"" if "json" in name else b"id,text\n") + good * 3 + row
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert f"not UTF-8: line {4 if 'json' in name else 5}, byte 0xe9" in refused(path)


def test_utf16_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,text\n1,x\n".encode("utf-16"))
    assert "not UTF-8" in refused(path)
    path.write_bytes(b"")
    assert "a.csv is empty" in refused(path)


def test_folders_without_files_say_what_is_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is empty.*\.parquet \.csv"):
        list_files(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="has no file of pairs, only train"):
        list_files(tmp_path)
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(UserError, match=r"a.xlsx is no file of pairs: it is of another format, .xlsx"):
        list_files(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("dirty", "tidy"),
    [
        ("plain words", "plain words"),
        ("a<br>b<br/>c</p><p class='x'>d", "a b c d"),
        ("a<!-- note <b> -->b", "a b"),
        ("<!DOCTYPE html>a", "a"),
        ("a < b, 2<3 and 4 > 1", "a < b, 2<3 and 4 > 1"),
        ("salt &amp; pepper &#233;&#xe9;", "salt & pepper éé"),
        ("R&D AT&T x&copy=1", "R&D AT&T x&copy=1"),
        ("&amp;lt; once", "&lt; once"),
        ("&lt;b&gt;", "<b>"),
        ("  a\t\tb\r\n c\u00a0d\u2003e\u3000f ", "a b c d e f"),
        ("a\x00b\x07c\u200bd\ufeff \u00ad", "abcd"),
        ("é ü 日本 👨‍👩‍👧", "é ü 日本 👨‍👩‍👧"),
        ("<br> &nbsp; ", None),
        ("", None),
        (None, None),
    ],
)
def test_cleaning(dirty, tidy):
    texts = pa.chunked_array([pa.array([dirty, "other"], pa.large_string()), pa.array([dirty], pa.large_string())])
    assert clean(texts).to_pylist() == [tidy, "other", tidy]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_explained():
    rows = pa.table({"id": ["x" * 1000] * 1000})
    with pytest.raises(UserError, match="Set TMPDIR"):
        spool([rows], rows.schema, Path("/dev/full"))


def test_this_folder_is_left_alone(tmp_path):
    path = written(tmp_path, "a.parquet.gz")
    read(path)
    assert [Path(found).name for found in tmp_path.iterdir()] == ["a.parquet.gz"]
