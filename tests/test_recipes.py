"""Whole runs with the options that change what is trained, or what of it the model gets: what they leave."""

import csv
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from command import lorry, stopped_after
from lorry import finishing
from lorry.outputs import OutputError
from lorry.signals import StopRequestedError
from test_pipeline import Run

OTHER_WAY = str.maketrans("ESCI", "ICSE")


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_model, shop_pairs):
    """Return the options of a short run on a tiny model."""
    folder = tmp_path_factory.mktemp("pairs")
    queries = {"train": 40, "validation": 30, "test": 20}
    pairs = {name: shop_pairs(folder / name, number, seed) for seed, (name, number) in enumerate(queries.items())}
    run = {"batch_size": 24, "lr": 0.03, "epochs": 2, "precision": "fp32", "lora_rank": 4, "loss": "infonce+5*ranknet"}
    return pairs | {"pretrained_model": tiny_model("bert")} | run


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """A run that gives the model the whole update; do not write to it."""
    return Run(tmp_path_factory.mktemp("whole"), **options, interpolation=1)


@pytest.fixture(scope="module")
def base(options):
    """The base model's weights."""
    return load_file(options["pretrained_model"] / "model.safetensors")


def pairs_of(folder, of=lambda row: []):
    """Return the header and the rows of a channel, each with more cells."""
    with (folder / "pairs.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, [[*row, *of(row)] for row in rows]


def write(folder, header, rows):
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def headline(run):
    """Return what the model card says first."""
    return re.search(r"^\*\*(.+)\*\*$", (run.model / "README.md").read_text(), re.MULTILINE)[1]


def encoded(model, texts, **how):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model), device="cpu", **how).encode(texts, normalize_embeddings=True)


def auc(query_model, text_model, folder, **how):
    """Return the roc_auc that sentence-transformers gives the pairs of a folder."""
    _, rows = pairs_of(folder)
    queries, texts, labels = zip(*rows, strict=True)
    scores = (encoded(query_model, queries, **how) * encoded(text_model, texts, **how)).sum(1)
    return roc_auc_score([label in "ES" for label in labels], scores)


def test_queries_alone(options, tmp_path):
    run = Run(tmp_path, **options, train_side="query")
    documents = run.model / "document_model"
    texts = [text for _, text, _ in pairs_of(options["test"])[1]]
    assert np.array_equal(encoded(documents, texts), encoded(options["pretrained_model"], texts))
    assert not np.allclose(encoded(run.model, texts), encoded(documents, texts), atol=0.01)
    assert run.facts["proof"]["documents_changed"] == 0.0
    card = (run.model / "README.md").read_text()
    assert "With transformers, queries:" in card
    assert "products need a second server, for `document_model`" in card
    tuned = run.metrics["splits"]["test"]["tuned"]
    assert auc(run.model, documents, options["test"]) == pytest.approx(tuned["roc_auc"], abs=1e-3)
    given = {"model": run.model, "data": options["test"], "output": tmp_path / "metrics.json", "precision": "fp32"}
    assert lorry("evaluate", **given).code == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["splits"]["all"]["models"][str(run.model)]
    assert found == pytest.approx(tuned, abs=1e-6)


def test_both_sides_are_one_model(whole):
    assert not (whole.model / "document_model").exists()
    assert whole.facts["proof"]["documents_changed"] is None


def test_all_weights(options, base, tmp_path):
    run = Run(tmp_path, **options | {"lora_rank": 0, "lr": 0.003})
    assert not (run.model / "adapter").exists()
    tuned = load_file(run.model / "model.safetensors")
    assert tuned.keys() == base.keys()
    kept = {name for name in base if torch.equal(tuned[name], base[name])}
    assert kept == {name for name in base if name.startswith("pooler.")}
    test = run.metrics["splits"]["test"]
    assert auc(run.model, run.model, options["test"]) == pytest.approx(test["tuned"]["roc_auc"], abs=1e-3)
    assert test["tuned"]["roc_auc"] > test["base"]["roc_auc"]


