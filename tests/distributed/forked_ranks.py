"""Runs of several ranks, forked from this process, so that libraries are loaded once: each is told its place as
torchrun would tell it."""

import json
import os
import socket
from pathlib import Path

import numpy as np
from forked import Run, wait
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Ranks:
    """One run of `size` ranks; `hosts` names the host of each one."""

    def __init__(self, folder, size, hosts=(), **options):
        self.folder, self.size, self.hosts = Path(folder), size, hosts or ("algo-1",) * size
        self.folder.mkdir(parents=True, exist_ok=True)
        self.runs = [Run(self.folder / "run", **options) for _ in range(size)]
        for rank, run in enumerate(self.runs):
            run.log = self.folder / f"rank-{rank}.log"

    def start(self, prepare=lambda rank: None):
        """Start all ranks; each calls `prepare` with its number first. Return their process ids."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        names = list(dict.fromkeys(self.hosts))

        def place(rank):
            local = [other for other in range(self.size) if self.hosts[other] == self.hosts[rank]]
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(local.index(rank)),
                "LOCAL_WORLD_SIZE": str(len(local)), "GROUP_RANK": str(names.index(self.hosts[rank])),
                "GROUP_WORLD_SIZE": str(len(names)),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "LORRY_HOST": self.hosts[rank],
                "TORCHELASTIC_ERROR_FILE": str(self.error_file(rank)), "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
            prepare(rank)

        return [run.start(lambda rank=rank: place(rank)) for rank, run in enumerate(self.runs)]

    def finish(self, prepare=lambda rank: None):
        """Run to the end and return the exit code of every rank."""
        return [wait(process) for process in self.start(prepare)]

    def error_file(self, rank):
        return self.folder / f"error-{rank}.json"

    def causes(self):
        """What each rank says that the run has failed of, None where it says nothing."""
        files = [self.error_file(rank) for rank in range(self.size)]
        read = [json.loads(file.read_text())["message"]["message"] if file.exists() else None for file in files]
        return [found and f"{found['where']}: {found['cause']}".removeprefix(": ") for found in read]

    @property
    def said(self):
        return "\n".join(run.said for run in self.runs)

    @property
    def losses(self):
        lines = (self.runs[0].output / "training.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    @property
    def weights(self):
        """The model's numbers, one after another."""
        from safetensors.numpy import load_file

        found = load_file(self.runs[0].model / "model.safetensors")
        return np.concatenate([found[name].ravel() for name in sorted(found)])


def keep_gradients(folder):
    """Return what lets rank 0 write the gradient of every step, as it is after the clip, to `folder`."""

    def prepare(rank):
        if rank:
            return
        steps = iter(range(10_000))
        folder.mkdir(parents=True, exist_ok=True)

        def keep(optimizer, *_):
            weights = optimizer.param_groups[0]["params"]
            np.save(folder / f"{next(steps)}.npy", np.concatenate([weight.grad.numpy().ravel() for weight in weights]))

        register_optimizer_step_pre_hook(keep)

    return prepare


def gradients(folder):
    return [np.load(folder / f"{step}.npy") for step in range(len(list(folder.glob("*.npy"))))]
