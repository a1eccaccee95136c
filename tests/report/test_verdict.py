"""Better, worse, mixed or unclear."""

import pytest
from report_facts import block, make_facts

from lorry.names import METRICS
from lorry.report.verdict import verdict_of, verdict_split


@pytest.mark.parametrize(
    ("intervals", "kind", "words"),
    [
        ({"ndcg@10": (0.01, 0.02)}, "better", "ranks better than the base model on the test split"),
        ({"ndcg@10": (-0.02, -0.01), "mrr@10": (-0.1, 0.1)}, "worse", "ranks worse than the base model"),
        ({"ndcg@10": (-0.01, 0.01)}, "unclear", "No clear difference"),
        ({"ndcg@10": (0.0, 0.0)}, "unclear", "No clear difference"),
        ({"ndcg@10": (0.01, 0.02), "pair_accuracy": (-0.2, -0.1)}, "mixed", "in nDCG@10, worse in Pair accuracy"),
        ({}, "unclear", "cannot be compared"),
    ],
)
def test_the_verdict_follows_the_intervals(intervals, kind, words):
    verdict = verdict_of(make_facts(intervals={"test": intervals}))
    assert verdict.kind == kind
    assert words in verdict.headline


def test_the_figures_show_values_change_and_interval():
    assert verdict_of(make_facts()).figures == [
        "nDCG@10 0.7000 → 0.7500 (+0.0500; 95% interval +0.0400 to +0.0600).",
        "Pair accuracy 0.7000 → 0.7000 (+0.0000; 95% interval −0.0100 to +0.0200).",
    ]


def test_caveats_tell_what_limits_the_verdict():
    splits = {"validation": {**block(), "bm25": dict.fromkeys(METRICS, 0.8), "random": dict.fromkeys(METRICS, 0.71)}}
    facts = make_facts(metrics={**make_facts().metrics, "splits": splits}, undefined={"validation": ["roc_auc"]})
    assert verdict_of(facts).caveats == [
        "BM25, which needs no training, scores higher: nDCG@10 0.8000 against 0.7000.",
        "Random order scores higher: nDCG@10 0.7100 against 0.7000.",
        "There is no test split. These queries were held out of training, but training was monitored on them.",
        "Not defined here, because the labels do not differ: ROC-AUC.",
    ]
    assert verdict_of(make_facts()).caveats == []


def test_an_undefined_metric_has_no_say():
    intervals = {"test": {"mrr@10": (0.01, 0.02)}}
    assert verdict_of(make_facts(intervals=intervals, undefined={"test": ["mrr@10"]})).kind == "unclear"


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("validation", "test"), "test"), (("train", "validation"), "validation"), (("all",), "all")],
)
def test_the_verdict_is_about_the_test_split_if_there_is_one(splits, expected):
    assert verdict_split({"splits": dict.fromkeys(splits)}) == expected
