"""What the machine offers."""

import os

import pytest

from command import lorry
from lorry import hardware


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A GPU with a driver too old for any PyTorch: what its tool says."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 418.87.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpu_of_driver_reads_the_drivers_tool(driver):
    assert hardware.gpu_of_driver() == ("Tesla T4", "driver 418.87.01")


@pytest.mark.parametrize("command", ["train", "plan", "evaluate"])
def test_a_gpu_that_cannot_be_used_is_an_error_before_pairs_are_read(driver, tmp_path, command):
    nowhere = {"train": {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"},
               "evaluate": {"model": "bundled", "output": tmp_path / "metrics.json"}}  # fmt: skip
    pairs = {"data" if command == "evaluate" else "train": tmp_path / "nowhere"}
    done = lorry(command, **nowhere.get(command, {}), **pairs)
    assert done.code == 1
    (line,) = done.lines
    assert "there is a GPU (Tesla T4, driver 418.87.01) that PyTorch" in line
    assert "update the host's driver" in line
