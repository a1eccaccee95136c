"""What embeddings will cost, as far as that can be told, and what they have cost."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.errors import UserError


@dataclass
class Budget:
    """What may be spent in a run, over all models."""

    limit: float | None
    """Dollars; None: whatever it takes."""
    spent: float = 0.0

    def check(self, expected: float) -> None:
        """Refuse a run that is expected to cost more than the limit.

        Raises:
            UserError: It is.
        """
        if self.limit is not None and expected > self.limit:
            raise UserError(
                f"the embeddings would cost about {in_dollars(expected)}, more than max_dollars {self.limit:g}",
                "Give fewer pairs or a higher --max_dollars. Nothing was sent.",
            )

    def spend(self, cost: float | None) -> None:
        """Count what a request has cost.

        Raises:
            UserError: More than the limit is spent.
        """
        self.spent += cost or 0.0
        if self.limit is not None and self.spent > self.limit:
            raise UserError(
                f"{in_dollars(self.spent)} are spent, more than max_dollars {self.limit:g}: the estimate was too low",
                "Give a higher --max_dollars to go on.",
            )


@dataclass
class Usage:
    """What a model has been asked for, and what that took."""

    texts: int = 0
    """Distinct texts, and sides of one where these differ."""
    from_cache: int = 0
    cut: int = 0
    """Texts that were longer than the provider takes."""
    requests: int = 0
    tokens_estimated: int = 0
    """Of what is not in the cache, before anything was sent."""
    tokens: int = 0
    """As the provider counted them; where it did not, as estimated."""
    all_counted: bool = True
    """Whether the provider counted the tokens of all requests."""


def in_dollars(amount: float) -> str:
    """Return an amount with two digits that count, at least cents."""
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}"
