"""The maps' OME-Zarr image at bin resolution: written block by block, each once, so that a run can go on with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import zarr

from teramind.atlas.layout import ceil_div
from teramind.engine.plan import Rectangle
from teramind.engine.snapshot import FOLDER
from teramind.errors import InputError
from teramind.files import fsync, named_error
from teramind.interaction.attention import QUANTITIES
from teramind.interaction.journal import append_line, read_journal
from teramind.ngff import Channel, build_pyramid, describe_channels, image_channels, level_encoder, open_levels
from teramind.output.ome_zarr import create_output, mark_complete, output_attributes

KIND = "map of interactions"
BLOCK = 512
"""Side of a block, bins: a chunk of the image, which is written once and whole."""
SUM = "sum"
"""Name of the channels that are the sum of all genes."""
SYNC_THREADS = 16
HELD = 32 << 20
"""Bytes of a block that are kept in memory until it is whole; more of them are put on the disk."""

_JOURNAL = "blocks-done.txt"
_COLORS = {"lower": "00A0FF", "upper": "FF6A00", "window": "FF2D95", "expression": "7CFF3A"}
_BRIGHT = 99.5  # percentile of what is not 0 that is shown in full colour


class Block(NamedTuple):
    """A part of the maps: the image slices of a z-window, and a block of bins."""

    window: int
    row: int
    column: int


def channel_names(genes: Sequence[str]) -> list[str]:
    """Names of the maps' channels: for each quantity the sum of all genes, if there are several, and each gene."""
    of_each = [SUM, *genes] if len(genes) > 1 else list(genes)
    return [f"{quantity} {gene}" for quantity in QUANTITIES for gene in of_each]


