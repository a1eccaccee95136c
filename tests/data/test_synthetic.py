"""The made-up shop: in the form of ESCI, the same for the same seed, judged by its own rules, hard and fair."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
from lorry.data.synthetic import generate
from lorry.evaluation.metrics import evaluate

EXAMPLES = "train/shopping_queries_dataset_examples.parquet"
PRODUCTS = "train/shopping_queries_dataset_products.parquet"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    subprocess.run([sys.executable, "-m", "lorry.data.synthetic", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def splits(shop):
    return read_splits(TrainConfig(train=str(shop / "train")))


def test_it_has_the_columns_of_esci(shop):
    examples, products = pq.read_schema(shop / EXAMPLES), pq.read_schema(shop / PRODUCTS)
    names = "example_id query query_id product_id product_locale esci_label small_version large_version split"
    assert examples.names == names.split()
    names = "product_id product_title product_description product_bullet_point product_brand product_color"
    assert products.names == [*names.split(), "product_locale"]
    for name in ("example_id", "query_id", "small_version", "large_version"):
        assert examples.field(name).type == pa.int64()


def test_one_seed_one_shop(shop, tmp_path):
    generate(tmp_path / "same")
    generate(tmp_path / "other", seed=1)
    for name in (EXAMPLES, PRODUCTS):
        assert pq.read_table(tmp_path / "same" / name).equals(pq.read_table(shop / name))
        assert not pq.read_table(tmp_path / "other" / name).equals(pq.read_table(shop / name))


def test_it_reads_without_a_bad_row_and_has_every_label(splits):
    assert splits.keys() == {"train", "validation", "test"}
    assert 3_000 < sum(map(len, splits.values())) < 5_000
    for pairs in splits.values():
        assert pairs.health.bad == {}
        assert pairs.health.form == "ESCI, two tables"
        assert (np.bincount(pairs.label, minlength=4) / len(pairs) > 0.05).all()
        for query in range(len(pairs.queries)):
            assert pairs.relevant[pairs.query == query].any()
    assert not set(splits["train"].queries.to_pylist()) & set(splits["test"].queries.to_pylist())


def test_titles_say_nothing_of_labels(shop):
    """A product has several labels, by the query; and no title is told from others by the words of its label."""
    examples, products = pq.read_table(shop / EXAMPLES), pq.read_table(shop / PRODUCTS)
    labels = {}
    for product, label in zip(examples["product_id"].to_pylist(), examples["esci_label"].to_pylist(), strict=True):
        labels.setdefault(product, set()).add(label)
    assert sum(len(found) > 1 for found in labels.values()) > 0.5 * len(labels)
    words = " ".join(products["product_title"].to_pylist()).lower().split()
    assert not {"exact", "substitute", "complement", "irrelevant"} & set(words)


def test_words_alone_do_not_find_it(splits):
    """The share of a query's words that a title has ranks better than chance, and far from well."""
    pairs = splits["test"]
    queries = [set(query.split()) for query in pairs.queries.to_pylist()]
    texts = [set(text.lower().split()) for text in pairs.texts.to_pylist()]
    scores = [len(queries[q] & texts[t]) / len(queries[q]) for q, t in zip(pairs.query, pairs.text, strict=True)]
    found = evaluate(pairs.query, pairs.gain, pairs.relevant, np.array(scores))
    assert 0.5 < found["roc_auc"] < 0.7
