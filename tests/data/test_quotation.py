"""Quotation marks and lines of csv files: cells that span lines are read, one that is never closed is not."""

import csv
import gzip
import io

import pytest

from lorry.config import PairOptions
from lorry.data import text_lines, unpacking
from lorry.data.files import FileSource
from lorry.data.pairs import read_channel
from lorry.errors import UserError

HEADER = "query,title,label"


def write(folder, text, name="pairs.csv"):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def rows(count, first=0):
    return [f"query {row},title {row},{row % 2}" for row in range(first, first + count)]


def read(path, skipped=None):
    """Every row with the line in which it begins."""
    batches = FileSource(path).read_batches(
        FileSource(path).column_names(), (skipped if skipped is not None else []).append
    )
    return [
        (int(n), *row.values())
        for batch in batches
        for n, row in zip(batch.numbers, batch.cells.to_pylist(), strict=True)
    ]


def refused(path):
    with pytest.raises(UserError) as error:
        read_channel(path, PairOptions())
    assert str(path) in error.value.cause
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.csv.gz"])
@pytest.mark.parametrize("block", [4 << 20, 100])
def test_a_quotation_mark_that_is_never_closed_is_refused_with_its_line(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    lines = [HEADER, *rows(20), 'query 20,"title 20,0', *rows(900, 21)]
    said = refused(write(tmp_path, "\n".join(lines), name))
    assert "line 22: a quotation mark is opened and never closed" in said


def test_one_that_runs_on_for_very_many_lines_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 1000)
    lines = [HEADER, *rows(20), 'query 20,"title 20,0', *rows(3000, 21), 'query 9,title",1']
    assert "line 22: a quotation mark is opened and not closed in the next 1,000 lines" in refused(
        write(tmp_path, "\n".join(lines))
    )


def test_one_in_the_header_is_refused(tmp_path):
    said = refused(write(tmp_path, "\n".join(['query,"title,label', *rows(50)])))
    assert "line 1: a quotation mark is opened and never closed" in said


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_one_that_the_next_cell_in_quotation_marks_seems_to_close_is_refused(tmp_path, separator):
    """All rows between would be one text, and the number of cells would be right."""
    lines = [HEADER, *rows(20), 'query 20,"title 20,0', *rows(10, 21), 'query 31,"title 31",1', *rows(10, 32)]
    said = refused(write(tmp_path, "\n".join(lines).replace(",", separator)))
    assert "line 22: a quotation mark is opened and closed in the middle of line 33" in said


@pytest.mark.parametrize(("behind", "closed"), [("\t", 8), (" more", 8), ("more", 8), ('" more', 14)])
def test_a_text_of_several_lines_ends_with_its_quotation_mark(tmp_path, behind, closed):
    lines = [HEADER, *rows(5), 'q,"two', f'lines"{behind},1', *rows(5, 5), 'r,"s",0']
    said = refused(write(tmp_path, "\n".join(lines)))
    assert f"line 7: a quotation mark is opened and closed in the middle of line {closed}" in said


@pytest.mark.parametrize(("separator", "between"), [("\t", 0), ("\t", 5), (",", 12), (";", 12)])
def test_one_that_an_inch_mark_seems_to_close_is_refused(tmp_path, separator, between):
    lines = [HEADER, *rows(20), 'query 20,"title 20,0', *rows(between, 21), 'query 99,pipe 5",1', *rows(10, 100)]
    said = refused(write(tmp_path, "\n".join(lines).replace(",", separator)))
    assert (
        f"line 22: a quotation mark is opened and closed in line {23 + between}, after {between + 1} other row" in said
    )


def with_stray_marks(lines, size):
    """Lines of rows, in groups: the first title of each begins with a stray mark, the last one ends in an inch mark."""
    for first in range(0, len(lines) - size + 1, size):
        last = first + size - 1
        lines[first] = lines[first].replace("title", '"title')
        query, title, label = lines[last].split(",")
        lines[last] = f'{query},{title} 19",{label}'
    return lines


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize("block", [4 << 20, 100])
@pytest.mark.parametrize("form", ["once", "at the beginning", "in every group"])
def test_rows_between_two_stray_marks_are_refused_however_few(tmp_path, monkeypatch, separator, size, block, form):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    count = 99 if form == "in every group" else size
    ordinary = {"once": rows(40, 100), "at the beginning": [], "in every group": rows(1, 100)}[form]
    lines = [HEADER, *ordinary, *with_stray_marks(rows(count, 200), size), *rows(40, 300)]
    said = refused(write(tmp_path, "\n".join(lines).replace(",", separator)))
    first, others = 2 + len(ordinary), size - 1
    row = "row" if others == 1 else "rows"
    assert (
        f"line {first}: a quotation mark is opened and closed in line {first + others}, after {others} other {row}."
    ) in said


