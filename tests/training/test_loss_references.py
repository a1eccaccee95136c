"""Every loss, through the batch that a step gets, against the formula written out in loops over the pairs."""

from dataclasses import replace
from math import exp, log, log2

import numpy as np
import pytest
import torch
from test_batches import CPU, random_pairs, tokens_of

from lorry.config import TrainConfig
from lorry.loss_sum import LOSS_OPTIONS, LOSSES, loss_terms
from lorry.training.batches import make_batch
from lorry.training.losses import cosent_loss, graded_cross_entropy_loss, listwise_loss, online_contrastive_loss
from lorry.training.objective import batch_loss

SCALE, TEMPERATURE = 3.0, 0.4


class Judged:
    """Pairs as the formulas see them: plain numbers, and the cosine of every query and text."""

    def __init__(self, pairs, chosen, cosines):
        self.rows = range(len(chosen))
        self.query, self.text = (side[chosen].tolist() for side in (pairs.query, pairs.text))
        self.gain, self.teacher = (np.float64(side[chosen]).tolist() for side in (pairs.gain, pairs.teacher))
        self.grade = [gain / float(pairs.gain.max()) for gain in self.gain]
        self.relevant = pairs.relevant[chosen].tolist()
        self.cosines = cosines
        self.cosine = [cosines[query, text] for query, text in zip(self.query, self.text, strict=True)]
        self.taught = [row for row in self.rows if self.teacher[row] == self.teacher[row]]

    def of_queries(self, rows):
        return [[row for row in rows if self.query[row] == query] for query in sorted(set(self.query))]

    def unequal(self, value, rows):
        """Every (higher, lower) of these rows that are of one query."""
        return [(i, j) for group in self.of_queries(rows) for i in group for j in group if value[i] > value[j]]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def softplus(value):
    return log(1 + exp(value))


def infonce(judged):
    losses = []
    for row in judged.rows:
        if judged.relevant[row]:
            query = judged.query[row]
            good = {judged.text[i] for i in judged.rows if judged.query[i] == query and judged.relevant[i]}
            own = exp(judged.cosine[row] / TEMPERATURE)
            rest = sum(exp(judged.cosines[query, text] / TEMPERATURE) for text in set(judged.text) - good)
            losses.append(-log(own / (own + rest)))
    return mean(losses)


def ranknet(judged):
    order = judged.unequal(judged.gain, judged.rows)
    return mean(softplus(SCALE * (judged.cosine[worse] - judged.cosine[better])) for better, worse in order)


def lambdas(judged):
    total = 0.0
    for group in judged.of_queries(judged.rows):
        rank = {row: 1 + sum(judged.cosine[i] > judged.cosine[row] for i in group) for row in group}
        gains = sorted((judged.gain[row] for row in group), reverse=True)
        ideal = sum(gain / log2(2 + place) for place, gain in enumerate(gains))
        for better, worse in judged.unequal(judged.gain, group):
            swap = abs(1 / log2(1 + rank[better]) - 1 / log2(1 + rank[worse]))
            weight = (judged.gain[better] - judged.gain[worse]) * swap / ideal
            total += weight * softplus(SCALE * (judged.cosine[worse] - judged.cosine[better]))
    return total / len(set(judged.query))


def divergence(judged, rows, logit):
    total = 0.0
    for group in judged.of_queries(rows):
        wanted, found = ([exp(logit[i]) for i in group], [exp(SCALE * judged.cosine[i]) for i in group])
        for one, other in zip(wanted, found, strict=True):
            total += one / sum(wanted) * log(one / sum(wanted) / (other / sum(found)))
    return total / len(set(judged.query))


def cosent(judged):
    wrong = [(i, j) for i in judged.rows for j in judged.rows if judged.gain[i] > judged.gain[j]]
    return log(1 + sum(exp(SCALE * (judged.cosine[j] - judged.cosine[i])) for i, j in wrong))


def bce(judged):
    centre, prior = mean(judged.cosine), mean(judged.grade)
    chances = [1 / (1 + exp(-SCALE * (cosine - centre)) * (1 - prior) / prior) for cosine in judged.cosine]
    return mean(-grade * log(p) - (1 - grade) * log(1 - p) for p, grade in zip(chances, judged.grade, strict=True))


def cosine(judged):
    both = zip(judged.cosine, judged.relevant, strict=True)
    return mean(1 - value if relevant else max(value, 1e-6) for value, relevant in both)


def contrastive(judged):
    both = zip(judged.cosine, judged.relevant, strict=True)
    return mean((1 - c) ** 2 / 2 if relevant else max(0.5 - (1 - c), 0) ** 2 / 2 for c, relevant in both)


def online_contrastive(judged):
    near = [1 - judged.cosine[row] for row in judged.rows if judged.relevant[row]]
    far = [1 - judged.cosine[row] for row in judged.rows if not judged.relevant[row]]
    hard = [d**2 for d in near if d > min(far)]
    return sum(hard) + sum(max(0.5 - d, 0) ** 2 for d in far if d < max(near))


def margin_mse(judged):
    order = judged.unequal(judged.teacher, judged.taught)
    return mean((judged.cosine[i] - judged.cosine[j] - (judged.teacher[i] - judged.teacher[j])) ** 2 for i, j in order)


