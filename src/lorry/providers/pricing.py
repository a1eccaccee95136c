"""What providers charge for a million tokens, and how many tokens a text is taken to have.

Prices of Bedrock are those of US regions on demand; both providers' as LiteLLM 1.110.2 recorded them from
https://aws.amazon.com/bedrock/pricing/ and https://developers.openai.com/api/docs/pricing, read on 27 November 2026.
"""

from __future__ import annotations

from lorry.providers.names import RemoteName

PRICES_FROM = "November 2026"
OPENAI_URL = "https://api.openai.com/v1"
"""The only address of which the price table knows something."""

# Of texts in a Latin script. Home Depot's titles have 3.8, its queries 4.3 with the tokenizer of BERT.
BYTES_PER_TOKEN = 4

_DOLLARS = {
    "bedrock": {
        "amazon.titan-embed-text-v1": 0.10,
        "amazon.titan-embed-text-v2:0": 0.02,
        "amazon.titan-embed-g1-text-02": 0.10,
        "cohere.embed-english-v3": 0.10,
        "cohere.embed-multilingual-v3": 0.10,
        "cohere.embed-v4:0": 0.12,
    },
    "openai": {
        "text-embedding-3-small": 0.02,
        "text-embedding-3-large": 0.13,
        "text-embedding-ada-002": 0.10,
    },
}
_PROFILES = ("us.", "eu.", "global.")  # how the names of inference profiles begin, which cost what their model does


def price_of(name: RemoteName, url: str) -> float | None:
    """Return dollars per million tokens, None where nobody knows; what the user gave goes first."""
    if name.price is not None:
        return name.price
    if name.provider == "openai" and url != OPENAI_URL:
        return None
    model = name.model
    for profile in _PROFILES if name.provider == "bedrock" else ():
        model = model.removeprefix(profile)
    return _DOLLARS[name.provider].get(model)


def estimate_tokens(text: str) -> int:
    """Return how many tokens a text is taken to have."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def dollars(tokens: int, price: float | None) -> float | None:
    """Return what tokens cost, None where the price is unknown."""
    return None if price is None else tokens * price / 1e6
