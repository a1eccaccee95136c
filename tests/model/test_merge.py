"""What is left in model_dir: complete, proved, and the same model in every library that loads it."""

import json

import numpy as np
import pytest
import torch
from peft import LoraModel, PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from lorry import pipeline
from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.model import merge as merge_module
from lorry.model.encoder import Encoder
from lorry.model.merge import DOCUMENT_MODEL, MergeError, export, merge
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained
from lorry.options import from_strings

CPU = torch.device("cpu")
PROMISED = {
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "README.md",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "lorry.json",
}
TEXTS = ["red lamp", "norvale lamp red large", "x", " ".join(["indoor large lamp set"] * 30), "zebra 漢字"]


@pytest.fixture(scope="module")
def trained(tiny_model, shop_pairs, tmp_path_factory):
    """Return `train(kind, …) -> (base folder, model_dir)`: a run of the whole job, made once for each kind of model."""
    made = {}
    pairs = shop_pairs(tmp_path_factory.mktemp("pairs"), queries=12)

    def train(kind, **options):
        key = json.dumps([kind, options])
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            base = tiny_model(kind, **options)
            settings = {"lr": "0.02", "batch_size": "24", "precision": "fp32", "lora_rank": "4", "epochs": "2"}
            settings["interpolation"] = "1"  # whether it helps or not
            paths = {"train": pairs, "model_dir": folder / "model", "output_data_dir": folder / "output"}
            paths |= {"pretrained_model": base}
            pipeline.run(from_strings(TrainConfig, settings | {name: str(path) for name, path in paths.items()}))
            made[key] = base, folder / "model"
        return made[key]

    return train


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tokenized(folder, texts, prompt=""):
    base = find_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        np.array(tokenizer(prompt + text, truncation=True, max_length=base.max_length)["input_ids"]) for text in texts
    ]


def through_lorry(folder, texts, prompt=""):
    ids = tokenized(folder, texts, prompt)
    packed = TokenSequences(np.concatenate(ids), np.array([len(text) for text in ids]))
    with torch.inference_mode():
        return Encoder(find_pretrained(str(folder)), "fp32", CPU).embed(packed)


def through_transformers(model, folder, texts, prompt=""):
    """A text at a time, pooled by hand."""
    base = find_pretrained(str(folder))
    pooled = []
    for ids in tokenized(folder, texts, prompt):
        with torch.inference_mode():
            hidden = model.eval()(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        pooled.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[base.pooling])
    stacked = torch.stack(pooled)
    return torch.nn.functional.normalize(stacked, dim=-1) if base.normalize else stacked


def same(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-5, rtol=1e-5)


def test_every_library_loads_the_same_model(trained, kind):
    base, model = trained(kind)
    expected = through_lorry(model, TEXTS)
    same(SentenceTransformer(str(model)).encode(TEXTS), expected)
    same(through_transformers(AutoModel.from_pretrained(model), model, TEXTS), expected)
    same(
        through_transformers(
            PeftModel.from_pretrained(AutoModel.from_pretrained(base), model / "adapter"), model, TEXTS
        ),
        expected,
    )
    assert (expected - through_lorry(base, TEXTS)).abs().max() > 0.01, "nothing was learnt"


@pytest.mark.parametrize(
    ("kind", "pooling", "normalize"), [("bert", "cls", True), ("roberta", "mean", False), ("qwen3", "lasttoken", False)]
)
def test_pooling_and_normalisation_go_along(trained, kind, pooling, normalize):
    _, model = trained(kind, pooling=pooling, normalize=normalize)
    base = find_pretrained(str(model))
    assert (base.pooling, base.normalize) == (pooling, normalize)
    expected = through_lorry(model, TEXTS)
    same(SentenceTransformer(str(model)).encode(TEXTS), expected)
    same(through_transformers(AutoModel.from_pretrained(model), model, TEXTS), expected)
    assert torch.allclose(expected.norm(dim=-1), torch.ones(len(TEXTS))) == normalize


@pytest.mark.parametrize("document", ["document", "passage"])
def test_prompts_and_the_longest_text_go_along(trained, document):
    prompts = {"query": "query: ", document: "passage: ", "clustering": "set: "}
    _, model = trained("bert", prompts=prompts, max_length=20)
    found = SentenceTransformer(str(model))
    assert found.max_seq_length == 20
    assert prompts.items() <= found.prompts.items()
    same(found.encode_query(TEXTS), through_lorry(model, TEXTS, "query: "))
    same(found.encode_document(TEXTS), through_lorry(model, TEXTS, "passage: "))
    same(found.encode(TEXTS), through_lorry(model, TEXTS))
    assert (through_lorry(model, TEXTS, "query: ") - through_lorry(model, TEXTS)).abs().max() > 0.01


