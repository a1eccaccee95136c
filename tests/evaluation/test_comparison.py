"""`lorry evaluate --require`: models side by side, and whether the last one is as good as it must be."""

import json

import pytest
from datasets import Dataset, DatasetDict

from command import lorry


@pytest.fixture(scope="module")
def data(tmp_path_factory, shop_pairs):
    return shop_pairs(tmp_path_factory.mktemp("data"), queries=10)


@pytest.fixture
def evaluate(tmp_path, data):
    """Return `evaluate(models, *requirements, data=…)`: how it ended, and the splits of metrics.json, None without."""

    def run(models, *requirements, data=data):
        output = tmp_path / "metrics.json"
        words = [word for model in models for word in ("--model", model)]
        words += [word for text in requirements for word in ("--require", text)]
        ended = lorry("evaluate", *words, data=data, output=output, precision="fp32")
        return ended, json.loads(output.read_text())["splits"] if output.exists() else None

    return run


def test_a_model_that_is_worse_than_required_ends_with_exit_code_1_and_its_metrics(evaluate, tiny_model, tmp_path):
    bad = str(tiny_model("bert"))  # random
    ended, splits = evaluate(["bundled", bad], "ndcg@10>=+0.005", "roc_auc>=0.01", "mrr@10>=bm25")
    block = splits["all"]
    base, tuned, bm25 = block["models"]["bundled"], block["models"][bad], block["bm25"]
    assert ended.code == 1
    required = base["ndcg@10"] + 0.005
    ndcg, mrr = required - tuned["ndcg@10"], bm25["mrr@10"] - tuned["mrr@10"]
    assert min(ndcg, mrr) > 0.01
    assert ended.lines[-1] == (
        f"error: {bad} does not meet --require: "
        f"ndcg@10 on all pairs is {tuned['ndcg@10']:.4f}, {ndcg:.4f} below the required {required:.4f} "
        f"(base {base['ndcg@10']:.4f} + 0.005); "
        f"mrr@10 on all pairs is {tuned['mrr@10']:.4f}, {mrr:.4f} below the required {bm25['mrr@10']:.4f} "
        f"(bm25 {bm25['mrr@10']:.4f}). The metrics are in {tmp_path / 'metrics.json'}."
    )
    assert sum("does not meet" in line for line in ended.lines) == 1
    assert "BM25" in ended.output


def test_a_model_that_is_as_good_as_required_is_said_to_be(evaluate, tiny_model):
    ended, splits = evaluate([tiny_model("bert"), "bundled"], "ndcg@10>=+0.005", "roc_auc>=0.6")
    assert ended.code == 0, ended.output
    assert ended.lines[-1] == "bundled meets --require: ndcg@10>=+0.005,roc_auc>=0.6"
    assert {"pairs", "queries", "queries_rankable", "random", "bm25", "models"} <= set(splits["all"])


def test_a_model_between_the_first_and_the_last_is_not_asked(evaluate, tiny_model):
    ended, _ = evaluate([tiny_model("bert"), tiny_model("distilbert"), "bundled"], "ndcg@10>=+0.005")
    assert ended.code == 0, ended.output


def test_without_a_requirement_nothing_is_said(evaluate, tiny_model, tmp_path):
    ended, _ = evaluate([tiny_model("bert")])
    assert (ended.code, ended.lines[-1]) == (0, f"metrics: {tmp_path / 'metrics.json'}")


def test_one_model_can_be_held_to_a_number_or_to_bm25(evaluate, tiny_model):
    ended, _ = evaluate(["bundled"], "ndcg@10>=random", "ndcg@10>=0.1")
    assert ended.code == 0, ended.output
    ended, _ = evaluate([tiny_model("bert")], "ndcg@10>=1")
    assert ended.code == 1


@pytest.mark.parametrize("requirement", ["ndcg@10>=+0", "ndcg@10>=base", "roc_auc>=-0.01"])
def test_one_model_cannot_be_compared_with_the_base_model(evaluate, tmp_path, requirement):
    ended, splits = evaluate(["bundled"], "roc_auc>=0.1", requirement, data=tmp_path / "nowhere")
    assert (ended.code, splits, len(ended.lines)) == (1, None, 1)
    assert f"{requirement!r}, which compares with the base model, and only one model is given" in ended.output
    assert "Give the base model first: --model BASE --model bundled." in ended.output


def test_a_split_that_is_not_there_is_refused_before_anything_is_scored(evaluate, tiny_model):
    ended, splits = evaluate([tiny_model("bert")], "test:ndcg@10>=0.1")
    assert (ended.code, splits) == (1, None)
    assert "'test:ndcg@10>=0.1', but there are no test pairs. Give test pairs" in ended.lines[-1]


def test_of_several_splits_the_test_pairs_count_unless_another_is_named(evaluate, tiny_model, tmp_path):
    """The product of the same words is right in the test pairs, and wrong in the others."""
    right = {"query": ["red lamp"] * 2, "product_title": ["red lamp", "oak sofa"], "label": [1, 0]}
    pairs = Dataset.from_dict(right)
    wrong = Dataset.from_dict(right | {"label": [0, 1]})
    DatasetDict({"train": wrong, "validation": wrong, "test": pairs}).save_to_disk(tmp_path / "pairs")
    model = tiny_model("bert")
    assert evaluate([model], "roc_auc>=1", data=tmp_path / "pairs")[0].code == 0
    assert evaluate([model], "test:roc_auc>=1", data=tmp_path / "pairs")[0].code == 0
    ended, _ = evaluate([model], "validation:roc_auc>=1", data=tmp_path / "pairs")
    assert "roc_auc on validation is 0.0000, 1.0000 below the required 1.0000." in ended.lines[-1]


def test_what_the_labels_do_not_define_is_refused_before_anything_is_scored(evaluate, tiny_model, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.csv").write_text("query,text,label\nred lamp,lamp red,1\nblue lamp,sofa,0\n")
    for metric in ("mrr@10", "ndcg@10_official_scorer"):
        ended, splits = evaluate([tiny_model("bert")], f"{metric}>=0", data=tmp_path / "pairs")
        assert (ended.code, splits) == (1, None)
        assert f"but the labels of the pairs do not define {metric}" in ended.lines[-1]


def test_the_table_lines_up(evaluate, tiny_model):
    ended, splits = evaluate([tiny_model("bert")])
    start = next(number for number, line in enumerate(ended.lines) if line.startswith("all: ")) + 1
    head, *rows = ended.lines[start : start + 4]
    names = list(splits["all"]["random"])[: len(head.split())]
    assert head.split() == names
    ends = [head.index(f" {name} " if name != names[-1] else f" {name}") + 1 + len(name) for name in names]
    for row in rows:
        assert len(row) == len(head) == ends[-1]
        assert all(row[end - 1].isdigit() and row[end : end + 1] in ("", " ") for end in ends)
