"""The key-value store at the first host, by which the processes of a run find each other and tell what failed."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from lorry.errors import UserError, as_shown, crash_text

ANSWER = 3.0  # seconds in which the store answers a request
LIMIT = 900  # characters of a cause


@dataclass(frozen=True)
class Failure:
    """Why a run has failed, and where."""

    where: str
    cause: str
    hint: str

    def error(self) -> UserError:
        """Return it as the error that ends every process of the run."""
        return UserError(f"{self.where}: {self.cause}" if self.where else self.cause, self.hint)


def failure_of(where: str, error: BaseException) -> Failure:
    """Return the failure that an exception, raised there, is for the whole run."""
    shown = as_shown(error)
    if isinstance(shown, UserError):
        return Failure(where, shown.cause, shown.hint)
    return Failure(where, crash_text(shown, LIMIT), "Look into the log of that host.")


def serve(port: int, *, to_others: bool) -> tuple[Store, int]:
    """Run the store on a port of this host, 0 for any that is free; return it and its port.

    Args:
        port: Where processes look for it.
        to_others: Whether other hosts may reach it.

    Raises:
        UserError: Something else has the port.
    """
    try:
        listener = socket.create_server(("" if to_others else "localhost", port), backlog=1024)
        port = listener.getsockname()[1]
        store = TCPStore(
            "localhost", port, is_master=True, timeout=timedelta(seconds=ANSWER), wait_for_workers=False,
            multi_tenant=True, master_listen_fd=listener.detach(),
        )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"port {port} of this host cannot be used: {str(error).splitlines()[0][:200]}",
            "End what else uses it, perhaps an earlier run.",
        ) from None
    return _prepared(store), port


def connect(host: str, port: int) -> Store:
    """Return a client of the store that runs there.

    Raises:
        OSError: It cannot be reached now.
    """
    with socket.create_connection((host, port), timeout=ANSWER):
        pass  # TCPStore itself tries again and again, and logs it
    try:
        return _prepared(
            TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWER), wait_for_workers=False)
        )
    except RuntimeError as error:
        raise ConnectionError(str(error).splitlines()[0]) from error


def _prepared(store: TCPStore) -> Store:
    made = PrefixStore("lorry", store)
    for key in ("failure", "stop"):
        made.compare_set(key, "", "")  # so that it can be read before anybody has set it
    return made


def tell(store: Store, failure: Failure) -> Failure:
    """Put a failure in the store, unless there is one already; return the one that is there: who failed first wins."""
    return read_failure(store.compare_set("failure", "", json.dumps(asdict(failure)))) or failure


def read_failure(value: bytes) -> Failure | None:
    """Return the failure that the store's key `failure` holds, None while there is none."""
    return Failure(**json.loads(value)) if value else None
