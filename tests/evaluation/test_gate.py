"""Requirements on the tuned model: what is read, what is refused, and what is said of one that is not met."""

from pathlib import Path

import pytest

from lorry.errors import UserError
from lorry.evaluation.gate import Requirement, RequirementError, check_measurable, read_requirements, unmet
from lorry.names import METRICS, OFFICIAL_NDCG


def block(**figures):
    """The figures of one split, by scorer, for the metric that the tests ask for."""
    return {"pairs": 10, "queries": 2, **{scorer: {"ndcg@10": value} for scorer, value in figures.items()}}


SPLITS = {
    "validation": block(random=0.5, bm25=0.6, base=0.7, tuned=0.75),
    "test": block(random=0.51, bm25=0.62, base=0.9225, tuned=0.9261),
}


def missed(text, splits=SPLITS):
    return unmet(read_requirements(text), splits)


@pytest.mark.parametrize(
    ("text", "split", "metric", "reference", "number"),
    [
        ("ndcg@10>=+0.005", "", "ndcg@10", "base", 0.005),
        ("ndcg@10>=-0.002", "", "ndcg@10", "base", -0.002),
        ("mrr@10>=+0", "", "mrr@10", "base", 0.0),
        ("mrr@10>=base", "", "mrr@10", "base", 0.0),
        ("mrr@10>=base-.01", "", "mrr@10", "base", -0.01),
        ("roc_auc>=0.72", "", "roc_auc", "", 0.72),
        ("roc_auc>=1", "", "roc_auc", "", 1.0),
        ("test:roc_auc>=0", "test", "roc_auc", "", 0.0),
        ("validation:spearman>=bm25", "validation", "spearman", "bm25", 0.0),
        ("pair_accuracy>=bm25+0.01", "", "pair_accuracy", "bm25", 0.01),
        ("pair_accuracy>=random+1e-3", "", "pair_accuracy", "random", 0.001),
        (" test : ndcg@10 >= BM25 + 0.01 ", "test", "ndcg@10", "bm25", 0.01),
        (f"{OFFICIAL_NDCG}>=+0.01", "", OFFICIAL_NDCG, "base", 0.01),
    ],
)
def test_a_requirement_is_read(text, split, metric, reference, number):
    assert read_requirements(text) == [Requirement(text.strip(), split, metric, reference, number)]


@pytest.mark.parametrize("metric", [*METRICS, OFFICIAL_NDCG])
def test_every_metric_can_be_required(metric):
    assert [item.metric for item in read_requirements(f"{metric}>=+0")] == [metric]


def test_several_are_separated_by_commas_and_none_is_none():
    read = read_requirements("ndcg@10>=+0.005, test:roc_auc>=0.7")
    assert [(item.metric, item.text) for item in read] == [
        ("ndcg@10", "ndcg@10>=+0.005"),
        ("roc_auc", "test:roc_auc>=0.7"),
    ]
    assert read_requirements("") == read_requirements("  ") == []


