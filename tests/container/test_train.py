"""The job as the container reads it: hyperparameters, channels, base model, failure file. The image's tests run it."""

import contextlib
import json
import logging
import os
import tarfile
from pathlib import Path

import pytest

from lorry import hardware
from lorry.config import TrainConfig
from lorry.container import train as container
from lorry.errors import UserError
from lorry.signals import Stop


@pytest.fixture
def root(tmp_path):
    """An /opt/ml with a train channel and nothing else."""
    (tmp_path / "input" / "data" / "train").mkdir(parents=True)
    (tmp_path / "input" / "config").mkdir()
    return tmp_path


def write(root, **files):
    for name, value in files.items():
        (root / "input" / "config" / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))


def read(root, *arguments, **environ):
    return container.read_job(arguments, environ, root)


def test_with_no_file_at_all_channels_and_outputs_are_filled_in(root):
    config = read(root)
    assert config == TrainConfig(
        train=f"{root}/input/data/train", model_dir=f"{root}/model", output_data_dir=f"{root}/output/data"
    )


def test_the_checkpoint_folder_is_used_where_it_exists(root):
    (root / "checkpoints").mkdir()
    assert read(root).checkpoint_dir == f"{root}/checkpoints"


def test_command_line_before_environment_before_file_before_default(root):
    write(root, hyperparameters={"epochs": "2", "lora_rank": "2", "seed": "2"})
    config = read(root, "--epochs", "4", LORRY_EPOCHS="3", LORRY_LORA_RANK="3", LORRY_DATA="/x", LORRY_REVISION="abc")
    assert (config.epochs, config.lora_rank, config.seed, config.lora_dropout) == (4, 3, 2, 0.0)


@pytest.mark.parametrize("text", ["bundled", '"bundled"', '"bundled" '])
def test_strings_may_be_json_once_more(root, text):
    write(root, hyperparameters={"pretrained_model": text})
    assert read(root).pretrained_model == "bundled"


@pytest.mark.parametrize("value", ["true", "True", '"true"', True])
def test_booleans_in_every_spelling(root, value):
    write(root, hyperparameters={"small_version": value, "positive_threshold": None})
    config = read(root)
    assert config.small_version is True
    assert config.positive_threshold is None


def test_what_sdk_and_tuner_add_is_left_out(root):
    write(root, hyperparameters={"sagemaker_region": '"eu-west-1"', "_tuning_objective_metric": "x", "epochs": "2"})
    assert read(root).epochs == 2


