"""How much memory and disk a run's state takes."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from teramind.engine.plan import TilePlan
from teramind.engine.snapshot import snapshot_bytes
from teramind.errors import InputError

SHARD = 4096  # px, the side of the output's shards
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class StateSizes:
    """Bytes of state.

    Attributes:
        tile: of one whole tile.
        rim: of the rim of one version of a tile.
        line: tiles along the shorter side of what is computed.
        band: tiles that are alive at once, at most.
        shards: of finished pixels in shards that are not complete, at most.
    """

    tile: int
    rim: int
    line: int
    band: int
    shards: int

    @classmethod
    def of(cls, plan: TilePlan, planes: int, itemsize: int) -> StateSizes:
        """The sizes of a plan with ``planes`` = S * Z planes of ``itemsize`` bytes a pixel."""
        y0, y1, x0, x1 = plan.active_rectangle(0)
        rows, columns = (-(-end // plan.tile) - start // plan.tile for start, end in ((y0, y1), (x0, x1)))
        line = min(rows, columns)
        tile = planes * plan.tile**2 * itemsize
        rim = int(tile * min(1.0, 2 * plan.patch / plan.tile))
        # Tiles finish line by line along the longer side, over two rows of shards at most; the pyramid doubles that.
        height, width = plan.output.shape
        shards = planes * min(height, width) * min(4 * SHARD, 2 * max(height, width))
        return cls(tile, rim, line, min(line * (plan.steps + 1), rows * columns), shards)

    @property
    def snapshot(self) -> int:
        """Bytes of a snapshot, at most: each live tile, the rim of its version before, and unfinished shards."""
        return self.band * (self.tile + self.rim) + self.shards

    def scratch(self, memory: int) -> int:
        """Bytes of the scratch file, at most, with ``memory`` for whole tiles."""
        return max(0, self.band * self.tile - memory)

    def memory_for_tiles(self, asked: int | str | None) -> int:
        """Bytes for whole tiles: what was asked for, or half of what is free, without what the rims may take.

        Raises:
            InputError: if that is less than one line of tiles, saying how much is needed.
        """
        rims = self.band * 2 * self.rim
        needed = rims + self.line * self.tile
        memory = parse_bytes(asked) if asked is not None else available_memory() // 2
        if memory < needed:
            raise InputError(
                f"{memory:,} bytes of memory for state do not hold one line of tiles and the rims of the others; "
                f"{needed:,} are needed: give --memory {-(-needed // 2**20)}M, or a smaller --tile"
            )
        return memory - rims

    def check_disk(self, output: Path, scratch: Path, memory: int) -> None:
        """There has to be room for two snapshots in the output, and for the scratch file in its folder.

        Args:
            output: the output's folder, or where it will be; snapshots that are there will make room for others.
            scratch: the scratch file's folder, or where it will be.
            memory: bytes for whole tiles; what is beyond goes to the scratch file.

        Raises:
            InputError: saying how much is missing.
        """
        snapshots, spilled = 2 * self.snapshot - snapshot_bytes(output), self.scratch(memory)
        parts = [(_existing(output), snapshots, "two snapshots"), (_existing(scratch), spilled, "the scratch file")]
        if parts[0][0].stat().st_dev == parts[1][0].stat().st_dev:
            parts = [(parts[0][0], snapshots + spilled, "two snapshots and the scratch file")]
        for folder, needed, what in parts:
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise InputError(
                    f"{folder} has {free:,} bytes left and {what} of this run take up to {needed:,}: "
                    f"make room for {needed - free:,} more, or generate a smaller region"
                )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def parse_bytes(value: int | str) -> int:
    """``8G``, ``512M``, ``1.5T`` or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if not match:
        raise InputError(f"{value!r} is no amount of memory; write e.g. 8G, 512M or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
