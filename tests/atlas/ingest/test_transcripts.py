from __future__ import annotations

import errno
import tempfile
import tracemalloc

import numpy as np
import pytest

from teramind.atlas.transcripts import TranscriptSpool
from teramind.errors import InputError

SHAPE = (1500, 777)  # 94 x 49 bins, 2 strips, the second one lower
GENES = 11
EVERY_GENE = np.arange(GENES)


def blocks(seed: int = 0, count: int = 7, slices: int = 3):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = int(rng.integers(1, 900))
        yield (
            rng.integers(0, slices, size),
            rng.uniform(-30, SHAPE[1] + 30, size),
            rng.uniform(-30, SHAPE[0] + 30, size),
            rng.integers(-2, GENES, size),
        )


def brute_force(slices: int = 3) -> tuple[np.ndarray, int]:
    counts = np.zeros((slices, 94, 49, GENES), dtype=np.int64)
    kept = 0
    for block in blocks():
        for index, x, y, gene in zip(*block, strict=True):
            if gene >= 0 and 0 <= x < SHAPE[1] and 0 <= y < SHAPE[0]:
                counts[index, int(y // 16), int(x // 16), gene] += 1
                kept += 1
    return counts, kept


def collected(spool: TranscriptSpool, columns: np.ndarray = EVERY_GENE, genes: int = GENES) -> np.ndarray:
    strips = [[strip.toarray() for strip in spool.strips_of(index, columns, genes)] for index in range(3)]
    return np.stack([np.concatenate(parts).reshape(94, 49, genes) for parts in strips])


@pytest.mark.parametrize("memory", [8, 8 * 100, 8 * 1001, 1 << 20], ids=lambda memory: f"{memory // 8} records")
def test_counts_are_those_of_brute_force_whatever_goes_to_disk(tmp_path, memory):
    if memory == 8:  # a run a transcript
        few = [tuple(column[:20] for column in block) for block in blocks(count=2)]
        with TranscriptSpool(3, SHAPE, tmp_path, memory=memory) as spool, TranscriptSpool(3, SHAPE, tmp_path) as ample:
            for block in few:
                spool.add(*block)
                ample.add(*block)
            np.testing.assert_array_equal(collected(spool), collected(ample))
        return
    expected, kept = brute_force()
    with TranscriptSpool(3, SHAPE, tmp_path, memory=memory) as spool:
        assert sum(int(spool.add(*block).sum()) for block in blocks()) == kept
        np.testing.assert_array_equal(collected(spool), expected)
        np.testing.assert_array_equal(spool.gene_counts, expected.sum(axis=(1, 2)))
        assert not list(tmp_path.iterdir())  # the scratch file has no name


def test_a_slice_for_all_rows_is_the_same_as_for_each(tmp_path):
    _, x, y, gene = next(blocks())
    with TranscriptSpool(3, SHAPE, tmp_path) as one, TranscriptSpool(3, SHAPE, tmp_path) as each:
        one.add(1, x, y, gene)
        each.add(np.full(len(x), 1), x, y, gene)
        np.testing.assert_array_equal(collected(one), collected(each))
        np.testing.assert_array_equal(one.gene_counts, each.gene_counts)


def test_genes_take_the_columns_given_and_others_are_left_out(tmp_path):
    expected, _ = brute_force()
    columns = np.full(GENES, -1)
    columns[[7, 2, 9]] = [0, 1, 2]
    with TranscriptSpool(3, SHAPE, tmp_path, memory=8 * 500) as spool:
        for block in blocks():
            spool.add(*block)
        np.testing.assert_array_equal(collected(spool, columns, 3), expected[..., [7, 2, 9]])


def test_edges_belong_to_the_bin_that_begins_there_and_what_is_not_finite_is_outside(tmp_path):
    height, width = SHAPE
    x = np.array([0.0, 15.999, 16.0, np.nextafter(width, 0), width, -1e-9, np.nan, np.inf, 5.0])
    y = np.array([0.0, 15.999, 16.0, np.nextafter(height, 0), 5.0, 5.0, 5.0, 5.0, -np.inf])
    with TranscriptSpool(3, SHAPE, tmp_path) as spool:
        kept = spool.add(0, x, y, np.zeros(9, dtype=np.intp))
        np.testing.assert_array_equal(kept, [True] * 4 + [False] * 5)
        counts = collected(spool)[0, :, :, 0]
        assert counts[0, 0] == 2
        assert counts[1, 1] == 1
        assert counts[93, 48] == 1


def test_float32_px_are_taken_too(tmp_path):
    _, x, y, gene = next(blocks())
    with TranscriptSpool(3, SHAPE, tmp_path) as single, TranscriptSpool(3, SHAPE, tmp_path) as double:
        single.add(0, x.astype(np.float32), y.astype(np.float32), gene)
        double.add(0, x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64), gene)
        np.testing.assert_array_equal(collected(single), collected(double))


def test_memory_stays_within_the_budget(tmp_path):
    rng = np.random.default_rng(3)
    budget = 1 << 20
    tracemalloc.start()
    try:
        with TranscriptSpool(1, SHAPE, tmp_path, memory=budget) as spool:
            for _ in range(40):  # 800,000 transcripts are six budgets
                size = 20_000
                points = rng.uniform(0, SHAPE[1], size), rng.uniform(0, SHAPE[0], size)
                spool.add(0, *points, rng.integers(0, 3, size))
            adding = tracemalloc.get_traced_memory()[1]
            total = sum(int(strip.sum()) for strip in spool.strips_of(0, EVERY_GENE, GENES))
    finally:
        tracemalloc.stop()
    assert total == 800_000
    assert adding < budget + 4e6  # a block and its records


def test_a_full_disk_is_the_systems_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115, PTH123
    block = max(blocks(), key=lambda columns: len(columns[0]))
    with TranscriptSpool(3, SHAPE, tmp_path, memory=80) as spool, pytest.raises(OSError, match="space") as caught:
        spool.add(*block)
    assert caught.value.errno == errno.ENOSPC


def test_an_atlas_too_large_for_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="microns"):
        TranscriptSpool(1, (1000, 1 << 21), tmp_path)
