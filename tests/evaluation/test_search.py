"""Full-catalogue search: what it is made of, and what it finds."""

import threading

import bm25s
import numpy as np
import pyarrow as pa
import pytest
import torch
from test_slices import make_pairs

from lorry.evaluation import search
from lorry.evaluation.catalogue import make_catalogue
from lorry.evaluation.evidence import product_embeddings
from lorry.evaluation.search import bm25_search, compare_searches, fuse, measure, nearest
from lorry.signals import StopRequestedError

TRAIN = make_pairs([("sofa", f"product {number}", "EI"[number % 2]) for number in range(300)])
TEST = make_pairs([
    ("red lamp", "a red lamp", "E"), ("red lamp", "lamp, red", "E"), ("red lamp", "red sofa", "I"),
    ("oak desk", "desk", "E"), ("oak desk", "product 7", "I"), ("rug", "lamp", "I"),
])  # fmt: skip
SPLITS = {"train": TRAIN, "test": TEST}


@pytest.fixture
def catalogue():
    return make_catalogue(SPLITS, 100_000, 0, but="train")


def test_the_catalogue_has_every_product_once_and_only_queries_with_something_to_find(catalogue):
    texts = catalogue.texts.to_pylist()
    assert sorted(texts) == sorted({*TRAIN.texts.to_pylist(), *TEST.texts.to_pylist()})
    assert (len(catalogue), catalogue.all, set(catalogue.queries)) == (305, 305, {"test"})
    asked = catalogue.queries["test"]
    assert [TEST.queries[int(row)].as_py() for row in asked.rows] == ["red lamp", "oak desk"]  # rug has none
    judged = [
        (texts[row], query, gain) for row, query, gain in zip(asked.products, asked.query, asked.gain, strict=True)
    ]
    assert ("desk", 1, 1) in judged
    assert ("product 7", 1, 0) in judged
    for split, pairs in SPLITS.items():  # every product comes from one split
        rows = catalogue.rows[split]
        assert all(pairs.texts[int(row)].as_py() == texts[place] for place, row in enumerate(rows) if row >= 0)
    assert ((catalogue.rows["train"] >= 0) ^ (catalogue.rows["test"] >= 0)).all()
    assert catalogue.in_train.sum() == 300


def test_of_too_many_products_those_judged_stay_and_the_others_are_a_sample_by_seed():
    one, same, other = (make_catalogue(SPLITS, 50, seed, but="train") for seed in (0, 0, 1))
    assert (len(one), one.all) == (50, 305)
    assert {"a red lamp", "lamp, red", "red sofa", "desk", "product 7"} <= set(one.texts.to_pylist())
    assert one.texts.equals(same.texts)
    assert not one.texts.equals(other.texts)
    assert len(make_catalogue(SPLITS, 1, 0, but="train")) == 5


def test_embeddings_of_the_catalogue_are_those_of_its_texts(catalogue):
    def embed(texts):
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)))] for text in texts])

    test_TD = embed(TEST.texts.to_pylist())
    rows = catalogue.rows["train"]
    train_PD = embed([TRAIN.texts[int(row)].as_py() for row in rows if row >= 0])
    assert torch.equal(product_embeddings(catalogue, {"test": test_TD}, train_PD), embed(catalogue.texts.to_pylist()))


def test_search_by_blocks_is_search_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query_QD, product_CD = (torch.randn(count, 8, generator=generator) for count in (37, 500))
    expected = torch.topk(query_QD @ product_CD.T, 100).indices.numpy()
    monkeypatch.setattr(search, "SCORES_AT_ONCE", 2_000)  # four queries at a time
    topk, sizes = torch.topk, []
    monkeypatch.setattr(torch, "topk", lambda scores, depth: sizes.append(scores.numel()) or topk(scores, depth))
    assert (nearest(query_QD, product_CD) == expected).all()
    assert (max(sizes), len(sizes)) == (2_000, 10)


def test_bm25_finds_what_its_library_finds(catalogue):
    found = bm25_search(catalogue, SPLITS)["test"]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(catalogue.texts.to_pylist(), show_progress=False), show_progress=False)
    for row, query in enumerate(["red lamp", "oak desk"]):
        tokens = bm25s.tokenize([query], show_progress=False)
        products, scores = index.retrieve(tokens, k=5, show_progress=False)
        hits = products[0][scores[0] > 0].tolist()
        assert sorted(found[row][: len(hits)].tolist()) == sorted(hits)
        assert (found[row][len(hits) :] == -1).all()  # what shares no word is not found


def test_fusion_is_by_the_sum_of_reciprocal_ranks():
    one, other = np.array([[3, 5, 9, -1]]), np.array([[5, 7, -1, -1]])
    score = {3: 1 / 61, 5: 1 / 62 + 1 / 61, 9: 1 / 63, 7: 1 / 62}
    assert fuse(one, other).tolist() == [sorted(score, key=lambda product: -score[product])]
    assert fuse(np.array([[-1, -1]]), np.array([[4, 2]])).tolist() == [[4, 2]]


def test_the_metrics_are_those_of_arithmetic_by_hand(catalogue):
    asked, texts = catalogue.queries["test"], catalogue.texts.to_pylist()
    lamps = [texts.index("a red lamp"), texts.index("lamp, red")]
    others = [texts.index(f"product {number}") for number in range(98)]
    found = np.array([[others[0], lamps[1], *others[1:98], lamps[0]], [*others[:98], texts.index("desk"), -1]])
    result = measure(found, asked, len(catalogue))
    assert result["recall@10"].tolist() == [0.5, 0]
    assert result["recall@100"].tolist() == [1, 1]
    assert result["mrr@10"].tolist() == [0.5, 0]
    assert result["ndcg@10"] == pytest.approx([(1 / np.log2(3)) / (1 + 1 / np.log2(3)), 0])


def test_perfect_search_scores_1(catalogue):
    asked = catalogue.queries["test"]
    best = np.full((2, 100), -1)
    for query in (0, 1):
        relevant = asked.products[(asked.query == query) & asked.relevant]
        best[query, : len(relevant)] = relevant
    said, models, hybrid, change = compare_searches(catalogue, "test", best, {"a": best, "b": best}, seed=0)
    assert said["bm25"] == models["a"] == models["b"] == hybrid["b"] == dict.fromkeys(said["bm25"], 1.0)
    assert (said["products"], said["queries"], said["queries_all"]) == (305, 2, 2)
    assert change["b"]["ndcg@10"]["change"] == 0


def test_a_stop_is_heard_while_searching(catalogue):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError):
        bm25_search(catalogue, SPLITS, stop)
    with pytest.raises(StopRequestedError):
        nearest(torch.ones(3, 2), torch.ones(5, 2), stop)


def test_texts_without_a_word_are_searched_without_finding_anything():
    splits = {"test": make_pairs([("?", "!", "E"), ("?", "--", "I")])}
    found = bm25_search(make_catalogue(splits, 10, 0), splits)
    assert (found["test"] == -1).all()
    assert pa.compute.equal(splits["test"].queries[0], "?").as_py()