def test_rows_swallowed_everywhere_are_refused(tmp_path):
    lines = [f"query {row % 60},title {row},{row * 7 // 4 % 2}" for row in range(594)]
    assert "line 2: a quotation mark is opened and closed in line 10" in refused(
        write(tmp_path, "\n".join([HEADER, *with_stray_marks(lines, 9)]))
    )


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("label,query,title", "{label},query {n},{mark}title {n}{inch}"),
        ("query_id,query,esci_label,title", "{n},query {n},{letter},{mark}title {n}{inch}"),
        ("query,title,note,label,split", "query {n},{mark}title {n}{inch},,{label},train"),
    ],
)
def test_so_they_are_wherever_the_label_is(tmp_path, header, row):
    lines = [
        row.format(n=n, label=n % 2, letter="ESCI"[n % 4], mark='"' * (n == 20), inch=' 19"' * (n == 22))
        for n in range(40)
    ]
    assert "line 22: a quotation mark is opened and closed in line 24" in refused(
        write(tmp_path, "\n".join([header, *lines]))
    )


HONEST = {
    "as many commas in every line as in a row": "Oak, pine, ash\nbeech, elm and, last\nbirch, cherry",
    "two such lines": "Oak, pine\nash, beech",
    "commas without blanks": "Oak,pine\nash,beech",
    "numbers, but not in every line": "Seats,1\n3,1,0\nx,y",
    "numbers that are no labels": "3,4\n5,6,7\n8,9",
    "the query in every line": "lamp, 1\nlamp, brass",
    "other numbers of commas": "One, two, three, four\n\nA, b\nc",
    "commas at the ends": "One,two,\nthree,four,\nfive,",
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
@pytest.mark.parametrize(("header", "place"), [(HEADER, 1), ("query,label,title", 2), ("title,query,label", 0)])
@pytest.mark.parametrize("every", [1, 7, 50])
def test_honest_texts_of_several_lines_are_read(tmp_path, text, header, place, every):
    cells = []
    for row in range(50):
        cells.append(["lamp" if row % 5 else f"q {row}", str(row % 2)])
        cells[-1].insert(place, f"{row}, {text}" if row % every == 0 else f"title {row}")
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator="\n").writerows([header.split(","), *cells])
    found = read(write(tmp_path, sink.getvalue()))
    assert [row[1:] for row in found] == [tuple(row) for row in cells]


def test_products_of_several_lines_are_read(tmp_path):
    """Without a column of few values nothing tells rows from text."""
    lines = [f'{n},"Oak {n}, 3\npine, {n}"' for n in range(20)]
    assert len(read(write(tmp_path, "\n".join(["product_id,title", *lines])))) == 20


SEVERAL_LINES = {
    "HTML indented with tabs": ("label,query,title", '1,q,"<div>\n,,<p>Oak</p>\n,,</div>"'),
    "a table in the middle": (HEADER, 'q,"Size,S\nchest,waist",1'),
    "a table at the end": ("label,query,title", '1,q,"Size\nchest,waist,hips"'),
    "a list of many lines": ("label,query,title", '1,q,"Colours' + "\nred, green, blue" * 20 + '"'),
    "many lines of one word": (HEADER, 'q,"Sizes,' + "\n, S," * 20 + '\nL, XL",1'),
    "no column of few values": ("product_id,title", 'x,"Oak' + "\n,black" * 20 + '"'),
    "a label that is missing": ("label,query,title", '1,q,"Oak\n\\N,ash,elm"'),
}


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("case", SEVERAL_LINES)
def test_texts_of_several_lines_with_the_separator_in_them_are_read(tmp_path, case, separator):
    header, row = SEVERAL_LINES[case]
    others = {
        "label,query,title": [f"{n % 2},query {n},title {n}" for n in range(40)],
        HEADER: rows(40),
        "product_id,title": [f"{n},title {n}" for n in range(40)],
    }[header]
    found = read(write(tmp_path, "\n".join([header, *others[:9], row, *others[9:]]).replace(",", separator)))
    assert len(found) == 41
    assert found[9][1:] == tuple(next(csv.reader(io.StringIO(row.replace(",", separator)), delimiter=separator)))


