"""OME-NGFF image metadata and empty pyramids, 0.5 (Zarr v3) and 0.4 (Zarr v2).

Specifications: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from teramind.errors import InputError

AXES = ("c", "z", "y", "x")
DTYPES = ("uint8", "int16", "float32")  # that viewers agree on; several of them know no float16
VERSIONS = {"0.5": 3, "0.4": 2}  # OME-NGFF version -> Zarr format
# On MERSCOPE's stains, one core: 1.0 to 1.3 GB/s against 0.1 to 0.3 with the usual level 3, for files 3 to 7 % larger.
ZSTD_LEVEL = 1
_WINDOW = ("min", "max", "start", "end")


@dataclass(frozen=True)
class Channel:
    """How viewers show one channel.

    Attributes:
        name: label, for instance the stain.
        color: six hexadecimal digits, red green blue, without ``#``.
        window_min: lowest value a viewer's contrast slider offers.
        window_max: highest value it offers.
        window_start: value shown as black.
        window_end: value shown in full colour.
        active: whether a viewer shows it at first.
    """

    name: str
    color: str = "FFFFFF"
    window_min: float = 0
    window_max: float = 255
    window_start: float = 0
    window_end: float = 255
    active: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Fa-f]{6}", self.color):
            raise InputError(
                f"colour {self.color!r} of channel {self.name!r} is not six hexadecimal digits such as 00FF00"
            )
        if not self.window_min <= self.window_start < self.window_end <= self.window_max:
            raise InputError(
                f"contrast window of channel {self.name!r} is not ordered: min {self.window_min}, start "
                f"{self.window_start}, end {self.window_end}, max {self.window_max}"
            )

    def omero(self) -> dict[str, Any]:
        """Return the channel as an entry of ``omero.channels``."""
        window = {"min": self.window_min, "max": self.window_max, "start": self.window_start, "end": self.window_end}
        return {
            "label": self.name,
            "color": self.color.upper(),
            "active": self.active,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": window,
        }


def level_shapes(shape: Sequence[int], smallest: int, levels: int | None = None) -> list[tuple[int, int, int, int]]:
    """Return the (C, Z, Y, X) shapes of a pyramid that halves y and x, rounding up.

    Args:
        shape: (C, Z, Y, X) of the image itself.
        smallest: halve until neither y nor x exceeds this, where ``levels`` does not say otherwise.
        levels: how many levels, the image itself included.
    """
    c, z, y, x = (int(side) for side in shape)
    if min(c, z, y, x) < 1 or (levels is not None and levels < 1):
        raise InputError(
            f"an image of shape {(c, z, y, x)} with {levels} levels cannot be stored; all must be at least 1"
        )
    shapes = [(c, z, y, x)]
    while len(shapes) < levels if levels is not None else max(y, x) > smallest:
        y, x = -(-y // 2), -(-x // 2)
        shapes.append((c, z, y, x))
    return shapes


def create_multiscale(
    group_or_path: zarr.Group | str | Path,
    *,
    shape: Sequence[int],
    pixel_size: Sequence[float],
    translation: Sequence[float] = (0.0, 0.0, 0.0),
    channels: Sequence[Channel],
    name: str,
    version: str = "0.5",
    chunk: int = 1024,
    shard: int = 4096,
    levels: int | None = None,
    dtype: str = "uint8",
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Group:
    """Create an empty multiscale image: the group, its metadata and one array a level, named 0, 1, ...

    Only y and x are halved, rounding up, until both are at most ``chunk``. A level smaller than a chunk is one chunk
    of its own size, and one that fits into a chunk has no shards. 0.4 has no shards; chunks are files.

    Args:
        group_or_path: an existing group that becomes the image, or the path of a store that does not exist yet.
        shape: (C, Z, Y, X).
        pixel_size: micrometres along z, y, x.
        translation: where the centre of voxel (0, 0, 0) lies, in micrometres, z, y, x.
        channels: C of them.
        name: the image's name.
        version: of OME-NGFF, 0.5 or 0.4.
        chunk: side of a chunk in px, even.
        shard: side of a shard in px, a multiple of ``chunk``.
        levels: how many levels, if not as many as it takes.
        dtype: of the values: uint8, int16 or float32.
        attributes: further attributes of the group, beside the ones OME-NGFF defines.

    Raises:
        InputError: if an argument does not fit the others, or the path exists.
    """
    if version not in VERSIONS:
        raise InputError(f"OME-NGFF version {version!r} cannot be written; choose one of {', '.join(VERSIONS)}")
    if chunk < 2 or chunk % 2 or shard < chunk or shard % chunk:
        raise InputError(
            f"chunks of {chunk} px in shards of {shard} px do not nest; a chunk is even, a shard a multiple"
        )
    if dtype not in DTYPES:
        raise InputError(f"images of {dtype} cannot be written; choose one of {', '.join(DTYPES)}")
    shapes = level_shapes(shape, chunk, levels)
    if len(channels) != shapes[0][0]:
        raise InputError(f"{len(channels)} channels are described for an image of {shapes[0][0]}")

    group = _open_new_group(group_or_path, VERSIONS[version])
    for level, level_shape in enumerate(shapes):
        _create_level(group, str(level), level_shape, chunk, shard if version == "0.5" else chunk, dtype)
    metadata = image_metadata(
        levels=len(shapes),
        pixel_size=pixel_size,
        translation=translation,
        channels=channels,
        name=name,
        version=version,
        default_z=shapes[0][1] // 2,
    )
    group.update_attributes({**(attributes or {}), **metadata})
    return group


def image_metadata(
    *,
    levels: int,
    pixel_size: Sequence[float],
    translation: Sequence[float],
    channels: Sequence[Channel],
    name: str,
    version: str,
    default_z: int,
) -> dict[str, Any]:
    """Return the group attributes of an image whose levels are mean-binned 2x2 (see `create_multiscale`)."""
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES[1:]]
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": axes,
        "datasets": [
            {"path": str(level), "coordinateTransformations": _transformations(2**level, pixel_size, translation)}
            for level in range(levels)
        ],
        "type": "mean",
    }
    omero = {
        "name": name,
        "channels": [channel.omero() for channel in channels],
        "rdefs": {"model": "color", "defaultT": 0, "defaultZ": default_z},
    }
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}], "omero": {"id": 1, "version": "0.4", **omero}}
    return {"ome": {"version": version, "multiscales": [multiscale], "omero": omero}}


def open_levels(group: zarr.Group) -> list[zarr.Array[Any]]:
    """Return the arrays of a multiscale image, finest first, whichever of the two versions it has.

    Raises:
        InputError: if the group is not an OME-Zarr image.
    """
    levels = []
    for dataset in _multiscale(group)["datasets"]:
        array = group.get(dataset["path"])
        if not isinstance(array, zarr.Array):
            raise InputError(f"{group.store_path} describes a level {dataset['path']!r}, but there is no such array")
        levels.append(array)
    return levels


def image_channels(group: zarr.Group) -> list[Channel]:
    """Return how an image's channels are shown: white and from 0 to 255 where it does not say."""
    count = open_levels(group)[0].shape[0]
    described: Any = _described(group).get("omero", {}).get("channels") or [{}] * count
    channels = []
    for number, channel in enumerate(described):
        shown = Channel(
            channel.get("label", f"channel {number}"),
            channel.get("color", "FFFFFF"),
            active=channel.get("active", True),
        )
        window = {f"window_{key}": channel["window"][key] for key in channel.get("window", ()) if key in _WINDOW}
        channels.append(replace(shown, **window))
    return channels


