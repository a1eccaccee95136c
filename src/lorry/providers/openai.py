"""Embeddings from OpenAI, and from whatever server answers `POST {url}/embeddings` as OpenAI's does.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx2
import numpy as np
import tenacity

from lorry.errors import UserError
from lorry.logs import duration
from lorry.providers.endpoint import Answer, Limits, Side, as_matrix
from lorry.providers.names import RemoteName
from lorry.providers.pricing import OPENAI_URL

log = logging.getLogger("lorry")

KEY = "OPENAI_API_KEY"
# OpenAI takes 2,048 texts and 300,000 tokens in a request, and 8,192 tokens in a text. A token has a byte at least, and
# of a whole text two bytes a token are few.
LIMITS = Limits(texts=128, request_bytes=200_000, text_characters=16_000, text_bytes=16_000, at_once=4)

TRIES = 8
LONGEST = 300.0  # seconds for which a request is tried again and again
SAID = 5.0  # seconds of waiting that are told of
PASSING = {408, 409, 425, 429}  # like 500 and above, these may go away
TOO_MUCH = {400, 413, 422}  # what servers say to more texts than they take at once, and to much else


class OpenAIEndpoint:
    """A model behind an interface like OpenAI's; see `Endpoint`.

    Args:
        name: The model.
        url: Base URL: what comes before /embeddings.
        key: Sent as bearer token; empty: none.

    Raises:
        UserError: The URL or the key cannot be used, or OpenAI itself is asked without a key.
    """

    two_sided = False
    limits = LIMITS

    def __init__(self, name: RemoteName, url: str, key: str) -> None:
        self.url = self.place = _checked_url(url)
        self._name = name
        self._key = _checked_key(key.strip(), self.url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(headers=headers, timeout=httpx2.Timeout(120.0, connect=10.0))
        self._most = LIMITS.texts  # smaller servers take fewer at once; which is found out
        self._given_up = threading.Event()
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            wait=_wait,
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(TRIES),
                tenacity.stop_before_delay(LONGEST),
                tenacity.stop_when_event_set(self._given_up),
            ),
            before_sleep=self._say,
            sleep=tenacity.sleep_using_event(self._given_up),
            reraise=True,
        )

    def send(self, texts: list[str], side: Side) -> Answer:
        """Return the embeddings of texts; see `Endpoint.send`."""
        answers: list[Answer] = []
        for part in _parts(texts, self._most):
            try:
                answers.append(self._ask(part))
            except _TooMuchError as error:
                if len(part) == 1:
                    raise UserError(
                        f"{self.place} refuses the text {part[0]!r:.60}: {error}",
                        "Correct what it names; --max_length cuts texts shorter, dimensions=… in the model's name "
                        "may be what the model does not offer.",
                    ) from None
                self._most = min(self._most, len(part) // 2)
                answers.append(self.send(part, side))
        vectors, tokens, requests = zip(*answers, strict=True)
        return Answer(np.concatenate(vectors), None if None in tokens else sum(tokens), sum(requests))

    def give_up(self) -> None:
        """Let requests that wait for another try end at once."""
        self._given_up.set()

    def _say(self, state: tenacity.RetryCallState) -> None:
        """Say why nothing happens for a while."""
        if state.outcome and state.upcoming_sleep >= SAID:
            log.info(
                "%s: %s; asking again in %s", self.place, state.outcome.exception(), duration(state.upcoming_sleep)
            )

    def _ask(self, texts: list[str]) -> Answer:
        body: dict[str, Any] = {"model": self._name.model, "input": texts, "encoding_format": "float"}
        if self._name.dimensions:
            body["dimensions"] = self._name.dimensions
        try:
            reply = self._retrying(self._post, body)
        except _PassingError as error:
            tries = self._retrying.statistics["attempt_number"]
            raise UserError(
                f"{self.place}: {error}, after {tries} {'try' if tries == 1 else 'tries'}",
                "Check the address, the server and the network, or try again later.",
            ) from None
        return _read(reply, texts, self.place)

    def _post(self, body: dict[str, Any]) -> Any:
        """Send one request; the answer is parsed, for half of one is as bad as none."""
        try:
            response = self._client.post(f"{self.url}/embeddings", json=body)
        except httpx2.TransportError as error:
            raise _PassingError(str(error) or type(error).__name__) from error
        if response.status_code != 200:
            self._refuse(response)
        try:
            return response.json()
        except ValueError:
            raise UserError(
                f"{self.place} answers, but not with JSON: {response.text!r:.80}", "Check --openai_url; it ends in /v1."
            ) from None

    def _refuse(self, response: httpx2.Response) -> NoReturn:
        status, (said, code) = response.status_code, _error_in(response)
        if self._key:
            said = said.replace(self._key, "…")
        told = f"HTTP {status} {said}".rstrip()
        if status in (401, 403):  # what is said may have a part of the key in it
            has = f"does not accept the key in {KEY} for {self._name.model}" if self._key else "asks for a key"
            raise UserError(f"{self.place} {has} (HTTP {status})", f"Set {KEY} to a key that may use the model.")
        if code == "insufficient_quota":
            raise UserError(f"{self.place}: {told}", "Add credit to the account, or wait for its next period.")
        if status in PASSING or status >= 500:
            raise _PassingError(told, _retry_after(response))
        if status in TOO_MUCH:
            raise _TooMuchError(told)
        if status == 404:
            hint = "Check the model's name, and --openai_url: it ends in /v1."
            raise UserError(f"{self.place} does not know the model {self._name.model} ({told})", hint)
        if response.is_redirect:
            told = f"{told}, and points to {response.headers.get('Location', 'nowhere')!r:.100}"
        raise UserError(f"{self.place} answers {told}", "Check --openai_url; it ends in /v1.")


class _PassingError(Exception):
    """A failure that may go away; `after` is for how many seconds the server asks to be left alone."""

    def __init__(self, told: str, after: float = 0.0) -> None:
        super().__init__(told)
        self.after = after


class _TooMuchError(Exception):
    """The server takes no such request; perhaps one of fewer texts."""


def _checked_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"openai_url is {url!r:.100}, which is no web address", f"Give one such as {OPENAI_URL}.")
    if parsed.userinfo:
        raise UserError("openai_url has a user name or a password in it", f"Leave them out; a key goes into {KEY}.")
    return url.rstrip("/")


def _checked_key(key: str, url: str) -> str:
    if not key and url == OPENAI_URL:
        raise UserError(f"{OPENAI_URL} asks for a key", f"Set {KEY}, or give another server's address: --openai_url.")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY} holds no key: it has characters that no key has", "Copy the key again.")
    return key


def _wait(state: tenacity.RetryCallState) -> float:
    """Return seconds until the next try: longer and longer, by chance, and no less than the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.after if isinstance(error, _PassingError) else 0.0)