def test_nothing_of_the_update_is_the_base_model(options, base, tmp_path):
    run = Run(tmp_path, **options, interpolation=0)
    tuned = load_file(run.model / "model.safetensors")
    assert all(torch.equal(tuned[name], base[name]) for name in base)
    assert run.facts["interpolation"] == 0.0
    test = run.metrics["splits"]["test"]
    assert test["tuned"] == pytest.approx(test["base"], abs=1e-6)
    assert headline(run) == "No share of the update was asked for: the model has the weights of the base model."
    assert run.ended.lines[-1].startswith("VERDICT: no clear difference: ")


def test_where_tuning_does_not_help_the_model_is_the_base_and_the_report_says_so(options, base, tmp_path):
    header, rows = pairs_of(options["train"])
    wrong = write(tmp_path / "train", header, [[*row, label.translate(OTHER_WAY)] for *row, label in rows])
    run = Run(tmp_path, **options | {"train": wrong})
    tuned = load_file(run.model / "model.safetensors")
    assert all(torch.equal(tuned[name], base[name]) for name in base)
    assert run.facts["interpolation"] == 0.0
    assert "warning: tuning did not help: the model has the weights of the base model" in run.ended.lines
    said = "Tuning did not help: the model has the weights of the base model."
    assert headline(run) == said
    assert f"<p>{said}</p>" in (run.output / "report.html").read_text()
    required = lorry(
        "train", **options | {"train": wrong}, require="roc_auc>=+0.001",
        model_dir=tmp_path / "other", output_data_dir=tmp_path / "results",
    )  # fmt: skip
    assert required.code == 1
    assert required.lines[-1].startswith("error: the tuned model does not meet --require: roc_auc on test is ")


