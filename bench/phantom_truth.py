"""Answers on the phantom, whose truth is known: do maps find where genes interact, are the right cells removed?

    python bench/phantom_truth.py CHECKPOINT [--only maps|removal]

``maps``: for each published pathway the AUROC, over places, of the attention-weighted expression against where the
phantom's genes interact; beside it what expression tells alone (the product and the sum of the counts), the gain over
the better of the two, and two controls: the same network on an atlas whose transcripts are shuffled in space, and maps
of other genes in place of the pathway's.

``removal``: the marker genes of a type are set to 0 everywhere, images of several seeds are generated from the same
noise with and without, and the nuclei that are gone are judged by the cells that are known to be there. Last, a gene
that every cell has alike, which should stay within the noise floor.

The phantoms have to be none that the network was trained on. One thread: ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from teramind import Atlas, load_checkpoint
from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.phantom.celltypes import TYPE
from teramind.atlas.phantom.genes import GENES, HOUSEKEEPING, MARKERS, PATHWAYS, PROFILES
from teramind.engine.plan import Rectangle
from teramind.evaluate import shuffle_genes
from teramind.evaluate.nuclei import match_nuclei
from teramind.evaluate.sources import GeneratedImage
from teramind.interaction.changes import SetGene
from teramind.interaction.effects import EVERYWHERE, Effect
from teramind.interaction.experiment import Experiment, Question
from teramind.interaction.maps import MapSource
from teramind.interaction.statistics import coarsened
from teramind.interaction.truth import RemovalScore, auroc, score_map, score_removal

SIZE = 2048
MAP_PHANTOMS, SHUFFLES, OTHER_PAIRS = (5, 12, 29), 3, 10
"""Phantoms with cells of all pathways."""

TYPES = ("granule cell", "oligodendrocyte", "astrocyte")
REMOVAL_PHANTOM, REMOVAL_SIDE, REMOVAL_SLICES = 6, 448, (2, 4)
SEEDS = 3
RADIUS = 3.0  # um within which a nucleus and a cell are the same
BLUR = 1.5  # um; standard deviation that images are smoothed with before they are read at cells
LEAST_SHARE = 0.3  # of a type's level; a gene that another expresses at more of it does not mark the type
SHOWN = ("difference, grey levels (rms)", "nuclei", "nuclei lost", "mean DAPI, grey levels", "mean PolyT, grey levels")


def markers_of(name: str) -> list[str]:
    """Genes that a type expresses and no other does to speak of."""
    others = {other: levels for other, levels in MARKERS.items() if other != name}
    return [
        gene
        for gene, level in MARKERS[name].items()
        if all(levels.get(gene, 0) < LEAST_SHARE * level for levels in others.values())
    ]


# ---- maps ------------------------------------------------------------------------------------------------------------


def whole_maps(atlas: Atlas, checkpoint: Path, genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Attention of the window, summed over the genes (slices, h, w), and their counts (K, slices, h, w)."""
    source = MapSource(atlas, checkpoint, genes)
    windows = [
        source.read(number, source.bins)[:, :, : source.image_slices(number)[2]]
        for number in range(len(source.job.windows))
    ]
    maps = np.concatenate(windows, axis=2)  # (4, K, slices, h, w)
    return maps[2].sum(axis=0), maps[3]


def as_bins(planes: np.ndarray) -> np.ndarray:
    return planes


def as_squares(planes: np.ndarray) -> np.ndarray:
    return np.stack([coarsened(plane) for plane in planes])


RESOLUTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bins": as_bins, "4x4 bins": as_squares}


