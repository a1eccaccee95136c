"""Scores of another model, in a column of their own: how they are read, and that they stay beside their pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from small_channels import csv_text, write
from test_pairs import ESCI_EXAMPLES, ESCI_PRODUCTS, save

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import read_channel, read_splits
from lorry.errors import UserError

HEADER = "query,title,label,teacher_score"


def scored(count, first=0, text="title"):
    """Rows of pairs, four a query; the score of each follows from its title alone (see `score_of`)."""
    numbers = range(first, first + count)
    return [(f"query {row // 4}", f"{text} {row}", row % 2, score_of(f"{text} {row}")) for row in numbers]


def score_of(text):
    number = int(text.split()[-1])
    return "" if number % 7 == 3 else (number + 1) / 1024


def taught(**options):
    """Options of a run that learns from a teacher."""
    return TrainConfig(loss="kl", **options)


def read(folder, **options):
    return read_channel(folder, taught(**options))["all"]


def assert_aligned(pairs):
    """Check that every pair has the score of its title."""
    wanted = [float(score_of(pairs.texts[int(text)].as_py()) or "nan") for text in pairs.text]
    assert pairs.teacher.dtype == np.float32
    assert len(pairs.teacher) == len(pairs) > 0
    np.testing.assert_array_equal(pairs.teacher, np.float32(wanted))


@pytest.mark.parametrize(("column", "options"), [("teacher_score", {}), ("gpt", {"teacher_column": "gpt"})])
@pytest.mark.parametrize("form", ["pairs.csv", "pairs.tsv", "pairs.parquet", "pairs.jsonl", "saved"])
def test_a_column_of_scores_is_read_from_every_form(tmp_path, form, column, options):
    scores = [0.5, None, -0.25, 1.0]
    columns = {"query": list("aabb"), "title": list("wxyz"), "label": [1, 0, 1, 0], column: scores}
    if form == "saved":
        Dataset.from_dict(columns).save_to_disk(tmp_path / "pairs")
    else:
        save(tmp_path / "pairs", form, columns)
    pairs = read(tmp_path / "pairs", **options)
    np.testing.assert_array_equal(pairs.teacher, np.float32([0.5, np.nan, -0.25, 1.0]))


def test_a_column_that_is_named_comes_before_one_that_is_recognised(tmp_path):
    text = csv_text([("q", "a", 1, 0.1, 0.6), ("q", "b", 0, 0.2, 0.7)], f"{HEADER},gpt")
    write(tmp_path, pairs_csv=text)
    assert read(tmp_path).teacher.tolist() == np.float32([0.1, 0.2]).tolist()
    assert read(tmp_path, teacher_column="gpt").teacher.tolist() == np.float32([0.6, 0.7]).tolist()


def test_no_column_of_scores_is_no_scores(tmp_path):
    assert read(write(tmp_path, pairs_csv=[("q", "a", 1), ("q", "b", 0)])).teacher is None


def test_scores_stand_in_escis_table_of_judgements(tmp_path):
    scores = [0.9, 0.6, 0.3, 0.0, 0.25, 0.75]
    save(tmp_path, "examples.parquet", ESCI_EXAMPLES | {"teacher_score": scores})
    save(tmp_path, "products.parquet", ESCI_PRODUCTS)
    found = read_channel(tmp_path, taught())
    assert found["train"].health.form == "ESCI, two tables"
    assert found["train"].teacher.tolist() == np.float32([0.9, 0.6, 0.3, 0.0, 0.75]).tolist()
    assert found["test"].teacher.tolist() == [0.25]
    small = read_channel(tmp_path, taught(small_version=True, locale="us"))["train"]
    assert small.teacher.tolist() == np.float32([0.9, 0.6, 0.0]).tolist()


def test_a_file_without_the_column_has_no_scores(tmp_path):
    first, second = csv_text(scored(8), HEADER), [row[:3] for row in scored(8, 8)]
    pairs = read(write(tmp_path, a_csv=first, b_csv=second))
    assert len(pairs) == 16
    assert_aligned(pairs.select(np.arange(8)))
    assert np.isnan(pairs.teacher[8:]).all()


@pytest.mark.parametrize("cell", ["", " ", "NaN", "nan"])
def test_no_score_may_be_written_in_several_ways(tmp_path, cell):
    rows = [("q", "a", 1, 0.5), ("q", "b", 0, cell)]
    np.testing.assert_array_equal(
        read(write(tmp_path, pairs_csv=csv_text(rows, HEADER))).teacher, np.float32([0.5, np.nan])
    )


def test_a_number_that_is_none_is_no_score(tmp_path):
    columns = {"query": ["q", "q"], "title": ["a", "b"], "label": [1, 0], "teacher_score": [0.5, float("nan")]}
    np.testing.assert_array_equal(read(save(tmp_path, "pairs.parquet", columns)).teacher, np.float32([0.5, np.nan]))


@pytest.mark.parametrize("cell", ["good", "inf", "-Infinity", "50%", "0.5.1", "1e39"])
@pytest.mark.parametrize(("name", "place"), [("pairs.csv", "line 4"), ("pairs.jsonl", "line 3")])
@pytest.mark.filterwarnings("error")
def test_what_is_no_finite_number_is_one_line_that_says_where(tmp_path, cell, name, place):
    rows = [("q", "a", 1, "0.5"), ("q", "b", 0, ""), ("q", "c", 0, cell)]
    if name == "pairs.csv":
        write(tmp_path, pairs_csv=csv_text(rows, HEADER))
    else:
        objects = [dict(zip(HEADER.split(","), row, strict=True)) for row in rows]
        write(tmp_path, pairs_jsonl="\n".join(map(json.dumps, objects)))
    with pytest.raises(UserError) as refused:
        read(tmp_path)
    assert str(refused.value) == (
        f"{name} {place}: the teacher's score {cell!r} is not a finite number. "
        "Correct it; leave the cell empty if the teacher did not score the pair."
    )


def test_a_score_that_is_not_used_may_be_anything(tmp_path):
    rows = [("q", "a", 1, "0.5", "us"), ("q", "b", 0, "NULL", "es"), ("q", "c", 0, "", "us")]
    write(tmp_path, pairs_csv=csv_text(rows, f"{HEADER},product_locale"))
    assert read_channel(tmp_path, PairOptions())["all"].teacher is None
    with pytest.raises(UserError, match="'NULL' is not a finite number"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, locale="us").teacher, np.float32([0.5, np.nan]))


def test_two_columns_of_scores_are_refused(tmp_path):
    write(tmp_path, pairs_csv=csv_text([("q", "a", 1, 0.1, 0.2)], f"{HEADER},Teacher Score"))
    with pytest.raises(UserError, match=r"several columns that may be the teacher's score: .*--teacher_column NAME"):
        read(tmp_path)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    write(tmp_path, pairs_csv=csv_text([("q", "a", 1, 0.1)], HEADER))
    with pytest.raises(UserError, match=r"no column 'teacher_scor' \(teacher_column\).* Did you mean teacher_score\?"):
        read_splits(taught(train=str(tmp_path), teacher_column="teacher_scor"))


@pytest.mark.parametrize("option", ["validation", "test"])
def test_pairs_that_are_not_trained_on_need_no_scores(tmp_path, option):
    train = write(tmp_path / "train", pairs_csv=csv_text(scored(40), "query,title,label,gpt"))
    other = write(tmp_path / "other", pairs_csv=[row[:3] for row in scored(8, 100)])
    found = read_splits(taught(train=str(train), teacher_column="gpt", **{option: str(other)}))
    assert_aligned(found["train"])
    assert found[option].teacher is None


def test_scores_stay_beside_their_pairs_when_rows_are_chosen_or_left_out(tmp_path):
    rows = scored(200)
    rows[5] = (*rows[5][:2], "", rows[5][3])  # without a label: left out
    rows[8] = rows[4]  # twice: the first is kept
    pairs = read(write(tmp_path, pairs_csv=csv_text(rows, HEADER)))
    assert len(pairs) == 198
    assert_aligned(pairs)
    order = np.random.default_rng(0).permutation(198)[:50]
    assert_aligned(pairs.select(order))
    assert_aligned(pairs.select(pairs.relevant))


def test_scores_stay_beside_their_pairs_when_queries_are_held_out(tmp_path):
    found = read_splits(taught(train=str(write(tmp_path, pairs_csv=csv_text(scored(400), HEADER)))))
    assert list(found) == ["train", "validation"]
    for pairs in found.values():
        assert_aligned(pairs)


def test_scores_stay_beside_their_pairs_in_splits(tmp_path):
    tables = {name: scored(count, first) for name, count, first in [("train", 40, 0), ("test", 12, 40)]}
    columns = {
        name: dict(zip(HEADER.split(","), zip(*rows, strict=True), strict=True)) for name, rows in tables.items()
    }
    for table in columns.values():
        table["teacher_score"] = [score or None for score in table["teacher_score"]]
    splits = {
        name: Dataset.from_dict({key: list(cells) for key, cells in table.items()}) for name, table in columns.items()
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    rows = [(*row, name) for name, rows in tables.items() for row in rows]
    write(tmp_path / "column", pairs_csv=csv_text(rows, f"{HEADER},split"))
    for form in ("saved", "column"):
        found = read_channel(tmp_path / form, taught())
        assert {name: len(pairs) for name, pairs in found.items()} == {"train": 40, "test": 12}
        for pairs in found.values():
            assert_aligned(pairs)


@pytest.mark.parametrize(("exclude", "left"), [("pairs", 34), ("queries", 32)])
def test_scores_stay_beside_their_pairs_when_overlap_is_left_out(tmp_path, exclude, left):
    train = write(tmp_path / "train", pairs_csv=csv_text(scored(40), HEADER))
    test = write(tmp_path / "test", pairs_csv=csv_text(scored(6), HEADER))
    validation = write(tmp_path / "validation", pairs_csv=csv_text(scored(8, 100), HEADER))
    folders = {"train": str(train), "test": str(test), "validation": str(validation)}
    found = read_splits(taught(exclude_overlap=exclude, **folders))
    assert len(found["train"]) == left
    for pairs in found.values():
        assert_aligned(pairs)


def test_scores_are_part_of_the_fingerprint_where_there_are_any(tmp_path):
    rows = scored(12)
    plain = read(write(tmp_path / "plain", pairs_csv=[row[:3] for row in rows])).fingerprint()
    pairs = read(write(tmp_path / "scored", pairs_csv=csv_text(rows, HEADER)))
    assert replace(pairs, teacher=None).fingerprint() == plain
    assert pairs.fingerprint() != plain
    others = replace(pairs, teacher=np.nan_to_num(pairs.teacher, nan=0.5))
    assert len({plain, pairs.fingerprint(), others.fingerprint()}) == 3
