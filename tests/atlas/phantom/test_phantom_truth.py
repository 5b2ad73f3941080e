"""What is known of the phantom is true of it: genes make types, types make the image."""

import importlib.resources

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, uniform_filter

from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.celltypes import CELL_TYPES, TYPE
from teramind.atlas.phantom.genes import GENES, HOUSEKEEPING, MARKERS, PATHWAYS, PROFILES

WINDOW = (4608, 5632, 4352, 5376)


def test_genes_are_of_the_published_panel():
    panel = (importlib.resources.files("teramind") / "panels" / "638850.txt").read_text().split()
    assert set(GENES) <= set(panel)
    assert 55 <= len(GENES) <= 75
    assert set().union(*PATHWAYS.values()) <= set(GENES)


def test_every_type_has_a_gene_of_its_own_and_shares_others():
    assert set(MARKERS) == set(TYPE)
    assert (PROFILES > 0).any(axis=0).all()
    for name, row in zip(TYPE, PROFILES, strict=True):
        others = np.delete(PROFILES, TYPE[name], axis=0)
        assert (row > 1.5 * others.max(axis=0)).any(), name
    shared = (PROFILES[:, [gene not in HOUSEKEEPING for gene in GENES]] > 0).sum(axis=0)
    assert (shared > 1).sum() >= 10


