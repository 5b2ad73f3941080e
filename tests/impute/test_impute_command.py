"""The command, end to end on a small brain: train, fill, evaluate; and what it says when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from synthetic_brain import SICK_TYPES, coronal_series

from teramind.cli import main
from teramind.impute.cells import Cells, join_cells
from teramind.impute.data import NAMES, read_cells, write_cells
from teramind.impute.differential import differential_expression, write_tables
from teramind.impute.evaluation import compare
from teramind.impute.filling import express, fill
from teramind.impute.model_files import read_tensors, write_tensors
from teramind.impute.models import Models
from teramind.impute.placement import PlacementOptions
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc

pytest.importorskip("anndata")

QUICK = ["--size", "tiny", "--steps-locations", "120", "--steps-types", "120", "--steps-expression", "120"]

THREE_STEPS = ["--size", "tiny", "--steps-locations", "3", "--steps-types", "3", "--steps-expression", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, slices, held_out):
    """Three measured slices in two files, and the truth of the one between."""
    folder = tmp_path_factory.mktemp("impute")
    write_cells(folder / "front.h5ad", slices[2])
    write_cells(folder / "back.h5ad", join_cells(slices[4:6]))
    write_cells(folder / "truth.h5ad", held_out[0])
    return folder


def measured_files(folder):
    return [str(folder / name) for name in ("front.h5ad", "back.h5ad")]


@pytest.fixture(scope="module")
def trained(folder):
    assert main(["impute", "train", *measured_files(folder), "--models", str(folder / "models"), *QUICK]) == 0
    return folder / "models"


def test_train_fill_evaluate(folder, trained, held_out, capsys):
    truth, plane = held_out
    made = folder / "made.h5ad"
    where = f"coronal:{plane.offset}"
    words = ["impute", "fill", str(trained), *measured_files(folder), "--output", str(made), "--plane", where]
    assert main(words) == 0
    said = capsys.readouterr().out
    cells = read_cells(made, raw_counts=False)
    assert f"{len(cells):,} cells" in said
    assert len(cells) == pytest.approx(len(truth), rel=0.15)
    assert np.abs(cells.positions[:, 2] - plane.offset).max() <= 0.0051
    assert set(cells.types) <= set(truth.types)
    assert set(cells.sections) == {"imputed"}
    assert set(cells.metadata["disease_state"]) == {"healthy"}
    assert main([*words]) == 2
    assert "exists" in capsys.readouterr().err
    scores = folder / "scores.json"
    files = [str(folder / "truth.h5ad"), str(made), "--measured", *measured_files(folder)]
    assert main(["impute", "evaluate", *files, "--output", str(scores), "--radii", "0.05", "0.1"]) == 0
    table = capsys.readouterr().out
    for name in ("prediction", "rule-based baseline", "shuffled rows", "mean profile", "type means"):
        assert name in table
    content = json.loads(scores.read_text())
    assert content["version"] == 2
    values = {name: content["soft"][name]["spearman"]["0.1"] for name in content["soft"]}
    assert values["prediction"] > values["shuffled rows"]
    assert content["layout"]["prediction"]["copies"] < 0.05 < content["layout"]["rule-based baseline"]["copies"]


def test_the_same_seed_writes_the_same_cells(folder, trained, held_out):
    plane = held_out[1]
    made = [folder / f"again{index}.h5ad" for index in range(3)]
    for path, seed in zip(made, ("5", "5", "6"), strict=True):
        words = ["--output", str(path), "--plane", f"sagittal:{2.05}", "--hole", "disc:2.1,4.0,0.25", "--seed", seed]
        assert main(["impute", "fill", str(trained), *measured_files(folder), *words, "--steps", "8"]) == 0
    first, second, third = (read_cells(path, raw_counts=False) for path in made)
    np.testing.assert_array_equal(first.positions, second.positions)
    assert (first.counts != second.counts).nnz == 0
    assert len(third) != len(first) or (third.positions != first.positions).any()
    flat = Plane.sagittal(2.05).flatten(first.positions)
    assert Disc((2.1, 4.0), 0.25).contains(flat).all()
    assert plane.normal != Plane.sagittal(2.05).normal


def test_a_killed_training_goes_on_to_the_same_models(folder, trained):
    """Killed without warning while it trains, then resumed."""
    again = folder / "killed"
    words = [*measured_files(folder), "--models", str(again), *QUICK]
    code = (
        "import dataclasses, sys, torch; import teramind.impute.fitting as f; torch.set_num_threads(1); "
        "f.PRESETS['tiny'] = f.Preset(f.PRESETS['tiny'].shapes, "
        "tuple(dataclasses.replace(o, save_every=20) for o in f.PRESETS['tiny'].options)); "
        "from teramind.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "impute", "train", *words], stderr=subprocess.DEVNULL)
    state = again / "training" / "types.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (again / "expression.safetensors").exists()
    assert main(["impute", "train", *words]) == 2  # neither --resume nor --overwrite
    assert main(["impute", "train", *words, "--resume"]) == 0
    for name in ("locations", "types", "expression"):
        assert (again / f"{name}.safetensors").read_bytes() == (trained / f"{name}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(folder):
    """A folder of models after three steps each."""
    assert main(["impute", "train", *measured_files(folder), "--models", str(folder / "finished"), *THREE_STEPS]) == 0
    return folder / "finished"


def files_of(models):
    return {path.relative_to(models): path.read_bytes() for path in models.rglob("*") if path.is_file()}


def of_another_tissue(folder):
    write_cells(folder / "one.h5ad", read_cells(folder / "front.h5ad"))
    return [str(folder / "one.h5ad")], []


def with_another_order(folder):
    (folder / "edges.tsv").write_text("source\ttarget\ngene005\tgene001\n")
    return measured_files(folder), ["--grn", str(folder / "edges.tsv")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_another_tissue, "other positions, sections, types, expression, labels;"),
        (with_another_order, "other order of genes;"),
        (lambda folder: (measured_files(folder), ["--start", str(folder / "models")]), "models to start from"),
        (lambda folder: (measured_files(folder), ["--seed", "1"]), "other seed;"),
        (lambda folder: (measured_files(folder), ["--steps-types", "4"]), "steps or options for types;"),
        (lambda folder: (measured_files(folder), ["--size", "small"]), "size"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_a_training_goes_on_with_the_same_alone(folder, finished, change, said, capsys):
    before = files_of(finished)
    data, words = change(folder)
    assert main(["impute", "train", *data, "--models", str(finished), *THREE_STEPS, *words, "--resume"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert files_of(finished) == before


def test_finished_models_are_not_replaced_by_resuming(folder, finished, tmp_path, capsys):
    words = ["impute", "train", *measured_files(folder), *THREE_STEPS, "--resume", "--models"]
    before = files_of(finished)
    assert main([*words, str(finished)]) == 0
    assert files_of(finished) == before
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "training" / "given.json").unlink()
    assert main([*words, str(copy)]) == 2
    assert "does not say which cells" in capsys.readouterr().err
    shutil.rmtree(copy / "training")
    before = files_of(copy)
    assert main([*words, str(copy)]) == 2
    assert "nothing to go on with" in capsys.readouterr().err
    assert files_of(copy) == before


def test_fine_tuning_from_the_command(folder, trained, slices, caplog):
    """On a panel that lacks genes and has one that the models do not know."""
    new = folder / "new.h5ad"
    write_cells(new, join_cells(slices[2:4]).with_genes([*slices[0].genes[:15], "unheard"]))
    words = [str(new), "--models", str(folder / "tuned"), "--start", str(trained), *QUICK[:2]]
    few = ["--steps-locations", "5", "--steps-types", "5", "--steps-expression", "5"]
    assert main(["impute", "train", *words, *few]) == 0
    assert "genes that the models do not know are left out: 1, unheard for one" in caplog.text
    tuned = Models.load(folder / "tuned")
    assert tuned.expression.vocabulary.genes == Models.load(trained).expression.vocabulary.genes


def test_measured_cells_get_genes_that_they_lack(folder, trained, brain, held_out):
    """The panel of the file lacks a third of the genes."""
    truth, _ = held_out
    small, made = folder / "small.h5ad", folder / "extended.h5ad"
    kept = [gene for index, gene in enumerate(brain.genes) if index % 3]
    names = np.array([f"row {index}" for index in range(len(truth))])
    named = replace(truth, metadata=dict(truth.metadata) | {NAMES: names})
    write_cells(small, named.with_genes(kept), types="kind", sections="slide")
    words = [str(small), "--output", str(made), "--expression-only", "--genes", "all"]
    assert main(["impute", "fill", str(trained), *words, "--types", "kind", "--sections", "slide"]) == 0
    cells = read_cells(made, types="kind", sections="slide", raw_counts=False)
    np.testing.assert_array_equal(cells.sections, truth.sections)
    np.testing.assert_array_equal(cells.metadata[NAMES], names)
    np.testing.assert_array_equal(cells.positions, truth.positions)
    np.testing.assert_array_equal(cells.types, truth.types)
    lacking = cells.with_genes([gene for gene in brain.genes if gene not in kept])
    assert (lacking.counts.sum(axis=0) > 0).all()


def broken_files(folder):
    (folder / "latin1.txt").write_bytes("gène".encode("latin-1"))
    (folder / "twice.txt").write_text("gene003\ngene001\ngene003\n")
    (folder / "empty.npz").write_bytes(b"")
    mask = {"inside": np.ones((3, 3), bool), "pixel": 0.1}
    np.savez(folder / "torn.npz", origin=[0.0, 0.0], **mask)
    (folder / "torn.npz").write_bytes((folder / "torn.npz").read_bytes()[:-40])
    np.savez(folder / "nowhere.npz", origin=[np.nan, 0.0], **mask)


def test_types_are_drawn_as_asked(folder, trained, tmp_path):
    """The same cells in the same places, with other draws of their types."""
    made = {}
    for draws in ("independent", "even"):
        words = ["impute", "fill", str(trained), *measured_files(folder), "--plane", "coronal:4", "--guidance", "0"]
        assert main([*words, "--output", str(tmp_path / f"{draws}.h5ad"), "--type-draws", draws]) == 0
        made[draws] = read_cells(tmp_path / f"{draws}.h5ad", sections=None, raw_counts=False)
    np.testing.assert_array_equal(made["independent"].positions, made["even"].positions)
    assert (made["independent"].types != made["even"].types).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plane", "coronal:9"], "outside the tissue"),
        (["--plane=-1,2,2,1,0,0"], "outside the tissue"),
        (["--plane", "coronal:nan"], "not finite"),
        (["--plane", "coronal:4", "--hole", "disc:2,2,0"], "empty"),
        (["--plane", "coronal:4", "--hole", "polygon:1,1,2,2,3,3"], "empty"),
        (["--plane", "coronal:4", "--type-temperature", "0"], "temperature of types"),
        (["--plane", "coronal:4", "--hole", "disc:9,9,0.2"], "no tissue around the hole"),
        (["--plane", "coronal:4", "--hole", "mask:absent.npz"], "absent.npz is no mask"),
        (["--plane", "coronal:4", "--hole", "circle:1,1,1"], "does not read as"),
        (["--plane", "tilted:4"], "does not read as"),
        (["--plane", "coronal:4", "--set", "disease_state=tired"], "not trained with"),
        (["--plane", "coronal:4", "--set", "healthy"], "NAME=VALUE"),
        (["--plane", "coronal:4", "--genes", "absent.txt"], "absent.txt"),
        (["--plane", "coronal:4", "--types", "kind"], "no column 'kind'"),
        (["--plane", "coronal:4", "--section-thickness", "0"], "thickness of a section"),
        (["--plane", "coronal:4", "--genes", "latin1.txt"], "no UTF-8 text"),
        (["--plane", "coronal:4", "--genes", "twice.txt"], "names the gene 'gene003' twice"),
        (["--plane", "coronal:4", "--hole", "mask:empty.npz"], "empty.npz is no mask"),
        (["--plane", "coronal:4", "--hole", "mask:torn.npz"], "torn.npz is no mask"),
        (["--plane", "coronal:4", "--hole", "mask:nowhere.npz"], "origin is (nan, 0.0)"),
        (["--plane", "coronal:4", "--differential", "genes.tsv"], "give --expression-only and --set"),
        (["--expression-only", "--differential", "genes.tsv"], "give --expression-only and --set"),
        ([], "either --plane"),
        (["--plane", "coronal:4", "--output", "OUTPUT.csv"], "written as .h5ad"),
        (["--plane", "coronal:4", "--output", "FOLDER/front.h5ad/made.h5ad"], "no folder that can be written"),
        (["--plane", "coronal:4", "--output", "FOLDER/front.h5ad"], "exists"),
    ],
)
def test_one_sentence_and_nothing_half_written(folder, trained, words, said, tmp_path, monkeypatch, capsys):
    output = folder / "never.h5ad"
    words = [word.replace("FOLDER", str(folder)) for word in words]
    monkeypatch.chdir(tmp_path)
    broken_files(tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    assert main(["impute", "fill", str(trained), *measured_files(folder), "--output", str(output), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_failing_evaluation_leaves_no_scores(folder, held_out, tmp_path, capsys):
    other = tmp_path / "other.h5ad"
    write_cells(other, replace(held_out[0], types=np.array([f"other {name}" for name in held_out[0].types])))
    scores, table = tmp_path / "scores.json", tmp_path / "genes.tsv"
    words = ["impute", "evaluate", str(folder / "truth.h5ad"), str(other), "--output", str(scores), "--radii", "0.05"]
    assert main([*words, "--differential", str(table)]) == 2
    assert "no type has" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other.h5ad"]
    scores.write_text("kept")
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert scores.read_text() == "kept"
    assert main([*words, "--overwrite"]) == 0
    assert json.loads(scores.read_text())["version"] == 2


def unaligned(cells):
    return replace(cells, positions=cells.positions + np.where(cells.sections == cells.sections[0], 5.0, 0.0)[:, None])


def of_another_type(cells):
    return replace(cells, types=np.where(np.arange(len(cells)) == 5, "unheard", cells.types))


@pytest.mark.parametrize("task", ["train", "fill"])
@pytest.mark.parametrize(("shift", "name", "said"), [(5.0, "moved", "hardly overlap"), (0.0, "coronal02", "is in")])
def test_files_that_do_not_fit_together(folder, trained, slices, tmp_path, task, shift, name, said, capsys):
    other, section = tmp_path / "other.h5ad", np.full(len(slices[3]), name)
    write_cells(other, replace(slices[3], positions=slices[3].positions + np.array([shift, 0, 0]), sections=section))
    before = sorted(path.name for path in folder.iterdir())
    data = [str(folder / "front.h5ad"), str(other)]
    never = str(tmp_path / "never.h5ad")
    words = [*data, "--models", never, *QUICK]
    if task == "fill":
        words = [str(trained), *data, "--output", never, "--plane", "coronal:4"]
    assert main(["impute", task, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.h5ad"]
    assert sorted(path.name for path in folder.iterdir()) == before


def of_one_type(cells):
    return replace(cells, types=np.full(len(cells), "one"))


def with_two_labelled_cells(cells):
    """In a slice whose other cells have no type."""
    rows = np.flatnonzero(cells.sections == cells.sections[0])[2:]
    return replace(cells, types=np.where(np.isin(np.arange(len(cells)), rows), "", cells.types))


def of_other_genes(cells):
    return replace(cells, genes=tuple(f"other{index}" for index in range(len(cells.genes))))


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        (lambda cells: replace(cells, counts=cells.counts * 0), [], "X is all zero"),
        (of_other_genes, ["--start", "models"], "those that the models know"),
        (of_one_type, [], "two kinds are needed"),
        (with_two_labelled_cells, [], "has 2 cells"),
        (lambda cells: cells, ["--types", "kind"], "no column 'kind'"),
        (lambda cells: cells, ["--sections", "slide"], "no column 'slide'"),
        (unaligned, [], "hardly overlap"),
        (of_another_type, ["--start", "models"], "does not know type 'unheard'"),
        (lambda cells: cells, ["--start", "absent"], "no folder"),
        (lambda cells: cells, ["--grn", "absent.tsv"], "absent.tsv"),
        ("nan", [], "nan"),
    ],
)
def test_training_says_what_is_wrong_and_writes_nothing(trained, slices, tmp_path, spoil, words, said, capsys):
    cells, path = join_cells(slices[2:4]), tmp_path / "spoilt.h5ad"
    write_cells(path, cells if spoil == "nan" else spoil(cells))
    if spoil == "nan":
        import anndata

        data = anndata.read_h5ad(path)
        data.obsm["aligned_spatial"][3, 0] = np.nan
        data.write_h5ad(path)
    words = [str(trained) if word == "models" else word for word in words]
    assert main(["impute", "train", str(path), "--models", str(tmp_path / "never"), *QUICK, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("teramind: error") == 1
    assert error.endswith("\n")
    assert [made.name for made in tmp_path.iterdir()] == ["spoilt.h5ad"]


def test_models_that_are_not_there(folder, trained, tmp_path, capsys):
    words = [*measured_files(folder), "--output", str(tmp_path / "x.h5ad"), "--plane", "coronal:4"]
    assert main(["impute", "fill", str(tmp_path / "absent"), *words]) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "half").mkdir()
    os.link(trained / "locations.safetensors", tmp_path / "half" / "locations.safetensors")
    assert main(["impute", "fill", str(tmp_path / "half"), *words]) == 2
    assert "types.safetensors: finish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("locations", lambda header: header["config"].update(width=7)),
        ("types", lambda header: header["names"].append("another")),
        ("types", lambda header: header["config"].update(colour="red")),
        ("expression", lambda header: header.pop("vocabulary")),
        ("expression", lambda header: header["config"].update(width=16)),
    ],
)
def test_a_header_that_does_not_fit_its_tensors(folder, trained, tmp_path, stage, change, capsys):
    models = tmp_path / "models"
    shutil.copytree(trained, models, ignore=shutil.ignore_patterns("training"))
    tensors, header = read_tensors(models / f"{stage}.safetensors", stage)
    change(header)
    write_tensors(models / f"{stage}.safetensors", stage, tensors, header)
    words = [*measured_files(folder), "--output", str(tmp_path / "x.h5ad"), "--plane", "coronal:4"]
    assert main(["impute", "fill", str(models), *words]) == 2
    error = capsys.readouterr().err
    assert f"{stage}.safetensors was changed: its header" in error
    assert error.count("\n") == 1


def test_a_hole_by_its_function(location_model, expression_model, slices, measured, held_out, trained):
    """Nothing of the target is given: the slice itself is absent."""
    models = Models(location_model, Models.load(trained).types, expression_model)
    region = Disc((2.0, 2.0), 0.2)
    filled = fill(
        models, measured, held_out[1], region, placement=PlacementOptions(steps=8), genes=["gene003", "gene001"]
    )
    assert filled.cells.genes == ("gene003", "gene001")
    assert region.contains(held_out[1].flatten(filled.cells.positions)).all()
    result = compare(slices[3], {"hole": filled.cells}, held_out[1], radii=[0.05])
    assert result.genes == 2


def test_the_healthy_control_of_a_sick_tissue(brain, measured, expression_model):
    """What differs between sick cells and their healthy control is what sickness changes, in the types it changes."""
    from teramind.impute.expression import train_expression
    from teramind.impute.training import TrainingOptions

    sick = join_cells(coronal_series(brain, 4, seed=3, sick=True))
    options = TrainingOptions(steps=250, batch=64, learning_rate=8e-3)
    both = train_expression(join_cells([measured, sick]), options, config=expression_model.config)
    models = Models.__new__(Models)
    object.__setattr__(models, "expression", both)
    sections = sick[sick.sections == "coronal01"]
    control = express(models, sections, conditions={"disease_state": "healthy"})
    same = express(models, sections)
    assert set(control.metadata["disease_state"]) == {"healthy"}
    assert set(same.metadata["disease_state"]) == {"sick"}
    changed = {gene for index, gene in enumerate(brain.genes) if index % 7 == 0}
    for table in differential_expression(same, control):
        truly = table.type in {str(brain.types[kind]) for kind in SICK_TYPES}
        rise = {gene: table.log2_fold_change[table.genes.index(gene)] for gene in changed}
        strong = [gene for gene in changed if brain.profiles[int(table.type[-2:]), brain.genes.index(gene)] > 0.3]
        if truly and strong:
            assert np.mean([rise[gene] for gene in strong]) > 0.7
            assert table.found() & changed
        elif not truly:
            assert len(table.found(fold=2)) <= 3


def test_differences_from_the_command(brain, slices, tmp_path, capsys):
    """Models of both states; the same cells, sick, written as they are and healthy."""
    sick = coronal_series(brain, 4, seed=3, sick=True)[1]
    write_cells(tmp_path / "sick.h5ad", sick)
    write_cells(tmp_path / "healthy.h5ad", slices[2])
    data = [str(tmp_path / "sick.h5ad"), str(tmp_path / "healthy.h5ad")]
    assert main(["impute", "train", *data, "--models", str(tmp_path / "both"), *QUICK]) == 0
    made, again, table = tmp_path / "made.h5ad", tmp_path / "again.h5ad", tmp_path / "genes.tsv"
    words = ["impute", "fill", str(tmp_path / "both"), data[0], "--expression-only", "--output"]
    assert main([*words, str(made), "--set", "disease_state=healthy", "--differential", str(table)]) == 0
    lines = table.read_text().splitlines()
    assert lines[0].startswith("# teramind-differential-expression version 1: ")
    assert "disease_state=healthy, both generated" in lines[0]
    assert main([*words, str(again)]) == 0
    capsys.readouterr()
    compared = tmp_path / "compared.tsv"
    words = ["impute", "evaluate", "--radii", "0.05", "--differential", str(compared)]
    assert main([*words, str(again), str(made)]) == 0
    assert compared.read_text().splitlines()[1:] == lines[1:]
    capsys.readouterr()
    assert main([*words, "--overwrite", data[0], str(made)]) == 2
    assert "compare counts with generated values" in capsys.readouterr().err


def test_a_table_of_differences(tmp_path):
    generator = np.random.default_rng(0)
    types = np.repeat(["a", "b", "rare"], [200, 200, 2])
    counts = generator.poisson(2.0, (402, 11)).astype(float)
    counts[:, 10] = 1
    from scipy.sparse import csr_array

    genes = tuple(f"g{index}" for index in range(11))
    control = Cells(generator.random((402, 3)), types, csr_array(counts), genes)
    changed = counts.copy()
    changed[types == "a", 3] = generator.poisson(6.0, 200)
    cells = Cells(control.positions, types, csr_array(changed), genes)
    tables = differential_expression(cells, control)
    assert [table.type for table in tables] == ["a", "b"]
    assert tables[0].found() == {"g3"}
    assert tables[1].found() == set()
    assert tables[0].p_value[10] == 1
    path = tmp_path / "differences.tsv"
    write_tables(path, tables)
    rows = path.read_text().splitlines()
    assert rows[0] == "# teramind-differential-expression version 1: cells over their control"
    assert rows[2].startswith("a\tg3\t1.")
    assert len(rows) == 2 + 22
