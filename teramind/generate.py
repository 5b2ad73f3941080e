"""Generate the tissue image of an atlas: its transcripts through a Tera-MIND network into an OME-Zarr image."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teramind.callable_module import make_callable
from teramind.errors import InputError

if TYPE_CHECKING:
    from teramind.atlas.store import Atlas
    from teramind.engine.frame import Border
    from teramind.engine.job import Options
    from teramind.engine.panel import Missing
    from teramind.engine.report import RunReport


def generate(
    atlas: Atlas | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    roi: str | Sequence[int] | None = None,
    slices: str | tuple[int, int] | None = None,
    border: Border = "exact",
    steps: int = 15,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    state_dtype: str = "float16",
    noise: str = "position",
    tile: int | None = None,
    memory: int | str | None = None,
    skip_below: int | None = None,
    quantise: str = "round",
    resume: bool = False,
    overwrite: bool = False,
    *,
    genes: str | os.PathLike[str] | Sequence[str] | None = None,
    missing_genes: Missing = "error",
    map_genes: str | os.PathLike[str] | None = None,
    workers: int = 1,
    snapshot_minutes: float = 20.0,
    scratch: str | os.PathLike[str] | None = None,
    format: str = "ome-zarr",  # noqa: A002 - the option's name
    progress: bool = True,
) -> RunReport:
    """Generate an image and write it as OME-Zarr 0.5 (c, z, y, x; uint8), with a picture of it, ``preview.png``.

    Args:
        atlas: the store of transcripts, or its path.
        checkpoint: ours (``.safetensors``) or the reference implementation's (``.ckpt``).
        output: the folder to write.
        roi: ``"y0:y1,x0:x1"`` or four integers, atlas px, half open; grown outward to the patch grid. All if None.
        slices: ``"a:b"`` or two integers, half open. All that the model can make if None.
        border: "exact" also computes the context that a region depends on, so that it equals the crop of the whole;
            "constant" sees -1 beyond the region, as the reference does.
        steps: DDIM steps.
        seed: of the start noise, 0 .. 2^64-1.
        device: "auto" (all GPUs, else the CPU), "cpu", "cuda", "cuda:0,cuda:1".
        dtype: of weights and activations: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on a
            GPU.
        state_dtype: of the state between steps: "float16", as the reference stores it, or "float32".
        noise: "position": a function of seed, stain, slice, y and x alone; "tile": the reference's, seeded by tile.
        tile: px, a multiple of the patch size; by default 256 on a CPU and 1024 on a GPU.
        memory: bytes of state to keep in memory, as a number or like "8G"; half of what is free by default.
        skip_below: leave tiles empty that have fewer transcripts within the dependency radius.
        quantise: to uint8: "round", or "truncate" as the reference does.
        resume: go on with an unfinished output.
        overwrite: replace an output that is there.
        genes: names in the order of the network's gene axis (a list, or a file with one a line), for checkpoints that
            carry none.
        missing_genes: "error", or "zero" to let genes that the atlas lacks read as zero.
        map_genes: CSV file of two columns that pairs the network's genes with those of an atlas of other names, for
            instance of another species; or ``mouse_human_81``, the published panel's. Genes that the atlas lacks read
            as zero.
        workers: on a CPU, how many tiles to work on at once.
        snapshot_minutes: time between snapshots that ``resume`` goes on from; 0 for none but at a signal.
        scratch: folder for state that does not fit in memory; the output's by default.
        format: "ome-zarr", or "ome-tiff" to write each slice of the finished image as a pyramidal OME-TIFF as well,
            into the folder ``NAME.ome-tiff`` beside it.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        What the run did and cost; also in the output as ``teramind-report.json``.

    Raises:
        InputError: options that cannot be, or do not fit together, the atlas or the checkpoint.
        ComputationError: values that are not numbers, or a device that fails, named with window, step and tile.
        Interrupted: after SIGTERM or SIGINT, with a snapshot taken.
        OSError: no room left on a disk.
    """
    from teramind.engine.job import Job

    options = run_options(
        roi=roi, slices=slices, border=border, steps=steps, seed=seed, device=device, dtype=dtype,
        state_dtype=state_dtype, noise=noise, tile=tile, memory=memory, skip_below=skip_below, quantise=quantise,
        genes=genes, missing_genes=missing_genes, map_genes=map_genes, workers=workers,
        snapshot_minutes=snapshot_minutes, scratch=scratch, format=format, progress=progress,
    )  # fmt: skip
    return Job(atlas, checkpoint, Path(output), options).run(resume=resume, overwrite=overwrite)


def run_options(**given: Any) -> Options:
    """The options of a run: those given, and the defaults of ``generate`` for the others.

    Raises:
        InputError: for a name that is none of them.
    """
    from teramind.engine.job import Options

    defaults = {name: value.default for name, value in inspect.signature(generate).parameters.items()}
    known = {field.name: defaults[field.name] for field in fields(Options)}
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"there is no option {', '.join(unknown)}; the options of a run are {', '.join(known)}")
    return Options(**known | given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: names and defaults are those of ``generate``."""
    option = _adder(parser)
    parser.add_argument("atlas", nargs="?", help="atlas store (teramind ingest makes one)")
    parser.add_argument("output", nargs="?", help="folder to write, e.g. brain.ome.zarr")
    parser.add_argument("--checkpoint", help="network: .safetensors, or the reference's .ckpt")
    parser.add_argument(
        "--demo",
        metavar="FOLDER",
        help="instead of all that: make a phantom brain, generate it with the network that comes along, and compare",
    )
    add_run_options(parser)
    option("resume", "go on with an unfinished output", action="store_true")
    option("overwrite", "replace an output that is there", action="store_true")
    option("snapshot_minutes", "time between snapshots", type=float)
    option("scratch", "folder for state beyond --memory; the output's by default", metavar="FOLDER")
    option("format", "ome-tiff writes one pyramidal OME-TIFF a slice as well", choices=("ome-zarr", "ome-tiff"))
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is computed and on what."""
    option = _adder(parser)
    option("roi", "region in atlas px, ends exclusive; all by default", metavar="Y0:Y1,X0:X1")
    option("slices", "slices of the atlas, end exclusive; all by default", metavar="A:B")
    option(
        "border", "exact: a region equals the crop of the whole; constant: -1 beyond it", choices=("exact", "constant")
    )
    option("steps", "DDIM steps", type=int)
    option("seed", "of the start noise", type=int)
    option("device", "auto, cpu, cuda, or cuda:0,cuda:1")
    option("dtype", "of weights and activations", choices=("auto", "float32", "bfloat16", "float16"))
    option("state_dtype", "of the state between steps", choices=("float16", "float32"))
    option("noise", "position: keyed by seed and place; tile: as the reference", choices=("position", "tile"))
    option("tile", "px, a multiple of the patch size; by default 256 on a CPU and 1024 on a GPU", type=int)
    option("memory", "for state, e.g. 8G; by default half of what is free", metavar="BYTES")
    option("skip_below", "leave tiles empty with fewer transcripts in reach", type=int, metavar="N")
    option("quantise", "to uint8", choices=("round", "truncate"))
    option("genes", "names of the network's genes, one a line, for checkpoints that carry none", metavar="FILE")
    option("missing_genes", "what to do with genes that the atlas lacks", choices=("error", "zero"))
    option("map_genes", "pairs of the network's and the atlas' names for a gene, or mouse_human_81", metavar="FILE")
    option("workers", "tiles worked on at once on a CPU", type=int)


def _adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Adds an option with the default that it has in ``generate``."""
    default = {name: value.default for name, value in inspect.signature(generate).parameters.items()}

    def option(name: str, text: str, **more: Any) -> None:
        shown = "" if default[name] in (None, False) else f" (default: {default[name]})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=default[name], help=text + shown, **more)

    return option


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    given = vars(arguments)
    demo = given.pop("demo")
    if demo is not None:
        return _demonstrate(demo, given)
    for name, what in (("atlas", "ATLAS"), ("output", "OUTPUT"), ("checkpoint", "--checkpoint FILE")):
        if given[name] is None:
            raise InputError(f"{what} is missing: give ATLAS OUTPUT --checkpoint FILE, or --demo FOLDER")
    sys.stdout.write(generate(**given).summary() + "\n")
    return 0


def _demonstrate(folder: str, given: dict[str, Any]) -> int:
    """The demonstration, with those of the command's options that mean something to it."""
    from teramind.demo import demonstrate

    if given["atlas"] is not None:
        raise InputError(f"--demo makes its own atlas, but {given['atlas']} was given: leave out one of the two")
    meant = ("checkpoint", "steps", "device", "progress")
    own: dict[str, Any] = {name: given[name] for name in meant if given[name] is not None}
    sys.stdout.write(demonstrate(folder, **own).summary() + "\n")
    return 0


make_callable(__name__)

if __name__ == "__main__":
    from teramind.cli import run_command

    raise SystemExit(run_command("generate"))
