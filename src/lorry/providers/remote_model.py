"""Embeddings by a model that a provider runs: each text is sent once, paid once, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lorry.providers.cache import VectorCache
from lorry.providers.endpoint import Answer, Endpoint, Side, cut, requests_of
from lorry.providers.names import RemoteName
from lorry.providers.pricing import BYTES_PER_TOKEN, PRICES_FROM, dollars, estimate_tokens, price_of
from lorry.providers.spending import Budget, Usage

log = logging.getLogger("lorry")

FORMAT = 1  # of the cache's files
SAY_EVERY = 30.0  # seconds between lines that say how far it is
QUEUED = 64  # requests handed to the threads at a time


class RemoteModel:
    """A model that a provider runs.

    Args:
        name: The model.
        endpoint: Sends the texts.
        budget: Of the run.
        folder: Where embeddings are kept.
        max_length: Tokens, as estimated, at which texts are cut; 0: at what the provider takes.
    """

    def __init__(self, name: RemoteName, endpoint: Endpoint, budget: Budget, folder: Path, max_length: int = 0) -> None:
        self.name, self.place, self.usage = name, endpoint.place, Usage()
        self.price = price_of(name, endpoint.url)
        self.width = 0
        self._endpoint, self._budget, self._folder = endpoint, budget, folder
        self._most_bytes = max_length * BYTES_PER_TOKEN
        self._seen: set[bytes] = set()

    def embed(self, texts: Sequence[str], side: Side) -> np.ndarray:
        """Return the embeddings of texts, [n, width] float32; those that were embedded before come from the cache.

        Raises:
            UserError: The provider refuses or cannot be reached, its answer is not as it should be, the budget is
                spent, or the cache cannot be written. What came back until then is kept.
        """
        by_key, keys = self._keyed(texts, side)
        with VectorCache(self._path(side)) as cache:
            missing = cache.missing(by_key)
            self._count(by_key, missing, texts)
            self._ask(cache, missing, by_key, side)
            vectors_ND = cache.read(keys)
        self.width = vectors_ND.shape[1] or self.width
        return vectors_ND

    def estimate(self, queries: Iterable[str], texts: Iterable[str]) -> tuple[int, int, int]:
        """Return (texts in all, those that will be sent, their tokens as estimated)."""
        all_texts = sent = tokens = 0
        for side, of_side in self._sides(queries, texts):
            by_key, _ = self._keyed(of_side, side)
            with VectorCache(self._path(side)) as cache:
                missing = cache.missing(by_key)
            all_texts, sent = all_texts + len(by_key), sent + len(missing)
            tokens += sum(estimate_tokens(by_key[key]) for key in missing)
        self.usage.tokens_estimated = tokens
        return all_texts, sent, tokens

    def summary(self) -> dict[str, Any]:
        """Return what was asked and what it cost, for metrics.json."""
        usage = self.usage
        return {
            "provider": self.name.provider,
            "model": self.name.model,
            "place": self.place,
            "dimensions": self.width,
            "texts": usage.texts,
            "from_cache": usage.from_cache,
            "cut": usage.cut,
            "requests": usage.requests,
            "tokens_estimated": usage.tokens_estimated,
            "tokens": usage.tokens,
            "tokens_counted_by_provider": usage.uncounted_requests == 0,
            "dollars_per_million_tokens": self.price,
            "prices_from": "the user"
            if self.name.price is not None
            else PRICES_FROM
            if self.price is not None
            else None,
            "dollars_estimated": dollars(usage.tokens_estimated, self.price),
            "dollars": dollars(usage.tokens, self.price),
        }

    def _sides(self, queries: Iterable[str], texts: Iterable[str]) -> Iterator[tuple[Side, list[str]]]:
        if self._endpoint.two_sided:
            yield "query", list(queries)
            yield "document", list(texts)
        else:
            yield "document", [*queries, *texts]

    def _keyed(self, texts: Iterable[str], side: Side) -> tuple[dict[bytes, str], list[bytes]]:
        """Return what is sent by its key, and the key of every text."""
        by_key: dict[bytes, str] = {}
        keys = []
        for text in texts:
            short = self._cut(text)
            key = hashlib.sha256(short.encode()).digest()
            by_key[key] = short
            keys.append(key)
        return by_key, keys

    def _cut(self, text: str) -> str:
        short = cut(text, self._endpoint.limits)
        return short.encode()[: self._most_bytes].decode(errors="ignore") if self._most_bytes else short

    def _path(self, side: Side) -> Path:
        """Return the file of embeddings that depend on the same things."""
        kept = [FORMAT, self.name.provider, self.name.model, self._endpoint.url, self.name.dimensions]
        digest = hashlib.sha256(json.dumps([*kept, side if self._endpoint.two_sided else ""]).encode()).hexdigest()
        plain = re.sub(r"[^A-Za-z0-9]+", "-", self.name.model)[:40].strip("-")
        return self._folder / f"{self.name.provider}-{plain}-{digest[:16]}.sqlite"

    def _count(self, by_key: Mapping[bytes, str], missing: Collection[bytes], texts: Sequence[str]) -> None:
        """Count texts, once each in a run."""
        new = by_key.keys() - self._seen
        self.usage.texts += len(new)
        self.usage.from_cache += len(new - set(missing))
        self.usage.cut += len({text for text in texts if self._cut(text) != text})
        self._seen |= new

    def _ask(self, cache: VectorCache, missing: list[bytes], by_key: Mapping[bytes, str], side: Side) -> None:
        """Send what is missing, several requests at once, and keep each answer as it comes."""
        requests = requests_of([by_key[key] for key in missing], self._endpoint.limits)
        done, said = 0, time.monotonic()
        with ThreadPoolExecutor(self._endpoint.limits.at_once) as pool:
            try:
                while group := list(islice(requests, QUEUED)):
                    for request, answer in zip(group, pool.map(lambda sent: self._endpoint.send(sent, side), group)):
                        cache.store(missing[done : done + len(request)], answer.vectors_ND)
                        done += len(request)
                        self._pay(request, answer)
                        if time.monotonic() - said > SAY_EVERY:
                            said = time.monotonic()
                            log.info("%s: %s of %s texts", self.name.text, f"{done:,}", f"{len(missing):,}")
            except BaseException:
                self._endpoint.give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                if done:
                    log.info("%s: the next run begins with %s embeddings of this one", self.name.text, f"{done:,}")
                raise

    def _pay(self, request: Sequence[str], answer: Answer) -> None:
        usage = self.usage
        tokens = answer.tokens
        if tokens is None:
            usage.uncounted_requests += 1
            tokens = sum(map(estimate_tokens, request))
        usage.requests += 1
        usage.tokens += tokens
        self._budget.spend(dollars(tokens, self.price))
