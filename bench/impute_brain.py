"""The experiments of MIMYR's paper on brains whose truth is known: a table of scores with seeds and intervals.

python bench/impute_brain.py [--seeds 21 22 23] [--workers 1] [--folder FOLDER] [--toy]

A brain is an ellipsoid of a phantom's cells (18 types, 70 genes): twelve coronal sections of some 3,000 cells, 0.2 mm
apart, of which three are held out and one has a hole of 0.15 mm; what is held out or was in the hole is shown to
nothing, neither networks nor rules. Each seed is another brain, trained on and filled anew. Lines of the table:

- imputed: the three stages; with "true places" or "true types" given the truth of the stages before, with "likely
  types" drawn at a temperature of 0.5, with "even types" drawn evenly among neighbours, on held-out slices;
- baseline: the paper's rules on the same measured slices (where there are fine-tuning slices: on those); in the hole,
  for as many cells as are imputed;
- drawn anew: other cells of the same anatomy, which is what a perfect sampler of cells gives;
- null baselines: what knowing nothing, or one profile for all of the tissue, scores.

Experiments: slices held out; the hole; a sagittal cut, from coronal slices alone and after fine-tuning on four sagittal
ones; a second panel on another brain of the same anatomy, which lacks a third of the genes and catches 60 % of the
transcripts, before and after fine-tuning on four of its slices; the healthy control of sick tissue, by an expression
network of its own that has seen sick sections. Intervals are 95 % (Student's t) over the targets of all seeds. FOLDER
gets scores.json and the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import impute_figures
import numpy as np
import torch
from phantom_brain import CENTRE, GENES, HALF_AXES, SPACING, PhantomBrain, regulatory_edges, second_panel
from scipy.stats import t as student

from teramind.impute import baseline
from teramind.impute.cells import Cells, join_cells
from teramind.impute.celltype import train_types
from teramind.impute.differential import differential_expression
from teramind.impute.evaluation import REPORTED, compare
from teramind.impute.expression import ExpressionModel, train_expression
from teramind.impute.filling import express, fill
from teramind.impute.fitting import PRESETS
from teramind.impute.gene_order import order_genes
from teramind.impute.location import train_locations
from teramind.impute.models import Models
from teramind.impute.placement import PlacementOptions
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc
from teramind.impute.training import TrainingOptions

RADII = (0.03, 0.04, 0.05)
HELD_OUT = (3, 6, 9)
BROKEN, HOLE_RADIUS = 5, 0.15  # the slice with the hole, mm
CAUGHT = 0.6  # of the transcripts, by the second panel
IGNORANT = ("shuffled rows", "mean profile")  # nulls that are not given the true cells
LIKELY = 0.5  # temperature of types for one line of the table
LAYOUT = ("count_ratio", "density_error", "spacing_error", "copies", "chance_copies", "log_likelihood")
FOLD = 1.5  # least change of a gene that counts as differing


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        preset: size of the networks.
        steps: of the training, as a share of the preset's.
        brain: of its size; 1 is 1.1 x 0.9 x 2.9 mm.
    """

    preset: str = "small"
    steps: float = 1.0
    brain: float = 1.0

    def options(self, seed: int, share: float = 1.0) -> list[TrainingOptions]:
        presets = PRESETS[self.preset].options
        return [replace(each, seed=seed, steps=round(each.steps * self.steps * share)) for each in presets]


def train_all(cells: Cells, scale: Scale, seed: int) -> Models:
    """The three networks."""
    chosen, options = PRESETS[scale.preset], scale.options(seed)
    return Models(
        train_locations(cells, options[0], config=chosen.shapes[0]),
        train_types(cells, options[1], config=chosen.shapes[1]),
        learn_expression(cells, scale, seed),
    )


def learn_expression(cells: Cells, scale: Scale, seed: int) -> ExpressionModel:
    order = order_genes(GENES, regulatory_edges())
    return train_expression(cells, scale.options(seed)[2], config=PRESETS[scale.preset].shapes[2], order=order)


def fine_tune(models: Models, cells: Cells, scale: Scale, seed: int) -> Models:
    """A fifth of the steps, at a third of the rate."""
    cells = of_known_types(cells, models)
    locations, types, expression = (
        replace(each, learning_rate=each.learning_rate / 3) for each in scale.options(seed, share=0.2)
    )
    return Models(
        train_locations(cells, locations, start=models.locations),
        train_types(cells, types, start=models.types),
        train_expression(cells, expression, start=models.expression),
    )


