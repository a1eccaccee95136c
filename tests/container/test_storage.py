"""The folders that a job writes: what would be lost, and what cannot be written. Real mounts are in tests/image."""

import tempfile

import pytest

from lorry.config import TrainConfig
from lorry.container import storage
from lorry.container.storage import Mount, check_outputs, check_temporary_folder
from lorry.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_is_mounted(monkeypatch):
    monkeypatch.setattr(storage, "_mount", lambda folder: Mount("/", "overlay", read_only=False))


def config(root, **changes):
    return TrainConfig(**{"model_dir": f"{root}/model", "output_data_dir": f"{root}/output/data", **changes})


def test_outputs_in_the_container_itself_are_told_where_asked(tmp_path, lines):
    job = config(tmp_path, checkpoint_dir=f"{tmp_path}/checkpoints")
    assert check_outputs(job, tmp_path, warn=False) == job
    assert lines() == []
    check_outputs(job, tmp_path, warn=True)
    lost = [("model", "model"), ("report", "output"), ("checkpoints", "checkpoints")]
    assert lines() == [
        f"the {what} will be lost with this container: mount a folder (-v /path/to/{name}:{tmp_path}/{name})"
        for what, name in lost
    ]


def test_a_report_that_has_no_place_goes_to_a_temporary_folder(tmp_path, lines):
    (tmp_path / "output").touch()
    job = check_outputs(config(tmp_path), tmp_path, warn=True)
    assert job.output_data_dir.startswith(tempfile.gettempdir())
    assert any("the report will be lost" in line and f"{tmp_path}/output)" in line for line in lines())


@pytest.mark.parametrize("option", ["model_dir", "checkpoint_dir", "output_data_dir"])
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, option):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file/x cannot be written"):
        check_outputs(config(tmp_path, **{option: f"{tmp_path}/file/x"}), tmp_path, warn=False)


def test_no_temporary_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with pytest.raises(UserError, match=r"no temporary file can be written: /tmp is read-only\. Add --tmpfs /tmp"):
        check_temporary_folder()