def describe_channels(group: zarr.Group, channels: Sequence[Channel]) -> None:
    """Replace how an OME-Zarr 0.5 image's channels are shown, once their values are known.

    Raises:
        InputError: if they are not as many as the image has.
    """
    if len(channels) != open_levels(group)[0].shape[0]:
        raise InputError(f"{len(channels)} channels are described for an image of {open_levels(group)[0].shape[0]}")
    described = _described(group)
    omero = {**described["omero"], "channels": [channel.omero() for channel in channels]}
    group.update_attributes({"ome": {**described, "omero": omero}})


def image_pixel_size(group: zarr.Group) -> tuple[float, float, float]:
    """Return the size of a voxel of the finest level in micrometres, z, y, x."""
    return _transformation(group, "scale", 1.0)


def image_translation(group: zarr.Group) -> tuple[float, float, float]:
    """Return where the centre of the finest level's first voxel lies, in micrometres, z, y, x."""
    return _transformation(group, "translation", 0.0)


def _transformation(group: zarr.Group, kind: str, default: float) -> tuple[float, float, float]:
    for transformation in _multiscale(group)["datasets"][0]["coordinateTransformations"]:
        if transformation["type"] == kind:
            z, y, x = transformation[kind][1:]
            return float(z), float(y), float(x)
    return default, default, default


