"""Both systems together: an image of a slice that was never measured, from cells that were imputed.

python bench/impute_image.py [CHECKPOINT] [--seed 31] [--side 512] [--picture PICTURE.png]

A phantom's tissue is measured in sections 200 um apart. In the middle between two of them lie seven slices, 10 um apart
as the network knows them, that nobody measured. They are generated from three kinds of transcripts: those of imputed
cells (three networks trained on six sections, ``add_virtual_slices``), the true ones, and those of the nearest measured
section, seven times. The nuclei of two of the seven are compared with those of the phantom's own image; "truth drawn
again" has the same transcripts and draws what they do not decide anew. Imputed cells are not at the places of the true
ones, which nobody can know: for them F1 is as good as chance, and numbers, sizes and density are what counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zarr
from phantom_brain import GENES, PhantomBrain, regulatory_edges

from teramind import Atlas
from teramind.atlas.insert import NewSlice, with_slices
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.demo import CHECKPOINT
from teramind.evaluate.conditioning import chance_matches
from teramind.evaluate.nuclei.compare import area_distance
from teramind.evaluate.nuclei.matching import f1_of, match_nuclei
from teramind.evaluate.nuclei.segment import Watershed
from teramind.evaluate.nuclei.table import Nuclei, measure, reduced, reduction
from teramind.generate import generate
from teramind.impute.cells import join_cells
from teramind.impute.celltype import train_types
from teramind.impute.expression import train_expression
from teramind.impute.filling import fill
from teramind.impute.fitting import PRESETS
from teramind.impute.gene_order import order_genes
from teramind.impute.location import train_locations
from teramind.impute.models import Models
from teramind.impute.placement import PlacementOptions
from teramind.impute.planes import Plane
from teramind.impute.virtual_slices import Slab, add_virtual_slices
from teramind.model.checkpoint import read_header
from teramind.ngff.colors import stain_colors
from teramind.output.preview import composite, save_picture, side_by_side

SPACING, STEP = 200.0, 10.0  # um: of the measured sections, of the slices that the network knows
MIDDLE, SLICES = 100.0, 7  # um, of the slices that nobody measured
SECTIONS = (-400.0, -200.0, 0.0, 200.0, 400.0, 600.0)  # um, measured
HALF_AXES = np.array([0.4, 0.4, 0.8])  # mm
SHOWN = slice(3, 5)  # slices of the denser atlas to generate: at 90 and 100 um, far enough from the measured ones
MATCH_UM, SQUARE_UM = 3.0, 50.0


def train(brain: PhantomBrain, share: float, seed: int) -> tuple[Models, list]:
    """Networks of the measured sections, with a share of the small preset's steps; and the sections."""
    sections = [brain.cut(Plane.coronal(z / 1000), name=f"{z:g} um") for z in SECTIONS]
    cells, preset = join_cells(sections), PRESETS["small"]
    options = [replace(each, seed=seed, steps=round(each.steps * share)) for each in preset.options]
    order = order_genes(GENES, regulatory_edges())
    return Models(
        train_locations(cells, options[0], config=preset.shapes[0]),
        train_types(cells, options[1], config=preset.shapes[1]),
        train_expression(cells, options[2], config=preset.shapes[2], order=order),
    ), sections


