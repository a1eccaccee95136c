"""Embeddings by a model that a provider runs: each text is sent once, paid once, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lorry.errors import UserError
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
        self.prices_from = None if self.price is None else PRICES_FROM if name.price is None else "the command line"
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
            self._ask(cache, [by_key[key] for key in missing], side)
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
            "tokens_counted_by": ("provider" if usage.all_counted else "estimate") if usage.requests else None,
            "dollars_per_million_tokens": self.price,
            "prices_from": self.prices_from,
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
            key = _key(short)
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

    def _ask(self, cache: VectorCache, texts: list[str], side: Side) -> None:
        """Send texts, several requests at once, and keep each answer as it comes; after a failure, those under way."""
        requests = requests_of(texts, self._endpoint.limits)
        progress = _Progress(self.name.text, len(texts))
        failed: UserError | None = None
        with ThreadPoolExecutor(self._endpoint.limits.at_once) as pool:
            try:
                while failed is None and (group := list(islice(requests, QUEUED))):
                    sent = {pool.submit(self._endpoint.send, request, side): request for request in group}
                    for future in as_completed(sent):
                        if future.cancelled():
                            continue
                        try:
                            answer = future.result()
                            cache.store([_key(text) for text in sent[future]], answer.vectors_ND)
                            progress.add(len(sent[future]))
                            self._pay(sent[future], answer)
                        except UserError as error:
                            failed = failed or error
                            self._endpoint.give_up()
                            for other in sent:
                                other.cancel()
            except BaseException:  # a stop
                self._endpoint.give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failed:
            progress.end()
            raise failed

    def _pay(self, request: Sequence[str], answer: Answer) -> None:
        usage = self.usage
        tokens = answer.tokens
        if tokens is None:
            usage.all_counted = False
            tokens = sum(map(estimate_tokens, request))
        usage.requests += answer.requests
        usage.tokens += tokens
        self._budget.spend(dollars(tokens, self.price))


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, name: str, texts: int) -> None:
        self._name, self._texts, self._done, self._said = name, texts, 0, time.monotonic()

    def add(self, texts: int) -> None:
        self._done += texts
        if time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            log.info(f"{self._name}: {self._done:,} of {self._texts:,} texts")

    def end(self) -> None:
        if self._done:
            log.info(f"{self._name}: {self._done:,} embeddings are kept for the next run")


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
