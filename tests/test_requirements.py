"""What the image installs is what pyproject.toml asks for; `make requirements` writes both files anew."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.txt", "docker/build.txt")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def entries(name):
    """Return the pins of a lock: package, then version, hashes and the packages (or files) that ask for it."""
    text = (ROOT / name).read_text()
    found = {}
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        package, version = re.match(r"([\w.-]+)==(\S+)", block).groups()
        found[canonicalize_name(package)] = (version, re.findall(r"--hash=sha256:[0-9a-f]{64}", block), block)
    return found


def wanted():
    """Return what the package itself needs in the image."""
    extras = project()["optional-dependencies"]
    return [Requirement(line) for line in [*project()["dependencies"], *extras["bundled"], *extras["sagemaker"]]]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement):
    version, _, block = entries("requirements.txt")[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), "stale: run `make requirements`"
    assert "lorry (pyproject.toml)" in block, "stale: run `make requirements`"


def test_nothing_is_pinned_for_a_dependency_that_is_gone():
    direct = {name for name, (_, _, block) in entries("requirements.txt").items() if "lorry (pyproject.toml)" in block}
    assert direct == {canonicalize_name(requirement.name) for requirement in wanted()}, "run `make requirements`"


def test_the_constraints_hold():
    lines = [line for line in (ROOT / "requirements.in").read_text().splitlines() if line and not line.startswith("#")]
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(entries("requirements.txt")[requirement.name][0]), (
            "run `make requirements`"
        )


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_its_hashes_and_no_place(name):
    pins = entries(name)
    assert len(pins) > 5
    assert all(hashes for _, hashes, _ in pins.values())
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links| @ |^-", text, re.MULTILINE)


def test_the_build_environment_is_complete():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = entries("docker/build.txt")
    assert all(Requirement(line).specifier.contains(pins[Requirement(line).name][0]) for line in build)
    assert {"uv", "setuptools"} <= set(pins)


def test_the_image_is_labelled_with_the_version_of_the_package():
    (default,) = re.findall(r"^ARG VERSION=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default == project()["version"]
