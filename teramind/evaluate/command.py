"""Compare generated images with the true ones of an atlas: figures, baselines and an HTML report."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from typing import Any

from teramind.evaluate.baselines import NAMES
from teramind.evaluate.evaluation import Evaluation
from teramind.evaluate.report.folder import HTML_NAME
from teramind.evaluate.run import evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: names and defaults are those of ``evaluate``."""
    defaults = {name: value.default for name, value in inspect.signature(evaluate).parameters.items()}

    def option(name: str, text: str, **more: Any) -> None:
        shown = "" if defaults[name] is None else f" (default: {more.pop('shown', defaults[name])})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=defaults[name], help=text + shown, **more)

    parser.add_argument(
        "output", nargs="+", metavar="OUTPUT.ome.zarr", help="generated image, or several of different seeds"
    )
    parser.add_argument("atlas", metavar="ATLAS.zarr", help="atlas with the true images")
    option("report", "folder to write, with report.html and report.json", metavar="DIR")
    option("train", "atlas that the baselines learn from (default: the other half of ATLAS)", metavar="ATLAS.zarr")
    option("ceiling", "image or atlas of the same tissue, drawn anew from the same genes", metavar="IMAGE")
    option("shuffled", "control generated from genes that were shuffled in space", metavar="IMAGE")
    parser.add_argument(
        "--baselines", nargs="*", choices=NAMES, default=defaults["baselines"], help="(default: all; none if empty)"
    )
    option("segmentation", "of nuclei", choices=("watershed", "cellpose", "instanseg"))
    option("segmentation_weights", "weights for cellpose or instanseg", metavar="FILE")
    option("nuclear_stain", "stain that shows nuclei", metavar="NAME")
    option("match_radius", "um within which two nuclei are the same", type=float, metavar="UM")
    option("inception", "inception-2015-12-05.pt, for FID and sFID (default: not computed)", metavar="FILE")
    option("roi", "part to compare, atlas px (default: all that was generated)", metavar="Y0:Y1,X0:X1")
    option("slices", "slices to compare (default: all that were generated)", metavar="A:B")
    option("window", "px that are worked on at once, a multiple of 256", type=int)
    option("seed", "of the baselines' training windows and the level of chance", type=int)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON instead of a table")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options = vars(arguments)
    as_json = options.pop("json")
    evaluation = evaluate(**options)
    if as_json:
        sys.stdout.write(json.dumps(evaluation.to_json(), indent=1, default=str) + "\n")
    else:
        sys.stdout.write(as_text(evaluation))
        if arguments.report:
            sys.stdout.write(f"\nreport: {arguments.report}/{HTML_NAME}\n")
    return 0


def as_text(evaluation: Evaluation) -> str:
    """The main figures as a table."""
    distances = list(evaluation.samples[0].distances)
    head = ["", "nuclei F1", "nuclei", "error", "size dist.", *distances, "PSNR", "SSIM", "MS-SSIM"]
    lines = [head]
    for row in evaluation.rows:
        nuclei, similarity = row.nuclei, row.similarity
        lines.append([
            row.name,
            _text(nuclei.get("f1"), ".3f"), _text(nuclei.get("count"), ",.0f"),
            _text(nuclei.get("count_error"), "+.1%"), _text(nuclei.get("area_distance"), ".2f"),
            *(_text(row.distances.get(name), ".3g") for name in distances),
            _text(similarity.get("psnr"), ".2f"), _text(similarity.get("ssim"), ".3f"),
            _text(similarity.get("ms_ssim"), ".3f"),
        ])  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = [
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join([*table, "", *(f"- {note}" for note in evaluation.notes)]) + "\n"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
