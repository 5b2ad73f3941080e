"""Reading the published tile files, written here as the authors' libraries write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

import teramind.atlas.tiles as tiles_module
from teramind.atlas.store import Atlas
from teramind.atlas.tiles import read_tiles
from teramind.cli import main
from teramind.errors import InputError

GENES = ["Slc17a7", "Th", "Aqp4"]
SLICES, ROWS, COLUMNS = 2, 5, 3  # tiles: more than a strip of four, and not square


def save_coo(path: Path, array: np.ndarray, *, unit: int = 1, **changed: Any) -> None:
    """Write what ``sparse.save_npz`` writes of a COO array; with unit 16 the sums of 16 x 16 px."""
    if unit > 1:
        height, width = (side // unit for side in array.shape[:2])
        array = array.reshape(height, unit, width, unit, -1).sum((1, 3))
    coords = np.array(np.nonzero(array))
    content = {"data": array[tuple(coords)], "coords": coords, "shape": np.array(array.shape), "format": "coo"}
    np.savez_compressed(path, **{**content, "fill_value": np.uint8(0), **changed})


def tile_names() -> Iterator[tuple[str, tuple[slice, slice]]]:
    """Name of every tile, and where the tile with its context lies."""
    for y in range(0, ROWS * 256, 256):
        for x in range(0, COLUMNS * 256, 256):
            top, bottom = max(y - 128, 0), min(y + 384, ROWS * 256)
            left, right = max(x - 128, 0), min(x + 384, COLUMNS * 256)
            name = "_".join(map(str, (y, y + 256, x, x + 256, top, bottom, left, right)))
            yield name, (slice(top, bottom), slice(left, right))


@pytest.fixture(scope="module")
def transcripts() -> np.ndarray:
    """(H, W, slices * genes) transcripts a pixel."""
    rng = np.random.default_rng(11)
    shape = (ROWS * 256, COLUMNS * 256, SLICES * len(GENES))
    return (rng.random(shape, dtype=np.float32) < 0.002) * rng.integers(1, 4, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def counts(transcripts: np.ndarray) -> np.ndarray:
    """(genes, slices, bin rows, bin columns): what the atlas must hold."""
    bins = transcripts.reshape(ROWS * 16, 16, COLUMNS * 16, 16, SLICES, len(GENES)).sum((1, 3), dtype=int)
    return bins.transpose(3, 2, 0, 1)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(stains * slices, H, W)."""
    return np.random.default_rng(12).integers(0, 256, (2 * SLICES, ROWS * 256, COLUMNS * 256), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, transcripts: np.ndarray) -> Path:
    (tmp_path / "gene").mkdir()
    for name, window in tile_names():
        save_coo(tmp_path / "gene" / f"{name}.npz", transcripts[window])
    return tmp_path / "gene"


@pytest.fixture
def images(tmp_path: Path, pixels: np.ndarray) -> Path:
    (tmp_path / "img").mkdir()
    for index, (name, window) in enumerate(tile_names()):
        with ZipStore(tmp_path / "img" / f"{name}.zip", mode="w") as store:
            zarr.save_array(store, pixels[:, *window], zarr_format=2 + index % 2)
    return tmp_path / "img"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "atlas.zarr"


def whole(atlas: Atlas) -> np.ndarray:
    return atlas.gene_window(0, atlas.slices, 0, atlas.shape[1], 0, atlas.shape[2])


def test_tiles_become_an_atlas(folder, output, counts):
    report = read_tiles(folder, output, genes=GENES, z_step_um=150)
    atlas = Atlas.open(output)
    assert atlas.genes == GENES
    assert atlas.shape == (SLICES, ROWS * 256, COLUMNS * 256)
    assert atlas.slice_z == [0, 150]
    assert atlas.pixel_size == 0.108
    assert not atlas.has_images
    np.testing.assert_array_equal(whole(atlas), counts)
    assert (report.tiles, report.missing_tiles) == (ROWS * COLUMNS, 0)
    assert (report.transcripts, report.counts) == (counts.sum(), np.count_nonzero(counts))
    assert "15 tiles of 2 slices" in report.as_text()


def test_tiles_that_are_binned_already(tmp_path, output, transcripts, counts):
    (tmp_path / "binned").mkdir()
    for name, window in tile_names():
        save_coo(tmp_path / "binned" / f"{name}.npz", transcripts[window], unit=16)
    read_tiles(tmp_path / "binned", output, genes=GENES)
    np.testing.assert_array_equal(whole(Atlas.open(output)), counts)


