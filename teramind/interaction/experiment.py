"""Images with and without a change, from the same noise: where they lie, what is generated, what is measured."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import Atlas
from teramind.engine.frame import describe, intersection, snapped_outward
from teramind.engine.job import Job
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.extras import required
from teramind.evaluate.nuclei import Labeller, Nuclei
from teramind.evaluate.nuclei.backends import segmenter
from teramind.evaluate.sources import GeneratedImage, channel_numbers
from teramind.files import appears_whole
from teramind.generate import generate, run_options
from teramind.interaction.areas import Area, find_area
from teramind.interaction.changes import Change, ChangedAtlas
from teramind.interaction.effects import Comparison, Effect, Measured, NucleiOfSlice, Scales, Zones, compare, summarise
from teramind.interaction.pathways import gene_indices

SETTINGS = "perturbation.json"
KIND = "teramind perturbation"
RESULTS = (
    "seed_[0-9]*", "screen", "screen.csv", "screen.jsonl",
    "effects.csv", "nuclei.csv", "difference.ome.zarr", "difference.png",
)  # fmt: skip
"""All that a perturbation leaves in its folder beside ``SETTINGS``: what ``overwrite`` removes."""


@dataclass(frozen=True)
class Question:
    """What is asked of a network, whatever the genes.

    Attributes:
        region: where genes are changed; see ``find_area``.
        seeds: how many, for the noise floor.
        nuclear_stain: the stain that shows nuclei.
        match_radius: um within which two nuclei are the same.
        segmentation: see ``teramind.evaluate``.
        segmentation_weights: likewise.
    """

    region: str | None
    seeds: int
    nuclear_stain: str
    match_radius: float
    segmentation: str
    segmentation_weights: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"{self.seeds} seeds make no image: give at least 1, and 3 or more for a noise floor")
        if not self.match_radius > 0:
            raise InputError(f"nuclei cannot be matched within {self.match_radius:g} um; give a radius above 0")


class Experiment:
    """A network, an atlas and an area in which genes are changed, and the images that are made of them.

    Attributes:
        atlas: without any change.
        area: where genes are changed.
        reach: px from a changed bin within which pixels may change.
        stains: names.
        nuclear: index of the stain that shows nuclei.
        zones: that effects are told of.
        folder: of all that is written.

    Raises:
        InputError: the atlas, the network, the region and the options do not fit together.
    """

    def __init__(
        self,
        atlas: Atlas | str | os.PathLike[str],
        checkpoint: str | os.PathLike[str],
        folder: Path,
        question: Question,
        options: Mapping[str, Any],
    ) -> None:
        required("skimage")
        self.atlas = Atlas.open(atlas) if isinstance(atlas, str | os.PathLike) else atlas
        self.folder, self._checkpoint, self._question = folder, checkpoint, question
        self.area: Area = find_area(question.region, self.atlas)
        job = Job(self.atlas, checkpoint, folder, run_options(**options))
        self._panel = job.panel
        self.reach = job.options.steps * job.config.patch_size
        self.stains = job.stains
        self.zones = Zones(self.atlas, self.area)
        self.first_seed = job.options.seed
        self.nuclear = channel_numbers([question.nuclear_stain], self.stains, "the network")[0]
        found = segmenter(question.segmentation, question.segmentation_weights)
        self._scales = Scales(found, self.nuclear, question.match_radius)
        self._unchanged: dict[int, tuple[Measured, Labeller]] = {}
        self._noise: list[dict[str, Comparison]] | None = None
        self._options = {**options, "roi": options.get("roi") or self._reached()}
        shown = Job(self.atlas, checkpoint, folder, run_options(**self._options))
        self._check_reach(shown)
        shown.setup().plan()  # steps, tiles and types that cannot be are told before anything is written
        self.settings = {
            "kind": KIND,
            **{name: str(value) for name, value in asdict(question).items()},
            "area": self.area.name,
            **shown.identity(),
        }

    @property
    def seeds(self) -> range:
        """Of the noise."""
        return range(self.first_seed, self.first_seed + self._question.seeds)

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Take the folder.

        Raises:
            InputError: it may not be written, or holds another experiment.
        """
        if resume and overwrite:
            raise InputError(f"{self.folder} can be gone on with or be replaced: choose either --resume or --overwrite")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; name a folder for --output")
        file = self.folder / SETTINGS
        settings = json.loads(json.dumps(self.settings))
        if file.exists() and not overwrite:
            begun = json.loads(file.read_text(encoding="utf-8"))
            differing = [name for name, value in settings.items() if begun.get(name) != value]
            if not resume:
                raise InputError(
                    f"{self.folder} holds a perturbation; --resume goes on with it, --overwrite replaces it"
                )
            if differing:
                raise InputError(f"{self.folder} was begun with another value of {differing[0]}; use the same")
        if overwrite and file.exists():  # while the old settings stand, so that no run takes the rest for its own
            self._remove_results()
        with appears_whole(file) as partial:
            partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def _remove_results(self) -> None:
        for path in [path for pattern in RESULTS for path in self.folder.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def check(self, changes: Sequence[Change]) -> None:
        """Whether the network can notice a change.

        Raises:
            InputError: the atlas lacks a gene, or the network does not read it.
        """
        for change in changes:
            for gene, column in zip(change.genes, gene_indices(change.genes, self.atlas.genes), strict=True):
                if column not in self._panel.columns:
                    raise InputError(f"the network does not read {gene}, so changing it changes nothing")

    def baselines(self) -> list[Path]:
        """Generate the images without any change, one a seed."""
        return [self._generated(self._baseline(seed), seed, self.atlas) for seed in self.seeds]

    def changed(self, changes: Sequence[Change], paths: Sequence[Path]) -> Sequence[Path]:
        """Generate the images with a change, one a seed, and return their paths."""
        atlas = ChangedAtlas(self.atlas, changes, self.area)
        return [self._generated(path, seed, atlas) for path, seed in zip(paths, self.seeds, strict=True)]

    def measure(self, changed: Sequence[Path]) -> Measurement:
        """Compare images with a change, one a seed, with those without, and the latter with each other.

        What is found in the images without a change is kept for the next call.
        """
        pairs = []
        for seed, path in zip(self.seeds, changed, strict=True):
            # One calibration for both: a threshold of its own would move the nuclei that nothing has changed.
            before, label = self._measured_baseline(seed)
            image = GeneratedImage(path, self.atlas)
            after = Measured(image, self._scales.find(image, label, self.atlas.pixel_size))
            pairs.append(compare(before, after, self.zones, self._scales))
        if self._noise is None:
            neighbours = itertools.pairwise(self._measured_baseline(seed)[0] for seed in self.seeds)
            self._noise = [compare(first, second, self.zones, self._scales)[0] for first, second in neighbours]
        nuclei = {seed: slices for seed, (_, slices) in zip(self.seeds, pairs, strict=True)}
        return Measurement([zones for zones, _ in pairs], self._noise, nuclei, self.stains)

    def baseline_nuclei(self, seed: int) -> dict[int, Nuclei]:
        """Slice -> the nuclei of the image of a seed without any change."""
        return self._measured_baseline(seed)[0].nuclei

    def _baseline(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}" / "before.ome.zarr"

    def _generated(self, path: Path, seed: int, atlas: Atlas) -> Path:
        """Generate an image, or go on with it; one that is complete is left as it is."""
        generate(atlas, self._checkpoint, path, **self._options | {"seed": seed}, resume=path.exists())
        return path

    def _measured_baseline(self, seed: int) -> tuple[Measured, Labeller]:
        """The image of a seed without any change, its nuclei, and the segmentation that was fitted to it."""
        if seed not in self._unchanged:
            image = GeneratedImage(self._baseline(seed), self.atlas)
            label = self._scales.calibrated(image, self.atlas.pixel_size)
            self._unchanged[seed] = Measured(image, self._scales.find(image, label, self.atlas.pixel_size)), label
        return self._unchanged[seed]

    def _reached(self) -> str | None:
        """The region that the changed bins can act on; None for all of the atlas."""
        bounds = self.area.bounds()
        if bounds is None:
            return None
        _, height, width = self.atlas.shape
        return describe(intersection(self._grown(bounds), Rectangle(0, height, 0, width)))

    def _check_reach(self, job: Job) -> None:
        """Whether what is generated can show the change: a window reads a changed bin, and reaches what is shown."""
        bounds = self.area.bounds()
        if bounds is None:
            return
        shown, depth = job.frame.output, self.atlas.shape[0]
        near = snapped_outward(intersection(bounds, self._grown(shown)), BIN_SIZE)
        if not near.area:
            raise InputError(
                f"the region {describe(shown)} shows nothing of the change in {self.area.name}, which acts up to "
                f"{self.reach} px away: give another --roi, or none"
            )
        starts = [window.gene_start for window in job.windows]
        read = {z for start in starts for z in range(start, start + job.config.gene_slices) if 0 <= z < depth}
        if not any(self.area.mask(z, z + 1, *near).any() for z in sorted(read)):
            raise InputError(
                f"the images of slices {job.slices[0]}:{job.slices[1]} show nothing of the change in {self.area.name}: "
                f"they are made from the genes of slices {min(read)}:{max(read) + 1}, of which no bin within "
                f"{self.reach} px of {describe(shown)} is changed; give other --slices or another --roi"
            )

    def _grown(self, bounds: Rectangle) -> Rectangle:
        y0, y1, x0, x1 = bounds
        return Rectangle(y0 - self.reach, y1 + self.reach, x0 - self.reach, x1 + self.reach)


@dataclass(frozen=True)
class Measurement:
    """What was measured of a change.

    Attributes:
        changed: for each seed, zone -> the image with the change against the one without.
        unchanged: zone -> images of two seeds against each other.
        nuclei: seed -> slice by slice.
        stains: names.
    """

    changed: list[dict[str, Comparison]]
    unchanged: list[dict[str, Comparison]]
    nuclei: dict[int, list[NucleiOfSlice]]
    stains: Sequence[str]

    def effects(self) -> list[Effect]:
        """See ``summarise``."""
        return summarise(self.changed, self.unchanged, self.stains)
