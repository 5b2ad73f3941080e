"""A session on an output: lock it, begin or go on, run, and leave it complete or resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teramind.engine.denoise import Denoiser
from teramind.engine.inputs import GeneReader, Noise, StateReader
from teramind.engine.lock import OutputLock
from teramind.engine.plan import Rectangle, TilePlan
from teramind.engine.report import RunReport, read_report, report_from, write_report
from teramind.engine.run import Run, UnitReader
from teramind.engine.scratch import Scratch
from teramind.engine.sink import Placement
from teramind.engine.sizes import StateSizes
from teramind.engine.snapshot import (
    FOLDER,
    Snapshot,
    has_snapshots,
    read_snapshot,
    remove_leftovers,
    remove_snapshots,
    write_snapshot,
)
from teramind.engine.store import StateStore
from teramind.errors import InputError
from teramind.output.ome_zarr import OutputWriter, output_attributes
from teramind.output.preview import save_preview

logger = logging.getLogger(__name__)
PREVIEW_NAME = "preview.png"
WORTH_SAYING = 1.005  # extra work below this is not mentioned
LONGEST = 120  # characters of two values that fit into a sentence; a hash or a panel of genes does not


@dataclass(frozen=True)
class Setup:
    """What a run consists of, whatever the network.

    Attributes:
        plan: makes the plan; takes ``completed=`` of a run to go on with.
        create_output: makes the output from the identity, and whether it may replace another.
        denoisers: one for each worker.
        noise: the start noise.
        genes: makes the reader of counts from ``plan=`` and ``windows=``.
        place: where finished pixels go.
        planes: (S, Z) of a window.
        skip: (windows, rows, columns) tiles to leave empty.
        identity: JSON-able facts that decide about voxels and layout; a resumed run has to have the same.
        memory: bytes for state; half of what is free if None.
        scratch: folder for state beyond it; in the output if None.
        snapshot_seconds: time between snapshots; only at signals if None.
        progress: show a progress bar.
    """

    plan: Callable[..., TilePlan]
    create_output: Callable[[Mapping[str, Any], bool], OutputWriter]
    denoisers: Sequence[Denoiser]
    noise: Noise
    genes: Callable[..., GeneReader]
    place: Placement
    planes: tuple[int, int]
    skip: NDArray[np.bool_] | None
    identity: Mapping[str, Any]
    memory: int | str | None = None
    scratch: Path | None = None
    snapshot_seconds: float | None = 1200.0
    progress: bool = False

    def skipped_tiles(self, tile: int) -> Iterator[tuple[int, Rectangle]]:
        """Window and place of the tiles that are left empty."""
        if self.skip is not None:
            for window, row, column in np.argwhere(self.skip).tolist():
                yield window, Rectangle(row * tile, (row + 1) * tile, column * tile, (column + 1) * tile)


def carry_out(setup: Setup, output: Path, *, resume: bool, overwrite: bool) -> RunReport:
    """Run to the end, or to a point that ``resume`` goes on from.

    Raises:
        InputError: where the output may not be written, or cannot be gone on with; it is as before then.
        Interrupted, ComputationError, OSError: see ``Run.execute``.
    """
    if resume and overwrite:
        raise InputError(f"{output} can be gone on with or be replaced: choose either --resume or --overwrite")
    with OutputLock(output):
        if resume and (done := _already_complete(setup, output)):
            return done
        snapshot = _snapshot_to_resume(setup, output) if resume else None
        plan = setup.plan(completed=snapshot.completed if snapshot else None)
        sizes = StateSizes.of(plan, setup.planes[0] * setup.planes[1], setup.denoisers[0].state_dtype.itemsize)
        memory = sizes.memory_for_tiles(setup.memory)
        folder = setup.scratch or output / FOLDER
        sizes.check_disk(output, folder, memory)
        if plan.extra_work > WORTH_SAYING:
            logger.info("computing the region's context as well costs x%.2f", plan.extra_work)
        if snapshot:
            remove_leftovers(output)
            writer = OutputWriter.resume(output, snapshot.pending)
        else:
            writer = setup.create_output(setup.identity, overwrite or (resume and output.exists()))
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(folder, sizes.tile, len(setup.denoisers))
        try:
            report = _run(setup, plan, StateStore(memory, scratch, plan.patch // 2), writer, snapshot)
            write_report(output, report)
            _write_preview(output)
            writer.close()
        finally:
            writer.abort()  # after close() there is nothing left to end
            scratch.close()
        remove_snapshots(output)
        return report


def _write_preview(output: Path) -> None:
    """Put a picture of the image, all of whose pixels are written, into its folder."""
    partial = output / FOLDER / PREVIEW_NAME
    save_preview(partial, output)
    partial.replace(output / PREVIEW_NAME)


def _already_complete(setup: Setup, output: Path) -> RunReport | None:
    """The report of an output that is complete: a run may have been killed with nothing left to do but tidy up."""
    if not output.exists():
        return None
    about = output_attributes(output)
    if not about["complete"]:
        return None
    _check_identity(setup, about["parameters"], output)
    logger.info("%s is complete already", output)
    remove_snapshots(output)
    return read_report(output)


def _run(setup: Setup, plan: TilePlan, store: StateStore, writer: OutputWriter, snapshot: Snapshot | None) -> RunReport:
    """Put the parts together, in the state that the snapshot has or a new run begins with, and run."""
    place, depth = setup.place, setup.planes[1]
    if snapshot:
        for saved in snapshot.tiles:
            store.restore(saved)
    else:
        for window, rectangle in setup.skipped_tiles(plan.tile):
            place.skip(writer, window, rectangle, depth)
        write_snapshot(writer.path, Snapshot(setup.identity, plan.completed(), iter(()), writer.pending()))
    states = StateReader(plan, store, place.windows, setup.noise, setup.planes, setup.denoisers[0].state_dtype)
    reader = UnitReader(states, setup.genes(plan=plan, windows=place.windows))
    report = Run(
        plan, store, reader, writer, place, setup.denoisers, setup.identity, setup.snapshot_seconds, setup.progress,
        report_from(snapshot.report) if snapshot else None,
    ).execute()  # fmt: skip
    if setup.skip is not None:
        report.skipped_tiles = int(setup.skip.sum())
        empty = sum(place.visible_voxels(*skipped, depth) for skipped in setup.skipped_tiles(plan.tile))
        report.filled_fraction = 1 - empty / place.voxels
    return report


def _snapshot_to_resume(setup: Setup, output: Path) -> Snapshot | None:
    """The snapshot to go on from; None where nothing has been done yet.

    Raises:
        InputError: naming what differs from the run to be resumed, or that there is none.
    """
    if not output.exists():
        logger.info("%s is not there yet: nothing to resume, starting anew", output)
        return None
    if not has_snapshots(output):
        return None  # killed before the first one, so before any voxel
    snapshot = read_snapshot(output)
    _check_identity(setup, snapshot.identity, output)
    return snapshot


def _check_identity(setup: Setup, begun: Mapping[str, Any], output: Path) -> None:
    """An output is gone on with as it was begun."""
    for name, mine in setup.identity.items():
        theirs = begun.get(name)
        if theirs != mine:
            how = f"{name} = {theirs!r} and cannot go on with {mine!r}"
            if len(how) > LONGEST:
                how = f"another value of {name} and cannot go on with this one"
            raise InputError(f"{output} was begun with {how}; use the same, or --overwrite")
