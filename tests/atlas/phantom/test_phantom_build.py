"""A phantom on disk: an atlas store, and a MERSCOPE folder that is ingested."""

import numpy as np
import pytest
import tifffile

from teramind.atlas.merscope import read_merscope
from teramind.atlas.phantom import Phantom, build
from teramind.atlas.phantom import phantom as phantom_module
from teramind.atlas.phantom.build import RAW_RANGES, build_phantom
from teramind.atlas.phantom.merscope import write_merscope
from teramind.atlas.store import Atlas
from teramind.cli import main
from teramind.errors import InputError

# Odd, and with tiles of 256 px more than one of them.
SHAPE = (393, 267)
BINS = (25, 17)
WINDOW = (0, 2, 0, 400, 0, 272)

pytestmark = pytest.mark.usefixtures("small_tiles")


def small(**changed):
    return Phantom(**{"seed": 7, "size": SHAPE, "slices": 2, "pixel_size": 0.5, **changed})


def counts_of(brain, z):
    x, y, gene = brain.transcripts(z, 0, SHAPE[0], 0, SHAPE[1])
    counts = np.zeros((len(brain.genes), *BINS), dtype=int)
    np.add.at(counts, (gene, (y // 16).astype(int), (x // 16).astype(int)), 1)
    return counts


@pytest.fixture
def atlas(tmp_path):
    return build_phantom(small(), tmp_path / "phantom.zarr")


def test_the_store_holds_the_phantom(atlas):
    brain = small()
    assert atlas.genes == brain.genes
    assert atlas.stains == ["DAPI", "PolyT"]
    assert (atlas.shape, atlas.pixel_size, atlas.slice_z) == ((2, *SHAPE), 0.5, [0.0, 10.0])
    np.testing.assert_array_equal(atlas.image_window(*WINDOW), brain.image_window(*WINDOW))
    np.testing.assert_array_equal(atlas.region_window(*WINDOW), brain.region_window(*WINDOW))
    assert atlas.region_names == brain.region_names
    for z in range(2):
        found = atlas.gene_window(z, z + 1, *WINDOW[2:])[:, 0]
        np.testing.assert_array_equal(found, counts_of(brain, z))
        assert found.sum() > 1000


def test_equal_arguments_give_equal_fingerprints(atlas, tmp_path):
    again = build_phantom(small(), tmp_path / "again.zarr")
    assert again.fingerprint == atlas.fingerprint
    redrawn = build_phantom(small(morphology_seed=8), tmp_path / "redrawn.zarr")
    assert redrawn.metadata.content["counts"] == atlas.metadata.content["counts"]
    assert redrawn.metadata.content["images"] != atlas.metadata.content["images"]
    assert (
        build_phantom(small(seed=8), tmp_path / "other.zarr").metadata.content["counts"]
        != (atlas.metadata.content["counts"])
    )


def test_no_more_than_a_shard_and_a_strip_is_in_memory(monkeypatch):
    """The peak memory of whole builds is measured in bench/phantom.py."""
    monkeypatch.setattr(build, "SHARD", 256)
    brain = small(size=(2100, 300), slices=1)
    assert [counts.shape[0] for counts in build._strips(brain, 0)] == [64 * 19, 64 * 19, 4 * 19]
    places = set()
    for index, y0, x0, pixels in build._shards(brain):
        assert pixels.shape == (2, min(256, 2100 - y0), min(256, 300 - x0))
        assert len(brain._contents) <= phantom_module.KEPT_TILES
        places.add((index, y0, x0))
    assert len(places) == 9 * 2


def test_an_ingested_merscope_folder_is_the_phantom(atlas, tmp_path):
    write_merscope(small(), tmp_path / "region_0")
    report = read_merscope(
        [tmp_path / "region_0"],
        tmp_path / "ingested.zarr",
        stains=["DAPI", "PolyT"],
        z_planes=True,
        z_step_um=10.0,
        scale=RAW_RANGES,
    )
    ingested = Atlas.open(tmp_path / "ingested.zarr")
    assert report.kept.sum() == sum(atlas.metadata.slice_transcripts)
    assert ingested.shape == atlas.shape
    assert ingested.pixel_size == pytest.approx(0.5)
    np.testing.assert_array_equal(ingested.image_window(*WINDOW), atlas.image_window(*WINDOW))
    order = [atlas.genes.index(name) for name in ingested.genes]
    missing = set(range(len(atlas.genes))) - set(order)
    expected = atlas.gene_window(*WINDOW)
    np.testing.assert_array_equal(ingested.gene_window(*WINDOW), expected[order])
    assert not expected[sorted(missing)].any()


def test_mosaics_are_16_bit_and_whole_steps_a_grey_level(tmp_path):
    write_merscope(small(slices=1), tmp_path / "region_0")
    mosaic = tifffile.imread(tmp_path / "region_0" / "images" / "mosaic_DAPI_z0.tif")
    assert (mosaic.dtype, mosaic.shape) == (np.uint16, SHAPE)
    pixels = small(slices=1).image_window(0, 1, 0, SHAPE[0], 0, SHAPE[1])[0, 0]
    np.testing.assert_array_equal((mosaic.astype(int) - 200) / 40, pixels)


def test_mosaics_have_their_place_on_the_disk_before_they_are_filled(tmp_path, monkeypatch):
    """A write into a mapped file beyond a full disk would kill the process without a word."""
    drawn, taken = Phantom.image_window, []

    def image_window(brain, *window):
        for path in tmp_path.rglob("mosaic_*.tif"):
            taken.append(path.stat().st_blocks * 512 >= path.stat().st_size)
        return drawn(brain, *window)

    monkeypatch.setattr(Phantom, "image_window", image_window)
    write_merscope(small(slices=1), tmp_path / "region_0")
    assert taken == [True, True]  # one a stain


def test_a_full_disk_leaves_no_folder_and_is_said(tmp_path, small_files_only):
    with small_files_only(100_000), pytest.raises(OSError, match=r"too large.*region_0"):
        write_merscope(small(slices=1), tmp_path / "region_0")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path):
    (tmp_path / "region_0").mkdir()
    with pytest.raises(InputError, match="is there already"):
        write_merscope(small(), tmp_path / "region_0")


def test_command(tmp_path, capsys):
    words = ["phantom", "--output", str(tmp_path / "a.zarr"), "--size", "393", "267", "--slices", "2", "--seed", "7"]
    words += ["--pixel-size", "0.5", "--merscope", str(tmp_path / "region_0")]
    assert main(words) == 0
    assert "2 slices of 393 x 267 px of 0.5 um" in capsys.readouterr().out
    assert Atlas.open(tmp_path / "a.zarr").fingerprint == build_phantom(small(), tmp_path / "b.zarr").fingerprint
    assert (tmp_path / "region_0" / "detected_transcripts.csv").is_file()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words[:3], "--size", "1", "2", "3"]) == 2
    assert "not 3 numbers" in capsys.readouterr().err
