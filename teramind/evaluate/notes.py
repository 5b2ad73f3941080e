"""Sentences that a reader of the figures needs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from teramind.evaluate.evaluation import BASELINE, CEILING, CHANCE, CONTROL, MEAN, Evaluation, Row

_RANK_WARNING = 2  # crops a feature below which a Frechet distance is mostly noise
_EXPECTED_LOSS = 10 * math.log10(2)  # dB, see `_sampler`


def written_notes(evaluation: Evaluation) -> list[str]:
    """The notes of an evaluation, the most important first."""
    parts = (_verdict, _sampler, _chance, _seams, _frechet, _segmentation, _baselines, _sizes, _provenance)
    return [note for part in parts for note in part(evaluation)]


def beaten(sample: Row, other: Row) -> dict[str, bool]:
    """Is a sample better than another image: by nuclei F1, error of their number, size distance, Frechet distance?"""
    pairs = {
        "nuclei F1": (-sample.nuclei["f1"], -other.nuclei["f1"]),
        "number of nuclei": (abs(sample.nuclei["count_error"]), abs(other.nuclei["count_error"])),
        "nuclear size": (sample.nuclei["area_distance"], other.nuclei["area_distance"]),
        **{name: (value, other.distances[name]) for name, value in sample.distances.items()},
    }
    # A figure that an image does not have, for instance the size of no nuclei, is worse than any.
    return {name: mine < (math.inf if math.isnan(theirs) else theirs) for name, (mine, theirs) in pairs.items()}


def _verdict(evaluation: Evaluation) -> Iterator[str]:
    sample = evaluation.samples[0]
    for row in evaluation.of_kind(BASELINE):
        better = beaten(sample, row)
        won, lost = ([name for name, is_better in better.items() if is_better is kind] for kind in (True, False))
        if not lost:
            yield f"One sample ({sample.name}) is better than {row.name} in {_listed(won)}."
        elif won:
            yield f"One sample ({sample.name}) is better than {row.name} in {_listed(won)}, and not in {_listed(lost)}."
        else:
            yield f"One sample ({sample.name}) is no better than {row.name} in {_listed(lost)}."


def _sampler(evaluation: Evaluation) -> Iterator[str]:
    sample = evaluation.samples[0]
    best = max(evaluation.of_kind(BASELINE), key=lambda row: row.similarity["psnr"], default=None)
    if best is not None and best.similarity["psnr"] > sample.similarity["psnr"]:
        loss = best.similarity["psnr"] - sample.similarity["psnr"]
        yield (
            f"One sample has a PSNR {loss:.2f} dB below that of {best.name}. A sample is one of the images that the "
            "genes allow, a regression is their blurred mean, and squared error favours the mean: if samples and truth "
            "come from one distribution, a sample's squared error is twice that of its mean, "
            f"{_EXPECTED_LOSS:.1f} dB. SSIM has the same leaning. Whether nuclei are where they should be is what F1 "
            "says."
        )
    for row in evaluation.of_kind(MEAN):
        gain = row.similarity["psnr"] - sample.similarity["psnr"]
        yield (
            f"The {row.name} gains {gain:.2f} dB over one sample. It estimates the conditional mean and is the image "
            "to compare with a regression by PSNR; it is blurred, and no image of tissue."
        )


def _chance(evaluation: Evaluation) -> Iterator[str]:
    for row in evaluation.of_kind(CHANCE):
        level, ceiling = row.nuclei["f1"], evaluation.of_kind(CEILING)
        ends = f", and at {ceiling[0].nuclei['f1']:.2f} the truth drawn anew from the same genes" if ceiling else ""
        yield f"At an F1 of {level:.2f} stands chance: the true nuclei, displaced{ends}."
        for control in evaluation.of_kind(CONTROL):
            yield (
                f"The sample has an F1 of {evaluation.samples[0].nuclei['f1']:.2f}, and the image from shuffled genes "
                f"has {control.nuclei['f1']:.2f}: what lies between is due to where the genes are."
            )


def _seams(evaluation: Evaluation) -> Iterator[str]:
    sample = evaluation.samples[0]
    parts = [f"{_score(figures)} on the {name} grid" for name, figures in sample.seams.items() if figures["score"] > 0]
    if not parts:
        yield "The image has no border of a tile or patch inside, so there is no seam score."
        return
    yield (
        f"Seam score of {sample.name}: {_listed(parts)} (± one standard error by jackknife). 1.00 is seamless: pixels "
        "differ across the borders as much as beside them."
    )
    for name, figures in evaluation.naive_seams.items():
        yield f"If its tiles knew nothing of each other, the score on the {name} grid would be {_score(figures)}."
    weak = [name for name, figures in sample.seams.items() if not math.isnan(figures["score"])
            and figures["score"] - 1 > 3 * figures["error"]]  # fmt: skip
    if weak:
        yield f"On the {_listed(weak)} grid the image is rougher at the borders by more than three standard errors."
    if "gene bin" in weak:
        yield (
            "Roughness on the grid of gene bins is no seam: it is in phase with the bins or with the network's "
            "upsampling. Patches of less than 64 px show it on their own grids, too."
        )


def _frechet(evaluation: Evaluation) -> Iterator[str]:
    crops, features = evaluation.settings["crops"], evaluation.settings["features"]
    if "FID" not in crops:
        yield (
            "FID and sFID were not computed: they need NVIDIA's weights (--inception inception-2015-12-05.pt), and "
            "nothing is downloaded. The texture Fréchet distance takes the place of FID within this table; it uses a "
            "fixed bank of filters and is not comparable with any published FID."
        )
    for name, count in crops.items():
        if count < _RANK_WARNING * features[name]:
            yield (
                f"The {name} rests on {count} squares for {features[name]} features, too few for its value to mean "
                "much: compare it within this table only, or evaluate a larger region."
            )


def _segmentation(evaluation: Evaluation) -> Iterator[str]:
    settings = evaluation.settings
    found = settings["segmentation"]
    yield (
        f"Nuclei were segmented in {settings['nuclear_stain']} by {found['name']} at {found['pixel_size_um']:.3g} µm a "
        "pixel, in every image with the same parameters; a threshold is fitted to each image, so that a difference in "
        f"brightness shows in the intensities and not in the number. They are matched {settings['matching']}."
    )


def _baselines(evaluation: Evaluation) -> Iterator[str]:
    notes = {row.note for row in evaluation.of_kind(BASELINE)}
    if notes:
        yield f"Baselines: {'; '.join(sorted(notes))}."


def _sizes(evaluation: Evaluation) -> Iterator[str]:
    if math.isnan(evaluation.samples[0].similarity["ms_ssim"]):
        yield "There is no MS-SSIM: it needs windows of 161 px a side or more."


def _provenance(evaluation: Evaluation) -> Iterator[str]:
    atlas = evaluation.provenance["atlas"]["fingerprint"]
    for sample, row in zip(evaluation.provenance["samples"], evaluation.samples, strict=True):
        made_from = sample["parameters"].get("atlas")
        if made_from is None:
            yield f"{row.name} does not say from which atlas it was made; patches of 64 px are assumed."
        elif made_from != atlas:
            yield (
                f"{row.name} was generated from another atlas than the one it is compared with, or from a view of it "
                "whose genes were shuffled: their fingerprints differ."
            )


def _score(figures: dict[str, float]) -> str:
    error = figures["error"]
    return f"{figures['score']:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
