"""The image, built once.

    pytest -m image tests/image

builds `lorry:test` from the working tree and needs a Docker engine. Where one can be had and is not there, the tests
fail: they are not passed over in silence.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ROOT, TAG, Job, build, docker


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
    folder = tmp_path_factory.mktemp("pairs")
    command = [sys.executable, "-m", "lorry.data.synthetic", str(folder), "--queries", "40"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    folder.chmod(0o755)
    return folder / "train"


@pytest.fixture
def job(image, tmp_path):
    return Job(tmp_path / "ml", image)