def test_redrawn_morphology_keeps_cells_and_transcripts(scene):
    redrawn = Phantom(seed=7, size=1 << 18, slices=3, morphology_seed=8)
    for found, expected in zip(redrawn.transcripts(1, *WINDOW), scene.phantom.transcripts(1, *WINDOW), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(redrawn.region_window(1, 2, *WINDOW)[0], scene.labels)
    common, here, there = np.intersect1d(
        scene.cells["id"], (cells := redrawn.cells(1, *WINDOW))["id"], return_indices=True
    )
    assert len(common) > 0.85 * len(scene.cells)
    first, second = scene.cells[here], cells[there]
    for name in ("type", "region", "x", "y"):
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("nucleus_x", "nucleus_major", "nucleus_minor", "soma"):
        assert (first[name] != second[name]).mean() > 0.5
    image = redrawn.image_window(1, 2, *WINDOW)[:, 0]
    assert (image != scene.image).mean() > 0.5
    correlation = np.corrcoef(image[0].ravel(), scene.image[0].ravel())[0, 1]
    assert 0.5 < correlation < 0.95


def test_another_seed_is_another_brain(scene):
    other = Phantom(seed=8, size=1 << 18, slices=3)
    assert not np.isin(other.cells(1, *WINDOW)["x"], scene.cells["x"]).any()
    assert (other.region_window(1, 2, *WINDOW)[0] != scene.labels).mean() > 0.3


def test_a_cell_cut_twice_is_the_same_cell():
    brain = Phantom(seed=7, size=1 << 18, slices=4, z_step=4.0)
    first, second = (brain.cells(z, *WINDOW) for z in (1, 2))
    _, here, there = np.intersect1d(first["id"], second["id"], return_indices=True)
    assert len(here) > 0.3 * len(first)
    for name in ("type", "x", "y", "nucleus_x", "angle"):
        np.testing.assert_array_equal(first[name][here], second[name][there])
    both = (first["nucleus_major"][here] > 0) & (second["nucleus_major"][there] > 0)
    assert both.sum() > 100
    image = brain.image_window(1, 3, *WINDOW)[0].astype(float)
    y, x = (np.clip(first[name][here][both].astype(int), 0, None) for name in ("nucleus_y", "nucleus_x"))
    inside = (y >= 4608) & (y < 5632) & (x >= 4352) & (x < 5376)
    bright = image[:, y[inside] - 4608, x[inside] - 4352]
    assert (bright > np.median(image) + 10).all(axis=0).mean() > 0.95


def test_no_transcript_is_in_two_slices():
    """Sections do not overlap, so slices closer than their thickness share it out."""
    thick, thin = (Phantom(seed=7, size=1 << 18, slices=9, z_step=step) for step in (10.0, 2.5))
    counts = [len(brain.transcripts(z, *WINDOW)[0]) for brain, z in ((thick, 1), (thin, 4))]
    assert counts[1] == pytest.approx(counts[0] / 4, rel=0.35)  # the background is per slice


def test_transcripts_are_as_many_as_in_real_sections(scene):
    nuclei = (scene.cells["nucleus_major"] > 0).sum()
    assert 30 < scene.counts.sum() / nuclei < 100


def test_nuclei_lie_where_the_table_says_and_differ_by_type(scene):
    seen = scene.cells[scene.cells["nucleus_minor"] > 4]
    y, x = seen["nucleus_y"].astype(int) - 4608, seen["nucleus_x"].astype(int) - 4352
    inside = (y >= 0) & (y < 1024) & (x >= 0) & (x < 1024)
    dapi = uniform_filter(scene.image[0].astype(float), 3)[y[inside], x[inside]]
    assert (dapi > np.median(scene.image[0]) + 25).mean() > 0.98
    types = seen["type"][inside]
    level = {name: dapi[types == TYPE[name]].mean() for name in ("oligodendrocyte", "layer 5 neuron", "granule cell")}
    assert level["oligodendrocyte"] > 1.3 * level["layer 5 neuron"]
    radius = {
        name: np.median(np.sqrt(seen["nucleus_major"] * seen["nucleus_minor"])[seen["type"] == TYPE[name]]) * 0.4
        for name in level
    }
    assert radius["layer 5 neuron"] > 1.2 * radius["granule cell"]


def test_nuclei_are_of_real_sizes():
    for cell_type in CELL_TYPES:
        assert 5.4 < 2 * cell_type.nucleus < 11.0
        assert cell_type.soma > cell_type.nucleus


def test_regions_look_and_read_as_they_should(scene):
    dapi = scene.image[0].reshape(64, 16, 64, 16).mean(axis=(1, 3))
    poly_t = scene.image[1].reshape(64, 16, 64, 16).mean(axis=(1, 3))
    total = scene.counts.sum(axis=2)
    for empty in (scene.labels == 0, scene.in_region("ventricle")):
        assert empty.sum() > 50
        assert np.percentile(dapi[empty], 80) < 12
        assert poly_t[empty].mean() < 0.3 * poly_t[scene.in_region("layer 5")].mean()
        assert total[empty].mean() < 0.3 * total[~empty].mean()
    granule, white = scene.in_region("granule layer"), scene.in_region("white matter")
    cortex = np.isin(scene.labels, [3, 4, 5, 6])
    assert dapi[granule].mean() > 1.8 * dapi[cortex].mean()
    assert poly_t[white].mean() < 0.7 * poly_t[cortex].mean()
    for gene, region in (("Otof", "layer 2/3"), ("Rorb", "layer 4"), ("Bcl11b", "layer 5"), ("Hs3st4", "layer 6")):
        here = scene.in_region(region)
        assert scene.gene(gene)[here].mean() > 4 * scene.gene(gene)[~here].mean()


def test_pathway_genes_are_complementary_co_localised_and_neighbours(scene):
    cortex, thalamus = np.isin(scene.labels, [3, 4, 5, 6]), scene.in_region("thalamus")
    vglut1, vglut2 = scene.gene("Slc17a7"), scene.gene("Slc17a6")
    assert vglut1[cortex].mean() > 10 * vglut1[thalamus].mean()
    assert vglut2[thalamus].mean() > 10 * vglut2[cortex].mean()
    overlap = scene.in_region("transition zone")
    assert (vglut1[overlap] > 0).mean() > 0.15
    assert (vglut2[overlap] > 0).mean() > 0.15
    assert np.corrcoef(scene.gene("Th").ravel(), scene.gene("Nr4a2").ravel())[0, 1] > 0.35
    near = maximum_filter(scene.gene("Cldn5") > 1, size=3)
    assert scene.gene("Aqp4")[near].mean() > 1.5 * scene.gene("Aqp4")[~near & (scene.labels > 0)].mean()


@pytest.mark.parametrize(
    ("pair", "floor"), [(("Nr4a2", "Th"), 0.9), (("Slc17a7", "Slc17a6"), 0.85), (("Aqp4", "Cldn5"), 0.6)]
)
def test_interactions_are_where_both_genes_are(scene, pair, floor):
    """The product of the two genes tells them, though not fully: both are expressed apart from each other, too."""
    truth = scene.phantom.interaction_window(pair, 1, 2, *WINDOW)[0] > 0
    product = np.prod([uniform_filter(scene.gene(gene).astype(float), 3) for gene in pair], axis=0)
    assert 10 < truth.sum() < 0.2 * truth.size
    order = product.ravel().argsort(kind="stable").argsort()
    positive = order[truth.ravel()]
    auroc = (positive.mean() - (truth.sum() - 1) / 2) / (~truth).sum()
    assert auroc > floor


def test_genes_apart_from_their_partner_do_not_interact(scene):
    for pair, region in ((("Nr4a2", "Th"), "layer 6"), (("Slc17a6", "Slc17a7"), "thalamus")):
        here = scene.in_region(region)
        assert scene.gene(pair[0])[here].sum() > 20
        assert not scene.phantom.interaction_window(pair, 1, 2, *WINDOW)[0][here].mean() > 0.1
