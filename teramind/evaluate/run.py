"""Evaluation: generated images, baselines and a ceiling against an atlas' true images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import Atlas
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.baselines import NAMES, Baseline, BaselineImage, fitted, shared_genes, training_pairs
from teramind.evaluate.evaluation import BASELINE, CEILING, CONTROL, MEAN, SAMPLE, Evaluation
from teramind.evaluate.extras import required
from teramind.evaluate.measure import Image, Plan, measure
from teramind.evaluate.metrics.encoders import InceptionEncoder, TextureEncoder
from teramind.evaluate.metrics.frechet import Encoder
from teramind.evaluate.nuclei.backends import segmenter
from teramind.evaluate.report import ReportFolder
from teramind.evaluate.sources import AtlasImage, GeneratedImage, ImageSource, MeanImage, open_other
from teramind.evaluate.summary import summarise

AnyPath = str | os.PathLike[str]

TRAINING_WINDOWS = 400
DEFAULT_PATCH, DEFAULT_TILE = 64, 256  # of images that do not say how they were made


def evaluate(
    output: AnyPath | Sequence[AnyPath],
    atlas: Atlas | AnyPath,
    report: AnyPath | None = None,
    *,
    train: AnyPath | None = None,
    ceiling: AnyPath | None = None,
    shuffled: AnyPath | None = None,
    baselines: Sequence[str] = NAMES,
    segmentation: str = "watershed",
    segmentation_weights: AnyPath | None = None,
    nuclear_stain: str = "DAPI",
    match_radius: float = 3.0,
    inception: AnyPath | None = None,
    roi: str | Sequence[int] | None = None,
    slices: str | Sequence[int] | None = None,
    window: int = 2048,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Compare generated images with the true ones of an atlas.

    Args:
        output: a generated image, or several of different seeds, which are also compared as their mean.
        atlas: the store with the true images, or its path.
        report: folder to write, with ``report.html`` and ``report.json``; a report that is there is replaced.
        train: atlas that the baselines learn from; without, they predict each half of the atlas from the other half.
        ceiling: an image, or an atlas, of the same tissue drawn anew from the same genes: the best that can be had.
        shuffled: an image generated from the view of the atlas that ``shuffle_genes`` gives, as a control: its nuclei
            are where they are by chance.
        baselines: of "mean", "ridge" and "nearest".
        segmentation: "watershed", or, if you have them, "cellpose" or "instanseg".
        segmentation_weights: file of the latter two.
        nuclear_stain: the stain that shows nuclei.
        match_radius: um within which a true and a found nucleus are the same.
        inception: NVIDIA's file ``inception-2015-12-05.pt``, for FID and spatial FID; without, there are none.
        roi: ``"y0:y1,x0:x1"`` or four integers, atlas px: the part to compare. All that was generated if None.
        slices: ``"a:b"`` or two integers, likewise.
        window: px that are worked on at once, a multiple of 256.
        seed: of the baselines' training windows and of the displacements for the level of chance.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        All figures.

    Raises:
        InputError: images that do not lie on each other, options that cannot be, or a library that is missing.
    """
    required("skimage")
    folder = ReportFolder(report) if report is not None else None
    try:
        atlas = atlas if isinstance(atlas, Atlas) else Atlas.open(atlas)
        samples = _open_samples(output, atlas)
        plan = Plan(
            atlas=atlas,
            extent=samples[0].extent.within(roi, slices, atlas),
            stains=_shared_stains(samples, atlas),
            nuclear_stain=nuclear_stain,
            segmenter=segmenter(segmentation, segmentation_weights),
            radius_um=match_radius,
            encoders=_encoders(inception),
            patch=int(samples[0].parameters.get("patch_size") or DEFAULT_PATCH),
            tile=int(samples[0].parameters.get("tile") or DEFAULT_TILE),
            window=window,
        )
        images = [
            *_sample_images(samples, plan.stains),
            *_baseline_images(plan, train, baselines, seed),
            *_reference_images(plan, ceiling, shuffled),
        ]
        pixels = plan.extent.place.area * plan.extent.depth * (1 + len(images))
        with tqdm(total=pixels, unit="px", unit_scale=True, disable=None if progress else True) as bar:
            result = measure(plan, Image(AtlasImage(atlas, plan.stains), "truth"), images, seed, bar.update)
        options = {"train": train, "ceiling": ceiling, "shuffled": shuffled, "seed": seed}
        evaluation = summarise(plan, result, samples, options)
        if folder is not None:
            folder.write(evaluation, plan, result)
        return evaluation
    finally:
        if folder is not None:
            folder.close()


