"""The phantom's speed, and how hard it is: nuclei found by ridge regression and in the truth drawn again.

    python bench/phantom.py [--pixel-size 0.4] [--side 1024] [--seed 0]

Speed: both stains of a slice, one process. Difficulty: nuclei are segmented in the DAPI of the truth, of a ridge
regression from genes (own bin and its eight neighbours -> the 16 x 16 px of the bin, fitted on two other phantoms), of
the truth with the same genes drawn again (the ceiling), and of another brain (chance). F1 of nuclei matched one to one
with an overlap of half of their union, or with centres less than 3 um apart.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.feature import peak_local_max
from skimage.filters import threshold_local, threshold_otsu
from skimage.segmentation import watershed

from teramind.atlas.binning import rasterize
from teramind.atlas.phantom import Phantom

BIN = 16
ORIGIN = 8192  # far enough from the edge that 3 x 3 bins are whole
MATCH_UM = 3.0


def gene_features(phantom: Phantom, z: int, y0: int, x0: int, side: int) -> np.ndarray:
    """(bins, 9 * genes + 1): counts of every bin and its neighbours."""
    x, y, gene = phantom.transcripts(z, y0 - BIN, y0 + side + BIN, x0 - BIN, x0 + side + BIN)
    rows = side // BIN + 2
    genes = len(phantom.genes)
    counts = rasterize(x - (x0 - BIN), y - (y0 - BIN), gene, (rows * BIN, rows * BIN), genes).toarray()
    grid = counts.reshape(rows, rows, genes).astype(np.float32)
    parts = [grid[dy : dy + rows - 2, dx : dx + rows - 2] for dy in range(3) for dx in range(3)]
    features = np.concatenate([*parts, np.ones((rows - 2, rows - 2, 1), np.float32)], axis=2)
    return features.reshape(-1, features.shape[2])


def blocks_of(image: np.ndarray) -> np.ndarray:
    """(side, side) -> (bins, 256)."""
    rows = len(image) // BIN
    return image.reshape(rows, BIN, rows, BIN).swapaxes(1, 2).reshape(-1, BIN * BIN).astype(np.float32)


def image_of(blocks: np.ndarray) -> np.ndarray:
    rows = int(len(blocks) ** 0.5)
    return blocks.reshape(rows, rows, BIN, BIN).swapaxes(1, 2).reshape(rows * BIN, rows * BIN)


def fit_ridge(phantoms: list[Phantom], side: int, penalty: float = 300.0) -> np.ndarray:
    gram, moment = 0.0, 0.0
    for phantom in phantoms:
        for z in range(phantom.shape[0]):
            features = gene_features(phantom, z, ORIGIN, ORIGIN, side)
            target = blocks_of(phantom.image_window(z, z + 1, ORIGIN, ORIGIN + side, ORIGIN, ORIGIN + side)[0, 0])
            gram, moment = gram + features.T @ features, moment + features.T @ target
    return np.linalg.solve(gram + penalty * np.eye(len(gram), dtype=np.float32), moment)


def segment(image: np.ndarray, pixel_size: float) -> np.ndarray:
    """Labels of nuclei: smoothing, a local threshold, one watershed basin a maximum of the distance to the edge."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.6 / pixel_size)
    around = threshold_local(smooth, 2 * int(15 / pixel_size) + 1, method="gaussian")
    mask = (smooth > around) & (smooth > threshold_otsu(smooth) / 2)
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(mask, iterations=max(1, round(0.7 / pixel_size))))
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 0.7 / pixel_size)
    peaks = peak_local_max(distance, min_distance=max(1, round(1.6 / pixel_size)), labels=ndimage.label(mask)[0])
    seeds = np.zeros(image.shape, int)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    small = np.bincount(labels.ravel()) * pixel_size**2 < 7.0
    return np.where(small[labels], 0, labels)


def f1_scores(truth: np.ndarray, found: np.ndarray, pixel_size: float) -> tuple[float, float, int]:
    """F1 by overlap, F1 by distance, number found."""
    a, truth_index = np.unique(truth, return_inverse=True)
    b, found_index = np.unique(found, return_inverse=True)
    both = np.zeros((len(a), len(b)))
    np.add.at(both, (truth_index.ravel(), found_index.ravel()), 1)
    union = both.sum(1)[:, None] + both.sum(0)[None] - both
    overlap = (both / union)[1:, 1:]
    centres = [np.array(ndimage.center_of_mass(m > 0, m, np.unique(m)[1:])).reshape(-1, 2) for m in (truth, found)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2) * pixel_size
    cost = np.where(distance < MATCH_UM, distance - 1e3, 0)
    rows, columns = linear_sum_assignment(cost)
    near = int((cost[rows, columns] < 0).sum())
    total = len(a) + len(b) - 2
    return 2 * int((overlap >= 0.5).sum()) / total, 2 * near / total, len(b) - 1


def difficulty(seed: int, side: int, pixel_size: float) -> None:
    span = {"size": 1 << 20, "slices": 2, "pixel_size": pixel_size}
    weights = fit_ridge([Phantom(seed=seed + 1000 + k, **span) for k in range(3)], side)
    print(f"{'':>8} {'true':>6}   {'ridge':^22}   {'ceiling':^22}   {'other brain':^22}")
    for test_seed in (seed, seed + 1):
        truth = Phantom(seed=test_seed, **span)
        window = (1, 2, ORIGIN, ORIGIN + side, ORIGIN, ORIGIN + side)
        labels = segment(truth.image_window(*window)[0, 0], pixel_size)
        redrawn = Phantom(seed=test_seed, morphology_seed=test_seed + 77, **span).image_window(*window)[0, 0]
        other = Phantom(seed=test_seed + 500, **span).image_window(*window)[0, 0]
        ridge = image_of(gene_features(truth, 1, ORIGIN, ORIGIN, side) @ weights)
        scores = [f1_scores(labels, segment(image, pixel_size), pixel_size) for image in (ridge, redrawn, other)]
        words = "   ".join(f"IoU {iou:.2f} 3um {near:.2f} n{count:5d}" for iou, near, count in scores)
        print(f"seed {test_seed:3d} {labels.max():6d}   {words}")


def speed(seed: int, side: int, pixel_size: float, repeats: int) -> None:
    seconds = {"images": [], "transcripts": []}
    for repeat in range(repeats):
        phantom = Phantom(seed=seed, size=1 << 20, slices=2, pixel_size=pixel_size)
        y0 = ORIGIN + repeat * side
        start = time.perf_counter()
        phantom.image_window(0, 1, y0, y0 + side, ORIGIN, ORIGIN + side)
        seconds["images"].append(time.perf_counter() - start)
        start = time.perf_counter()
        phantom.transcripts(1, y0, y0 + side, ORIGIN, ORIGIN + side)
        seconds["transcripts"].append(time.perf_counter() - start)
    for what, values in seconds.items():
        rates = [side * side / 1e6 / value for value in values]
        print(
            f"{what:>12}: median {np.median(rates):.1f}, best {max(rates):.1f} Mpx/s of {repeats} x {side} px squared"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixel-size", type=float, default=0.4)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    speed(arguments.seed, arguments.side, arguments.pixel_size, arguments.repeats)
    difficulty(arguments.seed, arguments.side, arguments.pixel_size)


if __name__ == "__main__":
    main()
