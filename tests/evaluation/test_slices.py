"""Wins and losses by query, and the change within kinds of queries."""

import numpy as np
import pyarrow as pa
import pytest

from lorry.data.health import Health
from lorry.data.pairs import Pairs
from lorry.evaluation.metrics import evaluate
from lorry.evaluation.outcomes import outcomes
from lorry.evaluation.slices import slices, word_overlap


def make_pairs(rows, labels=("E", "I")):
    """Return the pairs of rows (query, text, label); E has gain 1 and is relevant, I has none."""
    queries, texts = (list(dict.fromkeys(row[side] for row in rows)) for side in (0, 1))
    label = np.array([labels.index(row[2]) for row in rows], np.int8)
    return Pairs(
        queries=pa.array(queries, pa.large_string()),
        texts=pa.array(texts, pa.large_string()),
        query=np.array([queries.index(row[0]) for row in rows], np.int32),
        text=np.array([texts.index(row[1]) for row in rows], np.int32),
        gain=(label == 0).astype(np.float32),
        relevant=label == 0,
        label=label,
        label_names=labels,
        health=Health(len(rows), len(rows), {}, {}, [], ""),
    )


ROWS = [
    ("lamp", "Lamp, brass", "E"), ("lamp", "sofa", "I"), ("lamp", "rug", "I"), ("lamp", "desk", "I"),
    ("red oak desk", "a desk of red wood", "E"), ("red oak desk", "chair", "I"),
    ("kettle", "boiler", "E"), ("kettle", "brass kettle", "I"),
    ("blue rug", "rug", "E"),
]  # fmt: skip
BASE = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.9, 0.2, 0.5])
TUNED = np.array([0.9, 0.1, 0.2, 0.3, 0.7, 0.2, 0.1, 0.9, 0.5])  # better for lamp, worse for kettle


@pytest.fixture
def pairs():
    return make_pairs(ROWS)


def test_every_query_is_a_win_a_tie_or_a_loss(pairs):
    found = outcomes(pairs.query, pairs.gain, pairs.relevant, BASE, TUNED)
    assert found == {
        "ndcg@10": {"wins": 1, "ties": 2, "losses": 1},
        "ndcg@10_rankable": {"wins": 1, "ties": 1, "losses": 1},  # blue rug cannot be ranked
        "mrr@10": {"wins": 1, "ties": 2, "losses": 1},
        "pair_accuracy": {"wins": 1, "ties": 1, "losses": 1},
    }


def test_the_overlap_is_the_share_of_the_querys_words_whatever_their_case(pairs):
    assert word_overlap(pairs) == pytest.approx([1, 0, 0, 0, 2 / 3, 0, 0, 1, 1 / 2])
    assert word_overlap(make_pairs([("--", "lamp", "E"), ("!", "sofa", "I")])).tolist() == [0, 0]


def test_slices_have_their_own_figures_and_leave_no_query_out(pairs):
    found = slices(pairs, BASE, TUNED, seed=0)
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert names == {
        "query_length": ["1 word", "2 words", "3 words"],
        "judged_products": ["head: 2 or more judged products", "tail: fewer"],
        "lexical_overlap": ["up to a third of the words", "a third to two thirds", "more than two thirds"],
        "label": ["E", "I"],
    }
    for kind in ("query_length", "judged_products", "lexical_overlap"):
        assert sum(row["queries"] for row in found[kind]) == 4
        assert sum(row["queries_rankable"] for row in found[kind]) == 3
        assert sum(row["pairs"] for row in found[kind]) == len(ROWS)
    one, two, three = found["query_length"]
    kept = np.isin(pairs.query, [0, 2])  # lamp and kettle
    for scorer, scores in (("base", BASE), ("tuned", TUNED)):
        figures = evaluate(pairs.query[kept], pairs.gain[kept], pairs.relevant[kept], scores[kept])
        assert one[scorer] == pytest.approx(figures["ndcg@10_rankable"])
    assert one["change"]["change"] == pytest.approx(one["tuned"] - one["base"])
    assert one["change"]["low"] < 0 < one["change"]["high"]
    assert (two["base"], two["tuned"], two["change"]) == (None, None, None)  # blue rug alone
    assert (three["base"], three["change"]) == (1, None)  # one query has no interval


def test_labels_have_their_mean_cosine(pairs):
    relevant, rest = slices(pairs, BASE, TUNED, seed=0)["label"]
    assert (relevant["relevant"], relevant["pairs"], rest["relevant"], rest["pairs"]) == (True, 4, False, 5)
    assert relevant["base"] == pytest.approx(BASE[pairs.relevant].mean())
    assert rest["change"]["change"] == pytest.approx((TUNED - BASE)[~pairs.relevant].mean())
