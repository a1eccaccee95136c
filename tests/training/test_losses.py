"""The losses against arithmetic done by hand."""

from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch

from lorry.config import TrainConfig
from lorry.training.losses import PairLabels, batch_loss, cosent_loss, cosine_loss, infonce_loss


def close(found, expected):
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_cosine_by_hand():
    # Relevant: 1 - .8 and 1 + .5; the rest: .3, and .000001 for what is below it.
    cosine = torch.tensor([0.8, -0.5, 0.3, -0.9])
    relevant = torch.tensor([True, True, False, False])
    close(cosine_loss(cosine, relevant), (0.2 + 1.5 + 0.3 + 1e-6) / 4)


def test_cosine_pulls_and_pushes_alike_and_lets_go_below_eps():
    cosine = torch.tensor([0.8, -0.5, 0.3, -0.9, 0.0], requires_grad=True)
    cosine_loss(cosine, torch.tensor([True, True, False, False, False])).backward()
    assert cosine.grad.tolist() == pytest.approx([-0.2, -0.2, 0.2, 0.0, 0.0])


@pytest.mark.parametrize(("below", "found"), [(1e-7, 1e-6), (-1.0, 1e-6), (2e-6, 2e-6)])
def test_cosine_never_falls_below_eps(below, found):
    close(cosine_loss(torch.tensor([below]), torch.tensor([False])), found)


# Two queries and three texts in the plane: cosines are .8 .6 0 (first query) and .6 .8 1 (second).
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
TEXTS = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])


def infonce(pairs, temperature=0.5, queries=QUERIES, texts=TEXTS):
    query, text, relevant = zip(*pairs, strict=True)
    return infonce_loss(queries, texts, torch.tensor(query), torch.tensor(text), torch.tensor(relevant), temperature)


def test_infonce_by_hand():
    # First query: text 0 against 1 and 2; second: text 2 against 0 and 1. Cosines are divided by .5.
    first = -log(exp(1.6) / (exp(1.6) + exp(1.2) + exp(0)))
    second = -log(exp(2) / (exp(2) + exp(1.2) + exp(1.6)))
    close(infonce([(0, 0, True), (1, 2, True)]), (first + second) / 2)


def test_infonce_follows_the_temperature():
    close(infonce([(0, 0, True)], 0.1), -log(exp(8) / (exp(8) + exp(6) + exp(0))))


def test_infonce_masks_the_other_relevant_texts_of_a_query():
    # Texts 0 and 1 are both relevant to the first query: neither is a negative of the other.
    first = -log(exp(1.6) / (exp(1.6) + exp(0)))
    second = -log(exp(1.2) / (exp(1.2) + exp(0)))
    close(infonce([(0, 0, True), (0, 1, True)]), (first + second) / 2)


def test_infonce_takes_judged_irrelevant_texts_as_negatives():
    close(infonce([(0, 0, True), (0, 1, False)]), infonce([(0, 0, True)]).item())


def test_infonce_with_every_text_relevant_is_zero():
    loss = infonce([(0, 0, True), (0, 1, True), (0, 2, True)])
    assert loss.item() == 0


def test_infonce_without_a_relevant_pair_is_zero_with_zero_gradient():
    queries, texts = QUERIES.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    loss = infonce([(0, 0, False), (1, 1, False)], queries=queries, texts=texts)
    loss.backward()
    assert loss.item() == 0
    assert not queries.grad.any()
    assert not texts.grad.any()


def test_infonce_is_finite_where_the_temperature_is_small():
    queries, texts = QUERIES.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    loss = infonce([(0, 2, True), (1, 0, True), (1, 1, True)], 0.001, queries, texts)
    loss.backward()
    # 2 | 0 1 of the first query: 0 against 800 and 600; of the second 0 and 1: 600 and 800 against 1000.
    close(loss, (800 + 400 + 200) / 3)
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(texts.grad).all()


def test_cosent_by_hand():
    # Grades 1, .1, 0: three pairs are to be ordered; scale 2.
    cosine = torch.tensor([0.5, 0.7, 0.1])
    expected = log(1 + exp(2 * (0.7 - 0.5)) + exp(2 * (0.1 - 0.5)) + exp(2 * (0.1 - 0.7)))
    close(cosent_loss(cosine, torch.tensor([1.0, 0.1, 0.0]), 2.0), expected)


def test_cosent_leaves_equal_grades_alone():
    cosine = torch.tensor([0.5, 0.7, 0.1], requires_grad=True)
    loss = cosent_loss(cosine, torch.tensor([0.1, 0.1, 0.1]), 20.0)
    loss.backward()
    assert loss.item() == 0
    assert not cosine.grad.any()


def test_cosent_is_finite_where_the_scale_is_large():
    cosine = torch.tensor([-1.0, 1.0], requires_grad=True)
    loss = cosent_loss(cosine, torch.tensor([1.0, 0.0]), 1000.0)
    loss.backward()
    close(loss, 2000)
    assert cosine.grad.tolist() == [-1000, 1000]


LABELS = PairLabels(
    query_B=torch.tensor([0, 0, 1, 1]),
    text_B=torch.tensor([0, 1, 2, 0]),
    gain_B=torch.tensor([1.0, 0.1, 1.0, 0.0]),
    relevant_B=torch.tensor([True, True, True, False]),
)
COSINES = torch.tensor([0.8, 0.6, 1.0, 0.6])


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_a_batch_gets_the_loss_that_is_asked_for(length):
    """Embeddings of any length: it is their cosine that counts."""
    constants = {
        "cosine": {},
        "infonce": {"temperature": 0.5},
        "cosent": {"cosent_scale": 3.0},
        "infonce+cosent": {"temperature": 0.5, "cosent_scale": 3.0, "cosent_weight": 0.25},
    }

    def loss(name):
        return batch_loss(TrainConfig(loss=name, **constants[name]), QUERIES * length, TEXTS * length, LABELS).item()

    cosine = cosine_loss(COSINES, LABELS.relevant_B).item()
    infonce = infonce_loss(QUERIES, TEXTS, LABELS.query_B, LABELS.text_B, LABELS.relevant_B, 0.5).item()
    cosent = cosent_loss(COSINES, LABELS.gain_B, 3.0).item()
    assert loss("cosine") == pytest.approx(cosine, rel=1e-5)
    assert loss("infonce") == pytest.approx(infonce, rel=1e-5)
    assert loss("cosent") == pytest.approx(cosent, rel=1e-5)
    assert loss("infonce+cosent") == pytest.approx(infonce + 0.25 * cosent, rel=1e-5)


@pytest.mark.parametrize("name", ["cosine", "infonce", "cosent", "infonce+cosent"])
def test_gradients_are_those_of_finite_differences(name):
    random = torch.Generator().manual_seed(0)
    queries, texts = (torch.randn(n, 4, generator=random, dtype=torch.float64).requires_grad_() for n in (2, 3))
    labels = replace(LABELS, gain_B=LABELS.gain_B.double())
    config = TrainConfig(loss=name)
    assert torch.autograd.gradcheck(lambda q, t: batch_loss(config, q, t, labels), (queries, texts))


@pytest.mark.parametrize("name", ["cosine", "infonce", "cosent", "infonce+cosent"])
def test_a_pair_of_one_direction_has_a_finite_gradient(name):
    """Identical embeddings of query and text, as with equal strings."""
    one = torch.tensor([[1 / sqrt(2), 1 / sqrt(2)]], requires_grad=True)
    labels = PairLabels(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]), torch.tensor([True]))
    batch_loss(TrainConfig(loss=name), one, one, labels).backward()
    assert torch.isfinite(one.grad).all()
