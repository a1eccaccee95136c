"""The image, built once.

    pytest -m image tests/image

builds `lorry:test` from the working tree and needs a Docker engine. The tests fail where no engine answers; they are
skipped only for an ordinary user without a docker command.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ROOT, TAG, Job, build, docker, git


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.image)


@pytest.fixture(scope="session")
def engine():
    if shutil.which("docker") is None and os.geteuid() != 0:
        pytest.skip("NO IMAGE TEST RUNS: there is no docker command, and an ordinary user cannot install one")
    if shutil.which("docker") is None or docker("info", check=False).returncode:
        pytest.fail("no Docker engine answers: start one, then run the image tests again")


@pytest.fixture(scope="session")
def image(engine):
    build("--tag", TAG)
    return TAG


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder of a few hundred judged pairs."""
    return made_up(tmp_path_factory.mktemp("pairs"), 40)


@pytest.fixture(scope="session")
def many_pairs(tmp_path_factory):
    """A folder of so many pairs that it takes some time to evaluate them."""
    return made_up(tmp_path_factory.mktemp("many_pairs"), 1000)


def made_up(folder, queries):
    command = [sys.executable, "-m", "lorry.data.synthetic", str(folder), "--queries", str(queries)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    folder.chmod(0o755)
    return folder / "train"


@pytest.fixture
def job(image, tmp_path):
    return Job(tmp_path / "ml", image)


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """The working tree as it is, committed in a repository of its own: a clean tree whose layers are built already."""
    folder = tmp_path_factory.mktemp("clone")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "x")
    return folder
