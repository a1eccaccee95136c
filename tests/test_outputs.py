"""The model folder is replaced whole or not at all, and what is wrong with a folder is said before the run begins."""

import os
from pathlib import Path

import pytest

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.outputs import check_apart, check_output, check_writable, staging


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def build(model_dir, content="new"):
    with staging(model_dir) as folder:
        assert not (model_dir / "lorry.json").exists() or (model_dir / "lorry.json").read_text() == "old"
        (folder / "lorry.json").write_text(content)
        (folder / "adapter").mkdir()
        (folder / "adapter" / "file").write_text(content)


def fail_to_build(model_dir):
    with staging(model_dir) as folder:
        (folder / "lorry.json").write_text("half")
        raise ZeroDivisionError


def earlier_model(folder):
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "lorry.json").write_text("old")
    (folder / "1_Pooling" / "stale").write_text("old")
    return folder


def test_a_new_folder_is_made(tmp_path):
    build(tmp_path / "a" / "b" / "model")
    assert files(tmp_path) == {"a/b/model/lorry.json", "a/b/model/adapter/file"}


def test_an_earlier_model_is_replaced_whole(tmp_path):
    model_dir = earlier_model(tmp_path / "model")
    build(model_dir)
    assert files(tmp_path) == {"model/lorry.json", "model/adapter/file"}
    assert (model_dir / "lorry.json").read_text() == "new"


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and holds no model of Lorry's"):
        build(tmp_path)
    assert files(tmp_path) == {"thesis.tex"}


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_to_build(tmp_path / "model")
    assert files(tmp_path) == set()
    assert not list(tmp_path.glob(".lorry-*"))


def test_a_failure_leaves_an_earlier_model_as_it_was(tmp_path):
    model_dir = earlier_model(tmp_path / "model")
    before = files(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fail_to_build(model_dir)
    assert files(tmp_path) == before
    assert (model_dir / "lorry.json").read_text() == "old"


@pytest.fixture(params=["mount", "parent not writable"])
def mounted(request, tmp_path, monkeypatch):
    """A folder as a container has it: mounted, or in a parent that is not ours. It cannot be moved or replaced."""
    folder = tmp_path / "parent" / "mounted"
    folder.mkdir(parents=True)
    if request.param == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.parent and access(path, mode))
        folder.parent.chmod(0o555)
    rename, rmdir = Path.rename, Path.rmdir

    def refuse(self, *target):
        assert self != folder, "a mount cannot be moved or removed"
        assert not target or Path(target[0]) != folder, "a mount cannot be moved over"
        return rename(self, *target) if target else rmdir(self)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "rmdir", refuse)
    yield folder
    folder.parent.chmod(0o755)


def test_a_mounted_folder_is_filled(mounted):
    build(mounted)
    assert [path.name for path in mounted.parent.iterdir()] == ["mounted"]
    assert sorted(path.name for path in mounted.iterdir()) == ["adapter", "lorry.json"]


def test_an_earlier_model_in_a_mounted_folder_is_replaced(mounted):
    earlier_model(mounted)
    build(mounted)
    assert files(mounted) == {"lorry.json", "adapter/file"}
    assert (mounted / "lorry.json").read_text() == "new"


def test_a_failure_leaves_a_mounted_folder_as_it_was(mounted):
    earlier_model(mounted)
    before = files(mounted)
    with pytest.raises(ZeroDivisionError):
        fail_to_build(mounted)
    assert files(mounted) == before
    assert sorted(path.name for path in mounted.iterdir()) == ["1_Pooling", "lorry.json"]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(UserError, match=r"cannot be written.*--model_dir"):
            check_writable(path)
    with pytest.raises(UserError, match=r"cannot be written.*--output_data_dir"):
        check_output(tmp_path / "file")


def test_checking_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "model")
    check_output(tmp_path / "output")
    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["train", "validation", "test", "output_data_dir", "checkpoint_dir"])
def test_a_folder_inside_model_dir_is_refused(tmp_path, name):
    for place in ("model", "model/inside", "other/../model/x"):
        config = TrainConfig(model_dir=str(tmp_path / "model"), **{name: str(tmp_path / place)})
        with pytest.raises(UserError, match=f"{name} .* lies in model_dir"):
            check_apart(config)
    check_apart(TrainConfig(model_dir=str(tmp_path / "model"), **{name: str(tmp_path / "model2")}))


def test_a_data_set_of_the_hub_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_apart(TrainConfig(model_dir=".", train="hf://datasets/owner/name", output_data_dir="../output"))
