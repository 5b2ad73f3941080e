"""Images with and without a change, from the same noise: where they lie, what is generated, what is measured."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teramind.atlas.store import Atlas
from teramind.engine.frame import describe, intersection
from teramind.engine.job import Job
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.extras import required
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
        self._options = {**options, "roi": options.get("roi") or self._reached()}
        self.settings = {
            "kind": KIND,
            **{name: str(value) for name, value in asdict(question).items()},
            "area": self.area.name,
            **Job(self.atlas, checkpoint, folder, run_options(**self._options)).identity(),
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
        with appears_whole(file) as partial:
            partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def check(self, changes: Sequence[Change]) -> None:
        """Whether the network can notice a change.

        Raises:
            InputError: the atlas lacks a gene, or the network does not read it.
        """
        for change in changes:
            for gene, column in zip(change.genes, gene_indices(change.genes, self.atlas.genes), strict=True):
                if column not in self._panel.columns:
                    raise InputError(f"the network does not read {gene}, so changing it changes nothing")

    def image(self, path: Path, seed: int, changes: Sequence[Change] = (), *, overwrite: bool = False) -> Path:
        """Generate an image, or go on with it; one that is complete is left as it is."""
        atlas = ChangedAtlas(self.atlas, changes, self.area) if changes else self.atlas
        options = {**self._options, "seed": seed}
        generate(atlas, self._checkpoint, path, **options, resume=not overwrite, overwrite=overwrite)
        return path

    def baseline(self, seed: int, *, overwrite: bool = False) -> Path:
        """The image of a seed without any change."""
        return self.image(self.folder / f"seed_{seed}" / "before.ome.zarr", seed, overwrite=overwrite)

    def measure(self, before: Sequence[Path], after: Sequence[Path]) -> Measurement:
        """Compare images of the same seeds, and the unchanged ones of different seeds with each other."""
        pairs = []
        for unchanged, changed in zip(before, after, strict=True):
            first, second = (GeneratedImage(path, self.atlas) for path in (unchanged, changed))
            # One calibration for both: a threshold of its own would move the nuclei that nothing has changed.
            label = self._scales.calibrated(first, self.atlas.pixel_size)
            pairs.append(
                [Measured(one, self._scales.find(one, label, self.atlas.pixel_size)) for one in (first, second)]
            )
        changed_pairs = [compare(first, second, self.zones, self._scales) for first, second in pairs]
        unchanged_pairs = [
            compare(first[0], second[0], self.zones, self._scales)[0] for first, second in itertools.pairwise(pairs)
        ]
        return Measurement([zones for zones, _ in changed_pairs], unchanged_pairs, changed_pairs[0][1], self.stains)

    def _reached(self) -> str | None:
        """The region that the changed bins can act on; None for all of the atlas."""
        bounds = self.area.bounds()
        if bounds is None:
            return None
        if not bounds.area:
            raise InputError(f"{self.area.name} has no bins in the atlas: there is nothing to change")
        _, height, width = self.atlas.shape
        y0, y1, x0, x1 = bounds
        grown = Rectangle(y0 - self.reach, y1 + self.reach, x0 - self.reach, x1 + self.reach)
        return describe(intersection(grown, Rectangle(0, height, 0, width)))


@dataclass(frozen=True)
class Measurement:
    """What was measured of a change.

    Attributes:
        changed: for each seed, zone -> the image with the change against the one without.
        unchanged: zone -> images of two seeds against each other.
        nuclei: of the first seed, slice by slice.
        stains: names.
    """

    changed: list[dict[str, Comparison]]
    unchanged: list[dict[str, Comparison]]
    nuclei: list[NucleiOfSlice]
    stains: Sequence[str]

    def effects(self) -> list[Effect]:
        """See ``summarise``."""
        return summarise(self.changed, self.unchanged, self.stains)
