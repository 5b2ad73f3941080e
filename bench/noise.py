"""Position-keyed noise against numpy's sequential standard normals (float32), one thread; best of n."""

from __future__ import annotations

import time

import numpy as np

from teramind.diffusion.noise import noise_field, philox_words

SHAPE = (2, 2, 1024, 1024)
REPEATS = 7


def best_rate(function):
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return np.prod(SHAPE) / min(seconds) / 1e6


def main():
    generator = np.random.default_rng(0)
    rates = {
        "numpy standard_normal": best_rate(lambda: generator.standard_normal(SHAPE, dtype=np.float32)),
        "noise_field": best_rate(lambda: noise_field(0, 0, 0, 0, SHAPE, threads=1)),
        "philox_words": best_rate(lambda: philox_words(0, 0, 0, 0, SHAPE, threads=1)),
    }
    print(f"{' x '.join(map(str, SHAPE))}, one thread, best of {REPEATS}")
    for name, rate in rates.items():
        print(f"{name:22} {rate:6.0f} M/s  {rate / rates['numpy standard_normal']:5.2f} x numpy")


if __name__ == "__main__":
    main()
