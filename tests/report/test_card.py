"""The model card, written and then read back by huggingface_hub."""

import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from report_facts import block, make_facts, overlapping

from lorry.config import TrainConfig
from lorry.names import METRICS
from lorry.options import as_dict
from lorry.report.card import write_model_card, write_unfinished_card

TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "lora", "product-search"]


def card(folder, facts):
    write_model_card(folder, facts)
    return ModelCard.load(folder / "README.md")


def unfinished_card(folder, base_model, steps=12_345):
    write_unfinished_card(folder, base_model, steps)
    return ModelCard.load(folder / "README.md")


def configured(**options):
    return make_facts(config=as_dict(TrainConfig(**options)))


def test_the_metadata_is_what_the_hub_knows(tmp_path):
    card(tmp_path, make_facts())
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata.pop("model-index")
    assert metadata == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "TaylorAI/gte-tiny",
        "base_model_relation": "finetune",
        "tags": TAGS,
        "metrics": [
            "ndcg@10",
            "ndcg@10_rankable",
            "mrr@10",
            "cosine_roc_auc",
            "cosine_ap",
            "spearman_cosine",
            "pair_accuracy",
        ],
    }  # no licence and no language: only the owner of the model knows them
    validate_repo_id(metadata["base_model"])


def test_the_results_are_the_tuned_models_for_every_split_and_metric(tmp_path):
    tuned = {name: round(0.1 + 0.0123 * place, 4) for place, name in enumerate(METRICS)}
    splits = {"validation": block(), "test": block(**tuned)}
    results = card(tmp_path, make_facts(metrics={**make_facts().metrics, "splits": splits})).data.eval_results
    assert len(results) == 2 * len(METRICS)
    titles = {
        "nDCG@10",
        "nDCG@10, rankable queries",
        "MRR@10",
        "ROC-AUC",
        "Average precision",
        "Spearman",
        "Pair accuracy",
    }
    for split in splits:
        ours = [result for result in results if result.dataset_split == split]
        assert {result.metric_name for result in ours} == titles
        assert {result.dataset_name for result in ours} == {f"Judged query-product pairs ({split})"}
        assert {result.dataset_type for result in ours} == {"unknown"}
    on_test = {result.metric_type: result.metric_value for result in results if result.dataset_split == "test"}
    assert on_test == {
        "ndcg@10": tuned["ndcg@10"],
        "ndcg@10_rankable": tuned["ndcg@10_rankable"],
        "mrr@10": tuned["mrr@10"],
        "pair_accuracy": tuned["pair_accuracy"],
        "cosine_roc_auc": tuned["roc_auc"],
        "cosine_ap": tuned["average_precision"],
        "spearman_cosine": tuned["spearman"],
    }


def test_the_official_scorer_is_a_result_of_its_own(tmp_path):
    splits = {"test": block()}
    for scorer in ("random", "bm25", "base", "tuned"):
        splits["test"][scorer]["ndcg@10_official_scorer"] = 0.25
    found = card(tmp_path, make_facts(metrics={**make_facts().metrics, "splits": splits}))
    values = {result.metric_name: result.metric_value for result in found.data.eval_results}
    assert values["nDCG@10, official ESCI scorer"] == 0.25
    assert values["nDCG@10"] == 0.7


def test_the_results_have_every_field_that_the_hub_requires(tmp_path):
    card(tmp_path, make_facts())
    (model,) = metadata_load(tmp_path / "README.md")["model-index"]
    assert model["name"] == "Text embeddings for product search"
    for result in model["results"]:
        assert set(result) == {"task", "dataset", "metrics"}
        assert set(result["task"]) == {"type", "name"}
        assert set(result["dataset"]) == {"type", "name", "split"}
        for metric in result["metrics"]:
            assert set(metric) == {"type", "name", "value"}
            assert isinstance(metric["value"], float)


def test_task_types_are_those_of_sentence_transformers_own_cards(tmp_path):
    from sentence_transformers.sentence_transformer import evaluation

    evaluators = ("RerankingEvaluator", "BinaryClassificationEvaluator", "EmbeddingSimilarityEvaluator")
    classes = [getattr(evaluation, name) for name in evaluators]
    names = {cls.description.fget(cls.__new__(cls)) for cls in classes}
    results = card(tmp_path, make_facts()).data.eval_results
    assert {result.task_name for result in results} == names
    assert {result.task_type for result in results} == {name.lower().replace(" ", "-") for name in names}


