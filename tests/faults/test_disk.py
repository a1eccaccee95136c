"""A disk that fills up at any point: what could be written stays, the failure is named, and the run can be repeated."""

import contextlib
import os
import subprocess

import pytest
from forked import Run

from command import stopped_after
from lorry import pipeline

pytestmark = pytest.mark.slow

KIB = 1024


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of so many bytes on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model, shop_pairs):
    return {
        "train": shop_pairs(tmp_path_factory.mktemp("shop")), "pretrained_model": tiny_model("bert"), "epochs": 1,
        "batch_size": 24, "lr": 0.01, "checkpoint_every": 3, "precision": "fp32",
    }  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory, recipe):
    run = Run(tmp_path_factory.mktemp("whole"), **recipe)
    assert run.finish() == 0, run.said
    return run.weights


def unchecked():
    """Begin although the disk is too small, as where another program fills it later."""
    pipeline.check_space = lambda needs: None


def last_line(run):
    return [line for line in run.said.splitlines() if line.strip()][-1]


def test_a_disk_that_is_too_small_is_said_before_training(tmp_path, recipe):
    run = Run(tmp_path / "run", **recipe)
    with small_disk(run.model, 64 * KIB):
        assert run.finish() == 1
    assert "MB free, and the run needs about" in last_line(run)
    assert "step=" not in run.said


@pytest.mark.parametrize("which", ["model", "output", "kept"])
@pytest.mark.parametrize("size", [4, 8, 16, 28, 40, 64, 100, 140, 180, 240])
def test_whatever_fills_up_is_named_and_the_rest_stays(which, size, tmp_path, recipe, weights):
    run = Run(tmp_path / "run", **recipe)
    with small_disk(getattr(run, which), size * KIB):
        code = run.finish(unchecked)
        assert "Traceback" not in run.said, run.said
        if code:
            assert last_line(run).startswith("error: "), run.said
            assert str(getattr(run, which)) in last_line(run)
            assert "No space left" in last_line(run)
        if which == "model" and code:
            assert run.weights is None
            assert (run.output / "report.html").is_file()
            assert (run.output / "adapter" / "adapter_model.safetensors").is_file()
        if which == "output":
            assert run.weights == weights
        if which == "kept":
            assert code == 0, "training goes on without checkpoints"
            assert run.weights == weights
    assert run.finish() == 0, run.said
    assert run.weights == weights


@pytest.mark.parametrize("size", [8, 40, 140])
def test_a_stop_with_no_room_for_the_model_leaves_the_adapter_and_the_log(size, tmp_path, recipe):
    run = Run(tmp_path / "run", **recipe)
    run.options |= {"checkpoint_dir": "", "on_stop": "export", "log_every": 1}
    with small_disk(run.model, size * KIB), stopped_after(3):
        assert run.finish(unchecked) == 1
        assert "Traceback" not in run.said, run.said
        assert "stopped at step 3" in run.said
        assert f"{run.model}" in last_line(run)
        assert "No space left" in last_line(run)
        assert f"the trained adapter is in {run.output / 'adapter'}" in last_line(run)
    assert (run.output / "adapter" / "adapter_model.safetensors").is_file()
    assert (run.output / "training.jsonl").read_text().count('"loss"') == 3


def test_pairs_on_a_disk_that_cannot_be_written_are_read(tmp_path, recipe, weights):
    source = recipe["train"] / "pairs.csv"
    folder = tmp_path / "train"
    with small_disk(folder, 256 * KIB):
        (folder / "pairs.csv").write_bytes(source.read_bytes())
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        run = Run(tmp_path / "run", **recipe | {"train": folder})
        assert run.finish() == 0, run.said
    assert run.weights == weights
