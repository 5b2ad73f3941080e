"""Imputed cells as slices of an atlas: counts kept, slices in order, and a network makes an image of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from teramind import Atlas
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.cli import main
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.planes import Plane
from teramind.impute.virtual_slices import Slab, add_virtual_slices

PIXEL, SIDE = 0.4, 256  # um, px
WINDOW = (0, SIDE, 0, SIDE)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Two measured slices at 0 and 100 um."""
    phantom = Phantom(seed=3, size=SIDE, slices=2, pixel_size=PIXEL, z_step=100.0)
    return build_phantom(phantom, tmp_path_factory.mktemp("virtual") / "measured.zarr")


def slab(atlas, n=211, ap=0.05, thickness=0.03, slices=3, seed=0, fraction=0.0):
    """Cells in the middle of the frame."""
    generator = np.random.default_rng(seed)
    positions = generator.uniform([0.03, 0.03, ap - thickness / 2], [0.07, 0.07, ap + thickness / 2], (n, 3))
    counts = generator.poisson(0.4, (n, len(atlas.genes))).astype(float)
    counts[counts > 0] += fraction
    return Slab(
        Cells(positions, counts=csr_array(counts), genes=tuple(atlas.genes)), Plane.coronal(ap), thickness, slices
    )


def gene_totals(atlas, numbers):
    return sum(atlas.gene_window(z, z + 1, *WINDOW).sum(axis=(1, 2, 3), dtype=np.int64) for z in numbers)


def test_counts_are_kept_and_slices_lie_in_order(atlas, tmp_path):
    one = slab(atlas)
    made = add_virtual_slices(atlas, tmp_path / "denser.zarr", [one])
    assert made.atlas.slice_z == pytest.approx([0, 40, 50, 60, 100])
    assert made.added == (1, 2, 3)
    expected = np.asarray(one.cells.counts.sum(axis=0)).ravel()
    np.testing.assert_array_equal(gene_totals(made.atlas, made.added), expected)
    assert (made.transcripts, made.outside, made.unknown) == (expected.sum(), 0, 0)
    thirds = [made.atlas.gene_window(z, z + 1, *WINDOW).sum() for z in made.added]
    assert np.ptp(thirds) < 0.2 * np.mean(thirds)  # reflected at the faces, not piled up there or lost
    np.testing.assert_array_equal(gene_totals(made.atlas, [0, 4]), gene_totals(atlas, [0, 1]))


def test_transcripts_lie_around_their_cell(atlas, tmp_path):
    counts = csr_array(([10_000.0], ([0], [5])), shape=(1, len(atlas.genes)))
    cell = Cells(np.array([[0.0517, 0.0483, 0.05]]), counts=counts, genes=tuple(atlas.genes))
    made = add_virtual_slices(atlas, tmp_path / "a.zarr", [Slab(cell, Plane.coronal(0.05), 0.1, 5)], spread_um=10.0)
    bins = np.stack([made.atlas.gene_window(z, z + 1, *WINDOW)[5, 0] for z in made.added]).astype(float)
    z, y, x = np.indices(bins.shape).reshape(3, -1)
    side = 16 * PIXEL
    means = [(axis * bins.ravel()).sum() / bins.sum() for axis in (z, y, x)]
    spreads = [
        np.sqrt(((axis - m) ** 2 * bins.ravel()).sum() / bins.sum()) for axis, m in zip((z, y, x), means, strict=True)
    ]
    # 10,000 draws: the mean is within 0.1 um; a bin of width w adds w^2 / 12 to the variance.
    assert [(m + 0.5) * side for m in means[1:]] == pytest.approx([48.3, 51.7], abs=0.4)
    assert means[0] == pytest.approx(2.0, abs=0.03)
    assert [s * side for s in spreads[1:]] == pytest.approx([np.sqrt(100 + side**2 / 12)] * 2, rel=0.03)
    assert spreads[0] * 20 == pytest.approx(np.sqrt(100 + 400 / 12), rel=0.05)


def test_fractions_are_rounded_as_often_as_they_say(atlas, tmp_path):
    one = slab(atlas, n=1501, fraction=0.25)
    made = add_virtual_slices(atlas, tmp_path / "a.zarr", [one])
    expected = float(one.cells.counts.sum())
    assert made.transcripts == pytest.approx(expected, abs=4 * np.sqrt(0.25 * 0.75 * one.cells.counts.nnz))
    again = add_virtual_slices(atlas, tmp_path / "b.zarr", [one])
    other = add_virtual_slices(atlas, tmp_path / "c.zarr", [one], seed=1)
    assert made.atlas.fingerprint == again.atlas.fingerprint != other.atlas.fingerprint


