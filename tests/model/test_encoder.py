"""The encoder against transformers and PEFT: the same embeddings and gradients, packed or padded."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from padded_models import (
    CPU,
    LONGEST,
    LORA,
    adapted_pair,
    assert_equal_gradients,
    direction,
    encoder_of,
    fill,
    gradients,
    packed_of,
    padded_embeddings,
    plain,
    some_texts,
)
from transformers import AutoModel

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.hardware import choose_precision
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.training.setup import prepare


def test_embeddings_and_gradients_are_those_of_transformers_and_peft(tiny_model, kind):
    folder = tiny_model(kind)
    encoder, model, mine, theirs = adapted_pair(folder)
    texts = some_texts(encoder)
    found = encoder.embed(packed_of(texts))
    expected = padded_embeddings(model, texts, encoder.base.pooling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal_gradients(gradients(found, mine), gradients(expected, theirs), 1e-5)
    apart = 1 - (expected @ expected.T)[~torch.eye(len(texts), dtype=torch.bool)]
    assert apart.max() > 0.1, "texts all embed alike: the comparison would show nothing"


def test_many_texts_take_several_forward_passes_and_come_out_the_same(tiny_model, kind, monkeypatch):
    encoder, _, weights, _ = adapted_pair(tiny_model(kind))
    texts = packed_of(some_texts(encoder))
    monkeypatch.setattr("lorry.model.encoder.LINE_WIDTH", 12)
    expected = encoder.embed(texts)
    monkeypatch.setattr("lorry.model.encoder.PASS_TOKENS", {"cpu": 40})
    assert len(encoder.passes(texts.lengths)) > 6
    found = encoder.embed(texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal_gradients(gradients(found, weights), gradients(expected, weights), 1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("name", ["bert", "qwen3", "mpnet", "deberta-v2"])
def test_every_pooling_with_and_without_normalisation(tiny_model, name, pooling):
    for normalize in (True, False):
        folder = tiny_model(name, pooling=pooling, normalize=normalize)
        encoder = encoder_of(folder)
        texts = some_texts(encoder)
        with torch.no_grad():
            found = encoder.embed(packed_of(texts))
            expected = padded_embeddings(plain(folder), texts, pooling, normalize)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.allclose(found.norm(dim=-1), torch.ones(len(texts))) == normalize


def test_the_window_of_modernbert_hides_what_is_far(tiny_model):
    # One layer sees all, so look at what the windowed layer alone would change: 64 tokens, eight to each side.
    folder = tiny_model("modernbert")
    encoder, model = encoder_of(folder), plain(folder)
    assert "sliding_attention" in model.config.layer_types
    for length in (8, 9, 10, 17, 18, 40, 64):
        texts = some_texts(encoder, [length])
        with torch.no_grad():
            found, expected = encoder.embed(packed_of(texts)), padded_embeddings(model, texts, "mean")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for config in (encoder.model.config, model.config):
        assert config.sliding_window < LONGEST
    everything = AutoModel.from_pretrained(folder, attn_implementation="eager", local_attention=2 * LONGEST)
    with torch.no_grad():
        unlimited = padded_embeddings(everything.eval(), texts, "mean")
    assert (unlimited - expected).abs().max() > 1e-3, "the window does nothing to this text"


def test_a_sliding_window_under_a_causal_mask(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("qwen3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"]
    config |= {"use_sliding_window": True, "sliding_window": 6, "layer_types": kinds, "max_window_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    encoder, model, mine, theirs = adapted_pair(folder)
    texts = some_texts(encoder)
    found, expected = encoder.embed(packed_of(texts)), padded_embeddings(model, texts, "lasttoken")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal_gradients(gradients(found, mine), gradients(expected, theirs), 1e-5)


def test_texts_do_not_see_each_other(tiny_model, kind):
    encoder = encoder_of(tiny_model(kind))
    texts = some_texts(encoder)
    with torch.no_grad():
        together = encoder.embed(packed_of(texts))
        alone = torch.cat([encoder.embed(packed_of([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_embeddings_come_in_the_order_asked_for(tiny_model):
    encoder = encoder_of(tiny_model("bert"))
    texts = some_texts(encoder)
    order = np.random.default_rng(5).permutation(len(texts))
    with torch.no_grad():
        first = encoder.embed(packed_of(texts))
        second = encoder.embed(packed_of([texts[index] for index in order]))
    torch.testing.assert_close(second, first[order], atol=1e-5, rtol=0)


def test_adding_lora_changes_no_embedding(tiny_model, kind):
    encoder = encoder_of(tiny_model(kind))
    packed = packed_of(some_texts(encoder))
    with torch.no_grad():
        before = encoder.embed(packed)
        encoder.add_lora(**LORA)
        torch.testing.assert_close(encoder.embed(packed), before, atol=2e-6, rtol=0)


def test_only_the_adapters_are_trained_and_they_are_fp32(tiny_model, kind):
    encoder = encoder_of(tiny_model(kind), "bf16")
    encoder.add_lora(**LORA)
    adapters = encoder.trainable()
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    frozen = [weight for name, weight in encoder.model.named_parameters() if name not in adapters]
    assert {weight.dtype for weight in frozen} == {torch.bfloat16}


def unfrozen(folder, precision="fp32"):
    encoder = Encoder(find_pretrained(str(folder)), precision, CPU, master_weights=True)
    encoder.unfreeze()
    return encoder


def test_full_fine_tuning_trains_whatever_embeddings_depend_on(tiny_model, kind):
    """The gradients of every weight are those of transformers; BERT's pooler, which no embedding uses, is frozen."""
    encoder, model = unfrozen(tiny_model(kind)), plain(tiny_model(kind))
    texts = some_texts(encoder)
    mine = encoder.trainable()
    theirs = dict(model.named_parameters())
    assert {name for name in theirs if name not in mine} == {name for name in theirs if "pooler" in name}
    theirs = {name: weight for name, weight in theirs.items() if name in mine}
    found, expected = encoder.embed(packed_of(texts)), padded_embeddings(model, texts, encoder.base.pooling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    given, wanted = gradients(found, mine), gradients(expected, theirs)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, atol=3e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_full_fine_tuning_keeps_fp32_weights_and_computes_in_half_precision(tiny_model, kind):
    encoder, exact = unfrozen(tiny_model(kind), "bf16"), encoder_of(tiny_model(kind))
    assert {weight.dtype for weight in encoder.model.parameters()} == {torch.float32}
    packed = packed_of(some_texts(encoder))
    found = encoder.embed(packed)
    with torch.no_grad():
        expected = exact.embed(packed)
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).abs().max() < 0.06
    found.sum().backward()
    assert {weight.grad.dtype for weight in encoder.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_adapters_update_is_that_share_of_every_weights_change(tiny_model, kind, share):
    encoder = encoder_of(tiny_model(kind))
    encoder.add_lora(**LORA)
    fill(encoder.trainable())
    tuned = {name: weight.detach().clone() for name, weight in encoder.trainable().items()}
    encoder.interpolate(tuned, 0.25)  # what it was set to before does not matter
    encoder.interpolate(tuned, share)
    model = plain(tiny_model(kind))
    weights = dict(model.named_parameters())
    for name, b in tuned.items():
        if "lora_B" in name:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight")
            change = LORA["alpha"] / LORA["rank"] * b @ tuned[name.replace("lora_B", "lora_A")]
            weights[f"{layer}.weight"].data += share * change
    texts = some_texts(encoder)
    with torch.no_grad():
        expected = padded_embeddings(model, texts, encoder.base.pooling)
        torch.testing.assert_close(encoder.embed(packed_of(texts)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_full_fine_tuning_lies_between_base_and_tuned_weights(tiny_model, share, precision):
    encoder = unfrozen(tiny_model("bert"), precision)
    base = {name: weight.detach().clone() for name, weight in encoder.trainable().items()}
    fill(encoder.trainable())
    tuned = {name: weight.detach().clone() for name, weight in encoder.trainable().items()}
    encoder.interpolate(tuned, 0.25)
    encoder.interpolate(tuned, share)
    for name, weight in encoder.trainable().items():
        expected = (1 - share) * base[name] + share * tuned[name]
        torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-6)
        if share in (0, 1):
            assert torch.equal(weight, (base, tuned)[int(share)][name]), name


def test_the_seed_decides_how_adapters_begin(tiny_model):
    begun = []
    for seed in (0, 0, 1):
        encoder = encoder_of(tiny_model("bert"))
        encoder.add_lora(**LORA | {"seed": seed})
        begun.append(torch.cat([weight.flatten() for weight in encoder.trainable().values()]))
    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])


