"""Strings become hyperparameters: every kind of value, its bounds, and names that nobody knows."""

import argparse
import dataclasses
import json

import pytest

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.loss_sum import LOSSES, dims_of, loss_terms
from lorry.options import add_options, as_dict, from_strings

FIELDS = {item.name: item for item in dataclasses.fields(TrainConfig)}


def read(**values):
    return from_strings(TrainConfig, values)


def test_no_strings_give_the_documented_defaults():
    config = read()
    assert config == TrainConfig()
    assert (config.lora_rank, config.lora_alpha, config.pretrained_model) == (16, 32.0, "TaylorAI/gte-tiny")
    assert (config.loss, config.batch_size, config.lr) == ("0.3*infonce+2*ranknet+2*cosent", 96, 1e-3)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lora_rank", "16", 16),
        ("lora_rank", "8.0", 8),
        ("batch_size", "1e3", 1000),
        ("batch_size", " 12 ", 12),
        ("seed", "0", 0),
        ("lr", "1e-3", 0.001),
        ("lr", "1E-6", 1e-6),
        ("lr", "2", 2.0),
        ("warmup", "0", 0.0),
        ("small_version", "true", True),
        ("small_version", "True", True),
        ("small_version", "false", False),
        ("small_version", "FALSE", False),
        ("small_version", "0", False),
        ("small_version", "1", True),
        ("loss", "cosine", "cosine"),
        ("validation", "", ""),
        ("label_map", "good=1,bad=0", "good=1,bad=0"),
        ("positive_threshold", "2.5", 2.5),
        ("positive_threshold", "", None),
    ],
)
def test_a_string_becomes_a_value_of_its_kind(name, text, value):
    found = getattr(read(**{name: text}), name)
    assert found == value
    assert type(found) is type(value)


def test_values_that_a_json_decoder_went_over_first_are_read_the_same():
    """SageMaker's toolkit decodes `"true"` to True and `"8"` to 8 before anybody sees them."""
    strings = {"small_version": "true", "lora_rank": "8", "lr": "1e-3", "loss": "cosine", "positive_threshold": "2"}
    decoded = {}
    for name, text in strings.items():
        try:
            decoded[name] = json.loads(text)
        except ValueError:
            decoded[name] = text
    assert decoded["small_version"] is True
    assert from_strings(TrainConfig, decoded) == read(**strings)


def test_a_hyphen_is_as_good_as_an_underscore():
    assert from_strings(TrainConfig, {"lora-rank": "4"}).lora_rank == 4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("epochs", "two", "a whole number"),
        ("epochs", "1.5", "a whole number"),
        ("epochs", "", "a whole number"),
        ("epochs", "nan", "a whole number"),
        ("epochs", "inf", "a whole number"),
        ("epochs", "0", "1 or more"),
        ("seed", "-1", "0 or more"),
        ("seed", str(2**32), "4294967295 or less"),
        ("lr", "fast", "a number"),
        ("lr", "0", "more than 0"),
        ("lr", "-1e-3", "more than 0"),
        ("lr", "", "a number"),
        ("warmup", "1.5", "1 or less"),
        ("validation_fraction", "0.6", "0.5 or less"),
        ("small_version", "maybe", "true or false"),
        ("small_version", "", "true or false"),
        ("loss", "triplet", "infonce+5*ranknet"),
        ("precision", "int8", "bf16"),
        ("on_stop", "cry", "checkpoint"),
    ],
)
def test_a_bad_value_names_the_option_the_value_and_what_is_wanted(name, text, says):
    with pytest.raises(UserError) as refused:
        read(**{name: text})
    assert name in refused.value.cause
    assert text in refused.value.cause
    assert says in refused.value.hint


NUMBERS = [name for name, item in FIELDS.items() if "float" in str(item.type)]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_anything_but_finite(name, text):
    with pytest.raises(UserError, match=name):
        read(**{name: text})


@pytest.mark.parametrize(
    ("name", "near"),
    [("lora_rnk", "lora_rank"), ("learning_rat", ""), ("batchsize", "batch_size"), ("ephocs", "epochs")],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name, near):
    with pytest.raises(UserError) as refused:
        read(**{name: "1"})
    assert name in refused.value.cause
    assert (f"Did you mean {near}?" if near else "--help") in refused.value.hint


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("cosine", {"cosine": 1.0}),
        ("infonce+5*ranknet+0.2*cosent", {"infonce": 1.0, "ranknet": 5.0, "cosent": 0.2}),
        (" 2 * lambda + 1e-1*bce ", {"lambda": 2.0, "bce": 0.1}),
        ("+".join(LOSSES), dict.fromkeys(LOSSES, 1.0)),
    ],
)
def test_a_loss_is_a_sum_with_weights(loss, terms):
    assert loss_terms(loss) == terms
    assert read(loss=loss) == TrainConfig(loss=loss.strip())


