"""Names of models that a provider runs: `bedrock:MODEL`, `openai:MODEL`, with what is asked of them after a `?`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import parse_qsl

from lorry.errors import UserError, nearest

PROVIDERS = ("bedrock", "openai")
ASKED = ("dimensions", "price")


@dataclass(frozen=True)
class RemoteName:
    """A model of a provider, as `--model` names it."""

    text: str
    """As the user wrote it."""
    provider: str
    model: str
    """What the provider calls it."""
    dimensions: int | None = None
    """Numbers of an embedding; None: the model's own."""
    price: float | None = None
    """Dollars per million tokens, where the user gives it."""


def is_remote(text: str) -> bool:
    """Return whether a provider runs the model of this name."""
    return text.partition(":")[0] in PROVIDERS


def read_name(text: str) -> RemoteName:
    """Read a name such as `openai:text-embedding-3-small?dimensions=256&price=0.02`.

    Raises:
        UserError: It names no model, or asks for what there is not.
    """
    name, _, query = text.partition("?")
    provider, _, model = name.partition(":")
    if not model.strip():
        raise UserError(f"{text!r} names no model", f"Write e.g. {provider}:{_EXAMPLES[provider]}.")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    for key in asked:
        if key not in ASKED:
            guess = nearest(key, ASKED)
            hint = f"Did you mean {guess}?" if guess else f"There are {' and '.join(ASKED)}."
            raise UserError(f"{text!r} asks for {key!r}", hint)
    dimensions = _number(text, "dimensions", asked.get("dimensions"))
    if dimensions is not None and (dimensions < 1 or dimensions != int(dimensions)):
        raise UserError(f"{text!r}: dimensions is {dimensions:g}", "Give a whole number, e.g. 256.")
    price = _number(text, "price", asked.get("price"))
    return RemoteName(text, provider, model.strip(), None if dimensions is None else int(dimensions), price)


_EXAMPLES = {"bedrock": "amazon.titan-embed-text-v2:0", "openai": "text-embedding-3-small"}


def _number(text: str, key: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"{text!r}: {key} is {value!r}", "Give a number of 0 or more.")
    return number