def of_known_types(cells: Cells, models: Models) -> Cells:
    """Types that no slice the networks were trained on has are none to them."""
    return replace(cells, types=np.where(np.isin(cells.types, models.types.names), cells.types, ""))


class Results:
    """Scores by experiment, line, metric and radius, and of layouts by experiment, line and score: a value a target."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str, float], list[float]] = {}
        self.layouts: dict[tuple[str, str, str], list[float]] = {}

    def add(self, experiment: str, truth: Cells, predictions: dict[str, Cells], plane: Plane, given: Cells) -> None:
        found = compare(truth, predictions, plane, given=given, radii=RADII, threads=1)
        for name, metrics in found.soft.items():
            for metric, radii in metrics.items():
                for radius, value in radii.items():
                    self.values.setdefault((experiment, name, metric, radius), []).append(value)
        for name in predictions:
            if "true" not in name and "types" not in name:  # others have places of their own
                for score in LAYOUT:
                    value = getattr(found.layout[name], score)
                    self.layouts.setdefault((experiment, name, score), []).append(value)

    def join(self, other: Results) -> None:
        for mine, theirs in ((self.values, other.values), (self.layouts, other.layouts)):
            for key, found in theirs.items():
                mine.setdefault(key, []).extend(found)

    def layout_table(self) -> str:
        """Where cells lie: number and density beside the true ones, distances in um, copies beside their chance."""
        lines = [" " * 44 + "".join(f"{score.replace('_', ' '):<16}" for score in LAYOUT)]
        for experiment, name in dict.fromkeys(key[:2] for key in self.layouts):
            columns = (interval(self.layouts[experiment, name, score]) for score in LAYOUT)
            lines.append(f"{experiment:18}{name:26}" + "".join(f"{column:<16}" for column in columns))
        return "\n".join(lines)

    def above_nulls(self, experiment: str, name: str, radius: float) -> np.ndarray:
        """F1 of each target, less that of the better of the nulls that do not know the true cells."""
        nulls = [self.values[experiment, null, "f1", radius] for null in IGNORANT]
        return np.subtract(self.values[experiment, name, "f1", radius], np.max(nulls, axis=0))

    def table(self) -> str:
        metrics = (*REPORTED, "f1 above nulls")
        lines = [" " * 44 + "".join(f"{metric:<39}" for metric in metrics)]
        lines.append(f"{'experiment':18}{'r / mm':26}" + "".join(f"{r:<13g}" for _ in metrics for r in RADII))
        for experiment, name in dict.fromkeys(key[:2] for key in self.values):
            columns = [self.values[experiment, name, metric, radius] for metric in REPORTED for radius in RADII]
            columns += [self.above_nulls(experiment, name, radius) for radius in RADII]
            lines.append(f"{experiment:18}{name:26}" + "".join(f"{interval(column):<13}" for column in columns))
        return "\n".join(lines)

    def gains(self) -> str:
        """What each imputed line is better by than the baseline, target by target."""
        lines = ["better than the baseline by, target by target:", " " * 44 + f"{'spearman':<39}{'f1':<39}"]
        for experiment, name in dict.fromkeys(key[:2] for key in self.values):
            if name in ("baseline", "drawn anew", "shuffled rows", "mean profile", "type means"):
                continue
            line = f"{experiment:18}{name:26}"
            for metric in ("spearman", "f1"):
                for radius in RADII:
                    own, rules = (self.values[experiment, line_, metric, radius] for line_ in (name, "baseline"))
                    line += f"{interval(np.subtract(own, rules)):<13}"
            lines.append(line)
        return "\n".join(lines)


def interval(values: list[float] | np.ndarray) -> str:
    """Mean and half of its 95 % interval."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return f"{np.mean(values):.3f}±{half:.3f}"


