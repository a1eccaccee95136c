"""Encoding with prepared weights: the embeddings stay what they are, and so does the encoder."""

import json
import shutil

import pytest
import torch
from padded_models import CPU, adapted_pair, assert_equal_gradients, encoder_of, gradients, packed_of, some_texts

from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained


def embedded(encoder, texts):
    with torch.inference_mode():
        return encoder.embed(packed_of(texts))


def assert_same_when_prepared(encoder, *, atol):
    """Compare embeddings with prepared weights with those without, before and afterwards."""
    texts = some_texts(encoder)
    before = embedded(encoder, texts)
    with encoder.prepared():
        found = embedded(encoder, texts)
    torch.testing.assert_close(found, before, atol=atol, rtol=0)
    assert torch.equal(embedded(encoder, texts), before)
    return found


def test_every_architecture_embeds_the_same(tiny_model, kind):
    assert_same_when_prepared(encoder_of(tiny_model(kind)), atol=1e-5)


def test_adapters_count_and_are_trained_afterwards_as_before(tiny_model, kind):
    encoder, _, weights, _ = adapted_pair(tiny_model(kind))
    texts = some_texts(encoder)
    found = assert_same_when_prepared(encoder, atol=1e-5)
    untrained = embedded(encoder_of(tiny_model(kind)), texts)
    assert (found - untrained).abs().max() > 0.01, "the adapters change nothing: the comparison would show nothing"
    packed = packed_of(texts)
    expected = gradients(encoder.embed(packed), weights)
    with torch.inference_mode(), encoder.prepared():
        encoder.embed(packed)
    assert_equal_gradients(gradients(encoder.embed(packed), weights), expected, 0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_activation_embeds_the_same(tiny_model, activation, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
    assert_same_when_prepared(encoder_of(folder), atol=1e-5)


@pytest.mark.parametrize("master_weights", [False, True], ids=["bf16 weights", "fp32 weights, computing in bf16"])
def test_a_lower_precision_is_kept_to_its_rounding(tiny_model, kind, master_weights):
    base = find_pretrained(str(tiny_model(kind)))
    assert_same_when_prepared(Encoder(base, "bf16", CPU, master_weights=master_weights), atol=0.05)


def test_weights_that_changed_in_between_count(tiny_model):
    encoder = encoder_of(tiny_model("bert"))
    texts = some_texts(encoder)
    first = assert_same_when_prepared(encoder, atol=1e-5)
    with torch.no_grad():
        encoder.model.encoder.layer[0].intermediate.dense.weight.mul_(2)
    assert not torch.allclose(assert_same_when_prepared(encoder, atol=1e-5), first, atol=1e-3)
    with pytest.raises(ZeroDivisionError), encoder.prepared():
        1 / 0  # noqa: B018 (an error inside the block)
    assert not torch.allclose(embedded(encoder, texts), first, atol=1e-3)
