"""What the libraries find in the environment, and what the driver's tool says of the GPU."""

import os

from lorry import hardware
from lorry.container import environment


def test_a_local_base_model_needs_no_network(started, monkeypatch):
    monkeypatch.setattr(environment, "has_network", lambda: True)
    seen = []

    def work(config, stop, command):
        seen.append(os.environ.get("HF_HUB_OFFLINE"))

    started(work, "--pretrained_model", "bundled")
    started(work)
    assert seen == ["1", None]


def test_waiting_threads_do_not_spin_for_long(started):
    seen = []
    started(lambda config, stop, command: seen.append(os.environ["GOMP_SPINCOUNT"]))
    assert seen == ["1000"]


def test_gpu_of_driver_reads_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 535.183.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware.gpu_of_driver() == ("Tesla T4", "driver 535.183.01")
