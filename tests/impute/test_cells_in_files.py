"""AnnData in and out: round trips, and every way in which a file can be wrong, in one sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.data import NAMES, read_cells, read_slices, write_cells
from teramind.impute.sections import find_sections

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")


def example(sections=3, n=61, seed=0):
    """Coronal sections as a user's AnnData."""
    generator = np.random.default_rng(seed)
    total = sections * n
    positions = generator.random((total, 3)) * [4, 3, 0.02] + [1, 1, 5]
    positions[:, 2] += np.repeat(np.arange(sections), n) * 0.2
    names = generator.choice(["L4", "L5", None], total)
    observed = pandas.DataFrame(
        {
            "cluster": pandas.Categorical(names),
            "brain_section_label": np.repeat([f"s{index}" for index in range(sections)], n),
            "disease_state": "healthy",
        },
        index=[f"c{index}" for index in range(total)],
    )
    counts = generator.poisson(0.7, (total, 13)).astype(np.float32)
    genes = pandas.DataFrame(index=[f"g{index}" for index in range(13)])
    return anndata.AnnData(X=counts, obs=observed, var=genes, obsm={"aligned_spatial": positions})


def saved(data, tmp_path):
    path = tmp_path / "cells.h5ad"
    data.write_h5ad(path)
    return path


def test_what_is_in_a_file(tmp_path):
    data = example()
    cells = read_cells(saved(data, tmp_path))
    np.testing.assert_array_equal(cells.positions, data.obsm["aligned_spatial"])
    np.testing.assert_array_equal(cells.counts.toarray(), data.X)
    assert cells.genes == tuple(data.var_names)
    unknown = data.obs["cluster"].isna().to_numpy()
    assert (cells.types[unknown] == "").all()
    assert set(cells.types[~unknown]) == {"L4", "L5"}
    assert set(cells.metadata) == {"cluster", "disease_state", NAMES}
    assert cells.metadata[NAMES].tolist() == list(data.obs_names)
    assert [(section.name, section.axis, len(section.rows)) for section in find_sections(cells)] == [
        ("s0", 2, 61), ("s1", 2, 61), ("s2", 2, 61),
    ]  # fmt: skip


def test_published_ccf_columns_are_read_in_our_order(tmp_path):
    data = example()
    for index, name in enumerate(("z_ccf", "y_ccf", "x_ccf")):
        data.obs[name] = data.obsm["aligned_spatial"][:, index]
    expected = data.obsm["aligned_spatial"].copy()
    del data.obsm["aligned_spatial"]
    np.testing.assert_array_equal(read_cells(saved(data, tmp_path)).positions, expected)


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_round_trip_through_our_own_file(tmp_path, rows):
    cells = read_cells(saved(example(), tmp_path))[:rows]
    path = tmp_path / "made.h5ad"
    write_cells(path, cells, seed=5)
    again = read_cells(path, sections=None)
    np.testing.assert_array_equal(again.positions, cells.positions)
    np.testing.assert_array_equal(again.types, cells.types)
    np.testing.assert_array_equal(again.counts.toarray(), cells.counts.toarray())
    foreign = anndata.read_h5ad(path)
    assert json.loads(foreign.uns["teramind"]) == {"format": "teramind-cells", "version": 1, "seed": 5}
    np.testing.assert_array_equal(foreign.obsm["spatial"], cells.positions)


def test_new_types_are_written_over_those_that_were_read(tmp_path):
    cells = read_cells(saved(example(), tmp_path))
    path = tmp_path / "made.h5ad"
    write_cells(path, replace(cells, types=np.full(len(cells), "new")))
    assert set(read_cells(path).types) == {"new"}
    assert list(anndata.read_h5ad(path).obs_names) == cells.metadata[NAMES].tolist()


def test_columns_and_names_are_kept(tmp_path):
    data = example()
    data.obs["kind"], data.obs["slide"] = data.obs["cluster"], data.obs["brain_section_label"]
    cells = read_cells(saved(data, tmp_path), types="kind", sections="slide")
    path = tmp_path / "made.h5ad"
    write_cells(path, cells, types="kind", sections="slide")
    again = read_cells(path, types="kind", sections="slide")
    np.testing.assert_array_equal(again.types, cells.types)
    np.testing.assert_array_equal(again.sections, cells.sections)
    assert "brain_section_label" not in anndata.read_h5ad(path).obs


def test_rows_of_one_name_from_two_files_get_names_of_their_own(tmp_path):
    data = example()
    first, second, _ = in_files(data, tmp_path)
    other = anndata.read_h5ad(second)
    other.obs_names = data.obs_names[:61]
    other.write_h5ad(second)
    cells = read_slices([first, second])
    write_cells(tmp_path / "made.h5ad", cells)
    names = list(anndata.read_h5ad(tmp_path / "made.h5ad").obs_names)
    assert len(set(names)) == len(names) == 122
    assert names[:61] == list(data.obs_names[:61])


