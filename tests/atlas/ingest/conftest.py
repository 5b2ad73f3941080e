"""Small vendor folders whose content is known."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import tifffile

GENES = ("Aqp4", "Cldn5", "Nr4a2", "Slc17a7", "Th")


@dataclass(frozen=True)
class Points:
    """Transcripts in microns."""

    x: np.ndarray
    y: np.ndarray
    plane: np.ndarray
    gene: np.ndarray  # names

    def __len__(self) -> int:
        return len(self.x)

    def with_genes(self, gene: Sequence[str]) -> Points:
        return Points(self.x, self.y, self.plane, np.asarray(gene))


def random_points(seed: int, count: int, width_um: float, height_um: float, planes: int = 3) -> Points:
    """Points of which about a fifth lie outside [0, width) x [0, height)."""
    rng = np.random.default_rng(seed)
    return Points(
        x=rng.uniform(-0.06 * width_um, 1.06 * width_um, count),
        y=rng.uniform(-0.06 * height_um, 1.06 * height_um, count),
        plane=rng.integers(0, planes, count),
        gene=rng.choice(GENES, count),
    )


def transform_text(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:.18e}" for value in row) for row in matrix) + "\n"


def write_merscope(
    folder: Path,
    points: Points,
    images: Mapping[tuple[str, int], np.ndarray],
    transform: np.ndarray,
    *,
    version: str = "2021",
    table: str = "csv",
    tiff: Mapping[str, object] | None = None,
) -> Path:
    """Write a region folder; ``version`` is that of the header, ``table`` the kind of file."""
    (folder / "images").mkdir(parents=True)
    columns: dict[str, object] = {
        "": np.arange(len(points)),
        "barcode_id": np.zeros(len(points), dtype=np.int64),
        "global_x": points.x,
        "global_y": points.y,
        "global_z": points.plane.astype(np.float64),
        "x": points.x,
        "y": points.y,
        "fov": np.zeros(len(points), dtype=np.int64),
        "gene": pa.array([str(name) for name in points.gene]),
    }
    if version in ("transcript_id", "cell_id"):
        columns["transcript_id"] = pa.array([f"ENSMUST{index:011d}" for index in range(len(points))])
    if version == "cell_id":
        columns["cell_id"] = np.full(len(points), -1, dtype=np.int64)
    rows = pa.table(columns)
    if table == "parquet":
        pq.write_table(rows, folder / "detected_transcripts.parquet")
    else:
        path = folder / "detected_transcripts.csv"
        pa_csv.write_csv(rows, path, pa_csv.WriteOptions(quoting_style="needed"))
        if table == "csv.gz":
            (folder / "detected_transcripts.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for (stain, plane), pixels in images.items():
        tifffile.imwrite(folder / "images" / f"mosaic_{stain}_z{plane}.tif", pixels, **(tiff or {}))
    (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text(transform_text(transform))
    return folder


def ome_xml(channels: Sequence[str], files: Sequence[str] = ()) -> str:
    """The description of an OME-TIFF; with ``files``, of a multi-file one that holds a channel each."""
    named = "".join(f'<Channel ID="Channel:0:{index}" Name="{name}"/>' for index, name in enumerate(channels))
    placed = "".join(
        f'<TiffData FirstC="{index}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{index}</UUID></TiffData>'
        for index, name in enumerate(files)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16">{named}{placed}</Pixels>'
        "</Image></OME>"
    )


def write_pyramid(path: Path, planes: Sequence[np.ndarray], description: str, compression: str | None) -> None:
    """A pyramidal OME-TIFF: sub-resolutions as SubIFDs, as 10x writes them."""
    options = {"tile": (64, 64), "compression": compression, "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for index, pixels in enumerate(planes):
            file.write(pixels, subifds=1, description=description if index == 0 else None, **options)
            file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)


def write_xenium(
    bundle: Path,
    columns: Mapping[str, object],
    images: Mapping[str, np.ndarray],
    *,
    layout: str,
    compression: str | None = "zlib",
) -> Path:
    """Write a bundle; ``layout`` is mip, stack (before 2.0), numbered (2.0) or named (4.0)."""
    bundle.mkdir(parents=True)
    (bundle / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125, "analysis_sw_version": "R&D"}))
    pq.write_table(pa.table(dict(columns)), bundle / "transcripts.parquet")
    stains = list(images)
    if layout == "mip":
        write_pyramid(bundle / "morphology_mip.ome.tif", [images["DAPI"]], ome_xml(["DAPI"]), compression)
    elif layout == "stack":
        empty = np.zeros_like(images["DAPI"])
        write_pyramid(bundle / "morphology.ome.tif", [empty, images["DAPI"], empty], ome_xml(["DAPI"]), compression)
    elif layout == "numbered":
        (bundle / "morphology_focus").mkdir()
        files = [f"morphology_focus_{index:04d}.ome.tif" for index in range(len(stains))]
        for name, stain in zip(files, stains, strict=True):
            write_pyramid(bundle / "morphology_focus" / name, [images[stain]], ome_xml(stains, files), compression)
    else:
        (bundle / "morphology_focus").mkdir()
        for index, stain in enumerate(stains):
            name = f"ch{index:04d}_{stain.lower().replace('/', '_')}.ome.tif"
            write_pyramid(bundle / "morphology_focus" / name, [images[stain]], ome_xml([stain]), compression)
    return bundle


def counted(
    x_px: np.ndarray, y_px: np.ndarray, gene: np.ndarray, genes: Sequence[str], shape: tuple[int, int]
) -> np.ndarray:
    """Brute force: (genes, bin rows, bin columns) counts of named points in px."""
    counts = np.zeros((len(genes), -(-shape[0] // 16), -(-shape[1] // 16)), dtype=np.int64)
    for x, y, name in zip(np.floor(x_px), np.floor(y_px), gene, strict=True):
        if name in genes and 0 <= x < shape[1] and 0 <= y < shape[0]:
            counts[list(genes).index(name), int(y) // 16, int(x) // 16] += 1
    return counts


@dataclass(frozen=True)
class Folders:
    """What the tests make vendor folders with."""

    genes = GENES
    points: Callable[..., Points] = random_points
    merscope: Callable[..., Path] = write_merscope
    xenium: Callable[..., Path] = write_xenium
    counted: Callable[..., np.ndarray] = counted


@pytest.fixture
def folders() -> Folders:
    return Folders()


@pytest.fixture(scope="session")
def liver() -> Path:
    """The real MERSCOPE sample, a field of view of mouse liver."""
    shared = os.environ.get("TERAMIND_SHARED_DATA")
    data = Path(shared) if shared else Path(__file__).parents[3].parent / "shared" / "data"
    if not (data / "merscope_liver").is_dir():
        pytest.skip(f"the real sample {data / 'merscope_liver'} is not here")
    return data / "merscope_liver"