def test_image_tiles(folder, images, output, pixels, monkeypatch):
    monkeypatch.setattr(tiles_module, "PLANES_AT_ONCE", 3)
    report = read_tiles(folder, output, genes=GENES, images=images)
    atlas = Atlas.open(output)
    assert atlas.stains == ["DAPI", "PolyT"]
    assert atlas.scaling == {"DAPI": (0, 255), "PolyT": (0, 255)}
    expected = pixels.reshape(2, SLICES, *pixels.shape[1:])
    np.testing.assert_array_equal(atlas.image_window(0, SLICES, 0, ROWS * 256, 0, COLUMNS * 256), expected)
    assert (report.image_tiles, report.missing_image_tiles) == (ROWS * COLUMNS, 0)


def test_missing_tiles_are_empty_and_reported(folder, images, output, counts, pixels):
    names = [name for name, _ in tile_names()]
    for name in (names[0], names[7], names[-1]):
        (folder / f"{name}.npz").unlink()
    (images / f"{names[4]}.zip").unlink()
    report = read_tiles(folder, output, genes=GENES, images=images)
    atlas = Atlas.open(output)
    expected, shown = counts.copy(), pixels.reshape(2, SLICES, *pixels.shape[1:]).copy()
    for index in (0, 7, 14):
        row, column = divmod(index, COLUMNS)
        expected[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0
    shown[:, :, 256:512, 256:512] = 0
    np.testing.assert_array_equal(whole(atlas), expected)
    np.testing.assert_array_equal(atlas.image_window(0, SLICES, 0, ROWS * 256, 0, COLUMNS * 256), shown)
    assert (report.missing_tiles, report.missing_image_tiles) == (3, 1)
    assert "3 tiles missing" in report.as_text()
    assert atlas.provenance["missing_tiles"] == 3


def test_a_region_far_from_the_origin_keeps_its_place(tmp_path, output):
    (tmp_path / "far").mkdir()
    dense = np.zeros((512, 512, 3), dtype=np.uint8)
    dense[128, 128, 1], dense[383, 383, 2] = 5, 6
    dense[127, 200, 0], dense[384, 200, 0], dense[200, 127, 0], dense[200, 384, 0] = 1, 2, 3, 4  # context
    save_coo(tmp_path / "far" / "38400_38656_20480_20736_38272_38784_20352_20864.npz", dense)
    report = read_tiles(tmp_path / "far", output, genes=GENES)
    atlas = Atlas.open(output)
    assert atlas.shape == (1, 38656, 20736)
    window = atlas.gene_window(0, 1, 38400, 38656, 20480, 20736)
    assert (window[1, 0, 0, 0], window[2, 0, 15, 15]) == (5, 6)
    assert report.transcripts == window.sum() == 11
    assert report.missing_tiles == 0


def test_one_strip_is_in_memory_at_a_time(folder, output, monkeypatch):
    """Tiles are read strip by strip: none of the second before the first is written."""
    events = []
    read, append = tiles_module.read_counts, tiles_module.AtlasWriter.append_counts

    def noted_append(writer, index, matrix):
        events.append("write")
        append(writer, index, matrix)

    monkeypatch.setattr(tiles_module, "read_counts", lambda tile: events.append(tile.row // 4) or read(tile))
    monkeypatch.setattr(tiles_module.AtlasWriter, "append_counts", noted_append)
    read_tiles(folder, output, genes=GENES)
    assert events == [0] + [0] * 4 * COLUMNS + ["write"] * SLICES + [1] * COLUMNS + ["write"] * SLICES


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for index in range(len(data) // 3, len(data) // 3 + 40):
        data[index] ^= 0xFF
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, garble, empty])
def test_a_damaged_gene_tile_is_named(folder, output, damage):
    victim = sorted(folder.iterdir())[8]
    damage(victim)
    with pytest.raises(InputError, match=f"{victim.name} cannot be read as a tile"):
        read_tiles(folder, output, genes=GENES)
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_damaged_image_tile_is_named(folder, images, output, damage):
    victim = sorted(images.iterdir())[3]
    damage(victim)
    with pytest.raises(InputError, match=f"{victim.name} cannot be read as a tile"):
        read_tiles(folder, output, genes=GENES, images=images)
    assert not list(output.parent.iterdir())


TILE = "0_256_256_512_0_384_128_640"  # with 384 x 512 px


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"coords": np.array([[0], [0], [6]])}, "outside its shape"),
        ({"coords": np.array([[-1], [0], [0]])}, "negative"),
        ({"coords": np.array([[0.5], [0], [0]])}, "no whole number"),
        ({"data": np.array([0.5])}, "no whole number"),
        ({"data": np.array([-1])}, "negative"),
        ({"fill_value": np.uint8(1)}, "not 0"),
        ({"shape": np.array([384, 512])}, "its arrays are"),
        ({"shape": np.array([512, 512, 6])}, "512 x 512, and its name says 384 x 512"),
        ({"coords": np.array([[1, 2], [0, 0], [0, 0]])}, "its arrays are"),
        ({"data": np.array([object()], dtype=object)}, "allow_pickle"),
    ],
)
def test_a_gene_tile_of_another_kind_is_refused(tmp_path, output, changed, words):
    content = {"data": np.array([1]), "coords": np.zeros((3, 1), int), "shape": np.array([384, 512, 6])}
    np.savez(tmp_path / f"{TILE}.npz", **{**content, "fill_value": np.uint8(0), **changed})
    with pytest.raises(InputError, match=words):
        read_tiles(tmp_path, output, genes=GENES)


