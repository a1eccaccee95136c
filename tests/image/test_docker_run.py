"""Plain `docker run`: no file of SageMaker's, any user, any restriction."""

import json
import os
import re
import subprocess

import pytest
from engine import QUIET, ROOT, docker

BUNDLED = ("--pretrained_model", "bundled")


def run(image, *words, options=()):
    return docker("run", "--rm", *QUIET, *options, image, *words, check=False)


@pytest.fixture
def mounts(pairs, tmp_path):
    """A folder of pairs and a folder for the model, as the README shows."""
    (tmp_path / "model").mkdir()
    tmp_path.chmod(0o755)
    return ["--volume", f"{pairs}:/opt/ml/input/data/train:ro", "--volume", f"{tmp_path / 'model'}:/opt/ml/model"]


def test_help_needs_nothing(image):
    for words in (["train", "--help"], ["lorry", "train", "--help"], ["lorry", "--help"]):
        done = run(image, *words, options=["--read-only", "--user", "1234:1234"])
        assert done.returncode == 0
        assert "usage:" in done.stdout
    assert "/opt/ml/input/data/train" in run(image, "train", "--help").stdout


def test_no_data_is_one_line_that_says_what_to_mount(image):
    done = run(image)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "/opt/ml/input/data/train" in line
    assert "docker run -v" in line


def test_a_read_only_container_without_temporary_files_is_one_line(image):
    done = run(image, "train", options=["--read-only"])
    assert done.returncode == 1
    assert (
        done.stdout == "error: no temporary file can be written: /tmp is read-only. Add --tmpfs /tmp to docker run.\n"
    )


@pytest.mark.parametrize(
    ("mounted", "place", "said"),
    [
        ("train", "data", "there are pairs in /opt/ml/input/data (shopping_queries_dataset_examples.parquet"),
        ("", "data/train", "/opt/ml/input/data/train holds no files, only folders: train. Mount it at"),
        ("", "", "there is /opt/ml/input/train, but no /opt/ml/input/data/train. Mount the folder of train"),
        ("train/shopping_queries_dataset_examples.parquet", "data/train", "/opt/ml/input/data/train is a file. Mount"),
        ("absent", "data/train", "/opt/ml/input/data/train is empty. Check the path before the colon of -v"),
        ("train", "data/trian", "there is a channel trian, but none train. Did you mean train?"),
    ],
)
def test_a_wrong_mount_is_named(image, pairs, mounted, place, said):
    done = run(image, "train", options=["--volume", f"{pairs.parent / mounted}:/opt/ml/input/{place}"])
    assert done.returncode == 1
    assert said in done.stdout.splitlines()[-1]


def test_trains_with_two_mounts_and_no_file(image, mounts, tmp_path):
    done = run(
        image,
        "train",
        *BUNDLED,
        "--lora-rank",
        "4",
        options=[*mounts, "--env", "LORRY_SEED=7", "--env", "LORRY_LORA_RANK=2"],
    )
    assert done.returncode == 0, done.stdout
    assert re.search(
        r"running on the CPU, no GPU in sight; precision \w+, attention packed, \d+ threads\n", done.stdout
    )
    assert done.stdout.count("running on ") == 1
    assert "training loss " in done.stdout
    about = json.loads((tmp_path / "model" / "lorry.json").read_text())
    assert about["config"]["seed"] == 7, "from the environment"
    assert about["config"]["lora_rank"] == 4, "the command line wins over the environment"
    assert about["revision"] == "unknown"
    assert not list((tmp_path / "model").glob(".*"))
    models = ["--model", "/opt/ml/model", "--model", "bundled"]
    data = ["--data", "/opt/ml/input/data/train", "--output", "/opt/ml/model/compared.json"]
    compared = run(image, "lorry", "evaluate", *models, *data, options=mounts)
    assert compared.returncode == 0, compared.stdout
    assert (tmp_path / "model" / "compared.json").is_file()


def test_an_ordinary_user_on_a_read_only_file_system(image, mounts, tmp_path):
    os.chown(tmp_path / "model", 1234, 1234)
    done = run(image, "train", *BUNDLED, options=[*mounts, "--user", "1234:1234", "--read-only", "--tmpfs", "/tmp"])
    assert done.returncode == 0, done.stdout
    assert "the report will be lost with this container" in done.stdout
    assert "report: /tmp/lorry-output-" in done.stdout
    written = tmp_path / "model" / "model.safetensors"
    assert written.stat().st_uid == 1234


