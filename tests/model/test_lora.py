"""Which modules get adapters, and the fused product against PEFT's own layers."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, BertConfig, PretrainedConfig

from lorry.errors import UserError
from lorry.model import lora
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "seed": 0}
EXPECTED = {
    "bert": [f"encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "key", "value")],
    "roberta": [f"encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "key", "value")],
    "xlm-roberta": [f"encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "key", "value")],
    "mpnet": [f"encoder.layer.{i}.attention.attn.{name}" for i in (0, 1) for name in ("q", "k", "v")],
    "distilbert": [f"transformer.layer.{i}.attention.{name}" for i in (0, 1) for name in ("q_lin", "k_lin", "v_lin")],
    "modernbert": [f"layers.{i}.attn.Wqkv" for i in (0, 1)],
    "nomic_bert": [f"layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj", "v_proj")],
    "deberta-v2": [
        f"encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query_proj", "key_proj", "value_proj")
    ],
    "qwen3": [f"layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj", "v_proj")],
}


def load(folder):
    return AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


class Attention(nn.Module):
    """Three projections of one input and one of another, as in an attention layer."""

    def __init__(self, bias=True):
        super().__init__()
        self.config = BertConfig()  # by which the architecture is known
        self.query, self.key, self.value = nn.Linear(8, 8, bias), nn.Linear(8, 4, bias), nn.Linear(8, 4, bias)
        self.dense = nn.Linear(16, 8, bias)

    def forward(self, x):
        return self.dense(torch.cat([self.query(x), self.key(x).sin(), self.value(x).cos()], -1))


def adapted(model, targets, rank=2, alpha=6.0, seed=3):
    """The model with LoRA, every A and B filled with numbers of its own."""
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    random = torch.Generator().manual_seed(seed)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.randn(weight.shape, generator=random))
    return model, weights


def twins(targets, bias=True):
    """The same model twice with the same adapters: PEFT's arithmetic, and the fused one."""
    torch.manual_seed(0)
    base = Attention(bias)
    copy = Attention(bias)
    copy.load_state_dict(base.state_dict())
    (plain, theirs), (fused, mine) = adapted(base, targets), adapted(copy, targets)
    lora.fuse(fused)
    return plain, theirs, fused, mine


def assert_same(plain, theirs, fused, mine, x):
    x_plain, x_fused = (x.clone().requires_grad_() for _ in range(2))
    expected, found = plain(x_plain), fused(x_fused)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    names = sorted(theirs)
    wanted = torch.autograd.grad(expected, [x_plain, *(theirs[name] for name in names)], pull)
    given = torch.autograd.grad(found, [x_fused, *(mine[name] for name in names)], pull)
    for name, a, b in zip(["x", *names], given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_query_key_and_value_are_found(tiny_model, kind):
    assert sorted(lora.find_targets(load(tiny_model(kind)), "qkv")) == sorted(EXPECTED[kind])


def test_without_targets_every_linear_layer_that_embeddings_depend_on_gets_an_adapter(tiny_model, kind):
    encoder = Encoder(find_pretrained(str(tiny_model(kind))), "fp32", CPU)
    linear = [name for name, module in encoder.model.named_modules() if isinstance(module, nn.Linear)]
    encoder.add_lora(**LORA, targets="")
    adapted = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in encoder.trainable()}
    assert adapted == {name for name in linear if "pooler" not in name}
    assert adapted > set(EXPECTED[kind])


def test_a_model_without_linear_layers_is_an_error():
    model = nn.ModuleDict({"first": nn.Embedding(2, 2)})
    model.config = PretrainedConfig()
    with pytest.raises(UserError, match="no linear layer found"):
        lora.find_targets(model, "")


def test_targets_may_be_named(tiny_model):
    model = load(tiny_model("bert"))
    assert lora.find_targets(model, "query") == [f"encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    assert lora.find_targets(model, " attention.output.dense , intermediate.dense ") == [
        f"encoder.layer.{i}.{name}" for i in (0, 1) for name in ("attention.output.dense", "intermediate.dense")
    ]
    assert lora.find_targets(model, "encoder.layer.1.attention.self.key") == ["encoder.layer.1.attention.self.key"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("encoder.layer.*.attention.self.query", ["layer.0.attention.self.query", "layer.1.attention.self.query"]),
        ("layer.1.*.self.key", ["layer.1.attention.self.key"]),
        ("*.self.quer*", ["layer.0.attention.self.query", "layer.1.attention.self.query"]),
        ("layer.0.intermediate.*", ["layer.0.intermediate.dense"]),
    ],
)
def test_a_star_stands_for_any_part_of_a_name(tiny_model, asked, found):
    assert lora.find_targets(load(tiny_model("bert")), asked) == [f"encoder.{name}" for name in found]


@pytest.mark.parametrize("asked", ["encoder.*.query", "layer.*.attention", "self.quer"])
def test_a_star_stands_for_no_more_than_a_part(tiny_model, asked):
    with pytest.raises(UserError, match="matches no linear module"):
        lora.find_targets(load(tiny_model("bert")), asked)


def test_a_star_alone_is_every_linear_module(tiny_model):
    assert len(lora.find_targets(load(tiny_model("bert")), "*")) == 2 * 6 + 1