def _described(group: zarr.Group) -> dict[str, Any]:
    """Return the attributes that OME-NGFF defines: 0.5 keeps them apart, 0.4 among all the others."""
    attributes: dict[str, Any] = dict(group.attrs)
    inner: dict[str, Any] = attributes.get("ome", attributes)
    return inner


def _multiscale(group: zarr.Group) -> dict[str, Any]:
    try:
        first: dict[str, Any] = _described(group)["multiscales"][0]
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{group.store_path} is not an OME-Zarr image: it has no multiscales metadata") from None
    if [axis["name"] for axis in first["axes"]] != list(AXES):
        raise InputError(f"{group.store_path} has other axes than {', '.join(AXES)}")
    return first


def _transformations(factor: int, pixel_size: Sequence[float], translation: Sequence[float]) -> list[dict[str, Any]]:
    """Scale, then translation: readers take the first element for the scale, whatever its type says."""
    dz, dy, dx = (float(size) for size in pixel_size)
    tz, ty, tx = (float(offset) for offset in translation)
    # A binned pixel's centre lies between those of the pixels it is the mean of.
    shift = (factor - 1) / 2
    return [
        {"type": "scale", "scale": [1.0, dz, dy * factor, dx * factor]},
        {"type": "translation", "translation": [0.0, tz, ty + shift * dy, tx + shift * dx]},
    ]


def _open_new_group(group_or_path: zarr.Group | str | Path, zarr_format: int) -> zarr.Group:
    if isinstance(group_or_path, zarr.Group):
        if group_or_path.metadata.zarr_format != zarr_format:
            raise InputError(
                f"{group_or_path.store_path} is of Zarr format {group_or_path.metadata.zarr_format}, but this "
                f"version of OME-NGFF needs format {zarr_format}"
            )
        return group_or_path
    path = Path(group_or_path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists already; choose another name or remove it")
    return zarr.open_group(path, mode="w-", zarr_format=3 if zarr_format == 3 else 2)


def _create_level(
    group: zarr.Group, path: str, shape: tuple[int, int, int, int], chunk: int, shard: int, dtype: str
) -> None:
    sides = [min(chunk, side) for side in shape[2:]]
    blocks = [min(shard, -(-size // side) * side) for size, side in zip(shape[2:], sides, strict=True)]
    sharded = blocks != sides
    is_v3 = group.metadata.zarr_format == 3
    group.create_array(
        path,
        shape=shape,
        chunks=(1, 1, *sides),
        shards=(1, 1, *blocks) if sharded else None,
        dtype=np.dtype(dtype),
        fill_value=0,
        compressors=ZstdCodec(level=ZSTD_LEVEL) if is_v3 else numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE),
        chunk_key_encoding={"name": "default" if is_v3 else "v2", "separator": "/"},
        dimension_names=AXES if is_v3 else None,
    )
