"""SIGTERM in training: a checkpoint, exit code 0, and a second run that ends with the same weights; before it: exit."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time

import pytest
from engine import Job, docker, wait_for

RUN = {"pretrained_model": "bundled", "batch_size": "24", "epochs": "2", "log_every": "1", "checkpoint_every": "1000"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop(container):
    """Stop as SageMaker does, with 120 seconds' notice; return seconds, exit code and log.

    The promise is 20 seconds; how long it took is shown by pytest -s, and not asserted, for it depends on the machine.
    """
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


def test_stopped_and_continued_equals_uninterrupted(job, pairs, uninterrupted):
    log = stop_in_training(job, pairs, RUN)
    assert "resume with the same checkpoint folder" in log
    assert json.loads((job.model / "lorry.json").read_text())["finished"] is False
    shutil.rmtree(job.model)  # SageMaker starts the second run with an empty one
    done = job.run()
    assert done.returncode == 0, done.stdout
    assert "continuing after step" in done.stdout
    assert sha256(job.model / "model.safetensors") == sha256(uninterrupted.model / "model.safetensors")


def test_on_stop_checkpoint_leaves_no_model(job, pairs):
    stop_in_training(job, pairs, RUN | {"on_stop": "checkpoint"})
    assert not job.model.exists() or not list(job.model.iterdir())


def stop_in_training(job, pairs, hyperparameters):
    """Start the job, stop it after some steps and return its log."""
    job.configure(hyperparameters)
    job.channel(pairs)
    (job.folder / "checkpoints").mkdir()
    container = job.start()
    wait_for(container, r"step=8/\d+")
    seconds, code, log = stop(container)
    print(f"docker stop: {seconds:.1f} s, exit code {code}")  # noqa: T201 (seen with pytest -s)
    assert code == 0, log
    assert [path.name for path in (job.folder / "checkpoints").iterdir()] != []
    return log


@contextlib.contextmanager
def busy_machine():
    """Keep every core busy, so that a start takes long."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("seconds", [0, 0.2, 0.5, 1, 2, 4, 6, 8])
@pytest.mark.parametrize("way", ["sagemaker", "docker"])
def test_a_stop_at_any_moment_of_the_start_is_heard(job, pairs, way, seconds):
    """Process 1 gets no signal without a handler, and would be killed after the ten seconds that Docker grants."""
    if way == "sagemaker":
        job.configure(RUN | {"epochs": "100"})
    job.channel(pairs)
    with busy_machine():
        container = job.start(*(["--pretrained_model", "bundled", "--epochs", "100"] if way == "docker" else []))
        time.sleep(seconds)
        began = time.monotonic()
        docker("stop", container)
        print(f"{way}, {seconds} s: docker stop took {time.monotonic() - began:.1f} s")  # noqa: T201
    log, code = docker("logs", container).stdout, docker("wait", container).stdout.strip()
    docker("rm", container)
    assert code == "0", log
    assert "SIGTERM received" in log
    assert not (job.output / "failure").exists()
