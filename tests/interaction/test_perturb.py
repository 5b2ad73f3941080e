"""Images with and without a change: the same beyond its reach, and what is written about them."""

import argparse
import csv
import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from teramind import InputError, generate
from teramind.cli import main
from teramind.interaction import effects as effects_module
from teramind.interaction import screen as screen_module
from teramind.interaction.perturb import add_arguments, perturb
from teramind.ngff import open_levels

FEW = {"steps": 2, "tile": 64, "dtype": "float32", "progress": False}
PATCH = 32
GENES = ["a", "b", "c"]


def voxels(path):
    return np.asarray(open_levels(zarr.open_group(path, mode="r"))[0])


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_names_and_defaults_are_those_of_the_functions():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    of_command = vars(parser.parse_args(["ATLAS", "--output", "OUT", "--checkpoint", "NET"]))
    for function in (perturb, generate):
        for name, value in inspect.signature(function).parameters.items():
            if value.default is not inspect.Parameter.empty and name in of_command:
                assert of_command[name] == value.default
    own = [name for name, value in inspect.signature(perturb).parameters.items() if value.kind != value.VAR_KEYWORD]
    assert set(own) <= set(of_command)
    assert set(of_command) - set(own) <= set(inspect.signature(generate).parameters)
    described = inspect.getdoc(perturb)
    assert all(f"    {name}: " in described for name in own)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, make_atlas):
    """Wide enough for a change at its left end to be without effect at its right end."""
    counts = np.random.default_rng(11).poisson(0.6, (3, 4, 22, 3))
    return make_atlas(tmp_path_factory.mktemp("wide") / "atlas.zarr", counts, 60, 340, GENES, pixel_size=0.108)


@pytest.fixture(scope="module")
def checkpoint_path():
    """Fitted weights: those of a random network drive most voxels to black or white, whatever the genes."""
    return Path(__file__).parents[1] / "data" / "small.safetensors"


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory, wide, checkpoint_path):
    folder = tmp_path_factory.mktemp("perturbed") / "out"
    found = perturb(
        wide,
        checkpoint_path,
        folder,
        ["b=400"],
        region="0:60,96:112",
        seeds=2,
        roi="0:60,0:340",
        slices="0:2",
        **FEW,
    )
    return folder, found


def test_beyond_the_reach_nothing_changes(perturbed):
    folder, found = perturbed
    reach = FEW["steps"] * PATCH
    assert found.reach == reach
    for seed in (0, 1):
        before, after = (voxels(folder / f"seed_{seed}/{name}.ome.zarr") for name in ("before", "after"))
        changed = (before != after).any(axis=(0, 1, 2))
        columns = np.flatnonzero(changed)
        assert 96 - reach <= columns.min() < 96  # it does act further than the changed bins
        assert 112 < columns.max() + 1 <= 112 + reach


def test_what_is_written(perturbed):
    folder, found = perturbed
    before, after = (voxels(folder / f"seed_0/{name}.ome.zarr") for name in ("before", "after"))
    difference = voxels(folder / "difference.ome.zarr")
    assert difference.dtype == np.int16
    assert np.array_equal(difference, after.astype(np.int16) - before)
    assert (folder / "difference.png").stat().st_size > 1000
    table = rows(folder / "effects.csv")
    assert {row["zone"] for row in table} == {"everywhere", "where genes change"}
    assert {row["quantity"] for row in table} >= {
        "nuclei",
        "mean nuclear area, um^2",
        "nuclei lost",
        "mean DAPI, grey levels",
    }
    by_name = {(effect.zone, effect.quantity): effect for effect in found.effects}
    rms = by_name["everywhere", "difference, grey levels (rms)"]
    both = [
        np.sqrt(
            np.square(
                voxels(folder / f"seed_{s}/after.ome.zarr").astype(float) - voxels(folder / f"seed_{s}/before.ome.zarr")
            ).mean()
        )
        for s in (0, 1)
    ]
    assert rms.effect == pytest.approx(np.mean(both))
    seeds = voxels(folder / "seed_0/before.ome.zarr").astype(float) - voxels(folder / "seed_1/before.ome.zarr")
    assert rms.two_seeds == pytest.approx(np.sqrt(np.square(seeds).mean()))
    assert rms.low < rms.effect < rms.high
    assert (folder / "nuclei.csv").exists()
    assert json.loads((folder / "perturbation.json").read_text())["changes"] == ["b=400"]


