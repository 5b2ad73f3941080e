"""Batches made in background threads, in order and ahead of the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from teramind.engine.transfer import Staged, Transfers
from teramind.train.crops import Crops, Example, stack

AHEAD = 2  # batches that wait, beside those that threads work on


class Loader:
    """An endless iterator over batches on a device.

    Which batch comes when does not depend on the threads. To be used with ``with``, which ends them.

    Args:
        make: batch number -> the batch.
        device: where batches go.
        first: number of the first batch.
        workers: threads.

    Attributes:
        waited: seconds in which the training waited for a batch.
    """

    def __init__(self, make: Callable[[int], Example], device: torch.device, first: int, workers: int) -> None:
        self._make, self._transfers = make, Transfers(device)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
        self._numbers = iter(range(first, 2**63))
        self._coming: deque[Future[Staged]] = deque()
        self._ahead = workers + AHEAD
        self.waited = 0.0

    def __enter__(self) -> Self:
        for _ in range(self._ahead):
            self._order()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        start = perf_counter()
        staged = self._coming.popleft().result()
        self.waited += perf_counter() - start
        self._order()
        return self._transfers.arrived(staged)

    def _order(self) -> None:
        self._coming.append(self._pool.submit(self._load, next(self._numbers)))

    def _load(self, number: int) -> Staged:
        return self._transfers.send(*self._make(number))


def share(crops: Crops, batch: int, parts: int, first_part: int, own_parts: int) -> Callable[[int], Example]:
    """The batches of a process: a step's ``batch`` crops are cut into ``parts``, and ``own_parts`` of them are its own.

    Timesteps are stratified over the step: crop j of B has one from the j-th of B equally likely parts of 0..999.
    """
    size = batch // parts

    def make(number: int) -> Example:
        step, part = divmod(number, own_parts)
        crops_of_step = range((first_part + part) * size, (first_part + part + 1) * size)
        return stack([crops.example(step * batch + j, j, batch) for j in crops_of_step])

    return make
