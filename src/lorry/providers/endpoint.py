"""What every provider's interface has in common: limits of a request, and the check of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from lorry.errors import UserError

Side = Literal["query", "document"]


@dataclass(frozen=True)
class Limits:
    """How much a provider takes."""

    texts: int
    """In a request."""
    request_bytes: int
    """UTF-8 bytes of all texts of a request."""
    text_characters: int
    text_bytes: int
    """UTF-8 bytes of a text; what is longer is cut before it is sent."""
    at_once: int
    """Requests under way at the same time."""


class Answer(NamedTuple):
    """What came back for some texts."""

    vectors_ND: np.ndarray
    """[n, width] float32, in the order of the texts."""
    tokens: int | None
    """As the provider counts them; None where it does not say."""
    requests: int = 1
    """That it took."""


class Endpoint(Protocol):
    """A model of a provider."""

    place: str
    """Where texts are sent, as it is told to the user."""
    url: str
    """What the embeddings depend on besides the model's name; empty where there is nothing."""
    limits: Limits
    two_sided: bool
    """Whether a query is embedded in another way than a product text."""

    def send(self, texts: list[str], side: Side) -> Answer:
        """Return the embeddings of texts that are within the limits; may be called by several threads.

        Raises:
            UserError: The provider refuses, does not answer, or its answer is not as it should be.
        """
        ...

    def give_up(self) -> None:
        """Let requests that wait for another try end at once."""
        ...


def cut(text: str, limits: Limits) -> str:
    """Return as much of a text as may be sent."""
    short = text[: limits.text_characters]
    if len(short) * 4 <= limits.text_bytes:  # no character has more than four bytes
        return short
    return short.encode()[: limits.text_bytes].decode(errors="ignore")


def requests_of(texts: Sequence[str], limits: Limits) -> Iterator[list[str]]:
    """Yield the texts of one request after the other, in order."""
    request: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if request and (len(request) == limits.texts or size + length > limits.request_bytes):
            yield request
            request, size = [], 0
        request.append(text)
        size += length
    if request:
        yield request


def as_matrix(rows: object, texts: Sequence[str], who: str) -> np.ndarray:
    """Return embeddings as they were read from JSON, [n, width] float32.

    Args:
        rows: A list of numbers, or an array, for each text.
        texts: What they are the embeddings of.
        who: Who gave them.

    Raises:
        UserError: It is not one embedding for every text, of one width and of finite numbers.
    """
    hint = "It is no embedding model, or the server is at fault: look at its own log."
    if not isinstance(rows, list) or len(rows) != len(texts):
        given = f"{len(rows)} embeddings" if isinstance(rows, list) else "no list of embeddings"
        raise UserError(f"{who} gave {given} for {len(texts)} texts", hint)
    vectors: list[np.ndarray] = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        which = f"for text {number + 1} of {len(texts)} ({text!r:.60})"
        try:
            vector = np.asarray(row, np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, np.float32)
        if vector.ndim != 1 or not len(vector):
            raise UserError(f"{who} gave no list of numbers {which}", hint)
        if not np.isfinite(vector).all():
            raise UserError(f"{who} gave numbers that are not finite {which}", hint)
        if vectors and len(vector) != len(vectors[0]):
            raise UserError(f"{who} gave {len(vector)} numbers {which}, and {len(vectors[0])} for text 1", hint)
        vectors.append(vector)
    return np.stack(vectors)
