"""Fit a small network briefly to one small atlas, so that the whole way from folder to picture can be shown.

    python bench/fit_sample.py ATLAS.zarr OUT.safetensors --minutes 20

The network learns the very tissue it will be asked for: what comes out shows that the machinery works, not that
anything was learned about other tissue. This is ``teramind train`` with the fast start and the velocity loss on the
boundary-aware path alone, of which only the checkpoint is kept.
"""

import argparse
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from teramind.train.options import Options
from teramind.train.run import train


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = Options(
        minutes=arguments.minutes,
        batch=arguments.batch,
        lr=arguments.lr,
        seed=arguments.seed,
        init=str(arguments.start) if arguments.start else "fast",
        checkpoint_dtype="float16" if arguments.half else "float32",
        loss="velocity",
        paths="boundary",
        region=3,
        context="atlas",
        optimizer="adamw",
        betas=(0.9, 0.99),
        schedule="cosine",
        warmup=50,
        average=0.998,
        log_every=100,
    )
    model = {
        "patch_size": arguments.patch_size,
        "gene_slices": arguments.gene_slices,
        "base_channels": arguments.base_channels,
        "channel_mult": arguments.channel_mult,
        "res_blocks": 1,
        "embed_channels": 64,
        "dropout": 0.0,
    }
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as folder:
        report = train([arguments.atlas], Path(folder) / "run", options, model)
        shutil.move(report.checkpoint, arguments.output)
    print(replace(report, checkpoint=arguments.output).summary())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patch-size", type=int, default=64)
    parser.add_argument("--gene-slices", type=int, default=4)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--channel-mult", type=int, nargs=4, default=(1, 2, 4, 4))
    parser.add_argument("--start", type=Path, help="go on from these weights")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
