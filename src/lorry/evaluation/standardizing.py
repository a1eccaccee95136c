"""Standardised embeddings: centred, or whitened, by what the products' embeddings have in common.

Embeddings of one shop's texts share a direction, which tells nothing and lifts every cosine. Centring takes their mean
away; whitening also makes all directions equally long (Su et al. 2021, https://arxiv.org/abs/2103.15316). Queries and
products are changed alike, and scaled to length 1 again. Both are linear: x W + b.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-4  # share of the largest variance below which a direction counts as noise and is not made longer


@dataclass(frozen=True)
class Standardizer:
    """Turns an embedding x into x `matrix` + `bias`; the result is scaled to length 1 afterwards."""

    matrix_DD: Tensor
    bias_D: Tensor

    def __call__(self, embedding_ND: Tensor) -> Tensor:
        """Return the standardised embeddings [N, D], of length 1."""
        return torch.nn.functional.normalize(embedding_ND @ self.matrix_DD + self.bias_D, dim=-1)


def fit_standardizer(kind: str, product_CD: Tensor) -> Standardizer:
    """Return what standardises embeddings like these.

    Args:
        kind: center or whiten.
        product_CD: Embeddings of products, of length 1.
    """
    mean_D = product_CD.mean(0)
    matrix_DD = torch.eye(product_CD.shape[1])
    if kind == "whiten" and len(product_CD) > 1:
        variance_D, direction_DD = torch.linalg.eigh(torch.cov(product_CD.T.double()))
        variance_D = variance_D.clamp_min(SMALLEST * float(variance_D.max()))
        matrix_DD = (direction_DD * variance_D.rsqrt() @ direction_DD.T).float()
    return Standardizer(matrix_DD, -mean_D @ matrix_DD)
