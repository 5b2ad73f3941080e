"""What a run did and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from teramind.engine.denoise import Denoiser

REPORT_NAME = "teramind-report.json"


@dataclass
class RunReport:
    """What a run did and what it cost; seconds are summed over workers where there are several."""

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
    halo_read_amplification: float = 1.0
    peak_live_tiles: int = 0
    peak_state_bytes: int = 0
    peak_output_buffer_bytes: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: dict[str, int] = field(default_factory=dict)
    extra_work: float = 1.0
    skipped_tiles: int = 0
    filled_fraction: float = 1.0

    def summary(self) -> str:
        """Lines for a person."""
        busy = self.computing + self.waiting_for_input + self.waiting_for_output or 1.0
        return (
            f"{self.voxels:,} voxels in {self.seconds:.1f} s ({self.voxels / max(self.seconds, 1e-9):,.0f} voxels/s); "
            f"computing {self.computing / busy:.1%}, waiting for input {self.waiting_for_input / busy:.1%}, "
            f"for output {self.waiting_for_output / busy:.1%}\n"
            f"{self.peak_live_tiles} tiles alive at most, {self.peak_state_bytes / 2**20:.0f} MiB of state in memory, "
            f"{self.spilled_bytes / 2**20:.0f} MiB spilled, {self.peak_host_bytes / 2**20:.0f} MiB of memory in all"
        )


def write_report(output: Path, report: RunReport) -> None:
    """Write a report for machines into the output."""
    (output / REPORT_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def read_report(output: Path) -> RunReport:
    """The report that ``write_report`` wrote."""
    return RunReport(**json.loads((output / REPORT_NAME).read_text(encoding="utf-8")))


def device_peaks(denoisers: Sequence[Denoiser]) -> dict[str, int]:
    """Largest memory taken on each GPU."""
    import torch

    devices = {
        device for denoiser in denoisers if (device := getattr(denoiser, "device", None)) and device.type == "cuda"
    }
    return {str(device): torch.cuda.max_memory_allocated(device) for device in devices}
