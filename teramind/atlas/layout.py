"""What an atlas store looks like on disk: the names, the constants and the metadata of the format.

An atlas is one Zarr v3 group::

    ATLAS.zarr/            attributes["teramind"]: Metadata
        counts/entries     uint16 (3, N)                           every non-zero count: gene, bin step, count
        counts/offsets     int64  (slices, strips, columns + 1)    where each block's entries begin and end
        images/            OME-NGFF 0.5 multiscales, uint8 (stains, slices, H, W); only where there are images
        regions            uint16 (slices, ceil(H/16), ceil(W/16)); only where there is a label map

A *bin* is 16 x 16 px, a *block* 64 x 64 bins (1024 px), a *strip* one row of blocks. The entries of a block lie
together, in order of bin and gene, and those of a strip in order of block; strips lie in the order in which they were
written. See ``teramind.atlas.blocks`` for the encoding of the entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, Self

from teramind.errors import InputError

FORMAT = "teramind-atlas"
VERSION = 1
ATTRIBUTE = "teramind"

ENTRIES = "counts/entries"
OFFSETS = "counts/offsets"
IMAGES = "images"
REGIONS = "regions"

BIN_SIZE = 16
"""Side of a bin, px."""
STRIP_BINS = 64
"""Side of a block, bins; a strip is this high."""
MAX_GENES = 2**16


def ceil_div(length: int, unit: int) -> int:
    """How many ``unit`` cover ``length``."""
    return -(-length // unit)


@dataclass(frozen=True)
class Metadata:
    """The attributes of an atlas store.

    Attributes:
        genes: Names of the genes, in the order of the counts' gene axis.
        stains: Names of the image stains, in the order of the channel axis; empty without images.
        slice_z: Position of every slice, um.
        shape: Height and width of every slice, px.
        pixel_size: Side of a pixel, um.
        scaling: Stain -> the raw intensities shown as 0 and as 255; None without images.
        provenance: Where the data came from and how they were read, as the ingest recorded it.
        region_names: Label -> name of the region; None without a label map.
        slice_transcripts: Transcripts in each slice.
        gene_transcripts: Transcripts of each gene, all slices together.
        content: Checksums of the counts, images and regions.
        complete: False until the store has been written to its end.
    """

    genes: list[str]
    stains: list[str]
    slice_z: list[float]
    shape: tuple[int, int]
    pixel_size: float
    scaling: dict[str, tuple[float, float]] | None
    provenance: dict[str, Any]
    region_names: dict[int, str] | None = None
    slice_transcripts: list[int] = field(default_factory=list)
    gene_transcripts: list[int] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def __post_init__(self) -> None:
        _check_names("gene", self.genes)
        _check_names("stain", self.stains)
        if not 0 < len(self.genes) <= MAX_GENES:
            raise InputError(f"an atlas holds 1 to {MAX_GENES} genes, not {len(self.genes)}")
        if not self.slice_z or not all(math.isfinite(z) for z in self.slice_z):
            raise InputError(f"an atlas needs the finite z of one slice or more in um, not {self.slice_z}")
        if any(after <= before for before, after in pairwise(self.slice_z)):
            raise InputError(f"the slices lie at {self.slice_z} um: give them in the order of increasing z")
        if min(self.shape) < 1:
            raise InputError(f"a slice of {self.shape[0]} x {self.shape[1]} px holds nothing")
        if not (math.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise InputError(f"the pixel size must be a positive length in um, not {self.pixel_size}")
        if self.scaling is not None:
            _check_scaling(self.scaling, self.stains)

    @property
    def bin_shape(self) -> tuple[int, int]:
        """Height and width of a slice, bins; bins at the far edges may be partly outside the slice."""
        height, width = self.shape
        return ceil_div(height, BIN_SIZE), ceil_div(width, BIN_SIZE)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Height and width of a slice, blocks: strips, and blocks in a strip."""
        rows, columns = self.bin_shape
        return ceil_div(rows, STRIP_BINS), ceil_div(columns, STRIP_BINS)

    def to_attributes(self) -> dict[str, Any]:
        """The metadata as the JSON-able attributes of the store's root group."""
        values = {**asdict(self), "shape": list(self.shape)}
        if self.scaling is not None:
            values["scaling"] = {stain: [float(low), float(high)] for stain, (low, high) in self.scaling.items()}
        return {ATTRIBUTE: {"format": FORMAT, "version": VERSION, "bin_size": BIN_SIZE, **values}}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> Self:
        """Read the attributes of a root group, of this version or an older one.

        Raises:
            InputError: They are not an atlas's, of a newer version, or damaged; ``where`` names the store.
        """
        found = attributes.get(ATTRIBUTE)
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise InputError(f"{where} is not a teramind atlas: write one from your data with `teramind ingest`")
        if not isinstance(found.get("version"), int) or found["version"] > VERSION:
            raise InputError(
                f"{where} is an atlas of format version {found.get('version')}, and this teramind reads up to version "
                f"{VERSION}: update teramind"
            )
        try:
            values = {item.name: found[item.name] for item in fields(cls)}
            values["shape"] = (int(values["shape"][0]), int(values["shape"][1]))
            if values["scaling"] is not None:
                values["scaling"] = {stain: (low, high) for stain, (low, high) in values["scaling"].items()}
            if values["region_names"] is not None:
                values["region_names"] = {int(label): name for label, name in values["region_names"].items()}
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the metadata of {where} are damaged ({error!r}): ingest the data again") from error


def _check_names(kind: str, names: Sequence[str]) -> None:
    """Names identify genes and stains, so each stands for one."""
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"every {kind} needs a name, and one of {list(names)[:5]} ... is not a text")
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InputError(f"{kind} {twice!r} is there twice: give every {kind} its own name")


def _check_scaling(scaling: Mapping[str, tuple[float, float]], stains: Sequence[str]) -> None:
    if set(scaling) != set(stains) or not stains:
        raise InputError(
            f"images of the stains {list(stains)} come with a scaling for {sorted(scaling)}: name the same"
        )
    for stain, (low, high) in scaling.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"stain {stain} cannot be scaled from {low} to {high}: the second must be the larger")
