"""Transcripts to sparse counts: against a dense count, at the edges, for any threads, within its memory."""

import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from scipy.sparse import coo_array

from teramind import _core
from teramind.atlas.binning import Dropped, rasterize
from teramind.errors import InputError


def transcripts(n, shape, genes, seed=0, dtype=np.float32):
    """Clustered transcripts with a margin outside the image and genes outside the panel on both sides."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y = rng.uniform(-0.1 * height, 1.1 * height, n)
    x = rng.uniform(-0.1 * width, 1.1 * width, n)
    y[::3] = rng.normal(height / 3, height / 50, y[::3].size)
    x[::3] = rng.normal(width / 3, width / 50, x[::3].size)
    gene = rng.integers(-2, genes + 2, n)
    return x.astype(dtype), y.astype(dtype), gene


def reference(x, y, gene, shape, genes, bin_size):
    """The definition in float64 and scipy, with the numbers of points and genes left out."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    known = inside & (gene >= 0) & (gene < genes)
    rows, columns = -(-shape[0] // bin_size), -(-shape[1] // bin_size)
    bins = (y[known] // bin_size).astype(np.int64) * columns + (x[known] // bin_size).astype(np.int64)
    matrix = coo_array((np.ones(bins.size, np.int64), (bins, gene[known])), shape=(rows * columns, genes)).tocsr()
    matrix.sum_duplicates()
    return matrix, Dropped(points=int((~inside).sum()), genes=int((inside & ~known).sum()))


def assert_same(bins, expected):
    assert bins.shape == expected.shape
    assert bins.dtype == np.uint16
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(bins, name), getattr(expected, name), err_msg=name)


def assert_canonical(bins):
    """Asks scipy afresh, not the flag that was set."""
    fresh = type(bins)((bins.data, bins.indices, bins.indptr), shape=bins.shape)
    fresh.check_format(full_check=True)
    assert fresh.has_canonical_format


@pytest.mark.parametrize("bin_size", [1, 7, 16, 100, 2**31 - 1])
@pytest.mark.parametrize(
    ("shape", "genes", "n"),
    [
        ((64, 64), 5, 1000),
        ((65, 63), 1, 999),
        ((1, 1), 3, 500),
        ((16, 1000), 500, 20_000),
        ((1000, 17), 2, 20_000),
        ((1537, 2049), 500, 200_003),
        ((333, 4001), 70_001, 50_000),  # more genes than 16 bits, most ranges with far fewer transcripts than genes
        ((100, 100), 2**20, 3000),
    ],
)
def test_equals_the_definition(shape, genes, n, bin_size):
    x, y, gene = transcripts(n, shape, genes)
    bins, dropped = rasterize(x, y, gene, shape, genes, bin_size, return_dropped=True)
    expected, expected_dropped = reference(x, y, gene, shape, genes, bin_size)
    assert_same(bins, expected)
    assert_canonical(bins)
    assert dropped == expected_dropped
    assert bins.sum(dtype=np.int64) + dropped.total == n


def test_index_type_is_the_smallest_scipy_accepts():
    bins = rasterize([1.0], [1.0], [0], (32, 32), 2)
    assert (bins.indices.dtype, bins.indptr.dtype) == (np.int32, np.int32)


def test_wide_indices_hold_the_same_matrix():
    x, y, gene = transcripts(50_000, (500, 700), 40)
    arguments = {"height": 500, "width": 700, "genes": 40, "bin_size": 16, "threads": 2}
    narrow = _core.rasterize(x, y, gene, wide_index=False, **arguments)
    wide = _core.rasterize(x, y, gene, wide_index=True, **arguments)
    assert (wide[1].dtype, wide[2].dtype) == (np.int64, np.int64)
    for first, second in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("gene_type", "bhilBHIL")
@pytest.mark.parametrize("type_", "bhilBHILfd")
def test_every_number_type(type_, gene_type):
    rng = np.random.default_rng(1)
    low = -3 if np.dtype(type_).kind in "if" else 0
    x, y = rng.integers(low, 120, (2, 5000)).astype(type_)
    gene = rng.integers(0, 9, 5000).astype(gene_type)
    bins, dropped = rasterize(x, y, gene, (99, 113), 8, return_dropped=True)
    expected, expected_dropped = reference(x, y, gene, (99, 113), 8, 16)
    assert_same(bins, expected)
    assert dropped == expected_dropped


def test_coordinates_of_two_types_and_any_strides_and_byte_order():
    x, y, gene = transcripts(10_000, (300, 400), 12, dtype=np.float64)
    expected, _ = reference(x, y, gene, (300, 400), 12, 16)
    table = np.stack([x, y], axis=1)
    assert_same(rasterize(table[:, 0], table[:, 1], gene, (300, 400), 12), expected)
    reverse = slice(None, None, -1)
    assert_same(rasterize(x[reverse], y[reverse], gene[reverse], (300, 400), 12), expected)
    assert_same(rasterize(x, y, gene.astype(np.int16)[:, None].repeat(3, axis=1)[:, 1], (300, 400), 12), expected)
    assert_same(rasterize(x.astype(">f8"), y, gene.astype(">i4"), (300, 400), 12), expected)
    packed = np.zeros(x.size, dtype=[("flag", "u1"), ("x", "f8"), ("y", "f8"), ("gene", "i2")])  # unaligned fields
    packed["x"], packed["y"], packed["gene"] = x, y, gene
    assert_same(rasterize(packed["x"], packed["y"], packed["gene"], (300, 400), 12), expected)
    whole = np.floor(y)
    assert_same(rasterize(x, whole.astype(np.int32), gene, (300, 400), 12), expected_of(x, whole, gene))


def expected_of(x, y, gene):
    return reference(x, y, gene, (300, 400), 12, 16)[0]


def test_edges_belong_to_the_bin_they_open():
    below = np.nextafter(np.float32(16), np.float32(0))
    x = np.float32([0, -0.0, below, 16, np.nextafter(np.float32(33), np.float32(0))])
    bins, dropped = rasterize(x, np.zeros(5, np.float32), np.zeros(5, int), (1, 33), 1, return_dropped=True)
    assert bins.toarray().ravel().tolist() == [3, 1, 1]
    assert dropped.total == 0


@pytest.mark.parametrize("type_", [np.float32, np.float64])
def test_points_outside_are_counted_and_never_wrapped(type_):
    tiny = np.nextafter(type_(0), type_(-1))
    bad = type_([tiny, -0.5, -1, 33, 34, 1e9, 3e9, -3e9, 1e30, -1e30, np.nan, np.inf, -np.inf])
    good = np.full_like(bad, 5)
    gene = np.zeros(bad.size, np.int32)
    for x, y in ((bad, good), (good, bad), (bad, bad)):
        bins, dropped = rasterize(x, y, gene, (33, 33), 1, return_dropped=True)
        assert bins.nnz == 0
        assert dropped == Dropped(points=bad.size, genes=0)


@pytest.mark.parametrize("type_", [np.int64, np.uint64, np.int32, np.uint32])
def test_integers_that_would_wrap_are_outside(type_):
    limits = np.iinfo(type_)
    bad = [
        33,
        2**31 - 1,
        2**31,
        2**31 + 5,
        2**32 - 1,
        2**32,
        2**32 + 5,
        2**33 + 1,
        limits.max,
        limits.min,
        -1,
        -(2**32) + 5,
    ]
    bad = np.array([value for value in bad if limits.min <= value <= limits.max and value != 0], type_)
    good = np.full(bad.size, 5)
    assert rasterize(bad, good, good, (33, 33), 6, return_dropped=True)[1] == Dropped(bad.size, 0)
    assert rasterize(good, good, bad, (33, 33), 6, return_dropped=True)[1] == Dropped(0, bad.size)
    assert rasterize(bad, good, bad, (33, 33), 6, return_dropped=True)[1] == Dropped(bad.size, 0)  # not counted twice


def test_width_that_float32_cannot_hold():
    """2^24 + 1 is no float32: the last column still belongs to the image, the next float32 above does not."""
    x = np.float32([2**24, 2**24 + 2])
    bins, dropped = rasterize(x, np.zeros(2, np.float32), [0, 0], (1, 2**24 + 1), 1, 2**20, return_dropped=True)
    assert bins.toarray().ravel().tolist() == [0] * 16 + [1]
    assert dropped.points == 1


def test_nothing_in_gives_an_empty_matrix():
    for empty in ([], np.empty(0, np.float32), np.empty((0, 2))[:, 0]):
        bins, dropped = rasterize(empty, empty, [], (100, 50), 3, return_dropped=True)
        assert bins.shape == (7 * 4, 3)
        assert bins.nnz == 0
        assert_canonical(bins)
        assert dropped == Dropped(0, 0)


@pytest.mark.parametrize("n", [0, 1, 5, 100_001, 400_000])
def test_threads_and_order_do_not_change_a_bit(n):
    x, y, gene = transcripts(n, (2000, 3001), 300, seed=n)
    one = rasterize(x, y, gene, (2000, 3001), 300, threads=1)
    order = np.random.default_rng(0).permutation(n)
    for threads in (2, 3, 8, 61):
        assert_same(rasterize(x, y, gene, (2000, 3001), 300, threads=threads), one)
        assert_same(rasterize(x[order], y[order], gene[order], (2000, 3001), 300, threads=threads), one)


def test_all_in_one_bin():
    n = 65_535
    bins = rasterize(np.full(n, 40.0), np.full(n, 50.0), np.full(n, 2), (64, 64), 4, threads=2)
    assert bins.nnz == 1
    assert bins[3 * 4 + 2, 2] == n


@pytest.mark.parametrize("threads", [1, 4])
def test_a_count_over_16_bits_names_the_first_such_bin(threads):
    x, y, gene = transcripts(100_000, (1000, 1000), 9)
    extra = 65_536 + 100_000
    x = np.concatenate([x, np.full(extra, 900, np.float32), np.full(extra, 20, np.float32)])
    y = np.concatenate([y, np.full(extra, 990, np.float32), np.full(extra, 500, np.float32)])
    gene = np.concatenate([gene, np.full(extra, 1), np.full(extra, 7)])
    held = reference(x, y, gene, (1000, 1000), 9, 16)[0][31 * 63 + 1, 7]
    with pytest.raises(InputError, match=rf"row 31, column 1\) holds {held} transcripts of gene 7.*65535"):
        rasterize(x, y, gene, (1000, 1000), 9, threads=threads)


def test_inputs_are_left_alone():
    given = transcripts(1000, (100, 100), 5)
    before = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    rasterize(*given, (100, 100), 5, threads=2)
    for array, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": [1.0, 2.0]}, r"\[2, 1, 1\] elements"),
        ({"x": [[1.0]]}, r"x has shape \(1, 1\)"),
        ({"x": ["1"]}, "x is of type <U1"),
        ({"y": np.float16([1])}, "y is of type float16"),
        ({"y": np.longdouble([1])}, "y is of type"),
        ({"y": [1j]}, "y is of type complex128"),
        ({"gene": [0.0]}, "gene is of type float64"),
        ({"gene": [True]}, "gene is of type bool"),
        ({"shape": (10,)}, r"shape is \(10,\)"),
        ({"shape": (0, 10)}, "height is 0"),
        ({"shape": (10, -1)}, "width is -1"),
        ({"shape": (10, 2**31)}, "width is 2147483648"),
        ({"shape": (10.5, 10)}, "height is 10.5"),
        ({"genes": 0}, "genes is 0"),
        ({"genes": 2**20 + 1}, "genes is 1048577"),
        ({"bin_size": 0}, "bin_size is 0"),
        ({"shape": (2**17, 2**16), "bin_size": 1}, "131072 x 65536 px into 8589934592 bins"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    arguments = {"x": [1.0], "y": [1.0], "gene": [0], "shape": (10, 10), "genes": 1} | change
    with pytest.raises(InputError, match=words):
        rasterize(**arguments)


def test_the_interpreter_runs_on_meanwhile():
    x, y, gene = transcripts(3_000_000, (20_000, 20_000), 500)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    rasterize(x, y, gene, (20_000, 20_000), 500, threads=1)
    end = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(start < moment < end for moment in ticks) >= 5


MEMORY_PROGRAM = """
    import resource
    import numpy as np
    from teramind.atlas.binning import rasterize

    n, side, genes, threads = {n}, {side}, 500, {threads}
    rng = np.random.default_rng(0)
    x, y = rng.random(n, dtype=np.float32), rng.random(n, dtype=np.float32)
    gene = rng.integers(0, genes, n, dtype=np.int32)
    for column in (x, y):
        column *= np.float32(side * {spread})  # in place: a temporary would raise the peak that is measured from

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = peak()
    bins = rasterize(x, y, gene, (side, side), genes, threads=threads)
    output = bins.data.nbytes + bins.indices.nbytes + bins.indptr.nbytes
    print((peak() - before - output) / n)
"""


@pytest.mark.parametrize(("side", "spread"), [(4000, 1), (20_000, 1), (20_000, 0.01)])
@pytest.mark.parametrize("threads", [1, 4])
def test_memory_a_transcript(side, spread, threads):
    """At most 14 bytes above input and output and 2 MiB of tables; spread 0.01 puts all into few ranges."""
    program = textwrap.dedent(MEMORY_PROGRAM.format(n=6_000_000, side=side, spread=spread, threads=threads))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(run.stdout) <= 14 + 2**21 / 6e6
