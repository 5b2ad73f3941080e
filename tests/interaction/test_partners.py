"""Partners of a gene: found where they are, not found where there are none."""

import csv

import numpy as np
import pytest
from scipy.stats import kstest

from teramind import InputError, save_checkpoint
from teramind.cli import main
from teramind.interaction import maps as maps_module
from teramind.interaction import partners as partners_module
from teramind.interaction.maps import MapSource
from teramind.interaction.partners import EVERYWHERE, top_partners

NAMES = [f"g{number}" for number in range(20)]
BINS, SLICES = 34, 3


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, make_atlas):
    """Independent genes alike, but in the left half g7 is read exactly where g2 is."""
    counts = np.random.default_rng(8).poisson(0.6, (SLICES, BINS, BINS, len(NAMES)))
    counts[:, :, : BINS // 2, 7] = counts[:, :, : BINS // 2, 2]
    labels = np.ones((SLICES, BINS, BINS), np.uint16)
    labels[:, :, BINS // 2 :] = 4
    labels[:, -3:] = 0
    path = tmp_path_factory.mktemp("partners") / "atlas.zarr"
    side = BINS * 16 - 5
    return make_atlas(path, counts, side, side, NAMES, (labels, {1: "left", 4: "right"}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, make_network):
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_checkpoint(path, make_network(genes=len(NAMES) + 1), genes=[*NAMES, "absent"])
    return path


@pytest.fixture
def small_tiles(monkeypatch):
    for module in (maps_module, partners_module):
        monkeypatch.setattr(module, "TILE", 12)
    monkeypatch.setattr(partners_module, "BLOCK_PATCHES", 2)


@pytest.fixture
def source(atlas, checkpoint):
    return MapSource(atlas, checkpoint, ["g2"], missing_genes="zero")


@pytest.mark.usefixtures("small_tiles")
def test_a_partner_is_found_in_its_region(source):
    rows = top_partners(source)
    by_region = {name: [row for row in rows if row.region == name] for name in (EVERYWHERE, "left", "right")}
    assert sum(map(len, by_region.values())) == len(rows) == 3 * 19
    first = by_region["left"][0]
    assert first.partner == "g7"
    assert first.enrichment > 1.05
    assert first.q < 0.01
    assert by_region[EVERYWHERE][0].partner == "g7"
    assert [row.attention for row in by_region["left"]] == sorted(
        (row.attention for row in by_region["left"]), reverse=True
    )
    assert first.patches + by_region["right"][0].patches < by_region[EVERYWHERE][0].patches
    assert all(row.p <= row.q <= 1 for row in rows)


@pytest.mark.usefixtures("small_tiles")
def test_without_partners_p_is_uniform(source):
    rows = [row for row in top_partners(source) if row.region == "right"]
    assert kstest([row.p for row in rows], "uniform").pvalue > 0.01
    assert min(row.q for row in rows) > 0.05


@pytest.mark.usefixtures("small_tiles")
def test_the_mean_is_over_patches_with_the_gene(source):
    """Against the definition, of patches that overlap no border."""
    import torch

    window, bins = 0, 2
    counts = source.counts(window, (-1, 33, -1, 33))
    with torch.no_grad():
        whole = source.net.gene_attention(torch.from_numpy(counts.astype(np.float32))[None])[3]
    patches = (
        counts.reshape(len(counts), 4, 17, bins, 17, bins).transpose(2, 4, 0, 1, 3, 5).reshape(17 * 17, len(counts), -1)
    )
    of_first_window = whole[torch.from_numpy(patches[:, 2].any(axis=1)), 2].mean(0)
    part = MapSource(source.job.atlas, source.job.checkpoint, ["g2"], missing_genes="zero", slices="0:2")
    found = {row.partner: row.attention for row in top_partners(part, permutations=1) if row.region == EVERYWHERE}
    for number, name in enumerate(NAMES):
        if name != "g2":
            assert found[name] == pytest.approx(of_first_window[number].item(), rel=1e-4)


def test_what_cannot_be_asked(atlas, checkpoint, source):
    with pytest.raises(InputError, match="of one gene, not of g1, g2"):
        top_partners(MapSource(atlas, checkpoint, ["g1", "g2"], missing_genes="zero"))
    with pytest.raises(InputError, match="permutations is 0"):
        top_partners(source, permutations=0)


def test_the_command_writes_a_table(tmp_path, atlas, checkpoint, capsys):
    words = ["interact", str(atlas), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "nothing to ask: give --genes, --pathway or --top-partners" in capsys.readouterr().err
    assert main([*words, "--top-partners", "g2", "--permutations", "20", "--missing-genes", "zero"]) == 0
    assert "everywhere" in capsys.readouterr().out
    with (tmp_path / "out/partners_g2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["partner"] == "g7"
    assert {row["region"] for row in rows} == {EVERYWHERE, "left", "right"}
    assert not (tmp_path / "out/maps.ome.zarr").exists()


@pytest.mark.parametrize(
    ("words", "sentence"), [(["g99"], "lacks g99"), (["g2", "--permutations", "20000"], "permutations is 20000")]
)
def test_what_cannot_be_asked_is_said_before_the_maps(tmp_path, atlas, checkpoint, capsys, words, sentence):
    asked = ["interact", str(atlas), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main([*asked, "--missing-genes", "zero", "--genes", "g1", "--top-partners", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
