"""A knock-out of one gene after the other: a row a gene, kept when a run is stopped, sorted by effect."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scipy.stats import false_discovery_control

from teramind.errors import InputError
from teramind.interaction.changes import SetGene
from teramind.interaction.effects import EVERYWHERE, NUCLEI, Effect
from teramind.interaction.experiment import Experiment
from teramind.interaction.journal import append_line, read_journal
from teramind.interaction.tables import write_table

logger = logging.getLogger(__name__)

TABLE, JOURNAL = "screen.csv", "screen.jsonl"


@dataclass(frozen=True)
class ScreenRow:
    """What knocking out a gene does where genes are changed.

    Attributes:
        gene: name.
        relative_difference: root mean squared difference of the pixels, over that of two seeds; rows are sorted by it.
        difference: the same in grey levels.
        nuclei_before: mean number over seeds.
        nuclei_effect: mean change of it.
        nuclei_low: lower end of its 95 % confidence interval.
        nuclei_high: upper end.
        nuclei_noise: its noise floor.
        nuclei_beyond_noise: whether the change is beyond noise, see ``Effect``: for this gene alone.
        nuclei_lost: mean number that have no partner any more.
        nuclei_gained: mean number of new ones.
        area_effect: change of the mean nuclear area, um^2.
        nuclei_p: chance of as large a change of their number if the gene had no effect; NaN for one seed.
        nuclei_q: the same, corrected for the number of genes in the table (Benjamini-Hochberg).
    """

    gene: str
    relative_difference: float
    difference: float
    nuclei_before: float
    nuclei_effect: float
    nuclei_low: float
    nuclei_high: float
    nuclei_noise: float
    nuclei_beyond_noise: bool
    nuclei_lost: float
    nuclei_gained: float
    area_effect: float
    nuclei_p: float = math.nan
    nuclei_q: float = math.nan


def screen(experiment: Experiment, genes: Sequence[str], *, resume: bool, overwrite: bool) -> list[ScreenRow]:
    """Knock out genes one by one and write ``screen.csv``.

    The images without a change are made once; those of a gene are removed when its row is written.

    Args:
        experiment: where, with what.
        genes: names; those that are done stay done.
        resume: go on with a screen; it may have other genes.
        overwrite: replace an earlier one.

    Returns:
        Rows by falling relative difference, of all genes that were ever screened here.

    Raises:
        InputError: there is no gene, one stands twice, or is not read by the network; or as ``Experiment.begin``.
    """
    if not genes:
        raise InputError("the screen names no gene: name at least one")
    if len(set(genes)) != len(genes):
        twice = next(gene for gene in genes if list(genes).count(gene) > 1)
        raise InputError(f"the screen names {twice} twice: name every gene once")
    changes = [SetGene(gene, 0) for gene in genes]
    experiment.check(changes)
    experiment.settings["changes"] = "one gene after the other set to 0"
    experiment.begin(resume=resume, overwrite=overwrite)
    journal = experiment.folder / JOURNAL
    rows = {row.gene: row for row in (ScreenRow(**json.loads(line)) for line in read_journal(journal))}
    experiment.baselines()
    for number, change in enumerate(changes, start=1):
        if change.gene in rows:
            continue
        logger.info("gene %d of %d: %s", number, len(changes), change.gene)
        folder = experiment.folder / "screen" / change.gene.replace("/", "_")
        after = experiment.changed([change], [folder / f"seed_{seed}.ome.zarr" for seed in experiment.seeds])
        rows[change.gene] = screen_row(change.gene, experiment.measure(after).effects(), experiment.zones.main)
        append_line(journal, json.dumps(asdict(rows[change.gene])))
        shutil.rmtree(folder)
        _write_sorted(experiment.folder / TABLE, rows)
    shutil.rmtree(experiment.folder / "screen", ignore_errors=True)
    return _write_sorted(experiment.folder / TABLE, rows)


def screen_row(gene: str, effects: Sequence[Effect], zone: str) -> ScreenRow:
    """The row of a gene from its effects in a zone, or everywhere if the images show nothing of it."""
    told = zone if any(effect.zone == zone for effect in effects) else EVERYWHERE
    of = {effect.quantity: effect for effect in effects if effect.zone == told}
    pixels, nuclei = of["difference, grey levels (rms)"], of[NUCLEI]
    return ScreenRow(
        gene=gene,
        relative_difference=pixels.effect / pixels.two_seeds if pixels.two_seeds else math.nan,
        difference=pixels.effect,
        nuclei_before=nuclei.before,
        nuclei_effect=nuclei.effect,
        nuclei_low=nuclei.low,
        nuclei_high=nuclei.high,
        nuclei_noise=nuclei.noise_floor,
        nuclei_beyond_noise=bool(nuclei.beyond_noise),
        nuclei_lost=of["nuclei lost"].effect,
        nuclei_gained=of["nuclei gained"].effect,
        area_effect=of["mean nuclear area, um^2"].effect,
        nuclei_p=nuclei.p,
    )


def corrected(rows: Iterable[ScreenRow]) -> list[ScreenRow]:
    """Rows with the q that they have among each other."""
    known = [row for row in rows if not math.isnan(row.nuclei_p)]
    unknown = [replace(row, nuclei_q=math.nan) for row in rows if math.isnan(row.nuclei_p)]
    values = false_discovery_control([row.nuclei_p for row in known]).tolist() if known else []
    return [replace(row, nuclei_q=q) for row, q in zip(known, values, strict=True)] + unknown


def _write_sorted(path: Path, rows: dict[str, ScreenRow]) -> list[ScreenRow]:
    """By falling difference: in grey levels it exists for one seed, too, and sorts as the relative one does."""
    ordered = sorted(corrected(rows.values()), key=lambda row: (-row.difference, row.gene))
    write_table(path, [asdict(row) for row in ordered])
    return ordered
