"""Reading an atlas: windows, what they cost, and stores that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy.sparse import random_array

import teramind.atlas.entries as entries_module
from teramind.atlas.layout import ENTRIES, IMAGES, OFFSETS, VERSION
from teramind.atlas.store import Atlas
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.errors import InputError

# slices, then bins: inside, across block borders, over every side, beyond, nothing
WINDOWS = [
    (0, 1, 0, 1, 0, 1),
    (0, 3, 0, 76, 0, 130),
    (1, 3, 60, 70, 61, 67),
    (0, 3, 63, 65, 127, 129),
    (1, 2, 0, 64, 64, 128),
    (2, 3, 11, 12, 13, 120),
    (-1, 3, -5, 20, -130, 3),
    (2, 6, 70, 200, 100, 300),
    (-2, 5, -100, 200, -100, 200),
    (0, 3, 80, 90, 0, 10),
    (0, 3, 10, 20, -30, -10),
    (-4, -1, 0, 10, 0, 10),
    (3, 7, 0, 10, 0, 10),
    (1, 1, 0, 10, 0, 10),
    (0, 3, 5, 5, 0, 10),
]


def cut(array: np.ndarray, bounds: tuple[int, ...]) -> np.ndarray:
    """The window ``bounds`` of the first three axes, zeros outside."""
    ranges = [np.arange(*bounds[2 * axis : 2 * axis + 2]) for axis in range(3)]
    inside = [(axis >= 0) & (axis < size) for axis, size in zip(ranges, array.shape[:3], strict=True)]
    out = np.zeros((*(len(axis) for axis in ranges), *array.shape[3:]), dtype=array.dtype)
    found = [axis[keep] for axis, keep in zip(ranges, inside, strict=True)]
    out[np.ix_(*inside)] = array[np.ix_(*found)]
    return out


def in_px(bounds: tuple[int, ...]) -> tuple[int, ...]:
    return (*bounds[:2], *(16 * bound for bound in bounds[2:]))


def test_the_metadata_come_back(atlas, sample):
    assert atlas.genes == sample.genes
    assert atlas.stains == ["DAPI", "PolyT"]
    assert (atlas.slices, atlas.shape) == (3, (3, 1205, 2069))
    assert atlas.slice_z == [5.0, 105.0, 205.0]
    assert atlas.pixel_size == 0.108
    assert atlas.scaling == {"DAPI": (10.0, 2000.0), "PolyT": (0.0, 1.5)}
    assert atlas.provenance == {"vendor": "none", "rows": 12}
    assert atlas.region_names == {1: "isocortex", 2: "thalamus", 3: "fiber tracts"}
    assert atlas.has_images
    assert atlas.stored_counts == np.count_nonzero(sample.counts)
    assert atlas.metadata.slice_transcripts == sample.counts.sum(axis=(1, 2, 3), dtype=int).tolist()
    assert atlas.metadata.gene_transcripts == sample.counts.sum(axis=(0, 1, 2), dtype=int).tolist()


@pytest.mark.parametrize("bounds", WINDOWS)
def test_a_window_holds_the_counts(atlas, sample, bounds):
    expected = cut(sample.counts, bounds)
    counts = atlas.gene_window(*in_px(bounds))
    assert counts.dtype == np.uint16
    np.testing.assert_array_equal(counts, np.moveaxis(expected, -1, 0))
    entries = atlas.gene_entries(*in_px(bounds))
    assert entries.dtype == np.int32
    assert entries.shape[1] == np.count_nonzero(counts)
    np.testing.assert_array_equal(counts.reshape(len(counts), -1)[entries[1], entries[0]], entries[2])
    totals = atlas.count_window(*in_px(bounds))
    assert totals.dtype == np.uint32
    np.testing.assert_array_equal(totals, expected.sum(axis=-1, dtype=np.uint32))


@pytest.mark.parametrize("bounds", WINDOWS)
def test_a_window_holds_the_region_labels(atlas, sample, bounds):
    np.testing.assert_array_equal(atlas.region_window(*in_px(bounds)), cut(sample.labels, bounds))


@pytest.mark.parametrize(
    "bounds",
    [(0, 3, 0, 1205, 0, 2069), (1, 2, 7, 8, 1023, 1026), (-1, 4, -3, 10, 2000, 2100), (0, 3, 1205, 1210, 0, 5)],
)
def test_a_window_holds_the_pixels(atlas, sample, bounds):
    pixels = atlas.image_window(*bounds)
    assert pixels.dtype == np.uint8
    expected = np.stack([cut(stain, bounds) for stain in sample.images])
    np.testing.assert_array_equal(pixels, expected)


def test_windows_do_not_depend_on_threads(atlas, sample):
    rng = np.random.default_rng(3)
    corners = rng.integers(-10, 70, (60, 2)).tolist()
    windows = [(0, 3, y, y + 33, x, x + 47) for y, x in corners]
    with ThreadPoolExecutor(8) as pool:
        for bounds, counts in zip(windows, pool.map(lambda b: atlas.gene_window(*in_px(b)), windows), strict=True):
            np.testing.assert_array_equal(counts, np.moveaxis(cut(sample.counts, bounds), -1, 0))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [((0, 1, 8, 32, 0, 16), "use 0 or 16"), ((0, 1, 0, 16, 0, -1), "-16 or 0"), ((2, 1, 0, 16, 0, 16), "before")],
)
def test_a_window_that_makes_no_sense_is_refused(atlas, bounds, words):
    with pytest.raises(InputError, match=words):
        atlas.gene_window(*bounds)


def test_without_images_and_regions(sample, tmp_path):
    with AtlasWriter(tmp_path / "a.zarr", **sample.arguments(stains=[], scaling=None)) as writer:
        sample.append_all_counts(writer)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert (atlas.has_images, atlas.scaling, atlas.region_names) == (False, None, None)
    with pytest.raises(InputError, match="no images"):
        atlas.image_window(0, 1, 0, 16, 0, 16)
    with pytest.raises(InputError, match="no map of regions"):
        atlas.region_window(0, 1, 0, 16, 0, 16)


def test_fingerprint_is_of_the_content(sample, tmp_path):
    def fingerprint(name: str, changed_counts: np.ndarray | None = None, **changed: Any) -> str:
        sample_now = sample if changed_counts is None else type(sample)(**{**vars(sample), "counts": changed_counts})
        return sample_now.write(tmp_path / name, **changed).fingerprint

    first = fingerprint("first.zarr")
    assert Atlas.open(tmp_path / "first.zarr").fingerprint == first
    assert fingerprint("same.zarr", provenance={"when": "later"}) == first
    moved = sample.counts.copy()
    moved[0, 3, 3], moved[0, 3, 4] = sample.counts[0, 3, 4], sample.counts[0, 3, 3]
    assert fingerprint("moved.zarr", moved) != first
    assert fingerprint("renamed.zarr", genes=sample.genes[::-1]) != first
    assert fingerprint("rescaled.zarr", scaling={"DAPI": (10.0, 2001.0), "PolyT": (0.0, 1.5)}) != first


def test_fingerprint_does_not_depend_on_the_order_of_the_slices(sample, tmp_path):
    with AtlasWriter(tmp_path / "turns.zarr", **sample.arguments(stains=[], scaling=None)) as writer:
        for strips in zip(*(list(sample.strips(index)) for index in range(3)), strict=True):
            for index in (2, 0, 1):
                writer.append_counts(index, strips[index])
    with AtlasWriter(tmp_path / "rows.zarr", **sample.arguments(stains=[], scaling=None)) as writer:
        sample.append_all_counts(writer)
    turns, rows = Atlas.open(tmp_path / "turns.zarr"), Atlas.open(tmp_path / "rows.zarr")
    assert turns.fingerprint == rows.fingerprint
    window = in_px((0, 3, 0, 76, 0, 130))
    np.testing.assert_array_equal(turns.gene_window(*window), rows.gene_window(*window))


@pytest.fixture
def copy(atlas, tmp_path) -> Path:
    shutil.copytree(atlas.path, tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


def change_attributes(path: Path, **changes: Any) -> None:
    file = path / "zarr.json"
    described = json.loads(file.read_text())
    attributes = described["attributes"]["teramind"]
    attributes.update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        del attributes[name]
    file.write_text(json.dumps(described))


def test_what_is_no_atlas_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no atlas .*missing\.zarr"):
        Atlas.open(tmp_path / "missing.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    zarr.create_group(tmp_path / "group.zarr")
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="u1")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    for name in ("folder", "file", "group.zarr", "array.zarr", "broken.zarr"):
        with pytest.raises(InputError, match=f"{name} is not a teramind atlas"):
            Atlas.open(tmp_path / name)


def test_a_newer_format_is_refused(copy):
    change_attributes(copy, version=VERSION + 1)
    with pytest.raises(InputError, match=f"version {VERSION + 1}.*update teramind"):
        Atlas.open(copy)


def test_a_half_written_store_is_refused(sample, tmp_path):
    with AtlasWriter(tmp_path / "a.zarr", **sample.arguments(scaling=None)) as writer:
        (partial,) = tmp_path.iterdir()
        with pytest.raises(InputError, match="not written to its end"):
            Atlas.open(partial)
        sample.append_all_counts(writer)


@pytest.mark.parametrize("name", ["genes", "pixel_size", "complete"])
def test_damaged_metadata_are_refused(copy, name):
    change_attributes(copy, **{name: None})
    with pytest.raises(InputError, match=r"metadata of .* damaged"):
        Atlas.open(copy)


@pytest.mark.parametrize("name", [ENTRIES, OFFSETS, f"{IMAGES}/0", "regions"])
def test_a_missing_array_is_refused(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(InputError, match=f"no array {name}"):
        Atlas.open(copy)


def entry_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / ENTRIES).rglob("*") if file.is_file() and file.name != "zarr.json")


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def garble(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x01  # a single bit
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, garble])
@pytest.mark.parametrize("chunks", ["one", "many"])
def test_a_damaged_file_of_counts_is_noticed(sample, tmp_path, monkeypatch, damage, chunks):
    if chunks == "many":
        monkeypatch.setattr(entries_module, "CHUNK", 100)
        monkeypatch.setattr(entries_module, "SHARD", 1000)
    atlas = sample.write(tmp_path / "a.zarr", scaling=None, stains=[])
    for file in entry_files(atlas.path):
        damage(file)
    with pytest.raises(InputError, match=r"entries.* is missing or damaged"):
        Atlas.open(atlas.path).gene_window(0, 3, 0, 1216, 0, 2080)


def test_a_window_costs_what_it_holds(tmp_path, monkeypatch):
    """Bytes read from disk follow the window, not the slice, in a store of many chunks and shards."""
    monkeypatch.setattr(entries_module, "CHUNK", 512)
    monkeypatch.setattr(entries_module, "SHARD", 512 * 16)
    rows, columns, genes = 4 * STRIP_BINS, 9 * STRIP_BINS, 20
    arguments: dict[str, Any] = {"genes": [str(index) for index in range(genes)], "stains": [], "slice_z": [0.0]}
    arguments |= {"shape": (rows * 16, columns * 16), "pixel_size": 0.1, "scaling": None, "provenance": {}}
    with AtlasWriter(tmp_path / "a.zarr", **arguments) as writer:
        for seed in range(rows // STRIP_BINS):
            strip = random_array((STRIP_BINS * columns, genes), density=0.01, format="csr", rng=seed)
            strip.data[:] = 1
            writer.append_counts(0, strip.astype(np.uint16))
    atlas = Atlas.open(tmp_path / "a.zarr")
    files = entry_files(atlas.path)
    assert len(files) == -(-atlas.stored_counts // (512 * 16))
    a_block = sum(file.stat().st_size for file in files) / (4 * 9)
    a_chunk = a_block * 512 / (atlas.stored_counts / (4 * 9))

    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or pread(*args))
    atlas.gene_window(0, 1, 0, 4 * 1024, 0, 9 * 1024)  # so that the shards' indices, once a shard, are not counted
    for blocks_down, blocks_across in ((1, 1), (1, 9), (2, 3), (4, 9)):
        read.clear()
        atlas.gene_window(0, 1, 0, 1024 * blocks_down, 0, 1024 * blocks_across)
        # A run of entries begins and ends within a chunk, and chunks are not equally large: 1.2.
        assert sum(read) <= 1.2 * blocks_down * (blocks_across * a_block + 2 * a_chunk)
    read.clear()
    atlas.gene_window(-3, 0, 0, 1024, 0, 1024)
    atlas.gene_window(0, 1, -1024, 0, 0, 1024)
    assert not read


def test_another_library_reads_the_counts(atlas, sample):
    """The documented layout, decoded without our reader: zarr-python and a cumulative sum."""
    root = zarr.open_group(atlas.path, mode="r")
    gene, step, count = root[ENTRIES][:].astype(int)
    offsets = root[OFFSETS][:]
    decoded = np.zeros_like(sample.counts)
    for z, strip, column in np.ndindex(3, 2, 3):
        entries = slice(*offsets[z, strip, column : column + 2])
        row, place = np.divmod(np.cumsum(step[entries]), STRIP_BINS)
        decoded[z, strip * STRIP_BINS + row, column * STRIP_BINS + place, gene[entries]] = count[entries]
    np.testing.assert_array_equal(decoded, sample.counts)
