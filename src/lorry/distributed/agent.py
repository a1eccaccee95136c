"""The agent of a host: torchrun's, in this process. It starts the host's processes and ends when they have ended.

The run's store is the first host's agent's. By it the agents find each other, watch each other, and learn what failed
anywhere; torchrun's static rendezvous then uses the same store and port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import psutil
import torch
from torch.distributed import Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from lorry.distributed.hosts import Hosts
from lorry.distributed.place import HOST_NAME
from lorry.distributed.store import ANSWER, Failure, connect, failure_of, read_failure, serve, tell
from lorry.distributed.watch import SILENCE, Watch
from lorry.errors import UserError
from lorry.signals import Stop, StopRequestedError

log = logging.getLogger("lorry")

T = TypeVar("T")

POLL = 0.2  # seconds between two looks at the processes
GRACE = 4.0  # seconds that processes have to end by themselves after a failure
FAREWELL = 5.0  # seconds that the first host's store outlives a failure, so that all can read it
ARRIVAL = 15.0  # seconds for which a host that cannot start waits to tell the others why
EXIT = 60.0  # seconds for which agents wait for each other after success
_SILENT = UserError("the first host does not answer", "Look at the end of its log.")


def start_processes(command: Sequence[str], processes: int, hosts: Hosts, stop: Stop) -> None:
    """Run a command in several processes on this host, as ranks of one run with those of the other hosts.

    Args:
        command: Program and arguments.
        processes: How many on this host.
        hosts: The run's hosts.
        stop: When set, the processes get a SIGTERM.

    Raises:
        StopRequestedError: `stop` was set, here or on another host, before all hosts were there.
        UserError: What failed first, on whatever host.
    """
    store, port = _open_store(hosts, stop)
    watch: Watch | None = None
    failures: list[Failure] = []
    try:
        _in_time(lambda: _wait_for_hosts(store, hosts, stop), hosts.wait + ANSWER, _missing([hosts.names[0]], hosts))
        members = {_key(host): host for host in hosts.names}
        watch = Watch(partial(connect, _address(hosts), port), _key(hosts.name), members, failures.append)
        watch.start()
        _set_environment(hosts, processes)
        _supervise(_Agent(_spec(command, processes, hosts, port), hosts, store), store, stop, failures)
        watch.end()
    except StopRequestedError:
        with contextlib.suppress(RuntimeError, UserError):
            _in_time(lambda: _stay(store, hosts, store.add("hosts here", 0), FAREWELL), FAREWELL + ANSWER, _SILENT)
        raise
    except Exception as error:
        ours = isinstance(error, UserError)
        if not ours:
            log.exception("the agent of host %s failed", hosts.name)
        raise _tell_and_leave(store, failure_of("" if ours else f"host {hosts.name}", error), hosts) from None
    finally:
        if watch is not None:
            watch.leave()


def tell_other_hosts(error: BaseException, hosts: Hosts, stop: Stop) -> None:
    """Let the other hosts, which wait for this one, know why it does not come."""
    hosts = dataclasses.replace(hosts, wait=ARRIVAL)  # all come at about the same time
    with contextlib.suppress(UserError, StopRequestedError):
        store, _ = _open_store(hosts, stop)
        _tell_and_leave(store, failure_of(f"host {hosts.name}", error), hosts, ARRIVAL)


class _Agent(LocalElasticAgent):
    """torchrun's agent; where a process dies, it tells what of, and gives the others little time."""

    def __init__(self, spec: WorkerSpec, hosts: Hosts, store: Store) -> None:
        self.folder = tempfile.mkdtemp(prefix="lorry-agent-")
        super().__init__(spec, logs_specs=DefaultLogsSpecs(log_dir=self.folder), exit_barrier_timeout=EXIT)
        self._hosts, self._board = hosts, store

    def processes(self) -> list[int]:
        """Return the ids of the processes that were started."""
        return [worker.id for worker in self.get_worker_group().workers if isinstance(worker.id, int)]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        for worker in worker_group.workers:
            if (code := _exit_code(worker.id)) == 0:
                continue
            if code < 0:  # else it has told itself what of
                with contextlib.suppress(RuntimeError):  # the store is gone: that has a cause, and a watch, of its own
                    self._tell(_killed(f"rank {worker.global_rank} on {self._hosts.name}", signal.Signals(-code)))
            _end(self.processes())
            break
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _tell(self, failure: Failure) -> None:
        """Tell what a process died of; where NCCL has ended it, what has cut it off comes first."""
        end = time.monotonic() + (SILENCE + 2 if "SIGABRT" in failure.cause else 0)
        while time.monotonic() < end and not self._board.get("failure"):
            time.sleep(POLL)
        tell(self._board, failure)


def _supervise(agent: _Agent, store: Store, stop: Stop, failures: list[Failure]) -> None:
    """Run the agent in a thread and hand on a stop.

    Raises:
        UserError: What failed first: `failures` has what the watch over the hosts found, the store what ranks did.
    """
    results: list[RunResult | BaseException] = []

    def work() -> None:
        # The processes inherit this: a signal waits until they have a handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            results.append(agent.run())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        handed_on: list[int] = []
        while thread.is_alive() and not failures:
            thread.join(POLL)
            if stop.is_set() and not handed_on:
                handed_on = agent.processes()
                _signal(handed_on, signal.SIGTERM)
        if failures:
            _end(agent.processes())
            raise failures[0].error()
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        if result.is_failed():
            raise _first_failure(result, store).error()
    finally:
        _signal(agent.processes(), signal.SIGKILL)  # none is left but after an exception, such as a second Ctrl-C
        shutil.rmtree(agent.folder, ignore_errors=True)


