"""Two SageMaker hosts on this machine: the container's `train` in two processes, each with an /opt/ml of its own.

They find each other by two names of this machine; tests/image has containers in their place.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HOSTS = ("127.0.0.1", "127.0.0.2")
TRAIN = """
import sys
from lorry.container import hosts
from lorry.container.train import train
hosts.PORT = int(sys.argv.pop(1))
train()
"""


class Host:
    """One of the hosts; `start` starts its part of the job."""

    def __init__(self, folder, name, hyperparameters, pairs, port):
        self.folder, self.name, self.port = Path(folder) / name, name, port
        self.log = self.folder.with_suffix(".log")
        config = self.folder / "input" / "config"
        config.mkdir(parents=True)
        resources = {"current_host": name, "hosts": list(HOSTS), "network_interface_name": "lo"}
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
        shutil.copytree(pairs, self.folder / "input" / "data" / "train")
        (self.folder / "checkpoints").mkdir()

    def start(self):
        environment = os.environ | {"SAGEMAKER_BASE_DIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", TRAIN, str(self.port)], env=environment, stdout=log, stderr=log
            )

    @property
    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def failure(self):
        path = self.folder / "output" / "failure"
        return path.read_text() if path.exists() else None

    def wait_for(self, pattern, seconds=90):
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.said):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)


def two_hosts(folder, pairs, **hyperparameters):
    """Return the two hosts of a job; none is started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = {name: str(value) for name, value in hyperparameters.items()}
    return [Host(folder, name, given, pairs, port) for name in HOSTS]