def test_an_entry_point_is_not_passed_over_in_silence(root, caplog):
    write(root, hyperparameters={"sagemaker_program": '"mine.py"'})
    with caplog.at_level(logging.WARNING, "lorry"), watched("lorry"):
        read(root)
    assert "mine.py is not run" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--epoch", "3"], {}, "unknown hyperparameter epoch. Did you mean epochs?"),
        (["--epochs"], {}, "expected one argument"),
        (["3"], {}, "'3' is no option"),
        ([], {"LORRY_EPOCSH": "3"}, "unknown hyperparameter epocsh. Did you mean epochs?"),
        (["--lora-rank", "none"], {}, "lora_rank is 'none'"),
    ],
)
def test_unknown_and_malformed_options_are_mistakes(root, arguments, environ, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        read(root, *arguments, **environ)


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_file_that_is_no_json_object(root, text):
    write(root, hyperparameters=text)
    with pytest.raises(UserError, match=r"hyperparameters\.json"):
        read(root)


def test_training_is_another_name_of_train_and_both_are_one_too_many(root):
    (root / "input" / "data" / "train").rename(root / "input" / "data" / "training")
    assert read(root).train == f"{root}/input/data/training"
    (root / "input" / "data" / "train").mkdir()
    with pytest.raises(UserError, match="channel train is there twice: as train and as training"):
        read(root)


def test_all_channels_and_a_stranger(root, caplog):
    for name in ("validation", "test", "notes"):
        (root / "input" / "data" / name).mkdir()
    with caplog.at_level(logging.WARNING, "lorry"), watched("lorry"):
        config = read(root)
    assert config.validation == f"{root}/input/data/validation"
    assert config.test == f"{root}/input/data/test"
    assert "channel notes is not used" in caplog.text


def test_no_training_pairs(root):
    (root / "input" / "data" / "train").rmdir()
    with pytest.raises(UserError, match=r"docker run -v /path/to/pairs:/opt/ml/input/data/train"):
        read(root)
    assert read(root, "--train", "elsewhere").train == "elsewhere"


@pytest.mark.parametrize("form", ["declared", "fifo"])
def test_pipes_are_refused_with_the_way_out(root, form):
    if form == "declared":
        write(root, inputdataconfig={"train": {"TrainingInputMode": "Pipe"}})
    else:
        (root / "input" / "data" / "train").rmdir()
        os.mkfifo(root / "input" / "data" / "train_0")
    with pytest.raises(UserError, match=r"channel train comes in Pipe mode\. Use input mode File or FastFile\."):
        read(root)


def test_several_machines_are_refused(root):
    write(root, resourceconfig={"hosts": ["algo-1", "algo-2"]})
    with pytest.raises(UserError, match="2 instances"):
        read(root)


def base_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_model_channel_wins(root):
    folder = base_model(root / "input" / "data" / "model")
    assert read(root, "--pretrained_model", "TaylorAI/gte-tiny").pretrained_model == str(folder)


@pytest.mark.parametrize("inner", [".", "minilm"])
def test_an_archive_is_unpacked_to_the_same_place_each_time(root, tmp_path_factory, inner):
    source = base_model(tmp_path_factory.mktemp("base") / "model")
    channel = root / "input" / "data" / "model"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as archive:
        archive.add(source, inner)
    first = read(root).pretrained_model
    assert (Path(first) / "config.json").is_file()
    assert read(root).pretrained_model == first


def test_an_archive_that_leads_out_of_its_folder_is_refused(root, tmp_path):
    channel = root / "input" / "data" / "model"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as archive:
        archive.add(base_model(tmp_path / "base"), "../../escaped")
    with pytest.raises(UserError, match="leads out of the folder"):
        read(root)


def test_a_model_channel_without_a_model(root):
    (root / "input" / "data" / "model").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        read(root)


def test_a_long_cause_never_pushes_the_mend_out():
    text = container.user_failure(UserError("column " * 500, "Rename it."))
    assert len(text) <= 1024
    assert text.startswith("column column")
    assert text.endswith("… Rename it.")


def test_a_crash_names_exception_and_place():
    try:
        container.find_model(None)
    except AttributeError as error:
        text = container.crash_failure(error)
    assert text.startswith("AttributeError: ")
    assert " (at container/train.py:" in text
    assert "in find_model" in text
    assert len(container.crash_failure(long_error())) <= 1024


def long_error():
    try:
        raise ValueError("x" * 5000)
    except ValueError as error:
        return error


@contextlib.contextmanager
def watched(name):
    """Let caplog see a logger that the command line has cut off from the root."""
    logger = logging.getLogger(name)
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


@pytest.fixture
def started(root, monkeypatch):
    """Call `train` as the container does, with a trainer that does `work`."""

    def start(work, *arguments):
        monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(root))
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        monkeypatch.setattr("lorry.hardware.check_gpu", lambda: None)
        monkeypatch.setattr("lorry.pipeline.run", work)
        monkeypatch.setattr(container, "_stop", Stop)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
        for name in ("HF_HUB_OFFLINE", "GOMP_SPINCOUNT"):
            monkeypatch.setenv(name, "set, so that it is put back afterwards")
            monkeypatch.delenv(name)
        container.train()

    return start


def test_the_trainer_gets_config_and_command_and_an_old_failure_goes(root, started):
    seen = {}
    (root / "output").mkdir()
    (root / "output" / "failure").write_text("old")
    started(lambda config, stop, command: seen.update(config=config, command=command), "--label_map", "a=1, b=0")
    assert seen["config"].label_map == "a=1, b=0"
    assert seen["command"] == "train --label_map 'a=1, b=0'"
    assert not (root / "output" / "failure").exists()


def test_a_mistake_is_one_line_and_exit_code_1(root, started, capsys):
    def work(config, stop, command):
        raise UserError("no such column", "Name one")

    with pytest.raises(SystemExit) as end:
        started(work)
    assert end.value.code == 1
    assert (root / "output" / "failure").read_text() == "no such column. Name one"
    assert capsys.readouterr().out.splitlines()[-1] == "error: no such column. Name one"


def test_a_crash_leaves_its_traceback_in_the_log(root, started, capsys):
    def work(config, stop, command):
        raise IndexError("step 3 of 2")

    with pytest.raises(SystemExit) as end:
        started(work)
    assert end.value.code == 1
    assert (root / "output" / "failure").read_text().startswith("IndexError: step 3 of 2 (at launch.py:")
    assert "Traceback" in capsys.readouterr().out


def test_a_local_base_model_needs_no_network(root, started, monkeypatch):
    monkeypatch.setattr(container, "has_network", lambda: True)
    seen = []
    started(
        lambda config, stop, command: seen.append(os.environ.get("HF_HUB_OFFLINE")), "--pretrained_model", "bundled"
    )
    started(lambda config, stop, command: seen.append(os.environ.get("HF_HUB_OFFLINE")))
    assert seen == ["1", None]


def test_waiting_threads_do_not_spin_for_long(started):
    seen = []
    started(lambda config, stop, command: seen.append(os.environ["GOMP_SPINCOUNT"]))
    assert seen == ["1000"]


def test_gpu_of_driver_reads_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 535.183.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware.gpu_of_driver() == ("Tesla T4", "driver 535.183.01")
