"""A section as its vendor's reader describes it: a stream of transcripts, images, and how the two lie together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from teramind.atlas.affine import Affine, FloatArray
from teramind.atlas.tables import Progress, TranscriptTable
from teramind.atlas.tiff import TiffPlane


@dataclass(frozen=True)
class TranscriptBlock:
    """Some rows of a transcript table.

    Attributes:
        x: (n,) microns of the section.
        y: (n,) microns of the section.
        gene: (n,) indices into ``names``; ``len(names)`` where there is none.
        names: names in use in this block.
        plane: the slice within the section, of all rows or of each; -1 where it is none of the atlas's.
        dropped: rows that the reader took out before, by reason; only in sections of a single slice.
    """

    x: FloatArray
    y: FloatArray
    gene: npt.NDArray[np.intp]
    names: Sequence[str]
    plane: int | npt.NDArray[np.intp] = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One vendor folder: one table of transcripts, and the images of one slice or more.

    Attributes:
        name: the folder, as the user gave it.
        table: the transcripts on disk.
        blocks: streams the transcripts; takes a function that is told of the progress.
        control: names that are no genes.
        microns_to_image: from the section's microns to px of its images.
        images: for each slice of the section, stain -> image; empty where no images are read.
        slice_names: for each slice of the section, its name in reports.
        notes: what its reader chose where the user did not, a sentence each.
    """

    name: str
    table: TranscriptTable
    blocks: Callable[[Progress], Iterator[TranscriptBlock]]
    control: re.Pattern[str]
    microns_to_image: Affine
    images: Sequence[Mapping[str, TiffPlane]]
    slice_names: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) that holds every image of the section; (0, 0) if it has none."""
        shapes = [plane.shape for planes in self.images for plane in planes.values()] or [(0, 0)]
        return max(height for height, _ in shapes), max(width for _, width in shapes)
