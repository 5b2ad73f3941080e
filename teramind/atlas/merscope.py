"""Vizgen MERSCOPE output folders (``region_N``) -> atlas store.

What is read of a folder, as documented by Vizgen's post-processing tool (vizgen-postprocessing, "input data
formats") and its public data:

- ``detected_transcripts.csv``, ``.csv.gz`` or ``.parquet``: ``global_x``, ``global_y`` in microns, ``global_z`` the
  *index of the plane*, ``gene``. Older and newer versions differ in columns that are not needed here.
- ``images/mosaic_{stain}_z{plane}.tif``
- ``images/micron_to_mosaic_pixel_transform.csv``: 3x3, microns to mosaic px.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from teramind.atlas.affine import read_affine
from teramind.atlas.build import Plan, build_atlas
from teramind.atlas.frame import Extent
from teramind.atlas.panel import name_pattern
from teramind.atlas.report import IngestReport
from teramind.atlas.section import Section, TranscriptBlock
from teramind.atlas.tables import Progress, TranscriptTable, number_column, word_column
from teramind.atlas.tiff import TiffPlane
from teramind.errors import InputError

# Anchored: a gene may well have "blank" inside its name.
CONTROL_NAMES = r"Blank[-_]?\d+$"
# The distance of the planes of one section in Vizgen's instruments; the folder does not state it.
PLANE_STEP_UM = 1.5
PERCENTILES = (0.1, 99.9)

TRANSCRIPT_FILES = ("detected_transcripts.parquet", "detected_transcripts.csv", "detected_transcripts.csv.gz")
TRANSFORM_FILE = "micron_to_mosaic_pixel_transform.csv"
MOSAIC_NAME = re.compile(r"mosaic_(?P<stain>.+)_z(?P<plane>\d+)\.tiff?$")

Mosaics = Mapping[int, Mapping[str, Path]]


def read_merscope(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    stains: Sequence[str],
    z_planes: bool = False,  # the planes of one folder are the slices
    z_step_um: float | None = None,  # 1.5 um with z_planes
    slice_table: str | Path | None = None,  # CSV with a column z_um, one row a slice
    image_z: int | None = None,  # plane of the image; the middle one
    affines: Sequence[str | Path] | None = None,  # files, one a folder
    pixel_size: float | None = None,  # um; that of the first folder's mosaics
    extent: Extent | None = None,  # atlas um; all that the images cover
    genes: str | Path | None = None,  # "union", "intersection" or a file
    controls: str = CONTROL_NAMES,
    scale: Mapping[str, tuple[float, float]] | None = None,  # stain -> raw intensities shown as 0 and 255
    percentiles: tuple[float, float] = PERCENTILES,  # of the stains without a scale
    regions: str | Path | None = None,
    region_names: str | Path | None = None,
    overwrite: bool = False,
) -> IngestReport:
    """Read MERSCOPE folders into an atlas store.

    Several folders are several slices, in the order given. All transcripts of a folder, whatever their plane, are
    counted into its slice, and its image is one plane (the middle one unless ``image_z`` says otherwise). With
    ``z_planes``, the planes of a single folder that have images are the slices, each with its own transcripts.

    See ``teramind.atlas.frame.plan_frame`` for what ``affines`` and ``pixel_size`` do, and
    ``teramind.atlas.intensity.measured_scale`` for the percentiles.

    Args:
        folders: ``region_N`` folders.
        output: the store to write.
        stains: names as in the mosaics' file names, in the order of the channels; none for no images (then ``extent``
            is needed).
        z_planes: take the planes of one folder as slices.
        z_step_um: distance of the slices; needed for several folders unless there is a ``slice_table``.
        slice_table: CSV with the column ``z_um``, a row a slice, in order.
        image_z: plane shown, where a folder is one slice.
        affines: text files of a 3x3 or 4x4 matrix, microns to atlas microns, one a folder in their order.
        pixel_size: um a pixel of the atlas; the mosaics' own keeps their pixels as they are.
        extent: part of the atlas plane to keep, in atlas microns.
        genes: which genes, where folders differ; a file lists one name a line and sets their order.
        controls: regular expression, from the beginning of a name and whatever its case, of names that are no genes.
        scale: intensity ranges; stains without one get the given percentiles over all slices.
        percentiles: lower and upper.
        regions: label map at bin resolution (``.npy``, ``.tif``).
        region_names: CSV ``id,name``; by default the file beside the label map with the ending ``.csv``.
        overwrite: replace an atlas at ``output``.

    Returns:
        The report; it is in the store's provenance, too.

    Raises:
        InputError: if a file is missing, damaged or does not fit the others; nothing is left at ``output``.
    """
    if not folders:
        raise InputError("no folder was given; give at least one MERSCOPE region folder")
    if z_planes and (len(folders) != 1 or not stains):
        raise InputError("planes are slices only where a single folder with images is read; give one and its stains")
    if not stains and extent is None:
        raise InputError("without stains the extent of the atlas is not known; give --stains or --extent")
    pattern = name_pattern(controls)
    sections = [_open_folder(Path(folder), stains, z_planes, image_z, pattern) for folder in folders]
    step = PLANE_STEP_UM if z_planes and z_step_um is None and slice_table is None else z_step_um
    plan = Plan(
        stains=stains,
        slice_z=slice_positions(sum(len(section.images) for section in sections), step, slice_table),
        affines=None if affines is None else [read_affine(path) for path in affines],
        pixel_size=pixel_size,
        extent=extent,
        genes=genes,
        scale=scale,
        percentiles=percentiles,
        regions=regions,
        region_names=region_names,
        overwrite=overwrite,
    )
    return build_atlas(sections, output, plan, {"reader": "merscope", "z_planes": z_planes, "controls": controls})


def slice_positions(slices: int, step_um: float | None, table: str | Path | None) -> list[float]:
    """The z of every slice, um: a row of the table each, or equally spaced from 0.

    Raises:
        InputError: if neither is given for several slices, both are, or the table cannot be read.
    """
    if table is not None and step_um is not None:
        raise InputError("both a z step and a slice table were given; give one of them")
    if table is not None:
        try:
            with Path(table).open(newline="", encoding="utf-8-sig") as file:
                return [float(row["z_um"]) for row in csv.DictReader(file)]
        except OSError as error:
            raise InputError(f"the slice table {table} cannot be read ({error.strerror})") from error
        except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{table} is no slice table; give a CSV with the column z_um, a row a slice") from error
    if slices > 1 and step_um is None:
        raise InputError(f"the distance of the {slices} slices is not known; give --z-step-um or --slice-table")
    return [index * (step_um or 0.0) for index in range(slices)]


def _open_folder(
    folder: Path, stains: Sequence[str], z_planes: bool, image_z: int | None, controls: re.Pattern[str]
) -> Section:
    """Look at a folder's files and open their headers."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a MERSCOPE region folder")
    table = _find_table(folder)
    table.require("global_x", "global_y", "gene", *(["global_z"] if z_planes else []))
    mosaics = _find_mosaics(folder, stains) if stains else {0: {}}
    planes = sorted(mosaics) if z_planes else [_chosen_plane(folder, mosaics, image_z)]
    notes = []
    if stains and not z_planes:
        notes.append(f"{folder}: images of plane {planes[0]} of {len(mosaics)}, transcripts of all planes")
    return Section(
        name=str(folder),
        table=table,
        blocks=_block_stream(table, planes if z_planes else None),
        control=controls,
        microns_to_image=read_affine(folder / "images" / TRANSFORM_FILE),
        images=[{stain: TiffPlane(path) for stain, path in mosaics[plane].items()} for plane in planes],
        slice_names=[f"{folder.name} z{plane}" for plane in planes] if z_planes else [folder.name],
        notes=notes,
    )


