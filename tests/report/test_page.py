"""The page, made from facts as a run would hand them over."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_facts import NO_CHARTS, make_facts, overlapping, with_evidence

from lorry.config import TrainConfig
from lorry.data.health import Health
from lorry.evaluation.metrics import evaluate
from lorry.names import METRICS
from lorry.options import as_dict
from lorry.outputs import OutputError
from lorry.report.changes import QueryChange
from lorry.report.page import write_report
from lorry.report.similarities import spread_by_label

EVIL = '<script>alert("$x$ & y")</script>'


def page(tmp_path, facts):
    write_report(tmp_path / "report.html", facts)
    return (tmp_path / "report.html").read_text("utf-8")


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


def test_the_page_shows_the_evidence(tmp_path):
    html = page(tmp_path, with_evidence())
    text = visible(html)
    for words in (
        "Customers will see better results. Of 80 queries that nobody trained on, 41 have their products in a better "
        "order, 9 in a worse one, and 30 are as before.",
        "The best product stands first in 61 of 100 searches; it was 50.",
        "2 words 45 0.7000 0.7500 +0.0500 +0.0400 to +0.0600",
        "1 word 45 – – –",
        "among 500 products, a sample of 900",
        "BM25 + tuned 0.2000 0.4000 0.3000 0.2500",
        "tuned minus base +0.1000 +0.0900 to +0.1100",
        "threshold (cosine) 0.4100 F1 0.8500",
        "fitted on the validation pairs and measured on the test pairs",
        "binary 384 0.048 GB 0.7000 –",
        "centred 0.6000 0.6000",
        "On 1,500 pairs of another kind, Spearman is 0.8670 with the base model and 0.8640 with the tuned one",
        "evaluation 4 min 00 s 6%",
        "expected training to take 1 h 00 min; it took 1 h 02 min.",
        "This time costs $0.82 on 1 × ml.g4dn.xlarge at $0.7364 an hour (on demand, July 2026).",
        "Change on sampled validation queries",
    ):
        assert words in text, words
    for label in (
        "Changes with their 95% intervals: nDCG@10, rankable queries +0.050, +0.040 to +0.060;",
        "Queries that changed: nDCG@10, rankable queries: 41 better, 30 as before, 9 worse",
        "Predicted share of relevant pairs against the true one: 0.05 was 0.02,",
    ):
        assert f'role="img" aria-label="{label}' in html, label


def test_pairs_that_validation_holds_out_of_train_are_counted_there_alone(tmp_path):
    """The rows read are those of train; neither they nor their files are said to be validation's."""
    train = make_facts().health["train"]
    facts = make_facts(health={"train": train, "validation": train}, used={"train": 80, "validation": 20}, **NO_CHARTS)
    text = visible(page(tmp_path, facts))
    assert "train 0/1 pairs 110 10 20 80" in text
    assert "validation held out of the training pairs: no query is on both sides 20" in text
    assert text.count("a.csv row 3") == 1
    assert "validation: a.csv" not in text


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
    assert html.count("<svg") == 4
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", html)
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
        similarities={EVIL: spread_by_label((EVIL, "I"), np.array([0, 1, 0, 1]), np.arange(4.0), np.arange(4.0))},
        health={EVIL: Health(2, 1, {EVIL: 1}, {EVIL: [EVIL]}, [EVIL], EVIL, {EVIL: EVIL})},
        changes=[QueryChange(EVIL, 0.1, 0.2, EVIL, EVIL, EVIL, EVIL)],
    )
    facts = dataclasses.replace(facts, metrics=with_evidence(EVIL).metrics)
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
    write_report(tmp_path / "report.html", make_facts(**NO_CHARTS))
    before = (tmp_path / "report.html").read_bytes()
    broken = make_facts(environment={"device": "\ud800"}, **NO_CHARTS)  # cannot be encoded
    with pytest.raises(OutputError):
        write_report(tmp_path / "report.html", broken)
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