def test_every_promised_file_is_there_and_nothing_else(trained, kind):
    _, model = trained(kind)
    assert files(model) - {"special_tokens_map.json"} == PROMISED
    assert not list(model.parent.glob(".lorry-*"))
    if find_pretrained(str(model)).normalize:
        assert (model / "2_Normalize").is_dir()


def test_no_pickle_is_among_them(trained, kind):
    """A pickle begins with byte 0x80, or is a zip archive; safetensors are headed by the length of their JSON."""
    _, model = trained(kind)
    for path in model.rglob("*"):
        if path.is_file():
            assert path.suffix in {".safetensors", ".json", ".md", ".txt"}
            assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"}


def test_what_others_may_read(trained):
    _, model = trained("bert")
    assert model.stat().st_mode & 0o755 == 0o755
    assert all(path.stat().st_mode & 0o044 for path in model.rglob("*") if path.is_file())


def test_weights_are_fp32_and_the_adapter_holds_adapters_alone(trained, kind):
    base, model = trained(kind)
    weights = load_file(model / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert weights.keys() == load_file(base / "model.safetensors").keys()
    adapter = load_file(model / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert all("lora_A" in name or "lora_B" in name for name in adapter)
    assert json.loads((model / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_only_the_targets_changed(trained):
    base, model = trained("bert")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, model))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    linear = [f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    linear += ["intermediate.dense", "output.dense"]
    assert changed == {f"encoder.layer.{layer}.{name}.weight" for layer in (0, 1) for name in linear}


def test_lorry_json_says_where_the_model_comes_from(trained):
    base, model = trained("bert")
    says = json.loads((model / "lorry.json").read_text())
    assert says["config"]["pretrained_model"] == str(base)
    assert says["config"]["lora_rank"] == 4
    assert says["seed"] == 42
    assert set(says["data_fingerprint"]) == {"train", "validation"}
    assert all(len(digest) == 64 for digest in says["data_fingerprint"].values())
    assert says["versions"]["torch"] == torch.__version__
    assert says["versions"]["lorry"]
    assert says["revision"]


@pytest.fixture
def adapted(tiny_model):
    """An encoder as after training: adapters filled with numbers."""

    def make(name="bert", scale=0.2, precision="fp32"):
        encoder = Encoder(find_pretrained(str(tiny_model(name))), precision, CPU)
        encoder.add_lora(rank=4, alpha=8.0, dropout=0.0, targets="", seed=0)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in encoder.trainable().values():
                weight.copy_(torch.randn(weight.shape, generator=random) * scale)
        ids = tokenized(tiny_model(name), TEXTS)
        return encoder, TokenSequences(np.concatenate(ids), np.array([len(text) for text in ids]))

    return make


def test_the_proof_in_numbers(adapted, kind, tmp_path):
    encoder, probe = adapted(kind)
    proof = merge(tmp_path, encoder, probe)
    assert proof.merged_to_adapter > 0.999999
    assert proof.merged_to_base < 0.999
    assert proof.reload_gap < 1e-6
    assert proof.probes == len(TEXTS)
    with torch.inference_mode():
        same(through_lorry(tmp_path, TEXTS), encoder.embed(probe))


def test_a_model_trained_in_bf16_is_merged_in_fp32(adapted, tmp_path):
    encoder, probe = adapted(precision="bf16")
    proof = merge(tmp_path, encoder, probe)
    assert proof.merged_to_adapter > 0.999999
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert {weight.dtype for weight in encoder.trainable().values()} == {torch.float32}


def test_merged_weights_that_differ_are_refused(adapted, tmp_path, monkeypatch):
    merge_and_unload = LoraModel.merge_and_unload

    def wrong(self):
        model = merge_and_unload(self)
        with torch.no_grad():
            model.encoder.layer[0].attention.self.query.weight.mul_(1.3)
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong, raising=False)
    encoder, probe = adapted()
    with pytest.raises(MergeError, match=r"merged model and base \+ adapter differ: cosine 0\.9"):
        merge(tmp_path, encoder, probe)


def test_merged_weights_that_are_no_numbers_are_refused(adapted, tmp_path, monkeypatch):
    merge_and_unload = LoraModel.merge_and_unload

    def wrong(self):
        model = merge_and_unload(self)
        with torch.no_grad():
            model.encoder.layer[0].attention.self.query.weight[0, 0] = float("nan")
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong, raising=False)
    encoder, probe = adapted()
    with pytest.raises(MergeError):
        merge(tmp_path, encoder, probe)


def test_weights_that_do_not_read_back_are_refused(adapted, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def rounded(self, folder, **options):
        save(self.bfloat16(), folder, **options)
        self.float()

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", rounded)
    encoder, probe = adapted()
    with pytest.raises(MergeError, match="read back differs"):
        merge(tmp_path, encoder, probe)


def test_a_model_that_learnt_nothing_is_refused(adapted, tmp_path):
    encoder, probe = adapted(scale=0.0)
    with pytest.raises(UserError, match="nothing was learnt"):
        merge(tmp_path, encoder, probe)


def share_of(encoder, share):
    """Keep this share of what the encoder has learnt."""
    encoder.interpolate({name: weight.detach().clone() for name, weight in encoder.trainable().items()}, share)


def test_a_share_of_the_update_is_merged_and_proved(adapted, kind, tmp_path):
    encoder, probe = adapted(kind)
    whole = merge(tmp_path / "whole", encoder, probe)
    share_of(encoder, 0.5)
    half = merge(tmp_path / "half", encoder, probe)
    assert half.merged_to_adapter > 0.999999
    assert whole.merged_to_base < half.merged_to_base < 0.9999
    base, full, between = (
        load_file(folder / "model.safetensors")
        for folder in (encoder.base.folder, tmp_path / "whole", tmp_path / "half")
    )
    for name, weight in between.items():
        torch.testing.assert_close(weight, (base[name] + full[name]) / 2, atol=1e-6, rtol=1e-5)


def test_nothing_of_the_update_is_the_base_model_and_may_be_merged(adapted, tmp_path):
    encoder, probe = adapted()
    share_of(encoder, 0.0)
    proof = merge(tmp_path, encoder, probe, changed=False)
    assert proof.merged_to_base == pytest.approx(1, abs=1e-6)
    base, merged = (load_file(folder / "model.safetensors") for folder in (encoder.base.folder, tmp_path))
    assert all(torch.equal(weight, base[name]) for name, weight in merged.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_full_fine_tuning_there_is_no_adapter(tiny_model, kind, precision, tmp_path):
    encoder = Encoder(find_pretrained(str(tiny_model(kind))), precision, CPU, master_weights=True)
    encoder.unfreeze()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in encoder.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    ids = tokenized(tiny_model(kind), TEXTS)
    probe = TokenSequences(np.concatenate(ids), np.array([len(text) for text in ids]))
    proof = merge(tmp_path, encoder, probe)
    assert proof.merged_to_base < 0.999
    assert proof.reload_gap < 1e-6
    assert not (tmp_path / "adapter").exists()
    saved = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).state_dict()  # in the file names may be others
    trained = encoder.model.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in saved.items())
    same(SentenceTransformer(str(tmp_path)).encode(TEXTS), through_lorry(tmp_path, TEXTS))


def test_where_queries_alone_were_trained_documents_keep_the_base_model(adapted, kind, tmp_path):
    encoder, probe = adapted(kind)
    proof = export(tmp_path, encoder, probe, side="query")
    documents = tmp_path / DOCUMENT_MODEL
    assert proof.documents_changed == 0
    assert torch.equal(through_lorry(documents, TEXTS), through_lorry(encoder.base.folder, TEXTS))
    same(SentenceTransformer(str(documents)).encode(TEXTS), through_lorry(encoder.base.folder, TEXTS))
    with torch.inference_mode():
        same(through_lorry(tmp_path, TEXTS), encoder.embed(probe))
    assert (through_lorry(tmp_path, TEXTS) - through_lorry(documents, TEXTS)).abs().max() > 0.01


def test_where_both_sides_were_trained_there_is_one_model(adapted, tmp_path):
    encoder, probe = adapted()
    assert export(tmp_path, encoder, probe, side="both").documents_changed is None
    assert not (tmp_path / DOCUMENT_MODEL).exists()


def test_a_document_model_that_is_not_the_base_is_refused(adapted, tmp_path, monkeypatch):
    encoder, probe = adapted()
    save = merge_module.save_model

    def wrong(folder, model):
        if folder.name == DOCUMENT_MODEL:
            with torch.no_grad():
                model.model.get_input_embeddings().weight.mul_(1.001)
        save(folder, model)

    monkeypatch.setattr(merge_module, "save_model", wrong)
    with pytest.raises(MergeError, match="the model of the documents differs from the base model"):
        export(tmp_path, encoder, probe, side="query")
