"""Shared fixtures: tiny random models of every architecture, and pairs that they can learn from."""

import csv
import json
import logging
import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported: no test asks the network

import pytest

KINDS = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert", "nomic_bert", "qwen3", "deberta-v2")
OFFSET_KINDS = ("roberta", "xlm-roberta", "mpnet")  # these count positions from padding_idx + 1
LONGEST = 64

NOUNS = ["lamp", "sofa", "table", "kettle", "rug", "chair", "mirror", "shelf", "desk", "stool"]
COLOURS = ["red", "blue", "green", "black", "white", "oak", "brass", "grey"]
BRANDS = ["norvale", "umberline", "stavik", "haldane", "brindle", "quill"]
NOISE = ["new", "large", "small", "modern", "classic", "home", "set", "2", "pack", "with", "for", "of", "and", "indoor"]
WORDS = [*NOUNS, *COLOURS, *BRANDS, *NOISE, "query", "passage", "search", "document", ":"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_logger():
    """Put back what a command has done to the logger."""
    log = logging.getLogger("lorry")
    kept = log.handlers, log.level, log.propagate
    yield
    log.handlers, level, log.propagate = kept
    log.setLevel(level)  # which also makes it forget what was enabled before


@pytest.fixture(autouse=True)
def _own_precision():
    """Let every test choose a precision, as every process can: accelerate keeps the first one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the token files of the tests (and of the processes they start) out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LORRY_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(params=KINDS)
def kind(request):
    """Run the test for every architecture."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Return `make(kind, pooling=…, normalize=…, prompts=…, max_length=…, plain=…) -> Path`.

    A random model with its tokenizer, as sentence-transformers saves one (`plain`: as transformers does). A folder is
    made once a session: do not write to it.
    """
    made = {}

    def make(kind, *, pooling="", normalize=True, prompts=None, max_length=None, plain=False):
        pooling = pooling or ("lasttoken" if kind == "qwen3" else "mean")
        key = json.dumps([kind, pooling, normalize, prompts, max_length, plain])
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{kind}")
            _save_model(kind, folder)
            if not plain:
                _save_sentence_files(folder, pooling, normalize, prompts or {}, max_length)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def shop_pairs():
    """Return `write(folder, queries=40, seed=0) -> Path`: a small csv of pairs that a tiny model can learn from."""
    return write_shop_pairs


def write_shop_pairs(folder, queries=40, seed=0):
    """Write `folder`/pairs.csv, six products a query, of labels E, S, C and I; return `folder`."""
    choose = random.Random(seed)
    wanted = choose.sample([(noun, colour) for noun in NOUNS for colour in COLOURS], queries)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "product_title", "relevance_label"])
        for noun, colour in wanted:
            other_noun = choose.choice([item for item in NOUNS if item != noun])
            other_colour = choose.choice([item for item in COLOURS if item != colour])
            products = (
                (noun, colour, "E"), (noun, colour, "E"), (noun, other_colour, "S"),
                (other_noun, colour, "C"), (other_noun, other_colour, "I"), (other_noun, other_colour, "I"),
            )  # fmt: skip
            for number, (thing, shade, label) in enumerate(products):
                extra = choose.sample(NOISE, 3)
                title = [BRANDS[number], *choose.sample([thing, shade, *extra], 5)]
                rows.writerow([f"{colour} {noun}", " ".join(title), label])
    return folder


def _save_model(kind, folder):
    import torch
    import transformers

    tokenizer = _tokenizer(kind)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST + (2 if kind in OFFSET_KINDS else 0),
        "initializer_range": 0.3,  # wide, so that different texts get clearly different embeddings
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    distilbert = {
        "vocab_size": len(tokenizer),
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
    }
    configs = {
        "bert": lambda: transformers.BertConfig(**size),
        "roberta": lambda: transformers.RobertaConfig(**size, type_vocab_size=1),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**size, type_vocab_size=1),
        "mpnet": lambda: transformers.MPNetConfig(**size),
        "distilbert": lambda: transformers.DistilBertConfig(**distilbert),
        # The first layer sees all, the second eight tokens to each side.
        "modernbert": lambda: transformers.ModernBertConfig(
            **size,
            local_attention=16,
            global_attn_every_n_layers=2,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
        ),
        "nomic_bert": lambda: transformers.NomicBertConfig(**size),
        "qwen3": lambda: transformers.Qwen3Config(**size, num_key_value_heads=2, head_dim=8),
        "deberta-v2": lambda: transformers.DebertaV2Config(
            **size, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, type_vocab_size=0
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configs[kind]())
    with torch.no_grad():  # nothing stays at the zero or one it begins with: biases, norms, the padding token's row
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(kind):
    """Return a fast tokenizer of the family that `kind` uses, with a few hundred tokens, its special ones in place."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = {
        "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "distilbert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "modernbert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "nomic_bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "deberta-v2": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        "xlm-roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        "mpnet": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        "qwen3": ("<|endoftext|>",),
    }[kind]
    letters = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    if kind in ("bert", "distilbert", "mpnet", "nomic_bert", "deberta-v2"):
        words = [word for word in WORDS if len(word) > 1]
        entries = [*specials, *letters, *(f"##{letter}" for letter in letters), *words]
        unknown = next(name for name in specials if "unk" in name.lower())
        backend = Tokenizer(models.WordPiece({entry: index for index, entry in enumerate(entries)}, unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
    elif kind == "xlm-roberta":
        scored = [*((f"\u2581{word}", -3.0) for word in WORDS), *((letter, -8.0) for letter in ["\u2581", *letters])]
        scored = [*((name, 0.0) for name in specials), *scored]
        backend = Tokenizer(models.Unigram(scored, unk_id=specials.index("<unk>")))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
        )
        backend.train_from_iterator([" ".join(WORDS), " ".join(reversed(WORDS))] * 4, trainer)
    backend.add_special_tokens(list(specials))
    start, end = "[CLS]", "[SEP]"
    if kind == "qwen3":
        start, end = "", specials[0]
    elif "<s>" in specials:
        start, end = "<s>", "</s>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(),
        pair=f"{start} $A {end} $B {end}".strip(),
        special_tokens=[(token, backend.token_to_id(token)) for token in (start, end) if token],
    )
    if kind == "qwen3":
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end, model_max_length=LONGEST)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    if "<s>" in specials:
        names = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    named = dict(zip(names, specials, strict=True))
    if "<s>" in specials:
        named |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST, **named)


def _save_sentence_files(folder, pooling, normalize, prompts, max_length):
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    write = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": paths[index], "type": f"sentence_transformers.models.{name}"}
            for index, name in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_lasttoken": pooling == "lasttoken",
        },
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
    }
    if max_length is not None:
        write["sentence_bert_config.json"] = {"max_seq_length": max_length, "do_lower_case": False}
    for path in paths[1 : len(kinds)]:
        (folder / path).mkdir()
    for path, value in write.items():
        (folder / path).write_text(json.dumps(value), "utf-8")
