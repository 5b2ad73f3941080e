"""An atlas with changed genes: what changes, where, and that windows agree."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from teramind import Atlas, InputError
from teramind.interaction.areas import Box, Everywhere, find_area
from teramind.interaction.changes import ChangedAtlas, ScaleGene, SetGene, SwapGenes, parse_changes

WHOLE = (-1, 4, -32, 288, -16, 192)  # a slice and some bins beyond on every side
BINS = (15, 10)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, make_atlas, counts):
    labels = np.zeros((3, *BINS), np.uint16)
    labels[1, 2:5, 3:6] = 7
    path = tmp_path_factory.mktemp("changes") / "atlas.zarr"
    return Atlas.open(make_atlas(path, counts, regions=(labels, {7: "midbrain", 8: "hindbrain"})))


def view(atlas, *changes, area=None):
    return ChangedAtlas(atlas, changes, area or Everywhere())


def inner(window):
    """Of ``WHOLE``, what lies in the atlas."""
    return window[:, 1:4, 2:17, 1:11]


def test_only_the_gene_is_set_and_only_inside_the_atlas(atlas):
    before, after = atlas.gene_window(*WHOLE), view(atlas, SetGene("Th", 3)).gene_window(*WHOLE)
    expected = np.zeros_like(before)
    inner(expected)[...] = inner(before)
    inner(expected)[2] = 3
    assert np.array_equal(after, expected)


def test_genes_are_swapped(atlas):
    before, after = atlas.gene_window(*WHOLE), view(atlas, SwapGenes("Slc17a6", "Aqp4")).gene_window(*WHOLE)
    assert np.array_equal(after, before[[4, 1, 2, 3, 0]])


@pytest.mark.parametrize("factor", [0, 0.3, 1, 1.5, 2])
def test_scaling_scales_the_mean_and_windows_agree(tmp_path, make_atlas, factor):
    counts = np.random.default_rng(3).poisson(2.0, (2, 40, 45, 5))
    atlas = Atlas.open(make_atlas(tmp_path / "atlas.zarr", counts, 640, 720))
    changed = view(atlas, ScaleGene("Slc17a7", factor))
    whole = changed.gene_window(0, 2, 0, 640, 0, 720)
    assert np.array_equal(np.delete(whole, 1, axis=0), np.delete(atlas.gene_window(0, 2, 0, 640, 0, 720), 1, axis=0))
    total = counts[..., 1].sum()
    # Four standard deviations of a binomial.
    assert abs(whole[1].sum() - factor * total) <= 4 * np.sqrt(total * (factor % 1) * (1 - factor % 1))
    assert (whole[1] >= counts[..., 1] * int(factor)).all()
    assert (whole[1] <= counts[..., 1] * -(-factor // 1)).all()
    part = changed.gene_window(-1, 2, 160, 416, 336, 800)
    assert np.array_equal(part[:, 1:, :, :24], whole[:, :, 10:26, 21:])
    if 0 < factor < 1:
        other = view(atlas, ScaleGene("Slc17a6", factor)).gene_window(0, 2, 0, 640, 0, 720)[0]
        kept = [
            (after / np.maximum(before, 1)).ravel()
            for after, before in ((whole[1], counts[..., 1]), (other, counts[..., 0]))
        ]
        assert abs(np.corrcoef(*kept)[0, 1]) < 0.1  # each gene has draws of its own


@pytest.mark.parametrize("kind", ["box", "region", "npy", "tif", "png"])
def test_areas(tmp_path, atlas, kind):
    expected = np.zeros((3, *BINS), bool)
    expected[1 if kind in ("region", "tif") else slice(None), 2:5, 3:6] = True
    text = {"box": "33:79,48:95", "region": "midbrain"}.get(kind) or str(tmp_path / f"mask.{kind}")
    if kind == "npy":
        np.save(text, expected[0].astype(np.uint8))
    if kind == "tif":
        tifffile.imwrite(text, expected.astype(np.uint8), photometric="minisblack")
    if kind == "png":
        Image.fromarray((expected[0] * 255).astype(np.uint8)).save(text)
    area = find_area(text, atlas)
    mask = area.mask(*WHOLE)
    assert mask.shape == (5, 20, 13)
    assert np.array_equal(mask[1:4, 2:17, 1:11], expected)
    if kind not in ("box", "npy", "png"):
        assert mask.sum() == expected.sum()
    assert area.bounds() == (32, 80, 48, 96)
    changed = view(atlas, SetGene("Th", 9), area=area).gene_window(*WHOLE)
    assert (changed[2] == 9).sum() == expected.sum()


def test_changes_are_done_one_after_the_other(atlas):
    changed = view(atlas, SetGene("Th", 5), SwapGenes("Th", "Nr4a2")).gene_window(0, 1, 0, 16, 0, 16)
    assert changed[3].item() == 5
    assert [str(change) for change in parse_changes(["Th=0"], ["Nr4a2=0.5"], ["Th, Aqp4"])] == [
        "Th=0",
        "Nr4a2*0.5",
        "Th<->Aqp4",
    ]


def test_views_of_views(atlas):
    first = view(atlas, SetGene("Th", 5))
    second = view(first, SwapGenes("Th", "Nr4a2"))
    assert second.gene_window(0, 1, 0, 16, 0, 16)[3].item() == 5
    assert second.fingerprint != view(atlas, SwapGenes("Th", "Nr4a2")).fingerprint
    assert np.array_equal(second.count_window(*WHOLE), atlas.count_window(*WHOLE))


def test_two_changes_have_two_fingerprints(atlas):
    views = [
        atlas, view(atlas, SetGene("Th", 0)), view(atlas, SetGene("Th", 1)), view(atlas, ScaleGene("Th", 0)),
        view(atlas, SetGene("Th", 0), area=Box((0, 16, 0, 16))),
        view(atlas, SetGene("Th", 0), area=find_area("midbrain", atlas)),
    ]  # fmt: skip
    assert len({one.fingerprint for one in views}) == len(views)
    assert view(atlas, SetGene("Th", 0)).fingerprint == views[1].fingerprint
    assert all(one.shape == atlas.shape and one.genes == atlas.genes for one in views)
    assert np.array_equal(views[1].count_window(*WHOLE), atlas.count_window(*WHOLE))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"set_gene": ["Th"]}, "'Th' does not read as GENE=a whole number"),
        ({"set_gene": ["Th=0.5"]}, "does not read as GENE=a whole number"),
        ({"set_gene": ["Th=-1"]}, "cannot be set to -1"),
        ({"scale_gene": ["Th=half"]}, "does not read as GENE=a number"),
        ({"scale_gene": ["Th=nan"]}, "cannot be scaled by nan"),
        ({"swap_genes": ["Th"]}, "does not name two genes"),
        ({"swap_genes": ["Th,Th"]}, "swapped with itself"),
    ],
)
def test_texts_that_are_no_change(options, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_changes(**options)


def test_what_is_not_there(tmp_path, atlas):
    with pytest.raises(InputError, match="lacks Tth; similar are Th"):
        view(atlas, SetGene("Tth", 0))
    with pytest.raises(InputError, match=r"'cortex' is neither .* the atlas, which has midbrain, hindbrain"):
        find_area("cortex", atlas)
    with pytest.raises(InputError, match="the region hindbrain has no bins in the atlas"):
        find_area("hindbrain", atlas)
    with pytest.raises(InputError, match="outside 0:150"):
        find_area("0:16,0:999", atlas)
    for name, bins, sentence in (
        ("small", np.ones((3, 3)), "is 3 x 3; the atlas has 3 x 15 x 10"),
        ("empty", np.zeros(BINS), "is empty"),
    ):
        np.save(tmp_path / f"{name}.npy", bins)
        with pytest.raises(InputError, match=sentence):
            find_area(str(tmp_path / f"{name}.npy"), atlas)
    (tmp_path / "torn.tif").write_bytes(b"II*")
    (tmp_path / "torn.npy").touch()
    for name in ("torn.tif", "torn.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            find_area(str(tmp_path / name), atlas)
