"""What the processes of a run do together; for a process alone every method hands back what it gets.

All ranks call the same methods in the same order. A wait that may be long, since one rank works while the others have
nothing to do, is a meeting in the store: it can be given up for a stop, and has no time limit of the process group's.
Collective operations follow when all are there, and their sizes are known on every rank, so that none can hang on a
disagreement. A rank that is gone is noticed by `watch.py`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lorry.distributed import sharing
from lorry.errors import UserError
from lorry.signals import Stop, StopRequestedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorry.distributed.place import Place

log = logging.getLogger("lorry")

T = TypeVar("T")

PATIENCE = 6 * 3600.0  # seconds for what one rank does while the others wait: reading and tokenising above all
POLL = 0.05  # seconds between two looks
ROWS_AT_ONCE = 65_536  # of embeddings in one collective operation
BYTES_AT_ONCE = 16 << 20  # of a file
# Seconds after which a lost connection counts as the failure itself: until then its cause, found by `watch.py`, is.
CAUSE_COMES = 20.0


class Ranks:
    """The ranks of a run, as one of them sees them; made by `joining.joined`, and without arguments for one alone.

    Args:
        place: This rank's.
        store: A client of the run's store, for this thread alone.
        stop: Set where a stop is requested.
    """

    def __init__(self, place: Place | None = None, store: Any = None, stop: Stop | None = None) -> None:
        self.alone = place is None
        self.rank, self.size = (place.rank, place.size) if place else (0, 1)
        self.local_rank, self.local_size = (place.local_rank, place.local_size) if place else (0, 1)
        self.host, self.hosts = (place.host, place.hosts) if place else (0, 1)
        self.name = place.name if place else ""
        self.first = self.rank == 0
        self._store, self._stop = store, stop
        self._meetings = 0

    @property
    def first_on_host(self) -> bool:
        """Whether this rank does what is done once a host."""
        return self.local_rank == 0

    def shares(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Divide texts of these lengths among the ranks, by tokens; return the rows of each rank, ascending.

        The longest go round first: no two shares differ by more than the longest text.
        """
        by_length = np.argsort(-lengths, kind="stable")
        return [np.sort(by_length[rank :: self.size]) for rank in range(self.size)]

    def gather(self, own_PD: Tensor, most: int, place_N: Tensor) -> Tensor:
        """Return the rows [N, D] of all ranks.

        Args:
            own_PD: This rank's rows.
            most: Rows of the rank that has most: every rank sends so many.
            place_N: Place of each row among those that are sent, from `places`.
        """
        from torch import distributed

        sent = own_PD.new_zeros(most, own_PD.shape[1])
        sent[: len(own_PD)] = own_PD
        received = own_PD.new_empty(self.size * most, own_PD.shape[1])
        with self._connected():
            distributed.all_gather_into_tensor(received, sent)
        return received.index_select(0, place_N)

    def collect(self, own_PD: Tensor, shares: Sequence[np.ndarray], *, everywhere: bool) -> Tensor:
        """Return the rows of all ranks, on the CPU, block by block; elsewhere than on rank 0 only if `everywhere`.

        Args:
            own_PD: This rank's rows, on the CPU.
            shares: Which rows each rank has.
            everywhere: Else the other ranks get no rows.
        """
        if self.alone:
            return own_PD
        import torch
        from torch import distributed

        wanted = everywhere or self.first
        rows_ND = own_PD.new_empty(sum(map(len, shares)) if wanted else 0, *own_PD.shape[1:])
        most = max(map(len, shares))
        for start in range(0, most, ROWS_AT_ONCE):
            block = slice(start, min(start + ROWS_AT_ONCE, most))
            sent = own_PD.new_zeros(block.stop - start, *own_PD.shape[1:])
            sent[: len(own_PD[block])] = own_PD[block]
            received = [torch.empty_like(sent) for _ in shares] if wanted else None
            with self._connected():
                if everywhere:
                    distributed.all_gather(received, sent)
                else:
                    distributed.gather(sent, received, dst=0)
            for share, part in zip(shares, received or (), strict=False):
                rows = torch.from_numpy(share[block])
                rows_ND[rows] = part[: len(rows)]
        return rows_ND

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every weight the sum of its gradients on all ranks, in one operation; a missing one counts as zeros."""
        if self.alone:
            return
        import torch
        from torch import distributed

        weights = list(weights)
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with self._connected():
            distributed.all_reduce(flat)
        for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = part.view_as(weight)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank; within a step, where all come at about the same time."""
        return flag if self.alone else self._largest(int(flag)) > 0

    def any_after_work(self, flag: bool, what: str) -> bool:
        """Return the same after work that may end much later on one rank than on another."""
        if self.alone:
            return flag
        with self._together(what):
            return self._largest(int(flag)) > 0

    def smallest(self, number: int) -> int:
        """Return the smallest number of all ranks."""
        return number if self.alone else -self._largest(-number)

    def from_first(self, make: Callable[[], T], what: str) -> T:
        """Return on every rank what `make` returns on rank 0, which alone calls it.

        Args:
            make: Returns something that can be pickled.
            what: What the others wait for, in a few words.
        """
        if self.alone:
            return make()
        from torch import distributed

        box: list[Any] = [make() if self.first else None]
        with self._together(what):
            distributed.broadcast_object_list(box, src=0)
        made: T = box[0]
        return made

    def once_a_host(self, make: Callable[[], T], what: str) -> T:
        """Return on every rank what `make` returns on the first rank of its host; arrays are shared through a file.

        Args:
            make: Returns something that can be pickled.
            what: What the others wait for, in a few words.
        """
        if self.alone:
            return make()
        key = f"folder {self.host} {self._meetings}"
        folder = None
        try:
            if self.first_on_host:
                made = make()
                folder = Path(tempfile.mkdtemp(prefix="lorry-ranks-"))
                if self.local_size > 1:
                    sharing.save(made, folder / "shared")
                self._store.set(key, str(folder))
            with self._together(what):
                if not self.first_on_host:
                    made = sharing.load(Path(self._store.get(key).decode()) / "shared")
            with self._together(what):  # until all have it: the file may go then
                pass
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        return made

    def copy_to_hosts(self, folder: Path | None) -> None:
        """Copy the files in rank 0's folder to that of the first rank of every other host; other ranks give None."""
        if self.hosts == 1:
            return
        import torch
        from torch import distributed

        def files() -> dict[str, int]:
            assert folder is not None
            return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}

        for name, size in self.from_first(files, "merging the model").items():
            with ExitStack() as stack:
                file = None
                if folder is not None:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context((folder / name).open("rb" if self.first else "wb"))
                for start in range(0, size, BYTES_AT_ONCE):
                    block = torch.empty(min(BYTES_AT_ONCE, size - start), dtype=torch.uint8)
                    if file is not None and self.first:
                        file.readinto(block.numpy().data)  # type: ignore[attr-defined]
                    with self._connected():
                        distributed.broadcast(block, src=0)
                    if file is not None and not self.first:
                        file.write(block.numpy().data)

    def check_same(self, mine: Any, cause: str, hint: str) -> None:
        """Check that every rank has the same as rank 0.

        Raises:
            UserError: This one has something else: `cause` and `hint` say what it means.
        """
        if not self.alone and self.from_first(lambda: mine, "comparing what the hosts have") != mine:
            raise UserError(cause, hint)

    def stopped_before_training(self, stopped: bool) -> bool:
        """Return whether a stop has reached any rank in its preparation; all come here, at the latest then."""
        if self.alone:
            return stopped
        with self._together("preparing the run", key="prepared"):
            return self._largest(int(stopped)) > 0

    def finish(self) -> None:
        """Wait until all ranks are done: rank 0 may fail to the last."""
        if not self.alone:
            with self._together("writing model and report", key="finished"):
                pass

    def _largest(self, number: int) -> int:
        import torch
        from torch import distributed

        found = torch.tensor(number)
        with self._connected():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    @contextmanager
    def _together(self, what: str, key: str = "") -> Iterator[None]:
        """Meet, then run the block on all ranks.

        A stop may be requested at any moment and reach the ranks one by one. Whether they meet or give up is decided in
        the store, by whoever writes the outcome first, so that no rank goes on to wait for one that has left.

        Raises:
            StopRequestedError: Some rank gave up the meeting, in preparation; or a stop came during the block.
        """
        stop = self._stop
        may_leave, self._meetings = stop is not None and stop.raises, self._meetings + 1
        if stop is not None:
            stop.raises = False
        try:
            with self._connected():
                self._meet(key or f"meeting {self._meetings}", what, may_leave=may_leave)
                yield
        finally:
            if stop is not None:
                stop.raises = may_leave
        if may_leave and stop is not None and stop.is_set():
            raise StopRequestedError

    def _meet(self, key: str, what: str, *, may_leave: bool) -> None:
        if self._store.add(f"{key}: here", 1) == self.size:
            self._store.compare_set(key, "", "met")
        end = time.monotonic() + PATIENCE
        while not (outcome := self._store.compare_set(key, "", "")):
            if may_leave and self._stop is not None and self._stop.is_set():
                self._store.compare_set(key, "", "stopped")
            elif time.monotonic() > end:
                raise UserError(
                    f"{what} took some process more than {PATIENCE / 3600:.0f} hours while this one waited",
                    "Look at what the others log; a smaller data set, or faster disks, take less.",
                )
            else:
                time.sleep(POLL)
        if outcome == b"stopped":
            raise StopRequestedError

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Run what needs the other ranks; where the connection is lost, its cause is found elsewhere.

        Raises:
            StopRequestedError: The others have left for a stop.
            UserError: A connection was lost for no reason that shows.
        """
        try:
            yield
        except RuntimeError as error:
            if self._stop is not None and self._stop.raises and self._stop.is_set():
                raise StopRequestedError from error
            time.sleep(CAUSE_COMES)  # the watch ends this process with the cause
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"the processes lost each other: {said}", "Look at what each of them logged last."
            ) from error


def places(shares: Sequence[np.ndarray]) -> tuple[int, np.ndarray]:
    """Return how many rows the largest share has, and where each row is among those that all ranks send, [N]."""
    most = max(map(len, shares))
    place = np.empty(sum(map(len, shares)), np.int64)
    for rank, rows in enumerate(shares):
        place[rows] = rank * most + np.arange(len(rows))
    return most, place


ALONE = Ranks()
"""The ranks of a run in one process."""
