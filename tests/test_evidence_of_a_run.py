"""What a run and `lorry evaluate` say beyond the judged pairs: search, slices, threshold, economics, and a probe."""

import json
import signal
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command import lorry
from lorry.evaluation import evidence
from test_pipeline import Run

SEARCHERS = ("bm25", "base", "tuned", "hybrid_base", "hybrid_tuned")
SEARCH_METRICS = ("recall@10", "recall@100", "mrr@10", "ndcg@10")


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_model, shop_pairs):
    """Return the options of a short run on a tiny model that gets better, with a probe."""
    folder = tmp_path_factory.mktemp("pairs")
    queries = {"train": 40, "validation": 30, "test": 20}
    pairs = {name: shop_pairs(folder / name, number, seed) for seed, (name, number) in enumerate(queries.items())}
    words = ["red lamp", "oak sofa", "blue desk", "brass kettle", "green rug"]
    sentences = [(one, two, 5.0 if one == two else 1.0) for one in words for two in words[:3]]
    (folder / "probe").mkdir()
    one, two, score = zip(*sentences, strict=True)
    pq.write_table(pa.table({"sentence1": one, "sentence2": two, "score": score}), folder / "probe" / "a.parquet")
    run = {"batch_size": 24, "lr": 0.03, "epochs": 1, "precision": "fp32", "lora_rank": 4, "interpolation": 1}
    return pairs | {"probe": folder / "probe", "pretrained_model": tiny_model("bert")} | run


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("evidence"), **options)


@pytest.fixture(scope="module")
def test_block(run):
    return run.metrics["splits"]["test"]


def test_search_is_measured_for_both_models_alone_and_with_bm25(run, test_block):
    search = test_block["search"]
    assert search["queries"] == search["queries_all"] == test_block["queries"] == 20
    assert search["products"] == search["products_all"] > 300
    for searcher in SEARCHERS:
        assert set(search[searcher]) == set(SEARCH_METRICS)
        assert all(0 <= value <= 1 for value in search[searcher].values())
        assert search[searcher]["recall@10"] <= search[searcher]["recall@100"]
    for metric, change in search["change"].items():
        assert change["change"] == pytest.approx(search["tuned"][metric] - search["base"][metric])
        assert change["low"] <= change["change"] <= change["high"]
    assert search["tuned"]["ndcg@10"] > search["base"]["ndcg@10"]  # a random model that was trained
    shown = next(number for number, line in enumerate(run.ended.lines) if line.startswith("test, search among"))
    assert run.ended.lines[shown + 1].split() == list(SEARCH_METRICS)
    assert run.ended.lines[shown + 2].split() == ["BM25", *(f"{search['bm25'][name]:.4f}" for name in SEARCH_METRICS)]


def test_every_metric_has_interval_and_p_value_and_its_wins_and_losses(test_block):
    assert set(test_block["change"]) == set(test_block["tuned"])
    for name, change in test_block["change"].items():
        assert change["change"] == pytest.approx(test_block["tuned"][name] - test_block["base"][name])
        assert change["low"] <= change["change"] <= change["high"]
        assert 0 <= change["p"] <= 1
    counted = {"ndcg@10": 20, "ndcg@10_rankable": test_block["queries_rankable"], "mrr@10": 20, "pair_accuracy": 20}
    assert {name: sum(outcome.values()) for name, outcome in test_block["outcomes"].items()} == counted


def test_slices_hold_all_queries(test_block):
    for kind in ("query_length", "judged_products", "lexical_overlap"):
        assert sum(row["queries"] for row in test_block["slices"][kind]) == test_block["queries"]
    assert [row["name"] for row in test_block["slices"]["label"]] == ["E", "S", "C", "I"]
    assert sum(row["pairs"] for row in test_block["slices"]["label"]) == test_block["pairs"]


def test_the_threshold_is_fitted_on_validation_and_told_in_the_model_card(run, test_block):
    threshold = test_block["threshold"]
    assert threshold["fitted_on"] == "validation"
    fitted = run.metrics["splits"]["validation"]["threshold"]["tuned"]
    assert fitted["threshold"] == threshold["tuned"]["threshold"]
    assert sum(row["pairs"] for row in threshold["tuned"]["reliability"]) == test_block["pairs"]
    card = (run.model / "README.md").read_text()
    assert f"- Threshold: a product counts as relevant from a cosine of {threshold['tuned']['threshold']:.4f}" in card


def test_smaller_vectors_and_standardised_ones_are_compared(run, test_block):
    whole, *others = test_block["economics"]
    assert (whole["form"], whole["dims"], whole["bytes_per_million"]) == ("float32", 32, 128_000_000)
    assert whole["ndcg@10"] == pytest.approx(test_block["tuned"]["ndcg@10"])
    assert whole["recall@10"] == pytest.approx(test_block["search"]["tuned"]["recall@10"])
    assert all(row["bytes_per_million"] < whole["bytes_per_million"] for row in others)
    assert "economics" not in run.metrics["splits"]["validation"]
    for kind in ("center", "whiten"):
        for scorer in ("base", "tuned"):
            assert set(test_block["standardize"][kind][scorer]) == set(test_block["tuned"])


def test_the_probe_says_what_is_forgotten(run):
    probe = run.metrics["probe"]
    assert probe["pairs"] == 15
    assert probe["change"]["spearman"]["change"] == pytest.approx(
        probe["tuned"]["spearman"] - probe["base"]["spearman"]
    )
    assert f"probe:base:spearman={probe['base']['spearman']:.4f};" in run.ended.output


