"""BM25 against the library's own scores and a hand-worked case; edge cases of its vocabulary; random order."""

import logging

import bm25s
import numpy as np
import pyarrow as pa
import pytest

from lorry.evaluation.baselines import bm25_scores, random_scores
from lorry.evaluation.metrics import evaluate

TEXTS = ["red garden hose", "garden rake", "blue hose clamp 12", "cordless drill"]


def test_one_word_by_hand():
    # "rake" is in 1 of 4 texts: idf = ln(1 + (4 - 1 + .5) / (1 + .5)) = ln(10/3); tf 1 in a text of 2 words, mean
    # length (3 + 2 + 4 + 2) / 4 = 2.75: tf / (tf + 1.5 * (1 - .75 + .75 * 2 / 2.75))
    found = bm25_scores(["rake"], TEXTS, np.zeros(4, int), np.arange(4))
    assert found == pytest.approx([0, np.log(10 / 3) / (1 + 1.5 * (0.25 + 0.75 * 2 / 2.75)), 0, 0])


def test_agrees_with_the_library():
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(200)])
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(300)]
    queries = [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(40)]
    queries[3] = "word1 Word1 word2, never-seen"
    query, text = rng.integers(0, 40, 2000), rng.permutation(np.arange(2000) % 300)

    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    every = np.stack([index.get_scores_from_ids(index.get_tokens_ids(words)) for words in asked])
    assert bm25_scores(queries, texts, query, text) == pytest.approx(every[query, text], abs=1e-5)


def test_arrow_columns_and_lists_are_alike():
    query, text = np.array([0, 1, 1, 0]), np.array([0, 2, 3, 1])
    queries = ["garden hose", "drill"]
    plain = bm25_scores(queries, TEXTS, query, text)
    arrow = bm25_scores(pa.array(queries, pa.large_string()), pa.chunked_array([TEXTS[:1], TEXTS[1:]]), query, text)
    assert plain.tolist() == arrow.tolist()
    assert plain.tolist() == bm25_scores(queries, TEXTS, query, text).tolist()


def test_only_texts_of_the_pairs_make_the_collection():
    query, text = np.zeros(2, int), np.array([0, 1])
    alone = bm25_scores(["rake"], TEXTS[:2], query, text)
    assert bm25_scores(["rake", "drill"], TEXTS, query, text).tolist() == alone.tolist()


@pytest.mark.parametrize("queries", [["", "the"], ["zebra", "!?"]])
@pytest.mark.parametrize("texts", [TEXTS, ["the", "of a"], ["", "x 1"], ["", "drill"]])
def test_no_shared_word_scores_zero(queries, texts):
    assert bm25_scores(queries, texts, np.array([0, 1]), np.array([0, 1])).tolist() == [0, 0]


def test_silent(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        bm25_scores(["rake"], TEXTS, np.zeros(4, int), np.arange(4))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_random_order_knows_nothing():
    scores = random_scores(20_000, seed=1)
    gain = np.arange(20_000) % 2
    found = evaluate(np.arange(20_000) // 20, gain, gain > 0, scores)
    assert found["roc_auc"] == pytest.approx(0.5, abs=0.02)
    assert found["pair_accuracy"] == pytest.approx(0.5, abs=0.02)
    assert scores.tolist() == random_scores(20_000, seed=1).tolist()
    assert scores.tolist() != random_scores(20_000, seed=2).tolist()
