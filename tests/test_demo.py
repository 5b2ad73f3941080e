"""The demonstration, with a tiny untrained network in the shipped one's place."""

import json

import pytest
import torch
import train_phantom
from PIL import Image

from teramind import Atlas, InputError, ModelConfig, TeraMind, save_checkpoint
from teramind.atlas.phantom import Phantom
from teramind.cli import main
from teramind.demo import CHECKPOINT, SEED, demonstrate
from teramind.model.checkpoint import read_header


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    phantom = Phantom()
    config = ModelConfig(
        patch_size=32, genes=len(phantom.genes), base_channels=6, channel_mult=(1, 1, 1, 1), res_blocks=1,
        embed_channels=16,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save_checkpoint(path, TeraMind(config), genes=phantom.genes, stains=phantom.stains, pixel_size=0.4)
    return path


def test_it_makes_a_brain_its_image_and_the_comparison(tmp_path, checkpoint, capsys):
    words = ["generate", "--demo", str(tmp_path / "demo"), "--checkpoint", str(checkpoint), "--steps", "2"]
    assert main(words) == 0
    folder = tmp_path / "demo"
    assert sorted(path.name for path in folder.iterdir()) == [
        "image.ome.zarr",
        "phantom.zarr",
        "redrawn.zarr",
        "report",
        "truth_and_result.png",
    ]
    atlas = Atlas.open(folder / "phantom.zarr")
    assert atlas.pixel_size == 0.4
    report = json.loads((folder / "report" / "report.json").read_text())
    kinds = {row["kind"] for row in report["rows"]}
    assert {"sample", "baseline", "ceiling", "chance"} <= kinds
    assert Image.open(folder / "truth_and_result.png").width > 2 * 512
    assert "nuclei F1" in capsys.readouterr().out


def test_a_name_that_is_taken_is_refused(tmp_path, checkpoint):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine is there already"):
        demonstrate(tmp_path / "mine", checkpoint=checkpoint)


def test_what_fails_leaves_nothing(tmp_path, checkpoint):
    with pytest.raises(InputError, match="steps"):
        demonstrate(tmp_path / "demo", checkpoint=checkpoint, size=64, slices=1, steps=0)
    assert not (tmp_path / "demo").exists()


def test_a_checkpoint_without_a_pixel_size_is_refused(tmp_path):
    config = ModelConfig(genes=1, base_channels=2, channel_mult=(1, 1, 1, 1), embed_channels=2)
    save_checkpoint(tmp_path / "a.safetensors", TeraMind(config))
    with pytest.raises(InputError, match=r"a\.safetensors does not say its pixel size"):
        demonstrate(tmp_path / "demo", checkpoint=tmp_path / "a.safetensors")
    assert not (tmp_path / "demo").exists()


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["generate"]) == 2
    assert "ATLAS is missing" in capsys.readouterr().err
    assert main(["generate", "brain.zarr", "--demo", str(tmp_path / "demo")]) == 2
    assert "leave out one of the two" in capsys.readouterr().err


def test_the_shipped_network_knows_the_phantom_and_not_this_one():
    config, meta = read_header(CHECKPOINT)
    phantom = Phantom(seed=SEED)
    assert meta["genes"] == phantom.genes
    assert meta["stains"] == list(phantom.stains)
    assert config.stains == 2
    assert SEED not in (*train_phantom.TRAINING_SEEDS, train_phantom.HELD_OUT_SEED)
    assert CHECKPOINT.stat().st_size < 20e6
    card = CHECKPOINT.with_name("README.md").read_text()
    assert "teramind train" in card
