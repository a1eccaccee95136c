"""Instances to rent, their GPUs and prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instance:
    """A SageMaker instance."""

    name: str
    gpu: str
    precision: str
    """What `--precision auto` takes there."""
    peak: float
    """FLOP/s of dense matrix products in that precision."""
    bandwidth: float
    """Bytes/s of the GPU's memory."""
    price: float
    """US dollars an hour."""
    gpus: int = 1


# Peaks and bandwidths are NVIDIA's, peaks dense (data sheets also print twice as much, with sparsity): T4 65; A10G 70,
# less than the A10's 125; L4 121. Prices are second-hand, from public repositories that recorded AWS's Price List API:
# g5 and g6 hosting in us-east-1 (30 July 2026), g4dn notebooks in us-west-2 (September 2026), where g5 and g6 cost the
# same; g4dn.12xlarge from an undated table, which has the same price of g4dn.xlarge. Training is taken to cost what
# these do.
PRICES_FROM = "July 2026"
INSTANCES = (
    Instance("ml.g4dn.xlarge", "T4", "fp16", 65e12, 320e9, 0.7364),
    Instance("ml.g4dn.12xlarge", "T4", "fp16", 65e12, 320e9, 4.89, gpus=4),
    Instance("ml.g5.xlarge", "A10G", "bf16", 70e12, 600e9, 1.408),
    Instance("ml.g6.xlarge", "L4", "bf16", 121e12, 300e9, 1.1267),
)


def price_of(name: str) -> float | None:
    """Return the US dollars an hour of an instance type; None where its price is not known."""
    return next((instance.price for instance in INSTANCES if instance.name == name), None)
