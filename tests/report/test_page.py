"""The page, made from facts as a run would hand them over."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_facts import NO_CHARTS, make_facts, overlapping

from lorry.config import TrainConfig, as_dict
from lorry.data.health import Health
from lorry.evaluation.metrics import evaluate
from lorry.names import METRICS
from lorry.outputs import OutputError
from lorry.report.changes import QueryChange
from lorry.report.facts import ScoresByLabel
from lorry.report.page import write_report

EVIL = '<script>alert("$x$ & y")</script>'


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
        "The tuned model ranks better than the base model: nDCG@10 0.7000 → 0.7500 over the 80 queries",
        "nDCG@10, rankable queries 0.7000 → 0.7500 (+0.0500; 95% interval +0.0400 to +0.0600, p 0.001).",
        "1,200 judged pairs, 90 queries",
        "1 h 02 min",
        "2.00 GiB",
        "missing text 10 a.csv row 3",
        "train: notes.txt: of another format, .txt",
        "test: none of the 90 queries is a training query.",
        "saw 0.50 → 0.90 hammer (I) hand saw (E)",
        "nail 0.90 → 0.40 nails (E) nail polish (I)",
        "lorry train --train '/home/me/secret/train' --lr 0.00123",
        "lora_rank 16",
        "small_version false",
        "checkpoint_dir –",
        "torch 2.13.0",
    ):
        assert words in text, words
    assert text.index("1,200 judged pairs") > text.index("Before and after test")  # that of the verdict is first


def test_the_page_says_what_the_test_split_shares_with_training(tmp_path):
    shared = "12 of the 90 queries and 1,034 of the 1,200 pairs are training queries and pairs as well"
    text = visible(page(tmp_path, overlapping()))
    assert f"Of the test split, {shared}: the figures may be too good." in text
    assert f"test: {shared}." in text


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
        health={EVIL: Health(2, 1, {EVIL: 1}, {EVIL: [EVIL]}, [EVIL], EVIL, {EVIL: EVIL})},
        changes=[QueryChange(EVIL, 0.1, 0.2, EVIL, EVIL, EVIL, EVIL)],
    )
    html = page(tmp_path, facts)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 12
    assert EVIL in visible(html)


def test_page_has_what_there_is(tmp_path):
    bare = make_facts(**NO_CHARTS, health={}, changes=[], differences={})
    text = visible(page(tmp_path, bare))
    assert "Before and after" in text
    for heading in ("Similarity by label", "Queries that changed most", "Loss", "not read"):
        assert heading not in text


def test_same_facts_give_the_same_page(tmp_path):
    assert page(tmp_path, make_facts()) == page(tmp_path, make_facts())


def test_nothing_half_written(tmp_path):
    write_report(tmp_path, make_facts(**NO_CHARTS))
    before = (tmp_path / "report.html").read_bytes()
    broken = make_facts(environment={"device": "\ud800"}, **NO_CHARTS)  # cannot be encoded
    with pytest.raises(OutputError):
        write_report(tmp_path, broken)
    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_labels_that_do_not_differ(tmp_path):
    facts = make_facts(undefined={"test": list(METRICS)}, **NO_CHARTS)
    text = visible(page(tmp_path, facts))
    assert "Ranking cannot be compared" in text
    assert text.count("not defined: the labels of this split do not differ") == len(METRICS)


def test_takes_what_evaluate_returns(tmp_path):
    query, gain = np.repeat(np.arange(4), 3), np.tile([1.0, 0.1, 0.0], 4)
    found = evaluate(query, gain, gain > 0.05, np.arange(12.0), official_gain=gain)
    counts = {"pairs": 12, "queries": 4, "queries_rankable": 4}
    splits = {"test": {**counts, "random": found, "bm25": found, "base": found, "tuned": found}}
    facts = make_facts(metrics=json.loads(json.dumps({**make_facts().metrics, "splits": splits})), **NO_CHARTS)
    text = visible(page(tmp_path, facts))
    assert text.count("nDCG@10, official ESCI scorer") == 2  # in the table, and explained
    assert "official ESCI scorer" not in visible(page(tmp_path, make_facts(**NO_CHARTS)))
