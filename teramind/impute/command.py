"""Imputes cells, their types and their expression for tissue that was never measured (MIMYR)."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from teramind.atlas.insert import check_places
from teramind.atlas.store import Atlas, is_atlas
from teramind.errors import InputError
from teramind.files import appears_whole, check_output
from teramind.impute import baseline
from teramind.impute.cells import Cells, join_cells
from teramind.impute.celltype import Draws
from teramind.impute.data import check_name, read_slices, write_cells
from teramind.impute.differential import DifferentialTable, differential_expression, write_tables
from teramind.impute.evaluation import DEFAULT_RADII, compare
from teramind.impute.filling import SECTION_THICKNESS, Filled, choose_genes, express, place
from teramind.impute.fitting import PRESETS, train_models
from teramind.impute.gene_order import order_genes, read_edges
from teramind.impute.generation import GenerationOptions, generate_expression
from teramind.impute.models import STAGES, Models
from teramind.impute.placement import PlacementOptions
from teramind.impute.planes import Plane, parse_numbers, parse_plane
from teramind.impute.regions import Region, parse_region
from teramind.impute.virtual_slices import SPREAD_UM, Slab, add_virtual_slices, check_cells, slice_places

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: one word a task."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="train|fill|evaluate")
    _add_train(tasks.add_parser("train", help="learn a tissue from its measured slices"))
    _add_fill(tasks.add_parser("fill", help="give a plane, or a hole in it, cells; or measured cells more genes"))
    _add_evaluate(tasks.add_parser("evaluate", help="score a prediction against measured cells, beside null baselines"))


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    {"train": run_train, "fill": run_fill, "evaluate": run_evaluate}[arguments.task](arguments)
    return 0


def run_train(arguments: argparse.Namespace) -> None:
    """``teramind impute train``."""
    cells = _read(arguments.data, arguments)
    edges = read_edges(arguments.grn) if arguments.grn else None
    models = train_models(
        cells,
        arguments.models,
        size=arguments.size,
        order=None if edges is None else order_genes(cells.genes, edges),
        start=Models.load(arguments.start) if arguments.start else None,
        steps=tuple(getattr(arguments, f"steps_{stage}") for stage in STAGES),
        seed=arguments.seed,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    held_out, alone = (models.types.training[name] for name in ("held_out_nll", "frequency_nll"))
    sys.stdout.write(
        f"{arguments.models}: {len(cells):,} cells, {len(models.types.names)} types, {len(cells.genes)} genes\n"
        f"types on held-out cells: {held_out:.3f} nats (their frequencies alone: {alone:.3f})\n"
        f"expression: loss {models.expression.training['loss']:.3f},"
        f" {len(models.expression.order.broken)} regulatory edges against the order of genes\n"
    )


def run_fill(arguments: argparse.Namespace) -> None:
    """``teramind impute fill``."""
    _check_fill(arguments)
    planes = [parse_plane(text) for text in arguments.plane or []]
    region = None if arguments.hole is None else parse_region(arguments.hole)
    origin = _origin(arguments.atlas_origin)
    atlas = _open_atlas(planes, arguments) if arguments.atlas else None
    genes = arguments.genes if arguments.genes in ("panel", "all") else _read_names(arguments.genes)
    conditions = _conditions(arguments.set)
    generation = GenerationOptions(top_k=arguments.top_k, temperature=arguments.temperature, seed=arguments.seed)
    facts: dict[str, Any] = {"conditions": conditions, "generation": asdict(generation)}
    models, written, tables = Models.load(arguments.models), list[Cells](), list[DifferentialTable]()
    if arguments.expression_only:
        measured = _read(arguments.data, arguments, aligned=False)
        cells = express(models, measured, generation=generation, genes=genes, conditions=conditions)
        if arguments.differential:
            tables = differential_expression(express(models, measured, generation=generation, genes=genes), cells)
    else:
        measured = _read(arguments.data, arguments)
        chosen = choose_genes(models, measured, genes)
        filled, facts["filled"] = _place_planes(models, measured, planes, region, conditions, arguments)
        if atlas is not None:
            unwritten = [replace(part.cells, genes=tuple(chosen)) for part in filled]
            check_cells(atlas, _slabs(unwritten, planes, arguments), origin, arguments.spread_um)
        written = _write_expression(models, filled, generation, chosen)
        cells = join_cells(written)
    facts |= {"models": str(arguments.models), "data": list(map(str, arguments.data))}
    write_cells(arguments.output, cells, types=arguments.types, sections=arguments.sections, **facts)
    if arguments.differential:
        under = ", ".join(arguments.set)
        write_tables(
            arguments.differential, tables, f"the cells as they are over the same with {under}, both generated"
        )
    if atlas is not None:
        _write_slices(atlas, _slabs(written, planes, arguments), arguments)
    counts = cells.require_counts("the summary")
    produced = int((np.diff(counts.tocsc().indptr) > 0).sum())
    sys.stdout.write(
        f"{arguments.output}: {len(cells):,} cells of {len(set(cells.require_types('the summary').tolist()))} types,"
        f" {counts.nnz / max(1, len(cells)):.1f} genes a cell, {produced} of {len(cells.genes)} genes produced\n"
    )


def _check_fill(arguments: argparse.Namespace) -> None:
    """What can be said before anything is read."""
    if bool(arguments.plane) == arguments.expression_only:
        raise InputError("give either --plane, or --expression-only to keep the cells that are there")
    if arguments.hole is not None and len(arguments.plane or []) != 1:
        raise InputError("--hole lies in a plane: give one --plane with it")
    if (arguments.atlas is None) != (arguments.denser_atlas is None):
        raise InputError("--atlas and --denser-atlas go together: the atlas to copy and the one to write")
    if arguments.atlas and arguments.expression_only:
        raise InputError("--atlas takes new slices, and --expression-only makes none: leave out one of the two")
    if arguments.differential and not (arguments.expression_only and arguments.set):
        raise InputError("--differential compares cells with themselves: give --expression-only and --set NAME=VALUE")
    check_name(arguments.output)
    for path in filter(None, (arguments.output, arguments.differential)):
        check_output(path, arguments.overwrite)


def _open_atlas(planes: Sequence[Plane], arguments: argparse.Namespace) -> Atlas:
    """The atlas to copy, after a check that the copy can have a slice at these planes and be written."""
    origin, denser = _origin(arguments.atlas_origin), Path(arguments.denser_atlas)
    places = [z for plane in planes for z in slice_places(plane, arguments.thickness, arguments.slices, origin)]
    atlas = Atlas.open(arguments.atlas)
    check_places(atlas, denser, places)
    if denser.exists() and not (arguments.overwrite and is_atlas(denser)):
        advice = "replace it with --overwrite, or choose" if is_atlas(denser) else "and is no atlas; choose"
        raise InputError(f"{denser} exists; {advice} another name")
    if not denser.absolute().parent.is_dir():
        raise InputError(f"{denser} cannot be written: there is no folder {denser.parent}; make it first")
    return atlas


def _slabs(parts: Sequence[Cells], planes: Sequence[Plane], arguments: argparse.Namespace) -> list[Slab]:
    pairs = zip(parts, planes, strict=True)
    return [Slab(part, plane, arguments.thickness, arguments.slices) for part, plane in pairs]


def _place_planes(
    models: Models,
    measured: Cells,
    planes: Sequence[Plane],
    region: Region | None,
    conditions: Mapping[str, str],
    arguments: argparse.Namespace,
) -> tuple[list[Filled], list[dict[str, Any]]]:
    """The cells of each plane, without expression, and what to write down on them."""
    found, facts = [], []
    for index, plane in enumerate(planes):
        placement = PlacementOptions(
            thickness=arguments.thickness,
            steps=arguments.steps,
            guidance=arguments.guidance,
            spacing=arguments.spacing,
            seed=arguments.seed + index,  # the same draws would lay out the planes alike
        )
        filled = place(
            models, measured, plane, region, placement=placement, conditions=conditions,
            section_thickness=arguments.section_thickness, type_temperature=arguments.type_temperature,
            type_draws=arguments.type_draws,
            name=arguments.name if len(planes) == 1 else f"{arguments.name} {index + 1}",
        )  # fmt: skip
        found.append(filled)
        placed = filled.placement
        facts.append(
            {"plane": asdict(plane), "hole": arguments.hole, "placement": asdict(placement)}
            | {"type_draws": arguments.type_draws}
            | {"acceptance": placed.acceptance, "drawn_around_measured": placed.fallback}
        )
    return found, facts


def _write_expression(
    models: Models, filled: Sequence[Filled], generation: GenerationOptions, genes: Sequence[str]
) -> list[Cells]:
    """The placed cells of each plane, with expression."""
    return [
        generate_expression(
            models.expression, part.cells, replace(generation, seed=generation.seed + index), genes=genes
        )
        for index, part in enumerate(filled)
    ]


def _write_slices(atlas: Atlas, slabs: Sequence[Slab], arguments: argparse.Namespace) -> None:
    """The cells as slices of a copy of an atlas."""
    origin = _origin(arguments.atlas_origin)
    made = add_virtual_slices(
        atlas, arguments.denser_atlas, slabs, origin=origin,
        spread_um=arguments.spread_um, seed=arguments.seed, overwrite=arguments.overwrite,
    )  # fmt: skip
    sys.stdout.write(
        f"{arguments.denser_atlas}: {made.atlas.slices} slices, of which {len(made.added)} virtual;"
        f" {made.transcripts:,} transcripts in these, {made.outside:,} outside the frame,"
        f" {made.unknown:,} of genes that the atlas lacks\n"
    )


def run_evaluate(arguments: argparse.Namespace) -> None:
    """``teramind impute evaluate``."""
    for path in filter(None, (arguments.output, arguments.differential)):
        check_output(path, arguments.overwrite)
    truth = _read([arguments.truth], arguments, sections=False, raw_counts=not arguments.differential)
    predictions = {"prediction": _read([arguments.prediction], arguments, sections=False, raw_counts=False)}
    plane = _plane_of(truth) if arguments.plane is None else parse_plane(arguments.plane)
    given = None
    if arguments.measured:
        given = _read(arguments.measured, arguments)
        predictions["rule-based baseline"] = baseline.predict(given, plane)
    tables = _differences(truth, predictions["prediction"]) if arguments.differential else []
    result = compare(
        truth, predictions, plane, given=given, radii=arguments.radii, mode=arguments.mode, seed=arguments.seed
    )
    if arguments.differential:
        write_tables(arguments.differential, tables, f"{arguments.truth} over {arguments.prediction}")
    if arguments.output:
        with appears_whole(arguments.output) as partial:
            partial.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    sys.stdout.write(result.table() + "\n")


def _differences(cells: Cells, control: Cells) -> list[DifferentialTable]:
    """Tables of two sets of cells, both counted or both generated."""
    counted = [
        bool((values == np.rint(values)).all())
        for values in (s.require_counts("a table").data for s in (cells, control))
    ]
    if counted[0] != counted[1]:
        raise InputError(
            "--differential would compare counts with generated values, which differ in every gene; give two generated"
            " files, or use fill --expression-only --set NAME=VALUE --differential"
        )
    return differential_expression(cells, control)


def _origin(text: str) -> tuple[float, float, float]:
    numbers = parse_numbers(text)
    if len(numbers) != 3:
        raise InputError(f"--atlas-origin {text} does not read as ML,DV,AP in mm")
    return numbers[0], numbers[1], numbers[2]


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", help=".h5ad files: raw counts in X, obsm['aligned_spatial'] in mm")
    parser.add_argument("--models", required=True, metavar="FOLDER", help="folder to write the three networks to")
    _add_columns(parser)
    parser.add_argument("--size", choices=[*PRESETS], default="small", help="of the networks (default: small)")
    parser.add_argument("--grn", metavar="TSV", help="regulatory edges (source, target) that order the genes")
    parser.add_argument("--start", metavar="FOLDER", help="models to go on from, on new slices (fine-tuning)")
    for stage in STAGES:
        parser.add_argument(
            f"--steps-{stage}", type=int, metavar="N", help=f"updates for {stage}; the size's otherwise"
        )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on where a killed training stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace models that are there")


def _add_fill(parser: argparse.ArgumentParser) -> None:
    defaults = PlacementOptions()
    parser.add_argument("models", help="folder of models")
    parser.add_argument("data", nargs="+", help=".h5ad files of measured slices")
    parser.add_argument("--output", required=True, metavar="H5AD", help="file to write")
    parser.add_argument(
        "--plane",
        nargs="+",
        metavar="PLANE",
        help="one or more of coronal:AP, sagittal:ML or x,y,z,nx,ny,nz (mm); --plane=-1,... if negative",
    )
    parser.add_argument(
        "--hole", metavar="REGION", help="disc:x,y,radius, polygon:x,y,... or mask:FILE.npz, in the plane"
    )
    parser.add_argument(
        "--expression-only", action="store_true", help="keep the measured cells, write their expression"
    )
    _add_columns(parser)
    parser.add_argument("--genes", default="panel", help="panel, all, or a file of names (default: panel)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="metadata, e.g. disease_state=healthy"
    )
    parser.add_argument("--name", default="imputed", help="of the new section (default: imputed)")
    parser.add_argument(
        "--section-thickness", type=float, default=SECTION_THICKNESS, metavar="MM",
        help=f"of the measured slices (default: {SECTION_THICKNESS})",
    )  # fmt: skip
    for name, kind, text in (
        ("thickness", float, "of the slab to fill, mm"),
        ("steps", int, "of the diffusion, 1 to 70"),
        ("guidance", float, "by the slices nearby, 0 for none"),
        ("spacing", float, "least distance of two cells, mm"),
        ("seed", int, "of all draws"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw the next gene from the N likeliest; all otherwise")
    parser.add_argument("--temperature", type=float, default=1.0, help="of those draws (default: 1)")
    parser.add_argument(
        "--type-temperature", type=float, default=1.0, help="of the draws of types; below 1 favours likely ones"
    )
    parser.add_argument(
        "--type-draws", choices=get_args(Draws), default="independent",
        help="even mixes them evenly among neighbours: truer shares around each place, and no say on which types touch "
        "(default: independent)",
    )  # fmt: skip
    _add_atlas(parser)
    parser.add_argument(
        "--differential", metavar="TSV", help="with --expression-only, file for the genes that --set changes"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    """Options of the atlas that the cells become slices of."""
    parser.add_argument(
        "--atlas", metavar="ATLAS.zarr", help="write the cells as transcripts into a copy of this atlas"
    )
    parser.add_argument("--denser-atlas", metavar="NEW.zarr", help="that copy, with the new slices, for generate")
    parser.add_argument(
        "--atlas-origin",
        default="0,0,0",
        metavar="ML,DV,AP",
        help="of the atlas' first pixel, mm (default: 0,0,0); --atlas-origin=-1,... if negative",
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="to cut each slab into (default: 1)")
    parser.add_argument(
        "--spread-um", type=float, default=SPREAD_UM, help=f"of transcripts around a cell (default: {SPREAD_UM:g})"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("truth", help=".h5ad of measured cells")
    parser.add_argument("prediction", help=".h5ad of predicted cells")
    parser.add_argument("--measured", nargs="+", metavar="H5AD", help="slices that it was made from: adds the baseline")
    parser.add_argument("--plane", metavar="PLANE", help="as for fill; the one that the truth lies in otherwise")
    _add_columns(parser)
    parser.add_argument(
        "--radii", type=float, nargs="+", default=list(DEFAULT_RADII), metavar="MM", help="of neighbourhoods"
    )
    parser.add_argument("--mode", choices=("paper", "reference"), default="paper", help="rules (default: paper)")
    parser.add_argument("--seed", type=int, default=0, help="of the null baselines (default: 0)")
    parser.add_argument("--output", metavar="JSON", help="file to write the scores to")
    parser.add_argument("--differential", metavar="TSV", help="file to write the genes to that differ, type by type")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that are there")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--types", default="cluster", metavar="COLUMN", help="of obs (default: cluster)")
    parser.add_argument(
        "--sections", default="brain_section_label", metavar="COLUMN", help="of obs (default: brain_section_label)"
    )


def _read(
    paths: Sequence[str],
    arguments: argparse.Namespace,
    *,
    sections: bool = True,
    raw_counts: bool = True,
    aligned: bool = True,
) -> Cells:
    column = arguments.sections if sections else None
    return read_slices(paths, types=arguments.types, sections=column, raw_counts=raw_counts, aligned=aligned)


def _read_names(path: str) -> list[str]:
    try:
        names = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no UTF-8 text"
        raise InputError(f"--genes is panel, all or a file of names, one a line; {path}: {reason}") from None
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} names the gene {twice[0]!r} twice; leave out one of them")
    return names


def _conditions(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise InputError(f"--set {wrong[0]} does not read as NAME=VALUE, e.g. disease_state=healthy")
    return {name: value for name, _, value in pairs}


def _plane_of(cells: Cells) -> Plane:
    """The plane across the axis along which the cells spread least."""
    spread = cells.positions.std(axis=0)
    normal = np.eye(3)[int(np.argmin(spread))]
    middle = cells.positions.mean(axis=0)
    return Plane((middle[0], middle[1], middle[2]), (normal[0], normal[1], normal[2]))