class BlockMaps:
    """Maps of a block: taken tile by tile, given channel by channel, so that few of them are in memory at once.

    What is more than ``HELD`` waits in a file without a name, which is gone with the process.

    Args:
        folder: where such a file may be.
        genes: K, how many.
        shape: slices, and height and width in bins.
    """

    def __init__(self, folder: Path, genes: int, shape: tuple[int, int, int]) -> None:
        self._folder, self._genes, self._shape = folder, genes, shape
        self._tiles: list[tuple[slice, slice]] = []
        self._starts: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.SpooledTemporaryFile(HELD, dir=str(folder))  # noqa: SIM115 - closed by __exit__

    def put(self, rows: slice, columns: slice, maps: npt.NDArray[np.float32]) -> None:
        """Take the maps (4, K, Z, h, w) of a tile, given by its bins within the block.

        Raises:
            OSError: the disk is full.
        """
        self._tiles.append((rows, columns))
        try:
            self._starts.append(self._file.seek(0, 2))
            self._file.write(np.ascontiguousarray(maps).data)
        except OSError as error:
            raise named_error(error, self._folder, maps.nbytes) from error

    def channels(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """The channels that ``channel_names`` names: number and planes (Z, h, w), the sums after what they are of."""
        several = self._genes > 1
        for quantity in range(len(QUANTITIES)):
            first = quantity * (self._genes + several)
            total = np.zeros(self._shape, np.float32)
            for gene in range(self._genes):
                planes = self._gene(quantity, gene)
                total += planes
                yield first + several + gene, planes
            if several:
                yield first, total

    def _gene(self, quantity: int, gene: int) -> npt.NDArray[np.float32]:
        planes = np.empty(self._shape, np.float32)
        for start, (rows, columns) in zip(self._starts, self._tiles, strict=True):
            part = planes[:, rows, columns]
            self._file.seek(start + (quantity * self._genes + gene) * part.nbytes)
            part[:] = np.frombuffer(self._file.read(part.nbytes), np.float32).reshape(part.shape)
        return planes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


class MapStore:
    """Maps under construction: which blocks are done is kept beside them, and outlives the process.

    Attributes:
        path: the image's folder.
        done: the blocks that are on the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group = zarr.open_group(path, mode="r+")
        self._encoder = level_encoder(self._group)
        self._shape = open_levels(self._group)[0].shape
        self._journal = path / FOLDER / _JOURNAL
        self.done = {Block(*map(int, line.split())) for line in read_journal(self._journal)}

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        genes: Sequence[str],
        shape: Sequence[int],
        pixel_size: Sequence[float],
        translation: Sequence[float],
        parameters: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Self:
        """Create an empty image.

        Args:
            path: the folder.
            genes: names.
            shape: slices, and height and width in bins.
            pixel_size: of a bin, um, z, y, x.
            translation: where the centre of the first bin lies, um, z, y, x.
            parameters: what has to be the same for a run that goes on with it.
            overwrite: replace earlier maps.

        Raises:
            InputError: the folder exists and may not be replaced.
        """
        names = channel_names(genes)
        create_output(
            path, kind=KIND, parameters=parameters, overwrite=overwrite, shape=(len(names), *shape),
            pixel_size=pixel_size, translation=translation, channels=_channels(names),
            chunk=BLOCK, shard=BLOCK, dtype="float32",
        )  # fmt: skip
        return cls(path)

    @staticmethod
    def check_resumable(path: Path, parameters: Mapping[str, Any]) -> bool:
        """Whether an image that was begun is complete already.

        Raises:
            InputError: it was begun with other parameters, or is none of ours.
        """
        about = output_attributes(path, KIND)
        differing = [name for name, value in parameters.items() if about["parameters"].get(name) != value]
        if differing:
            raise InputError(f"{path} was begun with another value of {differing[0]}; use the same, or --overwrite")
        return bool(about["complete"])

    def places(self, row: int, column: int) -> Rectangle:
        """The bins of a block."""
        height, width = self._shape[2:]
        y, x = row * BLOCK, column * BLOCK
        return Rectangle(y, min(y + BLOCK, height), x, min(x + BLOCK, width))

    def blocks(self, windows: int) -> Iterator[Block]:
        """The blocks of so many windows, window by window and row by row."""
        rows, columns = (ceil_div(side, BLOCK) for side in self._shape[2:])
        return (Block(w, row, column) for w in range(windows) for row in range(rows) for column in range(columns))

    def gather(self, block: Block, genes: int, slices: int) -> BlockMaps:
        """An empty place for the maps of a block, so many slices of it."""
        return BlockMaps(self._journal.parent, genes, (slices, *self.places(block.row, block.column).shape))

    def write(self, block: Block, z: int, channels: Iterable[tuple[int, npt.NDArray[np.float32]]]) -> None:
        """Write a block whose first slice is ``z`` of the image, and note it as done.

        Args:
            block: which.
            z: its first slice.
            channels: of all channels their number and planes (Z, h, w), in any order.

        Raises:
            OSError: naming the file that could not be written.
        """
        written = [
            self._encoder.write((channel, z + depth, block.row, block.column), plane)
            for channel, planes in channels
            for depth, plane in enumerate(planes)
        ]
        files = [path for path in written if path is not None]
        folders = {folder for path in files for folder in path.parents if folder.is_relative_to(self.path)}
        with ThreadPoolExecutor(SYNC_THREADS) as pool:  # a disk takes many at once in the time of one
            list(pool.map(fsync, (*files, *sorted(folders))))
        self.done.add(block)
        append_line(self._journal, " ".join(map(str, block)))

    def finish(self) -> None:
        """Build the pyramid, choose the contrast that viewers show, and mark the image as complete."""
        build_pyramid(self._group)
        coarse = open_levels(self._group)[-1]
        names = [channel.name for channel in image_channels(self._group)]
        brightest = [_bright(np.asarray(coarse[number])) for number in range(len(names))]
        describe_channels(self._group, _channels(names, brightest))
        mark_complete(self.path, KIND)
        shutil.rmtree(self._journal.parent, ignore_errors=True)


def _channels(names: Sequence[str], brightest: Sequence[float] | None = None) -> list[Channel]:
    """How channels are shown: at first only the attention of the window, of all genes where they are several."""
    shown = next(name for name in names if name.startswith("window "))
    return [
        Channel(name, _COLORS[name.split(" ", 1)[0]], window_max=most, window_end=most, active=name == shown)
        for name, most in zip(names, brightest or [1.0] * len(names), strict=True)
    ]


def _bright(values: npt.NDArray[np.float32]) -> float:
    there = values[values > 0]
    return float(np.percentile(there, _BRIGHT)) if len(there) else 1.0