REFERENCES = {
    "infonce": infonce,
    "ranknet": ranknet,
    "lambda": lambdas,
    "listnet": lambda judged: divergence(judged, judged.rows, [4 * grade for grade in judged.grade]),
    "cosent": cosent,
    "bce": bce,
    "cosine": cosine,
    "contrastive": contrastive,
    "online_contrastive": online_contrastive,
    "margin_mse": margin_mse,
    "kl": lambda judged: divergence(judged, judged.taught, [SCALE * score for score in judged.teacher]),
}


class Case:
    """Random pairs with a teacher that scored some of them, random embeddings, and the batch of some of the pairs."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        pairs = random_pairs(rng, teacher=True)
        self.pairs = replace(pairs, gain=3 * pairs.gain)
        self.chosen = rng.permutation(len(self.pairs))[:45]
        texts = tokens_of(self.pairs)
        self.vectors = torch.from_numpy(rng.normal(size=(len(texts), 8)) + 0.3)
        self.queries = texts.queries
        self.batch = make_batch(texts, self.pairs, self.chosen, CPU)

    def judged(self, dim=8):
        unit = torch.nn.functional.normalize(self.vectors[:, :dim], dim=-1).numpy()
        return Judged(self.pairs, self.chosen, unit[: self.queries] @ unit[self.queries :].T)

    def loss(self, loss, dims=""):
        given = {"scale": SCALE, "temperature": TEMPERATURE}
        used = {name: value for name, value in given.items() if loss_terms(loss).keys() & set(LOSS_OPTIONS[name])}
        config = TrainConfig(loss=loss, matryoshka_dims=dims, **used)
        labels = self.batch.labels
        taught = replace(labels.teacher, score_R=labels.teacher.score_R.double())
        exact = replace(labels, gain_B=labels.gain_B.double(), grade_B=labels.grade_B.double(), teacher=taught)
        return batch_loss(config, *self.batch.sides(self.vectors[self.batch.rows]), exact).item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name, seed):
    case = Case(seed)
    expected = REFERENCES[name](case.judged())
    assert expected > 0
    assert case.loss(name) == pytest.approx(expected, rel=1e-6)


def test_a_sum_is_that_of_its_weighted_parts():
    case = Case(9)
    weights = {name: 0.3 + place for place, name in enumerate(LOSSES)}
    expected = sum(weight * REFERENCES[name](case.judged()) for name, weight in weights.items())
    assert case.loss("+".join(f"{weight}*{name}" for name, weight in weights.items())) == pytest.approx(expected)


def test_short_embeddings_are_compared_by_their_own_cosines():
    case = Case(9)
    expected = mean(ranknet(case.judged(dim)) + 2 * cosent(case.judged(dim)) for dim in (2, 5, 8))
    assert case.loss("ranknet+2*cosent", "5,2") == pytest.approx(expected, rel=1e-9)
    assert case.loss("ranknet", "8") == case.loss("ranknet"), "the whole counts once"


@pytest.mark.parametrize("seed", range(4))
def test_cosent_is_that_of_sentence_transformers(seed):
    from sentence_transformers.losses import CoSENTLoss

    case = Case(seed)
    labels, (query_QD, text_ND) = case.batch.labels, case.batch.sides(case.vectors[case.batch.rows])
    sides = [query_QD[labels.query_B], text_ND[labels.text_B]]
    expected = CoSENTLoss(None, scale=SCALE).compute_loss_from_embeddings(sides, labels.gain_B.double())
    found = cosent_loss(torch.cosine_similarity(*sides), labels.gain_B.double(), SCALE)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        ([0.9, 0.2], [], 0.8**2),  # beyond the mean distance, .45
        ([], [0.9, 0.2], 0.4**2),  # within it
        ([0.2], [0.9, 0.1], 0.8**2 + 0.4**2),
        ([0.9, 0.1], [0.7], 0.9**2 + 0.2**2),
        ([0.4], [0.7], 0.6**2 + 0.2**2),
        ([0.7], [0.4], 0),
    ],
)
def test_online_contrastive_of_a_few_pairs_by_hand(near, far, expected):
    relevant = torch.tensor([True] * len(near) + [False] * len(far))
    assert online_contrastive_loss(torch.tensor(near + far), relevant).item() == pytest.approx(expected, abs=1e-6)


def test_graded_cross_entropy_pulls_what_is_too_similar_down_and_the_rest_up():
    """The gradient of a cosine is the error of its chance, less the mean error: to add a constant changes nothing."""
    cosine, grade = torch.tensor([0.6, 0.2, 0.5, 0.7]).double(), torch.tensor([1.0, 0.0, 0.4, 0.1]).double()
    cosine.requires_grad_()
    graded_cross_entropy_loss(cosine, grade, 20.0).backward()
    error = (20 * (cosine - cosine.mean()) + grade.mean().logit()).sigmoid() - grade
    torch.testing.assert_close(cosine.grad, 20 * (error - error.mean()) / 4)
    assert cosine.grad[3] > 0 > cosine.grad[0]
    assert abs(cosine.grad.sum()) < 1e-12


def test_listwise_is_finite_where_the_scale_is_large():
    cosine = torch.tensor([0.9, 0.1, 0.2], requires_grad=True)
    loss = listwise_loss(cosine, torch.tensor([0.0, 700.0, 0.0]), torch.tensor([0, 0, 1]), 2, 1000.0)
    loss.backward()
    assert loss.item() == pytest.approx(800 / 2, rel=1e-5)
    assert cosine.grad.tolist() == pytest.approx([500, -500, 0])