def test_sections_that_need_not_be(tmp_path):
    data = example()
    first, second, third = in_files(data, tmp_path)
    other = anndata.read_h5ad(second)
    del other.obs["brain_section_label"]
    other.obsm["aligned_spatial"] += 5
    other.write_h5ad(second)
    cells = read_slices([first, second, third], aligned=False)
    assert cells.sections.tolist() == ["s0"] * 61 + [""] * 61 + ["s2"] * 61
    assert read_cells(second, aligned=False).sections is None


def without_positions(data):
    del data.obsm["aligned_spatial"]


def two_columns(data):
    data.obsm["aligned_spatial"] = data.obsm["aligned_spatial"][:, :2]


def nan_position(data):
    data.obsm["aligned_spatial"][7, 1] = np.nan


def micrometres(data):
    data.obsm["aligned_spatial"] *= 1000


def shifted_slice(data):
    data.obsm["aligned_spatial"][61:122, 0] += 6


def thick_slice(data):
    data.obs["brain_section_label"] = "all"
    data.obsm["aligned_spatial"][:, 2] *= 4


def lonely_cell(data):
    data.obs["brain_section_label"] = ["alone"] + ["s0"] * 182


def normalised(data):
    data.X = np.log1p(data.X)


def negative(data):
    data.X[3, 3] = -1


def infinite(data):
    data.X[3, 3] = np.inf


def same_genes(data):
    data.var_names = ["g0"] * 13


def text_coordinates(data):
    for name in ("x_ccf", "y_ccf", "z_ccf"):
        data.obs[name] = "front"
    del data.obsm["aligned_spatial"]


def no_section(data):
    data.obs["brain_section_label"] = data.obs["brain_section_label"].where(np.arange(183) != 4)


def newer(data):
    data.uns["teramind"] = json.dumps({"format": "teramind-cells", "version": 2})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (text_coordinates, "z_ccf' does not hold numbers"),
        (no_section, "1 of 183 cells name no section"),
        (newer, "cells of format 2"),
        (without_positions, "not aligned"),
        (two_columns, "cells, 3"),
        (nan_position, "cell 7 .*nan"),
        (micrometres, "too much for mm"),
        (shifted_slice, "'s0' and 's1' .*overlap"),
        (thick_slice, "'all' is not flat"),
        (lonely_cell, "'alone' has 1 cells"),
        (normalised, "no raw count"),
        (negative, "X holds -1"),
        (infinite, "X holds inf"),
        (same_genes, "'g0' appears twice"),
        (lambda data: data.obs.drop(columns="cluster", inplace=True), "no column 'cluster' for types"),
        (lambda data: data.obs.drop(columns="brain_section_label", inplace=True), "'brain_section_label' for sections"),
    ],
)
def test_one_sentence_on_what_is_wrong(tmp_path, spoil, words):
    data = example()
    spoil(data)
    path = saved(data, tmp_path)
    with pytest.raises(InputError, match=words) as raised:
        read_cells(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def in_files(data, tmp_path):
    """Each section in a file of its own."""
    paths = []
    for name, rows in data.obs.groupby("brain_section_label", observed=True).groups.items():
        paths.append(tmp_path / f"{name}.h5ad")
        data[rows].copy().write_h5ad(paths[-1])
    return paths


def test_slices_in_separate_files_are_those_of_one(tmp_path):
    data = example()
    cells, whole = read_slices(in_files(data, tmp_path)), read_cells(saved(data, tmp_path))
    np.testing.assert_array_equal(cells.positions, whole.positions)
    np.testing.assert_array_equal(cells.sections, whole.sections)
    np.testing.assert_array_equal(cells.counts.toarray(), whole.counts.toarray())


def test_slices_in_separate_files_are_checked_against_each_other(tmp_path):
    data = example()
    shifted_slice(data)
    with pytest.raises(InputError, match=r"'s0' and 's1' .*overlap"):
        read_slices(in_files(data, tmp_path))


def test_two_files_with_one_section_name_are_refused(tmp_path):
    data = example()
    first, second, _ = in_files(data, tmp_path)
    other = anndata.read_h5ad(second)
    other.obs["brain_section_label"] = "s0"
    other.write_h5ad(second)
    with pytest.raises(InputError, match=r"'s0' is in .*s0\.h5ad and in .*s1\.h5ad"):
        read_slices([first, second])
    with pytest.raises(InputError, match="'s0' is in"):
        read_slices([first, first])


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_cells(tmp_path / "absent.h5ad")
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="not a readable"):
        read_cells(broken)
    with pytest.raises(InputError, match="csv"):
        write_cells(tmp_path / "cells.csv", Cells(np.zeros((1, 3))))
    assert not (tmp_path / "cells.csv").exists()
