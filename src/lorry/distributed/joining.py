"""Make this process one of a run's ranks, and end it as soon as the run has failed anywhere."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed
from torch.distributed import Store

from lorry.distributed.place import HOST_NAME, Place, place_of
from lorry.distributed.ranks import Ranks
from lorry.distributed.store import Failure, connect, failure_of, read_failure, serve, tell
from lorry.distributed.watch import BEAT, Watch
from lorry.errors import UserError, as_shown
from lorry.signals import Stop

log = logging.getLogger("lorry")

ARRIVAL = 600.0  # seconds until the last process has loaded its libraries
FAREWELL = 10.0  # seconds for which rank 0 runs the store for the others when it is done
# How long one rank may wait for another within a step. A rank that is gone is noticed much sooner, by the watch; and
# work that one rank does alone is waited for elsewhere.
STEP = timedelta(minutes=5)


@contextmanager
def joined(environ: Mapping[str, str], stop: Stop) -> Iterator[Ranks]:
    """Give the ranks that this process belongs to; when the block fails, here or elsewhere, end the process.

    Args:
        environ: The environment, from torchrun or from our own agent.
        stop: Set where a stop is requested.

    Raises:
        UserError: The environment names no place.
    """
    place = place_of(environ)
    report = partial(_report, place, ours=HOST_NAME in environ, error_file=environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if place.rank:
        log.setLevel(logging.ERROR)  # rank 0 speaks for all
        os.environ["TQDM_DISABLE"] = "1"  # and draws the bars, those of libraries too
    watch = None
    try:
        _check_gpu(place)
        store = _store(place)
        hosts = _arrive(store, place)
        members = {f"rank {rank}": host for rank, host in enumerate(hosts)}
        watch = Watch(
            partial(connect, place.store_host, place.store_port), f"rank {place.rank}", members,
            lambda failure: _end(failure, report), stop,
        )  # fmt: skip
        watch.start()
        _init_process_group(place)
        ranks = Ranks(place, store, stop)
        if place.rank == 0:
            log.info("%d processes on %s", place.size, ", ".join(dict.fromkeys(hosts)))
        yield ranks
        watch.end()
        distributed.destroy_process_group()
        _leave(store, place)
    except BaseException as error:
        if not isinstance(error, Exception | KeyboardInterrupt) and type(error).__name__ != "PanicException":
            raise
        if not isinstance(as_shown(error), UserError):
            log.exception("%s failed", place.name)
        failure = failure_of(place.name, error)
        with contextlib.suppress(OSError, RuntimeError):
            failure = tell(connect(place.store_host, place.store_port), failure)
        _end(failure, report)


def _store(place: Place) -> Store:
    """Return a client of the run's store, which rank 0 runs where no agent does."""
    if place.rank == 0 and not place.store_runs:
        return serve(place.store_port, to_others=place.hosts > 1)[0]
    end = time.monotonic() + ARRIVAL
    while True:
        try:
            return connect(place.store_host, place.store_port)
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"{place.store_host}:{place.store_port} does not answer: {error}", "Check that rank 0 runs there."
                ) from None
            time.sleep(0.5)


def _arrive(store: Store, place: Place) -> list[str]:
    """Wait until every rank is there; return the name of each one's host."""
    keys = [f"rank {rank}" for rank in range(place.size)]
    names = [f"host of {key}" for key in keys]
    store.set(names[place.rank], place.host_name)
    store.set(keys[place.rank], "0")
    end = time.monotonic() + ARRIVAL
    while missing := [key for key in keys if not store.check([key])]:
        if failure := read_failure(store.get("failure")):
            raise failure.error()
        if time.monotonic() > end:
            raise UserError(f"{', '.join(missing)} did not come within {ARRIVAL:.0f} seconds", "Look at their logs.")
        time.sleep(0.1)
    return [store.get(name).decode() for name in names]


def _leave(store: Store, place: Place) -> None:
    """Say that this rank needs the store no more; rank 0, where it runs the store, waits until none does."""
    left, end = store.add("left", 1), time.monotonic() + FAREWELL
    while place.rank == 0 and not place.store_runs and left < place.size and time.monotonic() < end:
        time.sleep(0.05)
        left = store.add("left", 0)


def _check_gpu(place: Place) -> None:
    """Take this rank's GPU, where there are any.

    Raises:
        UserError: There are fewer than processes.
    """
    if not torch.cuda.is_available():
        return
    if place.local_size > (count := torch.cuda.device_count()):
        raise UserError(
            f"{place.local_size} processes on a host with {count} GPUs", "Start one process per GPU: --processes 0."
        )
    torch.cuda.set_device(place.local_rank)


def _init_process_group(place: Place) -> None:
    from torch.distributed import PrefixStore, TCPStore

    client = TCPStore(place.store_host, place.store_port, is_master=False, timeout=STEP, wait_for_workers=False)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore("group", client),
        rank=place.rank,
        world_size=place.size,
        timeout=STEP,
    )


def _report(place: Place, failure: Failure, *, ours: bool, error_file: str) -> None:
    """Tell our own agent of a failure through its error file, or else the user; the others by the store."""
    if not ours:
        log.error("%s", failure.error())
    if error_file:
        content = {"message": {"message": failure.__dict__, "extraInfo": {"timestamp": int(time.time())}}}
        Path(error_file).write_text(json.dumps(content), "utf-8")
    if place.rank == 0 and not place.store_runs:
        time.sleep(2 * BEAT)  # the store ends with this process, and all must have read it


def _end(failure: Failure, report: partial[None]) -> NoReturn:
    """End this process at once: its other threads may wait for ever in an operation with ranks that are gone."""
    try:
        report(failure)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(1)
