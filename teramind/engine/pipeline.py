"""Workers: each reads ahead, computes and puts away in three threads, so that its device does not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from teramind.engine.denoise import Denoiser
from teramind.engine.plan import Completion, TilePlan, Unit

T = TypeVar("T")
AHEAD = 2  # units that wait between two threads of a worker


class Reader(Protocol):
    """Gets what a unit needs."""

    def read(self, unit: Unit) -> tuple[NDArray[np.floating], NDArray[np.int32]]:
        """State with rim (S, Z, h+P, w+P), and counts (3, n): bin, gene, count."""

    def prefetch(self) -> None:
        """Start on what will be needed soon."""


class Sink(Protocol):
    """Takes what a unit has made."""

    def put(self, unit: Unit, values: NDArray[Any]) -> None:
        """State, or uint8 pixels of the last step, (S, Z, h, w)."""

    def completed(self, completion: Completion) -> None:
        """What a completion lets go of."""


class _Task(NamedTuple):
    unit: Unit
    sent: Any  # on its way to the device


class _Result(NamedTuple):
    unit: Unit
    values: Any  # on the device


@dataclass
class WorkerTimes:
    """Seconds of one worker's life."""

    computing: float = 0.0
    waiting_for_input: float = 0.0
    waiting_for_output: float = 0.0
    reading: float = 0.0
    storing: float = 0.0
    units: int = 0


class Stopped(Exception):  # noqa: N818 - a signal between threads, not an error
    """Another thread of the run has failed or ended it."""


class Worker:
    """Runs units of a plan on one device until there are none.

    A failure in any of its threads closes the plan, so that all workers end, and is kept in ``errors``.

    Attributes:
        times: how it spent its time.
        errors: what ended it.
        failed_storing: whether the state may be between two versions, and cannot be saved.
    """

    def __init__(
        self, plan: TilePlan, reader: Reader, denoiser: Denoiser, sink: Sink, name: str, stop: threading.Event
    ) -> None:
        self.plan, self.reader, self.denoiser, self.sink = plan, reader, denoiser, sink
        self.times = WorkerTimes()
        self.errors: list[BaseException] = []
        self.failed_storing = False
        self._claimed: set[Unit] = set()
        self._stop = stop
        self._hands_back = threading.Event()
        self._storing = threading.Lock()  # held from the first change of the state to the last that a unit makes
        self._inputs: queue.Queue[_Task | None] = queue.Queue(AHEAD)
        self._outputs: queue.Queue[_Result | None] = queue.Queue(AHEAD)
        stages = (("read", self._read), ("compute", self._compute), ("store", self._store))
        self._threads = [
            threading.Thread(target=self._guard, args=(stage,), name=f"{name}-{title}", daemon=True)
            for title, stage in stages
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        """Whether any of its threads runs."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Wait for its end, but not longer."""
        next(filter(threading.Thread.is_alive, self._threads), self._threads[0]).join(seconds)

    def hand_back(self) -> None:
        """Give units back that are waiting to be computed; with the plan paused, only the one at work is in flight."""
        self._hands_back.set()

    def settle(self) -> None:
        """Wait until the state is that of the units completed: the plan counts a unit just before its last changes."""
        with self._storing:
            pass

    def unfinished(self) -> list[Unit]:
        """Units that it has claimed and not completed, once it has ended."""
        return sorted(self._claimed)

    def join(self) -> None:
        """Wait for its end."""
        for thread in self._threads:
            thread.join()

    def _guard(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
            pass
        except BaseException as error:  # whatever ends a thread has to end the run, and to be told by its caller
            self.errors.append(error)
            self._stop.set()
            self.plan.close()

    def _read(self) -> None:
        while units := self.plan.claim():
            self._claimed.update(units)
            for unit in units:
                start = perf_counter()
                state, genes = self.reader.read(unit)
                sent = self.denoiser.send(state[None], genes)
                self.reader.prefetch()
                self.times.reading += perf_counter() - start
                self._put(self._inputs, _Task(unit, sent))
        self._put(self._inputs, None)

    def _compute(self) -> None:
        while True:
            start = perf_counter()
            task = self._get(self._inputs)
            waited = perf_counter()
            if task is None:
                break
            if self._hands_back.is_set():
                self._claimed.discard(task.unit)
                self.plan.release([task.unit])
                continue
            name = f"window {task.unit.window}, tile ({task.unit.row}, {task.unit.column})"
            values = self.denoiser(task.sent, task.unit.step, name)
            done = perf_counter()
            self._put(self._outputs, _Result(task.unit, values))
            self.times.waiting_for_input += waited - start
            self.times.computing += done - waited
            self.times.waiting_for_output += perf_counter() - done
            self.times.units += 1
        self._put(self._outputs, None)

    def _store(self) -> None:
        while (result := self._get(self._outputs)) is not None:
            start = perf_counter()
            (values,) = self.denoiser.fetch(result.values)
            with self._storing:
                self.failed_storing = True  # unless what follows comes about as a whole
                self.sink.put(result.unit, values)
                self.sink.completed(self.plan.complete([result.unit]))
                self._claimed.discard(result.unit)
                self.failed_storing = False
            self.times.storing += perf_counter() - start

    def _put(self, target: queue.Queue[T], item: T) -> None:
        while not self._stop.is_set():
            try:
                return target.put(item, timeout=0.5)
            except queue.Full:
                continue
        raise Stopped

    def _get(self, source: queue.Queue[T]) -> T:
        while not self._stop.is_set():
            try:
                return source.get(timeout=0.5)
            except queue.Empty:
                continue
        raise Stopped
