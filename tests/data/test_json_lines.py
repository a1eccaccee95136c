"""JSON lines: values as they are written, and every line that is something else named."""

import json

import pytest

from lorry.config import PairOptions
from lorry.data import unpacking
from lorry.data.files import FileSource
from lorry.data.pairs import read_channel
from lorry.errors import UserError


def write(folder, *lines, name="pairs.jsonl"):
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def read(path, *columns):
    """The rows, each with its line."""
    batches = FileSource(path).read_batches(columns, pytest.fail)
    return [
        (int(n), *row.values())
        for batch in batches
        for n, row in zip(batch.numbers, batch.cells.to_pylist(), strict=True)
    ]


def refused(path, *columns):
    with pytest.raises(UserError) as error:
        read(path, *(columns or FileSource(path).column_names()))
    assert str(path) in error.value.cause
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"2024-01-01"', "2024-01-01"), ('"2024-01-01T00:00:00"', "2024-01-01T00:00:00"),
        ("9223372036854775808", "9223372036854775808"),
        ("123456789012345678901234567890", "123456789012345678901234567890"), ("1.10", "1.10"), ("1e400", "1e400"),
        ("-0", "-0"), ("0.1", "0.1"), ("true", "true"), ("false", "false"), ("null", None), ('""', None), ("NaN", None),
        ('"\\u00e9\\ud83d\\ude00"', "é😀"), ('["a", null, 2, true]', "a 2 true"), ("[]", None), ("[null]", None),
        ('"007"', "007"), ('"a\\nb"', "a\nb"),
    ],
)  # fmt: skip
def test_values_are_read_as_they_are_written(tmp_path, written, text):
    assert read(write(tmp_path, f'{{"id": {written}, "n": 1}}', '{"id": "x"}'), "id", "n") == [
        (1, text, "1"),
        (2, "x", None),
    ]


def test_one_large_id_leaves_its_neighbours_as_they_are(tmp_path):
    """As doubles, two of these would be one product."""
    ids = [2**64, 9007199254740992, 9007199254740993, 9007199254740994]
    judged = [{"query": "q", "product_id": number, "label": place % 2} for place, number in enumerate(ids)]
    products = [{"product_id": number, "title": f"product {number}"} for number in ids]
    write(tmp_path, *judged)
    write(tmp_path, *products, name="products.jsonl")
    pairs = read_channel(tmp_path, PairOptions())["all"]
    assert pairs.texts.to_pylist() == [f"product {number}" for number in ids]


def test_texts_that_look_like_dates_are_texts(tmp_path):
    rows = [{"query": f"2024-01-0{day}", "title": f"2024-01-0{day}T10:00:00", "label": day % 2} for day in range(1, 5)]
    pairs = read_channel(write(tmp_path, *rows), PairOptions())["all"]
    assert pairs.queries.to_pylist() == [row["query"] for row in rows]
    assert pairs.texts.to_pylist() == [row["title"] for row in rows]


@pytest.mark.parametrize("block", [4 << 20, 40])
def test_rows_have_the_numbers_of_their_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    path = write(tmp_path, "\ufeff", {"id": 1}, "", "   ", {"id": 2}, {"no": 0}, "", {"id": 3})
    assert read(path, "id") == [(2, "1"), (5, "2"), (6, None), (8, "3")]


def test_fields_may_come_and_go_and_change_their_kind(tmp_path):
    path = write(
        tmp_path, {"a": 1}, {"a": "x", "b": {"c": [1, 2], "d": {"e": "deep"}}}, {"a": True, "b": None}, {"b.c": 3}
    )
    assert FileSource(path).column_names() == ["a", "b.c", "b.d.e", "b"]
    assert read(path, "a", "b.c", "b.d.e") == [
        (1, "1", None, None),
        (2, "x", "1 2", "deep"),
        (3, "true", None, None),
        (4, None, "3", None),
    ]


