"""build_and_push.sh with a `docker` and an `aws` that answer as told; tests/image/test_push.py has real ones."""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "cat", "dirname", "git", "grep", "head", "sed", "tr")
REPOSITORY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/lorry"
STUB = """#!/usr/bin/env bash
tool=${0##*/}
echo "$tool $*" >>"$CALLS"
for answer in "$ANSWERS/$tool-$1-${2:-}" "$ANSWERS/$tool-$1"; do
  if [[ -f $answer ]]; then source "$answer"; exit; fi
done
"""
ANSWERS = {
    "aws-sts": "echo 123456789012",
    "aws-ecr-describe-repositories": f"printf '{REPOSITORY}\\tMUTABLE\\n'",
    "aws-ecr-create-repository": f"printf '{REPOSITORY}\\t%s\\n' ${{10}}",
    "aws-ecr-get-login-password": "echo secret",
    "docker-buildx-build": "echo '--provenance'",
    "docker-login": "cat >/dev/null",
}
NO_REPOSITORY = "echo '(RepositoryNotFoundException) when calling DescribeRepositories' >&2; exit 254"


class Shop:
    """A clone of the repository's script with its tools."""

    def __init__(self, tmp_path):
        self.clone, self.bin, self.answers = tmp_path / "clone", tmp_path / "bin", tmp_path / "answers"
        for folder in (self.clone, self.bin, self.answers):
            folder.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for tool in ("docker", "aws"):
            (self.bin / tool).write_text(STUB)
            (self.bin / tool).chmod(0o755)
        for name, text in ANSWERS.items():
            self.answer(name, text)
        self.calls = tmp_path / "calls"
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(tmp_path),
            "CALLS": str(self.calls),
            "ANSWERS": str(self.answers),
            "AWS_REGION": "eu-west-1",
        }
        shutil.copy(ROOT / "build_and_push.sh", self.clone)
        (self.clone / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "x"]):
            subprocess.run(["git", *command], cwd=self.clone, check=True)
        self.revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=self.clone, check=True, capture_output=True, text=True
        ).stdout.strip()

    def answer(self, name, text):
        (self.answers / name).write_text(text + "\n")

    def run(self, *arguments):
        self.calls.write_text("")
        return subprocess.run(
            [str(self.clone / "build_and_push.sh"), *arguments],
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )

    def called(self, start):
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def test_the_uri_is_the_only_line_on_standard_output(shop):
    done = shop.run()
    uri = f"{REPOSITORY}:1.2.3-{shop.revision[:7]}"
    assert (done.returncode, done.stdout) == (0, uri + "\n"), done.stderr
    assert shop.called("docker push") == [f"docker push {uri}", f"docker push {REPOSITORY}:latest"]
    built = shop.called("docker buildx build --load")[0]
    assert "--provenance=false --platform linux/amd64" in built
    assert f"--build-arg VERSION=1.2.3 --build-arg REVISION={shop.revision} " in built
    assert "secret" not in shop.calls.read_text()


def test_the_repository_is_created_where_missing_and_only_there(shop):
    shop.run()
    assert not shop.called("aws ecr create-repository")
    shop.answer("aws-ecr-describe-repositories", NO_REPOSITORY)
    assert shop.run("team/lorry").returncode == 0
    (made,) = shop.called("aws ecr create-repository")
    assert "--repository-name team/lorry --image-scanning-configuration scanOnPush=true" in made
    assert "--image-tag-mutability MUTABLE" in made


def test_more_options(shop):
    done = shop.run("--tag", "v7", "--platform", "linux/arm64", "--region", "us-east-2")
    assert done.returncode == 0, done.stderr
    assert shop.called(f"docker push {REPOSITORY}:v7")
    assert "--platform linux/arm64" in shop.called("docker buildx build --load")[0]
    assert all("--region us-east-2" in call for call in shop.called("aws"))


@pytest.mark.parametrize("change", ["new", "changed"])
def test_uncommitted_changes_show_in_tag_and_revision_and_do_not_move_latest(shop, change):
    with (shop.clone / ("new.py" if change == "new" else "pyproject.toml")).open("a") as file:
        file.write("\n")
    done = shop.run("--tag", "mine")
    uri = f"{REPOSITORY}:1.2.3-{shop.revision[:7]}-dirty"
    assert done.stdout == f"{uri}\n"
    assert f"REVISION={shop.revision}-dirty" in shop.called("docker buildx build --load")[0]
    assert "not committed" in done.stderr
    assert shop.called("docker push") == [f"docker push {uri}", f"docker push {REPOSITORY}:mine"]
    assert ":latest" not in shop.calls.read_text()


def test_what_the_registry_has_is_not_pushed_again(shop):
    shop.answer("docker-buildx-imagetools", "printf 'Name: x\\nDigest:    sha256:aa\\n'")
    shop.answer("docker-image", f"echo {REPOSITORY}@sha256:aa")
    assert shop.run().returncode == 0
    assert not shop.called("docker push")
    shop.answer("docker-image", f"echo {REPOSITORY}@sha256:bb")
    assert shop.run().returncode == 0
    assert len(shop.called("docker push")) == 2


def test_immutable_tags_are_left_alone(shop):
    shop.answer("aws-ecr-describe-repositories", NO_REPOSITORY)
    done = shop.run("--immutable")
    assert "--image-tag-mutability IMMUTABLE" in shop.called("aws ecr create-repository")[0]
    assert shop.called("docker push") == [f"docker push {done.stdout.strip()}"]
    shop.answer("aws-ecr-describe-repositories", f"printf '{REPOSITORY}\\tIMMUTABLE\\n'")
    shop.answer("docker-buildx-imagetools", "echo 'Digest: sha256:aa'")
    assert shop.run().returncode == 0
    assert not shop.called("docker push")


