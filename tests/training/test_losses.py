"""The losses against arithmetic done by hand."""

from math import exp, isnan, log, log2, nan, sqrt

import pytest
import torch

from lorry.config import TrainConfig
from lorry.loss_sum import LOSSES
from lorry.training.losses import (
    contrastive_loss,
    cosent_loss,
    cosine_loss,
    graded_cross_entropy_loss,
    infonce_loss,
    lambda_loss,
    listwise_loss,
    online_contrastive_loss,
    ranknet_loss,
)
from lorry.training.objective import PairLabels, TeacherLabels, batch_loss


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


def labels_of(query, text, gain, relevant, teacher=None, dtype=torch.float32):
    """Return labels whose pairs of unequal gain are found by a double loop."""

    def ordered(query, value):
        places = range(len(query))
        found = [(i, j) for i in places for j in places if query[i] == query[j] and value[i] > value[j]]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 2).t()

    taught = None
    if teacher is not None:
        rows = [row for row, score in enumerate(teacher) if not isnan(score)]
        scores = [teacher[row] for row in rows]
        pairs = ordered([query[row] for row in rows], scores)
        taught = TeacherLabels(torch.tensor(rows, dtype=torch.int64), torch.tensor(scores, dtype=dtype), *pairs)
    gains = torch.tensor(gain, dtype=dtype)
    pairs = torch.tensor(query), torch.tensor(text), gains, gains / max(*gain, 1e-9), torch.tensor(relevant)
    return PairLabels(*pairs, *ordered(query, gain), teacher=taught)


PAIRS = ([0, 0, 1, 1], [0, 1, 2, 0], [1.0, 0.1, 1.0, 0.0], [True, True, True, False])
TEACHER = [0.9, 0.2, nan, 0.4]
LABELS = labels_of(*PAIRS, TEACHER)
COSINES = torch.tensor([0.8, 0.6, 1.0, 0.6])
SUM = "infonce+5*ranknet+0.2*cosent"


def softplus(value):
    return log(1 + exp(value))


def batch(loss, **options):
    return batch_loss(TrainConfig(loss=loss, **options), QUERIES, TEXTS, LABELS).item()


def test_contrastive_and_its_hard_pairs_by_hand():
    # Distances .2 .9 of relevant pairs, .3 and .7 of the others; margin .5.
    cosine, relevant = torch.tensor([0.8, 0.1, 0.7, 0.3]), torch.tensor([True, True, False, False])
    close(contrastive_loss(cosine, relevant), (0.2**2 + 0.9**2 + 0.2**2) / 8)
    # Hard: the relevant pair beyond .3, and the others within .9.
    close(online_contrastive_loss(cosine, relevant), 0.9**2 + 0.2**2)


@pytest.mark.parametrize("count", [20, 1, 39, 0, 40], ids=lambda count: f"{count} of 40 relevant")
@pytest.mark.parametrize("name", ["contrastive", "online_contrastive"])
def test_they_are_those_of_sentence_transformers(name, count):
    from sentence_transformers.losses import ContrastiveLoss, OnlineContrastiveLoss

    random = torch.Generator().manual_seed(1)
    cosine, relevant = torch.rand(40, generator=random) * 2 - 1, torch.arange(40) < count
    # Embeddings in the plane whose cosine is that.
    left = torch.tensor([[1.0, 0.0]]).expand(40, 2)
    right = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    theirs = {"contrastive": ContrastiveLoss, "online_contrastive": OnlineContrastiveLoss}[name](model=None)
    ours = {"contrastive": contrastive_loss, "online_contrastive": online_contrastive_loss}[name]
    expected = theirs.compute_loss_from_embeddings([left, right], relevant.long())
    close(ours(cosine, relevant), expected.item())


def test_ranknet_by_hand():
    # First query: .8 above .6; second: 1 above .6.
    found = ranknet_loss(COSINES, LABELS.better_P, LABELS.worse_P, 2.0)
    close(found, (softplus(2 * (0.6 - 0.8)) + softplus(2 * (0.6 - 1.0))) / 2)


def test_ranknet_never_compares_two_queries():
    apart = labels_of([0, 1], [0, 1], [1.0, 0.0], [True, False])
    assert ranknet_loss(torch.tensor([0.1, 0.9]), apart.better_P, apart.worse_P, 20.0).item() == 0


