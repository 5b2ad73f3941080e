"""Tissue with nuclei of known number, size and place, as an atlas and as generated images."""

from dataclasses import dataclass
from types import SimpleNamespace

import atlases
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from teramind.atlas.store import Atlas
from teramind.output.ome_zarr import OutputWriter

PIXEL_SIZE = 0.4
STAINS = ["DAPI", "PolyT"]
GENES = 6
BACKGROUND = 12


@dataclass
class Scene:
    """Discs that do not touch.

    Attributes:
        y, x: centres, px.
        radius: px.
        kind: 0, 1, 2; brighter with the number.
    """

    y: np.ndarray
    x: np.ndarray
    radius: np.ndarray
    kind: np.ndarray
    shape: tuple[int, int]

    def draw(self, seed=0, noise=3.0, shift=(0.0, 0.0), jitter=0.0):
        """(2, h, w) uint8: nuclei in the first stain, a halo around them in the second."""
        rng = np.random.default_rng(seed)
        h, w = self.shape
        image = np.full((2, h, w), float(BACKGROUND))
        for y, x, radius, kind in zip(self.y, self.x, self.radius, self.kind, strict=True):
            y, x = y + shift[0] + rng.normal(0, jitter), x + shift[1] + rng.normal(0, jitter)
            rows, columns = np.arange(int(y) - 30, int(y) + 31), np.arange(int(x) - 30, int(x) + 31)
            rows, columns = rows[(rows >= 0) & (rows < h)], columns[(columns >= 0) & (columns < w)]
            distance = (rows[:, None] - y) ** 2 + (columns - x) ** 2
            nucleus = (BACKGROUND + 80 + 40 * kind) * (distance < radius**2)
            image[0][np.ix_(rows, columns)] = np.maximum(image[0][np.ix_(rows, columns)], nucleus)
            image[1][np.ix_(rows, columns)] += 50 * np.exp(-distance / (2 * (1.5 * radius) ** 2))
        image[0] = gaussian_filter(image[0], 1.0)
        return (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)

    def counts(self, seed=0):
        """(rows, columns, genes): two genes for each kind, and a little of the others."""
        rng = np.random.default_rng(seed)
        bins = np.zeros((-(-self.shape[0] // 16), -(-self.shape[1] // 16), GENES), dtype=np.uint16)
        for y, x, radius, kind in zip(self.y, self.x, self.radius, self.kind, strict=True):
            for gene in range(GENES):
                for _ in range(rng.poisson(4 if gene % 3 == kind else 0.3)):
                    row, column = (np.array([y, x]) + rng.normal(0, radius / 2, 2)) // 16
                    if 0 <= row < bins.shape[0] and 0 <= column < bins.shape[1]:
                        bins[int(row), int(column), gene] += 1
        return bins

    @property
    def areas(self):
        """um^2."""
        return np.pi * (self.radius * PIXEL_SIZE) ** 2

    @property
    def places(self):
        """(n, 2), um."""
        return (np.stack([self.y, self.x], axis=1) + 0.5) * PIXEL_SIZE


def make_scene(count, shape, seed=0, gap=1.25, radius=(6.0, 9.0)):
    rng = np.random.default_rng(seed)
    discs = []
    while len(discs) < count:
        y, x, r = rng.uniform(10, shape[0] - 10), rng.uniform(10, shape[1] - 10), rng.uniform(*radius)
        if all((y - a) ** 2 + (x - b) ** 2 > (gap * (r + c)) ** 2 for a, b, c in discs):
            discs.append((y, x, r))
    y, x, r = np.array(discs).T
    return Scene(y, x, r, rng.integers(0, 3, count), shape)


def write_atlas(path, scenes, images, regions=True, pixel_size=PIXEL_SIZE, **changed):
    """An atlas of scenes, one a slice, with images (2, slices, h, w) or None."""
    counts = np.stack([scene.counts(z) for z, scene in enumerate(scenes)])
    labels = np.ones(counts.shape[:3], np.uint16)
    labels[:, :, labels.shape[2] // 2 :] = 2
    labels[:, -1] = 0
    arguments = {
        "genes": [f"gene {number}" for number in range(GENES)], "stains": STAINS,
        "slice_z": [5 + 10.0 * z for z in range(len(scenes))], "shape": scenes[0].shape, "pixel_size": pixel_size,
        "scaling": dict.fromkeys(STAINS, (0, 255)), "provenance": {"made": "of discs"},
    }  # fmt: skip
    named = (labels, {1: "left", 2: "right"}) if regions else None
    return Atlas.open(atlases.write_atlas(path, counts, images, named, **arguments | changed))


def write_output(path, images, atlas, *, seed=0, y0=0, x0=0, z0=0, stains=STAINS, finish=True, pixel_size=None, **more):
    """A generated image (2, slices, h, w) whose first pixel is that of the atlas at (z0, y0, x0)."""
    pixel = pixel_size or atlas.pixel_size
    slice_z = atlas.slice_z[z0 : z0 + images.shape[1]]
    writer = OutputWriter(
        path, shape=images.shape, pixel_size=(10, pixel, pixel),
        translation=(slice_z[0], y0 * atlas.pixel_size, x0 * atlas.pixel_size), stains=stains,
        parameters={"seed": seed, "tile": 128, "patch_size": 64, "atlas": atlas.fingerprint, "slice_z": slice_z} | more,
    )  # fmt: skip
    for z in range(images.shape[1]):
        writer.write_block(z, 0, 0, images[:, z : z + 1])
    (writer.close if finish else writer.abort)()
    return path


SHAPE = (336, 400)  # bins at the edges are whole, blocks of 64 px are not


@pytest.fixture(scope="session")
def scenes():
    return [make_scene(150, SHAPE, seed) for seed in range(2)]


@pytest.fixture(scope="session")
def truth(scenes):
    """(2, slices, h, w)."""
    return np.stack([scene.draw(seed) for seed, scene in enumerate(scenes)], axis=1)


@pytest.fixture(scope="session")
def atlas(scenes, truth, tmp_path_factory):
    """Do not change its files."""
    return write_atlas(tmp_path_factory.mktemp("evaluate") / "truth.zarr", scenes, truth)


@pytest.fixture(scope="session")
def redrawn(scenes):
    """The same nuclei at slightly other places, under other noise: seed -> (2, slices, h, w)."""
    return lambda seed: np.stack([scene.draw(100 + seed, jitter=1.5) for scene in scenes], axis=1)


@pytest.fixture(scope="session")
def tissue():
    return SimpleNamespace(
        scene=make_scene, write_atlas=write_atlas, write_output=write_output, pixel_size=PIXEL_SIZE, shape=SHAPE
    )
