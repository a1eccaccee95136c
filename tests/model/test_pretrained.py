"""What is read from a base model's own files, and which models are refused."""

import json
import shutil

import pytest

from lorry.errors import UserError
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.names import BUNDLED_MODEL_ID


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of a tiny BERT in a plain transformers folder, to write to."""
    return shutil.copytree(tiny_model("bert", plain=True), tmp_path / "model")


def add_sentence_files(
    folder, pooling=None, kinds=("Transformer", "Pooling", "Normalize"), prompts=None, sentence=None
):
    """Write sentence-transformers' files; `pooling` is the content of the pooling module's own."""
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write(folder / "modules.json", modules)
    if pooling is not None:
        write(folder / "1_Pooling" / "config.json", pooling)
    if prompts is not None:
        write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    if sentence is not None:
        write(folder / "sentence_bert_config.json", sentence)


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def old(flag, *, dimension=32):
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": dimension} | {f"pooling_mode_{name}": name == flag for name in flags}


def test_a_plain_folder_gets_mean_pooling_and_unit_length(model):
    assert find_pretrained(str(model)) == PretrainedModel(
        str(model), model, "mean", True, "", "", 64, False, {}, "bert", vocabulary(model)
    )


def vocabulary(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (old("mean_tokens"), "mean"),
        (old("cls_token"), "cls"),
        (old("lasttoken"), "lasttoken"),
        ({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "lasttoken"),
        ({"embedding_dimension": 32, "pooling_mode": ["cls"]}, "cls"),
        ({}, "mean"),
    ],
)
def test_pooling_in_both_spellings(model, settings, pooling):
    add_sentence_files(model, settings)
    assert find_pretrained(str(model)).pooling == pooling


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (old("max_tokens"), "max"),
        (old("weightedmean_tokens"), "weightedmean"),
        (old("mean_tokens") | {"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls", "mean"]}, r"cls \+ mean"),
    ],
)
def test_other_poolings_are_refused(model, settings, named):
    add_sentence_files(model, settings)
    with pytest.raises(UserError, match=f"pools by .*{named}.* mean, cls, lasttoken"):
        find_pretrained(str(model))


def test_pooling_without_the_prompt_is_refused(model):
    add_sentence_files(model, old("mean_tokens") | {"include_prompt": False})
    with pytest.raises(UserError, match="without its prompt tokens"):
        find_pretrained(str(model))


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "WeightedLayerPooling"])
def test_modules_that_lorry_cannot_train_are_refused(model, kind):
    add_sentence_files(model, old("mean_tokens"), ("Transformer", "Pooling", kind))
    with pytest.raises(UserError, match=f"has a sentence_transformers.models.{kind} module"):
        find_pretrained(str(model))


def test_normalisation_is_that_of_the_modules(model):
    add_sentence_files(model, old("mean_tokens"), ("Transformer", "Pooling"))
    assert not find_pretrained(str(model)).normalize
    add_sentence_files(model, old("mean_tokens"))
    assert find_pretrained(str(model)).normalize


@pytest.mark.parametrize(
    ("prompts", "query", "text"),
    [
        ({"query": "query: ", "document": "document: "}, "query: ", "document: "),
        ({"query": "query: ", "passage": "passage: "}, "query: ", "passage: "),
        ({"query": "", "document": "", "passage": "passage: "}, "", "passage: "),
        ({"corpus": "text: "}, "", "text: "),
        ({"query": "ask: ", "clustering": "c: "}, "ask: ", ""),
        ({}, "", ""),
        (None, "", ""),
    ],
)
def test_prompts(model, prompts, query, text):
    add_sentence_files(model, old("mean_tokens"), prompts=prompts)
    base = find_pretrained(str(model))
    assert (base.query_prompt, base.text_prompt) == (query, text)
    assert base.prompts.get("document", "") == text  # where sentence-transformers looks for it in the tuned model
    assert {name: base.prompts[name] for name in prompts or {} if name != "document"} == {
        name: prompt for name, prompt in (prompts or {}).items() if name != "document"
    }


@pytest.mark.parametrize(
    ("own", "asked", "found"), [(None, 0, 64), (20, 0, 20), (20, 40, 40), (20, 64, 64), (500, 0, 64), (500, 10, 10)]
)
def test_the_longest_text(model, own, asked, found):
    add_sentence_files(model, old("mean_tokens"), sentence={"max_seq_length": own, "do_lower_case": False})
    assert find_pretrained(str(model), asked).max_length == found


@pytest.mark.parametrize(("own", "found"), [(20, 20), (1_000_000_000_000_000_019_884_624_838_656, 64), (1e30, 64)])
def test_the_longest_text_as_the_tokenizer_has_it(model, own, found):
    add_sentence_files(model, old("mean_tokens"), sentence={})
    settings = json.loads((model / "tokenizer_config.json").read_text())
    write(model / "tokenizer_config.json", settings | {"model_max_length": own})
    assert find_pretrained(str(model)).max_length == found


def test_long_positions_are_not_used_unasked(model):
    config = json.loads((model / "config.json").read_text())
    write(model / "config.json", config | {"max_position_embeddings": 8192})
    settings = json.loads((model / "tokenizer_config.json").read_text())
    write(model / "tokenizer_config.json", settings | {"model_max_length": 8192})
    assert find_pretrained(str(model)).max_length == 512
    assert find_pretrained(str(model), 2000).max_length == 2000


def test_a_text_longer_than_the_model_is_refused(tiny_model, kind):
    folder = str(tiny_model(kind))
    assert find_pretrained(folder, 64).max_length == 64
    with pytest.raises(UserError, match=r"max_length is 65.*64 positions"):
        find_pretrained(folder, 65)


@pytest.mark.parametrize("asked", [65, 10**9, 10**40])
def test_a_maximum_length_beyond_the_model_is_refused_however_large(model, asked):
    with pytest.raises(UserError, match=f"max_length is {asked}. This model has 64 positions"):
        find_pretrained(str(model), asked)


@pytest.mark.parametrize("lower", [True, False])
def test_lower_case(model, lower):
    add_sentence_files(model, old("mean_tokens"), sentence={"max_seq_length": 20, "do_lower_case": lower})
    assert find_pretrained(str(model)).lower_case == lower


def test_what_sentence_transformers_saves_today_is_read(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "query: ", "document": "document: "}
    for pooling in ("mean", "cls", "lasttoken"):
        for normalize in (True, False):
            source = tiny_model("bert", pooling=pooling, normalize=normalize, prompts=prompts, max_length=24)
            target = tmp_path / f"{pooling}-{normalize}"
            SentenceTransformer(str(source)).save(str(target))
            found = find_pretrained(str(target))
            assert found == PretrainedModel(
                str(target), target, pooling, normalize, "query: ", "document: ", 24, False, prompts, "bert",
                vocabulary(target),
            )  # fmt: skip


def test_no_config_is_an_error(model):
    (model / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_pretrained(str(model))


def test_no_safetensors_is_an_error(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no safetensors weights.*save_pretrained"):
        find_pretrained(str(model))


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"]
)
def test_a_broken_file_is_named(model, name):
    add_sentence_files(model, old("mean_tokens"))
    write(model / name, '{"half": ')
    with pytest.raises(UserError) as caught:
        find_pretrained(str(model))
    assert str(model / name) in caught.value.cause


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(UserError, match=f"there is no model folder {name}"):
        find_pretrained(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no such model!", "'no such model!' is neither a folder nor a name that the Hub allows"),
        ("n" * 300, "is neither a folder nor a name that the Hub allows"),
        ("/" + "n" * 300, "there is no model folder /nnn"),
        ("a\0b", r"'a\\x00b' is neither a folder nor a Hub id"),
        ("a\nb", r"'a\\nb' is neither a folder nor a Hub id"),
        ("/a\0b", r"'/a\\x00b' is neither a folder nor a Hub id"),
        ("\udcff", r"'\\udcff' is neither a folder nor a Hub id"),
        ("owner/a..b", "is neither a folder nor a name that the Hub allows"),
    ],
)
def test_a_name_that_nothing_can_have(name, says):
    with pytest.raises(UserError, match=says) as caught:
        find_pretrained(name)
    assert "--pretrained_model" in caught.value.hint


def test_a_folder_may_have_any_name(model, tmp_path):
    assert find_pretrained(str(model.rename(tmp_path / "a model\nof ours"))).max_length == 64


def test_a_file_where_a_folder_is_meant(model, monkeypatch):
    monkeypatch.chdir(model)
    for name in ("model.safetensors", str(model / "config.json")):
        with pytest.raises(UserError, match=f"{name} is a file. Give the folder that holds the model"):
            find_pretrained(name)


def test_the_bundled_model():
    base = find_pretrained("bundled")
    assert base.name == BUNDLED_MODEL_ID
    assert (base.pooling, base.normalize, base.max_length) == ("mean", True, 256)
    assert (base.query_prompt, base.text_prompt) == ("", "")


def test_the_bundled_model_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*lorry\[bundled\]"):
        find_pretrained("bundled")