@pytest.mark.parametrize(("separator", "lines"), [(",", 10), (";", 10), ("|", 10), ("\t", 2)])
def test_without_a_column_of_few_values_many_lines_are_several_rows(tmp_path, separator, lines):
    def text(count):
        swallowed = [f"{n},title {n}" for n in range(100, 100 + count)]
        swallowed = with_stray_marks([f"{line},0" for line in swallowed], count)
        return "\n".join(
            ["product_id,title", *(f"{n},title {n}" for n in range(40)), *(line[:-2] for line in swallowed)]
        )

    said = f"line 42: a quotation mark is opened and closed in line {41 + lines}"
    with pytest.raises(UserError, match=said):
        read(write(tmp_path, text(lines).replace(",", separator)))
    if lines > 2:
        assert len(read(write(tmp_path, text(lines - 1).replace(",", separator)))) == 41


def test_rows_without_a_label_are_swallowed_like_others(tmp_path):
    lines = [f"{'' if n % 5 == 0 else n % 2},query {n},title {n}" for n in range(40)]
    lines[20:23] = [',query 20,"title 20', "\\N,query 21,title 21", '1,query 22,title 22"']
    assert "line 22: a quotation mark is opened and closed in line 24" in refused(
        write(tmp_path, "\n".join(["label,query,title", *lines]))
    )


def test_blanks_may_follow_a_text_of_several_lines(tmp_path):
    found = read(write(tmp_path, f'{HEADER}\nq,"two\nlines" ,1\nr,"two\nmore"  ,"0\n"   \ns,t,1\n'))
    assert [(row[0], row[2].strip(), row[3].strip()) for row in found] == [
        (2, "two\nlines", "1"),
        (4, "two\nmore", "0"),
        (7, "t", "1"),
    ]


def test_an_unclosed_cell_after_one_that_spans_lines_is_named_by_its_own_line(tmp_path):
    lines = [HEADER, 'a,"two', 'lines",1', 'b,"two', 'lines","1', *rows(5), 'c,"d",1']
    assert "line 5: a quotation mark is opened and closed in the middle of line 11" in refused(
        write(tmp_path, "\n".join(lines))
    )


@pytest.mark.parametrize("block", [4 << 20, 64])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_cells_that_span_lines_are_read_and_rows_keep_their_lines(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    description = 'Made of oak, pine, and ash.\n\nSize: 3, 4, 5\nA "good" one, really, yes\n' * 4
    cells = [["q1", "one", "1"], ["q2", description, "0"], ["q3", 'a 5" pipe', "1"], ["two\nlines", "and\nmore", "0"]]
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator="\n").writerows([HEADER.split(","), *cells])
    text = sink.getvalue().replace('"a 5"" pipe"', 'a 5" pipe')  # as it is written by hand
    found = read(write(tmp_path, "\n" + text.replace("q3", "\n\nq3").replace("\n", end)))
    assert [row[1:] for row in found] == [tuple(row) for row in cells]
    assert [row[0] for row in found] == [3, 4, 23, 24]


def test_a_cell_of_999_lines_is_a_text(tmp_path):
    text = "\n".join(["word, and another"] * 999)
    assert read(write(tmp_path, f'{HEADER}\nq,"{text}",1\nr,s,0'))[0][2] == text


def test_what_follows_a_quotation_mark_within_a_line_is_text(tmp_path):
    path = write(tmp_path, f'{HEADER}\n"q" r,12" pipe,1\ns,"a ""b"" c",0\n"","",""\n')
    assert read(path) == [(2, "q r", '12" pipe', "1"), (3, "s", 'a "b" c', "0"), (4, None, None, None)]


def test_a_header_may_span_lines(tmp_path):
    path = write(tmp_path, '"query","product\ntitle",label\na,x,1\n')
    assert FileSource(path).column_names() == ["query", "product\ntitle", "label"]
    assert read(path) == [(3, "a", "x", "1")]


def test_rows_with_a_wrong_number_of_cells_are_told_of_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 30)
    told = []
    path = write(tmp_path, f'{HEADER}\n\na,"x\ny",1\nb,2\n\nc,z,1,9\n   \nd,w,0')
    assert [row[0] for row in read(path, told)] == [3, 9]
    assert told == [
        "pairs.csv line 5: 2 cells instead of 3: 'b,2'",
        "pairs.csv line 7: 4 cells instead of 3: 'c,z,1,9'",
        "pairs.csv line 8: 1 cells instead of 3: '   '",
    ]


def test_bad_rows_are_named_by_the_lines_of_the_file(tmp_path):
    lines = [HEADER, "", *rows(20), 'q,"two', 'lines",1', ",no query,1"]
    health = read_channel(write(tmp_path, "\n".join(lines)), PairOptions())["all"].health
    assert health.examples["missing query"] == ["pairs.csv line 25: query missing, text 'no query', label '1'"]


def test_a_row_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(text_lines, "MAX_ROW_BYTES", 2 << 20)
    said = refused(write(tmp_path, f"{HEADER}\na,{'x' * (3 << 20)},1\n"))
    assert "line 2 begins a row of more than 2 MB" in said
