"""A base model whose files are wrong in any way, or that is no text encoder: one line each, never a traceback."""

import json
import shutil
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from command import lorry
from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.errors import UserError
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": "", "seed": 0}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 120, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {"image_size": 16, "patch_size": 8}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
WIDE = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of a tiny BERT, as sentence-transformers saves it, to damage."""
    return shutil.copytree(tiny_model("bert"), tmp_path / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, shop_pairs):
    return read_channel(shop_pairs(tmp_path_factory.mktemp("shop"), queries=4), PairOptions())["all"]


def use(folder, pairs, cache):
    """Do with a base model what a run does before its first step."""
    base = find_pretrained(str(folder))
    Encoder(base, "fp32", CPU).add_lora(**LORA)
    return tokenize(pairs, base, cache)


def refusal(folder, pairs, cache):
    with pytest.raises(UserError) as caught:
        use(folder, pairs, cache)
    return str(caught.value)


def change(path, **values):
    path.parent.mkdir(exist_ok=True)
    written = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(written | values))


MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = MODULE | {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
FILES = [
    ("config.json", '{"half": ', "config.json cannot be read as JSON"),
    ("config.json", "[1, 2]", "config.json holds no JSON object"),
    ("config.json", "null", "config.json holds no JSON object"),
    ("config.json", "[" * 100_000, "config.json cannot be read as JSON"),
    ("config.json", b"\xff\xfe\x00", "config.json cannot be read as JSON"),
    ("modules.json", '{"a": 1}', "modules.json holds no list of modules"),
    ("modules.json", "[7]", "module 0 in {folder}/modules.json is 7"),
    ("modules.json", [{"path": ""}], "type of module 0 in {folder}/modules.json is None"),
    ("modules.json", [{"type": "sentence_transformers.models.Pooling"}], "path of module 0"),
    ("modules.json", [MODULE, POOLING | {"path": "../../etc"}], "path of module 1 in {folder}/modules.json"),
    ("modules.json", [MODULE, POOLING | {"path": "/etc"}], "path of module 1 in {folder}/modules.json"),
    ("modules.json", [MODULE, POOLING | {"path": "a\0b"}], "path of module 1 in {folder}/modules.json"),
    ("modules.json", [MODULE | {"type": "custom_st.Transformer"}, POOLING], "has a custom_st.Transformer module"),
    ("1_Pooling/config.json", "[]", "1_Pooling/config.json holds no JSON object"),
    ("1_Pooling/config.json", {"pooling_mode": 7}, "pooling_mode in {folder}/1_Pooling/config.json is 7"),
    ("1_Pooling/config.json", {"pooling_mode": [["cls"]]}, "pooling_mode in {folder}/1_Pooling/config.json"),
    ("sentence_bert_config.json", "7", "sentence_bert_config.json holds no JSON object"),
    ("sentence_bert_config.json", {"max_seq_length": "64"}, "max_seq_length in {folder}/sentence_bert_config.json is"),
    ("sentence_bert_config.json", {"max_seq_length": -5}, "max_seq_length in {folder}/sentence_bert_config.json is -5"),
    ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length in {folder}/sentence_bert_config.json is 0"),
    ("sentence_bert_config.json", '{"max_seq_length": Infinity}', "max_seq_length"),
    ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case in {folder}/sentence_bert_config.json is"),
    ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts in {folder}/config_sentence_transformers.json"),
    ("config_sentence_transformers.json", {"prompts": {"query": 7}}, "prompt query in"),
    ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length in {folder}/tokenizer_config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_settings_of_another_kind_are_refused_by_file_and_value(model, pairs, tmp_path, name, content, says):
    path = model / name
    path.parent.mkdir(exist_ok=True)
    content = json.dumps(content) if isinstance(content, list | dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says.format(folder=model) in refusal(model, pairs, tmp_path / "cache")


CONFIGS = [
    ({"model_type": None}, "does not say which model_type it is"),
    ({"model_type": ["bert"]}, "does not say which model_type it is"),
    ({"model_type": "nonsense"}, "is of the type nonsense, which transformers"),
    ({"num_attention_heads": 0}, "num_attention_heads in {folder}/config.json is 0. It must be from 1 to"),
    ({"num_attention_heads": -4}, "num_attention_heads in {folder}/config.json is -4"),
    ({"num_attention_heads": 5}, "cannot be loaded: The hidden size (32) is not a multiple"),
    ({"num_attention_heads": "four"}, "config.json cannot be used"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers in {folder}/config.json is 1000000000"),
    ({"num_hidden_layers": 0}, "num_hidden_layers in {folder}/config.json is 0"),
    ({"hidden_size": 0}, "hidden_size in {folder}/config.json is 0"),
    ({"hidden_size": 10**30}, "hidden_size in {folder}/config.json is 1000"),
    ({"hidden_size": None}, "config.json cannot be used"),
    ({"vocab_size": -3}, "vocab_size in {folder}/config.json is -3"),
    ({"vocab_size": 10**15}, "vocab_size in {folder}/config.json is 1000"),
    ({"max_position_embeddings": "64"}, "config.json cannot be used"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings in {folder}/config.json"),
    ({"pad_token_id": 10**6}, "cannot be loaded: Padding_idx must be within num_embeddings"),
    ({"hidden_act": "nonsense"}, "cannot be loaded: 'nonsense'"),
    ({"id2label": 7}, "config.json cannot be used"),
    ({"dtype": "nonsense"}, "config.json cannot be used"),
    ({"quantization_config": 7}, "config.json cannot be used"),
    ({"auto_map": 7}, "config.json cannot be used"),
    ({"is_encoder_decoder": True}, "an encoder with a decoder"),
]


@pytest.mark.parametrize(("values", "says"), CONFIGS)
def test_a_configuration_that_cannot_be_is_refused(model, pairs, tmp_path, values, says):
    change(model / "config.json", **values)
    assert says.format(folder=model) in refusal(model, pairs, tmp_path / "cache")


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def index_of(folder, content):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def huge_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def huge_file(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10**12)  # sparse: takes no space


def no_weights(folder):
    save_file({}, folder / "model.safetensors", {"format": "pt"})


def a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def another_shape(folder):
    name = "encoder.layer.0.attention.self.query.weight"
    save_file(weights_of(folder) | {name: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})


def not_numbers(folder):
    weights = weights_of(folder)
    weights["encoder.layer.0.attention.self.query.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def absent_shard(folder):
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights_of(folder))}
    index_of(folder, {"metadata": {}, "weight_map": names})


def index_is_no_json(folder):
    index_of(folder, "{")


def index_is_a_list(folder):
    index_of(folder, [1])


def index_without_names(folder):
    index_of(folder, {"weight_map": [1]})


def adapter_without_weights(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere", "peft_type": "LORA"}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (empty_file, "cannot be loaded"), (huge_header, "cannot be loaded"), (huge_file, "cannot be loaded"),
        (no_weights, "lacks weights"), (a_folder, "cannot be loaded"),
        (not_numbers, "its embeddings in fp32 are not finite numbers"),
        (absent_shard, "model-00002-of-00002.safetensors"),
        (another_shape, "encoder.layer.0.attention.self.query.weight is [3, 5] and not [32, 32]"),
        (index_is_no_json, "cannot be loaded"), (index_is_a_list, "cannot be loaded"),
        (index_without_names, "cannot be loaded"), (adapter_without_weights, "cannot be loaded"),
    ],
)  # fmt: skip
def test_damaged_weights_are_refused(model, pairs, tmp_path, damage, says):
    damage(model)
    assert says in refusal(model, pairs, tmp_path / "cache")


def test_a_model_copied_without_its_pooling_is_refused(model, pairs, tmp_path):
    """It would pool by the mean, without a word, whatever it was trained with."""
    shutil.rmtree(model / "1_Pooling")
    assert "1_Pooling/config.json is missing, and modules.json names it" in refusal(model, pairs, tmp_path / "cache")


def tokenizer_with(**values):
    """Damage that replaces parts of tokenizer.json."""
    return lambda folder: change(folder / "tokenizer.json", **values)


def tokenizer_of(content):
    return lambda folder: (folder / "tokenizer.json").write_text(content)


def settings_with(**values):
    return lambda folder: change(folder / "tokenizer_config.json", **values)


def unknown_id(number):
    """Damage that gives one word a number of its own."""

    def damage(folder):
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        change(folder / "tokenizer.json", model=model | {"vocab": model["vocab"] | {"blue": number}})

    return damage


WORDLESS = {"type": "WordPiece", "vocab": {}, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
WORDLESS |= {"max_input_chars_per_word": 100}
SINGLE = [{"SpecialToken": {"id": "[NO]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
PAIR = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
TEMPLATE = {"type": "TemplateProcessing", "single": SINGLE, "pair": PAIR, "special_tokens": {}}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (tokenizer_of(""), "cannot be loaded"), (tokenizer_of("[]"), "cannot be loaded"),
        (tokenizer_of("{}"), "cannot be loaded"), (tokenizer_with(model={"type": "WordPiece"}), "cannot be loaded"),
        (tokenizer_with(added_tokens=7), "cannot be loaded"),
        (tokenizer_with(model=WORDLESS), "does not work"),
        (tokenizer_with(model={"type": "Unigram", "unk_id": 99, "vocab": [["a", -1.0]]}), "tokenizer of"),
        (tokenizer_with(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "cannot be loaded"),
        (tokenizer_with(post_processor=TEMPLATE), "does not work"),
        (unknown_id(500), "gives token 500"),
        pytest.param(unknown_id(2**31 + 5), "gives token 2,147,483,653", marks=pytest.mark.slow),
        (settings_with(tokenizer_class=7), "cannot be loaded"), (settings_with(pad_token=7), "cannot be loaded"),
        (settings_with(tokenizer_class="CanineTokenizer"), "tokenizer"),
        (settings_with(auto_map=7), "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_refused(model, pairs, tmp_path, damage, says):
    damage(model)
    assert says in refusal(model, pairs, tmp_path / "cache")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(model, pairs, tmp_path):
    """Also where the tokens are in the cache already, from a model with the whole vocabulary."""
    use(model, pairs, tmp_path / "cache")
    rows = 90
    weights = weights_of(model)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:rows].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    change(model / "config.json", vocab_size=rows)
    for cache in ("cache", "another cache"):
        said = refusal(model, pairs, tmp_path / cache)
        assert "gives token" in said
        assert "the model has 90 (vocab_size)" in said
    assert not list((tmp_path / "another cache").iterdir())


OTHERS = {
    "vit": lambda: (transformers.ViTConfig(**SMALL, **IMAGE), "of the type vit, which reads pixel_values and not text"),
    "clip": lambda: (
        transformers.CLIPConfig(text_config=SMALL | TEXT, vision_config=SMALL | IMAGE, projection_dim=16),
        "of the type clip, which has a vision_config",
    ),
    "clip-text": lambda: (transformers.CLIPTextConfig(**SMALL, **TEXT), "cannot be trained"),
    "siglip": lambda: (
        transformers.SiglipConfig(text_config=SMALL | TEXT, vision_config=SMALL | IMAGE),
        "of the type siglip, which has a vision_config",
    ),
    "t5": lambda: (
        transformers.T5Config(vocab_size=120, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8),
        "of the type t5, an encoder with a decoder",
    ),
    "bart": lambda: (transformers.BartConfig(**LAYERS, **WIDE, **TEXT), "of the type bart, an encoder with a decoder"),
    "whisper": lambda: (
        transformers.WhisperConfig(**LAYERS, **WIDE, **TEXT, decoder_start_token_id=1, begin_suppress_tokens=None),
        "of the type whisper, which reads input_features and not text",
    ),
    "wav2vec2": lambda: (
        transformers.Wav2Vec2Config(
            **SMALL, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
            num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4,
        ),
        "of the type wav2vec2, which reads input_values and not text",
    ),
    "patchtst": lambda: (
        transformers.PatchTSTConfig(num_input_channels=1, context_length=32, d_model=32, num_hidden_layers=1),
        "of the type patchtst, which reads past_values and not text",
    ),
    "dpr": lambda: (transformers.DPRConfig(**SMALL, **TEXT), "cannot encode texts"),
    "vilt": lambda: (transformers.ViltConfig(**SMALL, **TEXT, **IMAGE), "cannot encode texts"),
    "gpt2": lambda: (
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **TEXT), "no linear layer found"
    ),
    "longformer": lambda: (
        transformers.LongformerConfig(**SMALL, **TEXT, attention_window=[16, 16]), "cannot be trained"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_text_encoder_is_refused(model, pairs, tmp_path, kind):
    config, says = OTHERS[kind]()
    transformers.AutoModel.from_config(config).save_pretrained(model)
    assert says in refusal(model, pairs, tmp_path / "cache")


def test_a_run_with_an_image_model_ends_in_one_line(tmp_path, shop_pairs):
    transformers.AutoModel.from_config(OTHERS["vit"]()[0]).save_pretrained(tmp_path / "base")
    folders = {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}
    ended = lorry("train", train=shop_pairs(tmp_path / "shop"), pretrained_model=tmp_path / "base", **folders)
    assert (ended.code, "Traceback" in ended.output) == (1, False)
    assert ended.lines[-1].startswith(f"error: {tmp_path / 'base'} is of the type vit")
    assert "Choose a text-embedding model" in ended.lines[-1]


MODELING = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig, BertModel, BertTokenizer
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
class OwnTokenizer(BertTokenizer):
    pass
"""


