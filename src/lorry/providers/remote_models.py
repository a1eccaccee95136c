"""The models of a run that providers run: what is sent to whom, and what it costs, is said before anything is sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorry.caches import cache_folder
from lorry.config import ProviderOptions
from lorry.errors import UserError
from lorry.providers.endpoint import Endpoint
from lorry.providers.names import RemoteName, is_remote, read_name
from lorry.providers.pricing import dollars
from lorry.providers.remote_model import RemoteModel
from lorry.providers.spending import Budget, in_dollars

log = logging.getLogger("lorry")


class RemoteModels:
    """Those models of a run that a provider runs; nothing is sent before `embed`.

    Args:
        models: Names as the user gave them, also of local models.
        options: Where, and for how much.
        max_length: Tokens, as estimated, at which texts are cut; 0: at what the provider takes.

    Raises:
        UserError: A name cannot be read, or there is no key, no credentials or no such address; or a limit is set and
            a price is not known.
    """

    def __init__(self, models: Iterable[str], options: ProviderOptions, max_length: int = 0) -> None:
        names = [read_name(text) for text in dict.fromkeys(models) if is_remote(text)]
        folder = cache_folder("embeddings") if names else Path()
        self._budget = Budget(options.max_dollars)
        self._models = {
            name.text: RemoteModel(name, _open(name, options), self._budget, folder, max_length) for name in names
        }
        for text, model in self._models.items():
            if model.price is None and options.max_dollars is not None:
                raise UserError(
                    f"max_dollars is {options.max_dollars:g}, but the price of {text} is not known",
                    "Leave out --max_dollars, or add the dollars per million tokens to the name: "
                    f"{text}{'&' if '?' in text else '?'}price=0.02.",
                )

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def announce(self, queries: Iterable[str], texts: Iterable[str]) -> None:
        """Say what will be sent to whom, and what it will cost.

        Args:
            queries: All that will be embedded.
            texts: The same of product texts.

        Raises:
            UserError: It would cost more than the limit.
        """
        if not self._models:
            return
        queries, texts = list(queries), list(texts)
        expected = 0.0
        for model in self._models.values():
            all_texts, sent, tokens = model.estimate(queries, texts)
            name = model.name.text
            if not sent:
                log.info("%s: all %s embeddings are in the cache, nothing is sent", name, f"{all_texts:,}")
                continue
            cost = dollars(tokens, model.price)
            expected += cost or 0.0
            cached = f"; {all_texts - sent:,} are in the cache" if all_texts > sent else ""
            log.info(f"{name}: {sent:,} queries and product texts leave this machine for {model.place}{cached}")
            log.info(f"{name}: about {tokens:,} tokens, an estimate; {_priced(model, cost)}")
        self._budget.check(expected)

    def embed(self, name: str, queries: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's embeddings of queries, [Q, width], and of product texts, [T, width], both float32.

        Raises:
            UserError: As `RemoteModel.embed`.
        """
        model = self._models[name]
        query_QD, text_TD = model.embed(queries, "query"), model.embed(texts, "document")
        if query_QD.shape[1] != text_TD.shape[1]:
            raise UserError(
                f"{name} gave {query_QD.shape[1]} numbers for queries and {text_TD.shape[1]} for product texts",
                "It is no model to compare them with.",
            )
        return query_QD, text_TD

    def summary(self) -> dict[str, dict[str, Any]]:
        """Say what was sent and what it has cost; return the same for metrics.json, by name."""
        for name, model in self._models.items():
            usage = model.usage
            if usage.cut:
                log.info("%s: %s texts were longer than is sent, and cut", name, f"{usage.cut:,}")
            if usage.requests:
                counted = "as the provider counts them" if usage.all_counted else "in part estimated"
                cost = _priced(model, dollars(usage.tokens, model.price))
                log.info(f"{name}: {usage.requests:,} requests, {usage.tokens:,} tokens {counted}; {cost}")
        return {name: model.summary() for name, model in self._models.items()}


def _priced(model: RemoteModel, cost: float | None) -> str:
    if cost is None:
        return "what they cost is not known"
    return f"{in_dollars(cost)} at ${model.price:g} a million (price from {model.prices_from})"


def _open(name: RemoteName, options: ProviderOptions) -> Endpoint:
    if name.provider == "openai":
        from lorry.providers.openai import KEY, OpenAIEndpoint

        return OpenAIEndpoint(name, options.openai_url, os.environ.get(KEY, ""))
    from lorry.providers.bedrock import BedrockEndpoint

    return BedrockEndpoint(name)
