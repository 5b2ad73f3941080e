"""Sections -> atlas store: the way that all vendors' data take."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import teramind
from teramind.atlas.affine import Affine
from teramind.atlas.frame import Extent, Frame, plan_frame
from teramind.atlas.images import SHARD
from teramind.atlas.intensity import IntensityScale, measured_scale
from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.atlas.panel import choose_genes, shortened
from teramind.atlas.regions import read_regions
from teramind.atlas.report import CONTROL, OUTSIDE, UNKNOWN_GENE, UNNAMED, IngestReport
from teramind.atlas.resample import sample
from teramind.atlas.section import Section, TranscriptBlock
from teramind.atlas.staging import StagedFolder
from teramind.atlas.store import is_atlas
from teramind.atlas.tables import read_ahead
from teramind.atlas.transcripts import TranscriptSpool
from teramind.atlas.writer import AtlasWriter
from teramind.errors import InputError

# The largest array whose freeing still raises glibc's threshold for handing memory back (its maximum is 32 MiB).
KEPT_ARRAY_BYTES = 31 << 20

# Codes of rows that are not of a gene.
CONTROL_CODE, MISSING_CODE = -1, -2


@dataclass(frozen=True)
class Plan:
    """What an atlas shall be; the options that all readers share.

    Attributes:
        stains: in the order of the channels; none for an atlas without images.
        slice_z: um, one a slice over all sections, increasing.
        affines: one a section; see ``plan_frame``.
        pixel_size: um; None for that of the first section's images.
        extent: atlas um; None for all that the images cover.
        genes: see ``choose_genes``.
        scale: stain -> raw intensities shown as 0 and as 255.
        percentiles: for the stains without a scale.
        regions: label map; see ``read_regions``.
        region_names: names of its labels.
        overwrite: replace an atlas that is there.
    """

    stains: Sequence[str]
    slice_z: Sequence[float]
    affines: Sequence[Affine] | None
    pixel_size: float | None
    extent: Extent | None
    genes: str | Path | None
    scale: Mapping[str, tuple[float, float]] | None
    percentiles: tuple[float, float]
    regions: str | Path | None
    region_names: str | Path | None
    overwrite: bool

    def __post_init__(self) -> None:
        if len(set(self.stains)) < len(self.stains):
            raise InputError(f"a stain is named twice in {', '.join(self.stains)}; name each once")
        if not np.isfinite(self.slice_z).all() or (np.diff(self.slice_z) <= 0).any():
            raise InputError(f"the slices' z {list(self.slice_z)} um do not increase; give them in their order")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"the percentiles {low:g} and {high:g} are no range; give 0 <= LOW < HIGH <= 100")
        unknown = [stain for stain in self.scale or {} if stain not in self.stains]
        if unknown:
            raise InputError(
                f"an intensity range is given for {unknown[0]}, which is not among the stains {', '.join(self.stains)}"
            )


def build_atlas(
    sections: Sequence[Section], output: str | Path, plan: Plan, provenance: Mapping[str, Any]
) -> IngestReport:
    """Read sections and write them as an atlas.

    All that can be wrong without reading the data is looked for first. Then the transcripts are read once into a
    spool, the intensities are measured, and counts, images and regions are written; the store appears when it is whole.

    Args:
        sections: in the order of the slices.
        output: the store to write.
        plan: what it shall be.
        provenance: what the reader knows of its source; the frame and the report are added.

    Raises:
        InputError: as the readers say.
    """
    _keep_freed_memory()
    output = Path(output)
    StagedFolder(output, overwrite=plan.overwrite, is_ours=is_atlas).discard()  # may it be written?
    slices = sum(len(section.images) for section in sections)
    if len(plan.slice_z) != slices:
        raise InputError(f"{len(plan.slice_z)} positions in z were given for {slices} slices; give one a slice")
    frame = plan_frame(sections, plan.affines, plan.pixel_size, plan.extent)
    given = {stain: IntensityScale(*limits) for stain, limits in (plan.scale or {}).items()}
    label_map = _read_label_map(plan, frame, slices)

    report = IngestReport([name for section in sections for name in section.slice_names])
    report.notes += [note for section in sections for note in (*section.notes, *_shape_notes(section))]
    with _full_disk_named(output), TranscriptSpool(slices, frame.shape, output.absolute().parent) as spool:
        panel, columns = _read_transcripts(sections, frame, spool, plan.genes, report)
        unknown = [stain for stain in plan.stains if stain not in given]
        scales = given | _measured_scales(unknown, sections, plan.percentiles)
        ranges = {stain: (scales[stain].low, scales[stain].high) for stain in plan.stains}
        height, width = frame.shape
        report.notes.append(
            f"atlas: {slices} slices of {height} x {width} px of {frame.pixel_size:.6g} um, {len(panel)} genes"
        )
        report.notes += [f"{stain}: raw {low:g} to {high:g} as 0 to 255" for stain, (low, high) in ranges.items()]
        with AtlasWriter(
            output,
            genes=panel,
            stains=plan.stains,
            slice_z=plan.slice_z,
            shape=frame.shape,
            pixel_size=frame.pixel_size,
            scaling=ranges or None,
            provenance=_provenance(provenance, sections, frame, report),
            overwrite=plan.overwrite,
        ) as writer:
            _write_counts(writer, spool, columns, len(panel), slices)
            _write_images(writer, sections, frame, [(stain, scales[stain]) for stain in plan.stains])
            if label_map is not None:
                labels, label_names = label_map
                for index, plane in enumerate(labels):
                    writer.write_regions(plane, label_names, index)
    return report


class _GeneNames:
    """Gives every gene of the transcripts an index, in order of appearance.

    Attributes:
        index: name -> index; a negative code for what is no gene.
        seen: for each section read so far, the names of its genes.
    """

    def __init__(self) -> None:
        self.index: dict[str, int] = {"": MISSING_CODE}
        self.seen: list[set[str]] = []
        self._genes = 0

    def codes(self, block: TranscriptBlock, section: Section) -> npt.NDArray[np.intp]:
        """The index of every row's gene, or a negative code."""
        table = np.empty(len(block.names) + 1, dtype=np.intp)
        for code, name in enumerate(block.names):
            table[code] = self._index_of(name, section)
            if table[code] >= 0:
                self.seen[-1].add(name)
        table[-1] = MISSING_CODE
        return table[block.gene]

    def _index_of(self, name: str, section: Section) -> int:
        if name not in self.index:
            is_gene = section.control.match(name) is None
            self.index[name] = self._genes if is_gene else CONTROL_CODE
            self._genes += is_gene
        return self.index[name]


