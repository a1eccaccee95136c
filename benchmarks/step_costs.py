"""What a training step of Lorry's default costs a GPU and its host, counted and timed without needing a GPU.

    python benchmarks/step_costs.py PAIRS.parquet [--batch_size 240] [--layers 12] [--width 768] [--device cuda]

- operations: what the CPU gives out in a step, and how many of them are no views: about as many kernels.
- bytes: read and written for every token by all that is no matrix product, in a step and in encoding: the products
  take time by their arithmetic, the rest by its memory traffic. `lorry plan` takes its figures from here.
- host: the time of a step with next to no arithmetic (a model of few numbers, few pairs): what the CPU needs to give
  out its operations. With --device cuda the kernels are launched in earnest.

On a CPU attention goes through the operations that a GPU gets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import Pairs, read_channel
from lorry.data.sampler import BatchSampler
from lorry.hardware import make_accelerator
from lorry.model import attention
from lorry.model import encoder as encoders
from lorry.model.encoder import Encoder
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import TokenizedTexts, tokenize
from lorry.training.batches import Batch, make_batch
from lorry.training.setup import trainable_encoder
from lorry.training.update import Parts, Trainer

STEPS, TURNS = 10, 8
TINY_PAIRS = 8
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "linear", "_linear_pointwise")
VIEWS = ("view", "t", "transpose", "expand", "unsqueeze", "slice", "select", "split", "_unsafe_view", "alias", "detach",
         "permute", "unbind", "as_strided", "split_with_sizes", "squeeze", "_local_scalar_dense")  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = function(*args, **(kwargs or {}))
        tensors = [item for item in tree_leaves((args, result)) if isinstance(item, torch.Tensor)]
        name = function.__name__.split(".")[0]
        self.calls[name] += 1
        self.bytes[name] += sum(item.numel() * item.element_size() for item in tensors)
        return result

    def launches(self) -> int:
        """Return the operations that are no views."""
        return sum(count for name, count in self.calls.items() if name not in VIEWS)

    def traffic(self) -> int:
        """Return the bytes of all that is neither a view nor a matrix product."""
        return sum(count for name, count in self.bytes.items() if name not in (*VIEWS, *PRODUCTS))


@dataclass(frozen=True)
class Steps:
    """A trainer and a batch that it can repeat."""

    trainer: Trainer
    batch: Batch
    parts: Parts

    def run(self, count: int) -> None:
        """Make so many steps and wait for the device."""
        for step in range(count):
            loss = self.trainer.step(self.batch, step, 1e-4, self.parts)
        loss.item()


def main() -> None:
    """Count, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, help="parquet file of query, text and gain")
    parser.add_argument("--batch_size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--layers", type=int, help="default: those of the bundled model")
    parser.add_argument("--width", type=int, help="numbers in an embedding; default: as the bundled model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    encoders.PASS_TOKENS["cpu"] = encoders.PASS_TOKENS["cuda"]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(attention.PackedAttention, "apply", attention.attend_with_sdpa),
        mock.patch.object(torch.cuda, "is_available", return_value=arguments.device == "cuda"),
    ):
        whole = model_of(Path(folder, "whole"), arguments.layers, arguments.width)
        tiny = model_of(Path(folder, "tiny"), arguments.layers, 24)
        print(json.dumps(counted(whole, arguments) | timed(tiny, arguments)))


def model_of(folder: Path, layers: int | None, width: int | None) -> PretrainedModel:
    """Return a random model of this size with the bundled model's tokenizer, or the bundled model itself."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    base = find_pretrained("bundled")
    if layers is None and width is None:
        return base
    config = AutoConfig.from_pretrained(base.folder)
    config.num_hidden_layers = layers or config.num_hidden_layers
    config.hidden_size = width or config.hidden_size
    config.intermediate_size = 4 * config.hidden_size
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base.folder).save_pretrained(folder)
    return find_pretrained(str(folder))


def counted(base: PretrainedModel, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the operations of a step, and the bytes of a token in a step and in encoding."""
    steps = _steps(base, arguments.pairs, arguments.batch_size)
    steps.run(2)
    with Counting() as step:
        steps.run(1)
    with torch.no_grad(), Counting() as encoding:
        steps.trainer.encoder.embed_inputs(steps.parts.inputs[0])
    tokens = steps.parts.tokens
    return {
        "tokens": tokens,
        "operations": sum(step.calls.values()),
        "launches": step.launches(),
        "step_bytes": step.traffic() / tokens,
        "encoding_bytes": encoding.traffic() / tokens,
    }


def timed(base: PretrainedModel, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of a step with next to no arithmetic, the fewest of several turns."""
    steps, turns = _steps(base, arguments.pairs, TINY_PAIRS), []
    for _ in range(TURNS):
        began = time.perf_counter()
        steps.run(STEPS)
        turns.append(time.perf_counter() - began)
    return {"host_milliseconds": 1000 * min(turns) / STEPS}


def _steps(base: PretrainedModel, file: Path, batch_size: int) -> Steps:
    config = TrainConfig(batch_size=batch_size)
    pairs: Pairs = read_channel(file, PairOptions(label_column="gain", positive_threshold=0.5))["all"]
    texts: TokenizedTexts = tokenize(pairs, base)
    accelerator, _ = make_accelerator("auto")
    precision = "fp32" if accelerator.device.type == "cpu" and base.folder.name == "tiny" else "bf16"
    encoder: Encoder = trainable_encoder(config, base, precision, accelerator.device)
    trainer = Trainer(encoder, texts, config, accelerator)
    chosen = BatchSampler(pairs.query, batch_size, 1, seed=0).batch(0)
    batch = make_batch(texts, pairs, chosen, accelerator.device)
    return Steps(trainer, batch, trainer.parts(batch))


if __name__ == "__main__":
    main()