@pytest.mark.parametrize(
    ("text", "cause", "hint"),
    [
        ("ndcg@10", "'ndcg@10': it is not METRIC>=BOUND", '"ndcg@10>=+0.005", quoted'),
        ("ndcg@10>0.7", "not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg@10=>0.7", "not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg@10<=0.7", "not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg@10>=", "not METRIC>=BOUND", "ndcg@10>=+0.005"),
        (">=0.7", "not METRIC>=BOUND", "ndcg@10>=+0.005"),
        (",", "'': it is not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg@10>=+0.005,", "'': it is not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg@10>=0,72", "'72': it is not METRIC>=BOUND", "ndcg@10>=+0.005"),
        ("ndcg>=0.7", "no such metric", "Did you mean ndcg@10?"),
        ("nDCG@10>=0.7", "no such metric", "Did you mean ndcg@10?"),
        ("rocauc>=0.7", "no such metric", "Did you mean roc_auc?"),
        ("clicks>=0.7", "no such metric", "The metrics are ndcg@10, ndcg@10_rankable"),
        ("test:>=0.7", "no such metric", "The metrics are ndcg@10, ndcg@10_rankable"),
        ("train:ndcg@10>=0.7", "no such split", "validation: or test:"),
        (":ndcg@10>=0.7", "no such split", "validation: or test:"),
        ("ndcg@10>=good", "the bound cannot be read", "0.72"),
        ("ndcg@10>=nan", "the bound cannot be read", "0.72"),
        ("ndcg@10>=inf", "the bound cannot be read", "0.72"),
        ("ndcg@10>=+inf", "the bound cannot be read", "0.72"),
        ("ndcg@10>=+", "the bound cannot be read", "0.72"),
        ("ndcg@10>=bm25 0.01", "the bound cannot be read", "bm25+0.01"),
        ("ndcg@10>=base0.01", "the bound cannot be read", "bm25+0.01"),
        ("ndcg@10>=tuned+0.01", "the bound cannot be read", "bm25+0.01"),
        ("ndcg@10>=0.7 0.8", "the bound cannot be read", "0.72"),
        ("ndcg@10>=>=0.7", "the bound cannot be read", "0.72"),
        ("ndcg@10>=1_0", "the bound cannot be read", "0.72"),
        ("ndcg@10>=1e999", "the number is inf", "0.72 for 72 %"),
        ("ndcg@10>=-1e999", "the number is -inf", "0.72 for 72 %"),
        ("ndcg@10>=72", "no metric is beyond 1, and the number is 72", "0.72 for 72 %"),
        ("roc_auc>=0.7,ndcg@10>=+x", "'ndcg@10>=+x'", "0.72"),
        ("x" * 500, "require has '" + "x" * 59 + "…'", "ndcg@10>=+0.005"),
    ],
)
def test_a_bad_requirement_names_the_part_and_what_is_right(text, cause, hint):
    with pytest.raises(UserError) as refused:
        read_requirements(text)
    assert refused.value.cause.startswith("require has ")
    assert cause in refused.value.cause
    assert hint in refused.value.hint


def test_a_split_that_the_run_has_not_is_refused():
    requirements = read_requirements("ndcg@10>=+0.005,test:roc_auc>=0.7")
    check_measurable(requirements, dict.fromkeys(["train", "validation", "test"], METRICS))
    check_measurable(requirements[:1], {"all": METRICS})
    with pytest.raises(UserError, match=r"'test:roc_auc>=0.7', but there are no test pairs\. Give test pairs, or"):
        check_measurable(requirements, dict.fromkeys(["train", "validation"], METRICS))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train", "validation", "test"], "test"),
        (["train", "validation"], "validation"),
        (["all"], "all"),
        (["train"], "train"),
    ],
)
def test_without_a_split_it_is_test_else_validation_else_what_there_is(names, chosen):
    (found,) = missed("ndcg@10>=0.8", dict.fromkeys(names, block(base=0.7, tuned=0.5)))
    assert found.startswith(f"ndcg@10 on {'all pairs' if chosen == 'all' else chosen} is 0.5000")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("ndcg@10>=+0.005", "ndcg@10 on test is 0.9261, 0.0014 below the required 0.9275 (base 0.9225 + 0.005)"),
        ("ndcg@10>=base+0.005", "ndcg@10 on test is 0.9261, 0.0014 below the required 0.9275 (base 0.9225 + 0.005)"),
        ("ndcg@10>=0.94", "ndcg@10 on test is 0.9261, 0.0139 below the required 0.9400"),
        ("ndcg@10>=bm25+0.4", "ndcg@10 on test is 0.9261, 0.0939 below the required 1.0200 (bm25 0.6200 + 0.4)"),
        ("ndcg@10>=random+.5", "ndcg@10 on test is 0.9261, 0.0839 below the required 1.0100 (random 0.5100 + 0.5)"),
        ("test:ndcg@10>=1", "ndcg@10 on test is 0.9261, 0.0739 below the required 1.0000"),
        ("validation:ndcg@10>=0.8", "ndcg@10 on validation is 0.7500, 0.0500 below the required 0.8000"),
        (
            "validation:ndcg@10>=+0.2",
            "ndcg@10 on validation is 0.7500, 0.1500 below the required 0.9000 (base 0.7000 + 0.2)",
        ),
        ("ndcg@10>=0.92611", "ndcg@10 on test is 0.92610, 0.00001 below the required 0.92611"),
    ],
)
def test_what_is_not_met_is_said_with_its_figures(text, phrase):
    assert missed(text) == [phrase]


