"""`make image`, `make sbom` and `make audit`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import QUIET, ROOT, docker, git


def make(folder, *arguments, check=True):
    # Started by `make test-image`, make would take itself for a sub-make, which also prints the folders it enters.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, check=check, capture_output=True, text=True, env=environment
    )


def revision_in(tag):
    """Return what Lorry itself says in the image, as it writes it to lorry.json, and the image's labels."""
    script = "from lorry.report.provenance import revision; print(revision())"
    said = docker("run", "--rm", *QUIET, tag, "python", "-W", "ignore", "-c", script).stdout.strip()
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", tag).stdout)
    return said, labels["org.opencontainers.image.revision"], labels["org.opencontainers.image.version"]


def test_the_image_knows_its_version_and_revision(image, clone):
    tag, revision = "lorry:made", git(clone, "rev-parse", "HEAD").strip()
    new = clone / "src" / "lorry" / "new.py"
    try:
        make(clone, "image", f"TAG={tag}")
        assert revision_in(tag) == (revision, revision, "0.1.0")
        new.touch()
        make(clone, "image", f"TAG={tag}")
        assert revision_in(tag)[:2] == (f"{revision}-dirty", f"{revision}-dirty")
    finally:
        new.unlink(missing_ok=True)
        docker("rmi", tag)


def test_the_bill_of_materials_lists_what_is_in_the_image(image, tmp_path):
    make(ROOT, "sbom", f"TAG={image}", f"SBOM={tmp_path}", f"BIN={Path(sys.executable).parent}")
    listed = {name: json.loads((tmp_path / f"{name}.cdx.json").read_text()) for name in ("python", "debian")}
    assert all(bill["bomFormat"] == "CycloneDX" for bill in listed.values())
    inside = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"
    there = docker("run", "--rm", *QUIET, image, "python", "-c", inside).stdout.split()
    assert sorted(f"{part['name']}=={part['version']}" for part in listed["python"]["components"]) == there
    packages = docker("run", "--rm", *QUIET, image, "dpkg-query", "--show", "--showformat", "${Package} ${Version}\n")
    names = {(part["name"], part["version"]) for part in listed["debian"]["components"]}
    assert {tuple(line.split()) for line in packages.stdout.splitlines()} <= names


@pytest.mark.parametrize(
    ("says", "code", "line"),
    [
        ("No known vulnerabilities found", 0, "requirements.txt: No known vulnerabilities found"),
        ("Found 1 known vulnerability in 1 package", 1, "requirements.txt: Found 1 known vulnerability in 1 package"),
        ("Traceback\nrequests.exceptions.ConnectionError: x", 1, "requirements.txt: the advisory database cannot be"),
    ],
)
def test_the_audit_looks_at_all_locks_and_says_when_it_cannot(tmp_path, says, code, line):
    tool = tmp_path / "uv"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\necho "{says}"\nexit {code}\n')
    tool.chmod(0o755)
    done = make(ROOT, "audit", f"BIN={tmp_path}", check=False)
    assert bool(done.returncode) == bool(code)
    assert done.stdout.splitlines()[0].startswith(line)
    assert len(done.stdout.splitlines()) == (1 if code else 4)
    calls = (tmp_path / "calls").read_text()
    assert all(lock in calls for lock in (["requirements.txt"] if code else ["requirements.txt", "locks/dev.txt"]))
