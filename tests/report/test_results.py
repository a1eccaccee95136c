"""What training and evaluation leave, as `metrics.json` and the report have it."""

import json

import numpy as np
import pytest

from lorry.config import TrainConfig
from lorry.evaluation.held_out import ModelScores
from lorry.evaluation.intervals import compare
from lorry.evaluation.scoring import SplitScores, measure, official_scorer_gain
from lorry.names import METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.report.results import gather_facts
from lorry.report.verdict import verdict_of
from lorry.training.loop import Progress
from lorry.training.progress import TrainingLog
from lorry.training.setup import prepare


@pytest.fixture(scope="module")
def setup(tiny_model, shop_pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    # Each of the queries has products of four labels, and one more has two of the same.
    train, test = shop_pairs(folder / "train", queries=20), shop_pairs(folder / "test", queries=15, seed=1)
    with (test / "pairs.csv").open("a") as file:
        file.write("white lamp,norvale lamp,E\nwhite lamp,stavik lamp,E\n")
    options = {"pretrained_model": str(tiny_model("bert")), "precision": "fp32", "lora_rank": 4}
    return prepare(TrainConfig(train=str(train), test=str(test), **options))


@pytest.fixture
def gathered(setup):
    """Return `gather(lift, **options)`: the facts where tuning adds `lift` times the gain to random scores."""

    def gather(lift, **options):
        before, after = {}, {}
        for name in ("validation", "test"):
            pairs = setup.splits[name]
            scores = np.random.default_rng(0).random(len(pairs)).astype(np.float32)
            for found, values in ((before, scores), (after, scores + np.float32(lift) * pairs.gain)):
                found[name] = SplitScores(values, measure(pairs, values), loss=1.0)
        models = ModelScores(before), ModelScores(after)
        facts = gather_facts(setup, Progress(step=3, seconds=2.0), TrainingLog(3), *models, "lorry", **options)
        return facts, before, after

    return gather


def test_a_split_has_counts_scorers_and_changes(setup, gathered):
    facts, before, after = gathered(0.3)
    block = json.loads(json.dumps(facts.metrics))["splits"]["test"]
    assert (block["pairs"], block["queries"], block["queries_rankable"]) == (15 * 6 + 2, 16, 15)
    for scorer in ("random", "bm25", "base", "tuned"):
        assert set(METRICS) <= set(block[scorer])
    pairs = setup.splits["test"]
    scores = before["test"].scores, after["test"].scores
    given = {"seed": setup.config.seed, "official_gain": official_scorer_gain(pairs)}
    expected = compare(pairs.query, pairs.gain, pairs.relevant, *scores, **given)
    assert set(block["change"]) == {*METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG}
    for name, change in block["change"].items():
        assert change == vars(expected[name])
        assert change["change"] == pytest.approx(block["tuned"][name] - block["base"][name])


@pytest.mark.parametrize(("lift", "answer"), [(1.0, "better"), (0.0, "no clear difference"), (-1.0, "worse")])
def test_the_verdict_is_about_what_was_scored(gathered, lift, answer):
    facts, _, _ = gathered(lift)
    assert verdict_of(facts).line.startswith(f"VERDICT: {answer}: nDCG@10 over the 15 test queries that can be ranked ")


def test_the_share_of_the_update_goes_with_the_facts(gathered):
    assert gathered(0.3)[0].interpolation == 1
    assert gathered(0.3, interpolation=0.25)[0].interpolation == 0.25