def test_a_model_that_forgets_too_much_is_refused(options, tmp_path):
    ended = lorry(
        "train", **options, model_dir=tmp_path / "m", output_data_dir=tmp_path / "o", require="probe:spearman>=+0.9"
    )
    assert ended.code == 1
    assert "does not meet --require: spearman on probe is " in ended.lines[-1]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("require", "given", "said"),
    [
        ("probe:spearman>=-0.01", {"probe": ""}, "but there are no probe pairs"),
        ("probe:ndcg@10>=-0.01", {}, "do not define ndcg@10"),
        ("probe:spearman>=bm25", {}, "but bm25 does not score a probe"),
    ],
)
def test_what_a_probe_cannot_say_is_refused_before_training(options, tmp_path, require, given, said):
    ended = lorry("train", **options | given, model_dir=tmp_path / "m", output_data_dir=tmp_path / "o", require=require)
    assert (ended.code, list(tmp_path.iterdir())) == (1, [])
    assert said in ended.lines[-1]


def test_a_stop_during_the_search_gives_it_up(options, tmp_path):
    def search(*arguments, **given):
        signal.raise_signal(signal.SIGTERM)
        return nearest(*arguments, **given)

    nearest = evidence.nearest
    with mock.patch("lorry.evaluation.evidence.nearest", search):
        ended = lorry("train", **options, model_dir=tmp_path / "m", output_data_dir=tmp_path / "o")
    assert ended.code == 0
    assert "give --checkpoint_dir to resume next time" in ended.output
    assert not (tmp_path / "o" / "metrics.json").exists()
    assert json.loads((tmp_path / "m" / "lorry.json").read_text())["finished"] is False


def test_evaluate_says_the_same_of_the_same_models(options, run, test_block, tmp_path):
    base, tuned = str(options["pretrained_model"]), str(run.model)
    ended = lorry(
        "evaluate", "--model", base, data=options["test"], output=tmp_path / "m.json", precision="fp32", model=tuned
    )
    assert ended.code == 0, ended.output
    block = json.loads((tmp_path / "m.json").read_text())["splits"]["all"]
    assert block["outcomes"][tuned] == test_block["outcomes"]
    for name, change in block["change"][tuned].items():
        assert change == pytest.approx(test_block["change"][name], abs=1e-6)
    assert set(block["search"]["models"]) == set(block["search"]["hybrid"]) == {base, tuned}
    assert block["search"]["products"] < test_block["search"]["products"]  # of the test pairs alone
    assert set(block["threshold"]["models"]) == set(block["economics"]) == {base, tuned}
    assert set(block["standardize"]["center"]) == {base, tuned}
    assert f"BM25 + {tuned}" in ended.output


def test_search_can_be_left_out(options, run, tmp_path):
    ended = lorry(
        "evaluate", model=run.model, data=options["test"], output=tmp_path / "m.json", precision="fp32",
        search_products=0,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert not {"search", "economics", "standardize"} & set(
        json.loads((tmp_path / "m.json").read_text())["splits"]["all"]
    )


ESCI_LABELS = ["E", "S", "C", "I"]


def test_esci_as_published_is_scored_with_both_gain_mappings(tiny_model, tmp_path):
    """Two tables under their own names; the test split, US, the small version, in the form that the cup scored."""
    rows = [
        (number, f"query {query}", query, f"B{number:03}", locale, label, small, 1, split)
        for number, (query, locale, label, small, split) in enumerate(
            (query, locale, label, small, split)
            for query, locale, small, split in [
                (1, "us", 1, "test"), (2, "us", 1, "test"), (3, "us", 0, "test"),
                (4, "es", 1, "test"), (5, "us", 1, "train"),
            ]
            for label in ESCI_LABELS
        )
    ]  # fmt: skip
    names = "example_id query query_id product_id product_locale esci_label small_version large_version split"
    examples = dict(zip(names.split(), map(list, zip(*rows, strict=True)), strict=True))
    products = {
        "product_id": examples["product_id"],
        "product_title": [f"lamp {number}" for number in range(len(rows))],
        **dict.fromkeys(
            ("product_description", "product_bullet_point", "product_brand", "product_color"), [None] * len(rows)
        ),
        "product_locale": examples["product_locale"],
    }
    folder = tmp_path / "esci"
    folder.mkdir()
    pq.write_table(pa.table(examples), folder / "shopping_queries_dataset_examples.parquet")
    pq.write_table(pa.table(products), folder / "shopping_queries_dataset_products.parquet")
    ended = lorry(
        "evaluate", model=tiny_model("bert"), data=folder, output=tmp_path / "m.json", locale="us", small_version="true"
    )
    assert ended.code == 0, ended.output
    splits = json.loads((tmp_path / "m.json").read_text())["splits"]
    assert {name: (block["pairs"], block["queries"]) for name, block in splits.items()} == {
        "test": (8, 2), "train": (4, 1),
    }  # fmt: skip
    # BM25 gives every product of a query the same score: nDCG is the mean over all orders of its four labels.
    discount = 1 / np.log2(np.arange(4) + 2)
    official = [1, 0.01, 0.1, 0]
    for metric, gains in (
        ("ndcg@10", [1, 0.1, 0.01, 0]), ("ndcg@10_official_scorer", official), ("ndcg_official_scorer", official),
    ):  # fmt: skip
        ideal = (np.sort(gains)[::-1] * discount).sum()
        assert splits["test"]["bm25"][metric] == pytest.approx(np.mean(gains) * discount.sum() / ideal)
        assert 0 < splits["test"]["models"][str(tiny_model("bert"))][metric] <= 1
