"""The losses: pure functions of similarities and labels. `objective.py` adds them up as the option `loss` says.

Which terms count is said by masks, not by indexing with them: the number of terms that a mask leaves is known to the
device alone, and the CPU would have to wait for it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosine_loss(cosine_B: Tensor, relevant_B: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the mean of 1 - cos over relevant pairs and max(cos, eps) over the rest.

    This is the loss of the blog post that Lorry began from. It pulls every relevant pair to the same similarity and
    pushes every other to zero, which orders a query's products no better than before on the data that we measured.
    """
    return torch.where(relevant_B, 1 - cosine_B, cosine_B.clamp(min=eps)).mean()


def contrastive_loss(cosine_B: Tensor, relevant_B: Tensor, margin: float = 0.5) -> Tensor:
    """Return half the mean of d² over relevant pairs and max(margin - d, 0)² over the rest, where d = 1 - cos.

    Hadsell et al. 2006; constants as in sentence-transformers' ContrastiveLoss.
    """
    distance_B = 1 - cosine_B
    return 0.5 * torch.where(relevant_B, distance_B**2, (margin - distance_B).clamp(min=0) ** 2).mean()


def online_contrastive_loss(cosine_B: Tensor, relevant_B: Tensor, margin: float = 0.5) -> Tensor:
    """Return the contrastive loss of the hard pairs of the batch alone, summed.

    Hard are relevant pairs farther apart than the nearest of the others, and others nearer than the farthest relevant
    pair. Where all pairs are of one kind, its own mean distance is the limit. As in sentence-transformers'
    OnlineContrastiveLoss.
    """
    distance_B, other_B = 1 - cosine_B, ~relevant_B
    farthest = distance_B.masked_fill(other_B, float("-inf")).amax()
    nearest = distance_B.masked_fill(relevant_B, float("inf")).amin()
    mean = distance_B.mean()
    hard_far_B = other_B & (distance_B < torch.where(relevant_B.any(), farthest, mean))
    hard_near_B = relevant_B & (distance_B > torch.where(other_B.any(), nearest, mean))
    return (hard_near_B * distance_B**2 + hard_far_B * (margin - distance_B).clamp(min=0) ** 2).sum()


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
    times = scores_QN.new_zeros(scores_QN.numel())  # that a pair is there and relevant
    times.index_add_(0, query_B * len(text_ND) + text_B, relevant_B.to(times.dtype))
    positive_QN = times.view_as(scores_QN) > 0
    negative_Q = scores_QN.masked_fill(positive_QN, float("-inf")).logsumexp(1)
    loss_QN = torch.logaddexp(scores_QN, negative_Q[:, None]) - scores_QN
    return loss_QN.masked_fill(~positive_QN, 0).sum() / positive_QN.sum().clamp(min=1)


def cosent_loss(cosine_B: Tensor, gain_B: Tensor, scale: float) -> Tensor:
    """Return CoSENT: log(1 + sum of exp(scale * (cos_j - cos_i)) over pairs i, j of the batch with gain_i > gain_j).

    Su 2022, https://kexue.fm/archives/8847

    Args:
        cosine_B: Similarity of each pair.
        gain_B: Grade of each pair.
        scale: Multiplies the differences.
    """
    apart_BB = scale * (cosine_B[None, :] - cosine_B[:, None])
    ordered = gain_B[:, None] <= gain_B[None, :]
    terms = apart_BB.masked_fill(ordered, float("-inf")).flatten()
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)


def ranknet_loss(cosine_B: Tensor, better_P: Tensor, worse_P: Tensor, scale: float) -> Tensor:
    """Return the mean of log(1 + exp(scale * (cos of the worse - cos of the better))) over pairs within a query.

    Burges et al. 2005 (RankNet), https://icml.cc/Conferences/2005/proceedings/papers/012_LearningToRank_BurgesEtAl.pdf

    Args:
        cosine_B: Similarity of each judged pair.
        better_P: For every two judged pairs of one query with unequal gains, the one with the higher gain.
        worse_P: The one with the lower gain.
        scale: Multiplies the differences.

    Returns:
        The mean; 0 where no query of the batch has unequal gains.
    """
    return functional.softplus(scale * (cosine_B[worse_P] - cosine_B[better_P])).sum() / max(len(better_P), 1)


