"""The report, the model card and the printed table, made from facts as a run would hand them over."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import ModelCard

from lorry.config import TrainConfig, as_dict
from lorry.data.pairs import Health, Pairs
from lorry.evaluation.metrics import evaluate
from lorry.names import METRICS
from lorry.report.page import (
    QueryChange,
    ReportFacts,
    ScoresByLabel,
    judge,
    query_changes,
    summary_table,
    write_model_card,
    write_report,
)

NO_CHARTS = {"log": [], "scores": {}}  # drawing takes most of the time
EVIL = '<script>alert("$x$ & y")</script>'


def block(**tuned):
    low = dict.fromkeys(METRICS, 0.5)
    base = dict.fromkeys(METRICS, 0.7)
    return {"pairs": 1200, "queries": 90, "random": low, "bm25": {**low}, "base": base, "tuned": {**base, **tuned}}


def make_facts(**changes):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    facts = ReportFacts(
        metrics={
            "splits": {"validation": block(), "test": block(**{"ndcg@10": 0.75})},
            "training": {
                "pairs": 5000,
                "tokens": 123_456,
                "seconds": 3725.0,
                "pairs_per_second": 340.0,
                "tokens_per_second": 9100.0,
                "peak_memory_bytes": 2**31,
                "steps": 40,
            },
        },
        config=as_dict(TrainConfig(train="/home/me/secret/train", lr=0.00123)),
        command="lorry train --train '/home/me/secret/train' --lr 0.00123",
        environment={"device": "CPU", "precision": "bf16", "torch": "2.13.0"},
        log=[{"step": step, "loss": 2 / step, "lr": 1e-3} for step in range(10, 2000, 10)]
        + [{"step": step, "eval_loss": 1.0, "ndcg@10": 0.7 + step / 1e5} for step in (0, 1000, 2000)],
        intervals={"test": {"ndcg@10": (0.04, 0.06), "pair_accuracy": (-0.01, 0.02)}},
        scores={"test": ScoresByLabel(("E", "I"), label, rng.random(400), rng.random(400))},
        health={
            "train": Health(110, 100, {"missing text": 10}, {"missing text": ["a.csv row 3"]}, ["a.csv"], "0/1 pairs")
        },
        changes=[
            QueryChange("saw", 0.5, 0.9, "hammer", "hand saw", "I", "E"),
            QueryChange("nail", 0.9, 0.4, "nails", "nail polish", "E", "I"),
        ],
    )
    return dataclasses.replace(facts, **changes)


def page(tmp_path, facts):
    return write_report(tmp_path, facts).read_text("utf-8")


class Strict(HTMLParser):
    """Collects text, and fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def visible(html):
    parser = Strict()
    parser.feed(html)
    assert parser.open == []
    return " ".join(parser.text.split())


def test_page_says_what_happened(tmp_path):
    text = visible(page(tmp_path, make_facts()))
    for words in (
        "The tuned model ranks better than the base model on the test split (90 queries).",
        "nDCG@10 0.7000 → 0.7500 (+0.0500; 95 % interval +0.0400 to +0.0600).",
        "1,200 judged pairs, 90 queries",
        "1 h 02 min",
        "2.00 GiB",
        "missing text 10 a.csv row 3",
        "saw 0.50 → 0.90 hammer (I) hand saw (E)",
        "nail 0.90 → 0.40 nails (E) nail polish (I)",
        "lorry train --train '/home/me/secret/train' --lr 0.00123",
        "lora_rank 8",
        "torch 2.13.0",
    ):
        assert words in text, words
    assert text.index("1,200 judged pairs") > text.index("Before and after test")  # the judged split comes first


def test_page_is_self_contained_and_light(tmp_path):
    html = page(tmp_path, make_facts())
    assert not re.search(r"<(script|link|img|iframe|object)\b", html)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.count("<svg") == 3
    assert len(html) < 200_000
    ids = re.findall(r'\bid="([^"]+)"', html)
    # tick marks are defined once a chart; a clip path of one chart must not catch another's
    assert len(set(re.findall(r'<clipPath id="([^"]+)"', html))) == html.count("<clipPath")
    assert not any(name.startswith(("figure_", "axes_")) for name in ids)


