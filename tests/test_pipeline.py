"""The whole job through its command: what it leaves, what it says, and that what it leaves is better."""

import csv
import json
import math
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from command import lorry
from lorry.aws.submit import METRIC_DEFINITIONS
from lorry.config import TrainConfig
from lorry.data import synthetic
from lorry.names import OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.options import as_dict

DATA = Path(os.environ.get("LORRY_DATA", Path(__file__).parents[1] / "../shared/data"))
METRICS = (
    *("ndcg@10", "ndcg@10_rankable", "mrr@10"),
    *("roc_auc", "average_precision", "spearman", "pair_accuracy"),
)
MODEL_FILES = {
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json",
    "1_Pooling/config.json", "config_sentence_transformers.json", "README.md", "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json", "lorry.json",
}  # fmt: skip


class Run:
    """One run of `lorry train` and what it left."""

    def __init__(self, folder, **options):
        self.model, self.output = folder / "model", folder / "output"
        self.ended = lorry("train", model_dir=self.model, output_data_dir=self.output, **options)
        assert self.ended.code == 0, self.ended.output
        self.log = self.ended.output

    @property
    def metrics(self):
        return json.loads((self.output / "metrics.json").read_text())

    @property
    def facts(self):
        return json.loads((self.model / "lorry.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, shop_pairs):
    """Return (folder, options of a short run on a tiny model)."""
    folder = tmp_path_factory.mktemp("pipeline")
    options = {"train": shop_pairs(folder / "train"), "test": shop_pairs(folder / "test", queries=20, seed=1)}
    options |= {"pretrained_model": tiny_model("bert"), "batch_size": 24, "lr": 0.01, "epochs": 4, "precision": "fp32"}
    return folder, options


@pytest.fixture(scope="module")
def run(place):
    """A run without a validation folder, with a test folder; do not write to it."""
    folder, options = place
    return Run(folder / "run", **options, **{"log_every": 3, "lora-rank": 4, "lora_alpha": "16"})


def test_the_model_folder_holds_every_file_and_nothing_else_than_safetensors(run):
    files = {str(path.relative_to(run.model)) for path in run.model.rglob("*") if path.is_file()}
    assert files >= MODEL_FILES
    assert not [name for name in files if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
    assert not [name for name in files if re.search(r"checkpoint|\.tmp|\.part|~$|\.lorry", name)]
    assert not list(run.model.parent.glob(".lorry-*"))


def test_the_metrics_are_complete_and_in_range(run):
    assert set(run.metrics) == {"splits", "training", "time", "cost"}
    assert set(run.metrics["splits"]) == {"validation", "test"}
    for block in run.metrics["splits"].values():
        assert isinstance(block["pairs"], int)
        assert block["queries_rankable"] == block["queries"]  # every query has labels of all kinds
        for scorer in ("random", "bm25", "base", "tuned"):
            for metric in METRICS:
                value = block[scorer][metric]
                assert math.isfinite(value), (scorer, metric)
                assert (-1 if metric == "spearman" else 0) <= value <= 1, (scorer, metric)
    assert set(run.metrics["splits"]["test"]["change"]) == {*METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG}
    assert (run.metrics["splits"]["test"]["pairs"], run.metrics["splits"]["test"]["queries"]) == (120, 20)
    training = run.metrics["training"]
    for name in ("pairs", "tokens", "seconds", "pairs_per_second", "tokens_per_second", "peak_memory_bytes", "steps"):
        assert training[name] > 0, name
    held_out = run.metrics["splits"]["validation"]["pairs"]
    assert training["pairs"] == 4 * (240 - held_out)
    assert training["pairs_per_second"] == pytest.approx(training["pairs"] / training["seconds"], rel=0.01)


def test_validation_queries_are_held_out_when_there_is_no_folder_of_them(run):
    block = run.metrics["splits"]["validation"]
    assert 0 < block["queries"] < 20
    assert block["pairs"] == 6 * block["queries"]


def test_training_makes_the_model_better(run):
    test = run.metrics["splits"]["test"]
    for metric in ("ndcg@10", "roc_auc", "pair_accuracy"):
        assert test["tuned"][metric] > test["base"][metric] + 0.03, metric


def test_lorry_json_says_where_the_model_comes_from(run, place):
    facts, (_, options) = run.facts, place
    assert set(facts["config"]) == set(as_dict(TrainConfig()))
    assert facts["config"]["lora_rank"] == 4  # given as --lora-rank
    assert facts["config"]["lora_alpha"] == 16.0
    assert facts["config"]["pretrained_model"] == str(options["pretrained_model"])
    assert facts["seed"] == 42
    assert set(facts["data_fingerprint"]) == {"train", "validation", "test"}
    assert len(set(facts["data_fingerprint"].values())) == 3
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["revision"]
    assert (facts["finished"], facts["stopped_at"]) == (True, None)
    assert facts["steps"] == run.metrics["training"]["steps"]
    assert facts["proof"]["merged_to_adapter"] >= 0.9999
    assert facts["proof"]["merged_to_base"] < 1


def test_the_linear_layers_alone_differ_from_the_base_model(run, place):
    base = load_file(place[1]["pretrained_model"] / "model.safetensors")
    tuned = load_file(run.model / "model.safetensors")
    changed = {name for name in tuned if not torch.equal(tuned[name], base[name].float())}
    wanted = {name for name in base if re.search(r"\.(query|key|value|dense)\.weight$", name) and "pooler" not in name}
    assert changed == wanted
    assert len(wanted) == 12


def test_the_adapter_is_of_the_size_that_was_asked_for(run):
    settings = json.loads((run.model / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 16)
    weights = load_file(run.model / "adapter" / "adapter_model.safetensors")
    assert {tuple(weight.shape) for name, weight in weights.items() if "lora_A" in name} == {(4, 32), (4, 64)}


def test_training_jsonl_has_an_object_a_logged_step(run):
    lines = [json.loads(line) for line in (run.output / "training.jsonl").read_text().splitlines()]
    steps = run.metrics["training"]["steps"]
    trained = [line for line in lines if "loss" in line]
    epoch = steps // 4
    assert [line["step"] for line in trained] == sorted({*range(3, steps, 3), *range(epoch, steps + 1, epoch)})
    assert all({"epoch", "loss", "lr"} <= line.keys() for line in trained)
    assert [line["step"] for line in lines if "eval_loss" in line] == [epoch * steps // 4 for epoch in range(5)]
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_the_log_matches_the_regexes_of_the_post(run):
    assert len(re.findall(r"training loss ([0-9\.]+)", run.log)) >= 6
    assert len(re.findall(r"eval loss ([0-9\.]+)", run.log)) == 4, "one an epoch"


def test_the_last_line_is_the_verdict(run):
    test = run.metrics["splits"]["test"]
    before, after = (test[scorer]["ndcg@10_rankable"] for scorer in ("base", "tuned"))
    change = test["change"]["ndcg@10_rankable"]
    assert change["change"] == pytest.approx(after - before)
    answer = "better" if change["low"] > 0 else "no clear difference"
    assert run.ended.lines[-1] == (
        f"VERDICT: {answer}: nDCG@10 over the 20 test queries that can be ranked {before:.4f} -> {after:.4f} "
        f"({change['change']:+.4f}, 95% interval {change['low']:+.4f} to {change['high']:+.4f}, p {change['p']:.3f})"
    )


def test_one_line_says_on_what_it_runs_and_with_which_attention(run, place, tiny_model, tmp_path):
    assert (
        len(re.findall(r"^running on .*; precision fp32, attention packed, \d+ threads$", run.log, re.MULTILINE)) == 1
    )
    assert run.log.count("running on ") == 1
    folders = {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}
    options = place[1] | {"pretrained_model": tiny_model("deberta-v2"), "lora_targets": "nothing"}  # goes no further
    padded = lorry("train", **options, **folders)
    assert "; precision fp32, attention padded (deberta-v2 models cannot be packed), " in padded.output


@pytest.mark.parametrize("definition", METRIC_DEFINITIONS, ids=lambda item: item["Name"])
def test_the_log_matches_every_metric_definition_of_a_job(run, definition):
    found = re.findall(definition["Regex"], run.log)
    assert found
    name = definition["Name"].split(":")
    if len(name) == 3:
        split, scorer, metric = name
        assert float(found[-1]) == pytest.approx(run.metrics["splits"][split][scorer][metric], abs=1e-4)


def test_the_report_is_one_self_contained_page(run):
    page = (run.output / "report.html").read_text()
    assert "lorry train" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']https?://[^"']+\.(?:js|css|png|svg|woff2?)""", page)
    assert f"report: {run.output / 'report.html'}" in run.log


def test_evaluate_puts_models_side_by_side_and_agrees_with_training(run, place, tmp_path):
    folder, options = place
    base, output = str(options["pretrained_model"]), tmp_path / "new" / "metrics.json"
    words = ["--model", base, "--model", run.model, "--data", folder / "test", "--output", output]
    ended = lorry("evaluate", *words, "--precision", "fp32")
    assert ended.code == 0, ended.output
    block = json.loads(output.read_text())["splits"]["all"]
    trained = run.metrics["splits"]["test"]
    assert (block["pairs"], block["queries"]) == (trained["pairs"], trained["queries"])
    assert block["models"][base] == pytest.approx(trained["base"], abs=1e-6)
    assert block["models"][str(run.model)] == pytest.approx(trained["tuned"], abs=1e-6)
    assert block["bm25"] == trained["bm25"]
    assert block["random"] == trained["random"]
    assert all(text in ended.output for text in ("BM25", "random", base, str(run.model), "ndcg@10"))


def test_sentence_transformers_scores_the_model_as_lorry_does(run, place):
    from sentence_transformers import SentenceTransformer
    from sklearn.metrics import roc_auc_score

    with (place[0] / "test" / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    model = SentenceTransformer(str(run.model), device="cpu")
    query, text = (model.encode([pair[name] for pair in pairs]) for name in ("query", "product_title"))
    auc = roc_auc_score([pair["relevance_label"] in "ES" for pair in pairs], (query * text).sum(1))
    assert auc == pytest.approx(run.metrics["splits"]["test"]["tuned"]["roc_auc"], abs=1e-3)


def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_replaces_them_by_others(place, tmp_path):
    options = place[1] | {"test": "", "epochs": 1}
    first, again = (Run(tmp_path / name, **options, seed=7) for name in ("first", "again"))
    weights = (first.model / "model.safetensors").read_bytes()
    assert (again.model / "model.safetensors").read_bytes() == weights
    (first.model / "notes.txt").touch()
    other = Run(tmp_path / "first", **options, seed=8)
    assert (other.model / "model.safetensors").read_bytes() != weights
    assert other.facts["seed"] == 8
    assert (other.model / "notes.txt").exists()


def test_a_validation_folder_is_used_whole_and_all_training_pairs_are_trained_on(place, tmp_path):
    run = Run(tmp_path, **place[1] | {"validation": place[1]["test"], "test": "", "epochs": 1})
    assert set(run.metrics["splits"]) == {"validation"}
    assert run.metrics["splits"]["validation"]["pairs"] == 120
    assert run.metrics["training"]["pairs"] == 240


def test_the_posts_own_hyperparameters_run_as_in_the_post(place, tmp_path):
    post = {"loss": "cosine", "lr": "1e-6", "lora_rank": 8, "batch_size": 120, "eval_batch_size": 160, "epochs": 1}
    run = Run(tmp_path, **place[1] | post)
    assert run.metrics["training"]["steps"] == 2
    assert 0 < run.facts["proof"]["merged_to_base"] <= 1 + 1e-6
    assert re.search(r"training loss 0\.\d{4};", run.log)


@pytest.mark.slow
def test_the_bundled_model_gets_better_at_the_sample_shop(tmp_path):
    synthetic.generate(tmp_path / "shop", queries=300)
    run = Run(tmp_path, train=tmp_path / "shop" / "train", pretrained_model="bundled")
    assert set(run.metrics["splits"]) == {"validation", "test"}
    test = run.metrics["splits"]["test"]
    for metric in ("ndcg@10", "roc_auc", "pair_accuracy"):
        assert test["tuned"][metric] > test["base"][metric] > test["random"][metric], metric


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "homedepot").exists(), reason=f"no data at {DATA}: set LORRY_DATA")
def test_a_fifth_of_home_depot_makes_the_bundled_model_better(tmp_path):
    folders = {name: some_queries(name, tmp_path / name, share) for name, share in HOME_DEPOT_SHARES.items()}
    run = Run(tmp_path, **folders, pretrained_model="bundled")
    test = run.metrics["splits"]["test"]
    assert test["tuned"]["roc_auc"] > test["base"]["roc_auc"]


HOME_DEPOT_SHARES = {"train": 0.2, "validation": 0.5, "test": 0.5}


def some_queries(split, folder, share):
    """Write all pairs of a random share of a split's queries: its first rows are not like the rest."""
    table = pq.read_table(DATA / "homedepot" / split / "pairs.parquet")
    queries = sorted(set(table["query"].to_pylist()))
    random.Random(0).shuffle(queries)
    folder.mkdir()
    chosen = pa.array(queries[: int(len(queries) * share)])
    pq.write_table(table.filter(pc.is_in(table["query"], chosen)), folder / "pairs.parquet")
    return folder


def test_a_rate_that_is_far_too_high_is_one_line(tiny_model, shop_pairs, tmp_path):
    result = lorry(
        "train",
        train=shop_pairs(tmp_path / "shop"),
        pretrained_model=tiny_model("bert"),
        model_dir=tmp_path / "model",
        output_data_dir=tmp_path / "output",
        lr=1e38,
        max_grad_norm=1e38,
        batch_size=16,
        epochs=3,
    )
    assert result.code == 1
    assert "Lower lr" in result.lines[-1]
    assert not (tmp_path / "model").exists()
