"""The curve of training: a few validation queries, measured within the epochs, that change nothing else."""

import dataclasses
import json
import re

import numpy as np
import pytest

from command import lorry
from lorry.aws.submit import METRIC_DEFINITIONS
from lorry.config import TrainConfig
from lorry.evaluation.scoring import measure, score
from lorry.evaluation.validation_sample import FEWEST_QUERIES, MOST_QUERIES, sample_validation
from lorry.training.selection import CRITERION
from lorry.training.setup import prepare

SAMPLED = [f"sample_{name}" for name in CRITERION]


@pytest.fixture(scope="module")
def channels(tmp_path_factory, shop_pairs):
    folder = tmp_path_factory.mktemp("sample")
    train, validation = shop_pairs(folder / "train"), shop_pairs(folder / "validation", queries=25, seed=1)
    with (validation / "pairs.csv").open("a") as file:  # a query that cannot be ranked
        file.write("white lamp,norvale lamp,E\nwhite lamp,stavik lamp,E\n")
    return {"train": str(train), "validation": str(validation)}


@pytest.fixture(scope="module")
def setup(channels, tiny_model):
    return prepare(TrainConfig(pretrained_model=str(tiny_model("bert")), precision="fp32", lora_rank=4, **channels))


def test_a_sample_has_whole_queries_that_can_be_ranked(setup):
    pairs, sample = setup.splits["validation"], sample_validation(setup)
    assert FEWEST_QUERIES <= len(sample.pairs.queries) <= MOST_QUERIES
    assert "white lamp" not in sample.pairs.queries.to_pylist()
    chosen = np.unique(pairs.query[sample.rows])
    assert np.isin(pairs.query, chosen).sum() == len(sample.rows) == len(sample.pairs)
    again, other = sample_validation(setup), sample_validation(_with(setup, seed=7))
    assert again.rows.tolist() == sample.rows.tolist() != other.rows.tolist()


def test_a_sample_scores_as_its_pairs_do_among_all(setup):
    sample = sample_validation(setup)
    found = score(setup.encoder, setup.texts["validation"], setup.splits["validation"], setup.config)
    alone, among_all = sample.measure(setup, setup.encoder, None), sample.of_all(found.scores)
    assert list(alone) == SAMPLED
    assert alone == pytest.approx(among_all, abs=1e-6)
    expected = measure(sample.pairs, found.scores[sample.rows])
    assert among_all == {f"sample_{name}": expected[name] for name in CRITERION}


def test_no_sample_where_none_is_wanted(setup):
    assert sample_validation(_with(setup, evals_per_epoch=0)) is None


def _with(setup, **options):
    return dataclasses.replace(setup, config=dataclasses.replace(setup.config, **options))


def test_points_come_at_even_steps_and_change_nothing_else(channels, tiny_model, tmp_path):
    """Weights, losses and validation are those of a run without points, to the byte."""
    runs = {}
    for points in (0, 5):
        folder = tmp_path / str(points)
        ended = lorry(
            "train", **channels, pretrained_model=tiny_model("bert"), precision="fp32", batch_size=24, epochs=2,
            log_every=3, lr=0.01, evals_per_epoch=points, model_dir=folder / "model", output_data_dir=folder / "output",
        )  # fmt: skip
        assert ended.code == 0, ended.output
        lines = [json.loads(line) for line in (folder / "output" / "training.jsonl").read_text().splitlines()]
        runs[points] = ended, lines, (folder / "model" / "model.safetensors").read_bytes()
    (_, without, plain), (ended, lines, weights) = runs[0], runs[5]
    assert weights == plain
    sampled = [line for line in lines if SAMPLED[0] in line]
    assert [(line["step"], line["epoch"]) for line in sampled] == [(step, step / 10) for step in range(0, 21, 2)]
    assert [_without_clock(line) for line in lines if "lr" in line or "eval_loss" in line] == list(
        map(_without_clock, without)
    )
    regexes = {item["Name"]: item["Regex"] for item in METRIC_DEFINITIONS}
    for name in SAMPLED:
        logged = [float(value) for value in re.findall(regexes[f"validation:{name}"], ended.output)]
        assert logged == [round(line[name], 4) for line in sampled[1:]]


def _without_clock(line):
    return {
        name: value for name, value in line.items() if name not in ("pairs_per_second", "expected_seconds", *SAMPLED)
    }
