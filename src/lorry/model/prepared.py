"""Encoding many texts with weights that do not change: what a training step cannot do beforehand is done once.

Adapters are merged into the weights and layers that read the same input become one product. On CPUs the weights are
reordered as the matrix library wants them, and it applies GELU to a product while that is in the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorry.model.projections import Projections, base_of, by_onednn, siblings

# Attributes of a module with a linear layer and the activation that follows it: BERT and its kin, DistilBERT.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"))
_GELU = {"GELUActivation": "none", "GELUTanh": "tanh"}  # of transformers, by oneDNN's name of the approximation


@contextmanager
def prepared(model: Any, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let a transformers model compute so inside the block, without gradients; its weights must not change there.

    Args:
        model: With adapters or without.
        dtype: Of the products.
        device: Where the model is.
    """
    reorder = by_onednn(device, dtype)
    activations = _activations(model) if reorder else {}
    with ExitStack() as changed, torch.no_grad():
        for layers in siblings(model):
            if not reorder and not any(hasattr(layer, "lora_A") for layer in layers):
                continue  # nothing to gain
            weight = torch.cat([_merged(layer, dtype) for layer in layers])
            biases = [base_of(layer).bias for layer in layers]
            bias = None if biases[0] is None else torch.cat(tuple(biases)).to(dtype)
            product: Callable[[Tensor], Tensor] = partial(functional.linear, weight=weight, bias=bias)
            if reorder:
                activation = activations.get(layers[0])
                product = _reordered(weight, bias, activation)
                if activation is not None:
                    changed.enter_context(_restored(activation))
                    activation.forward = _unchanged
            for layer in layers:
                changed.enter_context(_restored(layer))
            Projections(layers, _separated(product, [base_of(layer).out_features for layer in layers]))
        yield


def _merged(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of a layer, adapters included."""
    weight: Tensor = base_of(layer).weight.detach().to(dtype)
    if not hasattr(layer, "lora_A"):
        return weight
    a, b = (side["default"].weight.detach().to(dtype) for side in (layer.lora_A, layer.lora_B))
    return torch.addmm(weight, b, a, alpha=layer.scaling["default"])


def _reordered(weight: Tensor, bias: Tensor | None, activation: Any) -> Callable[[Tensor], Tensor]:
    """Return the function from [T, in] to [T, out], activation included, by operations of torch.compile."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    attr, algorithm = ("none", "") if activation is None else ("gelu", _GELU[type(activation).__name__])

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), packed, bias, attr, [], algorithm)
        return out

    return product


def _separated(product: Callable[[Tensor], Tensor], sizes: list[int]) -> Callable[[Tensor], Sequence[Tensor]]:
    return lambda x: product(x).split(sizes, -1)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _activations(model: Any) -> dict[nn.Module, Any]:
    """Return the GELU that follows a linear layer, and nothing else does, by that layer."""
    found: dict[nn.Module, Any] = {}
    for module in model.modules():
        for layer, activation in _ACTIVATED:
            after = getattr(module, activation, None)
            if hasattr(module, layer) and type(after).__name__ in _GELU:
                found[getattr(module, layer)] = after
    return found


@contextmanager
def _restored(module: Any) -> Iterator[None]:
    """Give a module back its own way to compute."""
    before = module.__dict__.get("forward")
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