def test_what_was_begun_goes_on_as_it_was(perturbed, wide, checkpoint_path):
    folder, found = perturbed
    again = {"seeds": 2, "roi": "0:60,0:340", "slices": "0:2", "region": "0:60,96:112", **FEW}
    with pytest.raises(InputError, match="--resume goes on with it"):
        perturb(wide, checkpoint_path, folder, ["b=400"], **again)
    with pytest.raises(InputError, match="begun with another value of changes"):
        perturb(wide, checkpoint_path, folder, ["b=1"], resume=True, **again)
    with pytest.raises(InputError, match="begun with another value of area"):
        perturb(wide, checkpoint_path, folder, ["b=400"], resume=True, **again | {"region": "0:60,0:16"})
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("seed_*/*/zarr.json")}
    assert len(stamps) == 4
    resumed = perturb(wide, checkpoint_path, folder, ["b=400"], resume=True, **again)
    assert str(resumed.effects) == str(found.effects)  # NaN are not equal
    assert {path: path.stat().st_mtime_ns for path in folder.glob("seed_*/*/zarr.json")} == stamps


def test_by_default_what_the_change_can_act_on_is_generated(tmp_path, wide, checkpoint_path, capsys):
    words = ["perturb", str(wide), "--checkpoint", str(checkpoint_path), "--output", str(tmp_path / "out")]
    words += [
        "--swap",
        "a,c",
        "--region",
        "0:60,0:16",
        "--seeds",
        "1",
        "--steps",
        "1",
        "--slices",
        "0:2",
        "--no-progress",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "nothing changes further than 32 px from a changed bin" in said
    assert voxels(tmp_path / "out/seed_0/before.ome.zarr").shape == (2, 2, 60, 64)  # 16 + 32 px, on the patch grid


def test_a_screen_is_sorted_and_goes_on(tmp_path, wide, checkpoint_path, monkeypatch, capsys):
    folder, genes = tmp_path / "out", tmp_path / "genes.txt"
    genes.write_text("a\nb\n")
    options = ["--region", "0:60,0:16", "--seeds", "1", "--steps", "1", "--slices", "0:2", "--no-progress"]
    words = [
        "perturb",
        str(wide),
        "--checkpoint",
        str(checkpoint_path),
        "--output",
        str(folder),
        "--screen",
        str(genes),
        *options,
    ]
    done = []
    append = screen_module.append_line

    def append_and_fail(path, line):
        append(path, line)
        done.append(json.loads(line)["gene"])
        if len(done) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(screen_module, "append_line", append_and_fail)
    assert main(words) == 2
    with (folder / "screen.jsonl").open("a") as journal:
        journal.write('{"gene": "torn')
    genes.write_text("a\nb\nc\n")
    assert main([*words, "--resume"]) == 0
    assert done == ["a", "b", "c"]
    assert "3 genes:" in capsys.readouterr().out
    table = rows(folder / "screen.csv")
    assert {row["gene"] for row in table} == set(done)
    differences = [float(row["difference"]) for row in table]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 0
    assert not (folder / "screen").exists()


@pytest.fixture(scope="module")
def silent(tmp_path_factory, make_atlas):
    """Nothing was read of c."""
    counts = np.random.default_rng(12).poisson(0.6, (3, 2, 4, 3))
    counts[..., 2] = 0
    return make_atlas(tmp_path_factory.mktemp("silent") / "atlas.zarr", counts, 30, 60, GENES, pixel_size=0.108)


SMALL = {"seeds": 2, "steps": 1, "tile": 64, "dtype": "float32", "slices": "0:2", "progress": False}


def test_a_gene_without_effect_stays_within_the_noise(tmp_path, silent, checkpoint_path):
    first, second = perturb(silent, checkpoint_path, tmp_path / "out", screen_genes=["c", "b"], **SMALL).screen
    assert (first.gene, second.gene) == ("b", "c")
    assert first.difference > 0
    assert second.difference == second.relative_difference == second.nuclei_lost == second.nuclei_gained == 0
    assert second.nuclei_low <= 0 <= second.nuclei_high
    assert not second.nuclei_beyond_noise
    found = perturb(silent, checkpoint_path, tmp_path / "alone", ["c=0"], **SMALL)
    assert not any(effect.beyond_noise for effect in found.effects)
    assert all(np.isnan(effect.noise_floor) or effect.noise_floor >= abs(effect.effect) for effect in found.effects)
    assert not voxels(tmp_path / "alone/difference.ome.zarr").any()


def test_images_without_a_change_are_measured_once(tmp_path, silent, checkpoint_path, monkeypatch):
    """A screen of three genes and two seeds looks at two images without a change, and at six with one."""
    seen = []
    find = effects_module.Scales.find

    def find_and_note(self, image, label, pixel_size):
        seen.append(image.path.name)
        return find(self, image, label, pixel_size)

    monkeypatch.setattr(effects_module.Scales, "find", find_and_note)
    together = perturb(silent, checkpoint_path, tmp_path / "out", screen_genes=["a", "b", "c"], **SMALL).screen
    assert seen.count("before.ome.zarr") == 2
    assert len(seen) == 2 + 6
    alone = perturb(silent, checkpoint_path, tmp_path / "alone", screen_genes=["b"], **SMALL).screen
    [expected] = [replace(row, nuclei_q=row.nuclei_p) for row in together if row.gene == "b"]
    assert str(alone) == str([expected])  # NaN are not equal


DIES = """
import json, os, signal, sys
from teramind.interaction import experiment, perturb
measure = experiment.Experiment.measure
calls = []
def measure_or_die(self, changed):
    calls.append(changed)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self, changed)
experiment.Experiment.measure = measure_or_die
atlas, checkpoint, output, options = sys.argv[1:]
perturb.perturb(atlas, checkpoint, output, screen_genes=["a", "b", "c"], **json.loads(options))
"""


def test_a_killed_screen_goes_on(tmp_path, silent, checkpoint_path):
    """SIGKILL when the images of the second gene are there and its row is not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = SMALL | {"seeds": 1}
    words = [sys.executable, "-c", DIES, silent, checkpoint_path, tmp_path / "out", json.dumps(options)]
    killed = subprocess.run(words, check=False, env=environment, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert [row["gene"] for row in rows(tmp_path / "out/screen.csv")] == ["a"]
    for name, resume in (("out", True), ("whole", False)):
        perturb(silent, checkpoint_path, tmp_path / name, screen_genes=["a", "b", "c"], resume=resume, **options)
    assert (tmp_path / "out/screen.csv").read_text() == (tmp_path / "whole/screen.csv").read_text()


def test_nothing_of_what_is_replaced_stays(tmp_path, silent, checkpoint_path):
    folder, options = tmp_path / "out", SMALL | {"seeds": 1}
    (folder / "seed_77").mkdir(parents=True)
    perturb(silent, checkpoint_path, folder, screen_genes=["a"], overwrite=True, **options)
    assert (folder / "seed_77").exists()  # it was no perturbation's folder
    with pytest.raises(InputError, match="begun with another value of changes"):
        perturb(silent, checkpoint_path, folder, ["a=0"], resume=True, **options)
    (folder / "notes.txt").write_text("mine")
    perturb(silent, checkpoint_path, folder, ["a=0"], overwrite=True, **options | {"seed": 4})
    names = {"seed_4", "effects.csv", "nuclei.csv", "difference.ome.zarr", "difference.png", "perturbation.json"}
    assert {path.name for path in folder.iterdir()} == names | {"notes.txt"}


def test_bins_that_no_window_reads_are_told(tmp_path, make_atlas, checkpoint_path, capsys):
    """A mask in the last of eight slices, of which the images of the first two show nothing."""
    counts = np.random.default_rng(13).poisson(0.6, (8, 2, 4, 3))
    atlas = make_atlas(tmp_path / "atlas.zarr", counts, 30, 60, GENES, pixel_size=0.108)
    bins = np.zeros((8, 2, 4), np.uint8)
    bins[7] = 1
    np.save(tmp_path / "mask.npy", bins)
    folder = tmp_path / "out"
    words = ["perturb", str(atlas), "--checkpoint", str(checkpoint_path), "--output", str(folder), "--steps", "1"]
    words += ["--region", str(tmp_path / "mask.npy"), "--slices", "0:2", "--set", "a=0"]
    assert main(words) == 2
    assert "made from the genes of slices 0:" in capsys.readouterr().err
    assert not folder.exists()


def test_a_change_beside_the_image_is_screened_by_what_the_image_shows(tmp_path, wide, checkpoint_path):
    """The image begins beyond the changed bins, and within their reach."""
    options = {"seeds": 1, "steps": 1, "tile": 64, "dtype": "float32", "slices": "0:2", "progress": False}
    where = {"region": "0:60,48:64", "roi": "0:60,64:128"}
    [row] = perturb(wide, checkpoint_path, tmp_path / "out", screen_genes=["b"], **where, **options).screen
    assert row.difference > 0


def test_a_fresh_run_speaks_of_nothing_to_resume(tmp_path, silent, checkpoint_path, caplog):
    caplog.set_level("INFO")
    perturb(silent, checkpoint_path, tmp_path / "out", ["a=0"], **SMALL | {"seeds": 1})
    assert "nothing to resume" not in caplog.text


def test_an_output_that_is_a_file_is_told(tmp_path, silent, checkpoint_path):
    (tmp_path / "afile").touch()
    with pytest.raises(InputError, match="afile is a file; name a folder"):
        perturb(silent, checkpoint_path, tmp_path / "afile", ["a=0"], **SMALL)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "either --set, --scale and --swap, or --screen"),
        (["--set", "a=0", "--screen", "x"], "either --set, --scale and --swap, or --screen"),
        (["--screen", os.devnull], "is empty"),
        (["--set", "a=0", "--match-radius", "0"], "matched within 0 um"),
        (["--set", "a=0", "--steps", "7000"], "7000 DDIM steps do not"),
        (["--set", "a=0", "--tile", "48"], "48"),
        (["--set", "d=0"], "panel of 3 genes lacks d"),
        (["--set", "a=0", "--seeds", "0"], "0 seeds make no image"),
        (["--set", "a=0", "--nuclear-stain", "NeuN"], "no stain NeuN"),
        (["--set", "a=0", "--region", "nowhere"], "'nowhere' is neither"),
        (["--set", "a=0", "--region", "0:60,400:500"], "outside 0:340"),
        (["--set", "a=0", "--region", "0:60,0:16", "--roi", "0:60,200:340", "--steps", "2"], "shows nothing of the"),
        (["--set", "a=0", "--resume", "--overwrite"], "either --resume or --overwrite"),
    ],
)
def test_what_cannot_be_asked_leaves_nothing(tmp_path, wide, checkpoint_path, capsys, words, sentence):
    folder = tmp_path / "out"
    assert main(["perturb", str(wide), "--checkpoint", str(checkpoint_path), "--output", str(folder), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not folder.exists()
