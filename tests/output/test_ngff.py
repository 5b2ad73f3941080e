"""OME-Zarr images and the writer that streams into them, read back with libraries of others."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr

from teramind.errors import InputError
from teramind.ngff import (
    Channel,
    MultiscaleWriter,
    Pending,
    PendingShard,
    create_multiscale,
    image_channels,
    image_pixel_size,
    image_translation,
    open_levels,
)
from teramind.ngff.assembly import Coverage, mean_bin

CHANNELS = [Channel("DAPI", "0000FF", 0, 255, 3, 200), Channel("PolyT", "00ff00")]
PIXEL_SIZE = (1.5, 0.108, 0.11)
TRANSLATION = (3.0, -7.0, 100.25)


def make_image(path, shape=(2, 2, 301, 217), *, chunk=16, shard=64, **options):
    options = {"pixel_size": PIXEL_SIZE, "translation": TRANSLATION, "channels": CHANNELS, "name": "tissue"} | options
    return create_multiscale(path, shape=shape, chunk=chunk, shard=shard, **options)


def random_pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mean_of_what_is_there(plane):
    """2x2 means, halves up, in exact integers: floor((2 sum + n) / 2n)."""
    height, width = plane.shape
    binned = np.empty((-(-height // 2), -(-width // 2)), dtype=np.uint8)
    for y, x in np.ndindex(binned.shape):
        piece = plane[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        binned[y, x] = (2 * int(piece.sum()) + piece.size) // (2 * piece.size)
    return binned


def partition(rng, y0, y1, x0, x1, largest):
    """Cut a rectangle at random into ones whose sides are at most ``largest``."""
    if (y1 - y0 <= largest and x1 - x0 <= largest and rng.random() < 0.7) or (y1 - y0 == 1 and x1 - x0 == 1):
        return [(y0, y1, x0, x1)]
    if x1 - x0 == 1 or (y1 - y0 > 1 and rng.random() < 0.5):
        cut = int(rng.integers(y0 + 1, y1))
        return partition(rng, y0, cut, x0, x1, largest) + partition(rng, cut, y1, x0, x1, largest)
    cut = int(rng.integers(x0 + 1, x1))
    return partition(rng, y0, y1, x0, cut, largest) + partition(rng, y0, y1, cut, x1, largest)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("version", "model"), [("0.5", ome_zarr_models.v05.Image), ("0.4", ome_zarr_models.v04.Image)], ids=["0.5", "0.4"]
)
def test_foreign_libraries_read_pixels_and_metadata(tmp_path, version, model):
    pixels = random_pixels((2, 2, 301, 217))
    group = make_image(tmp_path / "a.zarr", version=version, attributes={"teramind": {"seed": 1}})
    with MultiscaleWriter(group) as writer:
        writer.write_block(0, 0, 0, pixels)

    validated = model.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    attributes = validated.ome_attributes if version == "0.5" else validated.attributes
    assert [axis.name for axis in attributes.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert [axis.unit for axis in attributes.multiscales[0].axes[1:]] == ["micrometer"] * 3

    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(tmp_path / "a.zarr"))()
    np.testing.assert_array_equal(np.asarray(node.data[0]), pixels)
    level = pixels
    for data in node.data[1:]:
        level = np.stack([[mean_of_what_is_there(plane) for plane in channel] for channel in level])
        np.testing.assert_array_equal(np.asarray(data), level)
    assert level.shape == (2, 2, 10, 7)
    assert node.metadata["channel_names"] == ["DAPI", "PolyT"]
    assert node.metadata["colormap"] == [[[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]
    assert node.metadata["contrast_limits"] == [[3, 200], [0, 255]]
    for number, (scale, translation) in enumerate(node.metadata["coordinateTransformations"]):
        factor = 2**number
        assert scale["scale"] == [1, 1.5, 0.108 * factor, 0.11 * factor]
        # The centre of a binned pixel is the mean of the centres of its factor x factor pixels.
        centre = np.arange(factor).mean()
        np.testing.assert_allclose(translation["translation"], [0, 3, -7 + centre * 0.108, 100.25 + centre * 0.11])
    assert zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["teramind"] == {"seed": 1}


def test_default_layout_is_the_one_viewers_read_fast(tmp_path):
    group = make_image(tmp_path / "a.zarr", (2, 3, 9000, 5000), chunk=1024, shard=4096)
    levels = open_levels(group)
    assert [level.shape for level in levels] == [
        (2, 3, 9000, 5000),
        (2, 3, 4500, 2500),
        (2, 3, 2250, 1250),
        (2, 3, 1125, 625),
        (2, 3, 563, 313),
    ]
    assert [level.shards for level in levels] == [
        (1, 1, 4096, 4096),
        (1, 1, 4096, 3072),
        (1, 1, 3072, 2048),
        (1, 1, 2048, 625),
        None,
    ]
    assert [level.chunks for level in levels][2:] == [(1, 1, 1024, 1024), (1, 1, 1024, 625), (1, 1, 563, 313)]
    assert levels[0].metadata.dimension_names == ("c", "z", "y", "x")
    old = open_levels(make_image(tmp_path / "b.zarr", (2, 3, 9000, 5000), chunk=1024, shard=4096, version="0.4"))
    assert (old[0].shards, old[0].chunks) == (None, (1, 1, 1024, 1024))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_any_partition_in_any_order_gives_the_same_store(tmp_path, version, seed):
    rng = np.random.default_rng(seed)
    shape = (2, 2, *(int(side) for side in rng.integers(1, 330, 2)))
    pixels = random_pixels(shape, seed)
    rectangles = partition(rng, 0, shape[2], 0, shape[3], 90)
    blocks = [(z, rectangle) for z in range(2) for rectangle in rectangles]
    skipped = {int(number) for number in rng.integers(0, len(blocks), len(blocks) // 3)}
    for number in skipped:
        z, (y0, y1, x0, x1) = blocks[number]
        pixels[:, z, y0:y1, x0:x1] = 0

    layout = {"shape": shape, "version": version, "chunk": 16 if version == "0.5" else 32}
    with MultiscaleWriter(make_image(tmp_path / "once.zarr", **layout), threads=1) as writer:
        writer.write_block(0, 0, 0, pixels)
    with MultiscaleWriter(make_image(tmp_path / "parts.zarr", **layout), threads=3) as writer:
        for number in rng.permutation(len(blocks)):
            z, (y0, y1, x0, x1) = blocks[number]
            if number in skipped:
                writer.skip(z, y0, x0, (1, y1 - y0, x1 - x0))
            elif rng.random() < 0.5:
                writer.write_block(z, y0, x0, pixels[:, z : z + 1, y0:y1, x0:x1])
            else:
                for c in rng.permutation(2):
                    writer.write(int(c), z, y0, x0, pixels[c, z, y0:y1, x0:x1])
        writer.flush()
        assert writer.buffered_bytes == 0
    assert files(tmp_path / "once.zarr") == files(tmp_path / "parts.zarr")


def test_shards_of_skipped_pixels_alone_are_not_stored(tmp_path):
    group = make_image(tmp_path / "a.zarr", (2, 1, 128, 192))
    with MultiscaleWriter(group) as writer:
        writer.skip(0, 0, 0, (1, 128, 128))
        writer.write_block(0, 0, 128, random_pixels((2, 1, 128, 64)))
        writer.flush()
        assert writer.peak_buffered_bytes < 2 * 128 * 192
    stored = sorted(str(path.relative_to(tmp_path / "a.zarr/0/c/0/0")) for path in tmp_path.glob("a.zarr/0/c/0/0/*/*"))
    assert stored == ["0/2", "1/2"]
    assert not group["0"][:, :, :, :128].any()


def test_memory_is_that_of_the_shards_in_flight(tmp_path):
    """Row bands of tiles: one row of shards is open at each level, whatever the height."""
    peaks = []
    for height in (256, 2048):
        group = make_image(tmp_path / f"{height}.zarr", (2, 1, height, 256))
        with MultiscaleWriter(group, threads=1) as writer:
            for y, x in itertools.product(range(0, height, 32), range(0, 256, 32)):
                writer.write_block(0, y, x, random_pixels((2, 1, 32, 32)))
        peaks.append(writer.peak_buffered_bytes)
        assert writer.buffered_bytes == 0
    a_row_of_shards = 2 * 64 * 256
    # 1/2 of the row at each level above, and at most 3 shards with the pool and its queue.
    assert peaks[1] <= 2 * a_row_of_shards + 3 * 64 * 64
    assert peaks[1] <= peaks[0] + 3 * 64 * 64


def test_every_shard_is_written_once(tmp_path, monkeypatch):
    written = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (written.append(target), replace(path, target))[1])
    pixels = random_pixels((2, 1, 301, 217))
    with MultiscaleWriter(make_image(tmp_path / "a.zarr", pixels.shape)) as writer:
        written.clear()  # zarr's own metadata files
        for y, x in itertools.product(range(0, 301, 50), range(0, 217, 50)):
            writer.write_block(0, y, x, pixels[:, :, y : y + 50, x : x + 50])
    assert (
        len(written)
        == len(set(written))
        == len(list(tmp_path.rglob("c/**/*"))) - len([path for path in tmp_path.rglob("c/**/*") if path.is_dir()])
    )
    assert writer.stored_bytes == sum(path.stat().st_size for path in written)
    assert writer.written_bytes == sum(level.size for level in open_levels(zarr.open_group(tmp_path / "a.zarr")))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((0, 0, 0, np.zeros((2, 1, 10, 10), np.uint8)), "overlap"),
        ((0, 295, 0, np.zeros((2, 1, 10, 10), np.uint8)), "outside"),
        ((-1, 0, 0, np.zeros((2, 1, 10, 10), np.uint8)), "outside"),
        ((0, 200, 0, np.zeros((1, 1, 10, 10), np.uint8)), "1 channels"),
        ((0, 200, 0, np.zeros((2, 1, 10, 10), np.float32)), "float32"),
        ((0, 64, 64, np.zeros((2, 1, 64, 64), np.uint8)), "before"),
    ],
)
def test_wrong_blocks_are_refused(tmp_path, block, message):
    writer = MultiscaleWriter(make_image(tmp_path / "a.zarr"))
    writer.write_block(0, 5, 5, np.ones((2, 1, 20, 20), np.uint8))
    writer.write_block(0, 64, 64, np.ones((2, 1, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=message):
        writer.write_block(*block)
    writer.abort()


def test_closing_with_missing_pixels_fails_and_says_where(tmp_path):
    writer = MultiscaleWriter(make_image(tmp_path / "a.zarr"))
    writer.write_block(0, 0, 0, random_pixels((2, 2, 301, 216)))
    writer.skip(0, 0, 216, (2, 300, 1))
    with pytest.raises(RuntimeError, match=r"4 of 80 shards .* channel 0, slice 0, shard row 4, column 3"):
        writer.close()


def test_an_error_inside_with_is_not_hidden_by_missing_pixels(tmp_path):
    with pytest.raises(KeyError), MultiscaleWriter(make_image(tmp_path / "a.zarr")):
        raise KeyError("mine")


def fill(path):
    """Make the next write of this file meet a full device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".partial").symlink_to("/dev/full")


