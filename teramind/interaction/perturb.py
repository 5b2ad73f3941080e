"""Change genes and see what changes in the tissue: images from the same noise, with and without the change."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teramind.atlas.panel import read_genes
from teramind.atlas.store import Atlas
from teramind.errors import InputError
from teramind.generate import add_run_options
from teramind.interaction.changes import parse_changes
from teramind.interaction.difference import difference_panels, write_difference
from teramind.interaction.effects import Effect, NucleiOfSlice
from teramind.interaction.experiment import Experiment, Measurement, Question
from teramind.interaction.screen import ScreenRow, screen
from teramind.interaction.tables import as_text, write_table
from teramind.output.preview import save_picture

EFFECTS, NUCLEI, DIFFERENCE, PICTURE = "effects.csv", "nuclei.csv", "difference.ome.zarr", "difference.png"
SHOWN = 20  # genes of a screen on the terminal


@dataclass(frozen=True)
class Perturbation:
    """What ``perturb`` found.

    Attributes:
        effects: of the change, zone by zone; empty for a screen.
        measurement: what they follow from; None for a screen.
        screen: a row for each gene, sorted by effect; empty if there was none.
        folder: that was written.
        reach: px from a changed bin within which pixels may change.
    """

    effects: list[Effect]
    measurement: Measurement | None
    screen: list[ScreenRow]
    folder: Path
    reach: int


def perturb(
    atlas: Atlas | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    set_gene: Sequence[str] = (),
    scale_gene: Sequence[str] = (),
    swap_genes: Sequence[str] = (),
    screen_genes: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    region: str | None = None,
    seeds: int = 3,
    nuclear_stain: str = "DAPI",
    match_radius: float = 3.0,
    segmentation: str = "watershed",
    segmentation_weights: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Perturbation:
    """Generate a region with and without a change of its genes, from the same noise, and tell the difference.

    Every difference is caused by the genes: beyond the dependency radius of the changed bins (steps times patch size)
    the two images are the same. Images of several seeds tell what noise alone does.

    Args:
        atlas: the store of transcripts, or its path.
        checkpoint: the network.
        output: folder to write: ``seed_N/before.ome.zarr`` and ``after.ome.zarr``, ``difference.ome.zarr`` and ``.png``
            of the first seed, ``effects.csv``, ``nuclei.csv``; or ``screen.csv``.
        set_gene: ``"Nr4a2=0"``: counts that genes are given in every bin.
        scale_gene: ``"Th=0.5"``: factors; counts stay whole by random draws that depend on gene and bin alone.
        swap_genes: ``"A,B"``: pairs that exchange their counts.
        screen_genes: instead of these, knock out one gene after the other: names, or a file with one a line. Rows that
            are done are kept; the table is sorted by effect.
        region: where: ``y0:y1,x0:x1`` in atlas px, a region of the atlas by its name, or a mask's file (.npy, .tif,
            .png) with one pixel a bin. Everywhere if None.
        seeds: how many, from ``seed`` on.
        nuclear_stain: the stain that shows nuclei.
        match_radius: um within which two nuclei are the same.
        segmentation: "watershed", or, if you have them, "cellpose" or "instanseg".
        segmentation_weights: file of the latter two.
        resume: go on with what was begun.
        overwrite: replace it.
        **options: as for ``teramind.generate.generate``. ``roi`` is by default all that the change can act on.

    Raises:
        InputError: options that cannot be, or do not fit together, the atlas or the checkpoint.
        Interrupted: after SIGTERM or SIGINT; ``resume`` goes on.
        OSError: no room left on a disk.
    """
    changes = parse_changes(set_gene, scale_gene, swap_genes)
    if bool(changes) == (screen_genes is not None):
        raise InputError("tell what to change: either --set, --scale and --swap, or --screen")
    question = Question(region, seeds, nuclear_stain, match_radius, segmentation, segmentation_weights)
    experiment = Experiment(atlas, checkpoint, Path(output), question, options)
    if screen_genes is not None:
        names = read_genes(Path(screen_genes)) if isinstance(screen_genes, str | os.PathLike) else list(screen_genes)
        rows = screen(experiment, names, resume=resume, overwrite=overwrite)
        return Perturbation([], None, rows, experiment.folder, experiment.reach)
    experiment.check(changes)
    experiment.settings["changes"] = [str(change) for change in changes]
    experiment.begin(resume=resume, overwrite=overwrite)
    before = experiment.baselines()
    after = experiment.changed(changes, [path.with_name("after.ome.zarr") for path in before])
    measurement = experiment.measure(after)
    effects = measurement.effects()
    write_table(experiment.folder / EFFECTS, [asdict(effect) for effect in effects])
    write_table(experiment.folder / NUCLEI, nuclei_rows(measurement.nuclei))
    write_difference(before[0], after[0], experiment.folder / DIFFERENCE)
    _, picture = difference_panels(before[0], after[0], experiment.nuclear)
    save_picture(experiment.folder / PICTURE, picture)
    return Perturbation(effects, measurement, [], experiment.folder, experiment.reach)


def nuclei_rows(nuclei: Mapping[int, Sequence[NucleiOfSlice]]) -> list[dict[str, Any]]:
    """All nuclei: seed; kept, lost or gained; place, um; area before and after, um^2, empty where there is none."""
    return [{"seed": seed, **row} for seed, slices in nuclei.items() for row in _rows_of_seed(slices)]


def _rows_of_seed(slices: Sequence[NucleiOfSlice]) -> list[dict[str, Any]]:
    rows = []
    for z, before, after, matches in slices:
        partner = dict(zip(matches.truth.tolist(), matches.found.tolist(), strict=True))
        for number in range(len(before)):
            found = partner.get(number)
            area = "" if found is None else float(after.area[found])
            fate = "lost" if found is None else "kept"
            rows.append(_nucleus(fate, z, before.y[number], before.x[number], float(before.area[number]), area))
        for number in sorted(set(range(len(after))) - set(matches.found.tolist())):
            rows.append(_nucleus("gained", z, after.y[number], after.x[number], "", float(after.area[number])))
    return rows


def _nucleus(fate: str, z: int, y: float, x: float, before: float | str, after: float | str) -> dict[str, Any]:
    place = {"slice": z, "y_um": float(y), "x_um": float(x)}
    return {"fate": fate, **place, "area_before_um2": before, "area_after_um2": after}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: names and defaults are those of ``perturb`` and ``generate``."""
    defaults = {name: value.default for name, value in inspect.signature(perturb).parameters.items()}

    def option(name: str, text: str, flag: str | None = None, **more: Any) -> None:
        shown = "" if defaults[name] in (None, False, ()) else f" (default: {defaults[name]})"
        parser.add_argument(
            flag or f"--{name.replace('_', '-')}", dest=name, default=defaults[name], help=text + shown, **more
        )

    parser.add_argument("atlas", help="atlas store (teramind ingest makes one)")
    parser.add_argument("--checkpoint", required=True, help="network: .safetensors, or the reference's .ckpt")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    option("set_gene", "counts that genes are given in every bin; 0 knocks them out", "--set", nargs="+", metavar="G=N")
    option("scale_gene", "factors for the counts of genes", "--scale", nargs="+", metavar="G=F")
    option("swap_genes", "pairs of genes that exchange their counts", "--swap", nargs="+", metavar="A,B")
    option("screen_genes", "knock out each of these genes instead, one a line", "--screen", metavar="FILE")
    option("region", "where: a rectangle in px, a region's name, or a mask of bins", metavar="Y0:Y1,X0:X1|NAME|MASK")
    option("seeds", "how many, for the noise floor", type=int, metavar="N")
    option("nuclear_stain", "stain that shows nuclei", metavar="NAME")
    option("match_radius", "um within which two nuclei are the same", type=float, metavar="UM")
    option("segmentation", "of nuclei", choices=("watershed", "cellpose", "instanseg"))
    option("segmentation_weights", "weights for cellpose or instanseg", metavar="FILE")
    option("resume", "go on with what was begun", action="store_true")
    option("overwrite", "replace it", action="store_true")
    add_run_options(parser)
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    sys.stdout.write(summary(perturb(**vars(arguments))))
    return 0


def summary(found: Perturbation) -> str:
    """Lines for a person."""
    if found.screen:
        text = as_text([asdict(row) for row in found.screen[:SHOWN]])
        return text + f"{len(found.screen)} genes: {found.folder / 'screen.csv'}\n"
    columns = (
        "zone",
        "quantity",
        "before",
        "after",
        "effect",
        "low",
        "high",
        "noise_floor",
        "beyond_noise",
        "two_seeds",
    )
    text = as_text([{name: getattr(effect, name) for name in columns} for effect in found.effects])
    return text + f"nothing changes further than {found.reach} px from a changed bin\nfolder: {found.folder}\n"