def _open_samples(output: AnyPath | Sequence[AnyPath], atlas: Atlas) -> list[GeneratedImage]:
    paths = [output] if isinstance(output, str | os.PathLike) else list(output)
    if not paths:
        raise InputError("there is no image to evaluate: give one or more")
    samples = [GeneratedImage(path, atlas) for path in paths]
    for sample in samples[1:]:
        if sample.extent != samples[0].extent:
            raise InputError(
                f"{sample.path} covers {sample.extent} and {samples[0].path} {samples[0].extent}: samples of different "
                "seeds cover the same"
            )
    return samples


def _shared_stains(samples: Sequence[GeneratedImage], atlas: Atlas) -> tuple[str, ...]:
    """Stains that the atlas and all samples have, in the first sample's order."""
    there = [{stain.casefold() for stain in stains} for stains in (atlas.stains, *(s.stains for s in samples))]
    shared = tuple(stain for stain in samples[0].stains if all(stain.casefold() in stains for stains in there))
    if not shared:
        raise InputError(
            f"{samples[0].path} has the stains {', '.join(samples[0].stains)} and {atlas.path} "
            f"{', '.join(atlas.stains) or 'none'}: they share none"
        )
    return shared


def _encoders(inception: AnyPath | None) -> tuple[Encoder, ...]:
    if inception is None:
        return (TextureEncoder(),)
    return TextureEncoder(), InceptionEncoder(Path(inception)), InceptionEncoder(Path(inception), spatial=True)


def _sample_images(samples: Sequence[GeneratedImage], stains: Sequence[str]) -> list[Image]:
    images = []
    for number, sample in enumerate(samples, start=1):
        sample.select(stains)
        seed = sample.parameters.get("seed")
        sample.name = f"sample {number}" if seed is None else f"sample, seed {seed}"
        images.append(Image(sample, SAMPLE, f"one draw of the network: {sample.path.name}"))
    names = [sample.name for sample in samples]
    if len(set(names)) != len(names):
        raise InputError(f"two of the images have one seed ({sorted(names)}): give samples of different seeds")
    if len(samples) > 1:
        mean = MeanImage(f"mean of {len(samples)} samples", samples)
        images.append(Image(mean, MEAN, "pixel by pixel; an estimate of the conditional mean"))
    return images


def _baseline_images(plan: Plan, train: AnyPath | None, names: Sequence[str], seed: int) -> list[Image]:
    if not names:
        return []
    atlas = plan.atlas
    if train is not None:
        there = Atlas.open(train)
        if there.fingerprint == atlas.fingerprint:
            raise InputError(
                f"{train} is the atlas that is evaluated, whose pixels the baselines would learn by heart: give "
                "another, or none, and each half learns from the other"
            )
        genes, columns = shared_genes(atlas, there)
        fits = [((0, atlas.shape[2]), _fit(there, columns, plan, (0, there.shape[2]), names, seed))]
        note = f"learnt from {train}"
    else:
        genes = np.arange(len(atlas.genes))
        fits = [(predicted, _fit(atlas, genes, plan, learnt, names, seed)) for learnt, predicted in _halves(plan)]
        note = "each half of the atlas learnt from the other half"
    images: list[ImageSource] = [
        BaselineImage([(columns_, fit[number]) for columns_, fit in fits], atlas, genes)
        for number in range(len(fits[0][1]))
    ]
    return [Image(image, BASELINE, note) for image in images]


def _fit(
    atlas: Atlas, genes: Any, plan: Plan, columns: tuple[int, int], names: Sequence[str], seed: int
) -> list[Baseline]:
    pairs = training_pairs(
        atlas,
        AtlasImage(atlas, plan.stains),
        genes,
        place=Rectangle(0, atlas.shape[1], *columns),
        patch=plan.patch,
        windows=TRAINING_WINDOWS,
        seed=seed,
    )
    return fitted(names, pairs, plan.patch)


def _halves(plan: Plan) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Columns of the atlas to learn from, and those to predict with that."""
    width = plan.atlas.shape[2]
    step = max(plan.patch, BIN_SIZE)
    middle = round(width / 2 / step) * step
    left, right = (0, middle), (middle, width)
    _, _, x0, x1 = plan.extent.place
    return [(learnt, told) for learnt, told in ((left, right), (right, left)) if x0 < told[1] and told[0] < x1]


def _reference_images(plan: Plan, ceiling: AnyPath | None, shuffled: AnyPath | None) -> list[Image]:
    """The best that can be had, and what the genes' places are worth."""
    given = (
        (ceiling, "ceiling", CEILING, "the truth drawn anew from the same genes"),
        (shuffled, "genes shuffled", CONTROL, "generated from genes that were shuffled in space"),
    )
    return [
        Image(open_other(path, plan.atlas, plan.stains, plan.extent, name), kind, f"{note}: {path}")
        for path, name, kind, note in given
        if path is not None
    ]