@pytest.mark.parametrize("level", [0, 2])
def test_a_full_disk_surfaces_with_the_path_and_leaves_whole_shards_only(tmp_path, level):
    pixels = random_pixels((2, 2, 301, 217))
    writer = MultiscaleWriter(make_image(tmp_path / "a.zarr"), threads=2)
    path = tmp_path / "a.zarr" / str(level) / "c/1/1/0/0"
    fill(path)
    with pytest.raises(OSError, match=r"No space left on device.*bytes needed.* free") as caught:  # noqa: PT012
        writer.write_block(0, 0, 0, pixels)
        writer.flush()
    assert caught.value.filename == str(path)
    for call in (lambda: writer.write_block(0, 0, 0, pixels), writer.pending, writer.close):
        with pytest.raises(OSError, match="No space"):
            call()
    assert not list(tmp_path.rglob("*.partial"))
    assert not path.exists()
    stored = zarr.open_group(tmp_path / "a.zarr")["0"][:]
    assert np.all((stored == pixels) | (stored == 0))


def save(path, pending):
    arrays = {f"finished{number}": flags for number, flags in enumerate(pending.finished)}
    for number, shard in enumerate(pending.shards):
        empty = np.empty((0, 0), np.uint8)
        arrays[f"where{number}"] = np.array([shard.level, *shard.index])
        arrays[f"pixels{number}"] = empty if shard.pixels is None else shard.pixels
        arrays[f"filled{number}"] = shard.filled
    np.savez(path, **arrays)


