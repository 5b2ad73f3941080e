"""The HTML page of a report."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Picture

from teramind.engine.plan import Rectangle
from teramind.evaluate.evaluation import CEILING, CHANCE, CONTROL, Evaluation, Row
from teramind.evaluate.extras import required
from teramind.evaluate.measure import Plan, Result
from teramind.evaluate.report import plots
from teramind.evaluate.report.pictures import overview, zoom_picture
from teramind.evaluate.zooms import ZoomChoice

_TEMPLATE = "report.html.j2"
_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column of the main table.

    Attributes:
        title: its head.
        value: of a row; NaN where the row has none.
        text: how the value is written.
        badness: of a value, to find the best; None for a column without a best.
    """

    title: str
    value: Callable[[Row], float]
    text: Callable[[float], str]
    badness: Callable[[float], float] | None


def render_page(evaluation: Evaluation, plan: Plan, result: Result) -> str:
    """The page, with its pictures in it."""
    jinja2 = required("jinja2")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    slice_shown, whole = overview(plan, result)
    zooms = [
        {
            "picture": inline_png(zoom_picture(plan, result, zoom)),
            "percentile": zoom.percentile,
            "f1": f"{zoom.f1:.2f}",
            "where": f"slice {zoom.z}, px {_place(zoom.place)}",
        }
        for zoom in result.zooms.choose()
    ]
    columns = _columns(evaluation)
    page: str = environment.get_template(_TEMPLATE).render(
        title=", ".join(Path(sample["path"]).name for sample in evaluation.provenance["samples"][:1]),
        evaluation=evaluation,
        where=_where(evaluation),
        titles=[column.title for column in columns],
        table=_table(plots_rows(evaluation), columns),
        every_sample=_table(evaluation.samples, columns) if len(evaluation.samples) > 1 else [],
        stains=_stain_table(evaluation),
        regions=_region_table(evaluation),
        overview=inline_png(whole),
        slice_shown=slice_shown,
        zooms=zooms,
        zoom_rule=ZoomChoice.rule,
        plots={
            "f1": inline_png(plots.f1_plot(evaluation)),
            "size": inline_png(plots.size_plot(evaluation)),
            "slices": inline_png(plots.slice_plot(evaluation)),
            "seams": inline_png(plots.seam_plot(evaluation)),
        },
        provenance=_provenance(evaluation),
    )
    return page


def plots_rows(evaluation: Evaluation) -> list[Row]:
    """Rows of the main table: as in the plots, and chance."""
    return [*plots.shown_rows(evaluation), *evaluation.of_kind(CHANCE)]


def _columns(evaluation: Evaluation) -> list[Column]:
    def nuclei(key: str) -> Callable[[Row], float]:
        return lambda row: row.nuclei.get(key, math.nan)

    def similarity(key: str) -> Callable[[Row], float]:
        return lambda row: row.similarity.get(key, math.nan)

    def distance(name: str) -> Callable[[Row], float]:
        return lambda row: row.distances.get(name, math.nan)

    high: Callable[[float], float] = lambda value: -value  # noqa: E731
    return [
        Column("nuclei F1", nuclei("f1"), "{:.3f}".format, high),
        Column("nuclei", nuclei("count"), "{:,.0f}".format, None),
        Column("error", nuclei("count_error"), "{:+.1%}".format, abs),
        Column("size distance, µm²", nuclei("area_distance"), "{:.2f}".format, abs),
        *(Column(name, distance(name), "{:.3g}".format, abs) for name in evaluation.samples[0].distances),
        Column("PSNR, dB", similarity("psnr"), "{:.2f}".format, high),
        Column("SSIM", similarity("ssim"), "{:.3f}".format, high),
        Column("MS-SSIM", similarity("ms_ssim"), "{:.3f}".format, high),
    ]


def _table(rows: list[Row], columns: list[Column]) -> list[dict[str, Any]]:
    """Rows of texts; the best of each column, ceiling, control and chance aside, is marked."""
    competing = [row for row in rows if row.kind not in (CEILING, CONTROL, CHANCE)]
    best = []
    for column in columns:
        values = [column.value(row) for row in competing]
        there = [value for value in values if not math.isnan(value)]
        best.append(min(there, key=column.badness) if column.badness and there and len(competing) > 1 else None)
    return [
        {
            "name": row.name,
            "kind": row.kind,
            "note": row.note,
            "cells": [
                {
                    "text": _written(column.value(row), column.text),
                    "best": row in competing and column.value(row) == top,
                }
                for column, top in zip(columns, best, strict=True)
            ],
        }
        for row in rows
    ]


def _stain_table(evaluation: Evaluation) -> list[list[str]]:
    keys = (("psnr", "{:.2f}"), ("ssim", "{:.3f}"), ("ms_ssim", "{:.3f}"))
    return [
        [row.name, stain, *(_written(figures[key], form.format) for key, form in keys)]
        for row in plots.shown_rows(evaluation)
        for stain, figures in row.stains.items()
    ]


def _region_table(evaluation: Evaluation) -> dict[str, Any]:
    """For each region the truth and the first sample, and F1 of the others."""
    rows = plots.shown_rows(evaluation)
    sample, others = rows[0], rows[1:]
    lines = []
    for name, figures in sample.regions.items():
        get = figures.get
        cells = [
            _written(get("true_nuclei", math.nan), "{:,.0f}".format),
            _written(get("nuclei", math.nan), "{:,.0f}".format),
            _written(get("true_median_area", math.nan), "{:.1f}".format),
            _written(get("median_area", math.nan), "{:.1f}".format),
            _written(get("psnr", math.nan), "{:.2f}".format),
            _written(get("f1", math.nan), "{:.3f}".format),
        ]
        cells += [_written(row.regions.get(name, {}).get("f1", math.nan), "{:.3f}".format) for row in others]
        lines.append([name, *cells])
    return {"others": [row.name for row in others], "lines": lines}


def _where(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    first, end = settings["slices"]
    place = Rectangle(*settings["region"])
    side = " × ".join(f"{length * settings['pixel_size_um'] / 1000:.3g}" for length in place.shape)
    return (
        f"slices {first} to {end - 1}, px {_place(place)} ({side} mm at {settings['pixel_size_um']:g} µm), "
        f"{', '.join(settings['stains'])}"
    )


def _place(place: Rectangle) -> str:
    return f"{place.y0}:{place.y1}, {place.x0}:{place.x1}"


def _provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Name and JSON text of every part."""
    parts = {"atlas": evaluation.provenance["atlas"], "settings": evaluation.settings}
    for row, sample in zip(evaluation.samples, evaluation.provenance["samples"], strict=True):
        parts[row.name] = sample
    return [(name, json.dumps(part, indent=1, ensure_ascii=False, default=str)) for name, part in parts.items()]


def _written(value: float, text: Callable[[float], str]) -> str:
    if math.isnan(value):
        return _MISSING
    return "∞" if math.isinf(value) else text(value)


def inline_png(picture: Picture.Image | bytes) -> str:
    """A PNG as a data URI."""
    if not isinstance(picture, bytes):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        picture = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
