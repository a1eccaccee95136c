"""Mined negatives against a slow search: clearly less similar than what is relevant, and judged by nobody."""

import threading

import numpy as np
import pytest
import torch
from test_batches import pairs_of, random_pairs

from lorry.signals import StopRequestedError
from lorry.training import mining
from lorry.training.mining import mine

COUNT = 5


def embeddings_of(pairs, seed, shift=0.5):
    """Return embeddings of queries and texts, not of unit length; with `shift`, most cosines are above 0."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(len(side), 6, generator=random) + shift for side in (pairs.queries, pairs.texts)]


def slow(query_QD, text_TD, pairs, count):
    """Return what `mine` should, text by text."""
    cosine = torch.nn.functional.cosine_similarity(query_QD[:, None], text_TD[None], dim=-1).numpy()
    words = [text.casefold() for text in pairs.texts.to_pylist()]
    found = np.full((len(query_QD), count), -1)
    for query in range(len(query_QD)):
        own = pairs.query == query
        judged = {words[text] for text in pairs.text[own]}
        relevant = [cosine[query, text] for text in pairs.text[own & pairs.relevant]]
        if not relevant:
            continue
        limit = min(relevant) * (0.95 if min(relevant) > 0 else 1)
        free = [text for text in range(len(words)) if words[text] not in judged and cosine[query, text] < limit]
        free.sort(key=lambda text: -cosine[query, text])
        wanted = max(count - int((own & ~pairs.relevant).sum()), 0)
        found[query, : len(free[:wanted])] = free[:wanted]
    return found


def with_repeated_texts(pairs):
    """Return pairs of which every third text reads as the one before it up to case."""
    texts = [f"Größe {number // 3 * 2 + min(number % 3, 1)}" for number in range(len(pairs.texts))]
    texts = [text.upper() if number % 3 == 2 else text for number, text in enumerate(texts)]
    return pairs_of(pairs.query, pairs.text, pairs.gain, texts=texts)


@pytest.mark.parametrize("shift", [0.5, 0.0])
@pytest.mark.parametrize("seed", range(6))
def test_negatives_are_those_of_a_slow_search(seed, shift):
    pairs = with_repeated_texts(random_pairs(np.random.default_rng(seed), queries=15, texts=60, count=90))
    sides = embeddings_of(pairs, seed, shift)
    expected = slow(*sides, pairs, COUNT)
    found = mine(*sides, pairs, COUNT)
    assert found.tolist() == expected.tolist()
    filled = (expected >= 0).sum(1)
    assert filled.min() == 0
    assert filled.max() >= COUNT - 2


@pytest.mark.parametrize("cells", [1, 130, 1000])
def test_a_few_queries_at_a_time_give_the_same(cells, monkeypatch):
    pairs = random_pairs(np.random.default_rng(1), queries=15, texts=60, count=90)
    sides = embeddings_of(pairs, 1)
    expected = mine(*sides, pairs, COUNT)
    assert (expected >= 0).any()
    monkeypatch.setattr(mining, "CELLS", cells)
    monkeypatch.setattr(mining, "PAIRS_AT_ONCE", 7)
    assert mine(*sides, pairs, COUNT).tolist() == expected.tolist()


def in_the_plane(cosines):
    return torch.tensor([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines])


def test_only_what_is_clearly_less_similar_than_every_relevant_text():
    # Relevant: .9 and .8, so that negatives are below .76; the two of .77 and .85 may well be relevant.
    pairs = pairs_of([0, 0], [0, 1], [1, 0.1], texts=["a", "b", "c", "d", "e", "f"])
    texts = in_the_plane([0.9, 0.8, 0.77, 0.3, 0.75, 0.85])
    assert mine(torch.tensor([[2.0, 0.0]]), texts, pairs, 4).tolist() == [[4, 3, -1, -1]]


def test_what_is_more_similar_than_a_relevant_text_is_no_negative_where_similarities_are_below_0():
    pairs = pairs_of([0], [0], [1], texts=["a", "b", "c"])
    assert mine(torch.tensor([[1.0, 0.0]]), in_the_plane([-0.5, -0.48, -0.6]), pairs, 2).tolist() == [[2, -1]]


@pytest.mark.parametrize(("judged", "mined"), [(0, [5, 4, 3]), (1, [5, 4, -1]), (2, [5, -1, -1]), (3, [-1, -1, -1])])
def test_texts_judged_irrelevant_come_first(judged, mined):
    pairs = pairs_of([0] * (1 + judged), range(1 + judged), [1] + [0] * judged, texts=list("abcdef"))
    found = mine(torch.tensor([[1.0, 0.0]]), in_the_plane([0.9, 0.1, 0.2, 0.3, 0.4, 0.5]), pairs, 3)
    assert found.tolist() == [mined]


def test_a_query_without_a_relevant_text_gets_none():
    pairs = pairs_of([0, 1], [0, 1], [0, 1], texts=["a", "b", "c"])
    texts = in_the_plane([0.9, 0.8, 0.2])
    assert mine(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), texts, pairs, 2).tolist() == [[-1, -1], [2, -1]]


def test_what_reads_like_a_judged_text_is_not_taken_however_often_it_is_there():
    pairs = pairs_of([0], [0], [1], texts=["Red Lamp", "red lamp", "RED LAMP", "RED lamp", "red LAMP", "sofa"])
    texts = in_the_plane([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    assert mine(torch.tensor([[1.0, 0.0]]), texts, pairs, 1).tolist() == [[5]]


def test_a_stop_ends_it():
    pairs = random_pairs(np.random.default_rng(1))
    stop = threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError):
        mine(*embeddings_of(pairs, 1), pairs, COUNT, stop)