def _find_table(folder: Path) -> TranscriptTable:
    for name in TRANSCRIPT_FILES:
        if (folder / name).is_file():
            return TranscriptTable(folder / name)
    inner = sorted(path.name for path in folder.glob("region_*") if path.is_dir())
    hint = f"give its {', '.join(inner)}" if inner else "give a MERSCOPE region folder"
    raise InputError(f"{folder} holds no {TRANSCRIPT_FILES[1]} (nor .csv.gz, .parquet); {hint}")


def _find_mosaics(folder: Path, stains: Sequence[str]) -> Mosaics:
    """The mosaics of the stains, by plane; every plane of one stain must be there for all."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / "images").glob("mosaic_*")):
        match = MOSAIC_NAME.match(path.name)
        if match:
            found.setdefault(match["stain"], {})[int(match["plane"])] = path
    for stain in stains:
        if stain not in found:
            names = ", ".join(sorted(found)) or "none"
            raise InputError(f"{folder} has no image of the stain {stain}; it has {names}")
    planes = set.union(*(set(found[stain]) for stain in stains))
    for stain in stains:
        missing = sorted(planes - set(found[stain]))
        if missing:
            raise InputError(f"{folder} has no image of {stain} at plane {missing[0]}, where another stain has one")
    return {plane: {stain: found[stain][plane] for stain in stains} for plane in sorted(planes)}


def _chosen_plane(folder: Path, mosaics: Mosaics, image_z: int | None) -> int:
    planes = sorted(mosaics)
    if image_z is None:
        return planes[len(planes) // 2]
    if image_z not in mosaics:
        raise InputError(f"{folder} has no images of plane {image_z}; its planes are {', '.join(map(str, planes))}")
    return image_z


def _block_stream(
    table: TranscriptTable, planes: Sequence[int] | None
) -> Callable[[Progress], Iterator[TranscriptBlock]]:
    numbers = ["global_x", "global_y"] + ([] if planes is None else ["global_z"])

    def blocks(progress: Progress) -> Iterator[TranscriptBlock]:
        for batch in table.batches(numbers, ["gene"], progress):
            yield _block(batch, planes)

    return blocks


def _block(batch: pa.RecordBatch, planes: Sequence[int] | None) -> TranscriptBlock:
    gene, names = word_column(batch, "gene")
    return TranscriptBlock(
        x=number_column(batch, "global_x"),
        y=number_column(batch, "global_y"),
        gene=gene,
        names=names,
        plane=0 if planes is None else _slice_of_plane(number_column(batch, "global_z"), planes),
    )


def _slice_of_plane(plane: npt.NDArray[np.floating], planes: Sequence[int]) -> npt.NDArray[np.intp]:
    """The position of each plane index among ``planes``; -1 where it is none of them (or no whole number)."""
    place = np.full(max(planes) + 2, -1, dtype=np.intp)
    place[list(planes)] = np.arange(len(planes))
    known = (plane >= 0) & (plane <= max(planes))
    index = np.where(known, plane, len(place) - 1).astype(np.intp)
    return np.where(known & (index != plane), -1, place[index])