def test_an_older_docker_builds_without_buildx(shop):
    shop.answer("docker-buildx-version", "exit 1")
    assert shop.run().returncode == 0
    assert shop.called("docker build --platform linux/amd64")


def test_another_registry(shop):
    shop.environment["LORRY_REGISTRY"] = "localhost:5000"
    assert shop.run().stdout.startswith("localhost:5000/lorry:1.2.3-")
    assert shop.called("docker login")[0].endswith("localhost:5000")


def test_a_dry_run_changes_nothing(shop):
    shop.answer("aws-ecr-describe-repositories", NO_REPOSITORY)
    done = shop.run("--dry-run", "--region", "cn-north-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/lorry:1.2.3-")
    assert len(done.stdout.splitlines()) == 1
    for step in ("create the repository", "run: docker buildx build", "log in", "push"):
        assert f"would {step}" in done.stderr
    changing = ("docker push", "docker login", "docker buildx build --load", "aws ecr create", "aws ecr get-login")
    assert not [call for start in changing for call in shop.called(start)]


@pytest.mark.parametrize("source", ["AWS_REGION", "AWS_DEFAULT_REGION", "configuration"])
def test_where_the_region_comes_from(shop, source):
    del shop.environment["AWS_REGION"]
    if source == "configuration":
        shop.answer("aws-configure", "echo eu-north-1")
    else:
        shop.environment[source] = "eu-north-1"
    assert "account 123456789012, region eu-north-1" in shop.run("--dry-run").stderr


def says(text):
    return f"echo {text!r} >&2; exit 254"


@pytest.mark.parametrize(
    ("answer", "text", "cause", "hint"),
    [
        ("docker-info", says("Cannot connect to the Docker daemon"), "engine does not answer", "systemctl start"),
        ("docker-info", says("permission denied while trying to connect"), "may not use the Docker engine", "usermod"),
        (
            "aws-sts",
            says("Unable to locate credentials."),
            "no AWS credentials",
            "sso login",
        ),
        ("aws-sts", says("(ExpiredToken) The security token is expired"), "have expired", "sso login"),
        ("aws-sts", says("(InvalidClientTokenId) when calling"), "does not know these credentials", "aws configure"),
        ("aws-sts", says("The config profile (x) could not be found"), "config profile (x)", "list-profiles"),
        ("aws-sts", says("Could not connect to the endpoint URL: x"), "Could not connect", "eu-west-1"),
        ("aws-sts", says("oops"), "oops", "AWS's own"),
        ("aws-ecr-describe-repositories", says("(AccessDeniedException) User: u"), "AWS denies", "iam-user-policy"),
        ("aws-ecr-get-login-password", says("(AccessDeniedException) User: u"), "AWS denies", "iam-user-policy"),
        ("docker-buildx-build", "echo -- --provenance; [[ $* == *--help* ]]", "did not build", "above"),
        ("docker-login", says("Error: no such host"), "no such host", "network"),
        (
            "docker-push",
            "echo layer; " + says("denied: User: u is not authorized"),
            "lorry:1.2.3-",
            "iam-user-policy.json",
        ),
        ("docker-push", says("no basic auth credentials"), "no basic auth", "iam-user-policy.json"),
        ("docker-push", says("tag invalid: cannot be overwritten, it is immutable"), "immutable", "--tag"),
    ],
)
def test_a_failure_is_one_line_with_a_hint(shop, answer, text, cause, hint):
    shop.answer(answer, text)
    refused(shop.run(), cause, hint)


def refused(done, cause, hint):
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert done.stdout == ""
    assert last.startswith("error: ")
    assert cause in last
    assert hint in last
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize(
    ("arguments", "cause", "hint"),
    [
        (["--fast"], "no option --fast", "--help"),
        (["--tag"], "--tag has no value", "VALUE"),
        (["--region", "--dry-run"], "--region has no value", "VALUE"),
        (["--tag", "a b"], "the tag is 'a b'", "letters"),
        (["Lorry"], "the image name is 'Lorry'", "lower-case"),
        (["a", "b"], "two image names, a and b", "one"),
    ],
)
def test_wrong_arguments(shop, arguments, cause, hint):
    refused(shop.run(*arguments), cause, hint)


@pytest.mark.parametrize("tool", ["docker", "aws"])
def test_a_missing_tool(shop, tool):
    (shop.bin / tool).unlink()
    refused(shop.run(), "is not installed", "https://")


def test_no_region(shop):
    del shop.environment["AWS_REGION"]
    refused(shop.run(), "no AWS region", "--region")


def test_on_a_terminal_the_region_is_asked_for(shop):
    del shop.environment["AWS_REGION"]
    ours, theirs = pty.openpty()
    os.write(ours, b"eu-south-1\n")
    done = subprocess.run(
        [str(shop.clone / "build_and_push.sh"), "--dry-run"],
        check=True,
        env=shop.environment,
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert done.stdout.startswith(REPOSITORY)
    assert "--region eu-south-1" in shop.called("aws sts")[0]


def test_help_needs_nothing(shop):
    (shop.bin / "docker").unlink()
    done = shop.run("--help")
    assert done.returncode == 0
    for option in ("--tag", "--region", "--platform", "--immutable", "--dry-run", "LORRY_REGISTRY"):
        assert option in done.stdout


def test_the_script_may_be_run():
    assert os.access(ROOT / "build_and_push.sh", os.X_OK)
