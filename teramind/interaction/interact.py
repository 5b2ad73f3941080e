"""Map what a network's genes attend to: interaction maps of a pathway over an atlas, their statistics, and a page."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from teramind.atlas.store import Atlas
from teramind.checks import integer_between
from teramind.engine.panel import Missing
from teramind.errors import InputError
from teramind.evaluate.extras import required
from teramind.interaction.image import MapImage
from teramind.interaction.maps import BRAIN_BINS, MapReport, MapSource, write_maps
from teramind.interaction.page import write_page
from teramind.interaction.partners import Partner, check_permutations
from teramind.interaction.partners import top_partners as find_partners
from teramind.interaction.pathways import Pathway, choose_pathway, read_pathways
from teramind.interaction.statistics import PathwayStatistics, pathway_statistics
from teramind.interaction.tables import as_text, write_table
from teramind.interaction.underlay import Underlay

MAPS, PAGE, STATISTICS = "maps.ome.zarr", "interaction.html", "statistics.csv"
MOST_SLICES = 1000  # on a page
PARTNERS_SHOWN = 10  # of each region, on the terminal


@dataclass(frozen=True)
class Interaction:
    """What ``interact`` made; None where it was not asked for.

    Attributes:
        maps: the image, and how fast it was made.
        statistics: regression of attention on expression.
        page: the HTML page.
        partners: of the gene whose partners were asked for.
        partners_file: their table.
    """

    maps: MapReport | None = None
    statistics: PathwayStatistics | None = None
    page: Path | None = None
    partners: list[Partner] | None = None
    partners_file: Path | None = None


def interact(
    atlas: Atlas | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    genes: Sequence[str] | None = None,
    pathway: str | None = None,
    *,
    pathways: str | os.PathLike[str] | None = None,
    top_partners: str | None = None,
    permutations: int = 200,
    seed: int = 0,
    roi: str | Sequence[int] | None = None,
    slices: str | tuple[int, int] | None = None,
    image: str | os.PathLike[str] | None = None,
    nuclear_stain: str | None = None,
    shown_slices: int = 6,
    device: str = "auto",
    panel: str | os.PathLike[str] | Sequence[str] | None = None,
    missing_genes: Missing = "error",
    map_genes: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Interaction:
    """Map the attention between genes over an atlas, at bin resolution, and describe it.

    Args:
        atlas: the store of transcripts, or its path.
        checkpoint: a network whose windows are of four gene slices.
        output: folder to write: ``maps.ome.zarr``, ``statistics.csv``, ``interaction.html``, ``figures``, and
            ``partners_GENE.csv`` (a ``/`` in a gene's name stands there as ``%2F``, as in a URL).
        genes: names of the genes, any number of the network's panel.
        pathway: or the name of a set of them: GLUT, DOPA, BLOD, or one of ``pathways``.
        pathways: GMT file of further pathways.
        top_partners: a gene; also, or only, tell which genes it attends to most in each region of the atlas, against
            the gene placed in other patches nearby and against shuffled gene labels.
        permutations: of the labels.
        seed: of the permutations and placements.
        roi: ``"y0:y1,x0:x1"`` or four integers, atlas px, half open; grown outward to the patch grid. All if None.
        slices: ``"a:b"`` or two integers, half open. All if None.
        image: generated image whose nuclear stain the page draws the maps over; by default the atlas' own, if it has.
        nuclear_stain: its name; by default DAPI, if there is such a stain.
        shown_slices: how many slices the page shows at most; 0 for none.
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda:1".
        panel: names in the order of the network's gene axis (a list, or a file), for checkpoints that carry none.
        missing_genes: "error", or "zero" to let genes that the atlas lacks read as zero.
        map_genes: CSV file of two columns that pairs the network's genes with those of an atlas of other names; genes
            are asked for by the network's.
        resume: go on with unfinished maps; statistics, page and partners are made anew.
        overwrite: replace maps and partners that are there.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        Maps, statistics, page and partners.

    Raises:
        InputError: options that cannot be, or do not fit together, the atlas or the checkpoint.
        Interrupted: after SIGTERM or SIGINT; what was done is kept.
        OSError: no room left on a disk.
    """
    if genes is None and pathway is None and top_partners is None:
        raise InputError("there is nothing to ask: give --genes, --pathway or --top-partners")
    chosen = None
    if genes is not None or pathway is not None:
        chosen = choose_pathway(genes, pathway, read_pathways(pathways))
    question = {
        "roi": roi, "slices": slices, "device": device, "genes": panel, "missing_genes": missing_genes,
        "map_genes": map_genes,
    }  # fmt: skip
    integer_between("shown_slices", shown_slices, 0, MOST_SLICES)
    if Path(output).exists() and not Path(output).is_dir():
        raise InputError(f"{output} is there and no folder; choose another --output")
    if isinstance(atlas, str | os.PathLike):
        atlas = Atlas.open(atlas)
    made = Interaction()
    looking = file = None
    if top_partners is not None:
        file = _partners_file(Path(output), top_partners, replace=resume or overwrite)
        looking = MapSource(atlas, checkpoint, [top_partners], **question)
    check_permutations(permutations, seed)
    if chosen is not None:
        under = _underlay(atlas, image, nuclear_stain)
        source = MapSource(atlas, checkpoint, chosen.genes, **question)
        how = {"resume": resume, "overwrite": overwrite, "progress": progress}
        made = _map(source, chosen, Path(output), under, shown_slices, **how)
    if looking is not None and file is not None:
        partners = find_partners(looking, permutations=permutations, seed=seed, progress=progress)
        write_table(file, [row._asdict() for row in partners])
        made = replace(made, partners=partners, partners_file=file)
    return made


def _partners_file(folder: Path, gene: str, *, replace: bool) -> Path:
    """Where a gene's partners are written; letters of its name that no file can have stand as %2F.

    Raises:
        InputError: there is such a file, and it may not be replaced.
    """
    file = folder / f"partners_{quote(gene, safe='')}.csv"
    if file.exists() and not replace:
        raise InputError(f"{file} exists already; --overwrite replaces it, or choose another --output")
    return file


def _underlay(atlas: Atlas, image: str | os.PathLike[str] | None, stain: str | None) -> Underlay | None:
    return Underlay.of_atlas(atlas, stain) if image is None else Underlay.of_image(image, atlas, stain)


def _map(
    source: MapSource, pathway: Pathway, folder: Path, underlay: Underlay | None, shown: int, **how: bool
) -> Interaction:
    """Maps, statistics and page of a pathway."""
    for library in ("matplotlib", "jinja2"):  # hours before they are used
        required(library)
    report = write_maps(source, folder / MAPS, **how)
    maps = MapImage(folder / MAPS)
    statistics = pathway_statistics(maps)
    write_table(folder / STATISTICS, statistics.rows())
    write_page(folder / PAGE, maps, statistics, pathway, underlay, shown)
    return Interaction(report, statistics, folder / PAGE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: names and defaults are those of ``interact``."""
    defaults = {name: value.default for name, value in inspect.signature(interact).parameters.items()}

    def option(name: str, text: str, **more: Any) -> None:
        shown = "" if defaults[name] in (None, False) else f" (default: {defaults[name]})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=defaults[name], help=text + shown, **more)

    parser.add_argument("atlas", help="atlas store (teramind ingest makes one)")
    parser.add_argument("--checkpoint", required=True, help="network with windows of four gene slices")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    option("genes", "genes to map, any number", nargs="+", metavar="GENE")
    option("pathway", "or a set of them: GLUT, DOPA, BLOD, or one of --pathways", metavar="NAME")
    option("pathways", "GMT file of further pathways", metavar="FILE")
    option("top_partners", "tell which genes this one attends to most, by region", metavar="GENE")
    option("permutations", "of the gene labels, for their null", type=int, metavar="N")
    option("seed", "of the permutations", type=int)
    option("roi", "region in atlas px, ends exclusive; all by default", metavar="Y0:Y1,X0:X1")
    option("slices", "slices of the atlas, end exclusive; all by default", metavar="A:B")
    option("image", "generated image to draw the maps over; by default the atlas' own", metavar="IMAGE.ome.zarr")
    option("nuclear_stain", "its stain; DAPI by default", metavar="NAME")
    option("shown_slices", "how many slices the page shows at most", type=int, metavar="N")
    option("device", "auto, cpu, cuda or cuda:1")
    option("panel", "names of the network's genes, one a line, for checkpoints that carry none", metavar="FILE")
    option("missing_genes", "what to do with genes that the atlas lacks", choices=("error", "zero"))
    option("map_genes", "pairs of the network's and the atlas' names for a gene, or mouse_human_81", metavar="FILE")
    option("resume", "go on with unfinished maps", action="store_true")
    option("overwrite", "replace maps and partners that are there", action="store_true")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    sys.stdout.write(summary(interact(**vars(arguments))))
    return 0


def summary(made: Interaction) -> str:
    """Lines for a person."""
    lines = []
    if made.statistics is not None:
        columns = ("gene", "slope", "intercept", "r", "n")
        rows = [row for row in made.statistics.rows() if row["slice"] == ""]
        lines.append(as_text([{name: row[name] for name in columns} for row in rows]))
    if made.maps is not None and made.maps.bins:
        speed = f"{made.maps.seconds:.1f} s ({made.maps.bins_per_second:,.0f} a second)"
        brain = f"{BRAIN_BINS:,} bins, would take {made.maps.brain_hours:.2g} h at that speed"
        lines.append(f"{made.maps.bins:,} bins in {speed}; the published brain, {brain}\n")
    if made.page is not None:
        lines.append(f"page: {made.page}\n")
    if made.partners is not None:
        shown: list[dict[str, Any]] = []
        for _, rows_of_region in groupby(made.partners, key=lambda row: row.region):
            shown += [row._asdict() for row in islice(rows_of_region, PARTNERS_SHOWN)]
        lines.append(as_text(shown) or "the gene was not read anywhere\n")
        lines.append("p: of the gene placed in other patches nearby; p_shuffled: of shuffled gene labels\n")
        lines.append(f"partners: {made.partners_file}\n")
    return "".join(lines)
