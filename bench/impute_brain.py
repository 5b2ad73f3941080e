"""The paper's experiments on a synthetic brain whose truth is known: a table of scores with seeds and intervals.

Twelve coronal slices of 1,900 to 4,200 cells, 60 genes, 12 types; three are held out. Every experiment compares the
three stages ("imputed") with the rule-based baseline, a fresh draw of the true brain ("drawn anew": what no method
can beat), and the null baselines. Experiments: slices held out; a hole of 0.25 mm; a sagittal cut, from coronal slices
alone and fine-tuned on four sagittal ones; a second panel that lacks a third of the genes and catches 60 % of the
transcripts, with the models as they are and fine-tuned on four slices; the healthy control of sick slices. Each seed draws slices,
training and cells anew; +- is 1.96 standard errors over all targets of all seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from synthetic_brain import CENTRE, Brain, coronal_series, regulatory_edges

from teramind.impute import baseline
from teramind.impute.cells import Cells, join_cells
from teramind.impute.celltype import train_types
from teramind.impute.differential import differential_expression
from teramind.impute.evaluation import REPORTED, compare
from teramind.impute.expression import train_expression
from teramind.impute.filling import express, fill
from teramind.impute.fitting import PRESETS
from teramind.impute.gene_order import order_genes
from teramind.impute.location import train_locations
from teramind.impute.models import Models
from teramind.impute.placement import PlacementOptions
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc

RADII = (0.03, 0.04, 0.05)
HELD_OUT = (3, 6, 9)
HOLE = Disc((2.0, 2.0), 0.25)
CAUGHT = 0.6  # of the transcripts, by the second panel


def plane_of(cells, axis=2):
    offset = float(cells.positions[:, axis].mean())
    return Plane.coronal(offset) if axis == 2 else Plane.sagittal(offset)


def train_all(cells, order, seed):
    preset = PRESETS["small"]
    options = [replace(chosen, seed=seed) for chosen in preset.options]
    healthy = cells[cells.metadata["disease_state"] == "healthy"]
    return Models(
        train_locations(healthy, options[0], config=preset.shapes[0]),
        train_types(healthy, options[1], config=preset.shapes[1]),
        train_expression(cells, options[2], config=preset.shapes[2], order=order),
    )


def fine_tune(models, cells, seed):
    """A fifth of the steps, at a third of the rate."""
    locations, types, expression = (
        replace(chosen, seed=seed, steps=chosen.steps // 5, learning_rate=chosen.learning_rate / 3)
        for chosen in PRESETS["small"].options
    )
    return Models(
        train_locations(cells, locations, start=models.locations),
        train_types(cells, types, start=models.types),
        train_expression(cells, expression, start=models.expression),
    )


def second_panel(cells, generator, genes):
    """As another instrument would measure these cells."""
    counts = cells.counts.copy()
    counts.data = generator.binomial(counts.data.astype(int), CAUGHT).astype(np.float32)
    counts.eliminate_zeros()
    metadata = dict(cells.metadata) | {"technology": np.full(len(cells), "panelB")}
    return replace(cells, counts=csr_array(counts), metadata=metadata).with_genes(genes)


class Results:
    """Scores by experiment, line, metric and radius."""

    def __init__(self):
        self.values = {}

    def add(self, experiment, truth, predictions, plane):
        found = compare(truth, predictions, plane, radii=RADII).soft
        for name, metrics in found.items():
            for metric, radii in metrics.items():
                for radius, value in radii.items():
                    self.values.setdefault((experiment, name, metric, radius), []).append(value)

    def table(self):
        lines = [" " * 44 + "".join(f"{metric:<36}" for metric in REPORTED)]
        lines.append(
            f"{'experiment':24}{'r / mm':20}" + "".join(f"{radius:<12g}" for _ in REPORTED for radius in RADII)
        )
        for experiment, name in dict.fromkeys(key[:2] for key in self.values):
            line = f"{experiment:24}{name:20}"
            for metric in REPORTED:
                for radius in RADII:
                    values = np.array(self.values[experiment, name, metric, radius])
                    spread = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
                    line += f"{values.mean():.3f}+-{spread:.3f} "
            lines.append(line)
        return "\n".join(lines)


def held_out_slices(results, brain, models, slices, measured, seed):
    for index in HELD_OUT:
        truth, plane = slices[index], plane_of(slices[index])
        predictions = {
            "imputed": fill(models, measured, plane, placement=PlacementOptions(seed=seed)).cells,
            "baseline": baseline.predict(measured, plane, seed=seed),
            "drawn anew": brain.cut(plane, seed=seed + 500),
        }
        results.add("slices held out", truth, predictions, plane)


def hole(results, brain, models, slices, measured, seed):
    """In a slice that was trained on; so the network is tuned on the slices with the hole first."""
    truth, plane = slices[5], plane_of(slices[5])
    inside = HOLE.contains(plane.flatten(measured.positions)) & (measured.sections == truth.sections[0])
    broken = measured[~inside]
    tuned = fine_tune(models, broken, seed)
    positions = baseline.uniform_disc(HOLE, plane, int(inside.sum()), seed)
    types = baseline.vote_types(broken, positions)
    anew = brain.cut(plane, seed=seed + 600)
    predictions = {
        "imputed": fill(tuned, broken, plane, HOLE, placement=PlacementOptions(seed=seed)).cells,
        "baseline": Cells(positions, types, baseline.copy_expression(broken, positions, types), broken.genes),
        "drawn anew": anew[HOLE.contains(plane.flatten(anew.positions))],
    }
    results.add("hole", truth[HOLE.contains(plane.flatten(truth.positions))], predictions, plane)


def sagittal(results, brain, models, measured, seed):
    offsets = CENTRE[0] + np.array([-0.3, -0.1, 0.15, 0.35])
    own = join_cells([brain.cut(Plane.sagittal(x), name=f"sagittal{x:.2f}", seed=seed * 10 + 3) for x in offsets])
    tuned = fine_tune(models, own, seed)
    for ml in (CENTRE[0] - 0.2, CENTRE[0] + 0.02):
        plane = Plane.sagittal(float(ml))
        truth = brain.cut(plane, seed=seed * 10 + 4)
        predictions = {
            "coronal slices only": fill(models, measured, plane, placement=PlacementOptions(seed=seed)).cells,
            "fine-tuned": fill(tuned, own, plane, placement=PlacementOptions(seed=seed)).cells,
            "baseline": baseline.predict(own, plane, seed=seed),
            "drawn anew": brain.cut(plane, seed=seed + 700),
        }
        results.add("sagittal", truth, predictions, plane)


def other_panel(results, brain, models, seed):
    """Returns the share of the vocabulary's genes that are written for cells of the smaller panel."""
    generator = np.random.default_rng(seed)
    genes = [gene for index, gene in enumerate(brain.genes) if index % 3]
    series = [second_panel(cells, generator, genes) for cells in coronal_series(brain, 7, seed=seed + 50)]
    own = join_cells([series[index] for index in (1, 2, 4, 5)])
    tuned = fine_tune(models, own, seed)
    truth, plane = series[3], plane_of(series[3])
    predictions = {
        "as trained": fill(models, own, plane, placement=PlacementOptions(seed=seed)).cells,
        "fine-tuned": fill(tuned, own, plane, placement=PlacementOptions(seed=seed)).cells,
        "baseline": baseline.predict(own, plane, seed=seed),
        "drawn anew": second_panel(brain.cut(plane, seed=seed + 800), generator, genes),
    }
    results.add("second panel", truth, predictions, plane)
    extended = express(models, truth, genes="all", conditions={"technology": "panelA"})
    return float((extended.counts.sum(axis=0) > 0).mean())


