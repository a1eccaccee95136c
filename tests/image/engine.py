"""Docker, a job's folder, and how to run the image on it."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAG = "lorry:test"
# One thread: the same on every machine, and no spinning on one that is busy. No network, as in an isolated job.
QUIET = ["--network", "none", "--env", "OMP_NUM_THREADS=1"]


def docker(*arguments, check=True, **more):
    """Run docker and return what it did, standard error and output in one text, as a log shows them."""
    done = subprocess.run(
        ["docker", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **more,
    )
    if check and done.returncode:
        pytest.fail(f"docker {arguments[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done


def git(folder, *arguments):
    """Run git in a folder and return its output."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def build(*arguments, folder=ROOT):
    return docker("build", "--progress", "plain", *arguments, folder)


class Job:
    """A folder in the place of /opt/ml, as SageMaker gives it to the container, and runs of the image on it."""

    def __init__(self, folder, image):
        self.folder, self.image = folder, image
        self.model = folder / "model"
        self.output = folder / "output"

    def configure(self, hyperparameters=None, channels=("train",), mode="File", hosts=("algo-1",), current=None):
        """Write SageMaker's files."""
        config = self.folder / "input" / "config"
        config.mkdir(parents=True, exist_ok=True)
        inputs = {name: {"TrainingInputMode": mode} for name in channels}
        resources = {"current_host": current or hosts[0], "hosts": list(hosts), "network_interface_name": "eth0"}
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters or {}))
        (config / "inputdataconfig.json").write_text(json.dumps(inputs))
        (config / "resourceconfig.json").write_text(json.dumps(resources))

    def channel(self, source, name="train"):
        """Put a folder of files in a channel."""
        shutil.copytree(source, self.folder / "input" / "data" / name)

    def options(self):
        return [*QUIET, "--volume", f"{self.folder}:/opt/ml"]

    def run(self, *arguments, options=()):
        return docker("run", "--rm", *self.options(), *options, self.image, "train", *arguments, check=False)

    def start(self, *arguments, options=()):
        """Start in the background; return the container's id."""
        return docker("run", "--detach", *self.options(), *options, self.image, "train", *arguments).stdout.strip()

    def failure(self):
        return (self.output / "failure").read_text()


def wait_for(container, pattern, seconds=180):
    """Wait until the container's log matches; return the log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        log = docker("logs", container).stdout
        if re.search(pattern, log):
            return log
        time.sleep(0.1)
    return pytest.fail(f"{pattern!r} did not come:\n{log}")
