"""Crops: where they lie, what is in them, and that their number alone decides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from teramind import Atlas, InputError, ModelConfig
from teramind.diffusion.schedule import TRAINING_STEPS
from teramind.engine.frame import Window
from teramind.engine.panel import match_genes
from teramind.engine.plan import Rectangle
from teramind.train.crops import Area, Crop, Crops, Stream, areas_of, stack
from teramind.train.loading import share
from teramind.train.volumes import MemoryVolume, StoredVolume, check_alike, open_volumes, panel_of


def config(gene_slices=1, genes=3, patch_size=32):
    return ModelConfig(patch_size=patch_size, genes=genes, gene_slices=gene_slices, base_channels=6)


def volume_of(atlas, kind=MemoryVolume, genes=None):
    genes = genes or atlas.genes
    return kind(atlas, match_genes(genes, len(genes), atlas.genes))


def crops_of(path, gene_slices=1, kind=MemoryVolume, region=2, stream=Stream.TRAINING, **more):
    atlas = Atlas.open(path)
    area, held_out = areas_of(volume_of(atlas, kind), atlas.shape, config(gene_slices), **more)
    area = held_out if stream == Stream.HELD_OUT else area
    return Crops([area], config(gene_slices), seed=7, stream=stream, region=region)


@pytest.mark.parametrize("region", [2, 3, 5])
@pytest.mark.parametrize(("gene_slices", "slices"), [(1, 1), (1, 3), (4, 1), (4, 5), (8, 7)])
def test_image_and_genes_stay_aligned(tmp_path, write_atlas, gene_slices, slices, region):
    """In every turn and flip, each 16 x 16 block of pixels is the count of its gene in its bin."""
    crops = crops_of(write_atlas(tmp_path / "atlas.zarr", slices), gene_slices, region=region)
    reach, seen = crops.config.z_kernel // 2, set()
    for number in range(40):
        crop, _ = crops.draw(number)
        seen.add((crop.turns, crop.flip))
        image, inside, genes = crops.read(crop)
        blocks = image.reshape(*image.shape[:2], region * 2, 16, region * 2, 16)
        assert (blocks == blocks[:, :, :, :1, :, :1]).all()
        of_image = genes[:2, reach : reach + crops.config.slices] * 40
        assert np.array_equal(blocks[:, :, :, 0, :, 0], of_image)
        assert image.any()
        assert not image[:, :, ~inside[0, 0]].any()
    assert len(seen) == 8


def test_with_its_context_a_region_is_what_the_atlas_shows(tmp_path, write_atlas):
    """Inside, the very voxels and counts; beyond the area, nothing; the predicted part always inside."""
    atlas = Atlas.open(write_atlas(tmp_path / "atlas.zarr", slices=3))
    area, _ = areas_of(volume_of(atlas), atlas.shape, config(4))
    crops = Crops([area], config(4), seed=7, stream=Stream.TRAINING, region=3, context="atlas")
    rims = 0
    for number in range(30):
        crop, _ = crops.draw(number)
        crop = crop._replace(turns=0, flip=False)
        image, inside, genes = crops.read(crop)
        y, x, z = crop.y - 16, crop.x - 16, crop.window.image_start
        assert np.array_equal(image, atlas.image_window(z, z + 2, y, y + 96, x, x + 96))
        z = crop.window.gene_start
        assert np.array_equal(genes, atlas.gene_window(z, z + 4, y, y + 96, x, x + 96))
        assert inside[..., 16:-16, 16:-16].all()
        assert not image[:, :, ~inside[0, 0]].any()
        rims += not inside.all()
    assert 0 < rims < 30


def test_a_region_is_that_of_the_padded_crop(atlas_path):
    """Reading the region alone gives what the reference cuts from the padded crop."""
    crops = crops_of(atlas_path, gene_slices=4)
    for row in range(5 - 1):
        crop = Crop(0, Window(-1, 0), 16, 48, row, 3 - row, 0, False)
        image, inside, genes = (torch.from_numpy(values.copy()) for values in crops.read(crop))
        volume, box = crops.areas[0].volume, (16, 16 + 128, 48, 48 + 128)
        whole = F.pad(torch.from_numpy(volume.image_window(0, 2, *box)), (16,) * 4)
        counts = F.pad(torch.from_numpy(volume.gene_window(-1, 3, *box).astype(int)), (1,) * 4)
        y, x = row * 32, (3 - row) * 32
        assert torch.equal(image, whole[..., y : y + 64, x : x + 64])
        assert torch.equal(genes.long(), counts[..., y // 16 : y // 16 + 4, x // 16 : x // 16 + 4])
        expected = F.pad(torch.ones(1, 1, 128, 128), (16,) * 4)[..., y : y + 64, x : x + 64]
        assert torch.equal(inside.float(), expected)


@pytest.mark.parametrize("gene_slices", [1, 4])
def test_memory_and_store_give_the_same(atlas_path, gene_slices):
    kept, stored = (crops_of(atlas_path, gene_slices, kind) for kind in (MemoryVolume, StoredVolume))
    for number in range(12):
        for one, other in zip(kept.example(number, 0, 1), stored.example(number, 0, 1), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_the_number_alone_decides(atlas_path):
    """Two processes with two parts each see together what one sees, and seeds and streams differ."""
    crops = crops_of(atlas_path)
    whole = share(crops, 8, 1, 0, 1)(5)
    parts = [share(crops, 8, 4, rank * 2, 2)(5 * 2 + part) for rank in range(2) for part in range(2)]
    for expected, *pieces in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate(pieces), expected)
    others = [
        Crops(crops.areas, crops.config, 8, Stream.TRAINING),
        Crops(crops.areas, crops.config, 7, Stream.HELD_OUT),
    ]
    for other in others:
        assert not np.array_equal(other.example(0, 0, 1).noise, crops.example(0, 0, 1).noise)


def test_timesteps_cover_their_range_in_every_step(atlas_path):
    crops = crops_of(atlas_path)
    for step in range(3):
        t = share(crops, 10, 1, 0, 1)(step).t
        assert (t // (TRAINING_STEPS // 10)).tolist() == list(range(10))


def test_every_place_is_equally_likely():
    """Over areas of different size, windows and positions: within 5 standard deviations of a binomial."""
    window = Window(0, 0)
    areas = [
        Area(None, Rectangle(0, 128, 0, 128), [window]),
        Area(None, Rectangle(0, 128 + 31, 16, 128 + 32), [window, Window(1, 1)]),
    ]
    crops = Crops(areas, config(), seed=1, stream=Stream.TRAINING)
    drawn, number = {}, 3000
    for index in range(number):
        crop, _ = crops.draw(index)
        place = crop[:4]
        drawn[place] = drawn.get(place, 0) + 1
    places = 1 + 2 * 2 * 2
    assert len(drawn) == places
    spread = (number / places) ** 0.5
    assert all(abs(count - number / places) < 5 * spread for count in drawn.values())


@pytest.mark.parametrize(("height", "width"), [(150, 470), (470, 150)])
def test_held_out_crops_share_no_pixel_with_training(tmp_path, write_atlas, height, width):
    path = write_atlas(tmp_path / "atlas.zarr", height=height, width=width)
    places = []
    for stream in (Stream.TRAINING, Stream.HELD_OUT):
        crops = crops_of(path, held_out=0.4, stream=stream)
        along = 3 if width > height else 2
        starts = [crops.draw(number)[0][along] for number in range(200)]
        places.append((min(starts), max(starts) + crops.side))
        assert max(starts) + crops.side <= max(height, width)
    assert places[0][1] <= places[1][0]


def test_what_cannot_hold_a_crop_is_refused(tmp_path, write_atlas):
    path = write_atlas(tmp_path / "atlas.zarr", height=120)
    with pytest.raises(InputError, match="120 x 230 px, and a crop 128 x 128"):
        crops_of(path)
    with pytest.raises(InputError, match="1 slice"):
        crops_of(write_atlas(tmp_path / "thin.zarr", slices=1), gene_slices=8)
    with pytest.raises(InputError, match=r"region of 6 .* 2 to 5"):
        crops_of(write_atlas(tmp_path / "good.zarr"), region=6)


def test_large_patches_have_smaller_crops(tmp_path, write_atlas):
    atlas = Atlas.open(write_atlas(tmp_path / "atlas.zarr", height=260, width=270))
    area, _ = areas_of(volume_of(atlas), atlas.shape, config(patch_size=128))
    crops = Crops([area], config(patch_size=128), 0, Stream.TRAINING)
    assert crops.side == 256
    assert stack([crops.example(0, 0, 1)]).image.shape == (1, 2, 1, 256, 256)


def test_genes_of_several_atlases(tmp_path, write_atlas):
    first = Atlas.open(write_atlas(tmp_path / "first.zarr"))
    second = Atlas.open(write_atlas(tmp_path / "second.zarr", genes=["c", "d", "a"], seed=1))
    with pytest.raises(InputError, match=r"differ \(b, d\)"):
        panel_of([first, second], None)
    assert panel_of([first, second], "intersection") == ["a", "c"]
    listed = tmp_path / "genes.txt"
    listed.write_text("c\na\n")
    assert panel_of([first, second], str(listed)) == ["c", "a"]
    listed.write_text("c\nb\n")
    with pytest.raises(InputError, match=r"second.zarr lacks b of .*genes.txt"):
        panel_of([first, second], str(listed))
    with pytest.raises(InputError, match="no gene is in all"):
        panel_of([first, Atlas.open(write_atlas(tmp_path / "other.zarr", genes=["x", "y"]))], "intersection")
    for memory in (10**9, 0):
        kept, other = open_volumes([first, second], ["c", "a"], memory)
        box = (1, 2, 32, 64, 16, 64)
        assert np.array_equal(kept.gene_window(*box), first.gene_window(*box)[[2, 0]])
        assert np.array_equal(other.gene_window(*box), second.gene_window(*box)[[0, 2]])


def test_atlases_have_to_be_alike(tmp_path, write_atlas):
    first = Atlas.open(write_atlas(tmp_path / "first.zarr"))
    coarse = Atlas.open(write_atlas(tmp_path / "coarse.zarr", pixel_size=0.8))
    with pytest.raises(InputError, match=r"coarse.zarr is 0.8 um and one of .*first.zarr 0.4 um"):
        check_alike([first, coarse])
    swapped = Atlas.open(write_atlas(tmp_path / "swapped.zarr", stains=("PolyT", "DAPI")))
    with pytest.raises(InputError, match="stains PolyT, DAPI"):
        check_alike([first, swapped])
