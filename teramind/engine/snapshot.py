"""Snapshots: everything a run needs to go on, in one file that is whole or not there.

A snapshot is a zip of ``.npy`` members and one JSON, so that numpy alone can look into it and every member carries a
checksum. It is written under another name, synced and renamed; the one before it is kept. There are never more than
two on the disk, the one being written included.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teramind.engine.plan import Rectangle, Tile
from teramind.engine.store import SavedTile, Strip
from teramind.errors import InputError
from teramind.files import appears_whole, named_error
from teramind.ngff import Pending, PendingShard

logger = logging.getLogger(__name__)

FOLDER = ".teramind"  # in the output, gone when it is complete
FORMAT_VERSION = 1
Array = NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """A cut through a run with no unit in flight.

    Attributes:
        identity: what has to be the same for a run that goes on from here.
        completed: (windows, rows, columns) steps done of each tile.
        tiles: state that units will still read.
        pending: the output's unfinished shards.
        report: what the run has cost so far.
        nbytes: about what it takes on the disk.
    """

    identity: Mapping[str, Any]
    completed: NDArray[np.uint16]
    tiles: Iterator[SavedTile]
    pending: Pending
    report: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int = 0


def write_snapshot(output: Path, snapshot: Snapshot) -> Path:
    """Write the next snapshot of an output beside the last one, and forget those before.

    Raises:
        OSError: naming the file and what is missing where the disk is full; the last snapshot stands.
    """
    folder = output / FOLDER
    folder.mkdir(exist_ok=True)
    existing = _existing(output)
    for _, path in existing[:-1]:
        path.unlink()
    path = folder / f"snapshot-{existing[-1][0] + 1 if existing else 1:06d}.zip"
    with appears_whole(path) as partial:
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                _write_members(archive, snapshot)
        except OSError as error:
            if error.filename is not None:
                raise  # about the scratch file, which is read for it
            raise named_error(error, path, snapshot.nbytes) from None
    return path


def read_snapshot(output: Path) -> Snapshot:
    """The last whole snapshot of an output; that a torn one was passed over is said, and it is removed.

    Raises:
        InputError: where there is none, or it was written by a newer version.
    """
    torn: list[Path] = []
    for _, path in reversed(_existing(output)):
        try:
            snapshot = _read(path)
        except InputError:
            raise
        except Exception as error:  # a zip with one wrong byte makes its reader fail in a dozen ways
            logger.warning("the snapshot %s is damaged (%s); going back to the one before it", path, error)
            torn.append(path)
            continue
        for damaged in torn:  # it must not be the one that stays while the next is written
            damaged.unlink()
        return snapshot
    raise InputError(f"{output} has no whole snapshot to resume from; run again with --overwrite")


def snapshot_bytes(output: Path) -> int:
    """Bytes that the snapshots of an output take."""
    return sum(path.stat().st_size for _, path in _existing(output))


def remove_leftovers(output: Path) -> None:
    """Remove what snapshots that were cut off have left behind; the caller holds the output's lock."""
    finished = {path for _, path in _existing(output)}
    for entry in (output / FOLDER).glob("*"):
        if entry in finished:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def has_snapshots(output: Path) -> bool:
    """Whether any snapshot was ever finished."""
    return bool(_existing(output))


def remove_snapshots(output: Path) -> None:
    """Remove what only an unfinished output needs."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def _existing(output: Path) -> list[tuple[int, Path]]:
    paths = (output / FOLDER).glob("snapshot-*.zip")
    return sorted((int(path.stem.removeprefix("snapshot-")), path) for path in paths)


def _write_members(archive: zipfile.ZipFile, snapshot: Snapshot) -> None:
    _write_array(archive, "completed", snapshot.completed)
    tiles = []
    for number, saved in enumerate(snapshot.tiles):
        arrays = {} if saved.whole is None else {"whole": saved.whole}
        entry: dict[str, Any] = {
            "tile": list(saved.tile),
            "version": saved.version,
            "rectangle": list(saved.rectangle),
            "whole": saved.whole is not None,
            "rims": [],
        }
        for version, strips in saved.rims.items():
            arrays |= {f"rim-{version}-{index}": strip.values for index, strip in enumerate(strips)}
            entry["rims"].append([version, [list(strip.rectangle) for strip in strips]])
        for name, values in arrays.items():
            _write_array(archive, f"tile-{number}/{name}", values)
        tiles.append(entry)
    shards = []
    for number, shard in enumerate(snapshot.pending.shards):
        shards.append({"level": shard.level, "index": list(shard.index), "pixels": shard.pixels is not None})
        if shard.pixels is not None:
            _write_array(archive, f"shard-{number}/pixels", shard.pixels)
        _write_array(archive, f"shard-{number}/filled", shard.filled)
    for level, finished in enumerate(snapshot.pending.finished):
        _write_array(archive, f"finished-{level}", finished)
    about = {
        "version": FORMAT_VERSION,
        "identity": snapshot.identity,
        "tiles": tiles,
        "shards": shards,
        "levels": len(snapshot.pending.finished),
        "report": snapshot.report,
    }
    archive.writestr("snapshot.json", json.dumps(about))


def _read(path: Path) -> Snapshot:
    """Read a snapshot; its tiles are read one by one as they are asked for, all members checked before."""
    with zipfile.ZipFile(path) as archive:
        torn = archive.testzip()
        if torn:
            raise zipfile.BadZipFile(f"{torn} has another checksum")
        about = json.loads(archive.read("snapshot.json"))
        if about["version"] > FORMAT_VERSION:
            raise InputError(f"{path} was written by a newer teramind; update this one")
        shards = [
            PendingShard(
                entry["level"],
                tuple(entry["index"]),
                _read_array(archive, f"shard-{number}/pixels") if entry["pixels"] else None,
                _read_array(archive, f"shard-{number}/filled"),
            )
            for number, entry in enumerate(about["shards"])
        ]
        finished = [_read_array(archive, f"finished-{level}") for level in range(about["levels"])]
        completed = _read_array(archive, "completed")
    tiles = _read_tiles(path, about["tiles"])
    return Snapshot(about["identity"], completed, tiles, Pending(finished, shards), about["report"])


def _read_tiles(path: Path, entries: list[dict[str, Any]]) -> Iterator[SavedTile]:
    with zipfile.ZipFile(path) as archive:
        for number, entry in enumerate(entries):
            rims = {
                version: [
                    Strip(Rectangle(*rectangle), _read_array(archive, f"tile-{number}/rim-{version}-{index}"))
                    for index, rectangle in enumerate(rectangles)
                ]
                for version, rectangles in entry["rims"]
            }
            whole = _read_array(archive, f"tile-{number}/whole") if entry["whole"] else None
            yield SavedTile(Tile(*entry["tile"]), entry["version"], Rectangle(*entry["rectangle"]), whole, rims)


def _write_array(archive: zipfile.ZipFile, name: str, values: Array) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, values, allow_pickle=False)


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    return np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
