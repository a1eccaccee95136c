"""The losses: pure functions of similarities and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorry.config import TrainConfig


def cosine_loss(cosine_B: Tensor, relevant_B: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the mean of 1 - cos over relevant pairs and max(cos, eps) over the rest.

    This is the loss of the blog post that Lorry began from. It pulls every relevant pair to the same similarity and
    pushes every other to zero, which orders a query's products no better than before on the data that we measured.
    """
    return torch.where(relevant_B, 1 - cosine_B, cosine_B.clamp(min=eps)).mean()


def infonce_loss(
    query_QD: Tensor, text_ND: Tensor, query_B: Tensor, text_B: Tensor, relevant_B: Tensor, temperature: float
) -> Tensor:
    """Return InfoNCE over the batch, with a query's other relevant texts masked.

    For each relevant pair (q, t): -log of exp(cos(q, t) / temperature) over the sum of the same for t and every text of
    the batch that is not itself judged relevant to q. A text judged irrelevant to q counts, as a hard negative.
    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748

    Args:
        query_QD: Embeddings of the batch's unique queries, of unit length.
        text_ND: Embeddings of its unique texts, of unit length.
        query_B: Query of each pair.
        text_B: Text of each pair.
        relevant_B: Whether the pair is relevant.
        temperature: Divides the cosines.

    Returns:
        The mean over relevant pairs; 0 where the batch has none.
    """
    scores_QN = query_QD @ text_ND.t() / temperature
    positive_QN = torch.zeros_like(scores_QN, dtype=torch.bool)
    positive_QN[query_B[relevant_B], text_B[relevant_B]] = True
    negative_Q = scores_QN.masked_fill(positive_QN, float("-inf")).logsumexp(1)
    own_P = scores_QN[positive_QN]  # each relevant pair once
    query_P = positive_QN.nonzero()[:, 0]
    loss_P = torch.logaddexp(own_P, negative_Q[query_P]) - own_P
    return loss_P.sum() / max(len(loss_P), 1)


def cosent_loss(cosine_B: Tensor, gain_B: Tensor, scale: float) -> Tensor:
    """Return CoSENT: log(1 + sum of exp(scale * (cos_j - cos_i)) over pairs i, j of the batch with gain_i > gain_j).

    Su 2022, https://kexue.fm/archives/8847

    Args:
        cosine_B: Similarity of each pair.
        gain_B: Grade of each pair.
        scale: Multiplies the differences.
    """
    apart_BB = scale * (cosine_B[None, :] - cosine_B[:, None])
    wrong_way = gain_B[:, None] > gain_B[None, :]
    terms = apart_BB[wrong_way]
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)


@dataclass(frozen=True)
class PairLabels:
    """The labels of a batch's pairs, with indices into its unique queries and texts."""

    query_B: Tensor
    text_B: Tensor
    gain_B: Tensor
    relevant_B: Tensor


def batch_loss(config: TrainConfig, query_QD: Tensor, text_ND: Tensor, labels: PairLabels) -> Tensor:
    """Return the loss that `config` asks for.

    Args:
        config: Says which loss, and its constants.
        query_QD: Embeddings of the batch's unique queries.
        text_ND: Embeddings of its unique texts.
        labels: Its pairs.
    """
    query_QD, text_ND = functional.normalize(query_QD, dim=-1), functional.normalize(text_ND, dim=-1)
    cosine_B = (query_QD[labels.query_B] * text_ND[labels.text_B]).sum(-1)
    if config.loss == "cosine":
        return cosine_loss(cosine_B, labels.relevant_B)
    loss = cosine_B.new_zeros(())
    if "infonce" in config.loss:
        loss = loss + infonce_loss(
            query_QD, text_ND, labels.query_B, labels.text_B, labels.relevant_B, config.temperature
        )
    if "cosent" in config.loss:
        weight = config.cosent_weight if "infonce" in config.loss else 1.0
        loss = loss + weight * cosent_loss(cosine_B, labels.gain_B, config.cosent_scale)
    return loss
