"""The generator's output: an OME-Zarr 0.5 image that says how it was made and whether it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from teramind import __version__
from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.ngff import Channel, MultiscaleWriter, Pending, create_multiscale
from teramind.ngff.colors import stain_colors

KIND = "generated image"


class OutputWriter:
    """An output folder under construction.

    Its attributes hold, under ``teramind``: ``kind``, ``software``, ``parameters`` of the run, and ``complete``, which
    is false until `close` has succeeded.

    Attributes:
        path: the folder.
        voxels: the writer below, with its figures of memory and bytes written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shape: Sequence[int],
        pixel_size: Sequence[float],
        translation: Sequence[float],
        stains: Sequence[str],
        parameters: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        """Create an output folder.

        Args:
            path: the folder, which appears with all its metadata or not at all.
            shape: (C, Z, Y, X).
            pixel_size: micrometres along z, y, x.
            translation: where the centre of voxel (0, 0, 0) lies, in micrometres, z, y, x.
            stains: names of the C channels.
            parameters: of the run, as JSON can hold them.
            overwrite: replace an earlier output of teramind's.

        Raises:
            InputError: if the path exists and may not be replaced, or the arguments do not fit together.
        """
        self.path = Path(path)
        colors = stain_colors(stains)
        create_output(
            self.path,
            kind=KIND,
            parameters=parameters,
            overwrite=overwrite,
            shape=shape,
            pixel_size=pixel_size,
            translation=translation,
            channels=[Channel(stain, color) for stain, color in zip(stains, colors, strict=True)],
        )
        self.voxels = MultiscaleWriter(self.path)

    @classmethod
    def resume(cls, path: str | Path, pending: Pending) -> Self:
        """Go on with an unfinished output from a moment at which `pending` was called.

        Raises:
            InputError: if the folder is not an unfinished output, or the state is of another one.
        """
        if output_attributes(path)["complete"]:
            raise InputError(f"{path} is complete; there is nothing to resume")
        writer = cls.__new__(cls)
        writer.path = Path(path)
        writer.voxels = MultiscaleWriter.resume(writer.path, pending)
        return writer

    def write_block(self, z: int, y: int, x: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Take finished voxels (C, Z, h, w); see `MultiscaleWriter.write_block`."""
        self.voxels.write_block(z, y, x, pixels)

    def skip(self, z: int, y: int, x: int, shape: Sequence[int]) -> None:
        """Leave a block (Z, h, w) of all channels black; see `MultiscaleWriter.skip`."""
        self.voxels.skip(z, y, x, shape)

    def flush(self) -> None:
        """Wait until every complete shard is on the disk."""
        self.voxels.flush()

    def pending(self) -> Pending:
        """Flush, and return the state of the unfinished shards; see `MultiscaleWriter.pending`."""
        return self.voxels.pending()

    def close(self) -> None:
        """Finish the image and mark it complete.

        Raises:
            RuntimeError: if voxels are missing.
            OSError: if a shard could not be written.
        """
        self.voxels.close()
        mark_complete(self.path, KIND)

    def abort(self) -> None:
        """End the writing threads and leave the image unfinished."""
        self.voxels.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()


def create_output(
    path: Path, *, kind: str, parameters: Mapping[str, Any], overwrite: bool, shape: Sequence[int], **image: Any
) -> None:
    """Create an empty image that says what it is; it appears with all its metadata or not at all.

    Args:
        path: the folder.
        kind: what the image is, for instance "generated image".
        parameters: of the run, as JSON can hold them.
        overwrite: replace an earlier output of this kind.
        shape: (C, Z, Y, X).
        **image: as for ``teramind.ngff.create_multiscale``.

    Raises:
        InputError: if the path exists and may not be replaced, or the arguments do not fit together.
    """
    if path.exists():
        if not overwrite:
            raise InputError(f"{path} exists already; resume it, overwrite it, or choose another name")
        output_attributes(path, kind)  # refuses what is not ours before anything is created
    about = {"kind": kind, "complete": False, "software": f"teramind {__version__}", "parameters": parameters}
    name = path.name.removesuffix(".zarr").removesuffix(".ome")
    with appears_whole(path) as folder:
        create_multiscale(folder, shape=shape, name=name, attributes={"teramind": _as_json(about)}, **image)
        _remove_output(path)


def mark_complete(path: Path, kind: str) -> None:
    """Say that an output is whole."""
    group = zarr.open_group(path, mode="r+")
    group.update_attributes({"teramind": {**output_attributes(path, kind), "complete": True}})


def output_attributes(path: str | Path, kind: str = KIND) -> dict[str, Any]:
    """Return what an output says about itself: ``kind``, ``software``, ``parameters``, ``complete``.

    Raises:
        InputError: if the path is not an output of teramind's, or one of another kind.
    """
    try:
        about: Any = zarr.open_group(Path(path), mode="r").attrs.get("teramind")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, OSError, ValueError):
        about = None
    if not isinstance(about, dict) or about.get("kind") != kind:
        raise InputError(f"{path} is not a {kind} of teramind's, so it is left alone")
    return about


def _as_json(values: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the run's parameters cannot be kept in the output's metadata: {error}") from error


def _remove_output(path: Path) -> None:
    """Remove an output, its metadata last, so that one cut off on the way is still known to be ours."""
    if not path.exists():
        return
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "zarr.json":
            entry.unlink()
    (path / "zarr.json").unlink()
    path.rmdir()
