"""Better, worse or unclear."""

import dataclasses

import pytest
from report_facts import block, make_facts, overlapping, with_evidence

from lorry.evaluation.intervals import Change
from lorry.names import METRICS
from lorry.report.verdict import verdict_of, verdict_split


def change(low, high, p=0.01):
    return Change((low + high) / 2, low, high, p)


BETTER, WORSE, EQUAL = change(0.01, 0.02), change(-0.02, -0.01), change(-0.01, 0.01)


@pytest.mark.parametrize(
    ("differences", "kind", "words"),
    [
        (
            {"ndcg@10_rankable": BETTER},
            "better",
            "ranks better than the base model: nDCG@10 0.7000 → 0.7500 over the 80 queries",
        ),
        ({"ndcg@10_rankable": WORSE, "mrr@10": EQUAL}, "worse", "ranks worse than the base model"),
        ({"ndcg@10_rankable": EQUAL, "ndcg@10": BETTER}, "unclear", "No clear difference"),
        ({"ndcg@10_rankable": change(0.0, 0.0)}, "unclear", "No clear difference"),
        ({"ndcg@10_rankable": BETTER, "pair_accuracy": WORSE}, "better", "ranks better"),
        ({}, "unclear", "cannot be compared"),
    ],
)
def test_the_verdict_follows_the_queries_that_can_be_ranked(differences, kind, words):
    verdict = verdict_of(make_facts(differences={"test": differences}))
    assert verdict.kind == kind
    assert words in verdict.headline


def test_what_went_the_other_way_is_told():
    differences = {"ndcg@10_rankable": BETTER, "pair_accuracy": WORSE, "roc_auc": WORSE, "mrr@10": EQUAL}
    found = verdict_of(make_facts(differences={"test": differences})).caveats
    assert found == ["But Pair accuracy, ROC-AUC are worse."]


def test_the_line_for_logs_has_verdict_and_figures():
    assert verdict_of(make_facts()).line == (
        "VERDICT: better: nDCG@10 over the 80 test queries that can be ranked 0.7000 -> 0.7500 "
        "(+0.0500, 95% interval +0.0400 to +0.0600, p 0.001)"
    )
    equal = verdict_of(make_facts(differences={"test": {"ndcg@10_rankable": EQUAL}}))
    assert equal.line.startswith("VERDICT: no clear difference: nDCG@10 over the 80 test queries")
    assert verdict_of(make_facts(differences={"test": {"ndcg@10_rankable": WORSE}})).line.startswith("VERDICT: worse: ")
    none = verdict_of(make_facts(differences={}))
    assert none.line == "VERDICT: no clear difference: labels differ within too few of the 90 test queries"


def test_a_model_with_the_weights_of_the_base_is_told():
    facts = make_facts(interpolation=0.0, differences={"test": {"ndcg@10_rankable": change(0.0, 0.0)}})
    assert verdict_of(facts).headline == "Tuning did not help: the model has the weights of the base model."
    wanted = make_facts(interpolation=0.0, config={**facts.config, "interpolation": 0.0})
    assert "did not help" not in verdict_of(wanted).headline
    assert "weights of the base model" in verdict_of(wanted).headline


def test_the_share_of_the_update_is_told_where_it_is_not_all():
    half, config = make_facts(interpolation=0.5), make_facts().config
    told = "The merged model has 50% of the trained update: chosen on the validation pairs."
    assert verdict_of(half).figures[-1] == told
    given = make_facts(interpolation=0.5, config={**config, "interpolation": 0.5})
    assert verdict_of(given).figures[-1] == "The merged model has 50% of the trained update: as interpolation says."
    assert not any("of the trained update" in figure for figure in verdict_of(make_facts()).figures)


def shown_to_customers(kind, **changes):
    found = {"better": BETTER, "worse": WORSE, "unclear": EQUAL}[kind]
    facts = with_evidence()
    return verdict_of(dataclasses.replace(facts, differences={"test": {"ndcg@10_rankable": found}}, **changes))