def test_undefined_metrics_are_no_results(tmp_path):
    found = card(tmp_path, make_facts(undefined={"test": ["roc_auc"], "validation": list(METRICS)}))
    assert {result.dataset_split for result in found.data.eval_results} == {"test"}
    assert "cosine_roc_auc" not in {result.metric_type for result in found.data.eval_results}
    assert "| ROC-AUC | not defined |" in found.text
    nothing = card(tmp_path, make_facts(undefined=dict.fromkeys(("test", "validation"), METRICS)))
    assert nothing.data.eval_results is None
    assert not {"model-index", "model_name", "metrics"} & metadata_load(tmp_path / "README.md").keys()


def test_the_card_says_how_to_use_the_model_and_what_it_scores(tmp_path):
    found = card(tmp_path, make_facts())
    for words in (
        "[TaylorAI/gte-tiny](https://huggingface.co/TaylorAI/gte-tiny), fine-tuned on judged",
        "**The tuned model ranks better than the base model: nDCG@10 0.7000 → 0.7500 over the 80 queries",
        "SentenceTransformer(",
        "AutoModel.from_pretrained",
        "text-embeddings-inference",
        "| lora_rank | 16 |",
        "| small_version | false |",
        "| nDCG@10 | 0.5000 | 0.5000 | 0.7000 | 0.7500 | +0.0500 |",
    ):
        assert words in found.text, words


def test_the_card_says_what_the_test_split_shares_with_training(tmp_path):
    assert "\n\nNone of the 90 queries is a training query.\n\n| metric |" in card(tmp_path, make_facts()).text
    text, shared = card(tmp_path, overlapping()).text, "12 of the 90 queries and 1,034 of the 1,200 pairs"
    assert f"- Of the test split, {shared} are training queries and pairs as well: the figures may be too good." in text
    assert f"\n\n{shared} are training queries and pairs as well.\n\n| metric |" in text


def test_the_card_is_written_whole_and_as_huggingface_hub_writes_it(tmp_path):
    found = card(tmp_path, make_facts())
    assert str(found) == (tmp_path / "README.md").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_nothing_of_the_users_data_or_machine_is_in_the_card(tmp_path):
    paths = ("train", "validation", "test", "model_dir", "output_data_dir", "checkpoint_dir", "pretrained_model")
    found = card(tmp_path, configured(**{name: f"/home/me/secret/{name}" for name in paths}))
    for private in ("secret", "/home", "a.csv", "notes.txt", "hand saw", "nail polish"):
        assert private not in found.content, private
    assert "/home" not in unfinished_card(tmp_path, "/home/me/secret/base").content


@pytest.mark.parametrize(
    ("model", "base_model"),
    [
        ("bundled", "sentence-transformers/all-MiniLM-L6-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("null", "null"),  # a name, not YAML's null
        ("/home/me/base", None),
        ("../models/base", None),
        (".", None),
        ("x: y\n---\n# <b>Free</b> money", None),
    ],
)
def test_only_a_base_model_on_the_hub_is_named(tmp_path, model, base_model):
    for found in (card(tmp_path, configured(pretrained_model=model)), unfinished_card(tmp_path, model)):
        assert found.data.base_model == base_model
        assert found.data.get("base_model_relation") == ("finetune" if base_model else None)
        assert found.data.tags == TAGS
        assert not re.search(r"/home|\.\./|money", found.content)


def test_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert card(tmp_path, configured(pretrained_model="models/mine")).data.base_model is None


def test_options_cannot_break_out_of_their_table_cell(tmp_path):
    found = card(tmp_path, configured(query_column="*a* | [b](http://c)\n# `d` <img> &amp; $e_f$"))
    assert r"| query_column | \*a\* \| \[b\](http://c) # \`d\` \<img\> \&amp; \$e\_f\$ |" in found.text.splitlines()


def test_the_card_of_an_unfinished_model_has_no_results(tmp_path):
    found = unfinished_card(tmp_path, "org/_base_")
    assert found.data.to_dict() == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "org/_base_",
        "base_model_relation": "finetune",
        "tags": TAGS,
    }
    assert r"[org/\_base\_](https://huggingface.co/org/_base_), fine-tuned" in found.text
    assert "stopped after 12,345 steps" in found.text
    assert "was not evaluated" in found.text


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [2.0, 3.0]), ("cls", [1.0, 2.0]), ("lasttoken", [3.0, 4.0])]
)
def test_the_card_pools_as_the_model_does(tmp_path, pooling, expected):
    """Runs the card's own pooling line on a sequence of two tokens and one of padding."""
    import torch

    text = card(tmp_path, make_facts(pooling=pooling)).text
    lines = re.search(r'mask = batch\["attention_mask"\]\n(.*?)vectors = ', text, re.DOTALL).group(1)
    names = {"torch": torch, "mask": torch.tensor([[1, 1, 0]]), "hidden": torch.tensor([[[1.0, 2], [3, 4], [9, 9]]])}
    exec(lines, names)
    assert names["pooled"].tolist() == [expected]