@pytest.mark.parametrize("seed", range(5))
def test_lambda_weighs_by_what_a_swap_does_to_ndcg(seed):
    random = torch.Generator().manual_seed(seed)
    query = torch.randint(3, (12,), generator=random).tolist()
    gain = torch.randint(4, (12,), generator=random).float().tolist()
    cosine = torch.rand(12, generator=random)
    labels = labels_of(query, list(range(12)), gain, [True] * 12)
    total = 0.0
    for one in set(query):
        rows = [row for row in range(12) if query[row] == one]
        order = sorted(rows, key=lambda row: -cosine[row].item())
        best = sum(value / log2(place + 2) for place, value in enumerate(sorted(gain[row] for row in rows)[::-1]))
        for better in rows:
            for worse in rows:
                if gain[better] > gain[worse]:
                    swapped = abs(1 / log2(order.index(better) + 2) - 1 / log2(order.index(worse) + 2))
                    weight = (gain[better] - gain[worse]) * swapped / best
                    total += weight * softplus(5 * (cosine[worse] - cosine[better]).item())
    found = lambda_loss(cosine, labels.query_B, labels.gain_B, labels.better_P, labels.worse_P, 3, 5.0)
    close(found, total / 3)


def test_listwise_by_hand():
    query = torch.tensor([0, 0, 1])
    cosine, target = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([2.0, 1.0, 0.3])
    wanted = exp(2) / (exp(2) + exp(1))
    found = exp(10 * 0.5) / (exp(10 * 0.5) + exp(10 * 0.1))
    kl = wanted * log(wanted / found) + (1 - wanted) * log((1 - wanted) / (1 - found))
    close(listwise_loss(cosine, target, query, 2, 10.0), kl / 2)  # the second query has one product


def test_listwise_is_nothing_where_both_agree():
    query, cosine = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0.5, 0.1, 0.3, 0.9, -0.2])
    assert abs(listwise_loss(cosine, 7 * cosine + 3, query, 2, 7.0).item()) < 1e-6


def test_graded_cross_entropy_by_hand():
    # Cosines less their mean, times 2, and the logit of the mean grade, which is 0.
    found = graded_cross_entropy_loss(torch.tensor([0.6, 0.2]), torch.tensor([1.0, 0.0]), 2.0)
    close(found, softplus(-2 * 0.2))


def test_graded_cross_entropy_needs_no_threshold_of_its_own():
    cosine, grade = torch.tensor([0.6, 0.2, 0.5]), torch.tensor([1.0, 0.0, 0.3])
    close(graded_cross_entropy_loss(cosine + 0.3, grade, 20.0), graded_cross_entropy_loss(cosine, grade, 20.0).item())


def test_margin_mse_learns_differences_of_scored_pairs_alone():
    # Only the first query has two scored pairs: cosines .8 and .6, the teacher's .9 and .2.
    assert batch("margin_mse") == pytest.approx((0.2 - 0.7) ** 2, rel=1e-5)


def test_kl_learns_the_order_of_scored_pairs_alone():
    wanted, found = 1 / (1 + exp(3 * (0.2 - 0.9))), 1 / (1 + exp(3 * (0.6 - 0.8)))
    kl = wanted * log(wanted / found) + (1 - wanted) * log((1 - wanted) / (1 - found))
    assert batch("kl", scale=3.0) == pytest.approx(kl / 2, rel=1e-4)


def test_a_batch_gets_the_losses_that_are_asked_for():
    within = LABELS.better_P, LABELS.worse_P
    parts = {
        "cosine": cosine_loss(COSINES, LABELS.relevant_B),
        "infonce": infonce_loss(QUERIES, TEXTS, LABELS.query_B, LABELS.text_B, LABELS.relevant_B, 0.05),
        "cosent": cosent_loss(COSINES, LABELS.gain_B, 20.0),
        "ranknet": ranknet_loss(COSINES, *within, 20.0),
        "lambda": lambda_loss(COSINES, LABELS.query_B, LABELS.gain_B, *within, 2, 20.0),
        "listnet": listwise_loss(COSINES, 4 * LABELS.grade_B, LABELS.query_B, 2, 20.0),
        "bce": graded_cross_entropy_loss(COSINES, LABELS.grade_B, 20.0),
        "contrastive": contrastive_loss(COSINES, LABELS.relevant_B),
        "online_contrastive": online_contrastive_loss(COSINES, LABELS.relevant_B),
    }
    for name, expected in parts.items():
        assert batch(name) == pytest.approx(expected.item(), rel=1e-4), name
    assert len({round(part.item(), 6) for part in parts.values()}) == len(parts)
    expected = parts["infonce"] + 5 * parts["ranknet"] + 0.2 * parts["cosent"]
    assert batch(SUM) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_length_of_embeddings_does_not_matter(name):
    found = batch_loss(TrainConfig(loss=name), QUERIES * 7, TEXTS * 0.3, LABELS).item()
    assert found == pytest.approx(batch(name), rel=1e-4)


