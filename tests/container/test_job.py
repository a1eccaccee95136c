"""The job as the container reads it: where hyperparameters come from, and what becomes of the channels."""

import pytest
from ml import base_model, write_config

from lorry.config import TrainConfig
from lorry.container.job import read_job
from lorry.errors import UserError


def read(root, *arguments, **environ):
    return read_job(arguments, environ, root)


def test_with_no_file_at_all_channels_and_outputs_are_filled_in(root):
    config = read(root)
    assert config == TrainConfig(
        train=f"{root}/input/data/train", model_dir=f"{root}/model", output_data_dir=f"{root}/output/data"
    )


def test_the_checkpoint_folder_is_used_where_it_exists(root):
    (root / "checkpoints").mkdir()
    assert read(root).checkpoint_dir == f"{root}/checkpoints"


def test_the_channel_probe_is_that_of_the_option(root):
    (root / "input" / "data" / "probe").mkdir()
    (root / "input" / "data" / "probe" / "sts.csv").touch()
    assert read(root).probe == f"{root}/input/data/probe"


def test_command_line_before_environment_before_file_before_default(root):
    write_config(root, hyperparameters={"epochs": "2", "lora_rank": "2", "seed": "2"})
    config = read(root, "--epochs", "4", LORRY_EPOCHS="3", LORRY_LORA_RANK="3", LORRY_DATA="/x", LORRY_REVISION="abc")
    assert (config.epochs, config.lora_rank, config.seed, config.lora_dropout) == (4, 3, 2, 0.0)


@pytest.mark.parametrize("text", ["bundled", '"bundled"', '"bundled" '])
def test_strings_may_be_encoded_as_json_twice(root, text):
    write_config(root, hyperparameters={"pretrained_model": text})
    assert read(root).pretrained_model == "bundled"


@pytest.mark.parametrize("value", ["true", "True", '"true"', True])
def test_booleans_in_every_spelling(root, value):
    write_config(root, hyperparameters={"small_version": value, "positive_threshold": None})
    config = read(root)
    assert config.small_version is True
    assert config.positive_threshold is None


def test_what_sdk_and_tuner_add_is_left_out(root):
    write_config(
        root, hyperparameters={"sagemaker_region": '"eu-west-1"', "_tuning_objective_metric": "x", "epochs": "2"}
    )
    assert read(root).epochs == 2


def test_an_entry_point_is_not_ignored_in_silence(root, lines):
    write_config(root, hyperparameters={"sagemaker_program": '"mine.py"'})
    read(root)
    assert any("mine.py is not run" in line for line in lines())


@pytest.mark.parametrize("door", ["arguments", "environment", "file"])
def test_an_unknown_hyperparameter_is_told_with_the_nearest_name(root, door):
    if door == "file":
        write_config(root, hyperparameters={"epoch": "3"})
    with pytest.raises(UserError, match=r"unknown hyperparameter epoch. Did you mean epochs\?"):
        read(
            root,
            *(["--epoch", "3"] if door == "arguments" else []),
            **({"LORRY_EPOCH": "3"} if door == "environment" else {}),
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs"], "expected one argument"),
        (["3"], "'3' is not an option"),
        (["--lora-rank", "none"], "lora_rank is 'none'"),
    ],
)
def test_malformed_options_are_mistakes(root, arguments, said):
    with pytest.raises(UserError, match=said):
        read(root, *arguments)


@pytest.mark.parametrize("name", ["hyperparameters", "inputdataconfig"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000])
def test_a_file_that_is_no_json_object(root, name, text):
    write_config(root, **{name: text})
    with pytest.raises(UserError, match=rf"{name}\.json"):
        read(root)


def test_the_model_channel_wins(root, lines):
    folder = base_model(root / "input" / "data" / "model")
    assert read(root, "--pretrained_model", "TaylorAI/gte-tiny").pretrained_model == str(folder)
    assert any("not from pretrained_model=TaylorAI/gte-tiny" in line for line in lines())


def test_pairs_may_be_elsewhere(root):
    (root / "input" / "data" / "train" / "pairs.csv").unlink()
    (root / "input" / "data" / "train").rmdir()
    assert read(root, "--train", "hf://datasets/owner/name").train == "hf://datasets/owner/name"
