"""What a training is tested on: the noise error on held-out crops, and a picture generated from one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teramind.diffusion.loss import denoising_errors
from teramind.diffusion.noise import noise_field
from teramind.diffusion.sampling import sample
from teramind.diffusion.schedule import TRAINING_STEPS
from teramind.engine.frame import snapped_outward
from teramind.engine.plan import Rectangle
from teramind.model.network import TeraMind
from teramind.ngff.colors import stain_colors
from teramind.output.preview import composite, save_picture, side_by_side
from teramind.train.crops import Area, Crops, stack
from teramind.train.objective import Objective

TENTHS = 10
PICTURE = 256  # px, at least two patches


@dataclass(frozen=True)
class HeldOut:
    """Crops that are not trained on, the same at each test.

    Attributes:
        crops: to test on.
        count: how many.
        batch: crops at once, about.
        objective: of the training, whose weighting the loss has.
    """

    crops: Crops
    count: int
    batch: int
    objective: Objective

    @torch.no_grad()
    def test(self, net: TeraMind) -> dict[str, Any]:
        """Errors of the boundary-aware path.

        Returns:
            "loss": weighted as in training; "error": plain; "error_with_others_genes": plain, when every crop is given
            the genes of another: how much larger it is tells what the network knows from the genes; None of one crop
            alone; "by_timestep": the plain error in tenths of 0..999.
        """
        device = next(net.parameters()).device
        errors = partial(denoising_errors, net, paths="boundary", beyond=self.objective.beyond)
        times, own, others = [], [], []
        for numbers in self._batches():
            examples = stack([self.crops.example(number, number, self.count) for number in numbers])
            image, inside, genes, t, noise = (torch.from_numpy(values).to(device) for values in examples)
            pixels, mask, counts = image.float() / 127.5 - 1, inside.float(), genes.float()
            own.append(errors(pixels, mask, counts, t, noise)[0])
            others.append(errors(pixels, mask, counts.roll(1, 0), t, noise)[0])
            times.append(t)
        t, error = torch.cat(times), torch.cat(own)
        return {
            "loss": (self.objective.weights[t] * error).mean().item(),
            "error": error.mean().item(),
            "error_with_others_genes": torch.cat(others).mean().item() if self.count > 1 else None,
            "by_timestep": by_timestep(t, error),
        }

    def _batches(self) -> list[list[int]]:
        """Numbers of the crops of each batch: two at least, so that there is another one whose genes can be taken."""
        parts = max(1, min(-(-self.count // self.batch), self.count // 2))
        return [part.tolist() for part in np.array_split(np.arange(self.count), parts)]


def by_timestep(t: Tensor, error: Tensor) -> list[float | None]:
    """Mean error of the timesteps in each tenth of 0..999; None where there was none."""
    tenth = (t * TENTHS // TRAINING_STEPS).cpu()
    total = torch.zeros(TENTHS).index_add_(0, tenth, error.float().cpu())
    count = torch.bincount(tenth, minlength=TENTHS)
    return [value / number if number else None for value, number in zip(total.tolist(), count.tolist(), strict=True)]


@dataclass(frozen=True)
class Pictures:
    """Generates the middle of an area, beside what was measured there.

    Attributes:
        area: of an atlas; its volume can be read beyond it.
        stains: names.
        pixel_size: um.
        folder: for the pictures.
    """

    area: Area
    stains: list[str]
    pixel_size: float
    folder: Path

    def draw(self, net: TeraMind, step: int) -> dict[str, Any]:
        """Write ``step-NUMBER.png``; and the correlation of each stain's pixels with the measured ones."""
        place = self._place(net.config.patch_size)
        margin = net.config.patch_size // 2
        window = self.area.windows[len(self.area.windows) // 2]
        z, depth = window.image_start, net.config.slices
        genes = self.area.volume.gene_window(
            window.gene_start, window.gene_start + net.config.gene_slices,
            place.y0 - margin, place.y1 + margin, place.x0 - margin, place.x1 + margin,
        )  # fmt: skip
        noise = noise_field(0, z, place.y0, place.x0, (len(self.stains), depth, *place.shape))
        generated = as_pixels(sample(net, genes.astype(np.float32), noise=noise)[:, 0])
        measured = self.area.volume.image_window(z, z + 1, *place)[:, 0]
        colors = stain_colors(self.stains)
        panels = {"measured": composite(measured, colors), "generated": composite(generated, colors)}
        save_picture(self.folder / f"step-{step:07d}.png", side_by_side(panels, pixel_size_um=self.pixel_size))
        pairs = zip(self.stains, generated, measured, strict=True)
        return {f"correlation_{stain}": correlation(ours, truth) for stain, ours, truth in pairs}

    def _place(self, patch: int) -> Rectangle:
        """The middle of the area on the patch grid: PICTURE px on a side, or as much as there is in whole patches."""
        y0, y1, x0, x1 = self.area.place
        side = max(PICTURE, 2 * patch)
        height, width = min(side, (y1 - y0) // patch * patch), min(side, (x1 - x0) // patch * patch)
        middle = snapped_outward(Rectangle((y0 + y1 - height) // 2, 0, (x0 + x1 - width) // 2, 0), patch)
        return Rectangle(middle.y0, middle.y0 + height, middle.x0, middle.x0 + width)


def as_pixels(image: Tensor) -> NDArray[np.uint8]:
    """-1..1 -> 0..255."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def correlation(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Pearson's, over all pixels; 0 where one is constant."""
    if not (first.std() and second.std()):
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
