"""What a run begins with: what is trained, products embedded once, and options that the pairs or the model refuse."""

import csv
import logging
import shutil

import pytest
import torch

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.training.setup import FULL_LR, prepare, with_documents


@pytest.fixture
def begin(tiny_model, shop_pairs, tmp_path):
    """Return `begin(scores=…, **options)`: a prepared run, whose pair i has the teacher's score `scores(i)`."""

    def prepared(*, scores=None, column="teacher_score", **options):
        pairs = shop_pairs(tmp_path / "pairs") / "pairs.csv"
        if scores is not None:
            head, *rows = csv.reader(pairs.open(newline=""))
            with pairs.open("w", newline="") as file:
                csv.writer(file).writerows(
                    [[*head, column], *([*row, scores(number)] for number, row in enumerate(rows))]
                )
        options = {"precision": "fp32", "pretrained_model": str(tiny_model("bert"))} | options
        return prepare(TrainConfig(train=str(tmp_path / "pairs"), **options))

    return prepared


def test_adapters_are_trained_and_their_number_is_told(begin, caplog):
    with caplog.at_level(logging.INFO, "lorry"):
        setup = begin(lora_rank=4)
    # Of two layers: four products of 32 by 32, two of 32 by 64.
    count = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))
    assert sum(weight.numel() for weight in setup.encoder.trainable().values()) == count
    assert f"training {count:,} weights" in caplog.text
    assert setup.encoder.adapted
    assert not setup.documents


@pytest.mark.parametrize("lr", [FULL_LR, 2 * FULL_LR])
def test_rank_0_trains_all_weights_and_warns_of_a_rate_for_adapters(begin, lr, caplog):
    with caplog.at_level(logging.WARNING, "lorry"):
        encoder = begin(lora_rank=0, lr=lr, precision="bf16").encoder
    assert not encoder.adapted
    assert {weight.dtype for weight in encoder.trainable().values()} == {torch.float32}
    assert "embeddings.word_embeddings.weight" in encoder.trainable()
    assert ("is high for full fine-tuning" in caplog.text) == (lr > FULL_LR)


@pytest.mark.parametrize(("loss", "warns"), [(TrainConfig.loss, True), ("infonce", False)])
def test_queries_alone_are_not_trained_with_the_default_loss_without_a_warning(begin, loss, warns, caplog):
    with caplog.at_level(logging.WARNING, "lorry"):
        begin(train_side="query", loss=loss)
    assert ("take --loss infonce" in caplog.text) == warns


def test_products_keep_the_base_models_embeddings_where_queries_alone_are_trained(begin):
    setup = begin(train_side="query")
    assert not setup.documents  # a plan needs none
    setup = with_documents(setup)
    base = Encoder(setup.base, "fp32", torch.device("cpu"))
    assert set(setup.documents) == {"train", "validation"}
    for name, found in setup.documents.items():
        assert len(found) == len(setup.splits[name].texts)
        expected = embed_all(base, setup.texts[name])[setup.texts[name].queries :]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_dimensions_must_be_fewer_than_the_models(begin):
    with pytest.raises(UserError, match=r"matryoshka_dims has 32, and embeddings of .* have 32 numbers"):
        begin(matryoshka_dims="16,32")
    assert begin(matryoshka_dims="16,31").config.matryoshka_dims == "16,31"


@pytest.mark.parametrize("loss", ["margin_mse", "infonce+0.5*kl"])
@pytest.mark.parametrize("scores", [None, lambda number: ""], ids=["no column", "empty cells"])
def test_a_loss_that_learns_from_a_teacher_needs_its_scores(begin, scores, loss):
    with pytest.raises(UserError, match="needs a teacher's scores, and the training pairs have none") as refused:
        begin(loss=loss, scores=scores)
    assert ("kl" if "kl" in loss else "margin_mse") in refused.value.cause
    assert "--teacher_column" in refused.value.hint


@pytest.mark.parametrize(("low", "high"), [(0, 1.5), (-3, 0.5)])
def test_a_teachers_scores_are_on_the_scale_of_cosines(begin, low, high):
    with pytest.raises(UserError, match=f"the teacher's scores go from {low} to {high}, and cosines from -1 to 1"):
        begin(loss="margin_mse", scores=lambda number: [low, high, ""][number % 3])


def test_scores_of_a_teacher_are_read_from_the_column_that_is_named(begin):
    setup = begin(loss="kl", scores=lambda number: ["0.25", "0.75", ""][number % 3], column="gpt", teacher_column="gpt")
    found = setup.splits["train"].teacher
    assert {str(score) for score in found} == {"0.25", "0.75", "nan"}


def test_scores_that_no_loss_uses_may_be_anything(begin):
    assert begin(scores=lambda number: "unknown").splits["train"].teacher is None


def test_a_model_of_queries_alone_is_no_base(begin, tiny_model, tmp_path):
    base = shutil.copytree(tiny_model("bert"), tmp_path / "base")
    shutil.copytree(tiny_model("bert"), base / "document_model")
    with pytest.raises(UserError, match=r"base is a model of queries alone: products have another, in its document_mo"):
        begin(pretrained_model=str(base))