def _keep_freed_memory() -> None:
    """Let the C library keep freed arrays for the next ones, by freeing a large one.

    glibc gives the memory of an array back to the system unless a larger one was freed before (mallopt(3), dynamic
    M_MMAP_THRESHOLD). The arrays of every batch would be new pages again: 320,000 page faults and a quarter of the CPU
    time of ten million transcripts, measured on a virtual machine of two CPUs.
    """
    np.empty(KEPT_ARRAY_BYTES, dtype=np.uint8)


def _read_transcripts(
    sections: Sequence[Section],
    frame: Frame,
    spool: TranscriptSpool,
    genes: str | Path | None,
    report: IngestReport,
) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Spool all transcripts; return the genes of the atlas and the column of every gene index."""
    names = _spool_transcripts(sections, frame, spool, report)
    _check_inside(sections, report)
    panel = choose_genes({section.name: seen for section, seen in zip(sections, names.seen, strict=True)}, genes)
    columns = _columns(panel, names.index, spool, report)
    report.note_empty_slices()
    return panel, columns


def _spool_transcripts(
    sections: Sequence[Section], frame: Frame, spool: TranscriptSpool, report: IngestReport
) -> _GeneNames:
    """Read all tables once: map every transcript to px and spool those inside, counting all."""
    names = _GeneNames()
    first_slice = 0
    for section, to_pixels in zip(sections, frame.to_pixels, strict=True):
        names.seen.append(set())
        unit = "row" if section.table.is_parquet else "B"
        with tqdm(total=section.table.size, desc=section.name, unit=unit, unit_scale=True, disable=None) as bar:
            for block in section.blocks(bar.update):
                _spool_block(block, names.codes(block, section), to_pixels, first_slice, spool, report)
        first_slice += len(section.images)
    return names


def _spool_block(
    block: TranscriptBlock,
    gene: npt.NDArray[np.intp],
    to_pixels: Affine,
    first_slice: int,
    spool: TranscriptSpool,
    report: IngestReport,
) -> None:
    x, y, plane = block.x, block.y, block.plane
    if isinstance(plane, int):
        report.add_dropped_before(first_slice + plane, block.dropped)
    elif plane.size and plane.min() < 0:
        has_slice = plane >= 0
        report.without_slice += int(np.count_nonzero(~has_slice))
        x, y, gene, plane = x[has_slice], y[has_slice], gene[has_slice], plane[has_slice]
    slices = plane + first_slice
    kept = spool.add(slices, *to_pixels.apply(x, y), gene)
    report.add_rows(slices, kept, {CONTROL: gene == CONTROL_CODE, UNNAMED: gene == MISSING_CODE})


def _columns(
    panel: Sequence[str], index: Mapping[str, int], spool: TranscriptSpool, report: IngestReport
) -> npt.NDArray[np.intp]:
    """The column of every gene index, -1 for genes outside the panel, which are counted as dropped."""
    place = {gene: column for column, gene in enumerate(panel)}
    columns = np.full(spool.gene_counts.shape[1], -1, dtype=np.intp)
    for name, gene in index.items():
        if 0 <= gene < len(columns):
            columns[gene] = place.get(name, -1)
    report.dropped[UNKNOWN_GENE] += spool.gene_counts[:, columns < 0].sum(axis=1)
    unseen = [gene for gene in panel if index.get(gene, -1) < 0]
    if unseen:
        report.notes.append(f"{len(unseen)} genes of the panel have no transcripts: {shortened(unseen)}")
    return columns


def _check_inside(sections: Sequence[Section], report: IngestReport) -> None:
    """Refuse a section none of whose transcripts lie inside."""
    first = 0
    for section in sections:
        here = slice(first, first + len(section.images))
        if not report.kept[here].any():
            raise InputError(
                f"no transcript of {section.name} lies inside the image ({int(report.dropped[OUTSIDE][here].sum()):,} "
                f"outside, of {int(report.read[here].sum()):,} read); check the transform, "
                "the affine (microns to microns) and the extent"
            )
        first = here.stop


def _shape_notes(section: Section) -> list[str]:
    """Say where the images of a section differ in size: the smaller ones are black beyond their edges."""
    shapes = {plane.shape for images in section.images for plane in images.values()}
    if len(shapes) < 2:
        return []
    words = " and ".join(f"{height} x {width}" for height, width in sorted(shapes))
    return [f"{section.name} has images of {words} px; the smaller ones are black beyond their edges"]


def _read_label_map(plan: Plan, frame: Frame, slices: int) -> tuple[npt.NDArray[Any], dict[int, str]] | None:
    if plan.regions is None:
        return None
    height, width = frame.shape
    return read_regions(
        plan.regions, plan.region_names, slices, (ceil_div(height, BIN_SIZE), ceil_div(width, BIN_SIZE))
    )


def _measured_scales(
    stains: Sequence[str], sections: Sequence[Section], percentiles: tuple[float, float]
) -> dict[str, IntensityScale]:
    planes = [images for section in sections for images in section.images]
    scales = {}
    with tqdm(total=len(stains) * len(planes), desc="intensities", unit="image", disable=None) as bar:
        for stain in stains:
            scales[stain] = measured_scale([images[stain] for images in planes], percentiles, bar.update)
    return scales


def _provenance(
    source: Mapping[str, Any], sections: Sequence[Section], frame: Frame, report: IngestReport
) -> dict[str, Any]:
    placed = [
        {"folder": section.name, "transcripts": section.table.path.name, "microns_to_atlas_pixels": to_pixels.as_rows()}
        for section, to_pixels in zip(sections, frame.to_pixels, strict=True)
    ]
    return {**source, "teramind": teramind.__version__, "sections": placed, "report": report.as_dict()}


def _write_counts(
    writer: AtlasWriter, spool: TranscriptSpool, columns: npt.NDArray[np.intp], genes: int, slices: int
) -> None:
    with tqdm(total=slices * spool.strips, desc="counts", unit="strip", disable=None) as bar:
        for index in range(slices):
            for counts in read_ahead(spool.strips_of(index, columns, genes)):
                writer.append_counts(index, counts)
                bar.update()


def _write_images(
    writer: AtlasWriter, sections: Sequence[Section], frame: Frame, ranges: Sequence[tuple[str, IntensityScale]]
) -> None:
    """Write all images window by window, pulling the next one while the last is compressed."""
    shards = ceil_div(frame.shape[0], SHARD) * ceil_div(frame.shape[1], SHARD)
    slices = sum(len(section.images) for section in sections)
    with tqdm(total=slices * len(ranges) * shards, desc="images", unit="window", disable=None) as bar:
        for window in read_ahead(_image_windows(sections, frame, ranges)):
            writer.write_image(*window)
            bar.update()


def _image_windows(
    sections: Sequence[Section], frame: Frame, ranges: Sequence[tuple[str, IntensityScale]]
) -> Iterator[tuple[int, int, int, int, npt.NDArray[np.uint8]]]:
    """Yield (slice, stain, y0, x0, pixels) of every shard."""
    height, width = frame.shape
    index = 0
    for section, to_pixels in zip(sections, frame.to_pixels, strict=True):
        to_image = section.microns_to_image @ to_pixels.inverse()
        for slice_images in section.images:
            for number, (stain, intensity) in enumerate(ranges):
                for y0 in range(0, height, SHARD):
                    for x0 in range(0, width, SHARD):
                        shape = (min(SHARD, height - y0), min(SHARD, width - x0))
                        pixels = sample(slice_images[stain], to_image, y0, x0, shape)
                        yield index, number, y0, x0, intensity.apply(pixels)
            index += 1


@contextlib.contextmanager
def _full_disk_named(output: Path) -> Iterator[None]:
    """Say where the disk is full: the system's error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"the disk of {output} is full ({error.strerror}), and nothing was kept there; free space or name another "
            "output"
        ) from error
