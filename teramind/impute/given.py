"""What a training was given, as digests in a file: a killed training may only go on with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.impute.cells import Cells
from teramind.impute.gene_order import GeneOrder
from teramind.impute.models import STAGES, Models
from teramind.impute.training import TrainingOptions
from teramind.impute.vocabulary import COLUMNS

FORMAT, FORMAT_VERSION = "teramind-training-inputs", 1
FREE = ("seed", "save_every")  # options named on their own, and that change no weight


def digests(
    cells: Cells,
    options: Sequence[TrainingOptions],
    shapes: Sequence[Any],
    order: GeneOrder | None,
    start: Models | None,
) -> dict[str, str]:
    """SHA-256 of everything that decides what a training gives, by what a message calls it.

    Args:
        cells: with sections, types and expression.
        options: of the three trainings.
        shapes: of the networks; None where they are those of ``start``.
        order: of the genes; None where it is that of ``start``.
        start: models to go on from.
    """
    counts = cells.require_counts("learning expression")
    columns = [name for name in COLUMNS if name in cells.metadata]
    found = {
        "positions": _digest(cells.positions),
        "sections": _digest([] if cells.sections is None else cells.sections),
        "types": _digest(cells.require_types("learning types")),
        "expression": _digest(counts.indptr, counts.indices, counts.data, cells.genes),
        "panels": _digest() if cells.panels is None or cells.panel is None else _digest(cells.panels * 1, cells.panel),
        "labels": _digest(columns, *(cells.metadata[name] for name in columns)),
        "order of genes": _digest([] if order is None else order.genes),
        "models to start from": "" if start is None else _digest_models(start),
        "size": _digest([repr(shape) for shape in shapes]),
        "seed": str(options[0].seed),
    }
    for stage, chosen in zip(STAGES, options, strict=True):
        kept = {name: value for name, value in asdict(chosen).items() if name not in FREE}
        found[f"steps or options for {stage}"] = _digest([json.dumps(kept)])
    return found


def write_given(path: Path, given: Mapping[str, str]) -> None:
    """Write digests as JSON."""
    with appears_whole(path) as partial:
        content = {"format": FORMAT, "version": FORMAT_VERSION, "given": dict(given)}
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def check_given(path: Path, given: Mapping[str, str], folder: Path) -> None:
    """Compare what a folder's training was given with what it is given now.

    Raises:
        InputError: something differs, which is named, or the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known, theirs = content["format"] == FORMAT and content["version"] <= FORMAT_VERSION, dict(content["given"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); train anew with --overwrite") from None
    if not known:
        raise InputError(f"{path} is not of this version of teramind; train anew with --overwrite")
    if changed := [name for name, digest in given.items() if theirs.get(name) != digest]:
        raise InputError(
            f"{folder} was begun with other {', '.join(changed)}; give the same data and options to go on,"
            " or train anew with --overwrite"
        )


def _digest(*parts: Iterable[Any]) -> str:
    """Of arrays and of texts, one after the other."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind in "iuf":
            kind = np.float64 if part.dtype.kind == "f" else np.int64
            content = np.ascontiguousarray(part, dtype=kind).tobytes()
        else:
            content = json.dumps([str(text) for text in part]).encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def _digest_models(models: Models) -> str:
    tensors = [
        tensor.cpu().numpy()
        for model in (models.locations, models.types, models.expression)
        for _, tensor in sorted(model.net.state_dict().items())
    ]
    places: list[Iterable[Any]] = [
        models.locations.centre,
        [models.locations.scale],
        models.types.centre,
        [models.types.scale],
    ]
    vocabulary = json.dumps(models.expression.vocabulary.to_dict(), sort_keys=True)
    return _digest(*tensors, *places, models.types.names, [vocabulary])
