"""What choices of the network and its sampler cost and bring, on a phantom brain that none of the networks saw.

    python bench/ablation.py gene-slices|patch-size|steps FOLDER [--training-steps 1000] [--checkpoint FILE]

- gene-slices: networks of 1, 4 and 8 gene slices a window, which make 1, 2 and 4 image slices at once.
- patch-size: networks with patches of 32, 64 and 128 px.
- steps: one network, the shipped one if no other is given, sampled with 5 to 30 DDIM steps.

The networks are small, begin alike, and see the same places of the same brains equally often: every crop is 128 px wide
whatever the patch. FOLDER gets runs, images and reports; a run that was stopped goes on where it was. The table has the
columns of the paper's figure S5 (quality against cost), with nuclei in the place of the features of photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_phantom import PIXEL_SIZE, TRAINING, TRAINING_SEEDS, atlas, dtype

from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.store import Atlas
from teramind.demo import CHECKPOINT, SEED
from teramind.engine.report import RunReport
from teramind.evaluate import Row, evaluate
from teramind.generate import generate
from teramind.model.checkpoint import read_header
from teramind.train.options import Options
from teramind.train.run import train

CROP = 128  # px that every crop predicts, in whole patches
SMALL: dict[str, Any] = {
    "patch_size": 64,
    "gene_slices": 4,
    "base_channels": 8,
    "channel_mult": (1, 2, 3, 4),
    "res_blocks": 1,
    "embed_channels": 64,
    "dropout": 0.0,
}
GENE_SLICES, PATCH_SIZES, STEPS = (1, 4, 8), (32, 64, 128), (5, 10, 15, 20, 30)
USUAL_STEPS = 15
SLICES, SIZE = 6, 512  # of the brain that is told: with the zero slices at its ends, one whole window of 8 gene slices
COMPARED = (1, 5)  # which makes these; they are compared whatever the window


@dataclass(frozen=True)
class Trial:
    """A network and how it is sampled."""

    name: str
    checkpoint: Path
    steps: int = USUAL_STEPS
    training: str = ""


def main() -> None:
    arguments = parse()
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)
    print(HEAD)
    for trial in trials(arguments):
        print(line(trial, *told(folder, trial)), flush=True)


def trials(arguments: argparse.Namespace) -> Iterator[Trial]:
    """The trials of an ablation; each network is trained when its turn comes."""
    if arguments.what == "steps":
        for steps in STEPS:
            yield Trial(f"{steps} steps", arguments.checkpoint, steps)
    elif arguments.what == "gene-slices":
        for slices in GENE_SLICES:
            yield trained(arguments, f"{slices} gene slices", gene_slices=slices)
    else:
        for size in PATCH_SIZES:
            yield trained(arguments, f"patches of {size} px", patch_size=size)


def trained(arguments: argparse.Namespace, name: str, **changed: Any) -> Trial:
    """A small network, trained now or before."""
    model = SMALL | changed
    run = arguments.folder / name.replace(" ", "-")
    atlases = [atlas(arguments.folder, seed, size=1024, slices=8) for seed in TRAINING_SEEDS]
    training = TRAINING | {
        "region": CROP // model["patch_size"] + 1,
        "init": "fast",
        "dtype": dtype(arguments.device),
        "sample_every": 0,
        "log_every": 100,
    }
    options = Options(steps=arguments.training_steps, lr=arguments.lr, device=arguments.device, **training)
    report = train(atlases, run, options, model, resume=run.exists())
    return Trial(name, report.checkpoint, training=f"{report.seconds / 60:.1f} min")


def told(folder: Path, trial: Trial) -> tuple[RunReport, Row]:
    """What a network makes of the brain, and how well."""
    pixel_size = read_header(trial.checkpoint)[1].get("pixel_size", PIXEL_SIZE)
    path = folder / f"truth-{pixel_size:g}.zarr"
    if not path.exists():
        build_phantom(Phantom(seed=SEED, size=SIZE, slices=SLICES, pixel_size=pixel_size), path)
    brain = Atlas.open(path)
    image = folder / f"{trial.name.replace(' ', '-')}.ome.zarr"
    made = generate(brain, trial.checkpoint, image, steps=trial.steps, overwrite=True)
    [row] = evaluate(image, brain, slices=COMPARED, baselines=(), progress=False).samples
    return made, row


HEAD = (
    f"{'':22} {'nuclei F1':>9} {'error':>8} {'size':>6} {'texture FD':>10} {'PSNR':>6} {'SSIM':>6} {'seams':>12} "
    f"{'voxels/s':>9}  training"
)


def line(trial: Trial, made: RunReport, row: Row) -> str:
    [distance] = row.distances.values()
    seam = row.seams["decoder patch"]
    return (
        f"{trial.name:22} {row.nuclei['f1']:9.3f} {row.nuclei['count_error']:+8.1%} {row.nuclei['area_distance']:6.2f} "
        f"{distance:10.3g} {row.similarity['psnr']:6.2f} {row.similarity['ssim']:6.3f} "
        f"{seam['score']:5.2f} ±{seam['error']:5.2f} {made.voxels / made.seconds:9,.0f}  {trial.training}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gene-slices", "patch-size", "steps"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--training-steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="for steps")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
