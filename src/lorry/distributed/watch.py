"""Nobody waits for ever: every process shows that it lives, and looks whether the others do.

Once a second each member (a rank, or the agent of a host) counts up its own key in the store and reads those of the
others. A member whose number stands still has been killed, stopped or cut off, and nobody would ever answer a process
that waits for it in a collective operation. Whoever finds that out puts the cause in the store, where the first one
wins, and ends. Requests to the store may never return where its host is paused, so that another thread looks at the
clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

from torch.distributed import Store

from lorry.distributed.store import Failure, read_failure, tell
from lorry.hardware import has_network

BEAT = 1.0  # seconds between two signs of life
SILENCE = 12.0  # seconds without one after which a member counts as gone
DONE = "done"

HINT = "Look at the end of that host's log, and at its memory. Earlier checkpoints stay as they are."


class Watch:
    """Watches over the members of a run, this one included.

    Args:
        connect: Returns a new client of the store; raises OSError where that is impossible.
        key: This member.
        members: The host that each member is on, by key; keys are like "rank 3".
        on_failure: Called once, in a thread, with the first failure anywhere.
        stop: Set where a stop is requested; it reaches all members.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        key: str,
        members: Mapping[str, str],
        on_failure: Callable[[Failure], None],
        stop: threading.Event | None = None,
    ) -> None:
        self._connect, self._key, self._members = connect, key, dict(members)
        self._on_failure, self._stop = on_failure, stop
        self._store: Store | None = None
        self._beats = 0
        self._values: dict[str, bytes] = {}
        self._heard: dict[str, float] = {}
        self._contact = time.monotonic()
        self._ended, self._failing = threading.Event(), threading.Lock()
        self._parent = os.getppid()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._look_at_clock)]

    def start(self) -> None:
        """Begin; every member must have its key in the store."""
        self._contact = time.monotonic()
        self._heard = dict.fromkeys(self._members, self._contact)
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Look no more."""
        self._ended.set()

    def end(self) -> None:
        """Leave, and let the others no longer wait for a sign of life."""
        self.leave()
        with contextlib.suppress(OSError, RuntimeError):  # the store has ended, and with it whoever would look
            self._connect().set(self._key, DONE)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._store = self._store or self._connect()
                self._exchange(self._store)
                self._contact = time.monotonic()
            except (OSError, RuntimeError):
                self._store = None  # a new connection next time; the clock decides how often

    def _exchange(self, store: Store) -> None:
        self._beats += 1
        store.set(self._key, str(self._beats))
        stop = self._stop
        if stop is not None and stop.is_set():
            store.set("stop", "1")
        failure, stopping, *values = store.multi_get(["failure", "stop", *self._members])
        if failure:
            self._fail(read_failure(failure))
        if stopping and stop is not None and not stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # whose handler knows what can be given up at once
        now = time.monotonic()
        for key, value in zip(self._members, values, strict=True):
            if value != self._values.get(key) or value == DONE.encode():
                self._values[key], self._heard[key] = value, now
        silent = [key for key, heard in self._heard.items() if now - heard > SILENCE]
        if silent and not self._ended.is_set():
            self._fail(tell(store, self._silence(silent, now)))

    def _silence(self, silent: list[str], now: float) -> Failure:
        """Return the failure of members that show no sign of life: that of a whole host, if it is one."""
        first = min(silent, key=lambda key: self._heard[key])
        host = self._members[first]
        whole = all(key in silent for key, other in self._members.items() if other == host)
        return self._unanswered(host, "" if whole else first, now - self._heard[first])

    def _look_at_clock(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(BEAT / 2):
            now = time.monotonic()
            stood_still, last = now - last, now
            if stood_still > SILENCE / 2:  # this process did, and knows nothing of the others
                self._contact = now
                self._heard = dict.fromkeys(self._members, now)
                if stood_still > SILENCE and len(set(self._members.values())) > 1:
                    self._fail(_paused(self._members[self._key], stood_still))
            elif now - self._contact > SILENCE:
                first = next(iter(self._members.values()))  # which runs the store
                self._fail(self._unanswered(first, "", now - self._contact))
            elif os.getppid() != self._parent:
                self._fail(Failure(self._members[self._key], "the process that started this one has ended", HINT))

    def _unanswered(self, host: str, member: str, seconds: float) -> Failure:
        """Return the failure of a host, or of a member on it, that does not answer; or that of this host's network."""
        own = self._members[self._key]
        if len(set(self._members.values())) > 1 and not member and not has_network():
            return Failure("", f"host {own} has lost its network", "Earlier checkpoints stay as they are.")
        who = f"{member} on {host}" if member else f"host {host}"
        return Failure("", f"{who} has not answered for {seconds:.0f} seconds: killed, paused or cut off", HINT)

    def _fail(self, failure: Failure | None) -> None:
        if failure is not None and not self._ended.is_set() and self._failing.acquire(blocking=False):
            self._on_failure(failure)


def _paused(host: str, seconds: float) -> Failure:
    return Failure(
        "",
        f"host {host} stood still for {seconds:.0f} seconds, and the others have gone on without it",
        "Was it paused? Earlier checkpoints stay as they are.",
    )
