"""The phantom's speed and memory, and how hard it is: nuclei found by ridge regression and in the truth drawn again.

    python bench/phantom.py speed|memory|difficulty [--pixel-size 0.4] [--side 1024] [--repeats 5]

Speed: both stains of a slice, and its transcripts, in one process; per second of CPU, as the machine may be shared, and
of the clock. Memory: peak of a process that writes an atlas, above what it holds after its imports.

Difficulty: nuclei are segmented, as ``teramind evaluate`` does, in the DAPI of the truth, of a ridge regression from
genes (that of ``teramind evaluate``, fitted on four other phantoms), of the truth with the same genes drawn again (the
ceiling), and of another brain (chance). F1 of nuclei matched one to one: centres at most 3 um apart, or an overlap of
half of their union.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

import numpy as np

from teramind.atlas.binning import rasterize
from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.phantom import Phantom
from teramind.evaluate.baselines import Pair, RidgeBaseline
from teramind.evaluate.nuclei import Watershed, match_by_overlap, match_nuclei, measure
from teramind.evaluate.nuclei.table import reduced, reduction

ORIGIN = 4096  # far enough from the edge that 3 x 3 bins are whole
TRAINED = (1, 4, 5, 21)
TESTED = (0, 7, 11)
WRITTEN = ((4096, 4096), (8192, 4096), (16384, 4096), (8192, 8192))
MATCH_UM = 3.0


def pair_of(phantom: Phantom, z: int, side: int) -> Pair:
    """Genes and DAPI of a window."""
    low, high = ORIGIN - BIN_SIZE, ORIGIN + side + BIN_SIZE
    x, y, gene = phantom.transcripts(z, low, high, low, high)
    rows, corner = side // BIN_SIZE + 2, np.float32(low)
    counts = rasterize(x - corner, y - corner, gene, (high - low, high - low), len(phantom.genes)).toarray()
    pixels = phantom.image_window(z, z + 1, ORIGIN, ORIGIN + side, ORIGIN, ORIGIN + side)[:1, 0]
    return Pair(counts.reshape(rows, rows, -1).transpose(2, 0, 1), pixels)


def segmented(image: np.ndarray, pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of nuclei, and their centres in um."""
    factor = reduction(pixel_size)
    coarse = reduced(image, factor)
    labels = Watershed().calibrate([coarse], pixel_size * factor)(coarse)
    return labels, measure(labels, coarse, pixel_size * factor).places


def difficulty(side: int, pixel_size: float) -> None:
    span = {"size": 1 << 20, "slices": 2, "pixel_size": pixel_size}
    ridge = RidgeBaseline()
    ridge.fit([pair_of(Phantom(seed=seed, **span), z, side) for seed in TRAINED for z in range(span["slices"])])
    print("seed nuclei | ridge: 3 um, IoU, found | ceiling: 3 um, IoU, found | other brain: 3 um, IoU, found")
    for seed in TESTED:
        true = pair_of(Phantom(seed=seed, **span), 1, side)
        redrawn = pair_of(Phantom(seed=seed, morphology_seed=seed + 77, **span), 1, side)
        other = pair_of(Phantom(seed=seed + 500, **span), 1, side)
        labels, places = segmented(true.pixels[0], pixel_size)
        words = []
        for image in (ridge.predict(true.genes), redrawn.pixels, other.pixels):
            found, found_places = segmented(image[0], pixel_size)
            near, overlap = match_nuclei(places, found_places, MATCH_UM).f1, match_by_overlap(labels, found).f1
            words.append(f"{near:.2f} {overlap:.2f} {len(found_places):4d}")
        print(f"{seed:4d} {len(places):6d} | {' | '.join(words)}", flush=True)


def speed(side: int, pixel_size: float, repeats: int) -> None:
    rates: dict[str, list[tuple[float, float]]] = {"images": [], "transcripts": []}
    phantom = Phantom(seed=7, size=1 << 20, slices=2, pixel_size=pixel_size)
    phantom.image_window(0, 1, 0, BIN_SIZE, 0, BIN_SIZE)
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
