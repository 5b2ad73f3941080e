"""Whole trainings: they learn, stop and go on, refuse, and leave what generates."""

import importlib.util
import json
import os
import random
import signal
import threading
from argparse import ArgumentParser
from dataclasses import fields

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from teramind import Atlas, InputError, generate, load_checkpoint, save_checkpoint
from teramind.cli import main
from teramind.engine.panel import match_genes
from teramind.errors import ComputationError, Interrupted
from teramind.model.config import ModelConfig
from teramind.train.command import add_arguments
from teramind.train.crops import Crops, Stream, areas_of
from teramind.train.evaluation import HeldOut
from teramind.train.objective import Objective
from teramind.train.options import MAY_CHANGE, Options
from teramind.train.run import train
from teramind.train.volumes import MemoryVolume


def lines(run, kind="train"):
    written = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in written if line["kind"] == kind]


def state(run):
    return safetensors.torch.load_file(run / "state.safetensors")


def assert_same(first, second):
    """Every weight, moment and average bit for bit, and every loss."""
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in one)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    values = [[(line["step"], line["loss"], line["gradient_norm"]) for line in lines(run)] for run in (first, second)]
    assert values[0] == values[1]


# What makes a state: dropout, a moving average, parts of a step, several threads that load.
AWKWARD = {"steps": 6, "batch": 4, "accumulate": 2, "average": 0.9, "workers": 3, "warmup": 3, "centre_every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, atlas_path, model, options):
    """A training that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train([atlas_path], run, options(**AWKWARD, schedule="cosine"), model | {"dropout": 0.1})
    return run


def test_it_learns_a_crop(tmp_path, write_atlas, model, options):
    """One place, one slice: the reference's loss falls from 1 to less than a quarter (to 0.15, measured)."""
    atlas = write_atlas(tmp_path / "atlas.zarr", slices=1, height=128, width=128)
    quick = options(steps=60, batch=4, lr=8e-3, warmup=20, init="fresh", loss="plain", paths="boundary", log_every=10)
    report = train([atlas], tmp_path / "run", quick, model)
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert 0.8 < losses[0] < 1.2
    assert losses[-1] < losses[0] / 4
    assert report.steps == 60
    assert report.waiting < 0.5


@pytest.mark.slow
def test_it_learns_what_the_genes_say(tmp_path, write_atlas, model, options):
    """After 600 steps with the fast start, others' genes cost at least a fifth of the error (a half, measured)."""
    atlas = write_atlas(tmp_path / "atlas.zarr", slices=1, height=128, width=128)
    quick = options(
        steps=600, batch=4, lr=4e-3, betas=(0.9, 0.98), warmup=20, schedule="cosine", average=0.98, paths="boundary",
        held_out=str(atlas), held_out_crops=32, evaluate_every=600,
    )  # fmt: skip
    train([atlas], tmp_path / "run", quick, model)
    [test] = lines(tmp_path / "run", "held_out")
    assert test["error_with_others_genes"] > 1.2 * test["error"]


def test_two_halves_are_a_whole(tmp_path, atlas_path, model, options, whole):
    """Also where another number of threads loads the crops."""
    run, quick = tmp_path / "run", AWKWARD | {"schedule": "cosine", "workers": 1}
    kill = signal_at_step(3)
    with pytest.raises(Interrupted, match="stopped at step"), kill:
        train([atlas_path], run, options(**quick), model | {"dropout": 0.1})
    train([atlas_path], run, options(**quick | {"workers": 2}), model | {"dropout": 0.1}, resume=True)
    assert_same(run, whole)


class signal_at_step:  # noqa: N801 - reads as a function
    """Sends SIGTERM to this process at the beginning of a step's forward pass, or after some seconds."""

    def __init__(self, step=None, seconds=None, parts=2):
        self.call, self.seconds = None if step is None else step * parts, seconds

    def __enter__(self):
        self.forward, self.calls = Objective.forward, 0
        if self.seconds is not None:
            self.timer = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGTERM))
            self.timer.start()

        def forward(objective, *batch):
            if self.calls == self.call:
                os.kill(os.getpid(), signal.SIGTERM)
            self.calls += 1
            return self.forward(objective, *batch)

        Objective.forward = forward
        return self

    def __exit__(self, *error):
        Objective.forward = self.forward
        if self.seconds is not None:
            self.timer.cancel()


