"""Write an OME-Zarr image, or a part of it, in a format that other programs read: OME-Zarr 0.4 or OME-TIFF."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import zarr
import zarr.errors
from tqdm import tqdm

from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.ngff import (
    MultiscaleWriter,
    create_multiscale,
    image_channels,
    image_pixel_size,
    image_translation,
    open_levels,
)
from teramind.ngff.metadata import VERSIONS
from teramind.output.ome_tiff import Region, snapped_region, write_ome_tiff
from teramind.ranges import parse_ranges

# Read at once: a row of chunks as wide as a shard, so that each chunk is decoded once. 4 MB a channel.
BLOCK = (1024, 4096)

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of ``teramind export``."""
    parser.add_argument("image", type=Path, metavar="IMAGE.ome.zarr", help="the image to export")
    parser.add_argument(
        "target", type=Path, metavar="TARGET", help="a new folder, or for one slice of OME-TIFF a new file .ome.tif"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--ngff", choices=[*VERSIONS], help="OME-Zarr of this version; 0.4 for QuPath and older readers")
    kind.add_argument("--ome-tiff", action="store_true", help="pyramidal OME-TIFF, one file a slice")
    parser.add_argument("--roi", metavar="Y0:Y1,X0:X1", help="px of the image, half open (default: all of it)")
    parser.add_argument("--slices", metavar="A:B", help="slices of the image, half open (default: all of them)")


def run(arguments: argparse.Namespace) -> int:
    """Run ``teramind export``."""
    if arguments.ome_tiff:
        export_ome_tiff(arguments.image, arguments.target, roi=arguments.roi, slices=arguments.slices)
    else:
        export_ngff(
            arguments.image, arguments.target, version=arguments.ngff, roi=arguments.roi, slices=arguments.slices
        )
    return 0


def export_ngff(
    image: str | Path, target: str | Path, *, version: str = "0.4", roi: str | None = None, slices: str | None = None
) -> None:
    """Write an OME-Zarr image, or a part of it, as OME-Zarr of another version.

    The pyramid is built anew, so a region's levels are exact. Channels, attributes and place are kept.

    Args:
        image: the image's folder.
        target: a new folder, which appears when it is whole.
        version: 0.4 (Zarr v2, no shards) or 0.5.
        roi: ``y0:y1,x0:x1`` in px of the image, half open; all of it by default.
        slices: ``a:b``, half open; all of them by default.

    Raises:
        InputError: if the image is none or unfinished, the region lies outside it, or the target exists.
        OSError: if the disk is full; then there is no target.
    """
    group = _open_finished(image)
    ((y0, y1), (x0, x1)), (z0, z1) = _region(group, roi), _slices(group, slices)
    _require_new(Path(target))
    source = open_levels(group)[0]
    (dz, dy, dx), (tz, ty, tx) = image_pixel_size(group), image_translation(group)
    channels = image_channels(group)
    with appears_whole(target) as partial:
        create_multiscale(
            partial,
            shape=(len(channels), z1 - z0, y1 - y0, x1 - x0),
            pixel_size=(dz, dy, dx),
            translation=(tz + z0 * dz, ty + y0 * dy, tx + x0 * dx),
            channels=channels,
            name=Path(target).name.removesuffix(".zarr").removesuffix(".ome"),
            version=version,
            attributes={key: value for key, value in group.attrs.items() if key not in ("ome", "multiscales", "omero")},
        )
        with MultiscaleWriter(partial) as writer, _progress(source.shape[0] * (z1 - z0) * (y1 - y0) * (x1 - x0)) as bar:
            for z in range(z0, z1):
                for y in range(y0, y1, BLOCK[0]):
                    for x in range(x0, x1, BLOCK[1]):
                        bottom, right = min(y + BLOCK[0], y1), min(x + BLOCK[1], x1)
                        pixels = np.asarray(source[:, z : z + 1, y:bottom, x:right])
                        writer.write_block(z - z0, y - y0, x - x0, pixels)
                        bar.update(pixels.size)


def export_ome_tiff(
    image: str | Path, target: str | Path, *, roi: str | None = None, slices: str | None = None
) -> list[Path]:
    """Write slices of an OME-Zarr image as pyramidal OME-TIFF files, all channels in each.

    A region is enlarged to whole pixels of the coarsest level in the file, which is logged.

    Args:
        image: the image's folder.
        target: a file ending in ``.ome.tif`` for one slice, else a folder, which gets one file a slice.
        roi: ``y0:y1,x0:x1`` in px of the image, half open; all of it by default.
        slices: ``a:b``, half open; all of them by default.

    Returns:
        The files, one a slice.

    Raises:
        InputError: if the image is none or unfinished, the region lies outside it, or a file exists.
        OSError: if the disk is full; then the file it was about is not there.
    """
    group = _open_finished(image)
    wanted, (z0, z1) = _region(group, roi), _slices(group, slices)
    region = snapped_region(group, wanted)
    if region != wanted:
        (y0, y1), (x0, x1) = region
        _log.info("The region is enlarged to %d:%d,%d:%d, whole pixels of the coarsest level.", y0, y1, x0, x1)
    paths = _tiff_paths(Path(target), range(z0, z1))
    for path in paths:
        _require_new(path)
    for z, path in zip(tqdm(range(z0, z1), unit="slice", disable=None), paths, strict=True):
        write_ome_tiff(path, group, z=z, region=region)
    return paths


def _tiff_paths(target: Path, slices: range) -> list[Path]:
    if target.suffix.lower() not in (".tif", ".tiff"):
        return [target / f"z{z:03d}.ome.tif" for z in slices]
    if not target.stem.lower().endswith(".ome"):
        raise InputError(f"{target} does not end in .ome.tif, by which programs tell an OME-TIFF; name it so")
    if len(slices) > 1:
        raise InputError(f"{target} is one file, but {len(slices)} slices are wanted; name a folder, or one slice")
    return [target]


def _open_finished(path: str | Path) -> zarr.Group:
    try:
        group = zarr.open_group(Path(path), mode="r")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is not an OME-Zarr image") from None
    dtype = open_levels(group)[0].dtype
    if dtype != np.uint8:
        raise InputError(f"{path} holds {dtype} values; only uint8 images are exported")
    about = group.attrs.get("teramind")
    if isinstance(about, dict) and about.get("complete") is False:
        raise InputError(f"{path} is not finished; resume its run first")
    return group


def _region(group: zarr.Group, roi: str | None) -> Region:
    height, width = open_levels(group)[0].shape[2:]
    if roi is None:
        return (0, height), (0, width)
    rows, columns = parse_ranges(roi, {"y": height, "x": width})
    return rows, columns


def _slices(group: zarr.Group, slices: str | None) -> tuple[int, int]:
    depth = open_levels(group)[0].shape[1]
    return (0, depth) if slices is None else parse_ranges(slices, {"z": depth})[0]


def _require_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it")


def _progress(voxels: int) -> tqdm:
    return tqdm(total=voxels, unit="voxel", unit_scale=True, disable=None)
