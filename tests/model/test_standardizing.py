"""`--standardize`: a module of the model that sentence-transformers loads, and that Lorry reads exactly."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from command import lorry
from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.errors import UserError
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from test_pipeline import Run

OPTIONS = {"batch_size": 24, "lr": 0.03, "epochs": 1, "precision": "fp32", "lora_rank": 4, "interpolation": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, shop_pairs):
    folder = tmp_path_factory.mktemp("pairs")
    return {name: shop_pairs(folder / name, count, seed) for seed, (name, count) in enumerate(
        {"train": 40, "validation": 20, "test": 20}.items())}  # fmt: skip


@pytest.fixture(scope="module", params=["center", "whiten"])
def run(request, pairs, tiny_model, tmp_path_factory):
    given = {**OPTIONS, **pairs, "pretrained_model": tiny_model("bert"), "standardize": request.param}
    return Run(tmp_path_factory.mktemp(request.param), **given)


def embeddings(folder, channel):
    """Return what Lorry makes of the texts of a channel, queries first."""
    base = find_pretrained(str(folder))
    return embed_all(Encoder(base, "fp32", torch.device("cpu")), tokenize(channel, base)).numpy()


def test_sentence_transformers_loads_it_without_remote_code_and_agrees_with_lorry(run, pairs):
    channel = read_channel(pairs["train"], PairOptions())["all"]
    model = SentenceTransformer(str(run.model), device="cpu", trust_remote_code=False)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    texts = [*channel.queries.to_pylist(), *channel.texts.to_pylist()]
    assert embeddings(run.model, channel) == pytest.approx(
        model.encode(texts), abs=1e-4
    )  # whitening lengthens rounding too


def test_the_products_have_no_mean_before_they_are_scaled(run, pairs):
    channel = read_channel(pairs["train"], PairOptions())["all"]
    model = SentenceTransformer(str(run.model), device="cpu")
    plain = torch.nn.Sequential(*list(model)[:3])
    features = model.preprocess(channel.texts.to_pylist())
    with torch.inference_mode():
        product_PD = plain(features)["sentence_embedding"].numpy()
    assert np.abs(product_PD.mean(0)).max() < 1e-4 * np.abs(product_PD).max()


def test_the_metrics_are_those_of_the_model_that_is_left(run, pairs, tmp_path):
    ended = lorry("evaluate", model=run.model, data=pairs["test"], output=tmp_path / "m.json", precision="fp32")
    assert ended.code == 0, ended.output
    found = json.loads((tmp_path / "m.json").read_text())["splits"]["all"]["models"][str(run.model)]
    assert found == pytest.approx(run.metrics["splits"]["test"]["tuned"], abs=1e-5)


def test_the_model_card_says_how_transformers_gets_the_same(run, pairs):
    code = (run.model / "README.md").read_text().split("With transformers")[1].split("```python")[1].split("```")[0]
    scope = {}
    exec(code.replace("path/to/this/folder", str(run.model)).replace("print(vectors @ vectors.T)", ""), scope)
    model = SentenceTransformer(str(run.model), device="cpu")
    assert scope["vectors"].numpy() == pytest.approx(model.encode(["cordless drill", "18 V drill driver"]), abs=1e-4)


def test_a_standardised_model_can_be_trained_again_but_not_standardised_twice(run, pairs, tmp_path):
    given = {
        **OPTIONS,
        **pairs,
        "pretrained_model": run.model,
        "model_dir": tmp_path / "m",
        "output_data_dir": tmp_path / "o",
    }
    ended = lorry("train", **given, standardize="center")
    assert ended.code == 1
    assert "is standardised already" in ended.lines[-1]
    ended = lorry("train", **given)
    assert ended.code == 0, ended.output
    before, after = (load_file(folder / "2_Dense" / "model.safetensors") for folder in (run.model, tmp_path / "m"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_dense_modules_stay_refused(run, tmp_path):
    folder = shutil.copytree(run.model, tmp_path / "copy")
    settings = json.loads((folder / "2_Dense" / "config.json").read_text())
    tanh = settings | {"activation_function": "torch.nn.modules.activation.Tanh"}
    for changed in (tanh, settings | {"out_features": 16}, settings | {"bias": False}):
        (folder / "2_Dense" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"has a sentence_transformers\.models\.Dense module"):
            find_pretrained(str(folder))
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    save_file({"linear.weight": torch.eye(32)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(UserError, match="2_Dense cannot be read"):
        Encoder(find_pretrained(str(folder)), "fp32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"standardize": "center", "train_side": "query"}, "which train_side query leaves as they are"),
        ({"standardize": "whiten", "matryoshka_dims": "16"}, "matryoshka_dims would have no effect"),
    ],
)
def test_what_does_not_go_together_is_refused(pairs, tmp_path, given, said):
    ended = lorry("train", train=pairs["train"], model_dir=tmp_path / "m", output_data_dir=tmp_path / "o", **given)
    assert (ended.code, list(tmp_path.iterdir())) == (1, [])
    assert said in ended.lines[-1]
