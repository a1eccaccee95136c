"""`lorry train --require`: a model that is not good enough never gets into model_dir, and all else is as ever."""

import json

import pytest

from command import lorry, stopped_after
from test_pipeline import MODEL_FILES, Run

HINT = "The model is kept in {}, model_dir is as it was."
RESULTS = {"metrics.json", "report.html", "report.json", "training.jsonl"}


def contents(folder):
    """Return every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_model, shop_pairs):
    """Return the options of a short run on a tiny model that gets better."""
    folder = tmp_path_factory.mktemp("pairs")
    queries = {"train": 40, "validation": 30, "test": 20}
    pairs = {name: shop_pairs(folder / name, number, seed) for seed, (name, number) in enumerate(queries.items())}
    run = {"batch_size": 24, "lr": 0.03, "epochs": 2, "precision": "fp32", "lora_rank": 4}
    return pairs | {"pretrained_model": tiny_model("bert")} | run


def train(folder, **options):
    return lorry("train", model_dir=folder / "model", output_data_dir=folder / "output", **options)


REQUIRED = "ndcg@10>=0.9999, validation:roc_auc>=bm25+0.9,roc_auc>=0.1"


@pytest.fixture(scope="module")
def refused(options, tmp_path_factory):
    """Return (folder, files of an older model there, how the run ended whose model was refused)."""
    folder = tmp_path_factory.mktemp("refused")
    assert train(folder, **options, seed=3).code == 0
    (folder / "model" / "notes.txt").write_text("of somebody else")
    older = contents(folder / "model")
    return folder, older, train(folder, **options, require=REQUIRED)


def test_the_last_line_says_what_is_missed_by_how_much_and_where_the_model_is(refused):
    folder, _, ended = refused
    splits = json.loads((folder / "output" / "metrics.json").read_text())["splits"]
    ndcg, auc, bm25 = (
        splits["test"]["tuned"]["ndcg@10"],
        splits["validation"]["tuned"]["roc_auc"],
        splits["validation"]["bm25"]["roc_auc"],
    )
    missed = (
        f"ndcg@10 on test is {ndcg:.4f}, {0.9999 - ndcg:.4f} below the required 0.9999",
        f"roc_auc on validation is {auc:.4f}, {bm25 + 0.9 - auc:.4f} below the required {bm25 + 0.9:.4f} "
        f"(bm25 {bm25:.4f} + 0.9)",
    )
    kept = folder / "output" / "refused_model"
    assert ended.code == 1
    assert (
        ended.lines[-1] == f"error: the tuned model does not meet --require: {'; '.join(missed)}. {HINT.format(kept)}"
    )
    assert (kept / "REFUSED.txt").read_text() == "\n".join(missed) + "\n"
    assert "Traceback" not in ended.output


def test_an_older_model_stays_as_it_was(refused):
    folder, older, _ = refused
    assert contents(folder / "model") == older
    assert {path.name for path in folder.iterdir()} == {"model", "output"}


def test_the_refused_model_is_whole_and_scores_as_the_metrics_say(refused, options, tmp_path):
    folder, _, _ = refused
    kept = folder / "output" / "refused_model"
    assert set(contents(kept)) >= MODEL_FILES | {"REFUSED.txt"}
    given = {"model": kept, "data": options["test"], "output": tmp_path / "metrics.json", "precision": "fp32"}
    assert lorry("evaluate", **given).code == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["splits"]["all"]["models"][str(kept)]
    trained = json.loads((folder / "output" / "metrics.json").read_text())["splits"]["test"]
    assert found == pytest.approx(trained["tuned"], abs=1e-6)
    assert found != pytest.approx(trained["base"], abs=1e-3)


def test_the_results_are_written_all_the_same(refused):
    folder, _, ended = refused
    assert {path.name for path in (folder / "output").iterdir()} == RESULTS | {"refused_model"}
    assert REQUIRED in (folder / "output" / "report.html").read_text().replace("&gt;", ">")
    assert "test:tuned:ndcg@10=" in ended.output


def test_where_there_was_no_model_there_is_none(options, tmp_path):
    ended = train(tmp_path, **options, require="ndcg@10>=+0.9")
    assert ended.code == 1
    assert not (tmp_path / "model").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"output"}
    first = contents(tmp_path / "output" / "refused_model")
    assert train(tmp_path, **options, require="ndcg@10>=+0.9", seed=8).code == 1
    again = contents(tmp_path / "output" / "refused_model")
    assert again.keys() == first.keys()
    assert again["model.safetensors"] != first["model.safetensors"]
    assert {path.name for path in (tmp_path / "output").iterdir()} == RESULTS | {"refused_model"}


def test_a_model_that_is_good_enough_goes_where_it_belongs(options, tmp_path):
    run = Run(tmp_path, **options, require="ndcg@10_rankable>=+0.01,validation:roc_auc>=base,test:mrr@10>=random")
    assert set(contents(run.model)) >= MODEL_FILES
    assert set(contents(run.output)) == RESULTS
    assert run.ended.lines[-1].startswith("VERDICT: ")
    without = Run(tmp_path / "without", **options)
    assert contents(without.model)["model.safetensors"] == contents(run.model)["model.safetensors"]


@pytest.mark.parametrize(
    ("require", "error"),
    [
        ("ndcg@10>=good", "require has 'ndcg@10>=good': the bound cannot be read. Give a number to reach, e.g. 0.72"),
        (
            "test:ndcg@10>=0.1",
            "require has 'test:ndcg@10>=0.1', but there are no test pairs. "
            "Give test pairs, or leave out the test: before the metric.",
        ),
    ],
)
def test_what_cannot_be_required_is_told_before_anything_is_trained(options, tmp_path, require, error):
    ended = train(tmp_path, **options | {"test": ""}, require=require)
    assert ended.code == 1
    assert ended.lines[-1].startswith(f"error: {error}")
    assert "training loss" not in ended.output
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_leaves_no_model_and_the_next_one_is_held_to_what_is_required(options, tmp_path):
    given = options | {"require": "ndcg@10>=+0.01", "checkpoint_dir": tmp_path / "checkpoints"}
    with stopped_after(3):
        ended = train(tmp_path, **given)
    assert ended.code == 0
    assert "no model is left: whether it meets what require says is known at the end of a run" in ended.lines
    assert {path.name for path in tmp_path.iterdir()} == {"output", "checkpoints"}
    assert set(contents(tmp_path / "output")) == {"training.jsonl"}
    ended = train(tmp_path, **given | {"require": "ndcg@10>=0.9999"})
    assert (ended.code, (tmp_path / "model").exists()) == (1, False)
    assert "continuing after step 3" in ended.output
    ended = train(tmp_path, **given)
    assert (ended.code, (tmp_path / "model").exists()) == (0, True), ended.output
