"""Which rows belong to which split, and what splits have in common."""

import hashlib
import logging

import numpy as np
import pytest
from small_channels import csv_text, judged, write

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import read_channel, read_splits
from lorry.errors import UserError


@pytest.fixture(autouse=True)
def _all_messages(caplog):
    caplog.set_level(logging.INFO, "lorry")


def with_splits(folder, splits):
    rows = [(*row, split) for row, split in zip(judged(len(splits)), splits, strict=True)]
    return write(folder, pairs_csv=csv_text(rows, "query,title,label,split"))


def sizes(found):
    return {name: len(pairs) for name, pairs in found.items()}


def texts(pairs):
    return [pairs.texts[int(text)].as_py() for text in pairs.text]


@pytest.mark.parametrize(
    ("spelled", "split"),
    [("TRAIN", "train"), ("training", "train"), (" Train ", "train"), ("val", "validation"), ("Valid", "validation"),
     ("dev", "validation"), ("Validation", "validation"), ("Test", "test"), ("testing", "test")],
)  # fmt: skip
def test_splits_may_be_spelled_in_several_ways(tmp_path, spelled, split):
    found = read_channel(with_splits(tmp_path, ["train"] * 4 + ["test"] * 4 + [spelled] * 2), PairOptions())
    assert sizes(found) == {"train": 4, "test": 4} | {split: 2 if split == "validation" else 6}


@pytest.mark.parametrize("odd", ["", "tset"])
def test_a_row_of_no_known_split_is_left_out_and_counted(tmp_path, odd):
    """It may be a test row, so it must not be trained on."""
    found = read_splits(TrainConfig(train=str(with_splits(tmp_path, ["train"] * 60 + ["test"] * 20 + [odd]))))
    assert sizes(found) == {"train": len(found["train"]), "validation": 60 - len(found["train"]), "test": 20}
    assert found["train"].health.bad == {"unknown split": 1}
    assert found["train"].health.rows == 61
    assert found["test"].health.bad == {}
    assert found["train"].health.examples["unknown split"] == [
        f"pairs.csv line 82: query 'query 40', text 'title 80', label '1', split {repr(odd) if odd else 'missing'}"
    ]
    with pytest.raises(
        UserError, match=r"20 of 80 rows .*20 unknown split .*Write train, validation or test into every cell"
    ):
        read_splits(TrainConfig(train=str(with_splits(tmp_path, ["train"] * 60 + ["test"] * 20 + [odd] * 20))))


def test_only_rows_of_no_known_split_are_refused(tmp_path):
    rows = [("q", "t", 1, "us", "train"), ("q", "u", 0, "es", "?"), ("q", "v", 1, "es", "?")]
    folder = write(tmp_path, pairs_csv=csv_text(rows, "query,title,label,locale,split"))
    with pytest.raises(UserError, match=r"has no rows of the split train or validation or test. Give other pairs."):
        read_channel(folder, PairOptions(locale="es"))


def test_a_test_channel_is_used_as_a_whole(tmp_path):
    folder = with_splits(tmp_path / "test", ["train"] * 4 + ["test"] * 4 + [""])
    found = read_splits(TrainConfig(train=str(write(tmp_path / "train", pairs_csv=judged(40, 100))), test=str(folder)))
    assert (len(found["test"]), found["test"].health.bad) == (9, {})


def test_a_split_column_that_says_something_else_is_told_of(tmp_path, caplog):
    folder = with_splits(tmp_path, ["A", "B"] * 2)
    assert sizes(read_channel(folder, PairOptions())) == {"all": 4}
    assert f"{folder}: the column split is not used: it says A, B" in caplog.messages


@pytest.mark.parametrize(
    ("name", "told"),
    [("test.csv", True), ("Valid.csv", True), ("dev-1.csv", True), ("validation-00000-of-00001.csv", True),
     ("train.csv", False), ("testimonials.csv", False), ("validated.csv", False), ("device.csv", False)],
)  # fmt: skip
def test_files_that_seem_to_be_for_testing_are_told_of(tmp_path, caplog, name, told):
    """They are trained on like all others: only their name says something else."""
    folder = write(tmp_path, a_csv=judged(40), **{name: judged(20, 100)})
    assert sum(sizes(read_splits(TrainConfig(train=str(folder)))).values()) == 60
    said = f"{folder}: the rows of {name} are trained on; if they are for validation or test, move them to a folder of "
    assert [message.startswith(said) for message in caplog.messages if "trained on" in message] == [True] * told


