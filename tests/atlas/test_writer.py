"""Writing an atlas: what the store holds and weighs, and what is left when writing fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pyarrow.csv
import pytest
import zarr
from ome_zarr_models.v05 import Image
from scipy.sparse import csr_array

import teramind.atlas.entries as entries_module
from teramind.atlas.layout import ENTRIES, IMAGES
from teramind.atlas.store import Atlas
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.errors import InputError


def small(**changed: Any) -> dict[str, Any]:
    """Arguments for an atlas of one slice of one strip, 20 x 30 px, two genes."""
    arguments = {"genes": ["a", "b"], "stains": ["DAPI"], "slice_z": [0.0], "shape": (20, 30), "pixel_size": 0.1}
    return {**arguments, "scaling": {"DAPI": (0.0, 1.0)}, "provenance": {}, **changed}


def small_counts() -> csr_array:
    return csr_array(np.array([[1, 0], [0, 2], [0, 0], [3, 4]], dtype=np.uint16))


def write_small(path: Path, **changed: Any) -> Atlas:
    with AtlasWriter(path, **small(**changed)) as writer:
        writer.append_counts(0, small_counts())
    return Atlas.open(path)


def test_chunks_and_shards_do_not_change_the_counts(sample, atlas, tmp_path, monkeypatch):
    window = (0, 3, 0, 1216, 0, 2080)
    expected = atlas.gene_window(*window)
    for chunk, shard in ((7, 7 * 3), (100, 1000), (50, 10**6)):
        monkeypatch.setattr(entries_module, "CHUNK", chunk)
        monkeypatch.setattr(entries_module, "SHARD", shard)
        other = sample.write(tmp_path / f"{chunk}.zarr", scaling=None, stains=[])
        np.testing.assert_array_equal(other.gene_window(*window), expected)


def test_every_file_of_counts_is_written_once(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "CHUNK", 100)
    monkeypatch.setattr(entries_module, "SHARD", 1000)
    written = []
    put = zarr.storage.LocalStore.set

    async def counting_set(store: Any, key: str, value: Any) -> None:
        written.append(key)
        await put(store, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", counting_set)
    atlas = sample.write(tmp_path / "a.zarr", scaling=None, stains=[])
    shards = [key for key in written if key.startswith(f"{ENTRIES}/c/")]
    assert len(shards) == len(set(shards)) == -(-atlas.stored_counts // 1000)


def test_zeros_that_are_stored_are_dropped(tmp_path):
    counts = csr_array((np.array([1, 0, 2], np.uint16), np.array([0, 1, 0]), np.array([0, 2, 3, 3, 3])), shape=(4, 2))
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, counts)
    assert counts.nnz == 3  # the caller's own are left alone
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.stored_counts == 2
    np.testing.assert_array_equal(atlas.gene_window(0, 1, 0, 32, 0, 32)[:, 0], [[[1, 2], [0, 0]], [[0, 0], [0, 0]]])


def test_an_atlas_without_a_transcript(tmp_path):
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, csr_array((4, 2), dtype=np.uint16))
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.stored_counts == 0
    assert not atlas.gene_window(0, 1, 0, 32, 0, 32).any()
    assert not atlas.count_window(0, 1, 0, 32, 0, 32).any()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (csr_array((6, 2), dtype=np.uint16), "bins and genes"),
        (csr_array((4, 3), dtype=np.uint16), "bins and genes"),
        (csr_array((4, 2), dtype=np.int32), "uint16"),
        (csr_array((np.ones(2, np.uint16), np.array([1, 0]), np.array([0, 2, 2, 2, 2])), shape=(4, 2)), "sorted"),
        (csr_array((np.ones(2, np.uint16), np.array([1, 1]), np.array([0, 2, 2, 2, 2])), shape=(4, 2)), "unique"),
    ],
)
def test_counts_of_another_kind_are_refused(tmp_path, counts, words):
    with pytest.raises(ValueError, match=words), AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, counts)
    assert not list(tmp_path.iterdir())


def test_a_strip_or_slice_too_many_is_refused(tmp_path):
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, small_counts())
        with pytest.raises(ValueError, match="1 strips already"):
            writer.append_counts(0, small_counts())
        for index in (-1, 1):
            with pytest.raises(ValueError, match=f"no slice {index}"):
                writer.append_counts(index, small_counts())
            with pytest.raises(ValueError, match=f"no slice {index}"):
                writer.write_regions(np.zeros((2, 2), int), {}, slice_index=index)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"genes": ["a", "a"]}, "gene 'a' is there twice"),
        ({"genes": []}, "1 to 65536 genes"),
        ({"genes": ["a", ""]}, "needs a name"),
        ({"slice_z": []}, "z of one slice or more"),
        ({"slice_z": [0.0, 0.0]}, "increasing z"),
        ({"slice_z": [float("nan")]}, "finite z"),
        ({"shape": (0, 5)}, "holds nothing"),
        ({"pixel_size": -0.1}, "pixel size"),
        ({"scaling": {"PolyT": (0.0, 1.0)}}, "name the same"),
        ({"scaling": {"DAPI": (1.0, 1.0)}}, "must be the larger"),
    ],
)
def test_what_makes_no_atlas_is_refused(tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        AtlasWriter(tmp_path / "a.zarr", **small(**changed))
    assert not list(tmp_path.iterdir())


# --- what the store weighs ---


def bytes_of(atlas: Atlas, *names: str) -> int:
    files = (file for name in names for file in (atlas.path / name).rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("per_bin", [0.1, 1.5])
def test_a_stored_count_takes_at_most_four_bytes(tmp_path, per_bin):
    """Block index and metadata included: 0.1 and 1.5 transcripts a bin are a thin section and dense cortex."""
    rng = np.random.default_rng(5)
    rows, columns, genes, slices = 2 * STRIP_BINS, 3 * STRIP_BINS, 500, 2
    frequency = rng.gamma(0.4, 1, genes)
    arguments = small(genes=[f"gene{index}" for index in range(genes)], scaling=None, stains=[], slice_z=[0.0, 100.0])
    with AtlasWriter(tmp_path / "a.zarr", **{**arguments, "shape": (rows * 16, columns * 16)}) as writer:
        for index in range(slices):
            for _ in range(rows // STRIP_BINS):
                bins = STRIP_BINS * columns
                number = int(bins * per_bin)
                gene = rng.choice(genes, number, p=frequency / frequency.sum())
                counts = csr_array((np.ones(number, np.uint16), (rng.integers(0, bins, number), gene)), (bins, genes))
                counts.sum_duplicates()
                writer.append_counts(index, counts)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert bytes_of(atlas, "counts") / atlas.stored_counts <= 4


def test_a_small_real_sample_takes_at_most_four_bytes_a_count(tmp_path):
    """The liver sample, 3,300 transcripts in seven planes: so few that all that is written besides them weighs."""
    beside = os.environ.get("TERAMIND_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data")
    folder = Path(beside) / "merscope_liver"
    if not folder.is_dir():
        pytest.skip(f"there is no liver sample at {folder}")
    table = pyarrow.csv.read_csv(folder / "detected_transcripts.csv")
    to_px = np.loadtxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv")
    microns = np.stack([table["global_x"], table["global_y"], np.ones(len(table))])
    column, row, _ = np.floor(to_px @ microns / 16).astype(int)
    plane, (genes, gene) = np.asarray(table["global_z"]).astype(int), np.unique(table["gene"], return_inverse=True)
    inside = (row >= 0) & (row < 32) & (column >= 0) & (column < 32)
    arguments = small(genes=genes.tolist(), shape=(512, 512), slice_z=[1.5 * index for index in range(7)], scaling=None)
    with AtlasWriter(tmp_path / "a.zarr", **arguments) as writer:
        for index in range(7):
            mine = inside & (plane == index)
            points = (np.ones(mine.sum(), np.uint16), (row[mine] * 32 + column[mine], gene[mine]))
            counts = csr_array(points, shape=(32 * 32, len(genes)))
            counts.sum_duplicates()
            writer.append_counts(index, counts)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert sum(atlas.metadata.slice_transcripts) == inside.sum() > 3000
    assert bytes_of(atlas, "counts") / atlas.stored_counts <= 4


def test_no_array_grows_with_the_bins_of_a_slice(tmp_path):
    """A hundred transcripts on a published plane, 30.7 M bins: the store stays tiny."""
    rng = np.random.default_rng(6)
    height, width = 73728, 106496
    columns = width // 16
    with AtlasWriter(tmp_path / "a.zarr", **small(shape=(height, width), scaling=None, stains=[])) as writer:
        for strip in range(height // 1024):
            place = rng.integers(0, STRIP_BINS * columns, 100 if strip == 40 else 0)
            counts = csr_array((np.ones(len(place), np.uint16), (place, place % 2)), (STRIP_BINS * columns, 2))
            counts.sum_duplicates()
            writer.append_counts(0, counts)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert bytes_of(atlas, ".") < 16_000
    arrays = dict(zarr.open_group(atlas.path, mode="r")["counts"].arrays())
    assert max(array.size for array in arrays.values()) <= 72 * 105
    assert atlas.count_window(0, 1, 40960, 41984, 0, width).sum() == 100


# --- images ---


def test_images_are_ome_zarr_for_others(atlas, sample):
    Image.from_zarr(zarr.open_group(atlas.path / IMAGES, mode="r"))
    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(atlas.path / IMAGES))()
    np.testing.assert_array_equal(node.data[0].compute(), sample.images)
    assert node.metadata["channel_names"] == ["DAPI", "PolyT"]
    scale, translation = node.metadata["coordinateTransformations"][0]
    assert scale["scale"] == pytest.approx([1, 100, 0.108, 0.108])
    assert translation["translation"] == pytest.approx([0, 5, 0, 0])


def test_images_are_written_by_shard_and_missing_ones_are_black(tmp_path):
    rng = np.random.default_rng(8)
    height, width = 4096 + 37, 4096 + 21
    right = rng.integers(0, 256, (4096, 21), dtype=np.uint8)
    bottom = rng.integers(0, 256, (37, width), dtype=np.uint8)
    arguments = small(shape=(height, width), stains=["DAPI", "PolyT"], scaling={"DAPI": (0, 1), "PolyT": (0, 1)})
    with AtlasWriter(tmp_path / "a.zarr", **arguments) as writer:
        writer.append_counts(0, csr_array((64 * 258, 2), dtype=np.uint16))
        for _ in range(3):
            writer.append_counts(0, csr_array((64 * 258, 2), dtype=np.uint16))
        writer.append_counts(0, csr_array((3 * 258, 2), dtype=np.uint16))
        writer.write_image(0, 1, 0, 4096, right)
        writer.write_image(0, 0, 4096, 0, bottom)
    atlas = Atlas.open(tmp_path / "a.zarr")
    expected = np.zeros((2, 1, height, width), dtype=np.uint8)
    expected[1, 0, :4096, 4096:] = right
    expected[0, 0, 4096:] = bottom
    np.testing.assert_array_equal(atlas.image_window(0, 1, 0, height, 0, width), expected)
    assert len(list((atlas.path / IMAGES / "0").rglob("c/*/*/*/*"))) == 3


@pytest.mark.parametrize(
    ("y", "x", "height", "width"), [(1, 0, 19, 30), (0, 0, 10, 30), (0, 0, 20, 31), (4096, 0, 20, 30), (-4096, 0, 1, 1)]
)
def test_images_off_the_grid_are_refused(tmp_path, y, x, height, width):
    with pytest.raises(ValueError, match="grid of 4096"), AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.write_image(0, 0, y, x, np.zeros((height, width), dtype=np.uint8))


def test_an_image_comes_once_and_only_where_announced(tmp_path):
    plane = np.zeros((20, 30), dtype=np.uint8)
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, small_counts())
        writer.write_image(0, 0, 0, 0, plane)
        with pytest.raises(ValueError, match="before"):
            writer.write_image(0, 0, 0, 0, plane)
    with AtlasWriter(tmp_path / "b.zarr", **small(scaling=None)) as writer:
        writer.append_counts(0, small_counts())
        with pytest.raises(ValueError, match="without images"):
            writer.write_image(0, 0, 0, 0, plane)


# --- regions ---


def test_regions_of_one_slice(tmp_path):
    arguments = small(slice_z=[0.0, 1.0], scaling=None)
    labels = np.array([[0, 7], [9, 7]])
    with AtlasWriter(tmp_path / "a.zarr", **arguments) as writer:
        for index in range(2):
            writer.append_counts(index, small_counts())
        writer.write_regions(labels, {7: "CA1", 9: "CA3"}, slice_index=1)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.region_names == {7: "CA1", 9: "CA3"}
    np.testing.assert_array_equal(atlas.region_window(0, 2, 0, 32, 0, 32), [np.zeros((2, 2)), labels])


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (np.zeros((1, 20, 30), int), {1: "a"}, "at bin resolution"),
        (np.full((1, 2, 2), 3), {1: "a"}, "label 3 .* has no name"),
        (np.full((1, 2, 2), 70000), {70000: "a"}, "1 to 65535"),
        (np.full((1, 2, 2), -1), {-1: "a"}, "1 to 65535"),
    ],
)
def test_regions_that_do_not_fit_are_refused(tmp_path, labels, names, words):
    with pytest.raises(InputError, match=words), AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.write_regions(labels, names)


# --- whole or not at all ---


def test_a_slice_without_all_strips_is_refused(tmp_path):
    arguments = small(shape=(1100, 30), slice_z=[0.0, 1.0], scaling=None)
    with (
        pytest.raises(InputError, match="slice 0 has 1 of 2 strips"),
        AtlasWriter(tmp_path / "a.zarr", **arguments) as writer,
    ):
        writer.append_counts(0, csr_array((64 * 2, 2), dtype=np.uint16))
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(sample, tmp_path):
    def interrupted() -> None:
        with AtlasWriter(tmp_path / "a.zarr", **sample.arguments()) as writer:
            writer.append_counts(0, next(sample.strips(0)))
            writer.write_image(0, 0, 0, 0, sample.images[0, 0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_the_name_appears_at_the_end(tmp_path):
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        writer.append_counts(0, small_counts())
        assert not (tmp_path / "a.zarr").exists()
        assert [path.name.startswith(".a.zarr.partial-") for path in tmp_path.iterdir()] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_nothing_is_overwritten_unasked(tmp_path):
    first = write_small(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="is there already"):
        AtlasWriter(tmp_path / "a.zarr", **small())
    assert Atlas.open(first.path).fingerprint == first.fingerprint
    changed = write_small(tmp_path / "a.zarr", pixel_size=0.2, overwrite=True)
    assert changed.pixel_size == 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_the_old_atlas_survives_a_failed_overwrite(tmp_path):
    first = write_small(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="0 of 1 strips"), AtlasWriter(first.path, **small(overwrite=True)):
        pass
    assert Atlas.open(first.path).fingerprint == first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_name_taken_in_the_meantime_is_left_alone(tmp_path):
    writer = AtlasWriter(tmp_path / "a.zarr", **small(scaling=None))
    writer.append_counts(0, small_counts())
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "mine").touch()
    with pytest.raises(InputError, match="is there already"):
        writer.finish()
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zarr", "mine"]


def test_only_an_atlas_is_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="no output of teramind's"):
        AtlasWriter(tmp_path / "thesis", **small(overwrite=True))
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_missing_parent_and_a_second_writer_are_refused(tmp_path):
    with pytest.raises(InputError, match="make it first"):
        AtlasWriter(tmp_path / "missing" / "a.zarr", **small())
    with AtlasWriter(tmp_path / "a.zarr", **small()) as writer:
        with pytest.raises(InputError, match="already being written"):
            AtlasWriter(tmp_path / "a.zarr", **small())
        writer.append_counts(0, small_counts())
    assert Atlas.open(tmp_path / "a.zarr").stored_counts == 4


@pytest.fixture
def full_disk(monkeypatch) -> Any:
    """Call it with a number of bytes: writes of zarr beyond that many fail as on a full disk."""

    def limit(room: int) -> None:
        put = zarr.storage.LocalStore.set
        left = [room]

        async def bounded_set(store: Any, key: str, value: Any) -> None:
            left[0] -= len(value)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() raises it, without a name
            await put(store, key, value)

        monkeypatch.setattr(zarr.storage.LocalStore, "set", bounded_set)

    return limit


@pytest.mark.parametrize("room", [0, 3_000, 20_000, 40_000])
def test_a_full_disk_leaves_nothing(sample, tmp_path, monkeypatch, full_disk, room):
    monkeypatch.setattr(entries_module, "CHUNK", 1000)
    monkeypatch.setattr(entries_module, "SHARD", 10_000)
    full_disk(room)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.zarr"):
        sample.write(tmp_path / "a.zarr", scaling=None, stains=[])
    assert not list(tmp_path.iterdir())


def test_a_disk_full_of_images_leaves_nothing(sample, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("teramind.ngff.encoding._write_all", full)
    with pytest.raises(OSError, match="No space left on device"):
        sample.write(tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


WRITE_FOREVER = """
import sys
import numpy as np
from scipy.sparse import csr_array
from teramind.atlas.writer import AtlasWriter
writer = AtlasWriter(sys.argv[1], genes=["a"], stains=["DAPI"], slice_z=[0.0], shape=(2**20, 4096), pixel_size=0.1,
                     scaling={"DAPI": (0, 1)}, provenance={})
for row in range(0, 2**20, 4096):
    writer.write_image(0, 0, row, 0, np.random.default_rng(row).integers(0, 256, (4096, 4096), dtype=np.uint8))
    writer.append_counts(0, csr_array((64 * 256, 1), dtype=np.uint16))
    print(row, flush=True)
"""


def test_a_killed_writer_leaves_a_hidden_folder_that_the_next_removes(tmp_path):
    target = tmp_path / "a.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".a.zarr.partial-")
        with AtlasWriter(target, **small()) as writer:  # the other lives: its folder is left alone
            writer.append_counts(0, small_counts())
        assert partial.exists()
        process.send_signal(signal.SIGKILL)
    assert sorted(tmp_path.iterdir()) == [partial, target]
    assert Atlas.open(target).stored_counts == 4
    write_small(target, overwrite=True)
    assert list(tmp_path.iterdir()) == [target]
