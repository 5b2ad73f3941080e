"""All three stages: a plane or a hole filled with cells, their types and their expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.celltype import Draws
from teramind.impute.density import TissueDensity
from teramind.impute.generation import GenerationOptions, generate_expression
from teramind.impute.models import Models
from teramind.impute.placement import Placement, PlacementOptions, place_cells
from teramind.impute.planes import Plane
from teramind.impute.regions import Region

SECTION_THICKNESS = 0.01  # mm: what MERSCOPE and Xenium sections have

Panel = Literal["panel", "all"] | Sequence[str]


@dataclass(frozen=True)
class Filled:
    """Cells that were never measured, and how they were placed; without expression from ``place``."""

    cells: Cells
    placement: Placement


def fill(
    models: Models,
    measured: Cells,
    plane: Plane,
    region: Region | None = None,
    *,
    placement: PlacementOptions | None = None,
    generation: GenerationOptions | None = None,
    genes: Panel = "panel",
    conditions: Mapping[str, str] | None = None,
    section_thickness: float = SECTION_THICKNESS,
    type_temperature: float = 1.0,
    type_draws: Draws = "independent",
    name: str = "imputed",
) -> Filled:
    """Fill a plane of the tissue, or a hole in it. Only ``measured`` is looked at, never the target.

    Args:
        models: trained on slices of the same frame.
        measured: cells with sections; how many cells there are and where they are dense comes from them.
        plane: the middle of the slab to fill.
        region: the hole, in the plane's coordinates; the whole tissue in the plane if None.
        placement: how to place cells.
        generation: how to write their expression.
        genes: "panel" for the genes of ``measured`` that the network knows, "all" for all that it knows, or names.
        conditions: metadata to set, such as {"technology": "scRNA-seq", "disease_state": "healthy"}; the usual
            otherwise.
        section_thickness: of the measured slices, mm.
        type_temperature: of the draws of types; below 1, what is likely gets likelier.
        type_draws: "independent", or "even" to mix types evenly among neighbours; see ``TypeModel.sample``.
        name: of the new section.

    Raises:
        InputError: no tissue there, a gene or condition that the models do not know.
    """
    chosen = choose_genes(models, measured, genes)
    filled = place(
        models, measured, plane, region, placement=placement, conditions=conditions,
        section_thickness=section_thickness, type_temperature=type_temperature, type_draws=type_draws, name=name,
    )  # fmt: skip
    return replace(filled, cells=generate_expression(models.expression, filled.cells, generation, genes=chosen))


def place(
    models: Models,
    measured: Cells,
    plane: Plane,
    region: Region | None = None,
    *,
    placement: PlacementOptions | None = None,
    conditions: Mapping[str, str] | None = None,
    section_thickness: float = SECTION_THICKNESS,
    type_temperature: float = 1.0,
    type_draws: Draws = "independent",
    name: str = "imputed",
) -> Filled:
    """The first two stages of ``fill``: cells with types, whose expression ``generate_expression`` writes.

    Args and errors are those of ``fill``.
    """
    placement = placement or PlacementOptions()
    vocabulary = models.expression.vocabulary
    vocabulary.describe(np.zeros(0, str), conditions or {})  # says what is wrong before the work begins
    density = TissueDensity(measured, section_thickness)
    placed = place_cells(models.locations, measured, density, plane, placement, region)
    generator = torch.Generator().manual_seed(placement.seed)
    types = models.types.sample(placed.positions, generator, temperature=type_temperature, draws=type_draws)
    sections = np.full(len(types), name)
    cells = Cells(placed.positions, types, sections=sections, metadata=vocabulary.describe(types, conditions or {}))
    return Filled(cells, placed)


def express(
    models: Models,
    cells: Cells,
    *,
    generation: GenerationOptions | None = None,
    genes: Panel = "panel",
    conditions: Mapping[str, str] | None = None,
) -> Cells:
    """Write the expression of measured cells anew: more genes than their panel, or under other conditions.

    Args:
        models: trained.
        cells: with positions and types, which are kept, as are sections and metadata.
        generation: how to write.
        genes: as for ``fill``.
        conditions: as for ``fill``; a diseased tissue's healthy control is its cells with the disease state of health.
    """
    chosen = choose_genes(models, cells, genes)
    usual = models.expression.vocabulary.describe(cells.require_types("writing expression"), conditions or {})
    set_anew = conditions or {}
    metadata = dict(cells.metadata) | {
        column: values if column in set_anew else cells.metadata.get(column, values) for column, values in usual.items()
    }
    return generate_expression(models.expression, replace(cells, metadata=metadata), generation, genes=chosen)


def choose_genes(models: Models, measured: Cells, genes: Panel) -> list[str]:
    """The genes to write, in the order in which they are asked for.

    Raises:
        InputError: none of the panel's genes, or not all that were asked for by name, are known.
    """
    known = models.expression.vocabulary.genes
    if genes == "all":
        return sorted(known)
    expressible = set(known)
    chosen = [gene for gene in measured.genes if gene in expressible] if genes == "panel" else list(genes)
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"the expression network does not know gene {unknown[0]!r} and {len(unknown) - 1} others")
    if not chosen:
        raise InputError("the expression network knows no gene of the panel; check the genes' names")
    return chosen
