"""Says what is in an atlas or a checkpoint."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from teramind.atlas.layout import ENTRIES, OFFSETS, VERSION
from teramind.atlas.store import Atlas
from teramind.errors import InputError

_GENES_SHOWN = 10
_PROVENANCE_SHOWN = 100  # characters a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``teramind info``."""
    parser.add_argument("path", metavar="ATLAS|CHECKPOINT", help="an atlas store, or a file of weights")
    parser.add_argument(
        "--overview", metavar="PNG", help="draw transcript density with a grid of pixel coordinates, to choose a --roi"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def run(arguments: argparse.Namespace) -> int:
    """Print what is in the atlas or checkpoint, and draw the overview if it is asked for."""
    path = Path(arguments.path)
    if path.is_file():
        if arguments.overview:
            raise InputError(f"{path} is no atlas folder and has no overview: leave out --overview, or name an atlas")
        # Only here is torch needed.
        text = importlib.import_module("teramind.model.checkpoint").describe(path)
        sys.stdout.write(f"{json.dumps({'checkpoint': str(path), 'description': text}) if arguments.json else text}\n")
        return 0
    overview = Path(arguments.overview) if arguments.overview else None
    if overview is not None and not overview.parent.is_dir():
        raise InputError(f"the overview {overview} cannot be written: there is no folder {overview.parent}")
    atlas = Atlas.open(path)
    facts = describe_atlas(atlas)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if arguments.json else as_text(facts))
    if overview is not None:
        _write_overview(atlas, overview)
    return 0


def describe_atlas(atlas: Atlas) -> dict[str, Any]:
    """The facts about an atlas, JSON-able.

    Returns:
        Lengths are in px, um or mm as the keys say; ``bytes_a_count`` includes the block index.
    """
    height, width = atlas.metadata.shape
    store_bytes = _bytes(atlas.path)
    count_bytes = _bytes(atlas.path / ENTRIES) + _bytes(atlas.path / OFFSETS)
    return {
        "atlas": str(atlas.path),
        "format_version": VERSION,
        "fingerprint": atlas.fingerprint,
        "slices": atlas.slices,
        "slice_z_um": atlas.slice_z,
        "shape_px": [height, width],
        "shape_mm": [height * atlas.pixel_size / 1000, width * atlas.pixel_size / 1000],
        "pixel_size_um": atlas.pixel_size,
        "genes": atlas.genes,
        "stains": atlas.stains if atlas.has_images else [],
        "scaling": atlas.scaling,
        "regions": atlas.region_names,
        "transcripts": sum(atlas.metadata.slice_transcripts),
        "slice_transcripts": atlas.metadata.slice_transcripts,
        "gene_transcripts": atlas.metadata.gene_transcripts,
        "stored_counts": atlas.stored_counts,
        "store_bytes": store_bytes,
        "bytes_a_count": round(count_bytes / atlas.stored_counts, 3) if atlas.stored_counts else None,
        "provenance": atlas.provenance,
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts about an atlas for people."""
    (height, width), (height_mm, width_mm) = facts["shape_px"], facts["shape_mm"]
    z, genes, regions = facts["slice_z_um"], facts["genes"], facts["regions"]
    rows = [
        ("atlas", facts["atlas"]),
        ("slices", f"{facts['slices']}, z {z[0]:g} µm" + (f" to {z[-1]:g} µm" if len(z) > 1 else "")),
        ("extent", f"{height:,} x {width:,} px (y, x), {height_mm:.4g} x {width_mm:.4g} mm"),
        ("pixel", f"{facts['pixel_size_um']:g} µm"),
        ("genes", f"{len(genes)}: {_first(genes)}"),
        ("images", _images(facts["scaling"])),
        ("regions", f"{len(regions)}: {_first(list(regions.values()))}" if regions else "none"),
        ("transcripts", f"{facts['transcripts']:,} in {facts['stored_counts']:,} counts of a bin and gene"),
        ("on disk", _disk(facts)),
        ("fingerprint", facts["fingerprint"]),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    return "\n".join([*lines, "", *_slice_table(facts), "", *_gene_table(facts), "", *_provenance(facts)]) + "\n"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_GENES_SHOWN]) + (", ..." if len(names) > _GENES_SHOWN else "")


def _images(scaling: dict[str, tuple[float, float]] | None) -> str:
    if scaling is None:
        return "none"
    return "; ".join(f"{stain} (raw {low:g} to {high:g} shown as 0 to 255)" for stain, (low, high) in scaling.items())


def _disk(facts: dict[str, Any]) -> str:
    text = f"{facts['store_bytes'] / 1e6:,.2f} MB"
    return text if facts["bytes_a_count"] is None else f"{text}, {facts['bytes_a_count']:.2f} bytes a stored count"


def _slice_table(facts: dict[str, Any]) -> list[str]:
    rows = zip(facts["slice_z_um"], facts["slice_transcripts"], strict=True)
    lines = [f"{index:5d} {z:9g} {transcripts:13,}" for index, (z, transcripts) in enumerate(rows)]
    return ["slice      z µm   transcripts", *lines]


def _gene_table(facts: dict[str, Any]) -> list[str]:
    counts, total = np.array(facts["gene_transcripts"]), max(1, facts["transcripts"])
    most = np.argsort(-counts, kind="stable")[:_GENES_SHOWN].tolist()
    wide = max(len(facts["genes"][index]) for index in most)
    lines = ["most frequent genes"]
    lines += [f"{facts['genes'][index]:<{wide}} {counts[index]:13,} {counts[index] / total:6.1%}" for index in most]
    silent = int((counts == 0).sum())
    return [*lines, f"{silent} genes have no transcript"] if silent else lines


def _provenance(facts: dict[str, Any]) -> list[str]:
    lines = ["provenance (in full with --json)"]
    for name, value in facts["provenance"].items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name:<12} {text if len(text) <= _PROVENANCE_SHOWN else text[:_PROVENANCE_SHOWN] + ' ...'}")
    return lines


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _write_overview(atlas: Atlas, path: Path) -> None:
    from teramind.atlas.overview import draw_overview

    png = io.BytesIO()
    draw_overview(atlas).save(png, format="PNG", optimize=True)
    path.write_bytes(png.getvalue())
