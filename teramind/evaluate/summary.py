"""From the sums of the pass to the figures of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from teramind import __version__
from teramind.atlas.store import Atlas
from teramind.evaluate.evaluation import CHANCE, Evaluation, Figures, Row
from teramind.evaluate.measure import Image, Plan, Result
from teramind.evaluate.metrics.frechet import frechet_distance
from teramind.evaluate.metrics.seams import SeamSums
from teramind.evaluate.notes import written_notes
from teramind.evaluate.nuclei.matching import f1_of
from teramind.evaluate.sources import GeneratedImage


def summarise(plan: Plan, result: Result, samples: Sequence[GeneratedImage], options: dict[str, Any]) -> Evaluation:
    """All figures of a pass.

    Args:
        plan: of the pass.
        result: of the pass.
        samples: the generated images.
        options: what else the caller was asked for, to be recorded.
    """
    rows = [_row(plan, result, image) for image in result.images]
    rows.append(_chance_row(result))
    area = plan.extent.place.area * plan.extent.depth * (plan.pixel_size / 1000) ** 2
    edges = _area_edges(result.truth)
    shares = {image.source.name: image.nuclei.area_shares(1, edges).tolist() for image in result.images}
    partial = Evaluation(
        rows=rows,
        truth={
            "nuclei": result.truth.nuclei.true_count,
            "median_area": result.truth.nuclei.median_area(),
            "nuclei_per_mm2": result.truth.nuclei.true_count / area,
        },
        truth_seams=_seams(result.truth.seams),
        naive_seams=_seams({result.naive.grid.name: result.naive} if result.naive else {}),
        area_edges=edges.tolist(),
        area_shares={"truth": result.truth.nuclei.area_shares(1, edges).tolist(), **shares},
        settings=_settings(plan, result, options),
        provenance=_provenance(plan.atlas, samples),
        notes=[],
    )
    partial.notes.extend(written_notes(partial))
    return partial


def _row(plan: Plan, result: Result, image: Image) -> Row:
    similarity, nuclei, intensities = image.similarity, image.nuclei, image.nuclei.intensities
    stains = {
        stain: {
            "psnr": similarity.psnr(number),
            "ssim": similarity.ssim(number),
            "ms_ssim": similarity.ms_ssim(number),
        }
        for number, stain in enumerate(plan.stains)
    }
    return Row(
        name=image.source.name,
        kind=image.kind,
        note=image.note,
        similarity={"psnr": similarity.psnr(), "ssim": similarity.ssim(), "ms_ssim": similarity.ms_ssim()},
        stains=stains,
        nuclei={
            "count": nuclei.count,
            "count_error": nuclei.count / nuclei.true_count - 1 if nuclei.true_count else float("nan"),
            "f1": nuclei.f1,
            "precision": nuclei.precision,
            "recall": nuclei.recall,
            "median_area": nuclei.median_area(),
            "area_distance": nuclei.area_distance,
            "true_intensity": intensities["truth"],
            "intensity": intensities["found"],
            "intensity_correlation": intensities["correlation"],
        },
        distances=_distances(result.truth, image),
        seams=_seams(image.seams),
        slices=_slices(plan, image),
        regions=_regions(plan, image),
    )


def _slices(plan: Plan, image: Image) -> dict[int, Figures]:
    first = plan.extent.slices[0]
    return {
        z: {"psnr": image.similarity.psnr(index=z - first), "ssim": image.similarity.ssim(index=z - first), **figures}
        for z, figures in image.nuclei.slice_figures().items()
    }


def _regions(plan: Plan, image: Image) -> dict[str, Figures]:
    """By name; what lies in none is left out."""
    names, psnr, figures = plan.atlas.region_names or {}, image.region_errors.psnr(), image.nuclei.region_figures()
    return {names[label]: {"psnr": psnr[label], **figures.get(label, {})} for label in sorted(psnr) if label in names}


def _chance_row(result: Result) -> Row:
    """F1 of the true nuclei displaced against the true nuclei; its spread is over displacements."""
    count = result.truth.nuclei.true_count
    levels = [f1_of(int(pairs), count) for pairs in result.chance.sum(axis=0)]
    nuclei = {"f1": float(np.mean(levels)), "f1_deviation": float(np.std(levels, ddof=1))}
    return Row(
        "chance", CHANCE, "the true nuclei displaced: what the right tissue at the wrong place gets", nuclei=nuclei
    )


def _distances(truth: Image, image: Image) -> Figures:
    figures = {}
    for true, found in zip(truth.distances, image.distances, strict=True):
        if true.generated is None or found.generated is None:
            figures[true.encoder.name] = float("nan")
        else:
            figures[true.encoder.name] = frechet_distance(true.generated, found.generated)
    return figures


def _seams(sums: dict[str, SeamSums]) -> dict[str, Figures]:
    scores = {name: one.compute() for name, one in sums.items()}
    return {
        name: {"score": score.score, "error": score.error, "blocks": score.blocks} for name, score in scores.items()
    }


def _area_edges(truth: Image, bins: int = 40) -> Any:
    """Edges of a histogram that shows four times the true median."""
    median = truth.nuclei.median_area()
    return np.linspace(0, 4 * median if np.isfinite(median) else 100.0, bins + 1)


def _settings(plan: Plan, result: Result, options: dict[str, Any]) -> dict[str, Any]:
    moments = {distance.encoder.name: distance.generated for distance in result.truth.distances}
    return {
        "slices": list(plan.extent.slices),
        "region": list(plan.extent.place),
        "pixel_size_um": plan.pixel_size,
        "stains": list(plan.stains),
        "nuclear_stain": plan.stains[plan.nuclear],
        "segmentation": {**plan.segmenter.describe(), "pixel_size_um": plan.segmented_pixel_size},
        "matching": f"one-to-one by centroid, within {plan.radius_um:g} µm",
        "match_radius_um": plan.radius_um,
        "grids": {grid.name: {"period": grid.period, "offset": grid.offset} for grid in plan.grids},
        "window": plan.window,
        "crops": {name: moment.count if moment else 0 for name, moment in moments.items()},
        "features": {name: len(moment.total) if moment else 0 for name, moment in moments.items()},
        **{name: str(value) if isinstance(value, os.PathLike) else value for name, value in options.items()},
    }


def _provenance(atlas: Atlas, samples: Sequence[GeneratedImage]) -> dict[str, Any]:
    return {
        "software": f"teramind {__version__}",
        "atlas": {"path": str(atlas.path), "fingerprint": atlas.fingerprint, "provenance": atlas.provenance},
        "samples": [
            {"path": str(sample.path), "software": sample.software, "parameters": sample.parameters}
            for sample in samples
        ],
    }
