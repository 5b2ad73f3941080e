"""Partners of a gene: found where they are, not found where there are none."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

import teramind
from teramind import InputError, load_checkpoint, save_checkpoint
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
    assert kstest([row.p_shuffled for row in rows], "uniform").pvalue > 0.01
    assert min(row.p for row in rows) > 0.01 / len(rows)


@pytest.mark.usefixtures("small_tiles")
def test_the_mean_is_over_patches_with_the_gene(source):
    """Against the definition, of patches that overlap no border."""
    import torch

    window, bins = 0, 2
    counts = source.counts(window, (-1, 35, -1, 35))
    with torch.no_grad():
        whole = source.net.gene_attention(torch.from_numpy(counts.astype(np.float32))[None])[3]
    patches = (
        counts.reshape(len(counts), 4, 18, bins, 18, bins).transpose(2, 4, 0, 1, 3, 5).reshape(18 * 18, len(counts), -1)
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
    with pytest.raises(InputError, match="seed of the permutations is -1"):
        top_partners(source, seed=-1)


def independent_genes(rates, slices=2, bins=64, seed=0):
    """(slices, bins, bins, genes) of rates that broadcast to it, (..., genes)."""
    return np.random.default_rng(seed).poisson(rates, (slices, bins, bins, np.shape(rates)[-1]))


@pytest.fixture
def partners_of(tmp_path, make_atlas, checkpoint):
    def find(counts, network=checkpoint, gene="g2", **options):
        meta = load_checkpoint(network)[1]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        side, genes = counts.shape[1] * 16, meta["genes"][: counts.shape[-1]]
        make_atlas(path, counts, side, side, genes, pixel_size=meta.get("pixel_size") or 0.2)
        return top_partners(MapSource(path, network, [gene], missing_genes="zero"), **options)

    return find


def share_found(runs, p="p", level=0.05):
    return np.mean([getattr(row, p) < level for rows in runs for row in rows])


def test_windows_that_overlap_are_not_counted_as_independent(source):
    """Each window twice is the utmost overlap, and tells no more."""
    once = top_partners(source)
    source.job.windows = [window for window in source.job.windows for _ in (0, 1)]
    twice = top_partners(source)
    for one, other in zip(once, twice, strict=True):
        assert (one.partner, 2 * one.patches, one.blocks) == (other.partner, other.patches, other.blocks)
        assert (one.p, one.p_shuffled) == pytest.approx((other.p, other.p_shuffled))


def test_many_slices_of_independent_genes_show_no_partners(partners_of):
    runs = [
        partners_of(independent_genes([0.3] * 20, slices=10, bins=32, seed=s), permutations=50, seed=s)
        for s in range(6)
    ]
    assert sum(min(row.q_shuffled for row in rows) < 0.05 for rows in runs) <= 1
    assert sum(min(row.q for row in rows) < 0.05 for rows in runs) <= 1
    assert share_found(runs, "p_shuffled") < 0.12
    assert share_found(runs) < 0.12


def test_genes_that_the_atlas_lacks_are_no_partners_in_any_null(tmp_path, partners_of, make_network):
    """With two absent genes for each that is there; these are alike, and none of them is beyond the others."""
    path = tmp_path / "net.safetensors"
    absent = [f"absent{number}" for number in range(40)]
    save_checkpoint(path, make_network(genes=60), genes=[*NAMES, *absent])
    rows = partners_of(independent_genes([0.6] * 20), network=path)
    assert len(rows) == len(NAMES) - 1
    assert np.mean([row.enrichment for row in rows]) == pytest.approx(1)
    assert min(row.q_shuffled for row in rows) > 0.05
    assert min(row.q for row in rows) > 0.05


PHANTOM = Path(teramind.__file__).parent / "models/phantom.safetensors"
"""Trained: what it attends to does depend on counts."""


def test_abundance_alone_makes_no_partner(partners_of):
    """Rates that differ by an order of magnitude: shuffled labels find many, and placement none."""
    runs = []
    for seed in range(4):
        rates = np.random.default_rng(seed).gamma(0.7, 0.1, 70)
        rates[0] = 0.1
        counts = independent_genes(rates, bins=96, seed=seed)
        runs.append(partners_of(counts, PHANTOM, load_checkpoint(PHANTOM)[1]["genes"][0], permutations=50))
    assert share_found(runs, "p_shuffled") > 0.08
    assert share_found(runs, "q") == 0
    assert share_found(runs) < 0.1


def test_smooth_independent_genes_are_no_partners(partners_of):
    runs = []
    for seed in range(4):
        fields = gaussian_filter(np.random.default_rng(seed).normal(size=(128, 128, 70)), (30, 30, 0))
        rates = 0.06 * np.exp(fields / fields.std(axis=(0, 1)))
        counts = independent_genes(rates, bins=128, seed=seed)
        runs.append(partners_of(counts, PHANTOM, load_checkpoint(PHANTOM)[1]["genes"][0], permutations=50))
    assert share_found(runs, "p_shuffled") > 0.08
    assert share_found(runs, "q") == 0
    assert share_found(runs) < 0.1


def test_a_trained_network_s_partner_is_found(partners_of):
    """The next gene is read twice as often where the asked one is, bin by bin."""
    gene, other = load_checkpoint(PHANTOM)[1]["genes"][:2]
    counts = independent_genes([0.1] * 70, bins=128)
    counts[..., 1] += counts[..., 0]
    rows = {row.partner: row for row in partners_of(counts, PHANTOM, gene, permutations=50)}
    assert rows[other].p == min(row.p for row in rows.values())
    assert rows[other].q < 1e-3
    assert rows[other].attention > rows[other].expected


@pytest.mark.parametrize("axis", [1, 2])
def test_a_gene_of_the_last_bins_is_seen(partners_of, axis):
    """The encoder's last patches reach half a patch beyond the grid."""
    counts = independent_genes([0.3] * 20, bins=32)
    counts[..., 2] = 0
    np.moveaxis(counts, axis, 0)[-1, ..., 2] = 3
    rows = partners_of(counts, permutations=1)
    assert rows[0].patches == 17
    assert rows[0].blocks == 3


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
    ("words", "sentence"),
    [
        (["g99"], "lacks g99"),
        (["g2", "--permutations", "20000"], "permutations is 20000"),
        (["g2", "--seed", "-1"], "seed of the permutations is -1"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_maps(tmp_path, atlas, checkpoint, capsys, words, sentence):
    asked = ["interact", str(atlas), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main([*asked, "--missing-genes", "zero", "--genes", "g1", "--top-partners", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
