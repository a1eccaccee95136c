"""What a token costs in memory, and how many fit: measured on a real model."""

import numpy as np
import pytest
import torch

from lorry import hardware
from lorry.config import TrainConfig
from lorry.data.pairs import read_channel
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.training import memory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model, shop_pairs):
    pairs = read_channel(shop_pairs(tmp_path_factory.mktemp("shop")), TrainConfig())["all"]
    base = find_pretrained(str(tiny_model("bert")))
    encoder = Encoder(base, "fp32", CPU)
    encoder.add_lora(rank=4, alpha=8.0, dropout=0.0, targets="", seed=0)
    return encoder, tokenize(pairs, base)


def test_what_a_pass_keeps_grows_with_its_tokens(model):
    encoder, texts = model
    some, twice = (np.arange(count) for count in (100, 200))
    small, large = (memory.bytes_kept(encoder, texts, rows) for rows in (some, twice))
    tokens = [int(texts.lengths_of(rows).sum()) for rows in (some, twice)]
    assert large / small == pytest.approx(tokens[1] / tokens[0], rel=0.15)
    # A layer of this model keeps, of 32 numbers each, at least its input, query, key, value and two normalised sums.
    assert small > tokens[0] * 2 * 6 * 32 * 4
    assert all(weight.grad is None for weight in encoder.trainable().values())


def test_half_precision_keeps_about_half(model, tiny_model):
    encoder, texts = model
    half = Encoder(find_pretrained(str(tiny_model("bert"))), "bf16", CPU)
    half.add_lora(rank=4, alpha=8.0, dropout=0.0, targets="", seed=0)
    kept = [memory.bytes_kept(each, texts, np.arange(100)) for each in (half, encoder)]
    assert 0.4 < kept[0] / kept[1] < 0.75


def test_weights_that_are_kept_once_are_not_counted_for_every_token(model, monkeypatch):
    encoder, texts = model
    rows = np.arange(200)
    tokens = [int(texts.lengths_of(part).sum()) for part in (rows[:100], rows)]
    kept = [memory.bytes_kept(encoder, texts, part) for part in (rows[:100], rows)]
    token = (kept[1] - kept[0]) / (tokens[1] - tokens[0])
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 34)
    assert memory.tokens_that_fit(*model) == pytest.approx(memory.SHARE * (1 << 34) / token, rel=0.05)
    few = rows[:10]
    assert memory.bytes_kept(encoder, texts, few) > 1.05 * token * int(texts.lengths_of(few).sum())


def test_twice_the_memory_holds_twice_the_tokens(model, monkeypatch):
    fits = []
    for free in (1 << 30, 1 << 31):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        fits.append(memory.tokens_that_fit(*model))
    assert fits[1] == pytest.approx(2 * fits[0], rel=0.01)
    assert fits[0] > memory.PROBE_TOKENS
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    assert memory.tokens_that_fit(*model) == 1, "never 0, which would mean no limit"


def test_free_memory_is_the_containers_where_that_is_less(monkeypatch):
    whole = hardware.free_memory(CPU)
    assert whole > 1 << 28
    files = {"memory.max": "300000000\n", "memory.current": "100000000\n"}

    def read(name):
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    monkeypatch.setattr(hardware, "_read", read)
    assert hardware.free_memory(CPU) == 200_000_000
    files["memory.stat"] = "anon 10000000\ninactive_file 60000000\nactive_file 30000000\n"
    assert hardware.free_memory(CPU) == 260_000_000, "files that were read can be dropped from memory"
    files["memory.max"] = "max\n"
    assert hardware.free_memory(CPU) > 1 << 28


def test_both_kinds_of_out_of_memory_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not memory.is_out_of_memory(RuntimeError("shapes do not match"))
