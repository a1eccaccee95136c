"""SIGTERM in mid-training: a checkpoint, exit code 0, and a second run that ends as if nothing had happened."""

import hashlib
import json
import shutil
import time

import pytest
from engine import Job, docker, wait_for

RUN = {"pretrained_model": "bundled", "batch_size": "24", "epochs": "4", "log_every": "1", "checkpoint_every": "1000"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop(container):
    """Stop as SageMaker does, with 120 seconds' notice; return seconds and exit code."""
    began = time.monotonic()
    docker("stop", "--time", "120", container)
    seconds = time.monotonic() - began
    code = int(docker("wait", container).stdout)
    log = docker("logs", container).stdout
    docker("rm", container)
    return seconds, code, log


@pytest.fixture(scope="module")
def uninterrupted(image, pairs, tmp_path_factory):
    whole = Job(tmp_path_factory.mktemp("whole") / "ml", image)
    whole.configure(RUN)
    whole.channel(pairs)
    done = whole.run()
    assert done.returncode == 0, done.stdout
    return whole


@pytest.mark.parametrize("on_stop", ["export", "checkpoint"])
def test_stopped_and_continued_equals_uninterrupted(job, pairs, uninterrupted, on_stop):
    job.configure(RUN | {"on_stop": on_stop})
    job.channel(pairs)
    (job.folder / "checkpoints").mkdir()
    container = job.start()
    wait_for(container, r"step=12/\d+")
    seconds, code, log = stop(container)
    print(f"docker stop: {seconds:.1f} s, exit code {code}")  # noqa: T201 (seen with pytest -s)
    assert code == 0, log
    assert seconds < 20, "a spot instance has two minutes left; the promise is 20 seconds"
    assert "resume with the same checkpoint folder" in log
    assert list((job.folder / "checkpoints").iterdir())
    if on_stop == "export":
        assert json.loads((job.model / "lorry.json").read_text())["finished"] is False
        # SageMaker starts the second run with an empty model folder
        shutil.rmtree(job.model)
    else:
        assert not job.model.exists() or not list(job.model.iterdir())
    done = job.run()
    assert done.returncode == 0, done.stdout
    assert "continuing after step" in done.stdout
    assert sha256(job.model / "model.safetensors") == sha256(uninterrupted.model / "model.safetensors")


def test_a_stop_before_training_is_heard_too(job, pairs):
    job.configure(RUN)
    job.channel(pairs)
    container = job.start()
    wait_for(container, "running on")
    seconds, code, log = stop(container)
    assert code == 0, log
    assert seconds < 20
    assert not job.model.exists() or not list(job.model.iterdir())
