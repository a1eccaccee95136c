"""Texts are tokenised once, as the model's own tokenizer does it, and found again."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.errors import UserError
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import load_tokenizer, tokenize

CPU = torch.device("cpu")
ROWS = [
    ("red lamp", "norvale lamp red large", "E"),
    ("red lamp", "Stavik SOFA", "I"),
    ("blue sofa", "stavik sofa blue 2 pack", "E"),
    ("blue sofa", " ".join(["indoor large lamp set"] * 30), "I"),  # longer than any model here reads
    ("zebra", "naïve 漢字 ok", "S"),
]


@pytest.fixture
def pairs(tmp_path):
    return read(tmp_path / "pairs", ROWS)


def read(folder, rows):
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("query", "product_title", "relevance_label"), *rows])
    return read_channel(folder, PairOptions())["all"]


def ids(texts):
    return [texts.tokens[a:b].tolist() for a, b in zip(texts.offsets[:-1], texts.offsets[1:], strict=True)]


def expected(pairs, base):
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    strings = [
        *(base.query_prompt + text for text in pairs.queries.to_pylist()),
        *(base.text_prompt + text for text in pairs.texts.to_pylist()),
    ]
    return [tokenizer(text, truncation=True, max_length=base.max_length)["input_ids"] for text in strings]


def written(cache):
    """When each file in the cache was written: nothing is written twice if these stay."""
    return {path: path.stat().st_mtime_ns for path in sorted(cache.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("max_length", [0, 8, 3])
def test_tokens_are_those_of_the_models_own_tokenizer(tiny_model, kind, pairs, tmp_path, max_length):
    base = find_pretrained(str(tiny_model(kind)), max_length)
    texts = tokenize(pairs, base, tmp_path / "cache")
    assert ids(texts) == expected(pairs, base)
    assert texts.lengths.max() == base.max_length
    assert texts.tokens.dtype == np.int32
    assert isinstance(texts.tokens, np.memmap)


SPECIAL = {"qwen3": 1}  # tokens that are added to every text; two where nothing is said


@pytest.mark.parametrize("below", [0, 1])
def test_a_maximum_length_without_room_for_a_text_is_refused(tiny_model, kind, pairs, tmp_path, below):
    """A tokenizer turns truncation off, or leaves special tokens alone: trained on nothing, without a word."""
    special = SPECIAL.get(kind, 2)
    if special == below:  # 0 is the model's own length
        return
    base = find_pretrained(str(tiny_model(kind)), special - below)
    with pytest.raises(UserError) as caught:
        tokenize(pairs, base, tmp_path / "cache")
    assert str(caught.value) == (
        f"max_length is {special - below}, and the special tokens of {base.name} alone take {special} tokens. "
        f"Give --max_length {special + 1} or more, or take a model that allows more."
    )
    texts = tokenize(pairs, find_pretrained(str(tiny_model(kind)), special + 1), tmp_path / "cache")
    assert texts.lengths.max() == special + 1
    assert len({tuple(text) for text in ids(texts)}) > 1


def test_a_maximum_length_that_a_prompt_takes_is_refused(tiny_model, pairs, tmp_path):
    prompts = {"query": "search: ", "document": "set of passage: "}
    folder = str(tiny_model("bert", prompts=prompts))
    with pytest.raises(UserError, match=r"is 6, and the special tokens and prompt of .* alone take 6 tokens") as caught:
        tokenize(pairs, find_pretrained(folder, 6), tmp_path / "cache")
    assert caught.value.hint == "Give --max_length 7 or more, or take a model that allows more."
    assert len({tuple(text) for text in ids(tokenize(pairs, find_pretrained(folder, 7), tmp_path / "cache"))}) > 4


@pytest.mark.parametrize(
    ("name", "key"), [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
)
def test_a_maximum_length_in_the_models_own_files_is_looked_at_too(tiny_model, pairs, tmp_path, name, key):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    settings = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(settings | {key: 2}))
    with pytest.raises(UserError, match=r"max_length is 2, .*--max_length 3 or more"):
        tokenize(pairs, find_pretrained(str(folder)), tmp_path / "cache")
    assert tokenize(pairs, find_pretrained(str(folder), 20), tmp_path / "cache").lengths.max() == 20


def test_queries_come_first_and_every_text_is_there_once(tiny_model, pairs, tmp_path):
    texts = tokenize(pairs, find_pretrained(str(tiny_model("bert"))), tmp_path / "cache")
    assert texts.queries == 3
    assert len(texts) == 3 + 5
    assert texts.lengths.tolist() == [len(text) for text in ids(texts)]
    assert texts.lengths_of(np.array([2, 0])).tolist() == [len(ids(texts)[2]), len(ids(texts)[0])]


def test_prompts_reach_the_tokens(tiny_model, pairs, tmp_path):
    prompts = {"query": "search: ", "document": "passage: "}
    base = find_pretrained(str(tiny_model("bert", prompts=prompts)))
    texts = ids(tokenize(pairs, base, tmp_path / "cache"))
    assert texts == expected(pairs, base)
    search, passage = (AutoTokenizer.from_pretrained(base.folder)(word)["input_ids"][1:3] for word in prompts.values())
    assert all(text[1:3] == search for text in texts[:3])
    assert all(text[1:3] == passage for text in texts[3:])


def test_lower_case_is_that_of_sentence_transformers(tiny_model, pairs, tmp_path):
    """RoBERTa's tokenizer keeps capitals: lower-casing shows. The prompt is lower-cased with its text."""
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(tiny_model("roberta", prompts={"query": "Query: "}), tmp_path / "model")
    found = {}
    for lower in (True, False):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": lower}))
        base = find_pretrained(str(folder))
        found[lower] = ids(tokenize(pairs, base, tmp_path / "cache"))
        tokenizer = SentenceTransformer(str(folder)).tokenizer
        strings = [*("Query: " + text for text in pairs.queries.to_pylist()), *pairs.texts.to_pylist()]
        assert found[lower] == [tokenizer(text, truncation=True, max_length=64)["input_ids"] for text in strings]
    assert found[True] != found[False]


