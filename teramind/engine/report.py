"""What a run did and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from teramind.engine.denoise import Denoiser
from teramind.engine.snapshot import FOLDER
from teramind.files import fsync, named_error

REPORT_NAME = "teramind-report.json"


@dataclass
class RunReport:
    """What a run did and what it cost, over all its sessions.

    Seconds of work and of waiting are summed over workers. Waiting for input includes that for a snapshot's end.

    Attributes:
        sessions: how often it was begun or gone on with; what a killed session did after its last snapshot is lost,
            here as well.
        seconds: wall time.
        voxels: of the output.
        units: (tile, step) units computed.
        computing: seconds on the device.
        waiting_for_input: seconds in which it waited for state or counts.
        waiting_for_output: seconds in which it waited for its results to be taken.
        snapshot_seconds: seconds in which the state was saved.
        snapshots: how many were taken.
        spilled_bytes: written to the scratch file.
        scratch_read_bytes: read from it.
        output_bytes: of finished pixels, all pyramid levels, before compression.
        halo_bytes_needed: of neighbours' state.
        halo_bytes_read: for them.
        peak_live_tiles: most tiles with state at once.
        peak_state_bytes: most state in memory.
        peak_output_buffer_bytes: most pixels in shards that were not complete.
        peak_host_bytes: most memory of the process.
        peak_device_bytes: the same of each GPU.
        extra_work: pixels computed for one of the output.
        skipped_tiles: left empty for want of transcripts.
        filled_fraction: of the output's voxels, those in tiles that were not skipped.
    """

    sessions: int = 1
    seconds: float = 0.0
    voxels: int = 0
    units: int = 0
    computing: float = 0.0
    waiting_for_input: float = 0.0
    waiting_for_output: float = 0.0
    snapshot_seconds: float = 0.0
    snapshots: int = 0
    spilled_bytes: int = 0
    scratch_read_bytes: int = 0
    output_bytes: int = 0
    halo_bytes_needed: int = 0
    halo_bytes_read: int = 0
    peak_live_tiles: int = 0
    peak_state_bytes: int = 0
    peak_output_buffer_bytes: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: dict[str, int] = field(default_factory=dict)
    extra_work: float = 1.0
    skipped_tiles: int = 0
    filled_fraction: float = 1.0

    @property
    def halo_read_amplification(self) -> float:
        """Bytes read for halos over bytes needed."""
        return self.halo_bytes_read / self.halo_bytes_needed if self.halo_bytes_needed else 1.0

    @property
    def waiting(self) -> float:
        """Part of the workers' time in which they waited."""
        waited = self.waiting_for_input + self.waiting_for_output
        return waited / (waited + self.computing) if waited else 0.0

    def following(self, earlier: RunReport) -> RunReport:
        """This session's figures and those of the sessions before it, as one run's."""
        devices = {*self.peak_device_bytes, *earlier.peak_device_bytes}
        peaks = {one: max(report.peak_device_bytes.get(one, 0) for report in (self, earlier)) for one in devices}
        both = {name: getattr(self, name) + getattr(earlier, name) for name in SUMMED}
        both |= {name: max(getattr(self, name), getattr(earlier, name)) for name in PEAKS}
        return replace(self, **both, peak_device_bytes=peaks)

    def summary(self) -> str:
        """Lines for a person."""
        busy = self.computing + self.waiting_for_input + self.waiting_for_output or 1.0
        done = (
            f"{self.voxels:,} voxels in {self.seconds:.1f} s ({self.voxels / max(self.seconds, 1e-9):,.0f} voxels/s); "
            f"computing {self.computing / busy:.1%}, waiting for input {self.waiting_for_input / busy:.1%}, "
            f"for output {self.waiting_for_output / busy:.1%}"
        )
        cost = (
            f"{self.peak_live_tiles} tiles alive at most, {self.peak_state_bytes / 2**20:.0f} MiB of state in memory, "
            f"{self.spilled_bytes / 2**20:.0f} MiB spilled, {self.scratch_read_bytes / 2**20:.0f} MiB read back, "
            f"{self.output_bytes / 2**20:.0f} MiB written, halos read x{self.halo_read_amplification:.2f}, "
            f"{self.peak_host_bytes / 2**20:.0f} MiB of memory in all"
        )
        lines = [done, cost]
        lines += [f"{peak / 2**20:.0f} MiB on {device}" for device, peak in sorted(self.peak_device_bytes.items())]
        if self.skipped_tiles:
            lines.append(f"{self.skipped_tiles} tiles skipped, {self.filled_fraction:.1%} of the voxels filled")
        return "\n".join(lines)


SUMMED = (
    "sessions", "seconds", "units", "computing", "waiting_for_input", "waiting_for_output", "snapshot_seconds",
    "snapshots", "spilled_bytes", "scratch_read_bytes", "output_bytes", "halo_bytes_needed", "halo_bytes_read",
)  # fmt: skip
PEAKS = ("peak_live_tiles", "peak_state_bytes", "peak_output_buffer_bytes", "peak_host_bytes")


def write_report(output: Path, report: RunReport) -> None:
    """Write a report for machines into the output, whose folder for unfinished things is there.

    Raises:
        OSError: naming the file, where the disk is full.
    """
    path, partial = output / REPORT_NAME, output / FOLDER / REPORT_NAME
    derived = {"halo_read_amplification": report.halo_read_amplification, "waiting": report.waiting}
    try:
        partial.write_text(json.dumps(asdict(report) | derived, indent=1) + "\n", encoding="utf-8")
        fsync(partial)
    except OSError as error:
        raise named_error(error, path) from None
    partial.replace(path)


def read_report(output: Path) -> RunReport:
    """The report that ``write_report`` wrote."""
    return report_from(json.loads((output / REPORT_NAME).read_text(encoding="utf-8")))


def report_from(values: Mapping[str, Any]) -> RunReport:
    """A report from its fields as JSON has them; what is derived from them is left out."""
    return RunReport(**{field.name: values[field.name] for field in fields(RunReport) if field.name in values})


def device_peaks(denoisers: Sequence[Denoiser]) -> dict[str, int]:
    """Largest memory taken on each GPU."""
    devices = {
        device for denoiser in denoisers if (device := getattr(denoiser, "device", None)) and device.type == "cuda"
    }
    return {str(device): torch.cuda.max_memory_allocated(device) for device in devices}
