"""Draws docs/phantom.png: a window of a phantom brain from its surface to its ventricle, in the stains' colours.

python bench/phantom_figure.py [docs/phantom.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from teramind.atlas.phantom import Phantom
from teramind.files import appears_whole
from teramind.output.preview import composite, draw_scale_bar

SEED, Y0, X0, SIDE = 7, 4608, 4352, 1024
# DAPI blue and PolyT magenta, as in the picture of the real sample.
COLORS = ("2860FF", "FF2D95")
# Grey levels shown in full colour: most of PolyT is far below 255.
WINDOWS = ((4, 200), (4, 200))
# The noise of a camera makes a large file of true colours; with a palette it is a quarter of that.
PALETTE = 26


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "phantom.png"
    phantom = Phantom(seed=SEED, size=1 << 18)
    pixels = phantom.image_window(2, 3, Y0, Y0 + SIDE, X0, X0 + SIDE)[:, 0]
    picture = Image.fromarray(composite(pixels, COLORS, WINDOWS))
    bar = Image.new("RGB", picture.size)
    draw_scale_bar(bar, phantom.pixel_size)
    picture = picture.quantize(PALETTE, kmeans=2, dither=Image.Dither.NONE)
    picture.putpalette([*picture.getpalette()[: 3 * PALETTE], 255, 255, 255])
    picture.paste(PALETTE, mask=bar.convert("L").point(lambda level: 255 * (level > 127)))
    with appears_whole(path) as partial:
        picture.save(partial, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