def test_it_may_be_stopped_at_any_moment(tmp_path, atlas_path, model, options, whole):
    """By SIGTERM at random times, again and again, until it is done."""
    run, chance, codes = tmp_path / "run", random.Random(5), []
    while len(codes) < 30:
        try:
            with signal_at_step(chance.randrange(3), parts=1):
                train([atlas_path], run, options(**AWKWARD, schedule="cosine"), model | {"dropout": 0.1}, resume=True)
            break
        except Interrupted as error:
            codes.append(error.exit_code)
    assert len(codes) >= 2
    assert set(codes) == {128 + signal.SIGTERM}
    assert_same(run, whole)


def test_steps_may_be_added(tmp_path, atlas_path, model, options):
    one, two = tmp_path / "one", tmp_path / "two"
    train([atlas_path], one, options(steps=3), model)
    train([atlas_path], two, options(steps=1), model)
    train([atlas_path], two, options(steps=3, log_every=2, snapshot_minutes=0), model, resume=True)
    resumed = state(two)
    assert all(torch.equal(value, resumed[name]) for name, value in state(one).items())
    assert [line["step"] for line in lines(two)] == [1, 2]


def test_it_goes_on_without_the_checkpoint_that_it_began_from(tmp_path, atlas_path, model, options, whole):
    start = tmp_path / "start.safetensors"
    start.write_bytes((whole / "checkpoint.safetensors").read_bytes())
    train([atlas_path], tmp_path / "run", options(steps=1, init=str(start)), model)
    start.unlink()
    assert train([atlas_path], tmp_path / "run", options(steps=2, init=str(start)), model, resume=True).steps == 2


def test_a_lost_session_leaves_no_lines(tmp_path, atlas_path, model, options):
    """What was logged after the last state belongs to steps that are done again."""
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=2), model)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 3, "loss": 9}\n{"kind": "trai')
    train([atlas_path], run, options(steps=3), model, resume=True)
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert lines(run)[-1]["loss"] != 9


def test_lines_that_never_reached_the_disk_are_dropped(tmp_path, atlas_path, model, options):
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=1), model)
    with (run / "log.jsonl").open("ab") as file:
        file.write(b"\0\0\xff\n[3]\n")
    train([atlas_path], run, options(steps=2), model, resume=True)
    assert [line["step"] for line in lines(run)] == [1, 2]