def test_half_precision_is_near(tiny_model, kind):
    """bf16 keeps eight bits: two layers of wide random weights come out within 0.06 of unit-length embeddings.

    Gradients, summed over hundreds of tokens, must point the same way (cosine 0.98).
    """
    encoder, model, mine, theirs = adapted_pair(tiny_model(kind), precision="bf16")
    texts = some_texts(encoder)
    found, expected = encoder.embed(packed_of(texts)), padded_embeddings(model, texts, encoder.base.pooling)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.06
    assert torch.cosine_similarity(found, expected).min() > 0.99
    flat = [
        torch.cat([part.flatten() for part in gradients(values, weights).values()])
        for values, weights in ((found, mine), (expected, theirs))
    ]
    assert torch.cosine_similarity(*flat, dim=0) > 0.98


@pytest.mark.parametrize("lr", [1e-3, 1e-5, 1e-6])
def test_updates_smaller_than_a_step_of_bf16_are_learnt(tiny_model, lr):
    """The sum of weight and update drops them in bf16; the adapters, trained and merged in fp32, must not."""
    learnt = {}
    for precision in ("fp32", "bf16"):
        encoder = encoder_of(tiny_model("bert"), precision)
        encoder.add_lora(**LORA)
        weights = encoder.trainable()
        optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0)
        texts = packed_of(some_texts(encoder))
        for _ in range(30):
            embeddings = encoder.embed(texts)
            (embeddings * direction(embeddings.shape)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        updates = [weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in weights if "lora_A" in name]
        learnt[precision] = torch.cat([update.detach().flatten() for update in updates])
    assert torch.cosine_similarity(learnt["fp32"], learnt["bf16"], dim=0) > 0.95
    assert abs(learnt["bf16"].norm() / learnt["fp32"].norm() - 1) < 0.02


def test_models_that_cannot_be_packed_say_so_once(tiny_model, kind, shop_pairs, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lorry"):
        setup = prepare(TrainConfig(train=str(shop_pairs(tmp_path / "shop")), pretrained_model=str(tiny_model(kind))))
    assert setup.encoder.packs == (kind != "deberta-v2")
    said = [record.getMessage() for record in caplog.records if "cannot be packed" in record.getMessage()]
    assert len(said) == (kind == "deberta-v2")


def test_threads_that_encode_at_the_same_time_do_not_mix(tiny_model):
    encoder = encoder_of(tiny_model("bert"))
    encoder.add_lora(**LORA)
    fill(encoder.trainable())
    texts = some_texts(encoder)
    halves = [packed_of(texts[: len(texts) // 2]), packed_of(texts[len(texts) // 2 :])]

    def embed(half):
        with torch.no_grad():
            return [encoder.embed(half) for _ in range(50)]

    expected = [embed(half)[0] for half in halves]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(embed, halves))
    for each, wanted in zip(found, expected, strict=True):
        for one in each:
            torch.testing.assert_close(one, wanted)


def test_a_pass_that_fails_leaves_nothing_for_the_next(tiny_model, monkeypatch):
    """As when memory runs out between query and key: what was computed is dropped, and its memory with it."""
    encoder = encoder_of(tiny_model("bert"))
    encoder.add_lora(**LORA)
    fill(encoder.trainable())
    texts = packed_of(some_texts(encoder))
    expected = encoder.embed(texts).detach()
    key = encoder.model.get_submodule("base_model.model.encoder.layer.1.attention.self.key")
    with monkeypatch.context() as patch:
        patch.setattr(key, "forward", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
        with pytest.raises(torch.OutOfMemoryError):
            encoder.embed(texts)
    assert all(not each.pending.outputs and each.pending.input is None for each in encoder.fused)
    torch.testing.assert_close(encoder.embed(texts).detach(), expected)


def test_dropout_differs_between_steps_and_repeats_with_the_seed(tiny_model, kind):
    encoder = encoder_of(tiny_model(kind))
    encoder.add_lora(**LORA | {"dropout": 0.3})
    fill(encoder.trainable())
    packed = packed_of(some_texts(encoder))
    torch.manual_seed(7)
    first, second = encoder.embed(packed, dropout=True), encoder.embed(packed, dropout=True)
    torch.manual_seed(7)
    again = encoder.embed(packed, dropout=True)
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 1e-3
    assert all(torch.isfinite(part).all() for part in gradients(first, encoder.trainable()).values())


def test_base_dropout_stays_off(tiny_model):
    """Without dropout of its own LoRA makes no step random: the base model's 0.1 is never applied."""
    encoder = encoder_of(tiny_model("bert"))
    assert encoder.model.config.hidden_dropout_prob > 0
    encoder.add_lora(**LORA)
    packed = packed_of(some_texts(encoder))
    assert torch.equal(encoder.embed(packed), encoder.embed(packed))


def test_missing_weights_are_an_error(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights: encoder\.layer\.1\.attention\.self\.query\.weight"):
        encoder_of(folder)


def test_a_model_saved_without_its_pooler_is_complete(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder, whole = encoder_of(folder), encoder_of(tiny_model("bert"))
    texts = some_texts(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed(packed_of(texts)), whole.embed(packed_of(texts)))


def test_truncated_weights_are_an_error(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder_of(folder)


def test_the_fingerprint_follows_the_files_that_embeddings_depend_on(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    assert encoder_of(folder).base.fingerprint() == encoder_of(tiny_model("bert")).base.fingerprint()
    assert encoder_of(folder).base.fingerprint() != encoder_of(tiny_model("roberta")).base.fingerprint()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("mean", "cls"))
    assert encoder_of(folder).base.fingerprint() != encoder_of(tiny_model("bert")).base.fingerprint()


def test_precision_asked_for_is_precision_given():
    assert [choose_precision(asked, CPU) for asked in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    assert choose_precision("auto", CPU) in ("bf16", "fp32")


@pytest.mark.parametrize(("capability", "precision"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")])
def test_automatic_precision_follows_the_gpu(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == precision
