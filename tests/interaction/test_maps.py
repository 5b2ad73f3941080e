"""Maps of an atlas: the same in whatever tiles, at their place, and kept when a run is killed."""

import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pytest
import zarr

from teramind import InputError, save_checkpoint
from teramind.errors import Interrupted
from teramind.interaction import maps as maps_module
from teramind.interaction import store as store_module
from teramind.interaction.attention import interaction_maps
from teramind.interaction.image import MapImage
from teramind.interaction.maps import MapSource, write_maps
from teramind.interaction.statistics import pathway_statistics
from teramind.interaction.store import MapStore
from teramind.ngff import image_channels, image_pixel_size, image_translation, open_levels

ASKED = ["Th", "Slc17a7"]
BINS = (15, 10)  # of 230 x 150 px


@pytest.fixture
def source(atlas_path, checkpoint_path):
    return MapSource(atlas_path, checkpoint_path, ASKED)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks and tiles, the last ones cut, none of them whole patches but by their grid."""
    monkeypatch.setattr(maps_module, "TILE", 4)
    monkeypatch.setattr(store_module, "BLOCK", 8)


def channels(path):
    return np.asarray(open_levels(zarr.open_group(path, mode="r"))[0])


def expected_maps(source):
    """Every window in one go."""
    patch = source.job.config.patch_bins
    margin = patch // 2
    height, width = (-(-side // patch) * patch for side in BINS)
    parts = []
    for window, _ in enumerate(source.job.windows):
        counts = source.counts(window, (-margin, height + margin, -margin, width + margin))
        maps = interaction_maps(source.net, counts, source.genes)
        parts.append(maps[..., margin : margin + BINS[0], margin : margin + BINS[1]])
    return np.concatenate(parts, axis=2)[:, :, :3]  # four slices for an atlas of three


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("held", [0, 1 << 20])
def test_maps_are_those_of_the_whole_atlas_at_once(tmp_path, source, counts, monkeypatch, held):
    """Whether a block waits in memory or in a file."""
    monkeypatch.setattr(store_module, "HELD", held)
    expected = expected_maps(source)
    report = write_maps(source, tmp_path / "maps.ome.zarr")
    written = channels(tmp_path / "maps.ome.zarr").reshape(4, 3, 3, *BINS)
    # Batches of other sizes sum in another order.
    np.testing.assert_allclose(written[:, 1:], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(written[:, 0], expected.sum(axis=1), rtol=1e-5, atol=1e-7)
    assert np.array_equal(written[3, 1], counts[..., 2])
    assert report.bins == 3 * BINS[0] * BINS[1]
    assert report.bins_per_second > 0


@pytest.mark.usefixtures("small_blocks")
def test_a_region_is_the_crop_of_the_whole(tmp_path, atlas_path, checkpoint_path, source):
    write_maps(source, tmp_path / "whole.ome.zarr")
    part = MapSource(atlas_path, checkpoint_path, ASKED, roi="70:120,30:60", slices="1:3")
    write_maps(part, tmp_path / "part.ome.zarr")
    # Grown to the patch grid of 32 px: bins 4:8, 0:4.
    whole, crop = channels(tmp_path / "whole.ome.zarr"), channels(tmp_path / "part.ome.zarr")
    np.testing.assert_allclose(crop, whole[:, 1:3, 4:8, 0:4], rtol=1e-5, atol=1e-7)
    z, y, x = image_translation(zarr.open_group(tmp_path / "part.ome.zarr", mode="r"))
    assert (z, y, x) == pytest.approx((15, (64 + 7.5) * 0.2, 7.5 * 0.2))


def test_the_image_opens_elsewhere_and_lies_on_the_bins(tmp_path, source):
    path = tmp_path / "maps.ome.zarr"
    write_maps(source, path)
    [node] = ome_zarr.reader.Reader(ome_zarr.io.parse_url(path))()
    names = ["sum", *ASKED]
    assert node.metadata["channel_names"] == [
        f"{what} {name}" for what in ("lower", "upper", "window", "expression") for name in names
    ]
    assert node.metadata["visible"] == [name == "window sum" for name in node.metadata["channel_names"]]
    assert node.data[0].dtype == np.float32
    group = zarr.open_group(path, mode="r")
    assert image_pixel_size(group) == pytest.approx((5, 3.2, 3.2))
    # The first bin covers px 0..15, whose centres lie at 0 and 15 px.
    assert image_translation(group) == pytest.approx((10, 1.5, 1.5))
    brightest = image_channels(group)[names.index("sum") + 6].window_end
    assert 0 < brightest <= channels(path)[6].max()


def test_one_gene_has_no_sum(tmp_path, atlas_path, checkpoint_path):
    write_maps(MapSource(atlas_path, checkpoint_path, ["Th"]), tmp_path / "maps.ome.zarr")
    names = [channel.name for channel in image_channels(zarr.open_group(tmp_path / "maps.ome.zarr", mode="r"))]
    assert names == ["lower Th", "upper Th", "window Th", "expression Th"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("after", [1, 5])
def test_a_stopped_run_goes_on(tmp_path, source, monkeypatch, after):
    write_maps(source, tmp_path / "whole.ome.zarr")
    path, written = tmp_path / "maps.ome.zarr", []
    write = MapStore.write

    def write_and_stop(self, block, z, values):
        write(self, block, z, values)
        written.append(block)
        if len(written) == after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MapStore, "write", write_and_stop)
    with pytest.raises(Interrupted, match="--resume goes on"):
        write_maps(source, path)
    with (path / ".teramind/blocks-done.txt").open("a") as journal:
        journal.write("1 2")  # as a crash would leave it
    write_maps(source, path, resume=True)
    assert len(written) == len(set(written)) == 2 * 2 * 2
    assert np.array_equal(channels(path), channels(tmp_path / "whole.ome.zarr"))
    assert not (path / ".teramind").exists()
    assert write_maps(source, path, resume=True).bins == 0


DIES = """
import os, signal, sys
from pathlib import Path
from teramind.interaction import maps, store
atlas, checkpoint, output, noted, at = sys.argv[1:]
maps.TILE, store.BLOCK = 4, 8
append = store.append_line
lines = []
def append_or_die(path, line):
    lines.append(line)
    if noted == "after":
        append(path, line)
    if len(lines) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    if noted == "before":
        append(path, line)