def healthy_control(brain, models, seed):
    """Precision and recall of the genes that sickness changes, over types with enough cells."""
    plane = Plane.coronal(float(CENTRE[2]) + 0.1)
    sick, healthy = brain.cut(plane, seed=seed + 900, sick=True), brain.cut(plane, seed=seed + 901)
    control = express(models, sick, conditions={"disease_state": "healthy"})
    again = express(models, sick)
    true = {(t.type, gene) for t in differential_expression(sick, healthy) for gene in t.found(fold=1.5)}
    found = {(t.type, gene) for t in differential_expression(again, control) for gene in t.found(fold=1.5)}
    return len(true & found) / max(1, len(found)), len(true & found) / max(1, len(true))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--output", type=Path, metavar="JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    brain, results, extra = Brain.make(), Results(), []
    order = order_genes(brain.genes, [edge[:2] for edge in regulatory_edges(brain)])
    start, own = time.perf_counter(), time.process_time()
    for seed in range(options.seeds):
        slices = coronal_series(brain, 12, seed=seed)
        measured = join_cells([cells for index, cells in enumerate(slices) if index not in HELD_OUT])
        sick = coronal_series(brain, 3, seed=seed + 90, sick=True)
        models = train_all(join_cells([measured, *(replace(c, sections=c.sections + "s") for c in sick)]), order, seed)
        held_out_slices(results, brain, models, slices, measured, seed)
        hole(results, brain, models, slices, measured, seed)
        sagittal(results, brain, models, measured, seed)
        produced = other_panel(results, brain, models, seed)
        extra.append((produced, *healthy_control(brain, models, seed)))
        print(f"seed {seed}: {(time.perf_counter() - start) / 60:.1f} min so far", flush=True)
    print(results.table())
    produced, precision, recall = np.mean(extra, axis=0)
    print(f"genes of the vocabulary written for the smaller panel: {produced:.0%}")
    print(f"genes that sickness changes: precision {precision:.2f}, recall {recall:.2f}")
    minutes, cpu = (time.perf_counter() - start) / 60, (time.process_time() - own) / 60
    print(f"{options.seeds} seeds, {minutes:.1f} minutes, {cpu:.1f} of CPU, one thread; load {os.getloadavg()[0]:.1f}")
    if options.output:
        rows = [[*key, values] for key, values in results.values.items()]
        options.output.write_text(json.dumps({"version": 1, "scores": rows, "extra": extra}, indent=1))


if __name__ == "__main__":
    main()
