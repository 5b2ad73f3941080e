"""A self-contained HTML page about one pathway."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from teramind.evaluate.extras import required
from teramind.evaluate.report.page import inline_png
from teramind.files import appears_whole
from teramind.interaction.figures import SMOOTHING, regression_figure, shown_slice, slice_figure
from teramind.interaction.image import MapImage
from teramind.interaction.pathways import Pathway
from teramind.interaction.statistics import UNIFORM, PathwayStatistics
from teramind.interaction.underlay import Underlay

CAVEAT = (
    "The map multiplies attention by expression. Attention between genes is close to uniform in an untrained network, "
    "so co-expression alone scores high: genes that are read in the same bins make a map, whether or not the network "
    f"relates them. The row “{UNIFORM}” of the table tells how much of it expression explains alone: r is the "
    "correlation of the map with what it would be if every gene attended to all genes alike."
)
SYMMETRY = (
    "The attention does not know which gene is which: one projection is shared by all of them, so two genes attend to "
    "each other by their counts in the bins of a patch alone. Other names on the same counts would give the same map."
)
DEPENDENCE = (
    "The regression is of a product on one of its factors, so a positive slope is to be expected; neighbouring squares "
    "are not independent of each other, so n is not a number of independent observations and no p-value is given."
)
MEANING = "Attention says what the network uses to draw tissue. It is not a measurement of molecules that interact."
METHOD = (
    "log2(G·a + 1) of the window's attention, summed over the genes, on log2(counts + 1) of each gene; means of 4 × 4 "
    "bins, only where all genes are expressed; least squares. The mean of a square stands in place of the resize to a "
    "quarter in the authors' code, so slopes may differ a little from theirs."
)
SMOOTHED = (
    "The figures are for the eye, they are not what is regressed: planes are shown at the level of the pyramid that "
    f"fits a panel, smoothed by a Gaussian of {SMOOTHING:g} pixel of it, and the brightest 0.2 % are shown alike. "
    "Attention is shown in the squares of 4 × 4 bins in which all genes are expressed; elsewhere it is 0, but for the "
    "smoothing."
)


def write_page(
    path: Path,
    maps: MapImage,
    statistics: PathwayStatistics,
    pathway: Pathway,
    underlay: Underlay | None,
    shown: int,
) -> None:
    """Write the page and, beside it in ``figures``, its pictures as files.

    Args:
        path: the page.
        maps: of the pathway.
        statistics: of the maps.
        pathway: its name and genes.
        underlay: the nuclear stain to draw over; None for none.
        shown: how many slices to show at most.
    """
    jinja2 = required("jinja2")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    chosen, drawn = chosen_slices(statistics, shown), list(statistics.histograms)
    pictures = {
        f"slice_{maps.first_slice + z:03d}": slice_figure(shown_slice(maps, z, underlay, drawn)) for z in chosen
    }
    regression = regression_figure(statistics)
    text = environment.get_template("page.html.j2").render(
        title=pathway.name,
        genes=pathway.genes,
        description=pathway.description,
        where=_where(maps),
        notes=(CAVEAT, SYMMETRY, DEPENDENCE, MEANING),
        method=METHOD,
        smoothed=SMOOTHED,
        regression=inline_png(regression),
        gene_rule=_gene_rule(len(drawn), len(maps.genes)),
        overall=statistics.overall(),
        anywhere=statistics.overall()[UNIFORM].n > 0,
        pictures=[inline_png(picture) for picture in pictures.values()],
        slice_rule=f"{len(chosen)} of {maps.shape[0]}, evenly spaced among those in which all genes are expressed.",
        by_slice=[row for row in statistics.rows() if row["slice"] != ""],
        number=_number,
        provenance=json.dumps(maps.parameters, indent=1, default=str),
    )
    _write_figures(path.parent / "figures", {"regression": regression, **pictures})
    with appears_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_figures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write pictures as PNG files; slices that an earlier page showed, and this one does not, are removed."""
    for old in folder.glob("slice_*.png"):
        if old.stem not in pictures and old.stem.removeprefix("slice_").isdigit():
            old.unlink()
    for name, picture in pictures.items():
        with appears_whole(folder / f"{name}.png") as partial:
            partial.write_bytes(picture)


def chosen_slices(statistics: PathwayStatistics, most: int) -> list[int]:
    """At most so many slices of the maps, evenly spaced among those with points."""
    there = [z for z, sums in enumerate(statistics.sums) if sums[-1].n]
    if len(there) <= most:
        return there
    return [there[round(place * (len(there) - 1) / max(1, most - 1))] for place in range(most)]


def _gene_rule(drawn: int, genes: int) -> str:
    if drawn == genes:
        return ""
    return f"The figures show {drawn} of {genes} genes, those with most transcripts; the tables and the maps have all."


def _where(maps: MapImage) -> str:
    depth, height, width = maps.shape
    millimetres = " × ".join(f"{side * maps.bin_size / 1000:.3g}" for side in (height, width))
    return (
        f"{depth} slices of {height} × {width} bins ({millimetres} mm; a bin is {maps.bin_size:.4g} µm); a panel of "
        f"{maps.panel_size} genes."
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"