def test_a_second_call_tokenises_nothing(tiny_model, pairs, tmp_path):
    base = find_pretrained(str(tiny_model("bert")))
    first = tokenize(pairs, base, tmp_path / "cache")
    before = written(tmp_path / "cache")
    second = tokenize(pairs, base, tmp_path / "cache")
    assert written(tmp_path / "cache") == before
    assert ids(first) == ids(second)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_equal_pairs_from_other_files_are_found_too(tiny_model, pairs, tmp_path):
    base = find_pretrained(str(tiny_model("bert")))
    tokenize(pairs, base, tmp_path / "cache")
    before = written(tmp_path / "cache")
    tokenize(read(tmp_path / "again", ROWS), base, tmp_path / "cache")
    assert written(tmp_path / "cache") == before


def test_other_texts_tokenizer_length_prompt_or_case_are_tokenised_anew(tiny_model, pairs, tmp_path):
    base = find_pretrained(str(tiny_model("bert")))
    other_text = read(tmp_path / "other", [*ROWS[:-1], ("zebra", "naive 漢字 ok", "S")])
    runs = [
        (pairs, base),
        (other_text, base),
        (pairs, find_pretrained(str(tiny_model("mpnet")))),
        (pairs, replace(base, max_length=8)),
        (pairs, replace(base, query_prompt="query: ")),
        (pairs, replace(base, text_prompt="query: ")),
        (pairs, replace(base, lower_case=True)),
    ]
    for count, (what, setting) in enumerate(runs, 1):
        tokenize(what, setting, tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == count


def test_texts_are_taken_in_the_order_asked_for(tiny_model, pairs, tmp_path):
    texts = tokenize(pairs, find_pretrained(str(tiny_model("bert"))), tmp_path / "cache")
    rows = np.array([6, 0, 7, 3, 0, 2])
    taken = texts.take(rows)
    pieces = np.split(taken.ids, np.cumsum(taken.lengths)[:-1])
    assert [piece.tolist() for piece in pieces] == [ids(texts)[row] for row in rows]


def test_a_folder_without_a_tokenizer_is_an_error(tiny_model, kind, tmp_path):
    """transformers would make up an empty one for most of them, to which every word is unknown."""
    folder = shutil.copytree(tiny_model(kind), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer files|tokenizer of .* cannot be loaded"):
        load_tokenizer(find_pretrained(str(folder)))


def test_a_vocabulary_without_tokenizer_json_will_do(tiny_model, pairs, tmp_path):
    """As older BERT models have it: vocab.txt alone."""
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    whole = tokenize(pairs, find_pretrained(str(tiny_model("bert"))), tmp_path / "cache")
    assert ids(tokenize(pairs, find_pretrained(str(folder), 64), tmp_path / "cache")) == ids(whole)


def test_a_broken_tokenizer_is_an_error(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(UserError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(find_pretrained(str(folder)))
