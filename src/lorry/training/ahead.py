"""The next batch, made by a thread while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from lorry.training.memory import is_out_of_memory

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes item after item, one of them ahead."""

    def __init__(self, make: Callable[[int], T]) -> None:
        """Remember how an item is made of its number."""
        self._make = make
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[T]] | None = None

    def take(self, number: int, *, more: bool) -> T:
        """Return an item, and begin the one after it.

        Args:
            number: Of the item.
            more: Whether the next one may be made now.
        """
        waiting, self._next = self._next, None
        future = waiting[1] if waiting is not None and waiting[0] == number else self._submit(number)
        try:
            item = future.result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            item = self._make(number)  # the step before had taken all memory
        if more:
            self._next = number + 1, self._submit(number + 1)
        return item

    def _submit(self, number: int) -> Future[T]:
        return self._thread.submit(self._make, number)

    def __enter__(self) -> Ahead[T]:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; what it has begun is not needed."""
        self._thread.shutdown(wait=True, cancel_futures=True)
