"""The command is a thin cover of the function."""

import argparse
import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import teramind
from teramind import InputError
from teramind.cli import main
from teramind.demo import demonstrate
from teramind.generate import add_arguments, generate

FEW = ["--steps", "2", "--tile", "64", "--roi", "0:64,0:64", "--slices", "0:2", "--border", "constant"]


def test_names_and_defaults_are_those_of_the_function():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    of_command = vars(parser.parse_args(["ATLAS", "OUTPUT", "--checkpoint", "NET"]))
    assert of_command.pop("demo") is None  # another function's
    of_function = {name: value.default for name, value in inspect.signature(generate).parameters.items()}
    required = {name for name, value in of_function.items() if value is inspect.Parameter.empty}
    assert required == {"atlas", "checkpoint", "output"}
    assert of_command == of_function | {"atlas": "ATLAS", "output": "OUTPUT", "checkpoint": "NET"}


def test_every_option_is_documented_in_both_places():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    described = inspect.getdoc(generate)
    for action in parser._actions:
        assert action.help
        if action.dest not in ("help", "demo"):
            assert f"    {action.dest}: " in described


def test_the_demonstration_takes_as_many_steps_as_a_run():
    """The command passes its own default on."""
    default = inspect.signature(generate).parameters["steps"].default
    assert inspect.signature(demonstrate).parameters["steps"].default == default


@pytest.mark.parametrize("words", [["-m", "teramind.generate"], ["-m", "teramind", "generate"]])
def test_both_commands_help(words):
    done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: teramind generate")
    assert "--snapshot-minutes" in done.stdout
    assert not done.stderr


def test_the_name_is_a_function_however_it_was_imported():
    code = (
        "import teramind; before = teramind.generate; import teramind.generate; "
        "assert callable(before) and callable(teramind.generate); "
        "from teramind import generate; from teramind.generate import generate as function; "
        "assert callable(generate) and callable(function)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_and_the_function_do_the_same(tmp_path, atlas_path, checkpoint_path):
    options = {"steps": 2, "tile": 64, "roi": "0:64,0:64", "slices": "0:1", "border": "constant", "progress": False}
    module = sys.modules["teramind.generate"]
    for number, function in enumerate((module, generate, teramind.generate)):
        function(atlas_path, checkpoint_path, tmp_path / f"{number}.ome.zarr", **options)
    images = [np.asarray(zarr.open_group(tmp_path / f"{number}.ome.zarr", mode="r")["0"]) for number in range(3)]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_the_command_prints_what_was_done(tmp_path, atlas_path, checkpoint_path, capsys):
    path = tmp_path / "image.ome.zarr"
    assert main(["generate", str(atlas_path), str(path), "--checkpoint", str(checkpoint_path), *FEW]) == 0
    said = capsys.readouterr()
    assert "16,384 voxels in" in said.out
    assert "waiting for input" in said.out
    assert json.loads((path / "teramind-report.json").read_text())["halo_read_amplification"] <= 1.1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.zarr", "out.ome.zarr", "--checkpoint", "{net}"], "there is no atlas nowhere.zarr"),
        (["{atlas}", "out.ome.zarr", "--checkpoint", "{net}", "--tile", "33"], "take 32 or 64"),
        (["{atlas}", "out.ome.zarr", "--checkpoint", "{net}", "--roi", "5:1,0:9"], "5:1"),
        (["{atlas}", "out.ome.zarr", "--checkpoint", "nothing.ckpt"], "nothing.ckpt"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(tmp_path, atlas_path, checkpoint_path, words, sentence):
    words = [word.format(atlas=atlas_path, net=checkpoint_path) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "teramind", "generate", *words], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("teramind: error: ")
    assert sentence in last
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


# ---- what is written beside the voxels -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory, atlas_path, checkpoint_path):
    path = tmp_path_factory.mktemp("written") / "image.ome.zarr"
    options = {"steps": 2, "tile": 64, "roi": "0:64,0:96", "border": "constant", "format": "ome-tiff"}
    generate(atlas_path, checkpoint_path, path, **options)
    return path, options


def test_a_preview_in_the_stains_colours(written):
    path, _ = written
    picture = np.asarray(Image.open(path / "preview.png"))
    assert picture.shape == (64, 96, 3)
    middle = np.asarray(zarr.open_group(path, mode="r")["0"])[:, 1].astype(float)
    assert picture.std() > 5
    # DAPI is blue and PolyT yellow: where one is strong, so is its colour
    assert np.corrcoef(picture[:40, :48, 2].ravel(), middle[0, :40, :48].ravel())[0, 1] > 0.3


def test_ome_tiff_has_the_voxels_of_the_image(written):
    path, _ = written
    voxels = np.asarray(zarr.open_group(path, mode="r")["0"])
    folder = path.with_name("image.ome-tiff")
    assert sorted(entry.name for entry in folder.iterdir()) == [f"z{z:03d}.ome.tif" for z in range(3)]
    for z in range(3):
        assert np.array_equal(np.squeeze(tifffile.imread(folder / f"z{z:03d}.ome.tif")), voxels[:, z])


def test_ome_tiff_is_refused_replaced_and_gone_on_with(written, atlas_path, checkpoint_path):
    path, options = written
    folder = path.with_name("image.ome-tiff")
    with pytest.raises(InputError, match=r"image\.ome-tiff exists already"):
        generate(atlas_path, checkpoint_path, path, **options)
    (folder / "z001.ome.tif").unlink()
    kept = (folder / "z000.ome.tif").stat().st_mtime_ns
    generate(atlas_path, checkpoint_path, path, resume=True, **options)  # killed in the middle of the export
    assert (folder / "z001.ome.tif").exists()
    assert (folder / "z000.ome.tif").stat().st_mtime_ns == kept
    generate(atlas_path, checkpoint_path, path, overwrite=True, **(options | {"seed": 1}))
    voxels = np.asarray(zarr.open_group(path, mode="r")["0"])
    assert np.array_equal(np.squeeze(tifffile.imread(folder / "z000.ome.tif")), voxels[:, 0])


def test_an_unknown_format(tmp_path, atlas_path, checkpoint_path):
    with pytest.raises(InputError, match="'png'; it has to be ome-zarr or ome-tiff"):
        generate(atlas_path, checkpoint_path, tmp_path / "x.ome.zarr", format="png")


def test_a_single_slice_has_no_spacing_and_that_is_said(tmp_path, write_atlas, checkpoint_path):
    atlas = write_atlas(tmp_path / "one.zarr", slices=1, height=64, width=64)
    generate(atlas, checkpoint_path, tmp_path / "x.ome.zarr", steps=2)
    attributes = zarr.open_group(tmp_path / "x.ome.zarr", mode="r").attrs
    assert attributes["teramind"]["parameters"]["z_spacing_known"] is False
    scale = attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [1, 0.108, 0.108, 0.108]