def test_another_archive_is_refused(tmp_path, output):
    np.savez(tmp_path / f"{TILE}.npz", indptr=np.zeros(3), indices=np.zeros(3))
    with pytest.raises(InputError, match="holds indptr, indices and not data, coords, shape"):
        read_tiles(tmp_path, output, genes=GENES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("notes", "not named like a tile"),
        ("0_256_0_256_0_384_0", "not named like a tile"),
        ("16_272_0_256_0_400_0_384", "not on the grid of 256"),
        ("0_512_0_256_0_640_0_384", "not on the grid of 256"),
        ("256_512_0_256_384_640_0_384", "context that is not around"),
        ("256_512_0_256_130_640_0_384", "context that is not around"),
        ("0_256_0_256_0_384_0_400", "overlap, they are the same tile"),
    ],
)
def test_misnamed_tiles_are_refused(folder, output, name, words):
    save_coo(folder / f"{name}.npz", np.zeros((384, 384, 6), np.uint8))
    with pytest.raises(InputError, match=words):
        read_tiles(folder, output, genes=GENES)


def test_tiles_of_two_data_sets_are_refused(folder, output):
    other = folder / "256_512_256_512_128_640_128_640.npz"
    save_coo(other, np.zeros((512, 512, 9), np.uint8))
    with pytest.raises(InputError, match=f"{other.name} is 9 long, and 6 in the first"):
        read_tiles(folder, output, genes=GENES)


def test_images_of_other_slices_are_refused(folder, images, output):
    victim = images / f"{TILE}.zip"
    victim.unlink()
    with ZipStore(victim, mode="w") as store:
        zarr.save_array(store, np.zeros((2 * SLICES + 2, 384, 512), np.uint8), zarr_format=2)
    with pytest.raises(InputError, match=f"{victim.name} is uint8 \\(6, 384, 512\\)"):
        read_tiles(folder, output, genes=GENES, images=images)


def test_a_count_beyond_uint16_is_refused(tmp_path, output):
    dense = np.zeros((384, 384, 3), dtype=np.uint16)
    dense[0, :2, 1] = 40000
    save_coo(tmp_path / "0_256_0_256_0_384_0_384.npz", dense)
    with pytest.raises(InputError, match="80000 transcripts of one gene"):
        read_tiles(tmp_path, output, genes=GENES)


def test_a_gene_list_that_does_not_fit_is_refused(folder, output):
    with pytest.raises(InputError, match="6 long, which is no number of slices of 4 genes"):
        read_tiles(folder, output, genes=[*GENES, "Cldn5"])


def test_folders_without_tiles_are_refused(tmp_path, folder, output):
    with pytest.raises(InputError, match="no folder"):
        read_tiles(tmp_path / "missing", output, genes=GENES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no tile file \*\.zip"):
        read_tiles(folder, output, genes=GENES, images=tmp_path / "empty")


def test_the_command_is_the_function(folder, images, output, tmp_path, capsys):
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    options = {"--genes": tmp_path / "genes.txt", "--images": images, "--output": output}
    words = ["ingest", "tiles", str(folder), *(str(word) for option in options.items() for word in option)]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("15 tiles of 2 slices")
    by_function = output.with_name("function.zarr")
    read_tiles(folder, by_function, genes=GENES, images=images)
    assert Atlas.open(output).fingerprint == Atlas.open(by_function).fingerprint
    assert Atlas.open(output).slice_z == Atlas.open(by_function).slice_z == [0, 200]
