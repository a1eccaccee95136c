"""What a training step minimises: the losses that the option `loss` names, added up over a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorry.config import TrainConfig
from lorry.loss_sum import dims_of, loss_terms
from lorry.training import losses

GRADE_LOGIT = 4.0  # by which the best grade's logit exceeds the lowest one's in listnet


@dataclass(frozen=True)
class PairLabels:
    """The labels of a batch's B pairs, with indices into its unique queries and texts."""

    query_B: Tensor
    text_B: Tensor
    gain_B: Tensor
    grade_B: Tensor
    """Gains from 0 to 1, the highest of all pairs."""
    relevant_B: Tensor
    better_P: Tensor
    """For every two pairs of one query with unequal gains, the one with the higher gain."""
    worse_P: Tensor
    """The one with the lower gain."""
    teacher: TeacherLabels | None = None


@dataclass(frozen=True)
class TeacherLabels:
    """What another model scored R pairs of the batch, those that it did score."""

    row_R: Tensor
    score_R: Tensor
    higher_P: Tensor
    """For every two of them of one query with unequal scores, the one with the higher score: an index into R."""
    lower_P: Tensor
    """The one with the lower score."""


@dataclass(frozen=True)
class _Similarities:
    """What the losses compare: embeddings of unit length, and the cosine of every pair."""

    query_QD: Tensor
    text_ND: Tensor
    cosine_B: Tensor


def _infonce(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    pairs = labels.query_B, labels.text_B, labels.relevant_B
    return losses.infonce_loss(found.query_QD, found.text_ND, *pairs, config.temperature)


def _ranknet(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.ranknet_loss(found.cosine_B, labels.better_P, labels.worse_P, config.scale)


def _lambda(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    order = labels.better_P, labels.worse_P
    queries = len(found.query_QD)
    return losses.lambda_loss(found.cosine_B, labels.query_B, labels.gain_B, *order, queries, config.scale)


def _listnet(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    target_B = GRADE_LOGIT * labels.grade_B
    return losses.listwise_loss(found.cosine_B, target_B, labels.query_B, len(found.query_QD), config.scale)


def _cosent(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.cosent_loss(found.cosine_B, labels.gain_B, config.scale)


def _bce(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.graded_cross_entropy_loss(found.cosine_B, labels.grade_B, config.scale)


def _cosine(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.cosine_loss(found.cosine_B, labels.relevant_B)


def _contrastive(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.contrastive_loss(found.cosine_B, labels.relevant_B)


def _online_contrastive(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    return losses.online_contrastive_loss(found.cosine_B, labels.relevant_B)


def _margin_mse(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    taught = _taught(labels)
    cosine_R = found.cosine_B[taught.row_R]
    return losses.margin_mse_loss(cosine_R, taught.score_R, taught.higher_P, taught.lower_P)


def _kl(config: TrainConfig, found: _Similarities, labels: PairLabels) -> Tensor:
    taught = _taught(labels)
    cosine_R, query_R = found.cosine_B[taught.row_R], labels.query_B[taught.row_R]
    return losses.listwise_loss(cosine_R, config.scale * taught.score_R, query_R, len(found.query_QD), config.scale)


def _taught(labels: PairLabels) -> TeacherLabels:
    assert labels.teacher is not None, "the pairs were checked before training"
    return labels.teacher


_LOSSES: dict[str, Callable[[TrainConfig, _Similarities, PairLabels], Tensor]] = {
    "infonce": _infonce,
    "ranknet": _ranknet,
    "lambda": _lambda,
    "listnet": _listnet,
    "cosent": _cosent,
    "bce": _bce,
    "cosine": _cosine,
    "contrastive": _contrastive,
    "online_contrastive": _online_contrastive,
    "margin_mse": _margin_mse,
    "kl": _kl,
}


def batch_loss(config: TrainConfig, query_QD: Tensor, text_ND: Tensor, labels: PairLabels) -> Tensor:
    """Return the loss that `config` asks for; with `matryoshka_dims`, its mean over the dimensions and the whole.

    Kusupati et al. 2022 (Matryoshka), https://arxiv.org/abs/2205.13147

    Args:
        config: Says which losses, their weights and their constants.
        query_QD: Embeddings of the batch's unique queries.
        text_ND: Embeddings of its unique texts: those of its pairs, then any mined negatives.
        labels: Its pairs.
    """
    dims = {*dims_of(config.matryoshka_dims), query_QD.shape[-1]}
    return torch.stack([_loss(config, query_QD[:, :dim], text_ND[:, :dim], labels) for dim in sorted(dims)]).mean()


def _loss(config: TrainConfig, query_QD: Tensor, text_ND: Tensor, labels: PairLabels) -> Tensor:
    query_QD, text_ND = functional.normalize(query_QD, dim=-1), functional.normalize(text_ND, dim=-1)
    cosine_B = (query_QD.index_select(0, labels.query_B) * text_ND.index_select(0, labels.text_B)).sum(-1)
    found = _Similarities(query_QD, text_ND, cosine_B)
    terms = [weight * _LOSSES[name](config, found, labels) for name, weight in loss_terms(config.loss).items()]
    return torch.stack(terms).sum()
