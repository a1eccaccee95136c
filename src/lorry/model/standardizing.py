"""Standardised embeddings: centred, or whitened, by what the products' embeddings have in common.

Embeddings of one shop's texts share a direction, which tells nothing and lifts every cosine. Centring takes their mean
away; whitening also makes all directions equally long (Su et al. 2021, https://arxiv.org/abs/2103.15316). Queries and
products are changed alike. Both are linear, x W + b, so that a model carries them as the module Dense of
sentence-transformers, between pooling and normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.outputs import write_json

SMALLEST = 1e-4  # share of the largest variance below which a direction counts as noise and is not made longer
IDENTITY = "torch.nn.modules.linear.Identity"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Standardizer:
    """Turns an embedding x into x `matrix_DD` + `bias_D`; whoever wants a length of 1 scales it afterwards."""

    matrix_DD: Tensor
    bias_D: Tensor

    def __call__(self, embedding_ND: Tensor) -> Tensor:
        """Return the standardised embeddings, [N, D]."""
        return embedding_ND @ self.matrix_DD + self.bias_D

    def to(self, device: torch.device) -> Standardizer:
        """Return the same on a device."""
        return Standardizer(self.matrix_DD.to(device), self.bias_D.to(device))

    def save(self, folder: Path) -> None:
        """Write it into a new folder as sentence-transformers reads its module Dense."""
        width = len(self.bias_D)
        folder.mkdir()
        settings = {"in_features": width, "out_features": width, "bias": True, "activation_function": IDENTITY}
        write_json(folder / "config.json", settings)
        weights = {"linear.weight": self.matrix_DD.T.contiguous().cpu(), "linear.bias": self.bias_D.cpu()}
        save_file(weights, folder / WEIGHTS)


def load_standardizer(folder: Path) -> Standardizer:
    """Return what `Standardizer.save` has written."""
    weights = load_file(folder / WEIGHTS)
    return Standardizer(weights["linear.weight"].float().T.contiguous(), weights["linear.bias"].float())


def fit_standardizer(kind: str, product_CD: Tensor) -> Standardizer:
    """Return what standardises embeddings like these.

    Args:
        kind: center or whiten.
        product_CD: Embeddings of products; where there are none, nothing is changed.
    """
    matrix_DD = torch.eye(product_CD.shape[1])
    if not len(product_CD):
        return Standardizer(matrix_DD, torch.zeros(len(matrix_DD)))
    mean_D = product_CD.mean(0)
    if kind == "whiten" and len(product_CD) > 1:
        variance_D, direction_DD = torch.linalg.eigh(torch.cov(product_CD.T.double()))
        variance_D = variance_D.clamp_min(max(SMALLEST * float(variance_D.max()), 1e-12))
        matrix_DD = (direction_DD * variance_D.rsqrt() @ direction_DD.T).float()
    return Standardizer(matrix_DD, -mean_D @ matrix_DD)
