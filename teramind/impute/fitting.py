"""Training all three networks of a tissue into one folder, from nothing or from another tissue's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from teramind.engine.lock import OutputLock
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.celltype import TypeConfig, train_types
from teramind.impute.expression import SIZES, ExpressionConfig, train_expression
from teramind.impute.gene_order import GeneOrder, order_genes
from teramind.impute.given import check_given, digests, write_given
from teramind.impute.location import LocationConfig, train_locations
from teramind.impute.models import STAGES, Models, given_path, model_path, state_path
from teramind.impute.sections import find_sections
from teramind.impute.training import TrainingOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """Shapes of the networks and how long they train.

    Attributes:
        shapes: of the networks for locations, types and expression.
        options: how they train.
    """

    shapes: tuple[LocationConfig, TypeConfig, ExpressionConfig]
    options: tuple[TrainingOptions, TrainingOptions, TrainingOptions]


PRESETS = {
    "tiny": Preset(
        (LocationConfig(width=64, octaves=4), TypeConfig(width=48, depth=1, octaves=4), ExpressionConfig(width=32)),
        (
            TrainingOptions(steps=300, batch=512, learning_rate=4e-3),
            TrainingOptions(steps=250, batch=512, learning_rate=5e-3),
            TrainingOptions(steps=300, batch=64, learning_rate=8e-3),
        ),
    ),
    "small": Preset(
        (LocationConfig(width=256, depth=3), TypeConfig(width=128), SIZES["small"]),
        (
            TrainingOptions(steps=1500, batch=2048, learning_rate=2e-3),
            TrainingOptions(steps=1500, batch=1024, learning_rate=3e-3),
            TrainingOptions(steps=1500, batch=128, learning_rate=3e-3),
        ),
    ),
    "medium": Preset(
        (LocationConfig(octaves=8), TypeConfig(width=1024, octaves=8), SIZES["medium"]),
        (
            TrainingOptions(steps=50_000, batch=8192, learning_rate=1e-3),
            TrainingOptions(steps=20_000, batch=4096, learning_rate=1e-3),
            TrainingOptions(steps=100_000, batch=128, learning_rate=2e-4, weight_decay=0.01),
        ),
    ),
}
"""tiny is for trying out (a minute), small for small panels, medium the paper's sizes. Training is for CPUs, on
which the 5e17 operations of medium take months: give it fewer steps."""


def train_models(
    cells: Cells,
    folder: str | Path,
    *,
    size: str = "small",
    order: GeneOrder | None = None,
    start: Models | None = None,
    steps: tuple[int | None, int | None, int | None] = (None, None, None),
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Models:
    """Train the three networks and write them to a folder, each as soon as it is done.

    Args:
        cells: measured cells with sections, types and expression.
        folder: to write.
        size: one of ``PRESETS``: shapes of the networks and how long to train them.
        order: of the genes; by name if None.
        start: models to go on from (fine-tuning); ``size`` then only says how to train.
        steps: of the three trainings, in place of the preset's.
        seed: of all draws.
        resume: go on where a killed training of the same cells and options stopped, to the same models.
        overwrite: replace models that are there.

    Raises:
        InputError: the folder holds models already, no such size, cells that cannot be learned from, or a training to
            go on with that was given something else.
    """
    folder = Path(folder)
    if size not in PRESETS:
        raise InputError(f"there is no size {size!r}; choose from {', '.join(PRESETS)}")
    preset = PRESETS[size]
    options = [
        replace(chosen, seed=seed, steps=chosen.steps if number is None else number)
        for chosen, number in zip(preset.options, steps, strict=True)
    ]
    shapes = preset.shapes if start is None else (None, None, None)
    begin = (None, None, None) if start is None else (start.locations, start.types, start.expression)
    if start is not None and order is not None:
        raise InputError("models to start from have their own gene order; give none beside them")
    if start is None and order is None:
        order = order_genes(cells.genes, ())
    _check_cells(cells, order, start)
    given = digests(cells, options, shapes, order, start)
    paths = [model_path(folder, stage) for stage in STAGES]
    states = [state_path(folder, stage) for stage in STAGES]
    with OutputLock(folder):
        if resume:
            _check_resumable(folder, given)
        else:
            _make_room(folder, [given_path(folder), *paths, *states], overwrite)
        write_given(given_path(folder), given)
        log.info("training %s", STAGES[0])
        locations = train_locations(cells, options[0], config=shapes[0], start=begin[0], state=states[0], resume=resume)
        locations.save(paths[0])
        log.info("training %s", STAGES[1])
        types = train_types(cells, options[1], config=shapes[1], start=begin[1], state=states[1], resume=resume)
        types.save(paths[1])
        log.info("training %s", STAGES[2])
        expression = train_expression(
            cells, options[2], config=shapes[2], order=order, start=begin[2], state=states[2], resume=resume
        )
        expression.save(paths[2])
    return Models(locations, types, expression)


def _check_cells(cells: Cells, order: GeneOrder | None, start: Models | None) -> None:
    """What the last of the trainings would find, after the others have been written."""
    types = cells.require_types("learning types")
    cells.require_counts("learning expression")
    find_sections(cells)
    labelled = cells[types != ""]
    if (kinds := len(np.unique(types[types != ""]))) < 2:
        raise InputError(f"{len(labelled)} cells have a type, of {kinds} kinds; two kinds are needed")
    find_sections(labelled)
    known = cells
    if start is not None:
        start.types.encode(types[types != ""])
        genes = set(start.expression.vocabulary.genes)
        known = cells.with_genes([name for name in cells.genes if name in genes])
        if unknown := [name for name in cells.genes if name not in genes]:
            log.warning("genes that the models do not know are left out: %d, %s for one", len(unknown), unknown[0])
    elif order is not None and (odd := sorted(set(order.genes) ^ set(cells.genes))):
        raise InputError(f"the order of genes and the cells differ in {odd[0]!r} and {len(odd) - 1} others")
    if not known.require_counts("learning expression").data.any():
        where = "X is all zero" if start is None else "of those that the models know"
        raise InputError(f"no cell expresses any gene ({where}); put the raw counts into X")


def _check_resumable(folder: Path, given: Mapping[str, str]) -> None:
    """Refuse to go on with a training that was given something else, or whose state is gone."""
    states = [state_path(folder, stage).exists() for stage in STAGES]
    for stage, state in zip(STAGES, states, strict=True):
        if model_path(folder, stage).exists() and not state:
            raise InputError(
                f"{model_path(folder, stage)} is finished, and the state of its training is gone, so there is nothing"
                " to go on with; choose another folder, or replace the models with --overwrite"
            )
    if given_path(folder).exists():
        check_given(given_path(folder), given, folder)
    elif any(states):
        raise InputError(f"{folder} does not say which cells its training was given; train anew with --overwrite")


def _make_room(folder: Path, paths: list[Path], overwrite: bool) -> None:
    """Remove models and states that are there, or refuse to."""
    present = [path for path in paths if path.exists()]
    if present and not overwrite:
        raise InputError(f"{folder} holds models already; go on with --resume, or replace them with --overwrite")
    for path in present:
        path.unlink()