def test_the_names_of_files_say_nothing_where_there_is_a_column_split_or_another_purpose(tmp_path, caplog):
    rows = [(*row, "test" if row[0] == "query 0" else "train") for row in judged(40)]
    folder = write(tmp_path / "train", test_csv=csv_text(rows, "query,title,label,split"))
    other = write(tmp_path / "other", test_csv=judged(20, 100))
    read_splits(TrainConfig(train=str(folder), validation=str(other)))
    read_splits(TrainConfig(train=str(other / "test.csv")))
    assert "trained on" not in caplog.text


TRAIN, OTHER = judged(40), [("query 0", "title 0", 0), ("query 0", "new", 1), ("query 1", "title 9", 0), *judged(6, 60)]


@pytest.fixture
def channels(tmp_path):
    write(tmp_path / "train", pairs_csv=TRAIN)
    write(tmp_path / "validation", pairs_csv=judged(8, 80))
    write(tmp_path / "test", pairs_csv=OTHER)
    return {name: str(tmp_path / name) for name in ("train", "validation", "test")}


def test_overlap_is_counted_and_told(channels, caplog):
    found = read_splits(TrainConfig(**channels))
    assert sizes(found) == {"train": 40, "validation": 8, "test": 9}
    overlap = found["test"].health.overlap
    assert (overlap.shared_queries, overlap.queries, overlap.shared_pairs, overlap.pairs) == (2, 5, 1, 9)
    assert (
        "test: 2 of the 5 queries and 1 of the 9 pairs are training queries and pairs as well; "
        "--exclude_overlap queries leaves them out of training"
    ) in caplog.messages
    assert "validation: none of the 4 queries is a training query" in caplog.messages
    assert found["train"].health.overlap is None


@pytest.mark.parametrize(("exclude", "left_out"), [("none", 0), ("pairs", 1), ("queries", 4)])
def test_overlap_may_be_left_out_of_training(channels, exclude, left_out):
    found = read_splits(TrainConfig(**channels, exclude_overlap=exclude))
    assert sizes(found) == {"train": 40 - left_out, "validation": 8, "test": 9}
    train = found["train"].health
    assert (train.rows, train.kept) == (40, 40 - left_out)
    kind = {"queries": "query also in validation or test"}.get(exclude, "also in validation or test")
    assert train.bad == ({kind: left_out} if left_out else {})
    overlap = found["test"].health.overlap
    assert exclude != "pairs" or str(overlap) == (
        "2 of the 5 queries are training queries as well, but no pair is a training pair"
    )
    assert (overlap.shared_queries, overlap.shared_pairs) == {"none": (2, 1), "pairs": (2, 0), "queries": (0, 0)}[
        exclude
    ]
    kept = [row[1] for row in TRAIN if row[0] not in ("query 0", "query 1")]
    assert exclude != "queries" or texts(found["train"]) == kept


# Queries and titles that most models see as the same: in case, in Unicode form, in both.
SAME = [("red sofa", "RED Sofa"), ("café", "cafe\u0301"), ("CAFÉ 2", "cafe\u0301 2"), ("straße", "STRASSE"),
        ("Ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ"), ("ångström", "A\u030angstro\u0308m")]  # fmt: skip


@pytest.mark.parametrize(
    ("exclude", "left_out", "shared"), [("none", 0, (7, 13)), ("pairs", 12, (7, 0)), ("queries", 24, (0, 0))]
)
def test_case_and_unicode_form_make_no_other_query(tmp_path, caplog, exclude, left_out, shared):
    rows = [(one, f"{one} {n}", n % 2) for one, _ in SAME for n in range(4)]
    test = [(two, f"{two} {n}", n % 2) for _, two in SAME for n in range(2, 6)] + [("Red SOFA", "red sofa 2", 0)]
    files = {"train": [*rows, *judged(40)], "validation": judged(4, 80), "test": [*test, *judged(4, 60)]}
    config = {name: str(write(tmp_path / name, pairs_csv=content)) for name, content in files.items()}
    found = read_splits(TrainConfig(**config, exclude_overlap=exclude))
    overlap = found["test"].health.overlap
    assert (overlap.shared_queries, overlap.shared_pairs, overlap.queries, overlap.pairs) == (*shared, 9, 29)
    assert len(found["train"]) == 64 - left_out
    what = {"pairs": "12 pairs that are", "queries": "24 pairs of queries that are"}.get(exclude)
    assert what is None or f"left out of training: {what} also in validation or test" in caplog.messages


