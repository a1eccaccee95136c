"""A batch's labels against double loops, and what mined negatives add to it."""

from dataclasses import fields
from math import exp, log

import numpy as np
import pyarrow as pa
import pytest
import torch

from lorry.config import TrainConfig
from lorry.data.health import Health
from lorry.data.pairs import Pairs
from lorry.model.tokens import TokenizedTexts
from lorry.training.batches import make_batch
from lorry.training.objective import batch_loss

CPU = torch.device("cpu")
GAINS = np.array([0, 0.01, 0.1, 1], np.float32)


def pairs_of(query, text, gain, *, texts=None, teacher=None):
    """Return judged pairs; those of gain 0.1 or more are relevant."""
    query, text, gain = np.asarray(query, np.int32), np.asarray(text, np.int32), np.asarray(gain, np.float32)
    texts = [f"text {number}" for number in range(text.max() + 1)] if texts is None else texts
    return Pairs(
        queries=pa.array([f"query {number}" for number in range(query.max() + 1)], pa.large_string()),
        texts=pa.array(texts, pa.large_string()),
        query=query,
        text=text,
        gain=gain,
        relevant=gain >= np.float32(0.1),
        label=np.zeros(len(query), np.int8),
        label_names=("E",),
        health=Health(len(query), len(query), {}, {}, [], ""),
        teacher=None if teacher is None else np.asarray(teacher, np.float32),
    )


def random_pairs(rng, queries=9, texts=30, count=80, teacher=False):
    """Return pairs in random order, each of a query and a text once, with many equal gains."""
    cells = rng.choice(queries * texts, count, replace=False)
    cells[:2] = 0, queries * texts - 1  # the first and the last are there
    cells = rng.permutation(np.unique(cells))
    scores = rng.choice([0.1, 0.4, 0.4, 0.8, np.nan], len(cells)) if teacher else None
    return pairs_of(cells // texts, cells % texts, rng.choice(GAINS, len(cells)), teacher=scores)


def tokens_of(pairs):
    """Return a table of texts of one token each."""
    count = len(pairs.queries) + len(pairs.texts)
    return TokenizedTexts(np.arange(count, dtype=np.int32), np.arange(count + 1), len(pairs.queries))


def ordered(query, value):
    """Return every (higher, lower) of one query, by a double loop."""
    places = range(len(query))
    return sorted((i, j) for i in places for j in places if query[i] == query[j] and value[i] > value[j])


def both(higher, lower):
    return sorted(zip(higher.tolist(), lower.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_pairs_of_unequal_gain_are_those_of_a_double_loop(seed):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(rng)
    chosen = rng.permutation(len(pairs))[: rng.integers(1, len(pairs))]
    labels = make_batch(tokens_of(pairs), pairs, chosen, CPU).labels
    assert both(labels.better_P, labels.worse_P) == ordered(pairs.query[chosen], pairs.gain[chosen])
    assert labels.grade_B.tolist() == (pairs.gain[chosen] / pairs.gain.max()).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_pairs_that_the_teacher_orders_are_those_of_a_double_loop(seed):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(rng, teacher=True)
    chosen = rng.permutation(len(pairs))[:50]
    taught = make_batch(tokens_of(pairs), pairs, chosen, CPU).labels.teacher
    scores = pairs.teacher[chosen]
    rows = [row for row in range(50) if not np.isnan(scores[row])]
    assert 0 < len(rows) < 50
    assert taught.row_R.tolist() == rows
    assert taught.score_R.tolist() == scores[rows].tolist()
    assert both(taught.higher_P, taught.lower_P) == ordered(pairs.query[chosen][rows], scores[rows])


@pytest.mark.parametrize("chosen", [[0], [0, 1], [2, 0]])
def test_small_batches(chosen):
    pairs = pairs_of([0, 1, 0], [0, 1, 2], [1, 0, 0], teacher=[np.nan, 0.5, np.nan])
    labels = make_batch(tokens_of(pairs), pairs, np.array(chosen), CPU).labels
    assert both(labels.better_P, labels.worse_P) == ([(1, 0)] if chosen == [2, 0] else [])
    assert labels.teacher.row_R.tolist() == ([1] if chosen == [0, 1] else [])


def test_without_a_teacher_there_are_no_scores_of_one():
    pairs = pairs_of([0, 0], [0, 1], [1, 0])
    assert make_batch(tokens_of(pairs), pairs, np.arange(2), CPU).labels.teacher is None


def test_mined_negatives_are_rows_behind_those_of_the_pairs():
    rng = np.random.default_rng(3)
    pairs = random_pairs(rng, teacher=True)
    chosen = np.flatnonzero(pairs.query < 3)
    negatives = rng.integers(-1, len(pairs.texts), (len(pairs.queries), 4)).astype(np.int32)
    texts = tokens_of(pairs)
    plain, mined = make_batch(texts, pairs, chosen, CPU), make_batch(texts, pairs, chosen, CPU, negatives)
    assert mined.rows[: len(plain.rows)].tolist() == plain.rows.tolist()
    own = set(pairs.text[chosen].tolist())
    more = {int(text) for text in negatives[:3].ravel() if text >= 0} - own
    assert more
    assert sorted(mined.rows[len(plain.rows) :] - len(pairs.queries)) == sorted(more)
    assert (mined.queries, mined.pairs) == (plain.queries, plain.pairs)
    for item in fields(plain.labels):
        one, other = getattr(plain.labels, item.name), getattr(mined.labels, item.name)
        if item.name == "teacher":
            assert all(torch.equal(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
        else:
            assert torch.equal(one, other), item.name


def test_infonce_compares_with_the_mined_negatives_too():
    rng = np.random.default_rng(5)
    pairs = random_pairs(rng)
    chosen = rng.permutation(len(pairs))[:30]
    negatives = rng.integers(-1, len(pairs.texts), (len(pairs.queries), 3)).astype(np.int32)
    texts = tokens_of(pairs)
    batch = make_batch(texts, pairs, chosen, CPU, negatives)
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(len(texts), 8))), dim=-1)
    vectors_of_texts = vectors[texts.queries :].numpy()
    in_batch = [int(row) - texts.queries for row in batch.rows if row >= texts.queries]
    losses = []
    for row in chosen[pairs.relevant[chosen]]:
        query = pairs.query[row]
        own = {int(pairs.text[other]) for other in chosen if pairs.query[other] == query and pairs.relevant[other]}
        cosines = {text: float(vectors[query].numpy() @ vectors_of_texts[text]) / 0.1 for text in in_batch}
        apart = sum(exp(cosines[text]) for text in in_batch if text not in own)
        losses.append(-log(exp(cosines[pairs.text[row]]) / (exp(cosines[pairs.text[row]]) + apart)))
    config = TrainConfig(loss="infonce", temperature=0.1, hard_negatives=3)
    found = batch_loss(config, *batch.sides(vectors[batch.rows]), batch.labels)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-9)
    plain = make_batch(texts, pairs, chosen, CPU)
    assert len(plain.rows) < len(batch.rows)
    assert batch_loss(config, *plain.sides(vectors[plain.rows]), plain.labels) < found
    order = TrainConfig(loss="ranknet+lambda+listnet+cosent+bce+cosine+contrastive")
    one, other = (batch_loss(order, *each.sides(vectors[each.rows]), each.labels) for each in (plain, batch))
    assert torch.equal(one, other)