class Experiments:
    """All experiments on the brain of one seed.

    Args:
        seed: of the brain, the training and the draws.
        scale: of brain and networks.
        results: to add to.
    """

    def __init__(self, seed: int, scale: Scale, results: Results) -> None:
        self.seed, self.scale, self.results = seed, scale, results
        self.brain = PhantomBrain(seed, HALF_AXES * scale.brain)
        self.spacing, self.hole_radius = SPACING * scale.brain, HOLE_RADIUS * scale.brain
        self.placement = PlacementOptions(seed=seed)
        self.slices = self.brain.coronal_series(spacing=self.spacing)
        flat = plane_of(self.slices[BROKEN]).flatten(self.slices[BROKEN].positions)
        middle = np.median(flat, axis=0)
        self.disc = Disc((float(middle[0]), float(middle[1])), self.hole_radius)
        self.in_hole = self.disc.contains(flat)
        shown = [*self.slices]
        shown[BROKEN] = self.slices[BROKEN][~self.in_hole]
        self.measured = join_cells([part for index, part in enumerate(shown) if index not in HELD_OUT])
        self.models = train_all(self.measured, scale, seed)

    def imputed(self, models: Models, measured: Cells, plane: Plane, hole: Disc | None = None, **options: Any) -> Cells:
        return fill(models, measured, plane, hole, placement=self.placement, **options).cells

    def held_out_slices(self) -> tuple[Cells, dict[str, Cells], Plane]:
        """Returns truth, predictions and plane of the last slice, for the figures."""
        for index in HELD_OUT:
            truth, plane = self.slices[index], plane_of(self.slices[index])
            types = self.models.types.sample(truth.positions, torch.Generator().manual_seed(self.seed))
            predictions = {
                "imputed": self.imputed(self.models, self.measured, plane),
                "imputed, even types": self.imputed(self.models, self.measured, plane, type_draws="even"),
                "imputed, likely types": self.imputed(self.models, self.measured, plane, type_temperature=LIKELY),
                "imputed, true places": express(self.models, replace(truth, types=types)),
                "imputed, true types": replace(
                    express(self.models, of_known_types(truth, self.models)), types=truth.types
                ),
                "baseline": baseline.predict(self.measured, plane, seed=self.seed),
                "drawn anew": self.brain.cut(plane, drawn=2),
            }
            self.results.add("slices held out", truth, predictions, plane, self.measured)
        return truth, predictions, plane

    def hole(self) -> None:
        """Networks and rules have seen the slice without what was in the hole."""
        truth, plane = self.slices[BROKEN][self.in_hole], plane_of(self.slices[BROKEN])
        imputed = self.imputed(self.models, self.measured, plane, self.disc)
        positions = baseline.uniform_disc(self.disc, plane, len(imputed), self.seed)
        types = baseline.vote_types(self.measured, positions)
        counts = baseline.copy_expression(self.measured, positions, types)
        anew = self.brain.cut(plane, drawn=2)
        predictions = {
            "imputed": imputed,
            "baseline": Cells(positions, types, counts, self.measured.genes),
            "drawn anew": anew[self.disc.contains(plane.flatten(anew.positions))],
        }
        self.results.add("hole", truth, predictions, plane, self.measured)

    def sagittal(self) -> None:
        offsets = CENTRE[0] + self.spacing * np.array([-1.25, -0.5, 0.5, 1.25])
        own = join_cells([self.brain.cut(Plane.sagittal(float(x)), name=f"sagittal {x:.2f}") for x in offsets])
        tuned = fine_tune(self.models, own, self.scale, self.seed)
        for ml in (CENTRE[0] - 0.875 * self.spacing, CENTRE[0]):
            plane = Plane.sagittal(float(ml))
            predictions = {
                "coronal slices only": self.imputed(self.models, self.measured, plane),
                "fine-tuned": self.imputed(tuned, own, plane),
                "baseline": baseline.predict(own, plane, seed=self.seed),
                "drawn anew": self.brain.cut(plane, drawn=2),
            }
            self.results.add("sagittal", self.brain.cut(plane), predictions, plane, own)

    def other_panel(self) -> tuple[float, float]:
        """After fine-tuning to the smaller panel, for its cells.

        Returns:
            The share of the vocabulary's genes that are written; and of the genes that the panel lacks, the counts that
            are written, of those before fine-tuning.
        """
        genes = [gene for index, gene in enumerate(GENES) if index % 3]
        series = [
            second_panel(cells, genes, CAUGHT, self.seed)
            for cells in self.brain.coronal_series(6, spacing=1.5 * self.spacing, name="b ", drawn=3)
        ]
        own = join_cells([series[index] for index in (0, 2, 3, 5)])
        tuned = fine_tune(self.models, own, self.scale, self.seed)
        for index in (1, 4):
            truth, plane = series[index], plane_of(series[index])
            predictions = {
                "zero-shot": self.imputed(self.models, own, plane),
                "fine-tuned": self.imputed(tuned, own, plane),
                "baseline": baseline.predict(own, plane, seed=self.seed),
                "drawn anew": second_panel(self.brain.cut(plane, drawn=4), genes, CAUGHT, self.seed + 1),
            }
            self.results.add("second panel", truth, predictions, plane, own)
        known, conditions = of_known_types(truth, self.models), {"technology": "panelA"}
        before, after = (express(each, known, genes="all", conditions=conditions) for each in (self.models, tuned))
        lacking = [gene for gene in GENES if gene not in genes]
        counts = [part.with_genes(lacking).require_counts("forgotten genes").sum() for part in (before, after)]
        produced = (after.require_counts("the share of genes").sum(axis=0) > 0).mean()
        return float(produced), float(counts[1] / counts[0])

    def healthy_control(self) -> tuple[float, float, list, list]:
        """Precision and recall of the genes that sickness changes, and the tables: true, found."""
        sections = self.brain.coronal_series(3, spacing=3 * self.spacing, name="sick ", drawn=1, sick=True)
        learned = learn_expression(join_cells([self.measured, *sections]), self.scale, self.seed)
        models = replace(self.models, expression=learned)
        plane = Plane.coronal(float(CENTRE[2]))
        sick, healthy = self.brain.cut(plane, drawn=5, sick=True), self.brain.cut(plane, drawn=6)
        sick = of_known_types(sick, models)
        control, same = express(models, sick, conditions={"disease_state": "healthy"}), express(models, sick)
        tables = differential_expression(sick, healthy), differential_expression(same, control)
        true, found = ({(t.type, gene) for t in side for gene in t.found(fold=FOLD)} for side in tables)
        hits = len(true & found)
        return hits / max(1, len(found)), hits / max(1, len(true)), *tables