def test_a_process_killed_while_it_saves_goes_on_from_the_state_before(tmp_path, atlas_path, model, options):
    """Its half-written file, as large as a state, goes when the training goes on."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    train([atlas_path], run, options(steps=1), model)
    child = os.fork()
    if child == 0:
        safetensors.torch.save_file = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        try:
            train([atlas_path], run, options(steps=2), model, resume=True)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(run.glob(".state.safetensors.*"))
    train([atlas_path], run, options(steps=2), model, resume=True)
    train([atlas_path], whole, options(steps=2), model)
    assert_same(run, whole)
    assert not list(run.glob(".*"))


def test_a_full_disk_leaves_the_state_before_and_is_said(tmp_path, atlas_path, model, options, small_files_only):
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=1), model)
    before = (run / "state.safetensors").read_bytes()
    with small_files_only(len(before) // 2), pytest.raises(OSError, match=r"too large: .*state\.safetensors'"):
        train([atlas_path], run, options(steps=2), model, resume=True)
    assert (run / "state.safetensors").read_bytes() == before
    assert not list(run.glob(".*"))
    train([atlas_path], run, options(steps=2), model, resume=True)


def test_what_is_damaged_is_said(tmp_path, atlas_path, model, options):
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=1), model)
    for name, words in (("state.safetensors", "is no whole state"), ("config.json", "damaged|no configuration")):
        whole = (run / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"[]"):
            (run / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name} .*({words}).*begin anew in another folder"):
                train([atlas_path], run, options(steps=2), model, resume=True)
        (run / name).write_bytes(whole)
    train([atlas_path], run, options(steps=2), model, resume=True)


def test_a_loss_that_is_no_number_stops_it(tmp_path, atlas_path, model, options, monkeypatch):
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=2), model)
    before = (run / "state.safetensors").read_bytes()
    forward, calls = Objective.forward, []

    def broken(objective, *batch):
        loss, errors = forward(objective, *batch)
        calls.append(loss)
        return loss * (float("nan") if len(calls) == 2 else 1), errors

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(ComputationError, match="not a number at step 4"):
        train([atlas_path], run, options(steps=8, log_every=8), model, resume=True)
    assert (run / "state.safetensors").read_bytes() == before


def test_the_checkpoint_generates(tmp_path, atlas_path, model, options, whole):
    atlas = Atlas.open(atlas_path)
    net, meta = load_checkpoint(whole / "checkpoint.safetensors")
    assert meta["genes"] == atlas.genes
    assert meta["stains"] == atlas.stains
    assert meta["pixel_size"] == atlas.pixel_size
    assert {stain: tuple(ends) for stain, ends in meta["scaling"].items()} == atlas.scaling
    assert meta["training"]["steps"] == 6
    averaged = {name.removeprefix("average."): value for name, value in state(whole).items() if "average." in name}
    assert all(torch.equal(value, averaged[name]) for name, value in net.state_dict().items())
    report = generate(
        atlas_path, whole / "checkpoint.safetensors", tmp_path / "out.ome.zarr", roi="0:32,0:32", slices="0:1",
        steps=1, border="constant", progress=False,
    )  # fmt: skip
    assert report.voxels == 2 * 32 * 32
    again = tmp_path / "again"
    train(
        [atlas_path],
        again,
        options(steps=0, init=str(whole / "checkpoint.safetensors"), checkpoint_dtype="float16"),
        model,
    )
    weights = safetensors.torch.load_file(again / "checkpoint.safetensors")
    assert all(torch.equal(value, averaged[name].half()) for name, value in weights.items())


def test_tests_and_pictures(tmp_path, atlas_path, write_atlas, model, options):
    """On an atlas that is held out; an untrained network does not hear its genes, so others' genes cost nothing."""
    other = write_atlas(tmp_path / "other.zarr", slices=1, height=140, width=130, seed=3)
    run = tmp_path / "run"
    quick = options(
        steps=2, held_out=str(other), held_out_crops=5, evaluate_every=1, sample_every=2, init="fresh", loss="plain"
    )
    train([atlas_path], run, quick, model)
    tests = lines(run, "held_out")
    assert [line["step"] for line in tests] == [1, 2]
    for line in tests:
        assert line["loss"] == line["error"]
        assert 0.5 < line["error"] < 3
        assert sum(value is not None for value in line["by_timestep"]) == 5
        assert line["error_with_others_genes"] == pytest.approx(line["error"], rel=0.02)
    assert {"correlation_DAPI", "correlation_PolyT"} <= lines(run, "sample")[0].keys()
    with Image.open(run / "samples" / "step-0000002.png") as picture:
        assert picture.size[0] > 2 * 128
    train([atlas_path], run, quick, model, resume=True)  # nothing left to do


@pytest.mark.parametrize(("batch", "count"), [(1, 3), (2, 5), (4, 4), (4, 1)])
def test_every_held_out_crop_is_given_the_genes_of_another(atlas_path, model, batch, count):
    """Also in batches of one crop, and of one left over; of a single crop there is nothing to tell."""
    atlas = Atlas.open(atlas_path)
    config = ModelConfig(**model, genes=3, stains=2)
    area, _ = areas_of(MemoryVolume(atlas, match_genes(atlas.genes, 3, atlas.genes)), atlas.shape, config)
    crops = Crops([area], config, 0, Stream.HELD_OUT)
    seen = []

    class Net(torch.nn.Linear):  # has a device
        config = crops.config

        def forward(self, noisy, _t, genes):
            seen.append(genes)
            return torch.zeros_like(noisy[..., 16:-16, 16:-16])

    tested = HeldOut(crops, count, batch, Objective(None, np.ones(1000), "boundary")).test(Net(1, 1))
    own, others = torch.cat(seen[::2]), torch.cat(seen[1::2])
    same = (own == others).flatten(1).all(1)
    assert len(own) == count
    assert same.all() if count == 1 else not same.any()
    assert (tested["error_with_others_genes"] is None) == (count == 1)


def test_several_atlases(tmp_path, atlas_path, write_atlas, model, options):
    other = write_atlas(tmp_path / "other.zarr", genes=["c", "a"], stains=("DAPI", "PolyT"))
    with pytest.raises(InputError, match="--genes intersection or a file"):
        train([atlas_path, other], tmp_path / "run", options(), model)
    train([atlas_path, other], tmp_path / "run", options(steps=1, genes="intersection"), model)
    _, meta = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert meta["genes"] == ["a", "c"]


