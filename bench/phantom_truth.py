"""Answers on the phantom, whose truth is known: do maps find where genes interact, are the right cells removed?

``python bench/phantom_truth.py maps CHECKPOINT`` prints, for each pathway, the AUROC of the attention, of raw
co-expression, and the gain. ``python bench/phantom_truth.py removal CHECKPOINT --type oligodendrocyte`` knocks out the
marker genes of a type and prints precision and recall of the cells that are gone. Both make the phantom that
``--seed``, ``--size`` and ``--slices`` say, which the network should not have been trained on.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np

from teramind import Atlas, load_checkpoint
from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.phantom.celltypes import TYPE
from teramind.atlas.phantom.genes import MARKERS, PATHWAYS
from teramind.evaluate.nuclei import Nuclei
from teramind.interaction.maps import MapSource
from teramind.interaction.perturb import perturb
from teramind.interaction.statistics import coarsened
from teramind.interaction.truth import RemovalScore, score_map, score_removal

LEAST_SHARE = 0.3  # of a type's level; a gene that another expresses at more of it does not mark the type


def markers_of(name: str) -> list[str]:
    """Genes that a type expresses and no other does to speak of."""
    others = {other: levels for other, levels in MARKERS.items() if other != name}
    return [
        gene
        for gene, level in MARKERS[name].items()
        if all(levels.get(gene, 0) < LEAST_SHARE * level for levels in others.values())
    ]


def score_pathways(phantom: Phantom, atlas: Atlas, checkpoint: Path) -> None:
    """Print a line a pathway and resolution."""
    heads = ("attention", "co-expression", "sum", "gain", "shuffled")
    print(f"{'pathway':<8} {'squares':<9}" + "".join(f"{head:>14}" for head in heads) + "   true places")
    slices, height, width = (atlas.shape[0], *(-(-side // BIN_SIZE) * BIN_SIZE for side in atlas.shape[1:]))
    for name, genes in PATHWAYS.items():
        source = MapSource(atlas, checkpoint, genes)
        windows = [
            source.read(number, source.bins)[:, :, : source.image_slices(number)[2]]
            for number in range(len(source.job.windows))
        ]
        maps = np.concatenate(windows, axis=2)  # (4, K, slices, h, w)
        truth = phantom.interaction_window(genes, 0, slices, 0, height, 0, width)
        attention, expression = maps[2].sum(axis=0), maps[3]
        coarse = (
            np.stack([coarsened(plane) for plane in attention]),
            np.stack([[coarsened(plane) for plane in gene] for gene in expression]),
            np.stack([coarsened(plane) > 0.25 for plane in truth]),
        )
        for squares, planes in (("bins", (attention, expression, truth)), ("4x4 bins", coarse)):
            one = score_map(*planes)
            figures = (one.attention, one.coexpression, one.expression, one.gain, one.shuffled)
            text = "".join(f"{figure:14.3f}" for figure in figures)
            print(f"{name:<8} {squares:<9}{text}   {one.positives:,} of {one.places:,}")


def score_type(phantom: Phantom, atlas: Atlas, checkpoint: Path, name: str, folder: Path, seeds: int) -> RemovalScore:
    """Knock out the markers of a type everywhere, and judge what is gone from the images of the first seed."""
    found = perturb(
        atlas, checkpoint, folder, [f"{gene}=0" for gene in markers_of(name)], seeds=seeds, missing_genes="zero"
    )  # fmt: skip
    assert found.measurement is not None
    nuclei, lost, cells, is_type = [], [], [], []
    for z, before, _, matches in found.measurement.nuclei:
        # Slices apart, so that nuclei and cells of different ones never meet.
        aside = [z * 1e6, 0.0]
        gone = np.ones(len(before), bool)
        gone[matches.truth] = False
        there = phantom.cells(z, 0, atlas.shape[1], 0, atlas.shape[2])
        there = there[there["nucleus_major"] > 0]
        nuclei.append(Nuclei.joined([before]).places + aside)
        lost.append(gone)
        cells.append(np.stack([there["nucleus_y"], there["nucleus_x"]], axis=1) * atlas.pixel_size + aside)
        is_type.append(there["type"] == TYPE[name])
    return score_removal(*(np.concatenate(column) for column in (nuclei, lost, cells, is_type)), radius=3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("maps", "removal"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--type", default="oligodendrocyte", choices=[*TYPE])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    _, meta = load_checkpoint(arguments.checkpoint)
    pixel_size = meta.get("pixel_size") or 0.4
    phantom = Phantom(arguments.seed, arguments.size, arguments.slices, pixel_size)
    with tempfile.TemporaryDirectory() as folder:
        atlas = build_phantom(phantom, Path(folder) / "atlas.zarr")
        if arguments.question == "maps":
            score_pathways(phantom, atlas, arguments.checkpoint)
        else:
            print(f"without {', '.join(markers_of(arguments.type))}:")
            print(
                score_type(phantom, atlas, arguments.checkpoint, arguments.type, Path(folder) / "out", arguments.seeds)
            )


if __name__ == "__main__":
    main()
