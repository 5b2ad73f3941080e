"""10x Xenium output bundles -> atlas store.

What is read of a bundle, as documented by 10x Genomics ("Xenium output files at a glance") and found in public
bundles. The layout is told by the files that are there, never by the version in ``experiment.xenium``, which may read
"R&D":

- ``experiment.xenium``: JSON with ``pixel_size`` in microns.
- ``transcripts.parquet``: ``x_location``, ``y_location`` in microns from the image's corner, ``feature_name`` (bytes
  in old files), ``qv``; recent bundles also have ``is_gene`` and ``codeword_category``.
- ``morphology_focus/*.ome.tif`` (since 2.0: one file a stain, stains named in the OME-XML), else
  ``morphology_focus.ome.tif`` or ``morphology_mip.ome.tif`` (DAPI), else the middle plane of ``morphology.ome.tif``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from teramind.atlas.affine import Affine, read_affine
from teramind.atlas.build import Plan, build_atlas
from teramind.atlas.frame import Extent
from teramind.atlas.merscope import PERCENTILES, slice_positions
from teramind.atlas.panel import name_pattern
from teramind.atlas.report import CONTROL, LOW_QUALITY, IngestReport
from teramind.atlas.section import Section, TranscriptBlock
from teramind.atlas.tables import Progress, TranscriptTable, number_column, word_column
from teramind.atlas.tiff import TiffPlane, description, page_count
from teramind.errors import InputError

# The Phred quality that 10x's own count matrix asks for.
MIN_QV = 20.0
# The pixel of the published Tera-MIND networks; Xenium's own is 0.2125 um.
PIXEL_SIZE_UM = 0.108
# Anchored: what bundles without is_gene and codeword_category call their control features.
CONTROL_NAMES = (
    r"(NegControlProbe|NegControlCodeword|UnassignedCodeword|DeprecatedCodeword|Intergenic_Region|GenomicControl|BLANK"
    r"|antisense)_"
)
GENE_CATEGORIES = ("predesigned_gene", "custom_gene")

NUCLEI = "DAPI"
SINGLE_IMAGES = ("morphology_focus.ome.tif", "morphology_mip.ome.tif")
STACK_IMAGE = "morphology.ome.tif"


def read_xenium(
    bundles: Sequence[str | Path],
    output: str | Path,
    *,
    stains: Sequence[str],
    z_step_um: float | None = None,
    slice_table: str | Path | None = None,  # CSV with a column z_um, one row a slice
    affines: Sequence[str | Path] | None = None,  # files, one a bundle
    pixel_size: float = PIXEL_SIZE_UM,  # um
    extent: Extent | None = None,  # atlas um; all that the images cover
    genes: str | Path | None = None,  # "union", "intersection" or a file
    min_qv: float = MIN_QV,
    controls: str = CONTROL_NAMES,
    scale: Mapping[str, tuple[float, float]] | None = None,  # stain -> raw intensities shown as 0 and 255
    percentiles: tuple[float, float] = PERCENTILES,  # of the stains without a scale
    regions: str | Path | None = None,
    region_names: str | Path | None = None,
    overwrite: bool = False,
) -> IngestReport:
    """Read Xenium bundles into an atlas store, one slice a bundle, in the order given.

    Transcripts below ``min_qv`` and control features are dropped: by ``is_gene`` where the table has it, else by
    ``codeword_category``, and always by name. Transcripts are placed by arithmetic at the atlas's pixel size, images
    are resampled bilinearly. Xenium has no PolyT: take DAPI, and ``18S`` where the multimodal kit was used.

    Args:
        bundles: output folders.
        output: the store to write.
        stains: names as in the images' OME-XML (``DAPI`` for the images of old bundles), in the order of the channels;
            none for no images (then ``extent`` is needed).
        z_step_um: distance of the slices; needed for several bundles unless there is a ``slice_table``.
        slice_table: CSV with the column ``z_um``, a row a slice, in order.
        affines: text files of a 3x3 or 4x4 matrix, microns to atlas microns, one a bundle in their order.
        pixel_size: um a pixel of the atlas.
        extent: part of the atlas plane to keep, in atlas microns.
        genes: which genes, where bundles differ; a file lists one name a line and sets their order.
        min_qv: least Phred quality of a transcript.
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
    if not bundles:
        raise InputError("no bundle was given; give at least one Xenium output folder")
    if not stains and extent is None:
        raise InputError("without stains the extent of the atlas is not known; give --stains or --extent")
    pattern = name_pattern(controls)
    sections = [_open_bundle(Path(bundle), stains, min_qv, pattern) for bundle in bundles]
    plan = Plan(
        stains=stains,
        slice_z=slice_positions(len(sections), z_step_um, slice_table),
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
    return build_atlas(sections, output, plan, {"reader": "xenium", "min_qv": min_qv, "controls": controls})


def _open_bundle(bundle: Path, stains: Sequence[str], min_qv: float, controls: re.Pattern[str]) -> Section:
    """Look at a bundle's files and open their headers."""
    if not bundle.is_dir():
        raise InputError(f"there is no folder {bundle}; give a Xenium output bundle")
    table = TranscriptTable(bundle / "transcripts.parquet")
    table.require("x_location", "y_location", "feature_name", "qv")
    found = _find_images(bundle) if stains else {}
    missing = [stain for stain in stains if stain not in found]
    if missing:
        raise InputError(f"{bundle} has no image of the stain {missing[0]}; it has {', '.join(found) or 'none'}")

    def blocks(progress: Progress) -> Iterator[TranscriptBlock]:
        verdicts = [name for name in ("is_gene", "codeword_category") if name in table.columns][:1]
        words = ["feature_name", *(name for name in verdicts if name == "codeword_category")]
        numbers = ["x_location", "y_location", "qv", *(name for name in verdicts if name == "is_gene")]
        for batch in table.batches(numbers, words, progress):
            yield _block(batch, min_qv)

    return Section(
        name=str(bundle),
        table=table,
        blocks=blocks,
        control=controls,
        microns_to_image=Affine.scale(1 / _image_pixel_size(bundle)),
        images=[{stain: TiffPlane(*found[stain]) for stain in stains}],
        slice_names=[bundle.name],
    )


def _block(batch: pa.RecordBatch, min_qv: float) -> TranscriptBlock:
    """Leave out what is of low quality, then what the table itself says is no gene."""
    rows = batch.num_rows
    good = batch.filter(pc.greater_equal(batch.column("qv"), min_qv))  # a missing quality is not kept
    names = set(batch.schema.names)
    genes = good
    if "is_gene" in names:
        genes = good.filter(pc.not_equal(pc.cast(good.column("is_gene"), pa.uint8()), 0))
    elif "codeword_category" in names:
        category, categories = word_column(good, "codeword_category")
        is_gene = np.array([name in GENE_CATEGORIES for name in [*categories, ""]])
        genes = good.filter(pa.array(is_gene[category]))
    gene, gene_names = word_column(genes, "feature_name")
    return TranscriptBlock(
        x=number_column(genes, "x_location").astype(np.float64),
        y=number_column(genes, "y_location").astype(np.float64),
        gene=gene,
        names=gene_names,
        dropped={LOW_QUALITY: rows - good.num_rows, CONTROL: good.num_rows - genes.num_rows},
    )


def _image_pixel_size(bundle: Path) -> float:
    path = bundle / "experiment.xenium"
    try:
        size = float(json.loads(path.read_text(encoding="utf-8"))["pixel_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not give the images' pixel_size ({error!r}); copy the bundle again") from error
    if not size > 0:
        raise InputError(f"{path} gives a pixel_size of {size:g} um; it must be positive")
    return size


def _find_images(bundle: Path) -> dict[str, tuple[Path, int]]:
    """Stain -> (file, page) of whatever layout the bundle has."""
    files = sorted((bundle / "morphology_focus").glob("*.ome.tif"))
    if files:
        return _named_channels(files)
    for name in SINGLE_IMAGES:
        if (bundle / name).is_file():
            return {NUCLEI: (bundle / name, 0)}
    stack = bundle / STACK_IMAGE
    if stack.is_file():
        return {NUCLEI: (stack, page_count(stack) // 2)}
    raise InputError(
        f"{bundle} holds no morphology image (morphology_focus/*.ome.tif or morphology*.ome.tif); give the whole bundle"
    )


def _named_channels(files: Sequence[Path]) -> dict[str, tuple[Path, int]]:
    """The channels of a folder of OME-TIFFs, by the names in their OME-XML.

    A description may be that of its own file alone. In a multi-file OME-TIFF it names the channels of all files, in
    every file or in one only, and its TiffData say which file holds which; where they do not, the files' order does.
    """
    channels: dict[str, tuple[Path, int]] = {}
    for file in files:
        pixels = _ome_pixels(file)
        names = [] if pixels is None else [channel.get("Name") for channel in pixels.iterfind("{*}Channel")]
        placed = {} if pixels is None else _tiff_data(pixels)
        is_split = len(names) == len(files) > 1
        for index, name in enumerate(names):
            source = (files[index], 0) if is_split else (file, index)
            if index in placed:
                source = (file.parent / placed[index][0], placed[index][1])
            channels.setdefault(name or f"channel {index}", source)
    return channels


def _tiff_data(pixels: ElementTree.Element) -> dict[int, tuple[str, int]]:
    """Channel -> (file name, page), as far as the description says so."""
    placed = {}
    for data in pixels.iterfind("{*}TiffData"):
        uuid = data.find("{*}UUID")
        if uuid is not None and uuid.get("FileName"):
            placed[int(data.get("FirstC", "0"))] = (str(uuid.get("FileName")), int(data.get("IFD", "0")))
    return placed


def _ome_pixels(path: Path) -> ElementTree.Element | None:
    """The Pixels element of a file's OME-XML; None where it is elsewhere."""
    text = description(path)
    try:
        # expat expands no external entities, and limits internal ones.
        root = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError as error:
        raise InputError(f"{path} has no OME-XML description ({error}); copy the bundle again") from error
    return root.find("{*}Image/{*}Pixels")