def load(path):
    with np.load(path) as arrays:
        count = sum(name.startswith("where") for name in arrays)
        shards = []
        for number in range(count):
            level, *index = arrays[f"where{number}"].tolist()
            pixels = arrays[f"pixels{number}"]
            shards.append(PendingShard(level, tuple(index), pixels if pixels.size else None, arrays[f"filled{number}"]))
        return Pending([arrays[f"finished{number}"] for number in range(len(arrays) - 3 * count)], shards)


TILES = [(y, x) for y in range(0, 301, 24) for x in range(0, 217, 24)]


def put_tiles(writer, pixels, tiles):
    for y, x in tiles:
        piece = pixels[:, :, y : y + 24, x : x + 24]
        if (y + x) % 5:
            writer.write_block(0, y, x, piece)
        else:
            writer.skip(0, y, x, piece.shape[1:])


def interrupted(folder):
    """Write some tiles, save the state, write more, and die."""
    pixels = random_pixels((2, 2, 301, 217))
    writer = MultiscaleWriter(make_image(Path(folder) / "killed.zarr"))
    put_tiles(writer, pixels, TILES[:70])
    save(Path(folder) / "pending.npz", writer.pending())
    put_tiles(writer, pixels, TILES[70:110])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_resumes_to_the_same_store(tmp_path):
    code = f"import runpy; runpy.run_path({str(Path(__file__))!r})['interrupted']({str(tmp_path)!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    pixels = random_pixels((2, 2, 301, 217))
    with MultiscaleWriter(make_image(tmp_path / "whole.zarr")) as writer:
        put_tiles(writer, pixels, TILES)

    pending = load(tmp_path / "pending.npz")
    finished = pending.finished[0]
    assert 0 < finished.sum() < finished.size
    before = {
        tuple(index): (tmp_path / "killed.zarr/0/c" / "/".join(map(str, index))) for index in np.argwhere(finished)
    }
    modified = {index: path.stat().st_mtime_ns for index, path in before.items() if path.exists()}
    (tmp_path / "killed.zarr/0/c/0/0/0/9.partial").write_bytes(b"cut off")
    with MultiscaleWriter.resume(tmp_path / "killed.zarr", pending) as writer:
        with pytest.raises(ValueError, match="before"):
            writer.write_block(0, 0, 0, pixels[:, :, :1, :1])
        put_tiles(writer, pixels, TILES[70:])
    assert files(tmp_path / "killed.zarr") == files(tmp_path / "whole.zarr")
    assert modified == {index: before[index].stat().st_mtime_ns for index in modified}


