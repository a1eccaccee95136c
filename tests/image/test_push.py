"""build_and_push.sh for real: an engine builds and pushes, a local registry takes the image, moto plays STS and ECR.

Needs `docker-registry` (Debian's package) and `aws` (the AWS command line) beside the engine.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from engine import git
from moto.server import ThreadedMotoServer

pytestmark = pytest.mark.image
MANIFESTS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class Registry:
    """A registry on a free port of this machine."""

    def __init__(self, folder):
        if not shutil.which("docker-registry"):
            pytest.fail("docker-registry is missing: apt-get install docker-registry")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = folder / "registry.log"
        config = folder / "registry.json"  # YAML reads JSON
        storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
        config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": self.host}}))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.get("")
                return
            time.sleep(0.1)
        pytest.fail(f"the registry did not start: {self.log.read_text()[-500:]}")

    def get(self, path):
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": MANIFESTS})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers, json.load(answer)

    def writes(self):
        """Return how often something was sent to the registry."""
        return len(re.findall(r"http\.request\.method=(?:PUT|POST|PATCH)", self.log.read_text()))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    made = Registry(folder)
    yield made
    made.process.terminate()
    made.process.wait(timeout=10)
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture(scope="module")
def environment(registry, tmp_path_factory):
    """What the script reads: moto in AWS's place, the local registry in ECR's, a Docker configuration of its own."""
    if not shutil.which("aws"):
        pytest.fail("the AWS command line is missing: pip install awscli, into an environment of its own")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LORRY_"))}
    yield kept | {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": str(home / "absent"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "absent"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "DOCKER_CONFIG": str(home),
        "LORRY_REGISTRY": registry.host,
    }
    server.stop()


@pytest.fixture(scope="module")
def pushed(registry, environment, clone):
    """The first run; the tags that it made are taken off again at the end."""
    done = push(clone, environment)
    assert done.returncode == 0, done.stderr
    yield done
    for tag in (done.stdout.strip(), f"{registry.host}/lorry:latest"):
        docker("rmi", tag, check=False)


def docker(*arguments, check=True):
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True)


def push(clone, environment, *arguments):
    command = [str(clone / "build_and_push.sh"), *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


def test_the_image_is_pushed_under_its_revision_and_latest(registry, environment, clone, pushed):
    revision = git(clone, "rev-parse", "HEAD").strip()
    uri = pushed.stdout.strip()
    assert re.fullmatch(rf"{registry.host}/lorry:[0-9.]+-{revision[:7]}", uri)
    tag = uri.rpartition(":")[2]
    assert set(registry.get("lorry/tags/list")[1]["tags"]) == {tag, "latest"}
    headers, manifest = registry.get(f"lorry/manifests/{tag}")
    assert "config" in manifest, "an index, which SageMaker may refuse"
    assert headers["Docker-Content-Digest"] == registry.get("lorry/manifests/latest")[0]["Docker-Content-Digest"]
    assert f"digest: {headers['Docker-Content-Digest']}" in pushed.stderr
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", uri).stdout)
    assert labels["org.opencontainers.image.revision"] == revision
    assert tag.startswith(labels["org.opencontainers.image.version"] + "-")
    listed = subprocess.run(
        ["aws", "ecr", "describe-repositories", "--region", "eu-west-1"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    (repository,) = json.loads(listed.stdout)["repositories"]
    assert repository["repositoryName"] == "lorry"
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}


def test_a_second_run_changes_nothing(registry, environment, clone, pushed):
    tags, writes = registry.get("lorry/tags/list")[1], registry.writes()
    assert writes > 0
    again = push(clone, environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout == pushed.stdout
    assert registry.get("lorry/tags/list")[1] == tags
    assert registry.writes() == writes


def test_the_pulled_image_is_the_pushed_one_and_runs(registry, environment, clone, pushed):
    uri = pushed.stdout.strip()
    digest = registry.get(f"lorry/manifests/{uri.rpartition(':')[2]}")[0]["Docker-Content-Digest"]
    docker("rmi", uri)
    assert f"Digest: {digest}" in docker("pull", uri).stdout
    shown = docker("run", "--rm", "--network", "none", uri, "lorry", "train", "--help").stdout
    assert "--lora_rank" in shown


def test_a_registry_that_is_away_is_one_line(environment, clone, pushed):
    done = push(clone, environment | {"LORRY_REGISTRY": "127.0.0.1:9"})
    docker("rmi", pushed.stdout.strip().replace(environment["LORRY_REGISTRY"], "127.0.0.1:9"), check=False)
    docker("rmi", "127.0.0.1:9/lorry:latest", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: logging in to 127.0.0.1:9: ")