@pytest.mark.parametrize("kind", ["own", "bert"])
def test_code_that_comes_with_a_model_is_never_run(model, pairs, tmp_path, monkeypatch, kind):
    """Nor does anybody ask whether it may: `y` would be given here. A known model_type may hide another model."""
    marker = tmp_path / "was run"
    (model / "own.py").write_text(MODELING.format(marker=str(marker)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    change(model / "config.json", model_type=kind, auto_map=auto_map)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    weights = weights_of(model)
    del weights["embeddings.position_embeddings.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("builtins.input", lambda _: "y")
    said = refusal(model, pairs, tmp_path / "cache")
    assert f"{model} needs code that comes with it (auto_map), and Lorry never runs such code" in said
    assert "Choose a text-embedding model that transformers knows, such as bundled" in said
    assert not marker.exists()


def test_code_that_comes_with_a_tokenizer_is_not_needed(model, pairs, tmp_path, monkeypatch):
    marker = tmp_path / "was run"
    (model / "own.py").write_text(MODELING.format(marker=str(marker)))
    expected = use(model, pairs, tmp_path / "cache")
    change(
        model / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
    )
    monkeypatch.setattr("builtins.input", lambda _: "y")
    found = use(model, pairs, tmp_path / "cache")
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert not marker.exists()