def test_options_reach_their_losses():
    assert batch("infonce", temperature=0.5) != batch("infonce")
    for name in ("ranknet", "lambda", "listnet", "cosent", "bce", "kl"):
        assert batch(name, scale=3.0) != batch(name), name


def random_embeddings(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(n, 6, generator=random, dtype=dtype).requires_grad_() for n in (2, 3)]


@pytest.mark.parametrize("name", [*LOSSES, SUM])
@pytest.mark.parametrize("dims", ["", "4,2"])
def test_gradients_are_those_of_finite_differences(name, dims):
    labels = labels_of(*PAIRS, TEACHER, dtype=torch.float64)
    config = TrainConfig(loss=name, matryoshka_dims=dims)
    assert torch.autograd.gradcheck(lambda q, t: batch_loss(config, q, t, labels), random_embeddings())


def test_short_embeddings_learn_the_same():
    queries, texts = random_embeddings(torch.float32)
    parts = [batch_loss(TrainConfig(), queries[:, :dim], texts[:, :dim], LABELS) for dim in (2, 4, 6)]
    found = batch_loss(TrainConfig(matryoshka_dims="4,2"), queries, texts, LABELS)
    close(found, sum(part.item() for part in parts) / 3)


def test_the_loss_of_the_post_is_exact():
    """In value and gradient, bit for bit: 1 - cos for relevant pairs, max(cos, eps) for the others."""
    found, expected = random_embeddings(torch.float32), random_embeddings(torch.float32)
    batch_loss(TrainConfig(loss="cosine"), *found, LABELS).backward()
    query, text = (torch.nn.functional.normalize(side, dim=-1) for side in expected)
    cosine = (query[LABELS.query_B] * text[LABELS.text_B]).sum(-1)
    value = torch.where(LABELS.relevant_B, 1 - cosine, cosine.clamp(min=1e-6)).mean()
    value.backward()
    assert torch.equal(batch_loss(TrainConfig(loss="cosine"), *found, LABELS), value)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(found, expected, strict=True))


EDGES = {
    "one pair": ([0], [0], [1.0], [True]),
    "no pair is relevant": ([0, 0, 1], [0, 1, 2], [0.0, 0.5, 0.0], [False, False, False]),
    "all are relevant": ([0, 0, 1], [0, 1, 2], [1.0, 0.5, 1.0], [True, True, True]),
    "all gains are equal": ([0, 0, 1], [0, 1, 2], [1.0, 1.0, 1.0], [True, True, True]),
    "all gains are 0": ([0, 0, 1], [0, 1, 2], [0.0, 0.0, 0.0], [False, False, False]),
    "one of each kind": ([0, 0], [0, 1], [1.0, 0.0], [True, False]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", [*LOSSES, SUM])
def test_every_loss_is_finite_at_the_edges(name, edge):
    pairs = EDGES[edge]
    labels = labels_of(*pairs, [nan] * len(pairs[0]))
    queries, texts = random_embeddings(torch.float32)
    loss = batch_loss(TrainConfig(loss=name), queries, texts, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(texts.grad).all()


@pytest.mark.parametrize("name", ["ranknet", "lambda", "cosent"])
def test_equal_grades_teach_no_order(name):
    labels = labels_of([0, 0, 0], [0, 1, 2], [1.0, 1.0, 1.0], [True, True, True])
    queries, texts = random_embeddings(torch.float32)
    loss = batch_loss(TrainConfig(loss=name), queries, texts, labels)
    loss.backward()
    assert loss.item() == 0
    assert not queries.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_of_one_direction_has_a_finite_gradient(name):
    """Identical embeddings of query and text, as with equal strings."""
    one = torch.tensor([[1 / sqrt(2), 1 / sqrt(2)]], requires_grad=True)
    batch_loss(TrainConfig(loss=name), one, one, labels_of([0], [0], [1.0], [True], [0.5])).backward()
    assert torch.isfinite(one.grad).all()