@pytest.mark.parametrize(
    "text",
    [
        "", "ndcg@10>=+0.003", "ndcg@10>=+0", "ndcg@10>=base", "ndcg@10>=0.9261", "ndcg@10>=bm25+0.3",
        "ndcg@10>=random", "validation:ndcg@10>=+0.05", "ndcg@10>=-1",
    ],
)  # fmt: skip
def test_what_is_met_is_not_said(text):
    assert missed(text) == []


def test_the_bound_may_lie_below_the_base_model():
    assert missed("ndcg@10>=-0.002", {"test": block(base=0.9225, tuned=0.921)}) == []
    assert missed("ndcg@10>=-0.002", {"test": block(base=0.9225, tuned=0.92)}) == [
        "ndcg@10 on test is 0.9200, 0.0005 below the required 0.9205 (base 0.9225 - 0.002)"
    ]


def test_a_model_as_good_as_the_base_has_no_number_to_add():
    assert missed("ndcg@10>=base", {"test": block(base=0.7, tuned=0.6)}) == [
        "ndcg@10 on test is 0.6000, 0.1000 below the required 0.7000 (base 0.7000)"
    ]


def test_exactly_equal_is_met_whatever_the_noise_of_adding():
    assert 0.1 + 0.2 > 0.3
    assert missed("ndcg@10>=+0.2", {"test": block(base=0.1, tuned=0.3)}) == []
    assert missed("ndcg@10>=+0.2", {"test": block(base=0.1, tuned=0.3 - 1e-9)}) == [
        "ndcg@10 on test is 0.299999999, 0.000000001 below the required 0.300000000 (base 0.100000000 + 0.2)"
    ]


def test_figures_are_compared_unrounded():
    """Both are 0.9261 in the table."""
    assert len(missed("ndcg@10>=+0", {"test": block(base=0.92614, tuned=0.92606)})) == 1


def test_every_requirement_that_is_not_met_is_said_in_order():
    found = missed("ndcg@10>=+0.5,ndcg@10>=0.1,validation:ndcg@10>=0.9")
    assert [phrase.split(" is ")[0] for phrase in found] == ["ndcg@10 on test", "ndcg@10 on validation"]


@pytest.mark.parametrize("metric", ["ndcg@10", OFFICIAL_NDCG])
def test_a_metric_that_the_labels_do_not_define_is_refused(metric):
    defined = {"validation": [*METRICS, OFFICIAL_NDCG], "test": ["spearman"], "all": ["spearman"]}
    says = rf"'{metric}>=0', but the labels of the test pairs do not define {metric}\. Require another metric"
    with pytest.raises(UserError, match=says):
        check_measurable(read_requirements(f"validation:{metric}>=0,{metric}>=0"), defined)
    check_measurable(read_requirements(f"validation:{metric}>=0,spearman>=0"), defined)
    with pytest.raises(UserError, match="the labels of the pairs do not define"):
        check_measurable(read_requirements(f"{metric}>=0"), {"all": ["spearman"]})


def test_the_error_says_what_is_missed_and_where_the_model_is():
    error = RequirementError(missed("ndcg@10>=0.94,validation:ndcg@10>=0.8"), Path("output/refused_model"))
    assert str(error) == (
        "the tuned model does not meet --require: "
        "ndcg@10 on test is 0.9261, 0.0139 below the required 0.9400; "
        "ndcg@10 on validation is 0.7500, 0.0500 below the required 0.8000. "
        "The model is kept in output/refused_model, model_dir is as it was."
    )