def denser_atlases(folder: Path, seed: int, side: int, pixel_size: float, share: float) -> dict[str, Atlas]:
    """The measured atlas with the slices between, from each kind of transcripts."""
    span = {"seed": seed, "size": side, "pixel_size": pixel_size}
    measured = build_phantom(Phantom(slices=2, z_step=SPACING, **span), folder / "measured.zarr")
    half = side * pixel_size / 2000
    brain = PhantomBrain(seed, HALF_AXES, np.array([half, half, MIDDLE / 1000]))
    models, sections = train(brain, share, seed)
    plane, thickness = Plane.coronal(MIDDLE / 1000), SLICES * STEP / 1000
    placement = PlacementOptions(thickness=thickness, seed=seed)
    slab = Slab(fill(models, join_cells(sections), plane, placement=placement).cells, plane, thickness, SLICES)
    places = MIDDLE + STEP * (np.arange(SLICES) - SLICES // 2)
    truth, window = true_phantom(span), (0, side, 0, side)
    true = [NewSlice(float(z), *truth.transcripts(round(z / STEP), *window)) for z in places]
    nearest = Phantom(slices=1, z_step=STEP, **span).transcripts(0, *window)
    return {
        "true genes": with_slices(measured, folder / "true.zarr", true),
        "imputed cells": add_virtual_slices(measured, folder / "imputed.zarr", [slab]).atlas,
        "nearest section": with_slices(
            measured, folder / "nearest.zarr", [NewSlice(float(z), *nearest) for z in places]
        ),
    }


def true_phantom(span: dict, morphology_seed: int | None = None) -> Phantom:
    return Phantom(slices=round(SPACING / STEP) + 1, z_step=STEP, morphology_seed=morphology_seed, **span)


def nuclei_of(planes: np.ndarray, pixel_size: float) -> list[Nuclei]:
    """Nuclei of each plane (z, y, x) of DAPI; places in um."""
    factor = reduction(pixel_size)
    coarse = [reduced(plane, factor) for plane in planes]
    label = Watershed().calibrate(coarse, pixel_size * factor)
    return [measure(label(plane), plane, pixel_size * factor) for plane in coarse]


def line(true: list[Nuclei], found: list[Nuclei], extent: float) -> str:
    """F1, number, sizes, and how far apart the numbers in squares of 50 um are, of the true number."""
    pairs = sum(len(match_nuclei(a.places, b.places, MATCH_UM).truth) for a, b in zip(true, found, strict=True))
    numbers = [sum(map(len, side)) for side in (true, found)]
    bins = np.linspace(0, extent, max(2, round(extent / SQUARE_UM) + 1))
    maps = [np.stack([np.histogram2d(*part.places.T, bins=(bins, bins))[0] for part in side]) for side in (true, found)]
    areas = [np.concatenate([part.area for part in side]) for side in (true, found)]
    apart = np.abs(maps[0] - maps[1]).sum() / numbers[0]
    size = area_distance(*areas) if all(numbers) else np.nan
    return f"{f1_of(2 * pairs, sum(numbers)):8.3f}{numbers[1] / numbers[0] - 1:+11.0%}{apart:12.2f}{size:12.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=31, help="of the brain; the network was trained on others")
    parser.add_argument("--side", type=int, default=512, help="of the image, px")
    parser.add_argument("--train-share", type=float, default=0.4, help="of the small preset's steps (default: 0.4)")
    parser.add_argument("--steps", type=int, default=15, help="of the image's diffusion")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--picture", type=Path, help="file for truth and results side by side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, meta = read_header(options.checkpoint)
    pixel_size, extent = meta["pixel_size"], options.side * meta["pixel_size"]
    span = {"seed": options.seed, "size": options.side, "pixel_size": pixel_size}
    places = [round((MIDDLE + STEP * (index - 1 - SLICES // 2)) / STEP) for index in range(SHOWN.start, SHOWN.stop)]
    window = (places[0], places[-1] + 1, 0, options.side, 0, options.side)
    images = {"truth": true_phantom(span).image_window(*window)}
    images["truth drawn again"] = true_phantom(span, options.seed + 1).image_window(*window)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, atlas in denser_atlases(folder, options.seed, options.side, pixel_size, options.train_share).items():
            output = folder / f"{kind}.ome.zarr"
            generate(
                atlas, options.checkpoint, output, slices=(SHOWN.start, SHOWN.stop), steps=options.steps,
                device=options.device, snapshot_minutes=0, progress=False,
            )  # fmt: skip
            images[kind] = np.asarray(zarr.open_group(output, mode="r")["0"][:])
    true = nuclei_of(images["truth"][0], pixel_size)
    counted = sum(map(len, true))
    print(f"{options.checkpoint.name}: {extent:.0f} um squared, {len(places)} slices, {counted} true nuclei")
    print(f"{'nuclei':18}{'F1':>8}{'number':>11}{'density':>12}{'area, um2':>12}")
    for kind in ("truth drawn again", "true genes", "imputed cells", "nearest section"):
        print(f"{kind:18}{line(true, nuclei_of(images[kind][0], pixel_size), extent)}")
    chance = [chance_matches(part, (extent, extent), MATCH_UM, 20.0, 0, 20).mean() for part in true]
    print(f"{'chance':18}{f1_of(sum(chance), sum(map(len, true))):8.3f}")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    if options.picture:
        colors = stain_colors(["DAPI", "PolyT"])
        panels = {kind: composite(image[:, 1], colors) for kind, image in images.items()}
        save_picture(options.picture, side_by_side(panels, pixel_size_um=pixel_size))


if __name__ == "__main__":
    main()