def test_every_ending_that_an_error_offers_works_when_given_back(tiny_model, kind):
    """Gets adapters that learn: nothing is offered that no embedding depends on, such as BERT's pooler."""
    base = find_pretrained(str(tiny_model(kind)))
    with pytest.raises(UserError, match="lora_targets nonsense matches no linear module") as caught:
        Encoder(base, "fp32", CPU).add_lora(**LORA, targets="nonsense")
    offered = caught.value.hint.removeprefix("Give endings of: ").rstrip(".").split(", ")
    assert len(offered) > 3
    assert not any("pooler" in ending for ending in offered)
    texts = TokenSequences(np.array([5, 6, 7, 8, 9]), np.array([3, 2]))
    for ending in offered:
        encoder = Encoder(base, "fp32", CPU)
        encoder.add_lora(**LORA, targets=ending)
        (encoder.embed(texts) * torch.linspace(-1, 1, encoder.width)).sum().backward()
        learning = [name for name, weight in encoder.trainable().items() if "lora_B" in name and weight.grad.any()]
        assert len(learning) == len(encoder.trainable()) // 2 >= 1, ending


def test_an_ending_that_the_pooler_shares_does_not_reach_it(tiny_model):
    encoder = Encoder(find_pretrained(str(tiny_model("bert"))), "fp32", CPU)
    encoder.add_lora(**LORA, targets="dense")
    assert len(encoder.trainable()) == 2 * 6
    assert not any("pooler" in name for name in encoder.trainable())


@pytest.mark.parametrize("asked", ["q_proj", "query,q_proj", "ery", "layer"])
def test_targets_that_match_nothing_are_an_error_that_lists_what_there_is(tiny_model, asked):
    with pytest.raises(UserError) as caught:
        lora.find_targets(load(tiny_model("bert")), asked)
    missing = asked.rsplit(",", 1)[-1]
    assert caught.value.cause == f"lora_targets {missing} matches no linear module"
    for name in ("attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense"):
        assert f"encoder.layer.*.{name}" in caught.value.hint


def test_a_model_without_query_key_or_value_is_an_error():
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model.config = PretrainedConfig()  # of an architecture that nobody knows
    with pytest.raises(UserError, match=r"no query, key or value module found"):
        lora.find_targets(model, "qkv")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "targets", [["query", "key", "value"], ["query", "value"], ["key"], ["query", "key", "value", "dense"], ["dense"]]
)
def test_the_fused_product_is_pefts(targets, bias):
    assert_same(*twins(targets, bias), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5)))


def test_the_fused_product_follows_the_weights():
    """Steps of an optimiser, several inputs, several passes before one update: nothing stale is used."""
    models = twins(["query", "key", "value"])
    plain, theirs, fused, mine = models
    steps = [torch.optim.SGD(weights.values(), lr=0.01) for weights in (theirs, mine)]
    for turn in range(3):
        parts = [torch.randn(4 + turn, 8, generator=torch.Generator().manual_seed(10 * turn + i)) for i in range(2)]
        for model, step in zip((plain, fused), steps, strict=True):
            outputs = [model(part) for part in parts]  # both forward passes come before the first backward one
            sum(output.square().mean() for output in outputs).backward()
            step.step()
            step.zero_grad()
        assert_same(*models, parts[0])


def test_one_input_may_be_used_again():
    _, _, fused, mine = twins(["query", "key", "value"])
    x = torch.randn(3, 8)
    first = fused(x)
    with torch.no_grad():
        next(iter(mine.values())).add_(1.0)
    assert not torch.allclose(fused(x), first)


def test_one_projection_may_be_called_without_the_others():
    """What was computed for the others is not given to the next input."""
    plain, theirs, fused, mine = twins(["query", "key", "value"])
    fused.base_model.model.query(torch.randn(3, 8))
    assert_same(plain, theirs, fused, mine, torch.randn(3, 8))


def test_fusing_copies_no_frozen_weight():
    _, _, fused, _ = twins(["query", "key", "value"])
    layers = [getattr(fused.base_model.model, name).get_base_layer() for name in ("query", "key", "value")]
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1


def test_merging_what_was_fused_is_right():
    plain, _, fused, _ = twins(["query", "key", "value"])
    x = torch.randn(3, 8)
    expected = plain(x)
    torch.testing.assert_close(fused.merge_and_unload()(x), expected, atol=1e-5, rtol=1e-5)


def test_frozen_weights_get_no_gradient():
    _, _, fused, _ = twins(["query", "key", "value"])
    fused(torch.randn(3, 8)).sum().backward()
    assert {name for name, weight in fused.named_parameters() if weight.grad is not None} == {
        name for name, _ in fused.named_parameters() if "lora_" in name
    }


def test_attach_takes_rank_alpha_and_targets(tiny_model):
    model = load(tiny_model("bert"))
    model = lora.attach(model, rank=3, alpha=9.0, dropout=0.25, targets=lora.find_targets(model, "query"))
    layer = model.get_submodule("base_model.model.encoder.layer.0.attention.self.query")
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.25
    assert model.peft_config["default"].task_type == "FEATURE_EXTRACTION"
    assert not layer.lora_B["default"].weight.any()
