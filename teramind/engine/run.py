"""A run from start to end: workers, progress, snapshots, signals, report."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teramind.engine.denoise import Denoiser
from teramind.engine.inputs import GeneReader, StateReader
from teramind.engine.pipeline import Worker
from teramind.engine.plan import Tile, TilePlan, Unit
from teramind.engine.report import RunReport, device_peaks
from teramind.engine.sink import Placement, Sink
from teramind.engine.snapshot import Snapshot, write_snapshot
from teramind.engine.store import StateStore
from teramind.errors import Interrupted
from teramind.output.ome_zarr import OutputWriter

logger = logging.getLogger(__name__)
READ_AHEAD = 4  # units whose spilled state is read before they are claimed
TICK = 0.2  # seconds between looks at clock, signals and progress


class UnitReader:
    """State and genes of a unit, and the spilled state of those after it."""

    def __init__(self, states: StateReader, genes: GeneReader) -> None:
        self.states, self.genes = states, genes

    def read(self, unit: Unit) -> tuple[NDArray[np.floating], NDArray[np.int32]]:
        """See ``pipeline.Reader``."""
        return self.states.read(unit), self.genes.read(unit)

    def prefetch(self) -> None:
        """See ``pipeline.Reader``."""
        if self.states.store.spilled_blocks:
            for unit in self.states.plan.peek(READ_AHEAD):
                self.states.store.prefetch(Tile(*unit[:3]), unit.step)


@dataclass
class Run:
    """Everything that a run consists of.

    Attributes:
        plan: what is computed when.
        store: the tiles' state.
        reader: what units read.
        writer: the output.
        place: where finished pixels go.
        denoisers: one for each worker.
        identity: what a resumed run has to share.
        snapshot_seconds: time between snapshots; None for none.
        show_progress: draw a progress bar.
        earlier: what the sessions before this one have cost, if it goes on with a run.
    """

    plan: TilePlan
    store: StateStore
    reader: UnitReader
    writer: OutputWriter
    place: Placement
    denoisers: Sequence[Denoiser]
    identity: Mapping[str, Any]
    snapshot_seconds: float | None = 1200.0
    show_progress: bool = True
    earlier: RunReport | None = None

    def execute(self) -> RunReport:
        """Run to the end; what it cost.

        Raises:
            Interrupted: after SIGTERM or SIGINT, with a snapshot taken.
            ComputationError: for values that are not numbers or a device that failed, with a snapshot taken.
            OSError: where output, scratch or snapshot cannot be written; the last snapshot stands.
        """
        self._start = perf_counter()
        self._snapshots, self._snapshot_seconds = 0, 0.0
        stop = threading.Event()
        sink = Sink(self.plan, self.store, self.writer, self.place)
        self.workers = [
            Worker(self.plan, self.reader, denoiser, sink, f"worker-{number}", stop)
            for number, denoiser in enumerate(self.denoisers)
        ]
        with self._progress(sink), stop_signals() as received:
            for worker in self.workers:
                worker.start()
            try:
                self._watch(received)
            finally:
                stop.set()
                self.plan.close()
                for worker in self.workers:
                    worker.join()
        self._raise_failure()
        if received and self.plan.remaining:
            self._raise_interrupted(received[0])
        self.writer.flush()
        return self._report()

    def _watch(self, received: list[int]) -> None:
        """Wait for the workers' end, taking snapshots when their time has come or a signal asks for it."""
        last = perf_counter()
        tick = min(TICK, self.snapshot_seconds or TICK)
        while working := [worker for worker in self.workers if worker.is_alive()]:
            if received:
                logger.warning("stopping with a snapshot; once more stops at once")
                for worker in self.workers:
                    worker.hand_back()
                self._take_snapshot()
                return
            if self.snapshot_seconds is not None and perf_counter() - last >= self.snapshot_seconds:
                self._take_snapshot()
                self.plan.resume()
                last = perf_counter()
            working[0].wait(tick)

    def _take_snapshot(self) -> None:
        """Pause the plan, let what is in flight end, and save; the plan stays paused."""
        while not self.plan.pause(TICK):
            if any(worker.errors for worker in self.workers):
                return
        for worker in self.workers:
            worker.settle()
        self._save()

    def _save(self) -> None:
        start = perf_counter()
        self._snapshots += 1
        self.writer.flush()
        state, shards = self.store.kept_bytes, self.writer.voxels.buffered_bytes
        snapshot = Snapshot(
            self.identity, self.plan.completed(), self.store.saved(), self.writer.pending(), asdict(self._report()),
            state + shards,
        )  # fmt: skip
        write_snapshot(self.writer.path, snapshot)
        self._snapshot_seconds += perf_counter() - start

    def _raise_failure(self) -> None:
        """Raise the first failure of a worker, after saving what can be saved."""
        errors = [error for worker in self.workers for error in worker.errors]
        if not errors:
            return
        if not any(worker.failed_storing for worker in self.workers):
            for worker in self.workers:
                self.plan.release(worker.unfinished())
            try:
                self._save()
            except OSError as error:
                logger.warning("no snapshot could be taken (%s); the one before stands", error)
        raise errors[0]

    def _raise_interrupted(self, number: int) -> None:
        done = 1 - self.plan.remaining / max(1, self.plan.remaining + int(self.plan.completed().sum()))
        name = signal.Signals(number).name
        raise Interrupted(f"stopped by {name} at {done:.0%} of the steps; --resume goes on from there", number)

    @contextmanager
    def _progress(self, sink: Sink) -> Iterator[None]:
        """A bar of voxels; each step of a voxel counts for its part of it."""
        total, done = self.plan.pixels()
        voxels = int(np.prod(self.reader.states.planes)) / self.plan.steps  # of the output, for a pixel of a step
        hidden = not (self.show_progress and sys.stderr.isatty())
        with tqdm(
            total=round(total * voxels), initial=round(done * voxels), unit="voxel", unit_scale=True, disable=hidden
        ) as bar:
            lock = threading.Lock()

            def advance(values: int) -> None:
                with lock:
                    bar.update(values / self.plan.steps)

            sink.progress = advance
            yield

    def _report(self) -> RunReport:
        """What the run has cost so far."""
        store, states, times = self.store, self.reader.states, [worker.times for worker in self.workers]
        report = RunReport(
            seconds=perf_counter() - self._start,
            voxels=self.place.voxels * states.planes[0],
            units=sum(one.units for one in times),
            computing=sum(one.computing for one in times),
            waiting_for_input=sum(one.waiting_for_input for one in times),
            waiting_for_output=sum(one.waiting_for_output for one in times),
            snapshot_seconds=self._snapshot_seconds,
            snapshots=self._snapshots,
            spilled_bytes=store.scratch.written_bytes,
            scratch_read_bytes=store.scratch.read_bytes,
            output_bytes=self.writer.voxels.written_bytes,
            halo_bytes_needed=states.halo_bytes_needed,
            halo_bytes_read=states.halo_bytes_read,
            peak_live_tiles=self.plan.peak_live_tiles,
            peak_state_bytes=store.peak_resident_bytes,
            peak_output_buffer_bytes=self.writer.voxels.peak_buffered_bytes,
            peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_bytes=device_peaks(self.denoisers),
            extra_work=self.plan.extra_work,
        )
        return report.following(self.earlier) if self.earlier else report


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list; a second one ends the process at once. In another thread: nothing."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)  # the last snapshot stands
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
