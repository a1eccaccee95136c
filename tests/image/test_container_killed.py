"""A container that is killed at any moment, its folders mounted: the next one ends with the same bytes.

LORRY_FAULTS says how many are killed (default: 6).
"""

import os
import random
import time

import pytest
from engine import Job, docker
from test_stop import RUN, sha256

KILLED = int(os.environ.get("LORRY_FAULTS", "6"))


@pytest.fixture(scope="module")
def whole(image, pairs, tmp_path_factory):
    """Return (sha256, seconds) of a run that nothing disturbed."""
    job = Job(tmp_path_factory.mktemp("whole") / "ml", image)
    job.channel(pairs)
    began = time.monotonic()
    done = job.run(*arguments())
    assert done.returncode == 0, done.stdout
    return sha256(job.model / "model.safetensors"), time.monotonic() - began


def arguments():
    options = RUN | {"epochs": "1", "checkpoint_every": "2"}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def mounts(job):
    """Mount every folder by itself, as a user does: none of them can be renamed or replaced."""
    folders = {"input/data/train": "ro", "model": "rw", "output": "rw", "checkpoints": "rw"}
    for name in folders:
        (job.folder / name).mkdir(parents=True, exist_ok=True)
    return [word for name, how in folders.items() for word in ("--volume", f"{job.folder / name}:/opt/ml/{name}:{how}")]


@pytest.mark.parametrize("seed", range(KILLED))
def test_a_killed_container_is_continued_to_the_same_bytes(seed, job, pairs, whole):
    expected, seconds = whole
    job.channel(pairs)
    rng = random.Random(seed)
    # The last third, where checkpoints and the export are, as often as all before.
    moment = rng.choice((rng.uniform(0, 0.65), rng.uniform(0.65, 1.05))) * seconds
    quiet = ["--network", "none", "--env", "OMP_NUM_THREADS=1", *mounts(job)]
    container = docker("run", "--detach", *quiet, job.image, "train", *arguments()).stdout.strip()
    time.sleep(moment)
    docker("kill", container, check=False)
    docker("rm", "--force", container)
    done = docker("run", "--rm", *quiet, job.image, "train", *arguments(), check=False)
    assert done.returncode == 0, done.stdout
    assert sha256(job.model / "model.safetensors") == expected, done.stdout
    assert not list(job.model.glob(".*"))
    assert (job.output / "data" / "report.html").is_file()