def test_no_query_is_held_out_in_one_case_and_trained_on_in_another(tmp_path):
    rows = [(spelled, f"{spelled} {n}", n) for q in range(60) for spelled in (f"é {q}", f"É {q}") for n in (0, 1)]
    found = read_splits(TrainConfig(train=str(write(tmp_path, pairs_csv=rows))))
    assert {len(queries) % 2 for queries in (found["train"].queries, found["validation"].queries)} == {0}
    assert found["validation"].health.overlap.shared_queries == 0
    one = write(tmp_path / "one", pairs_csv=[("sofa", "a", 1), ("Sofa", "b", 0)])
    with pytest.raises(UserError, match="fewer than two queries"):
        read_splits(TrainConfig(train=str(one)))


def test_lower_case_queries_are_held_out_as_they_always_were(tmp_path):
    """Figures that were measured earlier stay comparable."""
    found = read_splits(TrainConfig(train=str(write(tmp_path, pairs_csv=judged(120)))))
    known = [
        f"query {q}"
        for q in range(60)
        if int.from_bytes(hashlib.blake2b(f"query {q}".encode(), digest_size=8).digest(), "little") < 0.1 * 2**64
    ]
    assert found["validation"].queries.to_pylist() == known


def test_queries_of_validation_are_left_out_as_well(channels):
    found = read_splits(TrainConfig(train=channels["train"], validation=channels["test"], exclude_overlap="queries"))
    assert sizes(found) == {"train": 36, "validation": 9}


def test_held_out_queries_are_no_training_queries(channels, caplog):
    found = read_splits(TrainConfig(train=channels["train"], exclude_overlap="queries"))
    assert len(found["train"]) + len(found["validation"]) == 40
    assert found["validation"].health.overlap.shared_queries == 0


def test_splits_of_one_file_may_overlap(tmp_path):
    rows = [(*row, "train") for row in judged(40)] + [(*row, "test") for row in judged(10, 2, labels=(1,))]
    folder = write(tmp_path, pairs_csv=csv_text(rows, "query,title,label,split"))
    found = read_splits(TrainConfig(train=str(folder), validation=str(folder)))
    assert len(found["test"]) == 10  # no row of a split is a duplicate of one of another
    assert found["test"].health.overlap.shared_pairs == 10


def test_no_training_pairs_left_is_refused(channels):
    with pytest.raises(UserError, match="all 40 training pairs are left out by exclude_overlap=pairs"):
        read_splits(
            TrainConfig(
                train=channels["train"], test=channels["train"], validation=channels["test"], exclude_overlap="pairs"
            )
        )


def test_overlap_of_many_pairs_is_what_sets_say(tmp_path):
    choose = np.random.default_rng(0)
    channels = {}
    for name, count in (("train", 3000), ("validation", 500), ("test", 500)):
        rows = [(f"query {q}", f"title {t}", (q + t) % 2) for q, t in choose.integers(0, 60, (count, 2))]
        channels[name] = str(write(tmp_path / name, pairs_csv=rows))
    found = read_splits(TrainConfig(**channels))

    def content(pairs):
        return {
            (pairs.queries[int(q)].as_py(), pairs.texts[int(t)].as_py())
            for q, t in zip(pairs.query, pairs.text, strict=True)
        }

    for name in ("validation", "test"):
        overlap, both = found[name].health.overlap, content(found["train"]) & content(found[name])
        assert overlap.shared_pairs == len(both) > 100
        queries = set(found["train"].queries.to_pylist()) & set(found[name].queries.to_pylist())
        assert overlap.shared_queries == len(queries)
    train = read_splits(TrainConfig(**channels, exclude_overlap="pairs"))["train"]
    assert content(train) == content(found["train"]) - content(found["validation"]) - content(found["test"])