_backoff = tenacity.wait_exponential_jitter(initial=0.5, max=60, jitter=1)


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds that Retry-After asks for, as a number or as a date; 0 where there is none."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _error_in(response: httpx2.Response) -> tuple[str, str]:
    """Return what a server says about an error, in one short line, and OpenAI's code of it."""
    try:
        said = json.loads(response.content)
    except ValueError:
        return " ".join(response.text.split())[:200], ""
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error
        return " ".join(str(message).split())[:200], str(error.get("code"))
    return " ".join(str(error).split())[:200], ""


def _parts(texts: list[str], most: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), most):
        yield texts[start : start + most]


def _read(reply: Any, texts: list[str], place: str) -> Answer:
    """Return what an answer holds, in the order of the texts, whatever its own order."""
    items = reply.get("data") if isinstance(reply, dict) else None
    if isinstance(items, list) and all(isinstance(item, dict) for item in items):
        order = [item.get("index", number) for number, item in enumerate(items)]
        if len(items) == len(texts):
            missing = [number for number in range(len(texts)) if number not in set(order)]
            if missing:
                text = texts[missing[0]]
                raise UserError(
                    f"{place} gave no embedding for text {missing[0] + 1} of {len(texts)} ({text!r:.60})",
                    "The server is at fault: look at its own log.",
                )
            items = [item for _, item in sorted(zip(order, items, strict=True), key=lambda pair: pair[0])]
        items = [_decoded(item.get("embedding")) for item in items]
    usage = reply.get("usage") if isinstance(reply, dict) else None
    tokens = (usage.get("total_tokens") or usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return Answer(as_matrix(items, texts, place), tokens if isinstance(tokens, int) and tokens > 0 else None)


def _decoded(embedding: Any) -> Any:
    """Return an embedding as it is, or the array in base64 that some servers always send."""
    if not isinstance(embedding, str):
        return embedding
    try:
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    except (binascii.Error, ValueError):
        return None
