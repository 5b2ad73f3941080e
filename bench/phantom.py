"""The phantom's speed and memory, and how hard it is: nuclei found by ridge regression and in the truth drawn again.

    python bench/phantom.py speed|memory|difficulty [--pixel-size 0.4] [--side 1024] [--repeats 5]

Speed: both stains of a slice, and its transcripts, in one process; per second of CPU, as the machine may be shared, and
of the clock. Memory: peak of a process that writes an atlas, above what it holds after its imports.

Difficulty: nuclei are segmented in the DAPI of the truth, of a ridge regression from genes (own bin and its eight
neighbours -> the 16 x 16 px of the bin, fitted on four other phantoms), of the truth with the same genes drawn again
(the ceiling), and of another brain (chance). F1 of nuclei matched one to one: centres less than 3 um apart, or an
overlap of half of their union.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
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
ORIGIN = 4096  # far enough from the edge that 3 x 3 bins are whole
TRAINED = (1, 4, 5, 21)
TESTED = (0, 7, 11)
WRITTEN = ((4096, 4096), (8192, 4096), (16384, 4096), (8192, 8192))
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


def difficulty(side: int, pixel_size: float) -> None:
    span = {"size": 1 << 20, "slices": 2, "pixel_size": pixel_size}
    weights = fit_ridge([Phantom(seed=seed, **span) for seed in TRAINED], side)
    print("seed nuclei | ridge: 3 um, IoU, found | ceiling: 3 um, IoU, found | other brain: 3 um, IoU, found")
    window = (1, 2, ORIGIN, ORIGIN + side, ORIGIN, ORIGIN + side)
    for seed in TESTED:
        truth = Phantom(seed=seed, **span)
        labels = segment(truth.image_window(*window)[0, 0], pixel_size)
        redrawn = Phantom(seed=seed, morphology_seed=seed + 77, **span).image_window(*window)[0, 0]
        other = Phantom(seed=seed + 500, **span).image_window(*window)[0, 0]
        ridge = image_of(gene_features(truth, 1, ORIGIN, ORIGIN, side) @ weights)
        scores = [f1_scores(labels, segment(image, pixel_size), pixel_size) for image in (ridge, redrawn, other)]
        words = " | ".join(f"{near:.2f} {iou:.2f} {count:4d}" for iou, near, count in scores)
        print(f"{seed:4d} {len(np.unique(labels)) - 1:6d} | {words}")


def speed(side: int, pixel_size: float, repeats: int) -> None:
    rates: dict[str, list[tuple[float, float]]] = {"images": [], "transcripts": []}
    phantom = Phantom(seed=7, size=1 << 20, slices=2, pixel_size=pixel_size)
    phantom.image_window(0, 1, 0, 16, 0, 16)
    for repeat in range(repeats):
        y0 = ORIGIN + repeat * side
        for what in rates:
            start, start_cpu = time.perf_counter(), time.process_time()
            if what == "images":
                phantom.image_window(0, 1, y0, y0 + side, ORIGIN, ORIGIN + side)
            else:
                phantom.transcripts(1, y0, y0 + side, ORIGIN, ORIGIN + side)
            megapixels = side * side / 1e6
            rates[what].append(
                (megapixels / (time.process_time() - start_cpu), megapixels / (time.perf_counter() - start))
            )
    for what, values in rates.items():
        (cpu, clock), best = np.median(values, axis=0), max(values)[0]
        print(
            f"{what:>12}: {cpu:.1f} Mpx a CPU second (best {best:.1f}), {clock:.1f} a second; median of "
            f"{repeats} windows of {side} px squared at {pixel_size} um"
        )


def memory(pixel_size: float) -> None:
    code = (
        "import resource, sys, time; from teramind.atlas.phantom import Phantom; "
        "from teramind.atlas.phantom.build import build_phantom; peak = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; before = peak(); height, width = map(int, "
        "sys.argv[2:4]); build_phantom(Phantom(7, (height, width), 1, float(sys.argv[4])), sys.argv[1]); "
        "print(f'{height:6d} x {width:5d} px: {peak() - before:.0f} MB, {time.process_time():.0f} s of CPU')"
    )
    for height, width in WRITTEN:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-c", code, f"{folder}/a.zarr", str(height), str(width), str(pixel_size)]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "difficulty"])
    parser.add_argument("--pixel-size", type=float, default=0.4)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.side, arguments.pixel_size, arguments.repeats)
    elif arguments.what == "memory":
        memory(arguments.pixel_size)
    else:
        difficulty(arguments.side, arguments.pixel_size)


if __name__ == "__main__":
    main()
