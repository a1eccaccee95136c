"""How many operations a run takes, and what these come to in hours and dollars on instances one can rent.

Arithmetic only: nothing is run here. `ASSUMPTIONS` states what it rests on besides the model and the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# No GPU was timed; small matrices leave large parts of one idle, hence a low share.
REACHED = 0.1
STARTUP_MINUTES = 5.0


@dataclass(frozen=True)
class Instance:
    """A SageMaker instance with one GPU."""

    name: str
    gpu: str
    precision: str
    """What `--precision auto` takes there."""
    peak: float
    """FLOP/s of dense matrix products in that precision."""
    price: float
    """US dollars an hour."""


# Peaks are NVIDIA's, dense (data sheets also print twice as much, with sparsity): T4 65; A10G 70, less than the A10's
# 125; L4 121. Prices are second-hand, from public repositories that recorded AWS's Price List API: g5 and g6 hosting
# in us-east-1 (30 July 2026), g4dn notebooks in us-west-2 (September 2026), where g5 and g6 cost the same. Training is
# taken to cost what these do.
PRICES_FROM = "July 2026"
INSTANCES = (
    Instance("ml.g4dn.xlarge", "T4", "fp16", 65e12, 0.7364),
    Instance("ml.g5.xlarge", "A10G", "bf16", 70e12, 1.408),
    Instance("ml.g6.xlarge", "L4", "bf16", 121e12, 1.1267),
)
ASSUMPTIONS = (
    f"matrix products reach {REACHED:.0%} of the GPU's dense peak, a cautious guess: Lorry was not timed on these GPUs",
    f"{STARTUP_MINUTES:.0f} minutes to load the image, read the pairs and write the report, billed like the rest",
    f"on-demand prices of SageMaker training in us-east-1, {PRICES_FROM}, billed by the second; storage not counted",
)


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
class Products:
    """The matrix products of a model, in numbers that each token is multiplied by once."""

    frozen: int
    """Weights of the linear layers that are not trained."""
    adapters: int
    """Weights of the LoRA adapters."""
    attention: int
    """Numbers in a token's queries, over all layers: each is multiplied by every key of its text; values likewise."""

    def encoding(self, tokens: Tokens) -> float:
        """Return the FLOP of a forward pass."""
        return 2.0 * (self.frozen + self.adapters) * tokens.count + 4.0 * self.attention * tokens.squares

    def training(self, tokens: Tokens) -> float:
        """Return the FLOP of a forward and a backward pass.

        The gradient of a product takes two of the same size, one for each factor; frozen weights need none.
        """
        return (4.0 * self.frozen + 6.0 * self.adapters) * tokens.count + 12.0 * self.attention * tokens.squares


def products_of(model: Any) -> Products:
    """Count the matrix products of a transformers model from its linear layers; what is not frozen is an adapter.

    A pooler is left out: it sees one token a text, and embeddings do not come from it. Where layers look at no more
    than a window of the text (ModernBERT), attention is counted as if they looked at all of it.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight for name, layer in layers if "pooler" not in name]
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Products(
        frozen=sum(weight.numel() for weight in weights if not weight.requires_grad),
        adapters=sum(weight.numel() for weight in weights if weight.requires_grad),
        attention=config.num_hidden_layers * config.num_attention_heads * head,
    )


def hours(instance: Instance, flop: float) -> float:
    """Return the hours that a job of `flop` operations is billed for."""
    return STARTUP_MINUTES / 60 + flop / (instance.peak * REACHED) / 3600


def dollars(instance: Instance, flop: float) -> float:
    """Return what a job of `flop` operations costs."""
    return hours(instance, flop) * instance.price