@pytest.mark.parametrize(
    ("changed", "changed_model", "words"),
    [
        ({"lr": 1e-4}, {}, r"lr = 0.001 and cannot go on with 0.0001"),
        ({"average": 0.5}, {}, "average = 0.9"),
        ({}, {"base_channels": 8}, "base_channels = 6 and cannot go on with 8"),
    ],
)
def test_another_configuration_is_refused(atlas_path, model, options, whole, changed, changed_model, words):
    before = (whole / "config.json").read_bytes()
    given = options(**AWKWARD | {"schedule": "cosine"} | changed)
    with pytest.raises(InputError, match=words):
        train([atlas_path], whole, given, model | {"dropout": 0.1} | changed_model, resume=True)
    assert (whole / "config.json").read_bytes() == before


def test_a_test_on_what_is_learned_is_no_test(tmp_path, atlas_path, model, options, caplog):
    train([atlas_path], tmp_path / "run", options(steps=0, held_out=str(atlas_path)), model)
    assert "atlas.zarr is also trained on: the error on it is no test" in caplog.text


def test_another_atlas_is_refused(tmp_path, write_atlas, model, options, whole):
    other = write_atlas(tmp_path / "other.zarr", seed=9)
    with pytest.raises(InputError, match="another value of atlases"):
        train([other], whole, options(**AWKWARD, schedule="cosine"), model | {"dropout": 0.1}, resume=True)


def test_what_is_refused(tmp_path, atlas_path, write_atlas, model, options, whole):
    def refused(words, atlases=(atlas_path,), run=tmp_path / "run", model=model, resume=False, **changed):
        with pytest.raises(InputError, match=words):
            train(atlases, run, options(**changed), model, resume=resume)
        assert not (tmp_path / "run").exists()

    refused("go on with it by --resume, or choose another name", run=whole)
    refused("is no training: it has no config.json", run=atlas_path, resume=True)
    refused("no atlas was given", atlases=[])
    refused("a crop 128 x 128", atlases=[write_atlas(tmp_path / "small.zarr", height=100)])
    refused("a crop 128 x 128", held_out="0.2")
    refused("between 0 and 1", held_out="1.5")
    refused("there is no atlas", held_out="nowhere.zarr")
    refused("batch of 3 cannot be divided among 1 process.* 2 part", batch=3, accumulate=2)
    refused("unknown model fields: genes", model=model | {"genes": 5})
    refused("there is no checkpoint slow", init="slow")
    refused("no device 'tpus'", device="tpus")
    torch.manual_seed(0)
    narrow = {"base_channels": 4}
    refused("base_channels of at least", model=model | narrow)
    net, meta = load_checkpoint(whole / "checkpoint.safetensors")
    save_checkpoint(tmp_path / "swapped.safetensors", net, **meta | {"genes": ["b", "a", "c"]})
    refused("trained on other genes", init=str(tmp_path / "swapped.safetensors"))
    refused("does not fit the model", init=str(whole / "checkpoint.safetensors"), model=model | {"embed_channels": 8})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": None}, "steps is None; it has to be given, or --minutes be"),
        ({"loss": "huber"}, "loss is 'huber'; it has to be one of plain, min-snr, velocity"),
        ({"batch": 0}, "batch is 0, but has to be an integer from 1"),
        ({"betas": (0.9, 1.0)}, "betas is .0.9, 1.0.; it has to be at least 0 and below 1"),
        ({"betas": [0.9]}, "betas is .0.9,.; it has to be of the type"),
        ({"lr": "high"}, "lr is 'high'; it has to be of the type float"),
        ({"compile": 1}, "compile is 1; it has to be of the type bool"),
        ({"steps": True}, "steps is True; it has to be of the type int"),
        ({"average": 1.0}, "average is 1.0"),
        ({"lr": -1.0}, "lr is -1.0; it has to be a positive number"),
        ({"minutes": 0.0}, "minutes is 0.0"),
    ],
)
def test_options_that_cannot_be(options, changed, words):
    with pytest.raises(InputError, match=words):
        options(**changed)


def test_the_command_has_every_option():
    parser = ArgumentParser()
    add_arguments(parser)
    text = parser.format_help()
    names = {each.name for each in (*fields(Options), *fields(ModelConfig))} - {"stains"}
    assert [name for name in names if f"--{name.replace('_', '-')}" not in text] == []
    given = parser.parse_args(["a.zarr", "--output", "run", "--betas", "0.9", "0.99", "--channel-mult", *"1234"])
    assert given.betas == [0.9, 0.99]
    assert given.channel_mult == [1, 2, 3, 4]
    assert "lr" not in vars(given)
    assert {each.name for each in fields(Options)} >= MAY_CHANGE