@pytest.mark.parametrize(
    ("kind", "answer", "evidence"),
    [
        ("better", "Customers will see better results.", "Chance alone does not explain the difference."),
        ("worse", "Customers would see worse results: keep the model", "Even so, the best product stands first in 61"),
        ("unclear", "Whether customers would see better results cannot be told.", "to tell it from chance."),
    ],
)
def test_the_answer_in_everyday_words_follows_the_verdict(kind, answer, evidence):
    verdict = shown_to_customers(kind)
    assert verdict.answer.startswith(answer)
    assert evidence in verdict.plain
    for jargon in ("nDCG", "split", "interval", "metric", "p 0"):
        assert jargon not in verdict.answer + verdict.plain


def test_a_refused_model_is_told_first():
    config = {**make_facts().config, "require": "test:ndcg@10>=0.9"}
    verdict = shown_to_customers("better", config=config)
    assert verdict.answer == (
        "The tuned model was not put in place: it is not as good as was required. "
        "It is better than the base model, but not by enough."
    )
    assert verdict.caveats[0].startswith("Required, and not reached: ")
    met = shown_to_customers("better", config={**config, "require": "test:ndcg@10>=0.7"})
    assert met.answer == "Customers will see better results."


def test_the_answer_in_everyday_words_claims_nothing_that_was_not_measured():
    assert shown_to_customers("unclear", interpolation=0.0).answer == "Customers will see no difference."
    nothing = verdict_of(make_facts(differences={}))
    assert nothing.answer == "Whether customers would see better results cannot be told."
    assert "nobody trained on" not in verdict_of(overlapping()).plain


def test_the_figures_show_values_change_and_interval():
    assert verdict_of(make_facts()).figures == [
        "nDCG@10, rankable queries 0.7000 → 0.7500 (+0.0500; 95% interval +0.0400 to +0.0600, p 0.001).",
        "Pair accuracy 0.7000 → 0.7000 (+0.0000; 95% interval −0.0100 to +0.0200, p 0.800).",
    ]


def test_caveats_tell_what_limits_the_verdict():
    splits = {"validation": {**block(), "bm25": dict.fromkeys(METRICS, 0.8), "random": dict.fromkeys(METRICS, 0.71)}}
    facts = make_facts(metrics={**make_facts().metrics, "splits": splits}, undefined={"validation": ["roc_auc"]})
    assert verdict_of(facts).caveats == [
        "BM25, which needs no training, scores higher: nDCG@10, rankable queries 0.8000 against 0.7000.",
        "Random order scores higher: nDCG@10, rankable queries 0.7100 against 0.7000.",
        "Not defined here, because the labels do not differ: ROC-AUC.",
        "There is no test split. These queries were held out of training, but the share of the update was chosen on "
        "them: the figures may be too good.",
    ]
    assert verdict_of(make_facts()).caveats == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 3}, "the epoch and the share of the update were chosen on them: the figures may be too good."),
        ({"epochs": 3, "interpolation": 1.0}, "the epoch was chosen on them: the figures may be too good."),
        ({"epochs": 3, "best_epoch": False, "interpolation": 1.0}, "training was monitored on them."),
    ],
)
def test_without_a_test_split_it_says_what_was_chosen_on_these_queries(options, says):
    facts = make_facts()
    metrics = facts.metrics | {"splits": {"validation": facts.metrics["splits"]["validation"]}}
    (found,) = verdict_of(make_facts(metrics=metrics, config=facts.config | options)).caveats
    assert found.endswith(f"held out of training, but {says}")


def test_an_undefined_metric_has_no_say():
    differences = {"test": {"ndcg@10_rankable": BETTER}}
    assert verdict_of(make_facts(differences=differences, undefined={"test": ["ndcg@10_rankable"]})).kind == "unclear"


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("validation", "test"), "test"), (("train", "validation"), "validation"), (("all",), "all")],
)
def test_the_verdict_is_about_the_test_split_if_there_is_one(splits, expected):
    assert verdict_split({"splits": dict.fromkeys(splits)}) == expected
