"""One training job inside the container: the command `train`, and the function that SageMaker's toolkit calls."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys

from lorry.config import TrainConfig
from lorry.container.contract import in_script_mode, is_sagemaker, ml_folder
from lorry.container.environment import set_library_environment
from lorry.container.failure import recorded, remove_failure
from lorry.container.hosts import read_hosts
from lorry.container.job import parser, read_job
from lorry.container.storage import check_outputs, check_temporary_folder
from lorry.distributed.hosts import Hosts
from lorry.errors import UserError
from lorry.launch import start
from lorry.logs import OutputClosedError, configure_logging, give_up_output
from lorry.signals import Stop, StopRequestedError, stop_on_signals

log = logging.getLogger("lorry")


def train() -> None:
    """Run the command `train`, and exit: 0 when trained or stopped on request, 1 otherwise."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        parser().print_help()
        return
    configure_logging()
    try:
        sys.exit(_run())
    except OutputClosedError as error:
        give_up_output(error)
        sys.exit(1)


def main() -> None:
    """Run the job for SageMaker's toolkit, which finds this function in SAGEMAKER_TRAINING_MODULE.

    Raises:
        ClientError: The user can fix it; the toolkit shows it in one line. It shows the traceback of other errors.
    """
    from sagemaker_training.errors import ClientError

    configure_logging()
    logging.getLogger().setLevel(logging.WARNING)  # the toolkit lets every library log what it does
    try:
        with recorded(ml_folder()):
            _start()
    except UserError as error:
        raise ClientError(str(error)) from None
    except OutputClosedError as error:
        give_up_output(error)
        raise ClientError("standard output cannot be written") from None


def _run() -> int:
    """Run the job and return the exit code."""
    try:
        with recorded(ml_folder()):
            _train()
    except UserError as error:
        log.error("%s", error)
        return 1
    except OutputClosedError:
        raise
    except Exception:
        log.exception("training failed")
        return 1
    return 0


def _train() -> None:
    stop = _stop()
    try:
        with stop.immediately():
            _job()
            if is_sagemaker():
                from sagemaker_training import trainer
    except StopRequestedError:
        log.info("stopped before the run began; earlier checkpoints stay as they are")
        return
    if is_sagemaker():
        trainer.train()  # calls main() in this process, and exits
    _start()


def _start() -> None:
    config, hosts = _job()
    start(config, _stop(), _command(), hosts)


@functools.cache
def _job() -> tuple[TrainConfig, Hosts]:
    """Return this process's job and its hosts, read and checked once.

    Raises:
        UserError: It cannot be run; the other hosts are told.
    """
    root = ml_folder()
    remove_failure(root)
    check_temporary_folder()
    hosts = read_hosts(root)
    try:
        config = read_job(sys.argv[1:], os.environ, root)
        config = check_outputs(config, root, warn=not (is_sagemaker() or in_script_mode()))
    except Exception as error:
        if hosts.several:
            from lorry.distributed.agent import tell_other_hosts

            tell_other_hosts(error, hosts, _stop())
        raise
    set_library_environment(config)
    return config, hosts


@functools.cache
def _stop() -> Stop:
    """Return this process's one event that a request to stop sets.

    Process 1 gets no signal that it has no handler for: docker/train blocks them up to here.
    """
    return stop_on_signals()


def _command() -> str:
    return shlex.join(["train", *sys.argv[1:]])