def map_scores(phantom: Phantom, atlas: Atlas, checkpoint: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Pathway, resolution and figures of a phantom."""
    generator = np.random.default_rng(phantom.seed)
    slices, height, width = (atlas.shape[0], *(-(-side // BIN_SIZE) * BIN_SIZE for side in atlas.shape[1:]))
    pathway_genes = {gene for genes in PATHWAYS.values() for gene in genes}
    free = [gene for gene in atlas.genes if gene not in pathway_genes]
    pairs = [generator.choice(free, 2, replace=False).tolist() for _ in range(OTHER_PAIRS)]
    of_others = [whole_maps(atlas, checkpoint, pair)[0] for pair in pairs]
    elsewhere = [shuffle_genes(atlas, seed) for seed in range(SHUFFLES)]
    for name, genes in PATHWAYS.items():
        truth = phantom.interaction_window(genes, 0, slices, 0, height, 0, width)
        attention, counts = whole_maps(atlas, checkpoint, genes)
        of_shuffled = [whole_maps(view, checkpoint, genes)[0] for view in elsewhere]
        for squares, at in RESOLUTIONS.items():
            true = at(truth) > 0.25
            score = score_map(at(attention), np.stack([at(gene) for gene in counts]), true)
            yield name, squares, {
                "attention": score.attention,
                "product": score.coexpression,
                "sum": score.expression,
                "gain": score.gain,
                "shuffled": statistics.mean(auroc(at(one), true) for one in of_shuffled),
                "other genes": statistics.mean(auroc(at(one), true) for one in of_others),
                "true, %": 100 * true.mean(),
            }  # fmt: skip


def tell_maps(arguments: argparse.Namespace, pixel_size: float, folder: Path) -> None:
    """Print a line a pathway and resolution: mean over phantoms, and the range where there are several."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in arguments.phantoms:
        phantom = Phantom(seed, arguments.size, 4, pixel_size)
        atlas = build_phantom(phantom, folder / f"maps-{seed}.zarr")
        for name, squares, figures in map_scores(phantom, atlas, arguments.checkpoint):
            found.setdefault((name, squares), []).append(figures)
    print(f"\nAUROC of where genes interact; phantoms {arguments.phantoms}, mean (least to most)")
    for (name, squares), rows in found.items():
        print(f"{name} {squares}")
        for figure in rows[0]:
            values = [row[figure] for row in rows]
            print(f"    {figure:<12} {statistics.mean(values):7.3f}  ({min(values):.3f} to {max(values):.3f})")


# ---- removal ---------------------------------------------------------------------------------------------------------


def cells_of(phantom: Phantom, z: int) -> np.ndarray:
    """Cells of a slice whose nucleus is cut."""
    cells = phantom.cells(z, 0, phantom.shape[1], 0, phantom.shape[2])
    return cells[cells["nucleus_major"] > 0]


def choose_place(phantom: Phantom, side: int, patch: int) -> Rectangle:
    """The window of the patch grid that holds most cells of the rarest of the types."""
    cells = np.concatenate([cells_of(phantom, z) for z in range(*REMOVAL_SLICES)])
    kinds = [cells[cells["type"] == TYPE[name]] for name in TYPES]
    _, height, width = phantom.shape
    places = [
        Rectangle(y, y + side, x, x + side)
        for y in range(0, height - side + 1, patch)
        for x in range(0, width - side + 1, patch)
    ]
    return max(places, key=lambda place: min(int(within(kind, place).sum()) for kind in kinds))


def within(cells: np.ndarray, place: Rectangle) -> np.ndarray:
    y, x = cells["nucleus_y"], cells["nucleus_x"]
    return (y >= place.y0) & (y < place.y1) & (x >= place.x0) & (x < place.x1)


class Removal:
    """Images without and with changes of the phantom's genes, and the cells that are known to be in them."""

    def __init__(self, arguments: argparse.Namespace, pixel_size: float, patch: int, folder: Path) -> None:
        self.phantom = Phantom(REMOVAL_PHANTOM, arguments.size, 6, pixel_size)
        atlas = build_phantom(self.phantom, folder / "removal.zarr")
        self.place = choose_place(self.phantom, arguments.side, patch)
        y0, y1, x0, x1 = self.place
        options = {
            "roi": f"{y0}:{y1},{x0}:{x1}", "slices": REMOVAL_SLICES, "border": "constant", "dtype": arguments.dtype,
            "steps": arguments.steps, "device": arguments.device, "tile": arguments.side, "progress": False,
        }  # fmt: skip
        question = Question(None, arguments.seeds, "DAPI", RADIUS, "watershed", None)
        self.experiment = Experiment(atlas, arguments.checkpoint, folder / "out", question, options)
        self.experiment.begin(resume=False, overwrite=False)
        self.baselines = self.experiment.baselines()
        cells = {z: cells_of(self.phantom, z) for z in range(*REMOVAL_SLICES)}
        self.cells = {z: one[within(one, self.place)] for z, one in cells.items()}

    def without(self, name: str, genes: Sequence[str]) -> tuple[list[Effect], RemovalScore, float]:
        """Effects of setting genes to 0; how well what is gone is the type, over all seeds; AUROC of the dimming."""
        folder = self.experiment.folder
        changes = [SetGene(gene, 0) for gene in genes]
        paths = [folder / f"{name}-{seed}.ome.zarr" for seed in self.experiment.seeds]
        changed = self.experiment.changed(changes, paths)
        measurement = self.experiment.measure(changed)
        columns: list[list[Any]] = [[], [], [], []]
        for seed, slices in measurement.nuclei.items():
            for z, before, _, matches in slices:
                aside = [seed * 1e9 + z * 1e6, 0.0]  # so that nuclei and cells of different images never meet
                gone = np.ones(len(before), bool)
                gone[matches.truth] = False
                places, is_type = self.known(z, name)
                for column, values in zip(columns, (before.places + aside, gone, places + aside, is_type), strict=True):
                    column.append(values)
        score = score_removal(*(np.concatenate(column) for column in columns), radius=RADIUS)
        return measurement.effects(), score, self.dimming(changed, name)

    def known(self, z: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Places (n, 2) of a slice's cells, um, and which are of a type; all are where the name is none."""
        cells = self.cells[z]
        places = np.stack([cells["nucleus_y"], cells["nucleus_x"]], axis=1) * self.phantom.pixel_size
        return places, cells["type"] == TYPE.get(name, -1)

    def dimming(self, changed: Sequence[Path], name: str) -> float:
        """AUROC: are cells of the type those whose nuclei grow darker? It needs no segmentation."""
        darker, of_type = [], []
        for paths in zip(self.baselines, changed, strict=True):
            before, after = (GeneratedImage(path, self.experiment.atlas) for path in paths)
            for z, cells in self.cells.items():
                difference = before.read(z, self.place)[0].astype(np.float64) - after.read(z, self.place)[0]
                smooth = gaussian_filter(difference, BLUR / self.phantom.pixel_size)
                row, column = (cells["nucleus_y"] - self.place.y0).astype(int), cells["nucleus_x"] - self.place.x0
                darker.append(smooth[row, column.astype(int)])
                of_type.append(cells["type"] == TYPE.get(name, -1))
        return auroc(np.concatenate(darker), np.concatenate(of_type))

    def quality(self) -> str:
        """How far the images without a change show the cells at all."""
        pairs = nuclei = 0
        for seed in self.experiment.seeds:
            measured = self.experiment.baseline_nuclei(seed)
            for z, found in measured.items():
                pairs += len(match_nuclei(self.known(z, "")[0], found.places, RADIUS).truth)
                nuclei += len(found)
        known = len(self.experiment.seeds) * sum(map(len, self.cells.values()))
        return (
            f"{known // len(self.experiment.seeds)} cells, F1 of nuclei against them {2 * pairs / (nuclei + known):.2f}"
        )


def tell_removal(arguments: argparse.Namespace, pixel_size: float, patch: int, folder: Path) -> None:
    """Print a line a type, and the effects of all against the noise floor."""
    removal = Removal(arguments, pixel_size, patch, folder)
    y0, y1, x0, x1 = removal.place
    where = f"px {y0}:{y1},{x0}:{x1} of slices {REMOVAL_SLICES[0]}:{REMOVAL_SLICES[1]}"
    print(f"\nremoval; phantom {REMOVAL_PHANTOM}, {where}, {arguments.seeds} seeds, {arguments.steps} steps")
    print(f"images without a change: {removal.quality()}; in brackets what as many nuclei lost at random would give")
    heads = ("nuclei", "of type", "lost", "precision", "of known cells", "recall", "others lost", "dimming AUROC")
    print(f"{'removed':<16}" + "".join(f"{head:>16}" for head in heads))
    gene = HOUSEKEEPING[0]
    effects = {}
    for name, genes in [*((name, markers_of(name)) for name in TYPES), (gene, [gene])]:
        effects[name], score, dimming = removal.without(name, genes)
        cells = [
            f"{score.nuclei}", f"{score.of_type}", f"{score.lost}",
            f"{score.precision:.2f} ({score.chance_precision:.2f})",
            f"{score.known_precision:.2f} ({score.chance_known_precision:.2f})",
            f"{score.recall:.2f} ({score.chance_recall:.2f})",
            f"{score.other_lost / score.other:.3f}", f"{dimming:.2f}",
        ]  # fmt: skip
        print(f"{name:<16}" + "".join(f"{cell:>16}" for cell in cells))
        if name in TYPE:
            share = PROFILES[TYPE[name], [GENES.index(gene) for gene in genes]].sum()
            print(f"    without {', '.join(genes)}: {share:.0%} of its transcripts")
    print(f"\n{'removed':<18} {'quantity':<32} {'effect':>8} {'95 % of it':>18} {'noise floor':>12}  beyond it")
    for name, rows in effects.items():
        for row in rows:
            if row.zone == EVERYWHERE and row.quantity in SHOWN:
                span = f"{row.low:.2f} to {row.high:.2f}"
                figures = f"{row.effect:8.2f} {span:>18} {row.noise_floor:12.2f}"
                print(f"{name:<18} {row.quantity:<32} {figures}  {'yes' if row.beyond_noise else 'no'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--only", choices=("maps", "removal"))
    parser.add_argument("--size", type=int, default=SIZE, help="of the phantoms, px")
    parser.add_argument("--phantoms", type=int, nargs="+", default=MAP_PHANTOMS, help="seeds of those that are mapped")
    parser.add_argument("--side", type=int, default=REMOVAL_SIDE, help="of the images, px")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the noise")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    net, meta = load_checkpoint(arguments.checkpoint)
    pixel_size = float(meta["pixel_size"])
    print(f"{arguments.checkpoint.name}: {pixel_size} um a pixel, torch {torch.__version__}, {arguments.dtype}")
    start = process_time()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "removal":
            tell_maps(arguments, pixel_size, Path(folder))
        if arguments.only != "maps":
            tell_removal(arguments, pixel_size, net.config.patch_size, Path(folder))
    print(f"\n{process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
