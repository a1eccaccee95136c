"""Every form of channel, what labels are worth, how pairs are split, and what is refused, through real files."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import zstandard

from lorry.config import PairOptions, TrainConfig
from lorry.data import strings
from lorry.data.labels import find_scale, parse_label_map
from lorry.data.pairs import check_both_classes, read_channel, read_splits, split_by_query
from lorry.errors import UserError

DATA = Path(os.environ.get("LORRY_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no data at {DATA}: set LORRY_DATA")


def save(folder, name, columns):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if name.endswith(".parquet"):
        pq.write_table(table, folder / name)
    elif name.endswith(".jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, table.to_pylist())))
    else:
        pc.write_csv(table, folder / name, pc.WriteOptions(delimiter="\t" if name.endswith(".tsv") else ","))
    return folder


def simple(folder, labels, name="pairs.csv", **more):
    """Save a channel of one query a pair of labels, texts numbered."""
    rows = range(len(labels))
    columns = {"query": [f"query {row // 2}" for row in rows], "product_title": [f"text {row}" for row in rows]}
    return save(folder, name, columns | {"label": labels} | more)


def whole(folder, **options):
    found = read_channel(folder, PairOptions(**options))
    assert list(found) == ["all"]
    return found["all"]


def rows(pairs):
    """The pairs as plain tuples (query, text, label, gain, relevant)."""
    return [
        (pairs.queries[q].as_py(), pairs.texts[t].as_py(), pairs.label_names[n], round(float(gain), 4), bool(relevant))
        for q, t, n, gain, relevant in zip(
            pairs.query, pairs.text, pairs.label, pairs.gain, pairs.relevant, strict=True
        )
    ]


ESCI_EXAMPLES = {
    "example_id": [0, 1, 2, 3, 4, 5],
    "query": ["red sofa", "red sofa", "red sofa", "red sofa", "lamp", "lampe"],
    "query_id": [7, 7, 7, 7, 8, 9],
    "product_id": ["001", "002", "003", "004", "001", "001"],
    "product_locale": ["us", "us", "us", "us", "us", "es"],
    "esci_label": ["E", "S", "C", "I", "I", "E"],
    "small_version": [1, 1, 0, 1, 1, 0],
    "large_version": [1] * 6,
    "split": ["train", "train", "train", "train", "test", "train"],
}
ESCI_PRODUCTS = {
    "product_id": ["004", "003", "002", "001", "001"],
    "product_title": ["Soup", "Sofa feet", "Blue sofa", "Red sofa", "Sofá rojo"],
    "product_description": ["hot", None, "<b>blue</b>", "red", "rojo"],
    "product_bullet_point": [None] * 5,
    "product_brand": ["X", "Y", "Z", "Z", "Z"],
    "product_color": [None] * 5,
    "product_locale": ["us", "us", "us", "us", "es"],
}
ESCI_TRAIN = [
    ("red sofa", "Red sofa", "E", 1, True),
    ("red sofa", "Blue sofa", "S", 0.1, True),
    ("red sofa", "Sofa feet", "C", 0.01, False),
    ("red sofa", "Soup", "I", 0, False),
]


@pytest.fixture
def esci(tmp_path):
    save(tmp_path / "esci", "any_name.parquet", ESCI_EXAMPLES)
    save(tmp_path / "esci", "another.parquet", ESCI_PRODUCTS)
    save(tmp_path / "esci", "sources.csv", {"query_id": [7, 8], "source": ["x", "y"]})
    return tmp_path / "esci"


def test_esci_as_published(esci):
    found = read_channel(esci, PairOptions())
    assert rows(found["train"]) == [*ESCI_TRAIN, ("lampe", "Sofá rojo", "E", 1, True)]
    assert rows(found["test"]) == [("lamp", "Red sofa", "I", 0, False)]
    assert found["train"].health.form == "ESCI, two tables"
    assert found["train"].health.sources == ["any_name.parquet", "another.parquet"]
    assert (found["train"].health.rows, found["test"].health.rows) == (5, 1)


def test_esci_filters(esci):
    assert rows(read_channel(esci, PairOptions(locale="us"))["train"]) == ESCI_TRAIN
    small = read_channel(esci, PairOptions(small_version=True))
    assert rows(small["train"]) == [ESCI_TRAIN[0], ESCI_TRAIN[1], ESCI_TRAIN[3]]
    assert small["train"].health.rows == 3
    with pytest.raises(UserError, match=r"no row of .* has locale jp, only us, es"):
        read_channel(esci, PairOptions(locale="jp"))


def test_several_text_columns_are_joined_and_cleaned(esci):
    found = read_channel(esci, PairOptions(text_columns="product_brand, product_title,product_description"))
    texts = [row[1] for row in rows(found["train"])]
    assert texts == ["Z Red sofa red", "Z Blue sofa blue", "Y Sofa feet", "X Soup hot", "Z Sofá rojo rojo"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_esci_joined(tmp_path, name):
    titles = {"product_title": ["Red sofa", "Blue sofa", "Sofa feet", "Soup", "Red sofa", "Sofá rojo"]}
    found = read_channel(save(tmp_path, name, ESCI_EXAMPLES | titles), PairOptions(locale="us"))
    assert rows(found["train"]) == ESCI_TRAIN
    assert found["train"].health.form == "ESCI pairs"


def test_products_with_fields_within_fields(tmp_path):
    save(tmp_path, "examples.parquet", ESCI_EXAMPLES)
    products = [
        {"put": f"id::{number}", "fields": {"id": number, "title": title}}
        for number, title in zip(ESCI_PRODUCTS["product_id"], ESCI_PRODUCTS["product_title"], strict=True)
    ][:4]
    content = "\n".join(map(json.dumps, products)).encode()
    (tmp_path / "products.jsonl.zst").write_bytes(zstandard.compress(content))
    assert rows(read_channel(tmp_path, PairOptions(locale="us"))["train"]) == ESCI_TRAIN
    named = PairOptions(locale="us", text_columns="fields.title")
    assert rows(read_channel(tmp_path, named)["train"]) == ESCI_TRAIN


def test_wands(tmp_path):
    (tmp_path / "query.csv").write_text("query_id\tquery\tquery_class\n0\tsalon chair\tMassage Chairs\n1\tlamp\tL\n")
    (tmp_path / "product.csv").write_text(
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\n"
        '9\tbarber chair\tC\tA / B\t"a ""good"" one\nindeed"\n8\tdesk\tD\tA\t\n'
    )
    (tmp_path / "label.csv").write_text(
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t9\tExact\n1\t0\t8\tIrrelevant\n2\t1\t8\tPartial\n"
    )
    pairs = whole(tmp_path)
    assert rows(pairs) == [
        ("salon chair", "barber chair", "Exact", 1, True),
        ("salon chair", "desk", "Irrelevant", 0, False),
        ("lamp", "desk", "Partial", 0.5, False),
    ]
    assert pairs.health.form == "WANDS, three tables"
    described = whole(tmp_path, text_columns="product_name,product_description", positive_threshold=0.5)
    assert described.texts[0].as_py() == 'barber chair a "good" one indeed'
    assert described.relevant.tolist() == [True, False, True]


def test_pairs_of_0_and_1(tmp_path):
    columns = {"query": ["a", "a"], "product_title": ["x", "y"], "relevance_label": [0, 1]}
    pairs = whole(save(tmp_path, "a.parquet", columns))
    assert rows(pairs) == [("a", "x", "0", 0, False), ("a", "y", "1", 1, True)]
    assert pairs.health.form == "0/1 pairs"


def test_home_depot_style(tmp_path):
    columns = {"search_term": ["a"] * 4, "product_title": list("wxyz"), "relevance": [3.0, 2.33, 1.67, 1.0]}
    pairs = whole(save(tmp_path, "a.csv", columns))
    assert [row[2:] for row in rows(pairs)] == [
        ("3", 2, True),
        ("2.33", 1.33, True),
        ("1.67", 0.67, False),
        ("1", 0, False),
    ]
    assert pairs.health.form == "grades 1..3 pairs"


def test_own_columns(tmp_path):
    columns = {"ask": ["a", "a"], "name 1": ["x", "y"], "name 2": ["1", None], "good": ["Yes", " no "]}
    options = {"query_column": "ask", "text_columns": "name 1,name 2", "label_column": "good"}
    pairs = whole(save(tmp_path, "a.csv", columns), **options, label_map="yes=1,no=0")
    assert rows(pairs) == [("a", "x 1", "yes", 1, True), ("a", "y", "no", 0, False)]


def test_files_of_a_channel_may_differ_in_kind_and_names(tmp_path):
    save(tmp_path, "1.csv", {"query": ["a", "b"], "product_title": ["x", "y"], "label": ["1", "0"]})
    save(tmp_path, "2.jsonl", {"search_term": ["a"], "title": ["z"], "relevance": [1]})
    pairs = whole(tmp_path)
    assert [row[:3] for row in rows(pairs)] == [("a", "x", "1"), ("b", "y", "0"), ("a", "z", "1")]
    assert whole(tmp_path / "1.csv").queries.to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "gains", "relevant", "names"),
    [
        (["exact", "Substitute", "COMPLEMENT", "irrelevant"], [1, 0.1, 0.01, 0], "1100", ["E", "S", "C", "I"]),
        (["e", "s ", "C", "i"], [1, 0.1, 0.01, 0], "1100", ["E", "S", "C", "I"]),
        (["1.0", "0.0", "1", "0"], [1, 0, 1, 0], "1010", ["1", "0"]),
        (["true", "False", "TRUE", "false"], [1, 0, 1, 0], "1010", ["1", "0"]),
        (["t", "f", "T", "F"], [1, 0, 1, 0], "1010", ["1", "0"]),
        (["-1", "1", "-1.0", "+1"], [0, 1, 0, 1], "0101", ["1", "-1"]),
        (["0", "5", "3.33", "3.3"], [0, 5, 3.33, 3.3], "0110", ["5", "3.33", "3.3", "0"]),
        (["1", "2", "4", "5"], [0, 1, 3, 4], "0011", ["5", "4", "2", "1"]),
        (["2", "3", "4", "1e0"], [1, 2, 3, 0], "0110", ["4", "3", "2", "1"]),
        (["-2", "0", "1", "2"], [0, 2, 3, 4], "0011", ["2", "1", "0", "-2"]),
        (["0.2", "0.9", "0.5", "0.7"], [0.2, 0.9, 0.5, 0.7], "0101", ["0.9", "0.7", "0.5", "0.2"]),
    ],
)
def test_scales(tmp_path, labels, gains, relevant, names):
    pairs = whole(simple(tmp_path, labels))
    assert pairs.gain.tolist() == pytest.approx(gains)
    assert pairs.relevant.tolist() == [mark == "1" for mark in relevant]
    assert list(pairs.label_names) == names
    assert (pairs.gain.dtype, pairs.label.dtype, pairs.query.dtype) == (np.float32, np.int8, np.int32)


def with_semicolons(folder, labels):
    rows = [f"q{row // 2};t{row};{label}\n" for row, label in enumerate(labels)]
    (folder / "pairs.csv").write_text("query;title;label\n" + "".join(rows))
    return folder


@pytest.mark.parametrize(
    ("labels", "gains"),
    [
        (["1", "2,33", "3", "1,67"], [0, 1.33, 2, 0.67]),
        (["1,00", "2,5", "3,0", "1.5"], [0, 1.5, 2, 0.5]),
        (["1,0", "0,0", "1", "0"], [1, 0, 1, 0]),
        (["-0,5", "0", "+1,25", "1"], [0, 0.5, 1.75, 1.5]),
    ],
)
def test_a_comma_may_be_the_decimal_point(tmp_path, caplog, labels, gains):
    with caplog.at_level(logging.INFO, "lorry"):
        assert whole(with_semicolons(tmp_path, labels)).gain.tolist() == pytest.approx(gains)
    assert f"{tmp_path}: the comma in labels is read as the decimal point, as in 2,33" in caplog.messages


def test_decimal_commas_go_with_a_label_map_of_decimal_points(tmp_path):
    pairs = whole(with_semicolons(tmp_path, ["1", "2,5", "1,0"]), label_map="1=0,2.5=1")
    assert pairs.gain.tolist() == [0, 1, 0]


@pytest.mark.parametrize("odd", ["1,234", "1.234,5", "1,2,3", "good, or so", "2,", ",5"])
def test_a_comma_that_may_be_another_one_is_left_alone(tmp_path, odd):
    pairs = whole(with_semicolons(tmp_path, ["1", "2", "3"] * 20 + ["2,5", odd]))
    assert pairs.health.bad == {"unknown label": 2}


def test_many_grades_are_shown_in_steps(tmp_path):
    pairs = whole(simple(tmp_path, [f"{grade / 100}" for grade in range(101)]))
    assert pairs.label_names == ("1", "0.875", "0.75", "0.625", "0.5", "0.375", "0.25", "0.125", "0")
    assert [pairs.label_names[pairs.label[row]] for row in (0, 6, 7, 50, 99)] == ["0", "0", "0.125", "0.5", "1"]


@pytest.mark.parametrize(("threshold", "relevant"), [(1, "1000"), (0.1, "1100"), (0.01, "1110")])
def test_the_threshold_is_in_the_units_of_the_labels(tmp_path, threshold, relevant):
    pairs = whole(simple(tmp_path, ["E", "S", "C", "I"]), positive_threshold=threshold)
    assert pairs.relevant.tolist() == [mark == "1" for mark in relevant]
    graded = whole(simple(tmp_path, ["1", "2", "3", "2.5"]), positive_threshold=2)
    assert graded.relevant.tolist() == [False, True, True, True]


def test_a_label_map_names_every_label(tmp_path):
    folder = simple(tmp_path, ["Good", "fair", "bad", "Fine", "3.0"])
    pairs = whole(folder, label_map="good=3, Fine = 3,fair=2, bad=1,3=1")
    assert pairs.label_names == ("good/fine", "fair", "bad/3")
    assert pairs.gain.tolist() == [2, 1, 0, 2, 0]
    assert pairs.relevant.tolist() == [True, False, False, True, False]
    with pytest.raises(UserError, match=r"unknown label .*line 5.*'Fine'.*label_map"):
        whole(folder, label_map="good=3,fair=2,bad=1,3=1")


@pytest.mark.parametrize("text", ["good", "good=", "=1", "good=x", "good=1,,bad=0", "good=inf"])
def test_a_label_map_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="label_map has"):
        parse_label_map(text)


def test_the_scale_most_rows_are_on_is_taken():
    labels = pa.array(["1", "0", "E"], pa.large_string())
    assert find_scale(labels, np.array([9, 9, 1]), "", None).name == "0/1"
    assert find_scale(labels, np.array([1, 1, 9]), "", None).name == "ESCI"


def test_bad_rows_are_counted_and_shown(tmp_path, caplog):
    good = [f"{row},text {row},{row % 2}\n" for row in range(60)]
    bad = ["a,<br> ,1\n", "&nbsp;,x,1\n", "b,y,maybe\n", "c,z,\n", "0,text 0,1\n", "1,text 1,1\n", "1,2,3,4\n"]
    (tmp_path / "a.csv").write_text("query,title,label\n" + "".join(good + bad))
    with caplog.at_level(logging.INFO, "lorry"):
        pairs = whole(tmp_path)
    health = pairs.health
    assert (health.rows, health.kept, len(pairs)) == (67, 60, 60)
    assert health.bad == {
        "missing query": 1,
        "missing text": 1,
        "missing label": 1,
        "unknown label": 1,
        "conflicting duplicate": 1,
        "repeated": 1,
        "wrong number of cells": 1,
    }
    assert health.examples["unknown label"] == ["a.csv line 64: query 'b', text 'y', label 'maybe'"]
    assert health.examples["missing text"] == ["a.csv line 62: query 'a', text missing, label '1'"]
    assert health.examples["wrong number of cells"] == ["a.csv line 68: 4 cells instead of 3: '1,2,3,4'"]
    assert pairs.gain[0] == 0  # of conflicting rows the first is kept
    (line,) = caplog.messages
    assert "0/1 pairs" in line
    assert "67 rows, 60 pairs of 60 queries and 60 texts" in line
    assert "1 conflicting duplicate" in line


def test_examples_name_the_right_file(tmp_path):
    simple(tmp_path, ["1", "0"] * 20, "1.csv")
    save(tmp_path, "2.csv", {"query": ["q", "q"], "title": ["t", ""], "label": ["1", "1"]})
    assert whole(tmp_path).health.examples["missing text"][0].startswith("2.csv line 3: query 'q'")


def test_repeated_rows_are_no_reason_to_refuse(tmp_path):
    columns = {"query": ["a"] * 9 + ["b"], "title": ["x"] * 9 + ["y"], "label": ["1"] * 9 + ["0"]}
    pairs = whole(save(tmp_path, "a.csv", columns))
    assert (len(pairs), pairs.health.bad) == (2, {"repeated": 8})


def test_texts_are_the_same_once_cleaned(tmp_path):
    columns = {"query": ["a ", "a", " b"], "title": ["x &amp; y", "<b>z</b>", "x & y"], "label": ["1", "0", "1"]}
    pairs = whole(save(tmp_path, "a.csv", columns))
    assert pairs.queries.to_pylist() == ["a", "b"]
    assert pairs.texts.to_pylist() == ["x & y", "z"]
    assert pairs.texts.type == pa.large_string()


def test_more_than_a_tenth_bad_is_refused(tmp_path):
    folder = simple(tmp_path, ["1", "0"] * 9 + ["maybe", "?", "1"])
    assert len(whole(folder)) == 19  # 2 of 21
    folder = simple(tmp_path, ["1", "0"] * 9 + ["maybe", "?", ""])
    with pytest.raises(UserError) as error:
        whole(folder)
    said = str(error.value)
    assert "3 of 21 rows" in said
    assert "2 unknown label (pairs.csv line 20: query 'query 9', text 'text 18', label 'maybe')" in said
    assert "1 missing label" in said
    assert "--label_map" in said


def test_labels_nobody_knows(tmp_path):
    with pytest.raises(UserError, match=r"unknown labels.*'good', 'bad'.*--label_map good=1"):
        whole(simple(tmp_path, ["good", "bad"]))


def test_columns_that_are_not_there(tmp_path):
    folder = simple(tmp_path, ["1", "0"])
    with pytest.raises(UserError, match=r"no column 'product_titel'.*query, product_title, label.*mean product_title"):
        whole(folder, text_columns="query,product_titel")
    with pytest.raises(UserError, match=r"no column 'zzz' \(label_column\)"):
        whole(folder, label_column="zzz")


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ({"question": ["a"], "title": ["b"], "label": [1]}, ["--query_column"]),
        ({"query": ["a"], "body": ["b"], "label": [1]}, ["--text_columns"]),
        ({"query": ["a"], "title": ["b"], "stars": [1]}, ["--label_column"]),
        ({"a": ["a"], "b": ["b"]}, ["--label_column", "--query_column", "--text_columns"]),
    ],
)
def test_columns_that_are_not_recognised(tmp_path, columns, flags):
    with pytest.raises(UserError) as error:
        whole(save(tmp_path, "a.csv", columns))
    assert f"a.csv has {', '.join(columns)}" in error.value.cause
    assert [word for word in error.value.hint.split() if word.startswith("--")] == flags


def test_tables_that_are_missing(tmp_path, esci):
    (esci / "another.parquet").unlink()
    with pytest.raises(UserError, match=r"any_name.parquet has product ids, but .* has no table of products"):
        read_channel(esci, PairOptions())
    judged = {"query_id": [0], "title": ["x"], "label": ["1"]}
    with pytest.raises(UserError, match=r"has query ids, but .* has no table of queries"):
        whole(save(tmp_path / "other", "label.csv", judged))


def test_products_that_are_missing(esci):
    save(esci, "another.parquet", {name: values[1:] for name, values in ESCI_PRODUCTS.items()})
    said = r"1 of 5 rows of .* split train.*unknown product \(any_name.parquet row 4.*missing products"
    with pytest.raises(UserError, match=said):
        read_channel(esci, PairOptions())


def test_half_of_the_files_without_text(tmp_path, esci):
    save(esci, "joined.csv", {"query": ["a"], "title": ["b"], "label": ["E"]})
    with pytest.raises(UserError, match="not both have query and product text"):
        read_channel(esci, PairOptions())


def test_a_channel_without_rows(tmp_path):
    with pytest.raises(UserError, match="has no rows"):
        whole(simple(tmp_path, pa.array([], pa.string())))


def test_both_classes_are_needed(tmp_path):
    pairs = whole(simple(tmp_path, ["E", "S", "C", "I"]))
    check_both_classes(pairs, "training")
    with pytest.raises(UserError, match=r"none of the 2 training pairs is relevant \(labels: C, I\)"):
        check_both_classes(pairs.select(np.array([2, 3])), "training")
    with pytest.raises(UserError, match=r"every one of the 2 training pairs is relevant.*--positive_threshold"):
        check_both_classes(pairs.select(np.array([0, 1])), "training")
    with pytest.raises(UserError, match="every one of"):
        read_splits(TrainConfig(train=str(simple(tmp_path, ["1"] * 40))))


def test_splits_of_esci(tmp_path, esci):
    test = simple(tmp_path / "test", ["E", "I"])
    held = read_splits(TrainConfig(train=str(esci), validation=str(test)))
    assert {name: len(pairs) for name, pairs in held.items()} == {"train": 5, "validation": 2, "test": 1}
    given = read_splits(TrainConfig(train=str(esci), validation=str(esci), test=str(test)))
    assert {name: len(pairs) for name, pairs in given.items()} == {"train": 5, "validation": 6, "test": 2}


def test_a_split_of_esci_with_a_channel_of_its_own_is_not_used(tmp_path, esci, caplog):
    save(esci, "any_name.parquet", ESCI_EXAMPLES | {"esci_label": ["E", "S", "C", "I", "bad", "E"]})
    with pytest.raises(
        UserError, match=r"1 of 1 rows of .* split test are bad.*Or give other test pairs: --test FOLDER"
    ):
        read_splits(TrainConfig(train=str(esci)))
    test = simple(tmp_path / "test", ["E", "I"])
    with caplog.at_level(logging.INFO, "lorry"):
        found = read_splits(TrainConfig(train=str(esci), validation=str(test), test=str(test)))
    assert {name: len(pairs) for name, pairs in found.items()} == {"train": 5, "validation": 2, "test": 2}
    assert f"{esci}: not using the rows of split test, which has a channel of its own" in caplog.messages


def test_only_test_rows_are_no_training_rows(tmp_path, esci):
    save(esci, "any_name.parquet", ESCI_EXAMPLES | {"split": ["test"] * 6})
    with pytest.raises(UserError, match="no rows of the split train"):
        read_splits(TrainConfig(train=str(esci)))
    with pytest.raises(UserError, match="--train"):
        read_splits(TrainConfig())


def test_a_split_column_that_says_something_else_is_left_alone(tmp_path):
    assert len(whole(simple(tmp_path, ["1", "0"], split=["A", "B"]))) == 2


def test_labels_mean_the_same_in_every_split(tmp_path):
    train = simple(tmp_path / "train", ["1", "2", "3"] * 10)
    low = simple(tmp_path / "low", ["1", "2", "1.5"])
    found = read_splits(TrainConfig(train=str(train), validation=str(low)))["validation"]
    assert found.gain.tolist() == [0, 1, 0.5]
    assert not found.relevant.any()  # by itself, 2 would be the best
    assert found.label_names == ("3", "2", "1")
    zero = simple(tmp_path / "zero", ["0", "0.0"])
    ones = simple(tmp_path / "ones", ["0", "1"] * 10)
    assert len(read_splits(TrainConfig(train=str(ones), test=str(zero)))["test"]) == 2
    with pytest.raises(UserError, match=r"2 of 3 rows .* unknown label"):
        read_splits(TrainConfig(train=str(ones), test=str(low)))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_no_query_is_on_both_sides(tmp_path, fraction):
    rng = np.random.default_rng(0)
    queries = [f"query {number}" for number in rng.integers(0, 400, 3000)]
    columns = {"query": queries, "title": [f"t{n}" for n in range(3000)], "label": rng.integers(0, 2, 3000)}
    pairs = whole(save(tmp_path, "a.parquet", columns))
    train, held = split_by_query(pairs, fraction)
    assert not set(train.queries.to_pylist()) & set(held.queries.to_pylist())
    assert sorted(rows(train) + rows(held)) == sorted(rows(pairs))
    assert len(held.queries) / len(pairs.queries) == pytest.approx(fraction, rel=0.5)
    order = rng.permutation(len(pairs))
    _, again = split_by_query(pairs.select(order), fraction)
    assert set(again.queries.to_pylist()) == set(held.queries.to_pylist())


def test_neither_side_is_empty(tmp_path):
    pairs = whole(simple(tmp_path, ["1", "0", "1"]))
    for fraction in (1e-9, 0.5, 0.999999):
        train, held = split_by_query(pairs, fraction)
        assert {len(train), len(held)} == {1, 2}
    with pytest.raises(UserError, match="fewer than two queries"):
        split_by_query(pairs.select(np.array([0, 1])), 0.1)


def test_selecting_keeps_order_and_drops_what_is_not_used(tmp_path):
    pairs = whole(simple(tmp_path, ["E", "S", "C", "I", "E", "I"]))
    some = pairs.select(np.array([5, 0, 4]))
    assert rows(some) == [rows(pairs)[5], rows(pairs)[0], rows(pairs)[4]]
    assert some.texts.to_pylist() == ["text 0", "text 4", "text 5"]
    assert some.queries.to_pylist() == ["query 0", "query 2"]
    assert len(pairs.select(np.zeros(6, bool))) == 0


def test_the_fingerprint_is_of_the_content_alone(tmp_path):
    one = whole(simple(tmp_path / "1", ["E", "S", "C", "I"], "a.csv"))
    same = whole(simple(tmp_path / "2", ["e", "Substitute", "c", "i"], "b.parquet"))
    assert one.fingerprint() == same.fingerprint() == one.select(np.arange(4)).fingerprint()
    others = [
        one.select(np.array([1, 0, 2, 3])),
        one.select(np.arange(3)),
        replace(one, gain=one.gain + 1),
        replace(one, texts=pa.array(["text 0t", "ext 1", "text 2", "text 3"], pa.large_string())),
    ]
    assert len({pairs.fingerprint() for pairs in [one, *others]}) == 5


def test_buckets_change_nothing_but_the_order_of_strings(tmp_path, monkeypatch):
    columns = {"query": [f"q{n % 70}" for n in range(500)], "title": [f"text {n % 90}" for n in range(500)]}
    folder = save(tmp_path, "a.parquet", columns | {"label": [n % 7 % 2 for n in range(500)]})
    plain = rows(whole(folder))
    monkeypatch.setattr(strings, "BUCKET_BYTES", 500)
    assert rows(whole(folder)) == plain


def test_read_only_folders_are_left_alone(tmp_path):
    folder = simple(tmp_path, ["1", "0"])
    folder.chmod(0o555)
    try:
        assert len(whole(folder)) == 2
        assert [path.name for path in folder.iterdir()] == ["pairs.csv"]
    finally:
        folder.chmod(0o755)


@needs_data
def test_home_depot():
    folders = {name: str(DATA / "homedepot" / name) for name in ("train", "validation", "test")}
    found = read_splits(TrainConfig(**folders))
    assert {name: pairs.health.rows for name, pairs in found.items()} == {
        "train": 55_526,
        "validation": 4_096,
        "test": 7_343,
    }
    for pairs in found.values():
        assert len(pairs) + sum(pairs.health.bad.values()) == pairs.health.rows
        assert set(pairs.health.bad) <= {"conflicting duplicate", "repeated"}
        assert len(pairs) > 0.98 * pairs.health.rows
        assert 0.6 < pairs.relevant.mean() < 0.75
    assert not set(found["train"].queries.to_pylist()) & set(found["test"].queries.to_pylist())


@needs_data
def test_esci_samples(tmp_path):
    joined = read_channel(DATA / "esci_samples" / "grandi9_sample_2c_full_data.csv", PairOptions())
    assert sum(pairs.health.rows for pairs in joined.values()) == 485
    for path in (DATA / "esci_samples").glob("vespa*"):
        (tmp_path / path.name).symlink_to(path)
    assert len(read_channel(tmp_path, PairOptions())["test"]) == 16


MEMORY = """
import resource, sys
from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
found = read_splits(TrainConfig(train=sys.argv[1]))
print(sum(map(len, found.values())), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units")
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "saved"])
def test_two_million_distinct_texts_stay_below_2_gb(tmp_path, name):
    number = np.arange(2_000_000)
    words = "Deluxe kitchen widget with a handle of stainless steel and a large, sturdy base, number "
    texts = pa.compute.binary_join_element_wise(words, pa.array(number).cast(pa.string()), "")
    queries = pa.compute.binary_join_element_wise("widget ", pa.array(number // 10).cast(pa.string()), "")
    columns = {"query": queries, "product_title": texts, "label": number % 2}
    if name == "saved":
        datasets.Dataset(pa.table(columns)).save_to_disk(tmp_path)
    else:
        save(tmp_path, name, columns)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    pairs, peak_kb = map(int, done.stdout.split())
    assert pairs == 2_000_000
    assert peak_kb < 2_000_000
