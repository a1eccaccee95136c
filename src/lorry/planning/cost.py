"""What a run takes: operations and memory traffic, and what these come to in hours and dollars on instances to rent.

Arithmetic only: nothing is run here. A step takes as long as the slower of two: the GPU, whose matrix products are
limited by its arithmetic and whose other kernels by its memory, and the host, which gives out the operations. What the
model of a GPU rests on is in `assumptions`; benchmarks/step_costs.py counts and times its terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorry.instances import PRICES_FROM, Instance

STARTUP_MINUTES = 5.0
# Shares of the data sheet's figures that kernels are taken to reach: no GPU was timed. A T4 slows down under load, to
# keep to 70 W (Jia et al. 2019, https://arxiv.org/abs/1903.07486), and the matrices of small encoders are narrow.
PRODUCTS_REACH = 0.4
MEMORY_REACH = 0.7
# Bytes that a step, and encoding, read and write for every token in all that is no matrix product: so many for each
# layer and each number of the hidden state.
STEP_BYTES = 140
ENCODING_BYTES = 52
# Milliseconds in which a host gives out a step: for what is outside of the layers, and for each layer. Timed on one
# core of an Intel Xeon with AMX; the hosts of these GPUs are taken to be as fast.
STEP_MILLISECONDS = 3.0
LAYER_MILLISECONDS = 2.7
NETWORK = 5e9 / 8  # bytes/s between hosts: the 5 Gbit/s that the smallest of these instances always have


@dataclass(frozen=True)
class Tokens:
    """What is encoded: texts of l tokens each."""

    count: int
    """Sum of l over the texts."""
    squares: int
    """Sum of l² over the texts: attention compares every token of a text with every other."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.count + other.count, self.squares + other.squares)

    def __mul__(self, times: int) -> Tokens:
        return Tokens(self.count * times, self.squares * times)


@dataclass(frozen=True)
class ModelCost:
    """What a model takes for each token."""

    frozen: int
    """Weights of the linear layers that are not trained."""
    adapters: int
    """Weights of the LoRA adapters."""
    attention: int
    """Numbers in a token's queries, over all layers: each is multiplied by every key of its text; values likewise."""
    layers: int
    width: int
    """Numbers of a token's hidden state."""

    def encoding(self, tokens: Tokens) -> float:
        """Return the FLOP of a forward pass."""
        return 2.0 * (self.frozen + self.adapters) * tokens.count + 4.0 * self.attention * tokens.squares

    def encoding_bytes(self, tokens: Tokens) -> float:
        """Return the bytes that a forward pass reads and writes beside its matrix products."""
        return float(ENCODING_BYTES * self.layers * self.width * tokens.count)

    def training_bytes(self, tokens: Tokens) -> float:
        """Return the bytes that a forward and a backward pass read and write beside their matrix products."""
        return float(STEP_BYTES * self.layers * self.width * tokens.count)

    def exchange_seconds(self, hosts: int) -> float:
        """Return the seconds in which hosts add up the gradients of the adapters in fp32: sent to all and back."""
        return 0.0 if hosts == 1 else 2 * 4 * self.adapters / NETWORK

    def host_seconds(self) -> float:
        """Return the seconds in which a host gives out the operations of a step."""
        return (STEP_MILLISECONDS + LAYER_MILLISECONDS * self.layers) / 1000

    def training(self, tokens: Tokens) -> float:
        """Return the FLOP of a forward and a backward pass.

        The gradient of a product takes two of the same size, one for each factor; frozen weights need none.
        """
        return (4.0 * self.frozen + 6.0 * self.adapters) * tokens.count + 12.0 * self.attention * tokens.squares


def cost_of(model: Any) -> ModelCost:
    """Count the matrix products of a transformers model from its linear layers; what is not frozen is an adapter.

    A pooler is left out: it sees one token a text, and embeddings do not come from it. Where layers look at no more
    than a window of the text (ModernBERT), attention is counted as if they looked at all of it.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight for name, layer in layers if "pooler" not in name]
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelCost(
        frozen=sum(weight.numel() for weight in weights if not weight.requires_grad),
        adapters=sum(weight.numel() for weight in weights if weight.requires_grad),
        attention=config.num_hidden_layers * config.num_attention_heads * head,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
    )


def seconds(instance: Instance, model: ModelCost, steps: Sequence[Tokens], evaluation: Tokens, hosts: int = 1) -> float:
    """Return the seconds that instances are taken to need for these steps and for what is encoded beside them.

    Args:
        instance: Their type.
        model: What is trained.
        steps: What each step encodes.
        evaluation: What is encoded beside the steps.
        hosts: Instances that share every step, each with all its GPUs.
    """
    gpus = hosts * instance.gpus
    work = sum(
        max(gpu_seconds(instance, model.training(step), model.training_bytes(step)) / gpus, model.host_seconds())
        for step in steps
    )
    encoding = gpu_seconds(instance, model.encoding(evaluation), model.encoding_bytes(evaluation)) / gpus
    return work + len(steps) * model.exchange_seconds(hosts) + encoding


def gpu_seconds(instance: Instance, flop: float, moved: float) -> float:
    """Return the seconds that one GPU is taken to need for the products' FLOP and for the bytes moved beside them."""
    return flop / (instance.peak * PRODUCTS_REACH) + moved / (instance.bandwidth * MEMORY_REACH)


def dollars(instance: Instance, seconds: float, hosts: int = 1) -> float:
    """Return what a job of so many seconds costs on so many instances, its start included."""
    return (seconds / 3600 + STARTUP_MINUTES / 60) * instance.price * hosts


def assumptions(model: ModelCost, hosts: int = 1) -> list[str]:
    """Return what times and prices rest on besides the model and the tokens."""
    shared = (
        f"{hosts} instances share every step, and their gradients take {1000 * model.exchange_seconds(hosts):.0f} ms"
    )
    return [
        *([shared] if hosts > 1 else []),
        "several GPUs of an instance share every step, and add up their gradients in no time",
        f"Lorry was not timed on these GPUs: matrix products are taken to reach {PRODUCTS_REACH:.0%} of the dense "
        f"peak, all else {MEMORY_REACH:.0%} of the memory's bandwidth",
        f"the host gives out a step in {1000 * model.host_seconds():.0f} ms, and no step takes less",
        f"{STARTUP_MINUTES:.0f} minutes to load the image, read the pairs and write the report, billed like the rest",
        f"on-demand prices of SageMaker training in us-east-1, {PRICES_FROM}, billed by the second; no storage",
    ]
