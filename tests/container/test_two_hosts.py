"""A job of two hosts: one model, and whatever happens to one of them, both end soon and say what it was."""

import json
import os
import shutil
import signal
import time

import psutil
import pytest
from two_hosts import two_hosts

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path, tiny_model, shop_pairs):
    pairs = shop_pairs(tmp_path / "pairs", queries=16)
    made = []

    def make(**options):
        quick = {"pretrained_model": tiny_model("bert"), "batch_size": 24, "log_every": 1, "precision": "fp32"}
        made.extend(two_hosts(tmp_path / "ml", pairs, **quick | options))
        return made

    yield make
    for host in made:
        if hasattr(host, "process"):
            for process in _family(host):
                process.kill()
            host.process.wait()


def _family(host):
    try:
        parent = psutil.Process(host.process.pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def ends(hosts, seconds=30):
    """Wait for the hosts and return their exit codes; together they may take so many seconds."""
    deadline = time.monotonic() + seconds
    return [host.process.wait(max(0.1, deadline - time.monotonic())) for host in hosts]


def started(hosts):
    for host in hosts:
        host.start()
    return hosts


def test_two_hosts_make_one_model(hosts):
    first, second = started(hosts(epochs=2))
    assert ends([first, second], 120) == [0, 0], first.said + second.said
    assert "2 processes on 127.0.0.1, 127.0.0.2" in first.said
    assert (first.folder / "model" / "model.safetensors").is_file()
    assert (first.folder / "output" / "data" / "report.html").is_file()
    assert not list((second.folder / "model").iterdir()), "rank 0 alone writes"
    assert not list((second.folder / "output" / "data").iterdir())
    assert not list((second.folder / "checkpoints").iterdir())
    assert first.failure is second.failure is None
    config = json.loads((first.folder / "model" / "lorry.json").read_text())["config"]
    assert config["epochs"] == 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_is_gone_ends_the_other(hosts, which):
    pair = started(hosts(epochs=5000))
    pair[0].wait_for(r"step=8/")
    for process in _family(pair[which]):
        process.kill()
    pair[which].process.wait()
    other = pair[1 - which]
    assert ends([other]) == [1], other.said
    assert f"host {pair[which].name} has not answered for 1" in other.failure


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_stands_still_ends_both(hosts, which):
    pair = started(hosts(epochs=5000))
    pair[0].wait_for(r"step=8/")
    family = _family(pair[which])
    for process in family:
        process.suspend()
    other = pair[1 - which]
    assert ends([other]) == [1], other.said
    assert f"host {pair[which].name} has not answered for 1" in other.failure
    for process in family:
        process.resume()
    assert ends([pair[which]]) == [1]
    assert f"host {pair[which].name} " in pair[which].failure, "it stood still, or has heard so from the other"


@pytest.mark.parametrize("fault", ["kill", "suspend"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_fails_while_models_are_evaluated(hosts, tmp_path, which, fault):
    many = write_many_pairs(tmp_path / "many")
    pair = hosts(epochs=1)
    for host in pair:
        shutil.copytree(many, host.folder / "input" / "data" / "validation")
    started(pair)
    pair[0].wait_for(r"step=(\d+)/\1;")
    assert "merged:" not in pair[0].said
    for process in _family(pair[which]):
        getattr(process, fault)()
    other = pair[1 - which]
    assert ends([other]) == [1], other.said
    assert f"host {pair[which].name} has not answered for 1" in other.failure


def write_many_pairs(folder):
    """Write so many pairs that it takes a while to evaluate a tiny model on them."""
    folder.mkdir()
    rows = [f"red lamp {row // 10},brass lamp {row},{'EI'[row % 2]}" for row in range(60_000)]
    (folder / "pairs.csv").write_text("\n".join(["query,product_title,esci_label", *rows]))
    return folder


def test_a_rank_that_is_killed_is_told_of_on_both(hosts):
    first, second = started(hosts(epochs=5000))
    first.wait_for(r"step=8/")
    (rank,) = [child for child in psutil.Process(second.process.pid).children() if "RANK" in child.environ()]
    rank.kill()
    assert ends([first, second]) == [1, 1]
    assert first.failure == second.failure
    assert first.failure.startswith("rank 1 on 127.0.0.2: the process was killed (SIGKILL). ")


def test_a_host_killed_before_the_first_step(hosts):
    first, second = started(hosts(epochs=5000))
    while not [child for child in psutil.Process(second.process.pid).children() if "RANK" in child.environ()]:
        time.sleep(0.05)
    for process in _family(second):
        process.kill()
    assert ends([first]) == [1]
    assert "host 127.0.0.2 has not answered for 1" in first.failure


@pytest.mark.parametrize("missing", [0, 1])
def test_a_host_that_never_comes(hosts, missing):
    pair = hosts(host_wait=5)
    pair[1 - missing].start()
    assert ends([pair[1 - missing]]) == [1]
    assert f"host {pair[missing].name} did not come within 5 seconds" in pair[1 - missing].failure


def test_a_mistake_of_one_host_is_told_to_the_other(hosts):
    first, second = hosts(epochs=1)
    (first.folder / "input" / "data" / "train" / "pairs.csv").unlink()
    started([first, second])
    assert ends([first, second]) == [1, 1]
    assert "host 127.0.0.1: " in second.failure
    assert "is empty" in first.failure
    assert "is empty" in second.failure


@pytest.mark.parametrize("stopped", [[0], [1], [0, 1]])
def test_a_stop_of_one_host_or_both_ends_both_well(hosts, stopped):
    first, second = pair = started(hosts(epochs=5000))
    first.wait_for(r"step=8/")
    began = time.monotonic()
    for which in stopped:
        os.kill(pair[which].process.pid, signal.SIGTERM)
    assert ends([first, second], 20) == [0, 0], first.said + second.said
    assert time.monotonic() - began < 20
    assert len(list((first.folder / "checkpoints").iterdir())) == 1
    assert first.failure is second.failure is None
