"""The locks hold what pyproject.toml asks for, here and in the image alike; `make update` writes them anew."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("locks/dev.txt", "locks/cuda.txt", "requirements.txt", "docker/build.txt")
STALE = "stale: run `make update`"
IMAGE = {
    "python_version": "3.13",
    "python_full_version": "3.13.5",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(*extras):
    """Return what the package itself needs with these extras."""
    optional = project()["optional-dependencies"]
    return list(map(Requirement, sum((optional[extra] for extra in extras), project()["dependencies"])))


def pins(name):
    """Return the pins of a lock as they stand: requirement, version, hashes and who asks for it."""
    found = []
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())[1:]:
        pin = Requirement(block.split("\\\n")[0])
        version = re.fullmatch(r"==(\S+)", str(pin.specifier))[1]
        found.append((pin, version, re.findall(r"--hash=sha256:[0-9a-f]{64}", block), block.partition("# via")[2]))
    return found


def in_image(name):
    """Return the versions that a lock gives the image's Python and platform."""
    place = {**default_environment(), **IMAGE}
    return {pin.name: version for pin, version, *_ in pins(name) if pin.marker is None or pin.marker.evaluate(place)}


@pytest.mark.parametrize(("name", "extra"), [("locks/dev.txt", "dev"), ("requirements.txt", "sagemaker")])
def test_every_dependency_is_pinned_within_its_range(name, extra):
    ranges = {canonicalize_name(requirement.name): requirement.specifier for requirement in wanted("bundled", extra)}
    locked = [(pin.name, version) for pin, version, _, askers in pins(name) if "lorry (pyproject.toml)" in askers]
    if extra == "dev":  # torch has a lock of its own
        locked.append(("torch", in_image("locks/cuda.txt")["torch"]))
    assert {package for package, _ in locked} == ranges.keys(), STALE
    assert [pin for pin in locked if not ranges[pin[0]].contains(pin[1])] == [], STALE


def test_torch_suits_older_drivers():
    (torch,) = [line for line in (ROOT / "locks/cuda.in").read_text().splitlines() if line[:1] != "#"]
    for name in ("locks/cuda.txt", "requirements.txt"):
        assert torch == f"torch=={in_image(name)['torch']}", STALE


@pytest.mark.parametrize("name", ["requirements.txt", "docker/build.txt"])
def test_the_image_has_the_versions_that_development_has(name):
    here, there = in_image("locks/cuda.txt") | in_image("locks/dev.txt"), in_image(name)
    shared = here.keys() & there.keys()
    assert len(shared) > 5
    assert {package: there[package] for package in shared} == {package: here[package] for package in shared}, STALE


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_its_hashes_and_no_place(name):
    assert len(pins(name)) > 5
    assert all(hashes for _, _, hashes, _ in pins(name))
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links| @ |^-", text, re.MULTILINE)


def test_the_build_environment_is_complete():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = in_image("docker/build.txt")
    assert all(requirement.specifier.contains(locked[requirement.name]) for requirement in map(Requirement, build))
    assert {"uv", "setuptools"} <= set(locked)


def test_the_image_is_labelled_with_the_version_of_the_package():
    (default,) = re.findall(r"^ARG VERSION=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default == project()["version"]
