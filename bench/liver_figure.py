"""Truth and result of one slice side by side, and how far they agree: the README's picture.

python bench/liver_figure.py ATLAS.zarr IMAGE.ome.zarr FIGURE.png --slice 3
"""

import argparse
from pathlib import Path

import numpy as np
import zarr

from teramind import Atlas
from teramind.ngff.colors import stain_colors
from teramind.output.preview import composite, save_picture, side_by_side

MAGNIFICATION = 4  # the sample is small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--slice", type=int, default=3)
    arguments = parser.parse_args()
    atlas = Atlas.open(arguments.atlas)
    _, height, width = atlas.shape
    truth = atlas.image_window(arguments.slice, arguments.slice + 1, 0, height, 0, width)[:, 0]
    result = np.asarray(zarr.open_group(arguments.image, mode="r")["0"][:, arguments.slice])
    colors = stain_colors(atlas.stains)
    panels = {
        title: composite(pixels, colors).repeat(MAGNIFICATION, axis=0).repeat(MAGNIFICATION, axis=1)
        for title, pixels in (("measured", truth), ("generated from the transcripts", result))
    }
    picture = side_by_side(panels, pixel_size_um=atlas.pixel_size / MAGNIFICATION, max_side=MAGNIFICATION * width)
    save_picture(arguments.figure, picture)
    for stain, measured, generated in zip(atlas.stains, truth, result, strict=True):
        print(f"{stain}: correlation {np.corrcoef(measured.ravel(), generated.ravel())[0, 1]:.2f}")


if __name__ == "__main__":
    main()
