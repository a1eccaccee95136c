"""The folders of the channels, the base model among them, and what is said of wrong mounts."""

import os
import tarfile
from pathlib import Path

import pytest
from ml import base_model

from lorry.container.channels import find_model, missing_pairs, read_channels
from lorry.errors import UserError


@pytest.fixture
def data(root):
    return root / "input" / "data"


def refused(data, declared=None):
    """Return what is said of the channels."""
    with pytest.raises(UserError) as caught:
        read_channels(data, declared or {})
    return str(caught.value)


def test_training_is_another_name_of_train_and_both_are_one_too_many(data):
    (data / "train").rename(data / "training")
    assert read_channels(data, {}) == {"train": data / "training"}
    (data / "train").mkdir()
    (data / "train" / "more.csv").touch()
    assert "channel train is there twice: as train and as training" in refused(data)


def test_all_channels_and_an_unknown_one(data, lines):
    for name in ("validation", "test", "probe", "notes", "code", "tets"):
        (data / name).mkdir()
        (data / name / "pairs.csv").touch()
    assert set(read_channels(data, {})) == {"train", "validation", "test", "probe"}
    for name in ("notes", "code"):
        assert f"channel {name} is not used. Lorry knows train, validation, test, probe, model, training." in lines()
    assert "channel tets is not used. Did you mean test?" in lines()


@pytest.mark.parametrize("form", ["declared", "fifo"])
def test_pipes_are_refused_with_the_way_out(data, form):
    if form == "fifo":
        os.mkfifo(data / "test_0")
    declared = {"train": {"TrainingInputMode": "Pipe"}} if form == "declared" else {}
    name = "train" if form == "declared" else "test"
    assert refused(data, declared) == f"channel {name} comes in Pipe mode. Use input mode File or FastFile."


def test_a_declaration_that_is_no_object(data):
    assert "channel train is no object" in refused(data, {"train": "File"})


def test_a_file_in_place_of_a_folder(data):
    (data / "test").write_text("query,text,label\n")
    assert refused(data).startswith(f"{data}/test is a file. Mount the folder that holds it")


def test_an_empty_folder(data):
    (data / "test").mkdir()
    assert refused(data).startswith(f"{data}/test is empty. Check the path before the colon")


def test_splits_mounted_as_one_split(data):
    (data / "train" / "pairs.csv").unlink()
    for name in ("train", "test"):
        (data / "train" / name).mkdir()
    assert refused(data) == (
        f"{data}/train holds no files, only folders: test, train. "
        f"Mount it at {data}, or one folder of it at {data}/train."
    )


def test_a_folder_of_folders(data):
    (data / "train" / "pairs.csv").rename(data / "pairs.csv")
    (data / "train" / "part-0").mkdir()
    assert "folders within it are not read" in refused(data)


@pytest.mark.parametrize("place", ["", "input", "input/data"])
def test_pairs_mounted_too_high_are_named(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.csv").touch()
    said = str(missing_pairs(tmp_path))
    assert said.startswith(
        f"there are pairs in {folder} (pairs.csv), but there is no folder {tmp_path}/input/data/train."
    )
    assert f"docker run -v /path/to/pairs:{tmp_path}/input/data/train" in said


def test_a_folder_of_splits_mounted_too_high_is_named(tmp_path):
    (tmp_path / "input" / "train").mkdir(parents=True)
    assert str(missing_pairs(tmp_path)) == (
        f"there is {tmp_path}/input/train, but no {tmp_path}/input/data/train. "
        f"Mount the folder of train at {tmp_path}/input/data."
    )


def test_a_file_in_place_of_all_channels(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "data").touch()
    assert f"{tmp_path}/input/data is a file" in str(missing_pairs(tmp_path))


def test_a_misspelt_channel_is_named_with_the_right_one(tmp_path):
    (tmp_path / "input" / "data" / "trian").mkdir(parents=True)
    said = "no training pairs: there is a channel trian, but none train. Did you mean train?"
    assert str(missing_pairs(tmp_path)) == said


def test_no_pairs_at_all(tmp_path):
    said = str(missing_pairs(tmp_path))
    assert said.startswith(
        f"no training pairs: there is no folder {tmp_path}/input/data/train. Mount one: docker run -v"
    )


@pytest.mark.parametrize("inner", [".", "minilm"])
def test_an_archive_is_unpacked_to_the_same_place_each_time(data, tmp_path_factory, inner):
    source = base_model(tmp_path_factory.mktemp("base") / "model")
    (data / "model").mkdir()
    with tarfile.open(data / "model" / "model.tar.gz", "w:gz") as archive:
        archive.add(source, inner)
    first = find_model(data / "model")
    assert (Path(first) / "config.json").is_file()
    assert find_model(data / "model") == first


def test_an_archive_that_leads_out_of_its_folder_is_refused(data, tmp_path):
    (data / "model").mkdir()
    with tarfile.open(data / "model" / "model.tar.gz", "w:gz") as archive:
        archive.add(base_model(tmp_path / "base"), "../../escaped")
    with pytest.raises(UserError, match="leads out of the folder"):
        find_model(data / "model")


def test_a_model_channel_without_a_model(data):
    (data / "model").mkdir()
    (data / "model" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_model(data / "model")
