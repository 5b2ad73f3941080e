"""Images with and without a change: the same beyond its reach, and what is written about them."""

import argparse
import csv
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from teramind import InputError, generate
from teramind.cli import main
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
    assert rms.noise_floor == pytest.approx(np.sqrt(np.square(seeds).mean()))
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "either --set, --scale and --swap, or --screen"),
        (["--set", "a=0", "--screen", "x"], "either --set, --scale and --swap, or --screen"),
        (["--set", "d=0"], "panel of 3 genes lacks d"),
        (["--set", "a=0", "--seeds", "0"], "0 seeds make no image"),
        (["--set", "a=0", "--nuclear-stain", "NeuN"], "no stain NeuN"),
        (["--set", "a=0", "--region", "nowhere"], "'nowhere' is neither"),
        (["--set", "a=0", "--resume", "--overwrite"], "either --resume or --overwrite"),
    ],
)
def test_what_cannot_be_asked_leaves_nothing(tmp_path, wide, checkpoint_path, capsys, words, sentence):
    folder = tmp_path / "out"
    assert main(["perturb", str(wide), "--checkpoint", str(checkpoint_path), "--output", str(folder), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not folder.exists()
