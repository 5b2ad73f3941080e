import json
import os
import pathlib

import pytest
import torch

from teramind import InputError, ModelConfig, TeraMind, load_checkpoint, save_checkpoint
from teramind.model.checkpoint import describe, infer_config

SMALL = ModelConfig(
    patch_size=32, genes=3, gene_slices=4, stains=1, base_channels=4, channel_mult=(1, 1, 2, 2), embed_channels=8
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TeraMind(SMALL)


def test_round_trip(tmp_path, net):
    meta = {"genes": ["a", "b", "c"], "stains": ["DAPI"], "pixel_size": 0.108, "scaling": {"DAPI": [3.0, 900.0]}}
    save_checkpoint(tmp_path / "m.safetensors", net, **meta)
    loaded, loaded_meta = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.config == SMALL
    assert loaded_meta == meta
    assert not loaded.training
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert [*tmp_path.iterdir()] == [tmp_path / "m.safetensors"]
    assert "0.108" in describe(tmp_path / "m.safetensors")


def test_weights_stored_in_half_precision_are_computed_in_float32(tmp_path, net):
    save_checkpoint(tmp_path / "m.safetensors", net.to(torch.float16))
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.out[2].weight, net.out[2].weight.float())


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("with_ema", [True, False])
def test_upstream_lightning_checkpoint(tmp_path, net, prefix, with_ema):
    state = {prefix + name: value for name, value in net.state_dict().items()}
    if with_ema:
        state |= {f"ema_model.{name}": value + 1 for name, value in net.state_dict().items()}
    content = {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 2e-5, "name": "x", "sizes": [1, (2, 3)]}}
    torch.save(content, tmp_path / "last.ckpt")
    loaded, meta = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.config == SMALL
    assert meta == {}
    assert torch.equal(loaded.out[2].weight, net.out[2].weight)
    assert "not named" in describe(tmp_path / "last.ckpt")


@pytest.mark.parametrize("name", ["tiny", "dapi_z1", "patch32_z4", "pyramid", "full"])
def test_config_is_inferred_from_shapes(parity, name):
    fixture = parity(name)
    shapes = {key: torch.empty(shape, device="meta") for key, shape in fixture.description["state_dict"]}
    assert infer_config(shapes) == fixture.config


def test_published_size(parity):
    with torch.device("meta"):
        net = TeraMind(parity("full").config)
    assert sum(parameter.numel() for parameter in net.parameters()) == 213_789_608
    assert [[name, [*value.shape]] for name, value in net.state_dict().items()] == parity("full").description[
        "state_dict"
    ]


def test_misfits_are_listed(tmp_path, net):
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    del state["model.out.2.bias"]
    state["model.extra"] = torch.zeros(1)
    state["model.middle_block.1.norm1.weight"] = torch.zeros(5)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(InputError) as error:
        load_checkpoint(tmp_path / "last.ckpt")
    assert "missing: out.2.bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert "middle_block.1.norm1.weight (5,) instead of (8,)" in str(error.value)


def test_a_checkpoint_that_needs_unpickling_is_refused(tmp_path, net):
    torch.save(
        {"state_dict": net.state_dict(), "hyper_parameters": {"path": pathlib.PurePosixPath("x")}}, tmp_path / "a.ckpt"
    )
    with pytest.raises(InputError, match="unpickling untrusted files") as error:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "PurePosixPath" in str(error.value)


def test_unpickling_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Payload()}, tmp_path / "a.ckpt")
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_file(tmp_path, net, suffix):
    path = tmp_path / f"m{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": net.state_dict()}, path)
    else:
        save_checkpoint(path, net)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=f"m{suffix} is not a whole"):
        load_checkpoint(path)


def test_foreign_safetensors_and_newer_format(tmp_path, net):
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="no teramind configuration"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    header = {"format": "teramind-checkpoint", "version": 99, "config": {}, "meta": {}}
    safetensors.torch.save_file(
        net.state_dict(), tmp_path / "new.safetensors", metadata={"teramind": json.dumps(header)}
    )
    with pytest.raises(InputError, match="format 99"):
        load_checkpoint(tmp_path / "new.safetensors")


def test_missing_file_and_wrong_names(tmp_path, net):
    with pytest.raises(InputError, match=r"no checkpoint .*nothing\.ckpt"):
        load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(InputError, match="2 names were given for the network's 3 genes"):
        save_checkpoint(tmp_path / "m.safetensors", net, genes=["a", "b"])
    with pytest.raises(InputError, match=r"m\.pt would be mistaken"):
        save_checkpoint(tmp_path / "m.pt", net)
