"""Train the network that comes with the package: phantom brains of three seeds, one more held out.

    python bench/train_phantom.py FOLDER --minutes 120 [--start CHECKPOINT] [--timesteps log-normal]

FOLDER gets the atlases and the run; its ``run/checkpoint.safetensors`` is what ``teramind/models`` ships. The command
can be stopped and given again: what is there is used, and the training goes on. With --start it begins from a network
that was trained before, such as the one in ``teramind/models``. With log-normal timesteps it sees most often the noise
levels from 0.05 to 1, t = 10 to 260, at which nuclei get their outlines.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.model.policy import computes_in
from teramind.train.options import Options
from teramind.train.run import train
from teramind.train.timesteps import TIMESTEPS

PIXEL_SIZE = 0.3  # um: eight times as many nuclei in a crop as at the 0.108 um of the instruments
TRAINING_SEEDS, HELD_OUT_SEED = (1, 2, 3), 4  # the demonstration makes seed 0
LOG_NORMAL = {"noise_mean": -1.1, "noise_spread": 1.4}  # around the images' standard deviation
MODEL = {
    "patch_size": 64,
    "gene_slices": 4,
    "base_channels": 16,
    "channel_mult": (1, 2, 3, 4),
    "res_blocks": 1,
    "embed_channels": 64,
    "dropout": 0.0,
}
TRAINING: dict[str, Any] = {
    "held_out_crops": 16,
    "batch": 4,
    "loss": "velocity",
    "deviation": 0.2,
    "cap": 150.0,
    "paths": "boundary",
    "border": 6.0,
    "centre_every": 250,
    "region": 3,
    "context": "atlas",
    "optimizer": "adamw",
    "betas": (0.9, 0.99),
    "schedule": "cosine",
    "warmup": 100,
    "average": 0.998,
    "evaluate_every": 250,
    "sample_every": 500,
    "checkpoint_dtype": "float16",
}


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.folder.mkdir(exist_ok=True)
    atlases = [atlas(arguments.folder, seed, size=2048, slices=8) for seed in TRAINING_SEEDS]
    options = Options(
        minutes=arguments.minutes,
        lr=arguments.lr,
        init=arguments.start or "fast",
        timesteps=arguments.timesteps,
        dtype=dtype(arguments.device),
        compile=not arguments.eager,
        held_out=str(atlas(arguments.folder, HELD_OUT_SEED, size=1024, slices=4)),
        device=arguments.device,
        **TRAINING | LOG_NORMAL,
    )
    run = arguments.folder / "run"
    print(train(atlases, run, options, MODEL, resume=run.exists()).summary())


def dtype(device: str) -> str:
    """Of the training: bfloat16 where the device computes in it."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    return "bfloat16" if computes_in(torch.bfloat16, place) else "float32"


def atlas(folder: Path, seed: int, *, size: int, slices: int) -> Path:
    path = folder / f"phantom-{seed}.zarr"
    if not path.exists():
        build_phantom(Phantom(seed=seed, size=size, slices=slices, pixel_size=PIXEL_SIZE), path)
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--start", metavar="CHECKPOINT", help="begin from a trained network")
    parser.add_argument("--timesteps", choices=TIMESTEPS, default="uniform", help="how often which is seen")
    parser.add_argument("--eager", action="store_true", help="do not compile: for a machine that compiles slowly")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