def test_user_text_is_escaped_everywhere(tmp_path):
    facts = make_facts(
        config={**as_dict(TrainConfig()), "pretrained_model": EVIL},
        command=EVIL,
        environment={EVIL: EVIL},
        scores={EVIL: ScoresByLabel((EVIL, "I"), np.array([0, 1, 0, 1]), np.arange(4.0), np.arange(4.0))},
        health={EVIL: Health(2, 1, {EVIL: 1}, {EVIL: [EVIL]}, [EVIL], EVIL)},
        changes=[QueryChange(EVIL, 0.1, 0.2, EVIL, EVIL, EVIL, EVIL)],
    )
    html = page(tmp_path, facts)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 12
    assert EVIL in visible(html)


def test_page_has_what_there_is(tmp_path):
    bare = make_facts(**NO_CHARTS, health={}, changes=[], intervals={})
    text = visible(page(tmp_path, bare))
    assert "Before and after" in text
    for heading in ("Similarity by label", "Queries that changed most", "Loss"):
        assert heading not in text


def test_same_facts_give_the_same_page(tmp_path):
    assert page(tmp_path, make_facts()) == page(tmp_path, make_facts())


def test_nothing_half_written(tmp_path):
    write_report(tmp_path, make_facts(**NO_CHARTS))
    before = (tmp_path / "report.html").read_bytes()
    broken = make_facts(environment={"device": "\ud800"}, **NO_CHARTS)  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        write_report(tmp_path, broken)
    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("intervals", "kind", "words"),
    [
        ({"ndcg@10": (0.01, 0.02)}, "better", "ranks better than the base model on the test split"),
        ({"ndcg@10": (-0.02, -0.01), "mrr@10": (-0.1, 0.1)}, "worse", "ranks worse than the base model"),
        ({"ndcg@10": (-0.01, 0.01)}, "unclear", "No clear difference"),
        ({"ndcg@10": (0.0, 0.0)}, "unclear", "No clear difference"),
        ({"ndcg@10": (0.01, 0.02), "pair_accuracy": (-0.2, -0.1)}, "mixed", "nDCG@10 better, Pair accuracy worse"),
        ({}, "unclear", "cannot be judged"),
    ],
)
def test_verdict_follows_the_intervals(intervals, kind, words):
    verdict = judge(make_facts(intervals={"test": intervals}))
    assert verdict.kind == kind
    assert words in verdict.headline


def test_verdict_tells_what_must_be_known():
    splits = {"validation": {**block(), "bm25": dict.fromkeys(METRICS, 0.8), "random": dict.fromkeys(METRICS, 0.71)}}
    facts = make_facts(
        metrics={**make_facts().metrics, "splits": splits}, undefined={"validation": ["roc_auc"]}, stopped_at=1234
    )
    assert judge(facts).caveats == [
        "BM25, which needs no training, scores higher still: nDCG@10 0.8000 against 0.7000.",
        "Random order scores higher still: nDCG@10 0.7100 against 0.7000.",
        "There is no test split: these queries were held out of training, but watched during it.",
        "Not defined here, because the labels do not differ: ROC-AUC.",
        "The run was stopped at step 1,234, before its end: the model is as trained so far.",
    ]
    assert judge(make_facts()).caveats == []


def test_labels_that_do_not_differ(tmp_path):
    facts = make_facts(undefined={"test": list(METRICS)}, **NO_CHARTS)
    assert "cannot be judged" in judge(facts).headline
    assert visible(page(tmp_path, facts)).count("not defined: the labels of this split do not differ") == len(METRICS)


def test_query_changes_are_the_largest_with_their_top_products():
    # Three queries of two products, the second one good; base ranks the good one last, first, first.
    pairs = Pairs(
        queries=pa.array(["saw", "nail", "glue"], pa.large_string()),
        texts=pa.array([f"text {i}" for i in range(6)], pa.large_string()),
        query=np.repeat(np.arange(3, dtype=np.int32), 2),
        text=np.arange(6, dtype=np.int32),
        gain=np.tile(np.float32([0, 1]), 3),
        relevant=np.tile([False, True], 3),
        label=np.tile(np.int8([1, 0]), 3),
        label_names=("E", "I"),
        health=Health(6, 6, {}, {}, [], "0/1 pairs"),
    )
    base, tuned = np.array([0.9, 0.1, 0.1, 0.9, 0.1, 0.9]), np.array([0.1, 0.9, 0.9, 0.1, 0.1, 0.9])
    half = pytest.approx(1 / np.log2(3))
    assert query_changes(pairs, base, tuned) == [
        QueryChange("saw", half, 1.0, "text 0", "text 1", "I", "E"),
        QueryChange("nail", 1.0, half, "text 3", "text 2", "E", "I"),
    ]
    assert query_changes(pairs, base, base) == []


