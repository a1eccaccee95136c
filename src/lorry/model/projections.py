"""Linear layers that read the same input (query, key and value of a layer), computed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorry.model.architectures import architecture_of


def siblings(model: Any) -> list[list[Any]]:
    """Return the linear layers of a transformers model, with adapters or without, by the input that they read."""
    from peft.tuners.lora import Linear

    query_key_value = architecture_of(model.config.model_type).query_key_value
    found: dict[tuple[str, str, int, bool], list[Any]] = {}
    adapted: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            adapted.append(f"{name}.")  # what is inside of it is no layer of the model
        elif not isinstance(module, nn.Linear) or name.startswith(tuple(adapted)):
            continue
        parent, leaf = name.rpartition(".")[::2]
        base = base_of(module)
        kind = "qkv" if leaf in query_key_value else leaf
        found.setdefault((parent, kind, base.in_features, base.bias is not None), []).append(module)
    return list(found.values())


def base_of(layer: Any) -> nn.Linear:
    """Return the linear layer inside an adapter, or the layer itself."""
    base: nn.Linear = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return base


def by_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes linear layers here, by the operations that torch.compile uses."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supported: dict[torch.dtype, Callable[[], bool]] = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        torch.float32: lambda: True,
    }
    return bool(supported[dtype]())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b; in bf16 on CPUs oneDNN adds b within the product, where PyTorch first fills the result with it.

    Args:
        x: [T, in].
        weight: [out, in].
        bias: [out] or None.
    """
    if bias is not None and x.dtype == torch.bfloat16 and by_onednn(x.device, x.dtype):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return functional.linear(x, weight, bias)


class Projections:
    """Linear layers that read the same input; the first call computes them all.

    The outputs for the later calls are kept per thread, until they are used or `clear` is called.
    """

    def __init__(self, layers: list[Any], product: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Let the layers take their outputs [T, out] from `product`, which gets [T, in]."""
        self.product = product
        self.pending = _Pending()
        for index, layer in enumerate(layers):
            layer.forward = partial(self._project, index)

    def clear(self) -> None:
        """Forget what this thread computed and did not use: a forward pass that failed must not feed the next."""
        self.pending.input, self.pending.outputs = None, {}

    def _project(self, index: int, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return projection `index` of x [..., in]."""
        pending = self.pending
        if pending.input is not x or index not in pending.outputs:
            pending.input, pending.outputs = x, dict(enumerate(self.product(x.reshape(-1, x.shape[-1]))))
        output: Tensor = pending.outputs.pop(index)
        if not pending.outputs:
            pending.input = None  # releases the graph
        return output.view(*x.shape[:-1], -1)


class _Pending(threading.local):
    """Outputs computed and not yet used, by index, and the input that they belong to; one of each per thread."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}