NOT_OBJECTS = {
    "null": "line 1 is null, not a JSON object",
    "7": "line 1 is a word or number, not a JSON object",
    '"query"': "line 1 is a word or number, not a JSON object",
    "true": "line 1 is true or false, not a JSON object",
    "[]": "line 1 is a list, not a JSON object",
    '[{"id": 1},': "line 1 is no JSON object",
    "query,title,label": "line 1 is no JSON object: Expecting value (character 1)",
    "[" * 100_000: "line 1 is nested too deeply",
    '{"a":' * 100_000: "line 1 is nested too deeply",
    '{"a":' * 5000 + "1" + "}" * 5000: "nested too deeply",
    '{"id": 1, "id": 2}': "line 1: it has 'id' twice",
    '{"id": 1}, {"id": 2}': "line 1 is no JSON object: Extra data",
}


@pytest.mark.parametrize("line", NOT_OBJECTS)
def test_a_first_line_that_is_no_object_is_refused(tmp_path, line):
    assert NOT_OBJECTS[line] in refused(write(tmp_path, line, {"id": 1}))


@pytest.mark.parametrize("blank", ["", '{"id": "a: b"}', '{"id": 3}', '{"id": {"a": 1}, "b": ""}'])
@pytest.mark.parametrize("block", [4 << 20, 12])
@pytest.mark.parametrize("line", NOT_OBJECTS)
def test_so_is_a_later_one(tmp_path, monkeypatch, line, block, blank):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    said = NOT_OBJECTS[line].replace("line 1", "line 4")
    if said.startswith("line") and len(line) < 1000:
        assert said in refused(write(tmp_path, {"id": 1}, blank, {"id": 2}, line), "b")


@pytest.mark.parametrize("text", ["x", "x: y", "x : y", 'a 5"', 'a 5": b', "{}", "a\tb", "\\\\"])
@pytest.mark.parametrize("name", ['"id":', '"id" :', '"id"\t :'])
@pytest.mark.parametrize("first", [{"b": 1}, {"b": 1, "c": {"d": 1}}])
def test_a_field_twice_is_refused_wherever_it_is(tmp_path, monkeypatch, text, name, first):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 200)
    line = f'{{"id": {json.dumps(text)}, {name} 2, "b" : 1}}'
    rows = [*[first] * 10, *[{"id": text, "b": row} for row in range(40)], line, *[{"id": text}] * 40]
    assert "line 51: it has 'id' twice" in refused(write(tmp_path, *rows), "b")


@pytest.mark.parametrize("late", ["split", "Split", "product title", "esci_label", "meta.split", "small_version"])
@pytest.mark.parametrize("text", ["sofa", "size: 3", "{}"])
def test_a_known_field_that_occurs_later_for_the_first_time_is_refused(tmp_path, monkeypatch, late, text):
    """It would be ignored, and test rows would be trained on."""
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 200)
    rows = [{"query": f"q {row}", "title": f"{text} {row}", "label": row % 2, "new": row} for row in range(50)]
    head, _, tail = late.rpartition(".")
    more = {tail: "test"}
    for row in rows[30:]:
        row.update({head: more} if head else more)
    said = refused(write(tmp_path, *rows), "query", "title", "label")
    assert f"line 31 has the field {tail}, which no earlier line has" in said
    assert "give it in the first line as well, at least as null; else rename it or leave it out" in said
    rows[0] |= {head: {tail: None}} if head else {tail: None}
    assert len(read(write(tmp_path, *rows), "query")) == 50


def test_any_other_field_may_occur_later(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 200)
    rows = [
        {"query": f"q {row}", "title": "t", "label": 1} | ({"note": "x: y"} if row > 30 else {}) for row in range(50)
    ]
    assert len(read(write(tmp_path, *rows), "query")) == 50


