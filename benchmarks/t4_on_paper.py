"""What an epoch takes on a T4 (ml.g4dn.xlarge), on paper: the cost model of `lorry plan`, for data sets that are known.

    python benchmarks/t4_on_paper.py       prints the table in docs/benchmarks.md

Texts are titles. Home Depot's tokens are those that `lorry plan` counts. ESCI's judgements and queries are those of its
US part as published; its tokens are means over the 482 titles and 50 queries of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import records
from lorry.instances import INSTANCES
from lorry.logs import duration
from lorry.planning import cost
from lorry.planning.cost import ModelCost, Tokens

BATCH_SIZE = 96
T4 = next(instance for instance in INSTANCES if instance.gpu == "T4")


@dataclass(frozen=True)
class Data:
    """A data set's training pairs."""

    pairs: int
    queries: int
    query_length: float
    """Mean tokens."""
    text_length: float

    def step(self) -> Tokens:
        """Return what a mean step encodes: each query and text of its batch once."""
        queries = BATCH_SIZE * self.queries / self.pairs
        count = queries * self.query_length + BATCH_SIZE * self.text_length
        return Tokens(round(count), round(queries * self.query_length**2 + BATCH_SIZE * self.text_length**2))


DATA = {
    "Home Depot": Data(55_007, 8_836, 7.2, 20.3),
    "ESCI, US, small version": Data(601_354, 29_844, 7.0, 27.8),
    "ESCI, US, large version": Data(1_818_825, 97_345, 7.0, 27.8),
}


def model(layers: int, width: int, rank: int = 16) -> ModelCost:
    """Return the cost of a BERT of this size, with adapters on all its linear layers."""
    frozen, sides = layers * 12 * width**2, layers * (4 * 2 + 2 * 5) * width
    return ModelCost(frozen, rank * sides, attention=layers * width, layers=layers, width=width)


MODELS = {"all-MiniLM-L6 (6 layers, 384)": model(6, 384), "bge-base, e5-base (12 layers, 768)": model(12, 768)}


def table() -> str:
    """Return the table as Markdown."""
    rows = []
    for name, each in MODELS.items():
        for data, item in DATA.items():
            step, steps = item.step(), -(-item.pairs // BATCH_SIZE)
            seconds = cost.seconds(T4, each, [step] * steps, Tokens(0, 0))
            flop = steps * each.training(step)
            gpu = cost.gpu_seconds(T4, each.training(step), each.training_bytes(step))
            rows.append([
                name, data, f"{steps * step.count / 1e6:.1f} M", f"{flop / 1e12:,.0f}",
                f"{1000 * gpu:.1f}", f"{1000 * each.host_seconds():.0f}", duration(seconds),
                f"{flop / seconds / T4.peak:.0%}", f"${seconds / 3600 * T4.price:.2f}",
            ])  # fmt: skip
    head = ["model", "data", "tokens", "TFLOP", "GPU, ms a step", "host, ms a step", "epoch", "share of peak", "cost"]
    return records.markdown(head, rows)


if __name__ == "__main__":
    print(table())
