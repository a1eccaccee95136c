"""Two containers as the two hosts of a SageMaker job, on a network of their own.

Killed, stopped, paused or cut off, before the first step, in mid-run or during evaluation: both end within half a
minute, and each failure file names the host that failed. `pytest -s` shows how each job ended.
"""

import time
import uuid

import pytest
from engine import Job, docker, wait_for

HOSTS = ("algo-1", "algo-2")
RUN = {"pretrained_model": "bundled", "batch_size": "24", "epochs": "100", "log_every": "1", "precision": "fp32"}
IN_TRAINING = r"step=4/\d+"
BEFORE_THE_FIRST_STEP = r"2 processes on algo-1, algo-2"
IN_EVALUATION = r"step=(\d+)/\1;"  # after the last step the models are evaluated


class Host(Job):
    """One of the two hosts."""

    def __init__(self, folder, image, name, network):
        super().__init__(folder / name, image)
        self.name, self.network = name, network

    def options(self):
        return [
            "--network", self.network, "--hostname", self.name, "--network-alias", self.name,
            "--env", "OMP_NUM_THREADS=1", "--volume", f"{self.folder}:/opt/ml",
        ]  # fmt: skip

    def start(self, *arguments, options=()):
        self.container = super().start(*arguments, options=options)

    def end(self, seconds):
        """Wait for the end; return exit code and log."""
        deadline = time.monotonic() + seconds
        while docker("inspect", "--format", "{{.State.Running}}", self.container).stdout.strip() == "true":
            assert time.monotonic() < deadline, docker("logs", self.container).stdout[-3000:]
            time.sleep(0.2)
        code = int(docker("inspect", "--format", "{{.State.ExitCode}}", self.container).stdout)
        return code, docker("logs", self.container).stdout


@pytest.fixture
def hosts(image, pairs, tmp_path):
    network = f"lorry-{uuid.uuid4().hex[:8]}"
    docker("network", "create", network)
    made = [Host(tmp_path, image, name, network) for name in HOSTS]
    for host in made:
        host.configure(RUN, hosts=HOSTS, current=host.name)
        host.channel(pairs)
        (host.folder / "checkpoints").mkdir()
    yield made
    for host in made:
        if hasattr(host, "container"):
            docker("unpause", host.container, check=False)
            docker("rm", "--force", host.container)
    docker("network", "rm", network)


def started(hosts, pattern):
    for host in hosts:
        host.start()
    wait_for(hosts[0].container, pattern)
    return hosts


FAULTS = {
    "killed": (lambda host: docker("kill", host.container), "has not answered for 1"),
    "paused": (lambda host: docker("pause", host.container), "has not answered for 1"),
    "cut off": (
        lambda host: docker("network", "disconnect", "--force", host.network, host.container),
        "has not answered for 1",
    ),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "when", [BEFORE_THE_FIRST_STEP, IN_TRAINING, IN_EVALUATION], ids=["before", "training", "evaluation"]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_that_is_gone_ends_the_job(hosts, many_pairs, fault, when, which):
    if when == IN_EVALUATION:
        for host in hosts:
            host.configure(RUN | {"epochs": "1"}, ("train", "validation"), hosts=HOSTS, current=host.name)
            host.channel(many_pairs, "validation")
    lost, other = started(hosts, when)[which], hosts[1 - which]
    do, said = FAULTS[fault]
    began = time.monotonic()
    do(lost)
    code, log = other.end(60)
    seconds = time.monotonic() - began
    print(f"{fault}: {seconds:.0f} s, exit code {code}: {other.failure()}")  # noqa: T201 (seen with pytest -s)
    assert code == 1, log
    assert f"host {lost.name} {said}" in other.failure()
    assert seconds < 30
    if fault == "killed":
        return
    docker("unpause", lost.container, check=False)
    code, log = lost.end(30)
    print(f"  itself: exit code {code}: {lost.failure()}")  # noqa: T201
    assert code == 1, log
    # A paused host has stood still, or has heard from the other that it did; one that is cut off sees nobody.
    wanted = {"paused": [f"host {lost.name} "], "cut off": [f"host {lost.name} has lost", f"host {other.name} has not"]}
    assert any(said in lost.failure() for said in wanted[fault])


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_a_stop_of_one_host_or_both_ends_both_well(hosts, which):
    started(hosts, IN_TRAINING)
    began = time.monotonic()
    for number in which:
        docker("kill", "--signal", "TERM", hosts[number].container)
    ends = [host.end(60) for host in hosts]
    seconds = time.monotonic() - began
    print(f"stopped {which}: {seconds:.0f} s, exit codes {[code for code, _ in ends]}")  # noqa: T201
    assert [code for code, _ in ends] == [0, 0], ends
    assert seconds < 20
    assert len(list((hosts[0].folder / "checkpoints").iterdir())) == 1
    assert not list((hosts[1].folder / "checkpoints").iterdir())
    assert not any((host.output / "failure").exists() for host in hosts)


def test_two_hosts_make_one_model(hosts):
    for host in hosts:
        host.configure(RUN | {"epochs": "1"}, hosts=HOSTS, current=host.name)
        host.start()
    ends = [host.end(300) for host in hosts]
    assert [code for code, _ in ends] == [0, 0], ends
    assert BEFORE_THE_FIRST_STEP in ends[0][1]
    assert (hosts[0].model / "model.safetensors").is_file()
    assert not list(hosts[1].model.iterdir())
