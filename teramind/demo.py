"""The demonstration: a phantom brain that no network has seen, generated from its genes and compared with the truth."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr

from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.errors import InputError
from teramind.ngff.colors import stain_colors

if TYPE_CHECKING:
    from teramind.atlas.store import Atlas
    from teramind.engine.report import RunReport
    from teramind.evaluate.evaluation import Evaluation

CHECKPOINT = Path(__file__).parent / "models" / "phantom.safetensors"
"""The network that comes with the package; its card lies beside it."""
SEED, SIZE, SLICES = 0, 512, 2
REDRAWN = 1  # the morphology seed of the ceiling


@dataclass(frozen=True)
class Demo:
    """What a demonstration made.

    Attributes:
        folder: with ``phantom.zarr``, ``image.ome.zarr``, ``truth_and_result.png`` and ``report/report.html``.
        run: of the generation.
        evaluation: of its image against the phantom's.
    """

    folder: Path
    run: RunReport
    evaluation: Evaluation

    def summary(self) -> str:
        """The table of figures, and where to look."""
        from teramind.evaluate.command import as_text

        return (
            f"{as_text(self.evaluation)}\n{self.run.summary()}\n"
            f"look at {self.folder / 'truth_and_result.png'} and {self.folder / 'report' / 'report.html'}"
        )


def demonstrate(
    output: str | os.PathLike[str],
    *,
    seed: int = SEED,
    size: int = SIZE,
    slices: int = SLICES,
    checkpoint: str | os.PathLike[str] = CHECKPOINT,
    steps: int = 15,
    device: str = "auto",
    progress: bool = True,
) -> Demo:
    """Make a phantom brain, generate its image from its genes, and compare the two.

    The phantom has the pixel size of the checkpoint. The comparison includes the baselines, and as a ceiling the same
    phantom with all that its genes do not decide drawn again.

    Args:
        output: folder to make.
        seed: of the phantom; the shipped network was trained on others.
        size: px, height and width.
        slices: how many.
        checkpoint: the network.
        steps: DDIM steps.
        device: as for ``generate``.
        progress: show progress bars if stderr is a terminal.

    Raises:
        InputError: a name that is taken, a checkpoint that does not fit the phantom, or a library of
            ``teramind[evaluate]`` that is missing.
    """
    from teramind.evaluate.extras import required
    from teramind.evaluate.run import evaluate
    from teramind.generate import generate
    from teramind.model.checkpoint import read_header

    required("skimage")
    output = Path(output)
    if output.exists():
        raise InputError(f"{output} is there already; choose another name for the demonstration")
    _, meta = read_header(Path(checkpoint))
    pixel_size = meta.get("pixel_size")
    if pixel_size is None:
        raise InputError(f"{checkpoint} does not say its pixel size, which the phantom needs: give a trained one")
    output.mkdir(parents=True)
    try:
        truth = Phantom(seed=seed, size=size, slices=slices, pixel_size=pixel_size)
        redrawn = Phantom(seed=seed, size=size, slices=slices, pixel_size=pixel_size, morphology_seed=REDRAWN)
        atlas = build_phantom(truth, output / "phantom.zarr")
        build_phantom(redrawn, output / "redrawn.zarr")
        run = generate(
            atlas, checkpoint, output / "image.ome.zarr", steps=steps, device=device, snapshot_minutes=0,
            progress=progress,
        )  # fmt: skip
        evaluation = evaluate(
            output / "image.ome.zarr", atlas, output / "report", ceiling=output / "redrawn.zarr", progress=progress
        )
        draw_pair(atlas, output / "image.ome.zarr", output / "truth_and_result.png")
    except BaseException:
        shutil.rmtree(output)  # it was not there before
        raise
    return Demo(output, run, evaluation)


def draw_pair(atlas: Atlas, image: Path, picture: Path) -> None:
    """The middle slice of an atlas beside that of an image of all of it."""
    from teramind.ngff import open_levels
    from teramind.output.preview import composite, save_picture, side_by_side

    slices, height, width = atlas.shape
    z = slices // 2
    colors = stain_colors(atlas.stains)
    measured = atlas.image_window(z, z + 1, 0, height, 0, width)[:, 0]
    generated = np.asarray(open_levels(zarr.open_group(image, mode="r"))[0][:, z])
    panels = {"truth": composite(measured, colors), "generated from the genes": composite(generated, colors)}
    save_picture(picture, side_by_side(panels, pixel_size_um=atlas.pixel_size))
