"""Speed of the OME-Zarr writer, pyramid and fsync included, beside the disk's own and the same shards by zarr-python.

    python bench/writer.py [--side 8192] [--tile 512] [--repeats 3] [--folder DIR]

The image is two channels, two slices of smooth texture with camera noise, which compresses about as tissue does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from teramind.ngff import Channel, MultiscaleWriter, create_multiscale, open_levels

PLANES = (2, 2)


def tissue(side: int, seed: int) -> np.ndarray:
    """Texture of three sizes with noise of 2 grey levels: 5 bits a pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    image = np.full((side, side), 70, np.float32)
    for wavelength, strength in ((150, 35), (40, 20), (11, 8)):
        phase = rng.uniform(0, 6.28, 2)
        image += strength * np.sin(y / wavelength + phase[0]) * np.sin(x / wavelength + phase[1])
    image += rng.normal(0, 2, image.shape)
    return image.clip(0, 255).round().astype(np.uint8)


def whole_image(side: int) -> np.ndarray:
    """Four planes of texture that repeats only beyond a chunk, where the codec cannot see it."""
    period = 2048
    planes = np.stack([tissue(period, seed) for seed in range(4)]).reshape(*PLANES, period, period)
    repeats = -(-side // period)
    return np.ascontiguousarray(np.tile(planes, (1, 1, repeats, repeats))[..., :side, :side])


def new_image(path: Path, side: int) -> zarr.Group:
    channels = [Channel("DAPI", "0000FF"), Channel("PolyT", "00FF00")]
    return create_multiscale(
        path, shape=(*PLANES, side, side), pixel_size=(1.5, 0.108, 0.108), channels=channels, name="bench"
    )


def ours(path: Path, image: np.ndarray, tile: int) -> tuple[float, MultiscaleWriter]:
    """Seconds to write the image tile by tile and have everything on the disk."""
    side = image.shape[2]
    group = new_image(path, side)
    start = time.perf_counter()
    with MultiscaleWriter(group) as writer:
        for y in range(0, side, tile):
            for x in range(0, side, tile):
                writer.write_block(0, y, x, image[..., y : y + tile, x : x + tile])
    return time.perf_counter() - start, writer


def zarr_python(path: Path, image: np.ndarray) -> float:
    """Seconds that zarr-python needs for whole shards of level 0 alone, without assembly, pyramid or fsync."""
    side = image.shape[2]
    (array, *_) = open_levels(new_image(path, side))
    height = array.shards[2]
    start = time.perf_counter()
    for c, z in np.ndindex(PLANES):
        for y in range(0, side, height):
            for x in range(0, side, height):
                array[c, z, y : y + height, x : x + height] = image[c, z, y : y + height, x : x + height]
    return time.perf_counter() - start


def disk(path: Path, size: int) -> float:
    """Seconds to write ``size`` incompressible bytes to one file, in order, and fsync it."""
    data = np.random.default_rng(0).bytes(1 << 24)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-size // len(data))):
            file.write(data)
        os.fsync(file.fileno())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="of the image in px")
    parser.add_argument("--tile", type=int, default=512, help="of the rectangles given to the writer in px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    image = whole_image(options.side)
    raw = image.nbytes

    rows: dict[str, list[float]] = {"writer, pyramid, fsync": [], "zarr-python, level 0 only": [], "disk, 1 file": []}
    for _ in range(options.repeats):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            seconds, writer = ours(folder / "ours.zarr", image, options.tile)
            stored = sum(path.stat().st_size for path in (folder / "ours.zarr").rglob("*") if path.is_file())
            rows["writer, pyramid, fsync"].append(raw / seconds / 1e6)
            rows["zarr-python, level 0 only"].append(raw / zarr_python(folder / "zarr.zarr", image) / 1e6)
            rows["disk, 1 file"].append(stored / disk(folder / "disk", stored) / 1e6)
        finally:
            shutil.rmtree(folder)
    print(
        f"{raw / 1e6:.0f} MB raw, {stored / 1e6:.0f} MB stored with the pyramid, tiles of {options.tile} px,", end=" "
    )
    print(f"peak {writer.peak_buffered_bytes / 1e6:.0f} MB buffered, load {os.getloadavg()[0]:.1f} on {os.cpu_count()}")
    print(f"{'MB/s':30}{'best':>8}{'median':>8}")
    for name, speeds in rows.items():
        print(f"{name:30}{max(speeds):8.0f}{statistics.median(speeds):8.0f}")


if __name__ == "__main__":
    main()
