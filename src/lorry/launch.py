"""Start a training run: what `lorry train` and the container's `train` have in common.

A run is this process alone, several processes that this one starts here (and its like on other hosts), or, where
torchrun has started this process, one of its ranks.

Loading the libraries makes many objects and next to no garbage, and to look for it takes as long as a training step or
two, so Python's garbage collector waits until they are loaded and leaves them alone from then on.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import logging
import os
import sys

from lorry.config import TrainConfig
from lorry.distributed.hosts import Hosts
from lorry.distributed.place import HOST_NAME, is_rank
from lorry.errors import UserError
from lorry.run_info import RunInfo
from lorry.signals import Stop, StopRequestedError

log = logging.getLogger("lorry")

COMMAND, INSTANCE = "LORRY_COMMAND", "LORRY_INSTANCE"
"""Variables that hand command line and instance type, for the report, to the processes that are started."""


def start(config: TrainConfig, stop: Stop, command: str, hosts: Hosts | None = None) -> None:
    """Load the libraries and run the training that `config` describes; see `pipeline.run`.

    Args:
        config: The hyperparameters.
        stop: Set where a stop is requested.
        command: The command line, for the report.
        hosts: Those of the run; None: this one alone.

    Raises:
        UserError: Something that the user can fix.
    """
    hosts = hosts or Hosts()
    about = RunInfo(command, hosts.instance)
    if is_rank(os.environ):
        _run_as_rank(config, stop, about)
        return
    try:
        with stop.immediately(), about.timing("starting"):
            processes = config.processes or _gpus()
            if processes == 1 and not hosts.several:
                _load()
        if processes > 1 or hosts.several:
            _start_processes(config, stop, about, processes, hosts)
            return
    except StopRequestedError:
        log.info("stopped before the run began; earlier checkpoints stay as they are")
        return
    from lorry.pipeline import run

    run(config, stop, about)


def _load() -> None:
    gc.disable()
    from lorry.pipeline import run  # noqa: F401

    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)  # at exit, too, collecting what is left takes Python seconds


def _run_as_rank(config: TrainConfig, stop: Stop, about: RunInfo) -> None:
    """Take part in a run; its outcome, good or bad, is the same for all ranks."""
    if config.processes and HOST_NAME not in os.environ:
        raise UserError("torchrun has started the processes, and --processes asks for more", "Leave out --processes.")
    from lorry.distributed.joining import joined

    about = dataclasses.replace(
        about, command=os.environ.get(COMMAND, about.command), instance=os.environ.get(INSTANCE, about.instance)
    )
    with joined(os.environ, stop) as ranks:
        with about.timing("starting"):
            _load()
        from lorry.pipeline import run

        run(config, stop, about, ranks)


def _gpus() -> int:
    """Return how many processes suit this host: one per GPU."""
    gc.disable()  # until all is loaded
    import torch

    return max(1, torch.cuda.device_count())


def _start_processes(config: TrainConfig, stop: Stop, about: RunInfo, processes: int, hosts: Hosts) -> None:
    from lorry.distributed.agent import start_processes

    gc.enable()
    os.environ[COMMAND], os.environ[INSTANCE] = about.command, about.instance
    hosts = dataclasses.replace(hosts, wait=config.host_wait)
    # -P: a folder named lorry in the working directory is not this package
    start_processes([sys.executable, "-P", "-m", "lorry", "train", *_options(config)], processes, hosts, stop)


def _options(config: TrainConfig) -> list[str]:
    """Return the command-line options that make this config."""
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            text = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
            options.append(f"--{field.name}={text}")
    return options
