"""What the tests of providers share: a server, a cache of their own, and no key of this machine's."""

import json

import pytest
from embedding_server import serving

from command import lorry


@pytest.fixture
def server():
    with serving() as made:
        yield made


@pytest.fixture(scope="session")
def shop(tmp_path_factory, shop_pairs):
    return shop_pairs(tmp_path_factory.mktemp("shop"), queries=10)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of embeddings; no proxy or key of this machine is used."""
    monkeypatch.setenv("LORRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def evaluate(tmp_path, cache, server, shop):
    """Return `evaluate(models, **options)`: how the command ended, and metrics.json, None without."""

    def run(*models, **options):
        output = tmp_path / "metrics.json"
        output.unlink(missing_ok=True)
        words = [word for model in models for word in ("--model", model)]
        defaults = {"data": shop, "output": output, "precision": "fp32", "openai_url": server.url}
        ended = lorry("evaluate", *words, **(defaults | options))
        return ended, json.loads(output.read_text()) if output.exists() else None

    return run