store.append_line = append_or_die
maps.write_maps(maps.MapSource(atlas, checkpoint, ["Th", "Slc17a7"]), Path(output), resume=True)
"""


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_run_goes_on(tmp_path, source, atlas_path, checkpoint_path):
    """SIGKILL: when a block's data are on the disk and not noted as done, then when another is noted."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    path = tmp_path / "maps.ome.zarr"
    for noted, at, done in (("before", 3, 2), ("after", 2, 4)):
        words = [sys.executable, "-c", DIES, atlas_path, checkpoint_path, path, noted, str(at)]
        killed = subprocess.run(words, check=False, env=environment, stderr=subprocess.DEVNULL)
        assert killed.returncode == -signal.SIGKILL
        assert len(MapStore(path).done) == done
    report = write_maps(source, path, resume=True)
    write_maps(source, tmp_path / "whole.ome.zarr")
    assert 0 < report.bins < 3 * BINS[0] * BINS[1]
    assert np.array_equal(channels(path), channels(tmp_path / "whole.ome.zarr"))


def test_memory_does_not_grow_with_the_atlas(tmp_path, make_atlas, checkpoint_path, monkeypatch):
    """Blocks of 16 bins; an atlas six times as long, with 0.2 MB more of maps, takes as much as a short one."""
    monkeypatch.setattr(maps_module, "TILE", 16)
    monkeypatch.setattr(store_module, "BLOCK", 16)
    peaks = []
    for name, height in (("first", 16), ("short", 32), ("long", 192)):  # the first one pays for what is set up once
        counts = np.random.default_rng(6).poisson(0.5, (2, height, 16, 5))
        made = make_atlas(tmp_path / f"{name}.zarr", counts, 16 * height, 256)
        source = MapSource(made, checkpoint_path, ASKED)
        tracemalloc.start()
        write_maps(source, tmp_path / f"{name}.ome.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 100_000


def test_memory_does_not_grow_with_the_genes(tmp_path, make_atlas, make_network, monkeypatch):
    """Maps and statistics of 32 genes, whose block takes 4.3 MB, take as much memory as those of 2."""
    monkeypatch.setattr(store_module, "HELD", 100_000)
    monkeypatch.setattr(maps_module, "TILE_BYTES", 400_000)
    genes = [f"g{number}" for number in range(32)]
    atlas = make_atlas(
        tmp_path / "atlas.zarr", np.random.default_rng(7).poisson(0.05, (2, 64, 64, 32)), 1024, 1024, genes=genes
    )
    save_checkpoint(tmp_path / "net.safetensors", make_network(genes=32), genes=genes)
    peaks = []
    for name, asked in (("first", 2), ("few", 2), ("many", 32)):  # the first one pays for what is set up once
        source = MapSource(atlas, tmp_path / "net.safetensors", genes[:asked])
        tracemalloc.start()
        write_maps(source, tmp_path / f"{name}.ome.zarr")
        pathway_statistics(MapImage(tmp_path / f"{name}.ome.zarr"), drawn=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 1_000_000


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_cannot_be_written_is_not_taken_for_done(tmp_path, source, monkeypatch):
    path = tmp_path / "maps.ome.zarr"
    with monkeypatch.context() as fault:
        fault.setattr(store_module, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_maps(source, path)
    assert MapStore(path).done == set()
    write_maps(source, path, resume=True)
    write_maps(source, tmp_path / "whole.ome.zarr")
    assert np.array_equal(channels(path), channels(tmp_path / "whole.ome.zarr"))


def test_only_the_same_run_goes_on(tmp_path, atlas_path, checkpoint_path, source):
    path = tmp_path / "maps.ome.zarr"
    write_maps(source, path)
    with pytest.raises(InputError, match="exists already"):
        write_maps(source, path)
    other = MapSource(atlas_path, checkpoint_path, ["Th"])
    with pytest.raises(InputError, match="begun with another value of asked"):
        write_maps(other, path, resume=True)
    with pytest.raises(InputError, match="choose either --resume or --overwrite"):
        write_maps(other, path, resume=True, overwrite=True)
    write_maps(other, path, overwrite=True)
    assert channels(path).shape[0] == 4


def test_what_cannot_be_mapped_is_one_sentence(tmp_path, atlas_path, checkpoint_path, make_network):
    with pytest.raises(InputError, match=r"lacks Slc17a8; similar are Slc17a7, Slc17a6"):
        MapSource(atlas_path, checkpoint_path, ["Slc17a8"])
    net = make_network(gene_slices=1)
    save_checkpoint(tmp_path / "flat.safetensors", net)
    with pytest.raises(InputError, match="gene_slices=4; this one has 1"):
        MapSource(atlas_path, tmp_path / "flat.safetensors", ["Th"])