def test_an_origin_and_several_slabs(atlas, tmp_path):
    slabs = [slab(atlas, ap=ap, thickness=0.01, slices=1, seed=seed) for seed, ap in enumerate((0.05, -0.2))]
    origin = np.array([3.0, -2.0, 7.0])
    moved = [
        Slab(Cells(s.cells.positions + origin, counts=s.cells.counts, genes=s.cells.genes),
             Plane.coronal(s.plane.offset + 7), s.thickness)
        for s in slabs
    ]  # fmt: skip
    made = add_virtual_slices(atlas, tmp_path / "moved.zarr", moved, origin=tuple(origin))
    assert made.atlas.slice_z == pytest.approx([-200, 0, 50, 100])
    assert made.added == (0, 2)
    for number, part in ((0, slabs[1]), (2, slabs[0])):
        np.testing.assert_array_equal(
            gene_totals(made.atlas, [number]), np.asarray(part.cells.counts.sum(axis=0)).ravel()
        )


def test_genes_by_name(atlas, tmp_path, caplog):
    one = slab(atlas)
    few = one.cells.with_genes([atlas.genes[7], "elsewhere", atlas.genes[2]])
    counts = few.counts.copy().tolil()
    counts[0, 1] = 5
    few = Cells(few.positions, counts=csr_array(counts), genes=few.genes)
    made = add_virtual_slices(atlas, tmp_path / "a.zarr", [Slab(few, one.plane, one.thickness)])
    totals = gene_totals(made.atlas, made.added)
    expected = np.asarray(one.cells.counts.sum(axis=0)).ravel()
    assert (totals[7], totals[2]) == (expected[7], expected[2])
    assert np.delete(totals, [2, 7]).sum() == 0
    assert made.unknown == 5
    assert "genes of the atlas read as zero" in caplog.text


def changed(one, **values):
    cells = {"positions": one.cells.positions, "counts": one.cells.counts, "genes": one.cells.genes}
    return Slab(Cells(**(cells | values)), one.plane, one.thickness)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda one: Slab(one.cells, Plane.sagittal(0.05), 0.03), "coronal"),
        (lambda one: Slab(one.cells, one.plane, 0.0), "thickness is 0.0"),
        (lambda one: Slab(one.cells, one.plane, 0.03, 0), "number of slices"),
        (lambda one: Slab(one.cells, Plane.coronal(0.1), 0.03), "two slices"),
        (lambda one: changed(one, counts=None, genes=()), "needs expression"),
        (lambda one: changed(one, positions=one.cells.positions + 5), "origin"),
        (lambda one: changed(one, genes=tuple(map(str, range(70)))), "none of the atlas'"),
    ],
)
def test_one_sentence_and_nothing_half_written(atlas, tmp_path, spoil, words):
    with pytest.raises(InputError, match=words) as raised:
        add_virtual_slices(atlas, tmp_path / "never.zarr", [spoil(slab(atlas))])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def brain_atlas(tmp_path_factory, brain):
    """An atlas of the synthetic brain's genes with two measured slices, its first pixel at ML 1.9, DV 1.9 mm."""
    from teramind.atlas.writer import AtlasWriter

    path = tmp_path_factory.mktemp("brain") / "measured.zarr"
    empty = csr_array((16 * 16, len(brain.genes)), dtype=np.uint16)
    with AtlasWriter(
        path, genes=brain.genes, stains=[], slice_z=[0.0, 400.0], shape=(SIDE, SIDE), pixel_size=PIXEL, scaling=None,
        provenance={},
    ) as writer:  # fmt: skip
        for index in range(2):
            writer.append_counts(index, empty)
    return path


def refuse_expression(monkeypatch):
    """What is wrong with an atlas is said before expression, the long part, is written."""

    def refused(*_, **__):
        raise AssertionError("expression was written")

    monkeypatch.setattr("teramind.impute.command.generate_expression", refused)


