"""Generation as a whole: the properties that a user relies on."""

import json
import re

import numpy as np
import pytest
import torch
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from teramind import Atlas, InputError, generate, load_checkpoint, noise_field, sample, save_checkpoint
from teramind.diffusion.upstream_noise import tile_seed

STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, atlas_path, checkpoint_path):
    """Generate once per set of options; the voxels of level 0."""
    cache = {}

    def generated(**options):
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in cache:
            path = tmp_path_factory.mktemp("output") / "image.ome.zarr"
            generate(atlas_path, checkpoint_path, path, **({"steps": STEPS, "tile": 64} | options))
            cache[key] = np.asarray(zarr.open_group(path, mode="r")["0"])
        return cache[key]

    return generated


def test_equal_to_sampling_in_memory(run, atlas_path, checkpoint_path):
    """Every window of the streamed run is what ``sample`` makes of the whole plane."""
    voxels = run(state_dtype="float32")
    net, _ = load_checkpoint(checkpoint_path)
    atlas = Atlas.open(atlas_path)
    for start in (0, 2):
        genes = atlas.gene_window(start - 1, start + 3, -16, 176, -16, 272)
        volume = sample(net, genes, noise=noise_field(0, start, 0, 0, (2, 2, 160, 256)), steps=STEPS)
        expected = ((volume + 1) * 127.5).round().clamp(0, 255)[:, : 3 - start, :150, :230]
        difference = np.abs(voxels[:, start : start + 2].astype(int) - expected.numpy().astype(int))
        assert difference.max() <= 1  # the last bit of float32 may round the other way
        assert (difference > 0).mean() < 1e-3
    assert 20 < voxels.std() < 120  # neither empty nor all clipped


