"""The noise field: its words against Random123, its normals against the mathematics, its independence of any tiling."""

import itertools

import numpy as np
import pytest
from scipy import stats

from teramind.diffusion.noise import NOISE_LAYOUT, noise_field, philox_words
from teramind.errors import InputError


def philox4x32_10(counter, key):
    """Philox as the paper writes it, one counter at a time, in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def reference_words(seed, z0, y0, x0, shape):
    words = np.empty(shape, np.uint32)
    for s, z, y, x in itertools.product(*map(range, shape)):
        counter = ((x0 + x) // 4, y0 + y, z0 + z, s)
        words[s, z, y, x] = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))[(x0 + x) % 4]
    return words


def reference_normals(words):
    """Box-Muller in extended precision on words whose last axis starts at a multiple of two pixels."""
    a, b = (words.reshape(-1, 2) >> 9).astype(np.longdouble).T
    radius = np.sqrt(-2 * np.log((a + 0.5) / 2**23))
    eighths = b / 2**20  # exact; one octant each, so that multiples of a quarter turn come out exact
    quarter = np.rint(eighths / 2)
    rest = (eighths - 2 * quarter) * (np.arctan(np.longdouble(1)))
    cosine, sine = np.cos(rest), np.sin(rest)
    turned = np.choose(quarter.astype(int) % 4, [cosine, -sine, -cosine, sine])
    turned_sine = np.choose(quarter.astype(int) % 4, [sine, cosine, -sine, -cosine])
    return np.stack([radius * turned, radius * turned_sine], axis=-1).reshape(words.shape)


# Known-answer vectors of Random123 for philox4x32, 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_reference_gives_the_published_vectors(counter, key, expected):
    assert " ".join(f"{word:08x}" for word in philox4x32_10(counter, key)) == expected


def test_words_are_philox_of_the_position():
    assert " ".join(f"{word:08x}" for word in philox_words(0, 0, 0, 0, (1, 1, 1, 4)).flat) == (
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
    )


@pytest.mark.parametrize(
    ("seed", "z0", "y0", "x0", "shape"),
    [
        (1, 0, 0, 0, (3, 2, 5, 9)),
        (2**64 - 1, 3, 1_000_003, 7, (2, 3, 4, 11)),
        (0x299F31D0_A4093822, 2**32 - 2, 2**32 - 3, 2**32 - 5, (1, 2, 3, 5)),
        (2**32, 0, 7, 4 * 128 - 3, (1, 1, 1, 4 * 128 + 9)),  # crosses the core's inner blocks, both ends unaligned
    ],
)
def test_words_equal_the_reference(seed, z0, y0, x0, shape):
    np.testing.assert_array_equal(philox_words(seed, z0, y0, x0, shape), reference_words(seed, z0, y0, x0, shape))


def test_golden_normals():
    """Layout 1 for ever: a change of these figures changes every image ever generated."""
    assert NOISE_LAYOUT == 1
    origin = noise_field(0, 0, 0, 0, (1, 1, 1, 4)).ravel()
    np.testing.assert_array_equal(origin, np.float32([0.99113715, -0.9246631, -0.61760926, -0.48206812]))
    far = noise_field(2**40 + 7, 24, 40_000, 38_401, (2, 1, 1, 3))
    np.testing.assert_array_equal(far[0].ravel(), np.float32([-1.1052663, -0.6757855, -0.7438792]))
    np.testing.assert_array_equal(far[1].ravel(), np.float32([0.9578738, -2.0755462, -0.5305087]))


def test_normals_are_box_muller_of_the_words():
    box = (11, 2, 77, 1024, (2, 1, 512, 1024))
    normals, exact = noise_field(*box), reference_normals(philox_words(*box))
    # One rounding of a double that is itself good to 1e-15: equal to the rounded truth but for near ties.
    assert np.mean(normals != exact.astype(np.float32)) < 1e-6
    error = np.abs(normals - exact)
    assert np.max(error / np.spacing(np.abs(normals))) < 0.5001


def test_extreme_words_stay_finite():
    """u never is 0 or 1: the largest radius is sqrt(48 ln 2), the smallest not zero."""
    normals = noise_field(5, 0, 0, 0, (1, 1, 2048, 2048))
    assert np.isfinite(normals).all()
    assert np.abs(normals).max() <= np.sqrt(48 * np.log(2))


@pytest.mark.parametrize("field", [noise_field, philox_words])
@pytest.mark.parametrize(
    ("z", "y", "x", "slices", "height", "width"),
    [(0, 0, 0, 1, 1, 1), (1, 3, 1, 2, 5, 1), (2, 10, 5, 1, 7, 1030), (0, 1, 514, 3, 2, 3), (1, 0, 1027, 1, 13, 2)],
)
def test_a_box_equals_the_crop_of_a_larger_one(field, z, y, x, slices, height, width):
    seed, z0, y0, x0 = 9, 4, 6, 3
    whole = field(seed, z0, y0, x0, (2, 3, 17, 1040))
    part = field(seed, z0 + z, y0 + y, x0 + x, (2, slices, height, width))
    np.testing.assert_array_equal(part, whole[:, z : z + slices, y : y + height, x : x + width])


def test_fewer_stains_are_the_first_ones():
    np.testing.assert_array_equal(noise_field(3, 0, 0, 0, (1, 2, 4, 8)), noise_field(3, 0, 0, 0, (3, 2, 4, 8))[:1])


@pytest.mark.parametrize("threads", [2, 3, 7, 64])
def test_threads_do_not_change_the_field(threads):
    shape = (2, 3, 101, 1037)
    np.testing.assert_array_equal(
        noise_field(1, 0, 0, 2, shape, threads=threads), noise_field(1, 0, 0, 2, shape, threads=1)
    )


@pytest.mark.parametrize("shape", [(0, 1, 2, 3), (1, 2, 3, 0), (0, 0, 0, 0)])
def test_an_empty_box_is_an_empty_array(shape):
    field = noise_field(0, 0, 0, 0, shape)
    assert field.shape == shape
    assert field.dtype == np.float32


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345])
def test_values_are_standard_normal(seed):
    values = noise_field(seed, 1, 100, 50, (1, 1, 1000, 1000)).ravel().astype(np.float64)
    n = values.size  # bounds are five standard errors of each statistic
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(stats.skew(values)) < 5 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 5 * np.sqrt(24 / n)
    assert stats.kstest(values, "norm").pvalue > 1e-4


def test_values_are_uncorrelated_across_every_axis():
    field = noise_field(21, 0, 0, 0, (2, 3, 256, 512)).astype(np.float64)
    other_seeds = [noise_field(21 + difference, 0, 0, 0, (2, 3, 256, 512)) for difference in (1, 2**32)]
    pairs = {
        "stains": (field[0], field[1]),
        "slices": (field[:, :-1], field[:, 1:]),
        "rows": (field[:, :, :-1], field[:, :, 1:]),
        "pixels": (field[..., :-1], field[..., 1:]),
        "pixels of a Box-Muller pair": (field[..., 0::2], field[..., 1::2]),
        "groups": (field[..., :-4], field[..., 4:]),
        "next seed": (field, other_seeds[0]),
        "seed's high word": (field, other_seeds[1]),
    }
    for name, (first, second) in pairs.items():
        for power in (1, 2):  # squares too: the members of a pair share a radius
            correlation = np.corrcoef(first.ravel() ** power, second.ravel() ** power)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(first.size), (name, power, correlation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1, 0, 0, 0, (1, 1, 1, 1)), "seed is -1"),
        ((2**64, 0, 0, 0, (1, 1, 1, 1)), "seed is 18446744073709551616"),
        ((1.5, 0, 0, 0, (1, 1, 1, 1)), "seed is 1.5"),
        ((True, 0, 0, 0, (1, 1, 1, 1)), "seed is True"),
        ((0, -1, 0, 0, (1, 1, 1, 1)), "z0 is -1"),
        ((0, 0, -64, 0, (1, 1, 1, 1)), "y0 is -64"),
        ((0, 0, 0, 2**32, (1, 1, 1, 1)), "x0 is 4294967296"),
        ((0, 0, 0, 2**32 - 1, (1, 1, 1, 2)), "the width is 2"),
        ((0, 0, 2**32 - 4, 0, (1, 1, 5, 1)), "the height is 5"),
        ((0, 2**32 - 1, 0, 0, (1, 2, 1, 1)), "the number of slices is 2"),
        ((0, 0, 0, 0, (-1, 1, 1, 1)), "the number of stains is -1"),
        ((0, 0, 0, 0, (1, 1, 1)), "shape is"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    for field in (noise_field, philox_words):
        with pytest.raises(InputError, match=words):
            field(*arguments)


@pytest.mark.parametrize("threads", [0, -2, 1.5])
def test_bad_thread_counts_are_named(threads):
    with pytest.raises(InputError, match=f"threads is {threads}"):
        noise_field(0, 0, 0, 0, (1, 1, 1, 1), threads=threads)