def plane_of(cells: Cells) -> Plane:
    return Plane.coronal(float(cells.positions[:, 2].mean()))


def run(seed: int, scale: Scale, folder: Path | None) -> tuple[Results, tuple[float, ...], float]:
    """All experiments on one brain, figures into a folder.

    Returns:
        Scores; genes produced, of the lacking ones, precision and recall; CPU seconds.
    """
    torch.set_num_threads(1)
    results = Results()
    experiments = Experiments(seed, scale, results)
    truth, predictions, plane = experiments.held_out_slices()
    if folder is not None:
        impute_figures.f1_density(folder / "f1_density.png", truth, predictions, plane)
        impute_figures.embedding(folder / "embedding.png", truth, predictions)
    experiments.hole()
    experiments.sagittal()
    produced, kept = experiments.other_panel()
    precision, recall, *tables = experiments.healthy_control()
    if folder is not None:
        impute_figures.volcanoes(folder / "volcano.png", *tables)
    minutes = time.process_time() / 60
    print(
        f"brain {seed}: {len(experiments.measured):,} cells, {minutes:.1f} min of CPU; produced {produced:.2f},"
        f" kept {kept:.2f}, precision {precision:.2f}, recall {recall:.2f}",
        flush=True,
    )
    print(results.table(), results.layout_table(), sep="\n", flush=True)
    return results, (produced, kept, precision, recall), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23], metavar="N")
    parser.add_argument("--preset", default="small", choices=[*PRESETS])
    parser.add_argument("--steps", type=float, default=1.0, help="of the preset's (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the brain (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="brains at a time (default: 1)")
    parser.add_argument("--toy", action="store_true", help="one small brain and tiny networks: two minutes")
    parser.add_argument("--folder", type=Path, help="for scores.json and the figures")
    options = parser.parse_args()
    scale = Scale(options.preset, options.steps, options.scale)
    if options.toy:
        options.seeds, scale = options.seeds[:1], Scale("tiny", brain=0.5)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    results, extra, cpu = Results(), [], 0.0
    start = time.perf_counter()
    folders = [options.folder if index == 0 else None for index in range(len(options.seeds))]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for of_brain, figures, seconds in pool.map(run, options.seeds, repeat(scale), folders):
            results.join(of_brain)
            extra.append(figures)
            cpu += seconds / 60
    print(results.table())
    print(results.gains())
    print(results.layout_table())
    produced, kept, precision, recall = np.mean(extra, axis=0)
    print(f"genes of the vocabulary written for cells of the smaller panel, fine-tuned to it: {produced:.0%}")
    print(f"counts of the genes it lacks, after fine-tuning, of those before: {kept:.2f}")
    print(f"genes that sickness changes: precision {precision:.2f}, recall {recall:.2f}")
    minutes, load = (time.perf_counter() - start) / 60, os.getloadavg()[0]
    print(f"{len(options.seeds)} brains in {minutes:.1f} minutes, {cpu:.1f} of CPU; load {load:.1f}")
    if options.folder:
        rows, layouts = ([[*key, found] for key, found in part.items()] for part in (results.values, results.layouts))
        (options.folder / "scores.json").write_text(
            json.dumps({"version": 2, "scores": rows, "layouts": layouts, "extra": extra}, indent=1)
        )


if __name__ == "__main__":
    main()