@pytest.mark.parametrize("lost", ["model", "output", "checkpoints"])
def test_what_would_be_lost_with_the_container_is_told_at_the_start(image, pairs, tmp_path, lost):
    options = ["--volume", f"{pairs}:/opt/ml/input/data/train:ro"]
    for name in ("model", "output", "checkpoints"):
        (tmp_path / name).mkdir()
        # Memory is a mount too, and is lost.
        options += ["--tmpfs", f"/opt/ml/{name}"] if name == lost else ["--volume", f"{tmp_path / name}:/opt/ml/{name}"]
    done = run(image, "train", "--pretrained_model", "/nowhere", options=options)
    what = "report" if lost == "output" else lost
    hint = f"mount a folder (-v /path/to/{lost}:/opt/ml/{lost})"
    assert done.stdout.splitlines()[0] == f"warning: the {what} will be lost with this container: {hint}"
    assert done.stdout.count("will be lost") == 1


@pytest.mark.parametrize("name", ["model", "output", "checkpoints"])
@pytest.mark.parametrize(
    ("owner", "options", "hint"),
    [
        (0, ["--user", "1234:1234"], "sudo chown -R 1234 /path/to/{}), or leave out --user."),
        (1234, ["--cap-drop", "ALL"], 'or start the container as its owner: --user "$(id -u):$(id -g)".'),
        (0, [":ro"], "Mount it without :ro (-v /path/to/{0}:/opt/ml/{0})."),
    ],
    ids=["another user", "no capabilities", "read-only"],
)
def test_a_mounted_folder_that_cannot_be_written_is_told_at_the_start(
    image, pairs, tmp_path, name, owner, options, hint
):
    mounts = ["--volume", f"{pairs}:/opt/ml/input/data/train:ro"]
    for folder in ("model", "output", "checkpoints"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(0o755 if folder == name else 0o777)
        read_only = ":ro" if folder == name and options == [":ro"] else ""
        mounts += ["--volume", f"{tmp_path / folder}:/opt/ml/{folder}{read_only}"]
    os.chown(tmp_path / name, owner, owner)
    done = run(image, "train", *BUNDLED, options=[*mounts, *(options if options != [":ro"] else [])])
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"error: /opt/ml/{name}")
    assert last.endswith(hint.format(name))
    assert "running on" not in done.stdout, "before anything is computed"


def test_outputs_that_are_not_mounted_need_root(image, pairs):
    mounts = ["--volume", f"{pairs}:/opt/ml/input/data/train:ro", "--user", "1234:1234"]
    done = run(image, "train", *BUNDLED, options=mounts)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last == (
        "error: /opt/ml/model cannot be written: Permission denied. "
        "Mount a folder there: -v /path/to/model:/opt/ml/model."
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("train >/dev/full", "error: standard output cannot be written: [Errno 28] No space left on device\n"),
        ("train | head -n 0; exit ${PIPESTATUS[0]}", ""),
    ],
)
def test_a_log_that_takes_no_more_lines_ends_the_run(image, mounts, tmp_path, script, said):
    (tmp_path / "output").mkdir()
    options = [*mounts, "--volume", f"{tmp_path / 'output'}:/opt/ml/output", "--env", "LORRY_PRETRAINED_MODEL=bundled"]
    done = run(image, "bash", "-c", script, options=options)
    assert done.returncode == 1
    assert done.stdout == said
    assert "standard output cannot be written" in (tmp_path / "output" / "failure").read_text()


def test_the_default_model_without_network_is_one_line_with_the_way_out(image, mounts):
    done = run(image, "train", options=mounts)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert "the Hub cannot be reached" in last
    assert "--pretrained_model bundled" in last
    assert "channel named model" in last


@pytest.mark.parametrize("given", ["device", "driver"])
def test_a_gpu_that_cannot_be_used_is_an_error(image, mounts, tmp_path, given):
    """A device file, or the driver's tool, where the container has no driver that torch could talk to."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 418.87.01'\n")
    tool.chmod(0o755)
    there = {
        "device": ["--device", "/dev/null:/dev/nvidia0"],
        "driver": ["--volume", f"{tool}:/usr/bin/nvidia-smi:ro"],
    }[given]
    done = run(image, "train", *BUNDLED, options=[*mounts, *there])
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert {"device": "/dev/nvidia0", "driver": "Tesla T4, driver 418.87.01"}[given] in last
    assert "needs driver 525 or newer" in last
    asked = run(
        image,
        "train",
        *BUNDLED,
        "--lora_targets",
        "nothing",
        options=[*mounts, *there, "--env", "CUDA_VISIBLE_DEVICES=-1"],
    )
    assert "running on the CPU" in asked.stdout


def test_the_example_for_docker_goes_on_where_it_stopped(image, pairs, tmp_path):
    command = [str(ROOT / "examples" / "docker.sh"), image, str(pairs), str(tmp_path / "out"), *BUNDLED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model/model.safetensors", "output/data/report.html", "checkpoints"):
        assert (tmp_path / "out" / name).exists()
        assert (tmp_path / "out" / name).stat().st_uid == os.getuid()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "continuing after step" in again.stdout