def test_the_command_repeats_a_run(tmp_path, atlas_path, whole, capsys):
    """Its own config.json is a configuration; what is given beside it comes first."""
    run = tmp_path / "run"
    assert main(["train", str(atlas_path), "--output", str(run), "--config", str(whole / "config.json")]) == 0
    assert "6 steps in" in capsys.readouterr().out
    assert_same(run, whole)
    code = main(["train", str(atlas_path), "--output", str(run), "--config", str(whole / "config.json"), "--lr", "1"])
    assert code == 2
    assert "choose another name" in capsys.readouterr().err
    wrong = tmp_path / "wrong.json"
    for text, words in (
        ('{"training": {"speed": 3}}', "unknown training options of"),
        ('{"training": [1], "model": {}}', "has to be {"),
        ('{"model": 5}', "has to be {"),
        ("7", "has to be {"),
        ('{"model": {"channel_mult": 5}, "training": {"steps": 1}}', "channel_mult is 5; it has to be four"),
        ('{"model": {"dropout": "no"}, "training": {"steps": 1}}', "dropout is 'no'; it has to be at least 0"),
    ):
        wrong.write_text(text)
        assert main(["train", str(atlas_path), "--output", str(tmp_path / "new"), "--config", str(wrong)]) == 2
        assert words in capsys.readouterr().err


def test_loss_scaling_goes_on_where_it_was(tmp_path, atlas_path, model, options):
    """With float16: steps that overflow are not taken, halve the scale, and are left out of the logged norm."""
    settings = {"dtype": "float16", "lr": 1e-4}
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder, steps, resume in ((whole, 4, False), (run, 2, False), (run, 4, True)):
        train([atlas_path], folder, options(steps=steps, **settings), model, resume=resume)
    assert_same(whole, run)
    norms = [line["gradient_norm"] for line in lines(whole)]
    assert None in norms
    assert all(norm is None or np.isfinite(norm) for norm in norms)
    with safetensors.safe_open(run / "state.safetensors", framework="pt") as file:
        scale = json.loads(file.metadata()["teramind"])["progress"]["scaler"]["scale"]
    assert scale == 2.0 ** (16 - norms.count(None))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_the_same(tmp_path, atlas_path, model, options, dtype):
    """The first loss within 2 % of float32's: activations have 8 and 11 bits."""
    losses = []
    for name in ("float32", dtype):
        train([atlas_path], tmp_path / name, options(steps=2, dtype=name), model)
        losses.append(np.array([line["loss"] for line in lines(tmp_path / name)]))
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=0.02)
    assert np.isfinite(losses[1]).all()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path, atlas_path, write_atlas, model, options):
    """Sums run in another order: 1e-4 in the loss. Tests and pictures are not compiled; it can be resumed without."""
    settings = {
        "held_out": str(write_atlas(tmp_path / "held_out.zarr", seed=5)),
        "evaluate_every": 2,
        "held_out_crops": 4,
        "sample_every": 2,
    }
    whole, compiled = tmp_path / "whole", tmp_path / "compiled"
    train([atlas_path], whole, options(steps=4, **settings), model)
    train([atlas_path], compiled, options(steps=2, compile=True, **settings), model)
    train([atlas_path], compiled, options(steps=4, **settings), model, resume=True)
    for kind in ("train", "held_out"):
        losses = [[line["loss"] for line in lines(run, kind)] for run in (whole, compiled)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_a_machine_that_cannot_compile_is_told_so(tmp_path, atlas_path, model, options, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with pytest.raises(InputError, match=r"cannot be compiled on this machine .*; leave out --compile"):
        train([atlas_path], tmp_path / "run", options(steps=1, compile=True), model)


def test_tensorboard_shows_the_log(tmp_path, atlas_path, model, options):
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=2), model)
    events = board.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("train/loss")]
    assert shown == [(line["step"], line["loss"]) for line in lines(run)]


def test_without_tensorboard_there_is_the_log(tmp_path, atlas_path, model, options, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    run = tmp_path / "run"
    train([atlas_path], run, options(steps=1), model)
    assert len(lines(run)) == 1
    assert not (run / "tensorboard").exists()