def test_no_atlas_is_left_where_the_cells_cannot_be_written(tmp_path, brain_atlas, measured, monkeypatch, capsys):
    """Expression is made up; the disk is full."""

    def full(*_, **__):
        raise OSError(28, "No space left on device", "made.h5ad")

    def expressed(_, cells, __, *, genes):
        return replace(cells, counts=csr_array(np.ones((len(cells), len(genes)))), genes=tuple(genes))

    pytest.importorskip("anndata")
    from teramind.impute.data import write_cells

    write_cells(tmp_path / "measured.h5ad", measured)
    data, models = str(tmp_path / "measured.h5ad"), str(tmp_path / "models")
    few = [word for stage in ("locations", "types", "expression") for word in (f"--steps-{stage}", "3")]
    assert main(["impute", "train", data, "--models", models, "--size", "tiny", *few]) == 0
    monkeypatch.setattr("teramind.impute.command.generate_expression", expressed)
    monkeypatch.setattr("teramind.impute.command.write_cells", full)
    words = ["impute", "fill", models, data, "--output", str(tmp_path / "made.h5ad"), "--plane", "coronal:4.1"]
    atlas = ["--atlas", str(brain_atlas), "--denser-atlas", str(tmp_path / "denser.zarr")]
    assert main([*words, *atlas, "--atlas-origin", "1.9,1.9,4", "--steps", "3"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured.h5ad", "models"]


def test_filled_cells_become_slices_by_the_command(tmp_path, brain_atlas, measured, monkeypatch, capsys):
    pytest.importorskip("anndata")
    from teramind.impute.data import read_cells, write_cells

    write_cells(tmp_path / "measured.h5ad", measured)
    data, models = str(tmp_path / "measured.h5ad"), str(tmp_path / "models")
    few = [word for stage in ("locations", "types", "expression") for word in (f"--steps-{stage}", "30")]
    assert main(["impute", "train", data, "--models", models, "--size", "tiny", *few]) == 0
    output, denser = tmp_path / "made.h5ad", tmp_path / "denser.zarr"
    words = [
        "impute",
        "fill",
        models,
        data,
        "--output",
        str(output),
        "--atlas",
        str(brain_atlas),
        "--steps",
        "5",
        "--guidance",
        "0",
    ]
    planes = ["--plane", "coronal:4.1", "coronal:4.2", "--thickness", "0.02", "--slices", "2"]
    where = ["--denser-atlas", str(denser), "--atlas-origin", "1.9,1.9,4"]
    before = sorted(path.name for path in tmp_path.iterdir())
    for wrong, said in (
        (["--plane", "sagittal:2.0"], "coronal"),
        (["--plane", "coronal:4.1", "--slices", "0"], "number of slices"),
        (["--plane", "coronal:4.1", "--atlas-origin", "1,2"], "ML,DV,AP"),
        (["--plane", "coronal:4.1", "coronal:4.2", "--hole", "disc:2,2,0.2"], "one --plane"),
        (["--expression-only"], "--expression-only makes none"),
    ):
        assert main([*words, *where, *wrong]) == 2
        assert said in capsys.readouterr().err
    refuse_expression(monkeypatch)
    for wrong, said in (
        (["--atlas", str(tmp_path / "absent.zarr")], "there is no atlas"),
        (["--denser-atlas", str(tmp_path / "absent" / "denser.zarr")], "make it first"),
        (["--denser-atlas", str(brain_atlas)], "atlas itself"),
        (["--denser-atlas", str(tmp_path / "models"), "--overwrite"], "is no atlas"),
        (["--atlas-origin", "9,9,4"], "as origin"),
        (["--atlas-origin", "1.9,1.9,4.095"], "two slices"),
        (["--spread-um", "-1"], "spread"),
        (["--output", str(tmp_path / "made.csv")], "written as .h5ad"),
    ):
        assert main([*words, *planes, *where, *wrong]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*words, *planes]) == 2
    assert "go together" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main([*words, *planes, *where]) == 0
    assert "6 slices, of which 4 virtual" in capsys.readouterr().out
    made = Atlas.open(denser)
    assert made.slice_z == pytest.approx([0, 95, 105, 195, 205, 400])
    cells = read_cells(output, sections=None, raw_counts=False)
    assert set(read_cells(output, raw_counts=False).sections) == {"imputed 1", "imputed 2"}
    held = sum(made.metadata.slice_transcripts)
    flat = 1000 * (cells.positions[:, :2] - 1.9)
    near = ((flat > 0) & (flat < SIDE * PIXEL)).all(axis=1)
    assert held == pytest.approx(float(cells.counts[near].sum()), rel=0.2)  # but for what crosses the frame's edge
    assert main([*words, *planes, *where]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_network_makes_an_image_of_virtual_slices(tmp_path):
    """Checkpoint to voxels, with the network that comes along, at the pixel size it knows."""
    from teramind.demo import CHECKPOINT
    from teramind.generate import generate
    from teramind.model.checkpoint import read_header

    phantom = Phantom(seed=3, size=SIDE, slices=2, pixel_size=read_header(CHECKPOINT)[1]["pixel_size"], z_step=100.0)
    atlas = build_phantom(phantom, tmp_path / "measured.zarr")
    made = add_virtual_slices(atlas, tmp_path / "denser.zarr", [slab(atlas, slices=4, thickness=0.04)])
    generate(made.atlas, CHECKPOINT, tmp_path / "image.ome.zarr", roi="0:64,0:64", steps=2, border="constant",
             snapshot_minutes=0, progress=False)  # fmt: skip
    attributes = json.loads((tmp_path / "image.ome.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["version"] == "0.5"