@pytest.mark.parametrize(
    ("loss", "part", "says"),
    [
        ("", "''", "infonce+5*ranknet"),
        ("infonce+", "''", "infonce+5*ranknet"),
        ("infonce+ranknt", "'ranknt'", "Did you mean ranknet?"),
        ("5*lambada", "'5*lambada'", "Did you mean lambda?"),
        ("2*", "'2*'", "infonce+5*ranknet"),
        ("ranknet*5", "'ranknet*5'", "infonce+5*ranknet"),
        ("5ranknet", "'5ranknet'", "Did you mean ranknet?"),
        ("two*infonce", "'two*infonce'", "infonce+5*ranknet"),
        ("2*3*infonce", "'2*3*infonce'", "infonce+5*ranknet"),
        ("0*infonce", "'0*infonce'", "infonce+5*ranknet"),
        ("infonce+-1*cosent", "'-1*cosent'", "infonce+5*ranknet"),
        ("inf*infonce", "'inf*infonce'", "infonce+5*ranknet"),
        ("nan*infonce", "'nan*infonce'", "infonce+5*ranknet"),
    ],
)
def test_a_loss_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(loss, part, says):
    with pytest.raises(UserError) as refused:
        TrainConfig(loss=loss)
    assert refused.value.cause == f"loss is {loss!r}, and {part} is no part of a loss"
    assert says in refused.value.hint


def test_a_loss_is_added_once():
    with pytest.raises(UserError, match=r"loss is 'cosent\+2\*cosent', and '2\*cosent' is there twice"):
        TrainConfig(loss="cosent+2*cosent")


@pytest.mark.parametrize(("text", "dims"), [("", ()), (" ", ()), ("64", (64,)), ("256,128, 64", (256, 128, 64))])
def test_dimensions_are_a_list(text, dims):
    assert dims_of(text) == dims
    assert read(matryoshka_dims=text).matryoshka_dims == text.strip()


@pytest.mark.parametrize("text", ["0", "-8", "8,8", "8,,4", "8.5", "half", "8;4"])
def test_dimensions_that_cannot_be_read_are_refused(text):
    with pytest.raises(UserError, match="matryoshka_dims is") as refused:
        read(matryoshka_dims=text)
    assert text in refused.value.cause
    assert "256,128,64" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "value", "loss", "add"),
    [
        ("temperature", "0.1", "ranknet+cosent", "infonce"),
        ("hard_negatives", "4", "cosent", "infonce"),
        ("scale", "10", "infonce+cosine+margin_mse", "ranknet"),
    ],
)
def test_an_option_without_effect_is_refused_and_the_loss_that_takes_it_is_named(name, value, loss, add):
    with pytest.raises(UserError) as refused:
        read(loss=loss, **{name: value})
    assert refused.value.cause.startswith(f"{name} is ")
    assert loss in refused.value.cause
    assert add in refused.value.hint
    assert getattr(read(loss=f"{loss}+{add}", **{name: value}), name) == float(value)
    default = FIELDS[name].default
    assert getattr(read(loss=loss, **{name: str(default)}), name) == default


@pytest.mark.parametrize(("name", "value"), [("lora_targets", "qkv"), ("lora_dropout", "0.1")])
def test_options_of_adapters_are_refused_where_there_are_none(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}, but lora_rank 0 trains all weights") as refused:
        read(lora_rank="0", **{name: value})
    assert refused.value.hint == f"Leave out {name}."
    assert str(getattr(read(**{name: value}), name)) == value
    assert read(lora_rank="0").lora_rank == 0


def test_patience_needs_the_best_epoch():
    with pytest.raises(UserError, match="patience needs best_epoch"):
        read(patience="2", best_epoch="false")
    assert read(patience="2").best_epoch
    assert not read(best_epoch="false").patience


def test_a_config_survives_the_way_through_strings():
    config = dataclasses.replace(TrainConfig(), lr=3e-5, small_version=True, loss="cosine", positive_threshold=2.33)
    strings = {name: "" if value is None else str(value) for name, value in as_dict(config).items()}
    assert from_strings(TrainConfig, strings) == config


def test_every_field_has_help_and_a_default_within_its_own_bounds():
    for name, item in FIELDS.items():
        assert item.metadata["help"], name
        text = "" if item.default is None else str(item.default)
        assert getattr(read(**{name: text}), name) == item.default, name


def test_values_of_a_repeated_option_become_one_string():
    """As one string of hyperparameters.json has them."""
    parser = argparse.ArgumentParser()
    add_options(parser, TrainConfig)
    once, twice = "ndcg@10>=+0.005", ["--require", "ndcg@10>=+0.005", "--require=test:roc_auc>=0.7"]
    assert vars(parser.parse_args(["--require", once])) == {"require": once}
    given = vars(parser.parse_args(twice))
    assert given == {"require": "ndcg@10>=+0.005,test:roc_auc>=0.7"}
    assert from_strings(TrainConfig, given).require == given["require"]
    assert vars(parser.parse_args(["--epochs", "1", "--epochs", "2"])) == {"epochs": "2"}


def test_only_wanted_options_are_offered():
    parser = argparse.ArgumentParser()
    add_options(parser, TrainConfig, {"lora_rank"})
    assert vars(parser.parse_args(["--lora-rank", "4"])) == {"lora_rank": "4"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--epochs", "1"])
