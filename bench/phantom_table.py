"""How well the network knows a phantom brain it never saw: several samples, shuffled genes, baselines and the ceiling.

    python bench/phantom_table.py FOLDER [--checkpoint FILE] [--seeds 8] [--size 640]

The baselines learn from a phantom of the training; the brain that is told is of a seed that was in no training and no
test. FOLDER gets the images and ``report/report.html``; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_phantom import TRAINING_SEEDS

from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.store import Atlas
from teramind.demo import CHECKPOINT, SEED
from teramind.evaluate import evaluate, shuffle_genes
from teramind.evaluate.command import as_text
from teramind.generate import generate
from teramind.model.checkpoint import read_header

SLICES = 2
STEPS = 30  # a little network leaves less noise on the borders of patches with 30 than with 15


def main() -> None:
    arguments = parse()
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)
    pixel_size = read_header(arguments.checkpoint)[1]["pixel_size"]
    atlas = phantom(folder / "truth.zarr", SEED, arguments.size, pixel_size)
    redrawn = phantom(folder / "redrawn.zarr", SEED, arguments.size, pixel_size, morphology_seed=1)
    learnt = phantom(folder / "learnt.zarr", TRAINING_SEEDS[0], 1024, pixel_size)
    settings = {"checkpoint": arguments.checkpoint, "steps": arguments.steps, "resume": True}
    samples = [folder / f"sample-{seed}.ome.zarr" for seed in range(arguments.seeds)]
    for seed, sample in enumerate(samples):
        print(generate(atlas, output=sample, seed=seed, **settings).summary(), flush=True)
    shuffled = folder / "shuffled.ome.zarr"
    generate(shuffle_genes(atlas, seed=0), output=shuffled, **settings)
    evaluation = evaluate(
        samples, atlas, folder / "report", train=learnt.path, ceiling=redrawn.path, shuffled=shuffled, window=1024
    )
    print(as_text(evaluation))


def phantom(path: Path, seed: int, size: int, pixel_size: float, morphology_seed: int | None = None) -> Atlas:
    if path.exists():
        return Atlas.open(path)
    drawn = Phantom(seed=seed, size=size, slices=SLICES, pixel_size=pixel_size, morphology_seed=morphology_seed)
    return build_phantom(drawn, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--steps", type=int, default=STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