def test_summary_table_lines_up():
    metrics = {"splits": {"test": block(spearman=-0.25, **{"ndcg@10": 0.75, "ndcg@10_official_scorer": 0.5})}}
    for scorer in ("random", "bm25", "base"):
        metrics["splits"]["test"][scorer]["ndcg@10_official_scorer"] = 0.25
    lines = summary_table(metrics, "test").splitlines()
    assert lines[0] == "test: 1,200 pairs, 90 queries"
    assert lines[1].split() == ["random", "BM25", "base", "tuned", "change"]
    assert lines[2].split() == ["ndcg@10", "0.5000", "0.5000", "0.7000", "0.7500", "+0.0500"]
    assert [line.split()[0] for line in lines[2:]] == [*METRICS, "ndcg@10_official_scorer"]
    assert lines[6].endswith("0.7000  -0.2500  -0.9500")
    assert len({len(line) for line in lines[1:]}) == 1


def test_takes_what_evaluate_returns(tmp_path):
    query, gain = np.repeat(np.arange(4), 3), np.tile([1.0, 0.1, 0.0], 4)
    found = evaluate(query, gain, gain > 0.05, np.arange(12.0), official_gain=gain)
    splits = {"test": {"pairs": 12, "queries": 4, "random": found, "bm25": found, "base": found, "tuned": found}}
    facts = make_facts(metrics=json.loads(json.dumps({**make_facts().metrics, "splits": splits})), **NO_CHARTS)
    assert "official scorer’s gains" in visible(page(tmp_path, facts))


def card(tmp_path, facts):
    write_model_card(tmp_path, facts)
    return ModelCard((tmp_path / "README.md").read_text("utf-8"))


def test_model_card(tmp_path):
    found = card(tmp_path, make_facts())
    assert found.data.library_name == "sentence-transformers"
    assert found.data.pipeline_tag == "sentence-similarity"
    assert found.data.base_model == "TaylorAI/gte-tiny"
    assert found.data.license is None
    for words in (
        "SentenceTransformer(",
        "AutoModel.from_pretrained",
        "text-embeddings-inference",
        "| lora_rank | 8 |",
    ):
        assert words in found.text
    assert "| nDCG@10 | 0.5000 | 0.5000 | 0.7000 | 0.7500 | +0.0500 |" in found.text
    # nothing of the user's data, files or machine
    for private in ("secret", "a.csv", "hand saw", "nail polish"):
        assert private not in found.content


@pytest.mark.parametrize(
    ("model", "base_model"),
    [("bundled", "sentence-transformers/all-MiniLM-L6-v2"), ("/home/me/base", None), (".", None)],
)
def test_model_card_names_a_base_on_the_hub_only(tmp_path, model, base_model):
    found = card(tmp_path, make_facts(config=as_dict(TrainConfig(pretrained_model=model))))
    assert found.data.base_model == base_model
    assert "/home/me" not in found.content


def test_model_card_is_no_hub_id_where_it_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert (
        card(tmp_path, make_facts(config=as_dict(TrainConfig(pretrained_model="models/mine")))).data.base_model is None
    )


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [2.0, 3.0]), ("cls", [1.0, 2.0]), ("lasttoken", [3.0, 4.0])]
)
def test_model_card_pools_as_the_model_does(tmp_path, pooling, expected):
    """Runs the card's own pooling line on a sequence of two tokens and one of padding."""
    import torch

    text = card(tmp_path, make_facts(pooling=pooling)).text
    lines = re.search(r'mask = batch\["attention_mask"\]\n(.*?)vectors = ', text, re.DOTALL).group(1)
    names = {"torch": torch, "mask": torch.tensor([[1, 1, 0]]), "hidden": torch.tensor([[[1.0, 2], [3, 4], [9, 9]]])}
    exec(lines, names)
    assert names["pooled"].tolist() == [expected]