@pytest.mark.parametrize(("tile", "state_dtype"), [(32, "float16"), (96, "float16"), (96, "float32"), (256, "float32")])
def test_any_tiling_gives_the_same_voxels(run, tile, state_dtype):
    """Within one grey level: other batches of patches may round the last bit of float32 differently."""
    expected = run(state_dtype=state_dtype)[:, :2].astype(int)
    assert np.abs(run(tile=tile, state_dtype=state_dtype, slices="0:2").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("roi", ["40:100,100:140", "0:150,200:230", "96:97,0:1"])
def test_a_region_with_exact_border_is_the_crop_of_the_whole(run, roi):
    whole = run()[:, 2:].astype(int)
    (y0, y1), (x0, x1) = (map(int, part.split(":")) for part in roi.split(","))
    y0, x0, y1, x1 = y0 // 32 * 32, x0 // 32 * 32, min(150, -(-y1 // 32) * 32), min(230, -(-x1 // 32) * 32)
    region = run(roi=roi, slices="2:3").astype(int)
    assert region.shape == (2, 1, y1 - y0, x1 - x0)
    assert np.abs(region - whole[:, :, y0:y1, x0:x1]).max() <= 1


def test_a_region_with_constant_border_is_another_image(run):
    """The network sees -1 beyond it, as the reference's does."""
    place = {"roi": "32:96,64:160", "slices": "2:3"}
    exact, constant = run(**place), run(**place, border="constant")
    assert constant.shape == exact.shape
    assert (constant != exact).mean() > 0.01


def test_seeds(run, tmp_path, atlas_path, checkpoint_path):
    again = tmp_path / "again.ome.zarr"
    generate(atlas_path, checkpoint_path, again, steps=STEPS, tile=64, slices="2:3")
    assert np.array_equal(np.asarray(zarr.open_group(again, mode="r")["0"]), run()[:, 2:])
    assert (run(seed=1, slices="2:3") != run()[:, 2:]).mean() > 0.5


@pytest.mark.parametrize("slices", ["1:2", (2, 3)])
def test_slices_are_those_of_the_whole(run, slices):
    first, end = map(int, slices.split(":")) if isinstance(slices, str) else slices
    assert np.array_equal(run(slices=slices), run()[:, first:end])


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(run, workers):
    assert np.array_equal(run(workers=workers), run())


def test_a_spilled_run_gives_the_same_voxels(tmp_path, checkpoint_path, write_atlas):
    """With the least memory that is accepted, most state goes through the scratch file."""
    atlas = write_atlas(tmp_path / "long.zarr", slices=2, height=120, width=700)
    options = {"steps": STEPS, "tile": 128, "overwrite": True}
    with pytest.raises(InputError, match="are needed: give --memory") as error:
        generate(atlas, checkpoint_path, tmp_path / "a.ome.zarr", memory=1000, **options)
    least = int(re.search(r"([\d,]+) are needed", str(error.value))[1].replace(",", ""))
    tight = generate(atlas, checkpoint_path, tmp_path / "a.ome.zarr", memory=least, **options)
    ample = generate(atlas, checkpoint_path, tmp_path / "b.ome.zarr", **options)
    assert tight.spilled_bytes > 0
    assert tight.scratch_read_bytes > 0
    assert tight.peak_state_bytes <= least
    assert ample.spilled_bytes == 0
    voxels = [np.asarray(zarr.open_group(tmp_path / name, mode="r")["0"]) for name in ("a.ome.zarr", "b.ome.zarr")]
    assert np.array_equal(*voxels)


def test_reference_noise(run, atlas_path, checkpoint_path):
    """Each 256-px tile's field is torch's, seeded by the reference's formula, stain-major over all slices."""
    generator = torch.Generator().manual_seed(tile_seed(0, 0))
    drawn = torch.randn((256, 256, 2 * 3), generator=generator).reshape(256, 256, 2, 3).permute(2, 3, 0, 1)
    net, _ = load_checkpoint(checkpoint_path)
    genes = Atlas.open(atlas_path).gene_window(-1, 3, -16, 176, -16, 272)
    volume = sample(net, genes, noise=drawn[:, :2, :160, :256], steps=STEPS)
    expected = ((volume + 1) * 127.5).round().clamp(0, 255)[..., :150, :230].numpy().astype(int)
    voxels = run(noise="tile", state_dtype="float32", slices="0:2").astype(int)
    assert np.abs(voxels - expected).max() <= 1


def test_quantisation(run):
    rounded, truncated = run()[:, 2:].astype(int), run(quantise="truncate", slices="2:3").astype(int)
    assert set(np.unique(rounded - truncated)) == {0, 1}


def test_half_precision_is_close(run):
    """bfloat16 keeps 8 bits; over the steps that comes to a few grey levels."""
    difference = np.abs(run(dtype="bfloat16", slices="2:3").astype(int) - run()[:, 2:].astype(int))
    assert 0 < difference.mean() < 2


def test_the_output_is_a_place_in_the_atlas(tmp_path, atlas_path, checkpoint_path):
    """Read back by ome-zarr-py: names, micrometres, translation."""
    path = tmp_path / "region.ome.zarr"
    report = generate(atlas_path, checkpoint_path, path, steps=2, roi="64:96,32:64", slices="1:3")
    [node] = Reader(parse_url(path))()
    assert node.data[0].shape == (2, 2, 32, 32)
    assert node.metadata["channel_names"] == ["DAPI", "PolyT"]
    scale, translation = node.metadata["coordinateTransformations"][0]
    assert scale["scale"] == pytest.approx([1, 10, 0.108, 0.108])
    assert translation["translation"] == pytest.approx([0, 10, 64 * 0.108, 32 * 0.108])
    about = zarr.open_group(path, mode="r").attrs["teramind"]
    assert about["complete"] is True
    assert about["parameters"]["region"] == "64:96,32:64"
    assert json.loads((path / "teramind-report.json").read_text())["voxels"] == report.voxels == 2 * 2 * 32 * 32
    assert sorted(entry.name for entry in path.iterdir()) == ["0", "preview.png", "teramind-report.json", "zarr.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 40}, "32 or 64"),
        ({"steps": 45}, "44 and 46"),
        ({"roi": "0:999,0:10"}, "0:150"),
        ({"slices": "2:9"}, "0:3"),
        ({"border": "mirror"}, "'mirror'"),
        ({"device": "cuda:7"}, "no device cuda:7"),
        ({"device": "tpu"}, "names no device"),
        ({"dtype": "int8"}, "'int8'"),
        ({"noise": "pink"}, "'pink'"),
        ({"memory": "3 apples"}, "no amount of memory"),
        ({"memory": "10K"}, "give --memory"),
        ({"workers": 0}, "0 workers"),
        ({"seed": -1}, "-1"),
        ({"genes": ["a", "b", "x"]}, "lacks 1"),
    ],
)
def test_options_that_cannot_be_leave_nothing_behind(tmp_path, atlas_path, checkpoint_path, options, message):
    with pytest.raises(InputError, match=message):
        generate(atlas_path, checkpoint_path, tmp_path / "x.ome.zarr", **options)
    assert not [*tmp_path.iterdir()]


def test_pixel_sizes_have_to_agree(tmp_path, atlas_path, checkpoint_path):
    save_checkpoint(tmp_path / "m.safetensors", load_checkpoint(checkpoint_path)[0], pixel_size=0.2)
    with pytest.raises(InputError, match=r"0\.2 um/px and the atlas has 0\.108"):
        generate(atlas_path, tmp_path / "m.safetensors", tmp_path / "x.ome.zarr")
