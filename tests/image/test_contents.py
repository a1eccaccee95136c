"""What is in the image, and what is not."""

import json
import re
import shutil
import tomllib

from engine import ROOT, build, docker

SITE = "/opt/venv/lib/python3.13/site-packages"


def inside(image, command):
    return docker("run", "--rm", "--network", "none", image, "sh", "-c", command).stdout


def inspect(image):
    return json.loads(docker("image", "inspect", image).stdout)[0]["Config"]


def test_every_library_of_torch_and_cuda_finds_its_own(image):
    listed = inside(
        image, f"cd {SITE} && ls torch/lib/*.so* nvidia/*/lib/*.so* && ldd torch/lib/*.so* nvidia/*/lib/*.so*"
    )
    assert "torch/lib/libtorch_cuda.so" in listed
    assert "nvidia/cublas/lib/libcublasLt.so" in listed
    missing = set(re.findall(r"(\S+) => not found", listed))
    assert missing <= {"libcuda.so.1"}, "the driver's own comes from the host; nothing else may be missing"


def test_python_packages_import_and_torch_is_built_for_cuda(image):
    command = (
        "python -W ignore -c 'import torch, peft, transformers, accelerate, datasets, bm25s, sklearn, matplotlib, "
        "sagemaker_training.trainer; print(torch.__version__, torch.version.cuda, torch.backends.cuda.is_built())'"
    )
    assert inside(image, command).split() == ["2.10.0+cu128", "12.8", "True"]


def test_nothing_is_left_of_the_build(image):
    assert inside(image, "command -v gcc cc g++ pip pip3 uv hatch git make || true") == ""
    found = inside(
        image,
        "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o "
        "\\( -name '*.whl' -o -name 'libtriton*' -o -path '*/pip/cache/*' -o -path '/root/.cache/*' "
        "-o -path '/var/lib/apt/lists/*_*' -o -path '*/site-packages/*/tests' -o -path '/opt/ml/*' -o -path '/build*' "
        "-o -path '/package*' -o -path '/dist*' -o -path '/layer*' -o -name '.git' -o -path '*/site-packages/pip' "
        "-o -path '*/site-packages/setuptools' -o -path '*/site-packages/pkg_resources' \\) -print",
    )
    assert found == ""


def test_no_file_gives_rights_to_those_who_lack_them(image):
    assert inside(image, "find / -xdev -type f -perm /6000") == "", "programs that run as another user or group"
    writable = "find / -xdev -perm -0002 ! -type l ! -type c ! \\( -type d -perm -1000 \\)"
    assert inside(image, writable) == "", "everybody may write them"


def test_no_secret_is_in_it(image):
    config = inspect(image)
    words = re.compile("token|secret|password|credential|key", re.IGNORECASE)
    assert not [entry for entry in config["Env"] if words.search(entry.partition("=")[0])]
    assert (
        inside(image, "ls -d /root/.aws /root/.netrc /root/.docker /root/.pypirc /etc/pip.conf 2>/dev/null || true")
        == ""
    )
    assert not words.search(docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout)


def test_everything_is_compiled(image):
    count = "import pathlib as p; s = list(p.Path('{}').rglob('*.py')); print(len(s), len([f for f in s if not list(f.parent.glob('__pycache__/' + f.stem + '.*.pyc'))]))"  # noqa: E501
    files, plain = map(int, inside(image, f'python -c "{count.format(SITE)}"').split())
    assert files > 5000
    assert plain < 20, "templates of other packages that are no Python yet"
    files, plain = map(int, inside(image, f'python -c "{count.format(SITE + "/lorry")}"').split())
    assert files > 10
    assert plain == 0


def test_contract_in_the_configuration(image):
    config = inspect(image)
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["SAGEMAKER_TRAINING_MODULE"] == "lorry.container.train:main"
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert config["Entrypoint"] is None
    assert config["Cmd"] == ["train"]
    assert config["User"] == ""


def test_version_and_revision_are_labels(image):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labels = inspect(image)["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.revision"] == "unknown"
    build("--tag", "lorry:labelled", "--build-arg", "VERSION=9.8.7", "--build-arg", "REVISION=abc123")
    try:
        config = inspect("lorry:labelled")
        assert config["Labels"]["org.opencontainers.image.version"] == "9.8.7"
        assert config["Labels"]["org.opencontainers.image.revision"] == "abc123"
        assert "LORRY_REVISION=abc123" in config["Env"]
    finally:
        docker("rmi", "lorry:labelled")


def test_a_change_in_the_source_rebuilds_the_package_alone(image, tmp_path):
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docker", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    with (tmp_path / "src" / "lorry" / "errors.py").open("a") as file:
        file.write("# touched\n")
    log = build("--tag", "lorry:touched", folder=tmp_path).stdout
    try:
        cached = set(re.findall(r"^#(\d+) CACHED", log, re.MULTILINE))
        steps = dict(re.findall(r"^#(\d+) (\[.+\].*)$", log, re.MULTILINE))
        rebuilt = [name for number, name in steps.items() if number not in cached and "FROM" not in name]
        assert all(
            re.match(r"\[internal\]|\[package .*(COPY src|uv build|docker/train)|\[stage-\d .*--from=package", name)
            for name in rebuilt
        ), rebuilt
        old, new = (
            json.loads(docker("image", "inspect", tag).stdout)[0]["RootFS"]["Layers"]
            for tag in (image, "lorry:touched")
        )
        assert old[:-1] == new[:-1]
        assert old[-1] != new[-1]
    finally:
        docker("rmi", "lorry:touched")