KNOWN = {"query": "q", "product_title": "t", "label": "1"}
HARMLESS = {
    "a text less sure": (KNOWN, {"title": "Alt"}),
    "one within a field": (KNOWN, {"brand": {"name": "Acme"}}),
    "one as sure": (KNOWN | {"product_title": None, "title": "t"}, {"name": "n"}),
    "a label less sure": (KNOWN, {"grade": "A"}),
    "a query less sure": (KNOWN, {"search_term": "s"}),
    "an id": (KNOWN, {"asin": "B0", "query_id": 3}),
    "a locale": (KNOWN, {"locale": "us"}),
    "an id as sure": ({"query": "q", "product_id": "1", "label": "1"}, {"Product ID": "2", "asin": "B0"}),
}
CHANGING = {
    "a surer label": ({"query": "q", "title": "t", "label": "1"}, "relevance_label"),
    "a surer query": ({"search_term": "q", "title": "t", "label": "1"}, "query"),
    "a surer text": ({"query": "q", "text": "t", "label": "1"}, "title"),
    "a text beside an id": ({"query": "q", "product_id": "1", "label": "1"}, "text"),
    "a locale that joins": ({"query": "q", "product_id": "1", "label": "1"}, "locale"),
    "a locale of products": ({"product_id": "1", "title": "t"}, "product_locale"),
    "another split": ({"query": "q", "title": "t", "label": "1", "Split": "train"}, "split"),
    "a surer id": ({"query": "q", "asin": "1", "label": "1"}, "product_id"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_so_may_one_that_would_not_be_read(tmp_path, monkeypatch, case):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 200)
    known, late = HARMLESS[case]
    rows = [known | {"n": row} | (late if row > 30 and row % 2 else {}) for row in range(50)]
    assert len(read(write(tmp_path, *rows), "query", "label")) == 50


@pytest.mark.parametrize("case", CHANGING)
def test_one_that_would_be_read_may_not(tmp_path, monkeypatch, case):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 200)
    known, late = CHANGING[case]
    rows = [known | {"n": row} | ({late: "x"} if row >= 30 else {}) for row in range(50)]
    assert f"line 31 has the field {late}, which no earlier line has" in refused(write(tmp_path, *rows), *known)


def test_test_rows_that_only_later_say_so_are_not_trained_on(tmp_path):
    rows = [{"query": f"q {row % 60}", "title": f"{row} {'x' * 80}", "label": row % 2} for row in range(45_000)]
    for row in rows[40_000:]:
        row["split"] = "test"
    with pytest.raises(UserError, match=r"line 40001 has the field split"):
        read_channel(write(tmp_path, *rows), PairOptions())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"id": 1', '"b": 2}'], "line 1 is no JSON object: Expecting ',' delimiter"),
        (['{"id": 1}', '{"id": "1'], "line 2 is no JSON object: Unterminated string"),
        (['{"id": 1},', '{"id": 2}'], "line 1 is no JSON object: Extra data"),
        (["{", '"id": 1', "}"], "line 1 is no JSON object"),
        (['{"id": {"en": "a"}}', '{"id": "x"}'], "column id of {path} line 1 holds an object"),
        (['{"id": "x"}', '{"id": [["a"]]}'], "column id of {path} line 2 holds a list within a list"),
        (['{"id": "x"}', '{"id": [{"a": 1}]}'], "column id of {path} line 2 holds an object"),
        (
            ['{"id": "x"}', '{"id": "half \\ud83d"}'],
            "column id of {path} line 2 holds half a character: 'half \\ud83d'",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, lines, said):
    path = write(tmp_path, *lines)
    assert said.replace("{path}", str(path)) in refused(path, "id")


def test_settings_beside_the_pairs_are_no_pairs(tmp_path, caplog):
    write(tmp_path, *({"query": "q", "title": f"t{row}", "label": row % 2} for row in range(4)))
    write(tmp_path, json.dumps({"query": "q", "label": 1}, indent=2), name="settings.json")
    pairs = read_channel(tmp_path, PairOptions())["all"]
    reason = "no columns (a JSON file needs one object per line)"
    assert (len(pairs), pairs.health.unused) == (4, {"settings.json": reason})
    assert f"{tmp_path}: settings.json is not read: {reason}" in caplog.messages
    write(tmp_path, '[{"query": "q", "title": "t", "label": 1}]', name="settings.json")
    hint = "Write one JSON object per line (JSON lines), not one list; or move it elsewhere if it holds no pairs."
    with pytest.raises(UserError, match=r"settings.json line 1 is a list, not a JSON object") as error:
        read_channel(tmp_path, PairOptions())
    assert error.value.hint == hint
    write(tmp_path, json.dumps([{"query": "q", "label": 1}], indent=2), name="settings.json")
    with pytest.raises(UserError, match=r"settings.json line 1 is no JSON object") as error:
        read_channel(tmp_path, PairOptions())
    assert error.value.hint == hint