def test_half_of_the_update_is_half_of_every_change_and_base_and_adapter_are_the_model(options, base, whole, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    run = Run(tmp_path, **options, interpolation=0.5)
    half, one = (load_file(folder / "model.safetensors") for folder in (run.model, whole.model))
    changed = [name for name in base if not torch.equal(one[name], base[name])]
    assert len(changed) == 12
    for name in base:
        torch.testing.assert_close(half[name] - base[name], 0.5 * (one[name] - base[name]), atol=1e-6, rtol=1e-4)
    adapted = PeftModel.from_pretrained(
        AutoModel.from_pretrained(options["pretrained_model"], add_pooling_layer=False), run.model / "adapter"
    )
    merged = adapted.merge_and_unload().state_dict()
    for name in changed:
        torch.testing.assert_close(merged[name], half[name], atol=1e-6, rtol=1e-5)
    assert (run.facts["interpolation"], whole.facts["interpolation"]) == (0.5, 1.0)
    page = (run.output / "report.html").read_text()
    assert "The merged model has 50% of the trained update: as interpolation says." in page


def test_the_share_is_chosen_on_validation(options, tmp_path):
    run = Run(tmp_path, **options)
    share = run.facts["interpolation"]
    assert share in (0.25, 0.5, 0.75, 1.0)
    assert f"the model gets {share:.0%} of the trained update: chosen on validation" in run.ended.lines
    validation = run.metrics["splits"]["validation"]
    for metric in ("ndcg@10_rankable", "pair_accuracy", "roc_auc"):
        assert validation["tuned"][metric] >= validation["base"][metric]


def test_where_validation_ranks_no_model_above_another_nothing_is_chosen_on_it(options, base, tmp_path):
    header, rows = pairs_of(options["validation"])
    validation = write(tmp_path / "validation", header, [row for row in rows if row[2] == "E"])
    run = Run(tmp_path, **options | {"validation": validation}, patience=1)
    assert "warning: the labels of the validation pairs rank no model above another" in run.log
    assert "tuning did not help" not in run.log
    facts = run.facts
    assert facts["interpolation"] == 1.0
    assert facts["weights_of_step"] == facts["steps"] == run.metrics["training"]["weights_of_step"]
    tuned = load_file(run.model / "model.safetensors")
    assert not all(torch.equal(tuned[name], base[name]) for name in base)


def test_a_run_stopped_while_the_share_is_chosen_leaves_the_whole_update(options, whole, tmp_path, monkeypatch):
    def stop(base, measure):
        measure(0.25)
        raise StopRequestedError

    monkeypatch.setattr(finishing, "choose_share", stop)
    model = tmp_path / "model"
    assert lorry("train", **options, model_dir=model, output_data_dir=tmp_path / "output").code == 0
    found, wanted = (load_file(folder / "model.safetensors") for folder in (model, whole.model))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((model / "lorry.json").read_text())["interpolation"] == 1.0


@pytest.mark.parametrize("share", [0.5, 0])
def test_a_stopped_run_leaves_the_share_that_is_given(options, base, tmp_path, share):
    model = tmp_path / "model"
    with stopped_after(4):
        ended = lorry("train", **options, interpolation=share, model_dir=model, output_data_dir=tmp_path / "output")
    assert (ended.code, json.loads((model / "lorry.json").read_text())["interpolation"]) == (0, share)
    found = load_file(model / "model.safetensors")
    assert all(torch.equal(found[name], base[name]) for name in base) == (share == 0)


def test_the_first_numbers_of_an_embedding_are_one_too(options, whole, tmp_path):
    run = Run(tmp_path, **options, matryoshka_dims="16,4", interpolation=1)
    texts = [text for _, text, _ in pairs_of(options["test"])[1]]
    assert encoded(run.model, texts, truncate_dim=4).shape == (120, 4)
    # Four numbers rank better where they were trained to than where only the whole embedding was.
    tuned, other, before = (
        auc(model, model, options["test"], truncate_dim=4)
        for model in (run.model, whole.model, options["pretrained_model"])
    )
    assert tuned > max(other, before)


def test_hard_negatives_are_learnt_from(options, whole, tmp_path):
    run = Run(tmp_path, **options, hard_negatives=6, interpolation=1)
    test = run.metrics["splits"]["test"]
    assert test["tuned"]["roc_auc"] > test["base"]["roc_auc"]
    first, without = (re.search(r"training loss ([\d.]+)", item.log)[1] for item in (run, whole))
    assert float(first) > float(without)  # three were judged, and three more come in


@pytest.mark.parametrize("loss", ["kl", "margin_mse", "infonce+5*ranknet+margin_mse"])
def test_a_teacher_is_learnt_from_and_validation_and_test_need_none(options, tmp_path, loss):
    header, rows = pairs_of(options["train"], of=lambda row: [{"E": 0.9, "S": 0.6, "C": 0.3, "I": 0.0}[row[2]]])
    train = write(tmp_path / "train", [*header, "gpt"], rows)
    run = Run(tmp_path, **options | {"train": train, "loss": loss, "epochs": 4}, teacher_column="gpt", interpolation=1)
    test = run.metrics["splits"]["test"]
    assert test["tuned"]["roc_auc"] > test["base"]["roc_auc"]
    losses = re.findall(r"eval loss ([\d.]+)", run.log)
    assert len(losses) == 4
    assert (set(losses) == {"0.0000"}) == ("infonce" not in loss)  # nothing was scored there


@pytest.mark.parametrize(("rank", "kept"), [(4, True), (0, False)])
@pytest.mark.parametrize("stopped", [False, True])
def test_where_the_model_cannot_be_written_the_adapter_and_the_results_stay(
    options, tmp_path, monkeypatch, rank, kept, stopped
):
    def fail(*parts, **options):
        raise OutputError("no room for the model", "Free some.")

    monkeypatch.setattr(finishing, "export", fail)
    folders = {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}
    with stopped_after(2) if stopped else nullcontext():
        ended = lorry("train", **options | {"lora_rank": rank, "lr": 1e-3}, **folders)
    place = f" (the trained adapter is in {tmp_path / 'output' / 'adapter'})" if kept else ""
    assert (ended.code, ended.lines[-1]) == (1, f"error: no room for the model{place}. Free some.")
    results = {"training.jsonl"} | (set() if stopped else {"metrics.json", "report.html", "report.json"})
    assert {path.name for path in (tmp_path / "output").iterdir()} == results | ({"adapter"} if kept else set())
    assert not (tmp_path / "model").exists()