def test_a_state_of_another_image_is_refused(tmp_path):
    writer = MultiscaleWriter(make_image(tmp_path / "a.zarr"))
    make_image(tmp_path / "b.zarr", (2, 1, 301, 217))
    with pytest.raises(InputError, match="does not belong"):
        MultiscaleWriter.resume(tmp_path / "b.zarr", writer.pending())
    writer.abort()


def test_several_threads_may_write(tmp_path):
    pixels = random_pixels((2, 2, 301, 217))
    with MultiscaleWriter(make_image(tmp_path / "a.zarr")) as writer:
        threads = [threading.Thread(target=put_tiles, args=(writer, pixels, TILES[part::3])) for part in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with MultiscaleWriter(make_image(tmp_path / "b.zarr")) as writer:
        put_tiles(writer, pixels, TILES)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_an_image_inside_a_larger_store(tmp_path):
    root = zarr.open_group(tmp_path / "atlas.zarr", mode="w-", zarr_format=3)
    group = root.create_group("images/one")
    make_image(group, (2, 1, 70, 30))
    pixels = random_pixels((2, 1, 70, 30))
    with MultiscaleWriter(group) as writer:
        writer.write_block(0, 0, 0, pixels)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "atlas.zarr", mode="r")["images/one/0"][:], pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "0.6"}, "'0.6' cannot be written"),
        ({"chunk": 15}, "15 px"),
        ({"shard": 40}, "do not nest"),
        ({"channels": CHANNELS[:1]}, "1 channels"),
        ({"levels": 0}, "0 levels"),
        ({"shape": (2, 1, 0, 5)}, "cannot be stored"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_image(tmp_path / "a.zarr", **options)
    assert not (tmp_path / "a.zarr").exists()


def test_wrong_channels_and_places_are_refused(tmp_path):
    with pytest.raises(InputError, match="'blue'"):
        Channel("DAPI", "blue")
    with pytest.raises(InputError, match="not ordered"):
        Channel("DAPI", "0000FF", window_start=9, window_end=9)
    make_image(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="exists already"):
        make_image(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="Zarr format 2"):
        make_image(zarr.open_group(tmp_path / "b.zarr", mode="w-", zarr_format=2))
    with pytest.raises(InputError, match="not in a local folder"):
        MultiscaleWriter(make_image(zarr.create_group(zarr.storage.MemoryStore())))
    with pytest.raises(InputError, match="no multiscales"):
        MultiscaleWriter(zarr.create_group(tmp_path / "c.zarr"))
    del zarr.open_group(tmp_path / "a.zarr")["1"]
    with pytest.raises(InputError, match="level '1', but there is no such array"):
        MultiscaleWriter(tmp_path / "a.zarr")


def test_what_an_image_says_is_read_back(tmp_path):
    for version in ("0.5", "0.4"):
        group = make_image(tmp_path / version, version=version)
        assert image_channels(group) == [CHANNELS[0], Channel("PolyT", "00FF00")]
        assert image_pixel_size(group) == PIXEL_SIZE
        assert image_translation(group) == TRANSLATION
    group.update_attributes({"omero": {"channels": [{"color": "00FF00"}, {"label": "b", "window": {"end": 9}}]}})
    assert image_channels(group) == [Channel("channel 0", "00FF00"), Channel("b", window_end=9)]
    group.update_attributes({"omero": {}})
    assert image_channels(group) == [Channel("channel 0"), Channel("channel 1")]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (131, 263), (128, 4), (300, 129)])