def _first_failure(result: RunResult, store: Store) -> Failure:
    """Return what failed first: the store has it, and each process of ours has written it down."""
    with contextlib.suppress(RuntimeError, UserError):
        if failure := read_failure(_in_time(lambda: store.get("failure"), FAREWELL, _SILENT)):
            return failure
    for process in result.failures.values():
        if isinstance(content := process.error_file_data["message"], dict):
            return Failure(**content["message"])
    rank, process = next(iter(result.failures.items()))
    return Failure("", f"rank {rank} ended with exit code {process.exitcode}", "The log of its host has the reason.")


def _open_store(hosts: Hosts, stop: Stop) -> tuple[Store, int]:
    """Return a client of the store on the first host, which runs it, and its port.

    Raises:
        StopRequestedError: `stop` was set.
        UserError: The first host does not come.
    """
    if hosts.number == 0:
        return serve(hosts.port, to_others=hosts.several)
    end = time.monotonic() + hosts.wait
    while True:
        if stop.is_set():
            raise StopRequestedError
        try:
            return connect(_address(hosts), hosts.port), hosts.port
        except OSError as error:
            if time.monotonic() > end:
                raise _missing([hosts.names[0]], hosts, f" ({error.strerror or error})") from None
        time.sleep(POLL)


def _wait_for_hosts(store: Store, hosts: Hosts, stop: Stop) -> None:
    """Wait until the agents of all hosts are there; whether they go on or stop is decided once for all.

    Raises:
        StopRequestedError: A stop was requested on some host.
        UserError: A host does not come, or has failed.
    """
    store.set(_key(hosts.name), "0")
    if store.add("hosts here", 1) == len(hosts.names):
        store.compare_set("hosts", "", "met")
    end = time.monotonic() + hosts.wait
    while not (outcome := store.compare_set("hosts", "", "")):
        if failure := read_failure(store.get("failure")):
            raise failure.error()
        if stop.is_set():
            store.compare_set("hosts", "", "stopped")
        elif time.monotonic() > end:
            raise _missing([host for host in hosts.names if not store.check([_key(host)])], hosts)
        time.sleep(POLL)
    if outcome == b"stopped":
        raise StopRequestedError


def _missing(names: list[str], hosts: Hosts, reason: str = "") -> UserError:
    return UserError(
        f"host {', '.join(names)} did not come within {hosts.wait:.0f} seconds{reason}",
        "Look at its log; --host_wait gives it more time.",
    )


def _tell_and_leave(store: Store, failure: Failure, hosts: Hosts, farewell: float = FAREWELL) -> UserError:
    """Tell the other hosts of a failure; the first host stays until they have read it. Return what failed first."""

    def work() -> Failure:
        first = tell(store, failure)
        _stay(store, hosts, len(hosts.names), farewell)
        return first

    try:
        return _in_time(work, (0 if hosts.number else farewell) + ANSWER, _SILENT).error()
    except (RuntimeError, UserError):  # the store is gone, or its host stands still
        return failure.error()


def _stay(store: Store, hosts: Hosts, others: int, seconds: float) -> None:
    """Say that this host knows how the run ends; the first one, which runs the store, stays until so many know."""
    told, end = store.add("hosts told", 1), time.monotonic() + seconds
    while hosts.number == 0 and told < others and time.monotonic() < end:
        time.sleep(POLL)
        told = store.add("hosts told", 0)


def _in_time(work: Callable[[], T], seconds: float, late: UserError) -> T:
    """Return what some work with the store returns; where its host stands still, that may never be.

    Raises:
        UserError: `late`, after so many seconds; or what the work raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise late
    return results[0]


def _spec(command: Sequence[str], processes: int, hosts: Hosts, port: int) -> WorkerSpec:
    parameters = RendezvousParameters(
        backend="static", endpoint=f"{_address(hosts)}:{port}", run_id="lorry", min_nodes=len(hosts.names),
        max_nodes=len(hosts.names), rank=hosts.number, timeout=hosts.wait,
    )  # fmt: skip
    return WorkerSpec(
        role="rank",
        local_world_size=processes,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=rendezvous.get_rendezvous_handler(parameters),
        max_restarts=0,
        monitor_interval=POLL,
    )


def _set_environment(hosts: Hosts, processes: int) -> None:
    """Set what the processes inherit, and keep torchrun's own words out of the log."""
    os.environ[HOST_NAME] = hosts.name
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what it says of a lost connection, over pages
    if hosts.interface:
        os.environ["NCCL_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = hosts.interface
    elif not hosts.several and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not lead anywhere
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _exit_code(process: int) -> int:
    """Return the exit code of a process, which can still be waited for: 0 while it runs, negative for a signal."""
    if not hasattr(os, "waitid"):  # macOS; torchrun then ends the others in half a minute
        return 0
    found = None
    with contextlib.suppress(ChildProcessError):
        found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return 0
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _killed(where: str, number: signal.Signals) -> Failure:
    if number == signal.SIGKILL:
        hint = "Linux does so when memory is out: lower batch_size or micro_batch_tokens, or take larger hosts."
        return Failure(where, "the process was killed (SIGKILL)", hint)
    return Failure(where, f"the process was ended by {number.name}", "Look at the end of its log.")


def _end(processes: list[int]) -> None:
    """Give processes some seconds to end by themselves, as they do when they learn of a failure, then kill them."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(map(_is_running, processes)):
        time.sleep(POLL)
    _signal(processes, signal.SIGKILL)


def _is_running(process: int) -> bool:
    """Return whether a process of ours still runs: its id may be somebody else's by now."""
    try:
        found = psutil.Process(process)
        return bool(found.ppid() == os.getpid() and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in filter(_is_running, processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _key(host: str) -> str:
    return f"host {host}"


def _address(hosts: Hosts) -> str:
    return hosts.names[0] if hosts.several else "localhost"
