"""Data sets saved with `datasets`: every form of table, splits, odd columns, damage; through real folders."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import read_channel, read_splits
from lorry.errors import UserError

ESCI_JOINED = {
    "query": ["red sofa", "red sofa", "lamp", "lamp", "lampe", "lampe"],
    "query_id": [7, 7, 8, 8, 9, 9],
    "product_id": ["001", "002", "001", "003", "001", "003"],
    "product_title": ["Red <b>sofa</b>", "Blue sofa", "Red sofa", "Lamp", "Sofá rojo", "Lámpara"],
    "product_description": ["soft", None, "", "bright", "rojo", None],
    "product_locale": ["us", "us", "us", "us", "es", "es"],
    "esci_label": ["E", "S", "I", "E", "I", "E"],
    "small_version": [1, 1, 0, 1, 1, 1],
    "split": ["train", "train", "test", "test", "train", "train"],
}


def pairs_of(count, name="q", labels=("1", "0")):
    rows = range(count)
    return {
        "query": [f"{name}{row // 2}" for row in rows],
        "product_title": [f"{name} text {row}" for row in rows],
        "label": [labels[row % len(labels)] for row in rows],
    }


def save(folder, **splits):
    """Save tables as a `DatasetDict`, each a dict of columns or a `Dataset`."""
    tables = {name: Dataset.from_dict(table) if isinstance(table, dict) else table for name, table in splits.items()}
    DatasetDict(tables).save_to_disk(folder)
    return folder


def save_one(folder, columns, **how):
    Dataset.from_dict(columns).save_to_disk(folder, **how)
    return folder


def sizes(found):
    return {name: len(pairs) for name, pairs in found.items()}


def refused(location, **options):
    with pytest.raises(UserError) as error:
        read_channel(location, PairOptions(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (ESCI_JOINED, {}),
        (ESCI_JOINED, {"locale": "us", "small_version": True, "text_columns": "product_title,product_description"}),
        ({"query": ["a", "a", "b"], "product_title": ["x", "y", "x"], "relevance_label": [0, 1, 1]}, {}),
        ({"search_term": ["a"] * 4, "product_title": list("wxyz"), "relevance": [3.0, 2.33, 1.67, 1.0]}, {}),
        ({"query": ["a", "b"], "title": ["x", "y"], "label": [True, False]}, {}),
        (
            {"ask": ["a", "a"], "tags": [["x", "y"], ["z"]], "good": ["Yes", " no "]},
            {"query_column": "ask", "text_columns": "tags", "label_column": "good", "label_map": "yes=1,no=0"},
        ),
        ({"query": ["a", "b"], "fields": [{"id": 1, "title": "x"}, {"id": 2, "title": "y"}], "label": [1, 0]}, {}),
    ],
)
def test_a_saved_data_set_gives_the_pairs_of_the_same_file(tmp_path, columns, options):
    (tmp_path / "file").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "file" / "a.parquet")
    found = read_channel(save_one(tmp_path / "saved", columns), PairOptions(**options))
    expected = read_channel(tmp_path / "file", PairOptions(**options))
    assert {name: pairs.fingerprint() for name, pairs in found.items()} == {
        name: pairs.fingerprint() for name, pairs in expected.items()
    }
    assert all(pairs.health.sources == ["saved"] for pairs in found.values())


def test_shards_are_one_table_in_order(tmp_path):
    columns = pairs_of(1000)
    one = read_channel(save_one(tmp_path / "one", columns), PairOptions())["all"]
    many = read_channel(save_one(tmp_path / "many", columns, num_shards=3), PairOptions())["all"]
    assert len(list((tmp_path / "many").glob("*.arrow"))) == 3
    assert one.fingerprint() == many.fingerprint()


def test_splits_become_training_validation_and_test(tmp_path, caplog):
    names = {"train": pairs_of(40), "dev": pairs_of(8, "v"), "test": pairs_of(6, "t"), "extra": pairs_of(100, "e")}
    folder = save(tmp_path / "pairs", **names)
    with caplog.at_level(logging.INFO, "lorry"):
        found = read_splits(TrainConfig(train=str(folder)))
    assert sizes(found) == {"train": 40, "validation": 8, "test": 6}
    assert found["validation"].texts[0].as_py() == "v text 0"
    assert {name: pairs.health.sources for name, pairs in found.items()} == {
        "train": ["pairs split train"],
        "validation": ["pairs split dev"],
        "test": ["pairs split test"],
    }
    assert f"{folder}: reading split train, dev, test; not reading extra" in caplog.messages
    assert sizes(read_channel(folder, PairOptions())) == {"train": 40, "validation": 8, "test": 6}


def test_without_a_validation_split_queries_are_held_out(tmp_path):
    found = read_splits(TrainConfig(train=str(save(tmp_path, train=pairs_of(40), test=pairs_of(6, "t")))))
    assert len(found["train"]) + len(found["validation"]) == 40
    assert len(found["test"]) == 6


def test_a_split_with_a_channel_of_its_own_is_not_even_opened(tmp_path, caplog):
    folder = save(tmp_path / "pairs", train=pairs_of(40), validation=pairs_of(8, "v"), test=pairs_of(6, "t"))
    (folder / "test" / "state.json").unlink()
    other = save(tmp_path / "other", a=pairs_of(4, "o"))
    with caplog.at_level(logging.INFO, "lorry"):
        found = read_splits(TrainConfig(train=str(folder), test=str(other)))
    assert sizes(found) == {"train": 40, "validation": 8, "test": 4}
    assert f"{folder}: reading split train, validation; not reading test" in caplog.messages


def test_a_validation_or_test_channel_takes_its_split_or_the_only_one(tmp_path):
    splits = {"train": pairs_of(40), "validation": pairs_of(8, "v"), "test": pairs_of(6, "t")}
    whole = str(save(tmp_path / "whole", **splits))
    one = str(save(tmp_path / "one", train=pairs_of(4, "o")))
    two = str(save(tmp_path / "two", a=pairs_of(4, "a"), b=pairs_of(4, "b")))
    found = read_splits(TrainConfig(train=one, validation=whole, test=whole))
    assert sizes(found) == {"train": 4, "validation": 8, "test": 6}
    assert sizes(read_splits(TrainConfig(train=whole, validation=one, test=f"{two}/b")))["validation"] == 4
    with pytest.raises(UserError, match=rf"two has no split test; it has a, b. Name one split, as in '{two}/a'"):
        read_splits(TrainConfig(train=one, test=two))


@pytest.mark.parametrize("name", ["test", "dev"])
def test_training_does_not_take_what_is_meant_for_testing(tmp_path, name):
    folder = save(tmp_path, **{name: pairs_of(8)})
    for other in ("", str(folder)):
        with pytest.raises(UserError, match=f"has no split train; it has {name}"):
            read_splits(TrainConfig(train=str(folder), test=other, validation=other))
    assert sizes(read_splits(TrainConfig(train=str(folder / name))))["train"] > 0  # asked for by name


def test_a_lone_split_may_have_the_split_column_of_esci(tmp_path):
    folder = save(tmp_path, train=ESCI_JOINED)
    assert sizes(read_channel(folder, PairOptions())) == {"train": 4, "test": 2}


def test_tables_that_refer_to_each_other_are_no_splits(tmp_path):
    products = {"product_id": ["001"], "product_title": ["Sofa"]}
    ids_only = {name: ESCI_JOINED[name] for name in ("query", "product_id", "esci_label")}
    said = refused(save(tmp_path / "tables", examples=ids_only, products=products))
    assert "no split train or validation or test; it has examples, products" in said
    assert "save the judged pairs, each with its product text, as split train" in said
    said = refused(save(tmp_path / "ids", train=ids_only, test=ids_only))
    assert "ids split train has product ids, but" in said
    assert "join the text to the rows of a data set" in said


def test_a_split_that_cannot_be_judged_names_the_ways_out(tmp_path):
    unlabelled = {name: values for name, values in pairs_of(6, "t").items() if name != "label"}
    folder = save(tmp_path / "pairs", train=pairs_of(40), test=unlabelled)
    with pytest.raises(
        UserError, match=r"recognised as label: pairs split test has query, product_title.*FOLDER/train"
    ):
        read_splits(TrainConfig(train=str(folder)))
    hidden = Dataset.from_dict(
        pairs_of(6, "t", labels=(-1,)), Features({**TEXTS, "label": ClassLabel(names=["0", "1"])})
    )
    folder = save(tmp_path / "hidden", train=pairs_of(40, labels=(0, 1)), test=hidden)
    with pytest.raises(
        UserError, match=r"6 of 6 rows of .* split test are bad: 6 missing label.*Or give other test pairs"
    ):
        read_splits(TrainConfig(train=str(folder)))
    assert len(read_splits(TrainConfig(train=str(folder / "train")))) == 2


TEXTS = {"query": Value("string"), "product_title": Value("string")}


def test_bad_rows_are_named_by_split_and_number_in_the_data_set(tmp_path):
    test = pairs_of(40, "t")
    test["product_title"][3] = " "
    found = read_splits(TrainConfig(train=str(save(tmp_path / "pairs", train=pairs_of(40), test=test))))
    health = found["test"].health
    assert health.examples == {"missing text": ["pairs split test row 3: query 't1', text missing, label '0'"]}
    assert (health.rows, health.kept) == (40, 39)
    assert found["train"].health.bad == {}


def test_rows_of_one_split_are_no_duplicates_of_another(tmp_path):
    train, test = pairs_of(40), pairs_of(6)
    train["label"][0] = "0"  # of test row 0 the label is 1
    found = read_splits(TrainConfig(train=str(save(tmp_path / "pairs", train=train, test=test))))
    assert (len(found["test"]), found["test"].health.bad) == (6, {})
    assert found["train"].health.bad == {}


@pytest.mark.parametrize("nested", [False, True])
def test_class_labels_are_read_by_name(tmp_path, nested):
    label = ClassLabel(names=["irrelevant", "exact", "substitute"])
    codes = [1, 2, 0, 1] * 10 + [-1]
    rows = {name: values[:41] for name, values in pairs_of(42).items()} | {"label": codes}
    features = {**TEXTS, "label": label}
    if nested:
        rows["judged"] = [{"label": code} for code in rows.pop("label")]
        features["judged"] = {"label": features.pop("label")}
    Dataset.from_dict(rows, Features(features)).save_to_disk(tmp_path)
    pairs = read_channel(tmp_path, PairOptions())["all"]
    assert pairs.health.form == "ESCI pairs"
    assert [pairs.label_names[code] for code in pairs.label[:4]] == ["E", "S", "I", "E"]
    assert pairs.health.bad == {"missing label": 1}


def test_columns_that_are_not_asked_for_are_not_looked_at(tmp_path):
    odd = {
        "image": Image(),
        "vector": List(Value("float32")),
        "parts": List({"name": Value("string")}),
        "day": Value("timestamp[s]"),
    }
    rows = pairs_of(4) | {
        "image": [{"bytes": b"\xff\xd8 not a picture", "path": None}] * 4,
        "vector": [[0.5]] * 4,
        "parts": [[{"name": "x"}]] * 4,
        "day": [0] * 4,
    }
    Dataset.from_dict(rows, Features({**TEXTS, "label": Value("string"), **odd})).save_to_disk(tmp_path / "odd")
    plain = read_channel(save_one(tmp_path / "plain", pairs_of(4)), PairOptions())["all"]
    assert read_channel(tmp_path / "odd", PairOptions())["all"].fingerprint() == plain.fingerprint()
    assert "column parts of odd is of type list" in refused(tmp_path / "odd", text_columns="parts")
    assert "column image.bytes of odd is not UTF-8" in refused(tmp_path / "odd", text_columns="image.bytes")


DAMAGE = {
    "a truncated file": lambda folder: cut(next(folder.glob("*.arrow"))),
    "an empty file": lambda folder: next(folder.glob("*.arrow")).write_bytes(b""),
    "no rows at all": lambda folder: next(folder.glob("*.arrow")).unlink(),
    "not finished": lambda folder: (folder / "state.json").unlink(),
    "no description": lambda folder: (folder / "dataset_info.json").unlink(),
    "broken JSON": lambda folder: (folder / "state.json").write_text("{"),
    "other JSON": lambda folder: (folder / "state.json").write_text("[]"),
    "an unknown feature": lambda folder: (folder / "dataset_info.json").write_text(
        json.dumps({"features": {"query": {"_type": "Hologram"}}})
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("within", ["", "train"])
def test_a_damaged_data_set_is_one_line(tmp_path, damage, within):
    if within:
        save(tmp_path, train=pairs_of(4), test=pairs_of(4, "t"))
    else:
        save_one(tmp_path, pairs_of(4))
    DAMAGE[damage](tmp_path / within)
    said = refused(tmp_path)
    assert f"cannot read the data set {tmp_path / within}" in said
    assert "save it again with save_to_disk" in said


def test_a_data_set_with_a_split_missing_or_none_is_one_line(tmp_path):
    save(tmp_path, train=pairs_of(4), test=pairs_of(4, "t"))
    shutil.rmtree(tmp_path / "test")  # `save_to_disk` lists the splits before it writes them
    assert f"cannot read the data set {tmp_path / 'test'}" in refused(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    assert "has no splits" in refused(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("splits")
    assert f"cannot read the data set {tmp_path}" in refused(tmp_path)


def test_files_beside_a_data_set_are_not_passed_over(tmp_path):
    save_one(tmp_path, pairs_of(4))
    (tmp_path / "README.md").write_text("about")
    assert len(read_channel(tmp_path, PairOptions())["all"]) == 4
    (tmp_path / "more.csv").write_text("query,title,label\na,x,1\n")
    assert "holds a data set saved with save_to_disk and also more.csv" in refused(tmp_path)


def test_a_folder_of_files_may_hold_a_state(tmp_path):
    (tmp_path / "state.json").write_text('{"step": 3}')
    (tmp_path / "a.csv").write_text("query,title,label\na,x,1\na,y,0\n")
    assert len(read_channel(tmp_path, PairOptions())["all"]) == 2


def test_read_only_folders_are_left_alone(tmp_path):
    save_one(tmp_path, pairs_of(4))
    names = sorted(tmp_path.iterdir())
    tmp_path.chmod(0o555)
    try:
        assert len(read_channel(tmp_path, PairOptions())["all"]) == 4
        assert sorted(tmp_path.iterdir()) == names
    finally:
        tmp_path.chmod(0o755)


def test_labels_mean_what_they_mean_in_the_training_data_set(tmp_path):
    train = save(tmp_path / "train", train=pairs_of(30, labels=(1, 2, 3)))
    low = save_one(tmp_path / "low", pairs_of(4, "l", labels=(1, 2)))
    found = read_splits(TrainConfig(train=str(train), test=str(low)))["test"]
    assert found.gain.tolist() == [0, 1, 0, 1]
    assert not found.relevant.any()


def test_datasets_is_not_imported_for_files(tmp_path):
    (tmp_path / "a.csv").write_text("query,title,label\na,x,1\na,y,0\n")
    program = (
        "import sys; from lorry.config import PairOptions; from lorry.data.pairs import read_channel; "
        "read_channel(sys.argv[1], PairOptions()); print('datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_data_sets_are_mapped_not_loaded(tmp_path):
    rows = pairs_of(64) | {"blob": [np.random.default_rng(row).bytes(1 << 20) for row in range(64)]}
    features = Features({**TEXTS, "label": Value("string"), "blob": Value("binary")})
    Dataset.from_dict(rows, features).save_to_disk(tmp_path)
    program = (
        "import sys, pyarrow; from lorry.config import PairOptions; from lorry.data.pairs import read_channel; "
        "read_channel(sys.argv[1], PairOptions()); print(pyarrow.default_memory_pool().max_memory())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000