def test_mean_bin_is_the_rounded_mean_of_what_is_there(shape):
    plane = random_pixels(shape, 3)
    np.testing.assert_array_equal(mean_bin(plane), mean_of_what_is_there(plane))
    np.testing.assert_array_equal(mean_bin(plane[::-1, ::-1]), mean_of_what_is_there(plane[::-1, ::-1]))
    assert (mean_bin(np.full(shape, 255, np.uint8)) == 255).all()


def test_coverage_joins_neighbours_and_knows_overlaps():
    rng = np.random.default_rng(5)
    coverage, covered = Coverage(), np.zeros((37, 53), bool)
    rectangles = partition(rng, 0, 37, 0, 53, 6)
    for number in rng.permutation(len(rectangles)):
        y0, y1, x0, x1 = rectangles[number]
        coverage.add((y0, y1, x0, x1))
        covered[y0:y1, x0:x1] = True
        assert coverage.area == covered.sum()
        painted = np.zeros_like(covered, dtype=int)
        for a, b, c, d in coverage.rectangles():
            painted[a:b, c:d] += 1
        np.testing.assert_array_equal(painted, covered.astype(int))
        with pytest.raises(ValueError, match="overlap"):
            coverage.add((y0, y0 + 1, x1 - 1, x1))
    in_order = Coverage()
    for y, x in itertools.product(range(0, 36, 4), range(0, 52, 4)):
        in_order.add((y, y + 4, x, x + 4))
        assert len(in_order.rectangles()) <= 3
    assert len(in_order.rectangles()) == 1