def lambda_loss(
    cosine_B: Tensor, query_B: Tensor, gain_B: Tensor, better_P: Tensor, worse_P: Tensor, queries: int, scale: float
) -> Tensor:
    """Return RankNet's loss with every term weighted by how much nDCG changes if the two change places.

    LambdaRank's weights: |gain_i - gain_j| * |1 / log2(1 + rank_i) - 1 / log2(1 + rank_j)| / ideal DCG, with the ranks
    of the moment. Wang et al. 2018 (LambdaLoss), https://dl.acm.org/doi/10.1145/3269206.3271784

    Args:
        cosine_B: Similarity of each judged pair.
        query_B: Its query.
        gain_B: Its gain, 0 or above.
        better_P: As in `ranknet_loss`.
        worse_P: As in `ranknet_loss`.
        queries: Number of queries.
        scale: Multiplies the differences.

    Returns:
        The sum over pairs within a query, averaged over queries.
    """
    discount_B = 1 / torch.log2(1 + _ranks(cosine_B.detach(), query_B, queries))
    best_B = gain_B / torch.log2(1 + _ranks(gain_B, query_B, queries))
    ideal_Q = best_B.new_zeros(queries).index_add(0, query_B, best_B)  # above 0 where gains are unequal
    weight_P = (gain_B[better_P] - gain_B[worse_P]) * (discount_B[better_P] - discount_B[worse_P]).abs()
    loss_P = functional.softplus(scale * (cosine_B[worse_P] - cosine_B[better_P]))
    return (weight_P / ideal_Q[query_B[better_P]] * loss_P).sum() / queries


def listwise_loss(cosine_B: Tensor, target_B: Tensor, query_B: Tensor, queries: int, scale: float) -> Tensor:
    """Return the KL divergence of two softmaxes over the products of each query: of the targets and of the cosines.

    With grades as targets, ListNet (top one): Cao et al. 2007, https://dl.acm.org/doi/10.1145/1273496.1273513. With a
    teacher's scores, its distillation.

    Args:
        cosine_B: Similarity of each judged pair.
        target_B: Logits of the wanted distribution.
        query_B: Query of each pair.
        queries: Number of queries.
        scale: Multiplies the cosines.

    Returns:
        The mean over queries; 0 where all agree.
    """
    wanted_B, found_B = _log_softmax(target_B, query_B, queries), _log_softmax(scale * cosine_B, query_B, queries)
    return (wanted_B.exp() * (wanted_B - found_B)).sum() / queries


def graded_cross_entropy_loss(cosine_B: Tensor, grade_B: Tensor, scale: float) -> Tensor:
    """Return the binary cross-entropy of similarities to grades from 0 to 1: makes similarities comparable.

    The logit of a pair is scale * (cos - mean cos) plus that of the mean grade, so that no model needs a threshold of
    its own. After BiXSE, https://arxiv.org/abs/2508.06781, which learns scale and threshold.
    """
    centre, prior = cosine_B.mean(), grade_B.mean().clamp(0.01, 0.99)
    return functional.binary_cross_entropy_with_logits(scale * (cosine_B - centre) + prior.logit(), grade_B)


def margin_mse_loss(cosine_B: Tensor, teacher_B: Tensor, higher_P: Tensor, lower_P: Tensor) -> Tensor:
    """Return the mean squared error of the differences of cosines within a query to those of a teacher.

    Hofstätter et al. 2020 (Margin-MSE), https://arxiv.org/abs/2010.02666

    Args:
        cosine_B: Similarity of each judged pair.
        teacher_B: The teacher's score of each pair, on the scale of cosines.
        higher_P: For every two pairs of one query with unequal scores of the teacher, the one with the higher.
        lower_P: The one with the lower.
    """
    found_P = cosine_B[higher_P] - cosine_B[lower_P]
    wanted_P = teacher_B[higher_P] - teacher_B[lower_P]
    return ((found_P - wanted_P) ** 2).sum() / max(len(higher_P), 1)


def _ranks(score_B: Tensor, query_B: Tensor, queries: int) -> Tensor:
    """Return the rank [B], from 1, of each pair among those of its query, the highest score first."""
    order_B = torch.argsort(score_B, descending=True, stable=True)
    order_B = order_B[torch.argsort(query_B[order_B], stable=True)]
    sizes_Q = query_B.new_zeros(queries).index_add_(0, query_B, torch.ones_like(query_B))
    first_Q = torch.cumsum(sizes_Q, 0) - sizes_Q
    place_B = torch.arange(len(score_B), device=score_B.device) - first_Q[query_B[order_B]]
    return torch.empty_like(place_B).scatter_(0, order_B, place_B + 1)


def _log_softmax(logit_B: Tensor, query_B: Tensor, queries: int) -> Tensor:
    """Return the logarithm of the softmax over the pairs of each query."""
    highest_Q = logit_B.new_full((queries,), float("-inf")).scatter_reduce(0, query_B, logit_B.detach(), "amax")
    shifted_B = logit_B - highest_Q[query_B]
    total_Q = logit_B.new_zeros(queries).index_add(0, query_B, shifted_B.exp())
    return shifted_B - total_Q.log()[query_B]
