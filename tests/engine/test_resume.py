"""Signals, torn snapshots, and what may and may not be gone on with."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
import zarr

from teramind import InputError, generate, load_checkpoint, save_checkpoint
from teramind.engine.lock import OutputLock
from teramind.engine.session import carry_out
from teramind.engine.snapshot import FOLDER, read_snapshot
from teramind.errors import ComputationError, Interrupted
from teramind.model.network import TeraMind

STEPS = 4
UNFINISHED = {"steps": STEPS, "tile": 64, "slices": "0:2", "resume": True}


def resume(toy, path, **options):
    return carry_out(toy.setup(path, **options), path, resume=True, overwrite=False)


def snapshots(path):
    return sorted((path / FOLDER).glob("snapshot-*.zip"))


def level0(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_a_snapshot(tmp_path, atlas_path, checkpoint_path, number):
    """The real command in a process of its own, and its voxels after it is gone on with."""
    path, whole = tmp_path / "image.ome.zarr", tmp_path / "whole.ome.zarr"
    options = {"steps": 8, "tile": 32, "border": "constant", "roi": "0:96,0:128", "slices": "0:2"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "teramind.generate", atlas_path, path, "--checkpoint", checkpoint_path, *words],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not snapshots(path):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} at" in said
    assert "--resume goes on from there" in said
    assert "Traceback" not in said
    assert len(snapshots(path)) == 2
    report = generate(atlas_path, checkpoint_path, path, resume=True, **options)
    generate(atlas_path, checkpoint_path, whole, **options)
    assert np.array_equal(level0(path), level0(whole))
    assert report.sessions == 2
    assert not (tmp_path / ".image.ome.zarr.lock").exists()


def test_a_second_signal_stops_at_once(tmp_path, toy, toy_voxels):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 30)
    before = [entry.name for entry in snapshots(path)]
    child = toy.fork_run(path, seconds=5.0)
    time.sleep(0.7)  # in its first unit
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it waits for the unit
    start = time.monotonic()
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert time.monotonic() - start < 2
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert [entry.name for entry in snapshots(path)] == before
    resume(toy, path)
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_a_signal_does_not_wait_for_units_in_the_queue(tmp_path, toy):
    """Only for the one at work: on a slow device the others are minutes."""
    path = tmp_path / "image.ome.zarr"
    computed = []

    def hook(number):
        computed.append(number)
        if number == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.5)  # long enough for the run to see it

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        carry_out(toy.setup(path, hook=hook), path, resume=False, overwrite=False)
    assert computed == list(range(8))
    assert read_snapshot(path).completed.sum() == 8


def test_a_signal_at_the_very_end_lets_the_run_finish(tmp_path, toy, toy_voxels):
    path = tmp_path / "image.ome.zarr"
    units = 2 * 4 * 6 * toy.steps
    last = toy.setup(path, hook=lambda number: number == units - 1 and os.kill(os.getpid(), signal.SIGTERM))
    carry_out(last, path, resume=False, overwrite=False)
    assert toy.complete(path)
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_the_report_counts_all_sessions(tmp_path, toy):
    path = tmp_path / "image.ome.zarr"
    error = toy.interrupt(path, 50)
    assert error.exit_code == 143
    report = resume(toy, path)
    assert report.sessions == 2
    assert report.units == 2 * 4 * 6 * toy.steps  # none lost, none twice
    assert report.snapshots == 1
    assert json.loads((path / "teramind-report.json").read_text())["units"] == report.units
    assert resume(toy, path) == report  # complete already


# ---- torn snapshots --------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 512, 64):  # a header's date may well be wrong
        content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_the_snapshot_before_a_torn_one_is_used_and_said(tmp_path, toy, toy_voxels, damage, caplog):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 100, snapshot_seconds=0.02)
    _, second = snapshots(path)
    damage(second)
    resume(toy, path)
    assert f"{second} is damaged" in caplog.text
    assert "going back to the one before it" in caplog.text
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_a_torn_snapshot_is_not_what_stays_while_the_next_is_written(tmp_path, toy):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 100, snapshot_seconds=0.02)
    first, second = snapshots(path)
    flip(second)
    read_snapshot(path)
    assert snapshots(path) == [first]


def test_all_torn_is_one_sentence_and_leaves_them(tmp_path, toy):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 100, snapshot_seconds=0.02)
    for snapshot in snapshots(path):
        truncate(snapshot)
    with pytest.raises(InputError, match="has no whole snapshot to resume from; run again with --overwrite"):
        resume(toy, path)
    assert len(snapshots(path)) == 2


def test_no_wrong_byte_goes_unnoticed(tmp_path, toy):
    """Wherever it is, the snapshot reads as before (a date in a header), or is passed over."""
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 60)
    older, newest = snapshots(path)
    whole, expected = newest.read_bytes(), described(read_snapshot(path))
    passed_over = 0
    generator = random.Random(0)
    places = {generator.randrange(len(whole)) for _ in range(150)} | {len(whole) - 1 - back for back in range(100)}
    kept = older.read_bytes()
    for place in places:
        older.write_bytes(kept)
        torn = bytearray(whole)
        torn[place] ^= 1 << generator.randrange(8)
        newest.write_bytes(torn)
        found = described(read_snapshot(path))
        passed_over += found != expected
        assert found == expected or found["completed"] == 0
    assert passed_over > 150


def described(snapshot):
    """All that a snapshot holds, in a form that compares."""
    tiles = [
        (saved.tile, saved.version, saved.rectangle, None if saved.whole is None else saved.whole.tobytes(),
         {version: [(strip.rectangle, strip.values.tobytes()) for strip in rim] for version, rim in saved.rims.items()})
        for saved in snapshot.tiles
    ]  # fmt: skip
    return {
        "identity": snapshot.identity, "completed": int(snapshot.completed.sum()), "tiles": tiles,
        "shards": [(shard.index, shard.filled.tobytes()) for shard in snapshot.pending.shards],
    }  # fmt: skip


def test_a_snapshot_of_a_newer_version_is_refused(tmp_path, toy):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 20)
    newest = snapshots(path)[-1]
    with zipfile.ZipFile(newest) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["snapshot.json"] = json.dumps(json.loads(members["snapshot.json"]) | {"version": 99}).encode()
    with zipfile.ZipFile(newest, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="written by a newer teramind"):
        resume(toy, path)


def test_what_a_killed_snapshot_left_is_removed(tmp_path, toy, toy_voxels):
    """Each may be as large as the state."""
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 20)
    leftover = path / FOLDER / ".snapshot-000009.zip.abc"
    leftover.mkdir()
    (leftover / "snapshot-000009.zip").write_bytes(b"half")

    def hook(_number):
        assert not leftover.exists()

    resume(toy, path, hook=hook)
    assert np.array_equal(toy.voxels(path), toy_voxels)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, atlas_path, checkpoint_path):
    """A real run that stopped after a few units."""
    path = tmp_path_factory.mktemp("unfinished") / "image.ome.zarr"
    calls = iter(range(5))
    forward = TeraMind.forward

    def failing(self, *arguments):
        if next(calls, None) is None:
            raise RuntimeError("enough")
        return forward(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeraMind, "forward", failing)
        with pytest.raises(ComputationError):
            generate(atlas_path, checkpoint_path, path, steps=STEPS, tile=64, slices="0:2")
    return path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 5}, "steps = 4"),
        ({"seed": 1}, "seed = 0"),
        ({"tile": 96}, "tile = 64"),
        ({"roi": "0:64,0:64"}, "region = '0:160,0:256'"),
        ({"slices": "1:3"}, "slices = "),
        ({"border": "constant"}, "border = 'exact'"),
        ({"dtype": "bfloat16"}, "dtype = 'float32'"),
        ({"state_dtype": "float32"}, "state_dtype = 'float16'"),
        ({"noise": "tile"}, "noise = 'position'"),
        ({"quantise": "truncate"}, "quantise = 'round'"),
        ({"skip_below": 1}, "skip_below = None"),
        ({"missing_genes": "zero"}, "missing_genes = 'error'"),
        ({"genes": ["b", "a", "c"]}, "genes = "),
    ],
)
def test_an_option_that_matters_has_to_be_the_same(unfinished, atlas_path, checkpoint_path, options, named):
    before = {entry: entry.stat().st_mtime_ns for entry in unfinished.rglob("*")}
    with pytest.raises(InputError, match=f"was begun with {named}") as error:
        generate(atlas_path, checkpoint_path, unfinished, **(UNFINISHED | options))
    assert str(error.value).count("\n") == 0
    assert {entry: entry.stat().st_mtime_ns for entry in unfinished.rglob("*")} == before


def test_another_checkpoint_or_atlas_is_refused(unfinished, tmp_path, atlas_path, checkpoint_path, write_atlas):
    net, meta = load_checkpoint(checkpoint_path)
    with torch.no_grad():
        next(net.parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "other.safetensors", net, **meta)
    with pytest.raises(InputError, match="begun with another value of checkpoint"):
        generate(atlas_path, tmp_path / "other.safetensors", unfinished, **UNFINISHED)
    other = write_atlas(tmp_path / "other.zarr", seed=1)
    with pytest.raises(InputError, match="begun with another value of atlas"):
        generate(other, checkpoint_path, unfinished, **UNFINISHED)


def test_what_does_not_matter_may_change(unfinished, tmp_path, atlas_path, checkpoint_path):
    """Memory, workers, scratch folder and snapshot interval; and the voxels are those of an uninterrupted run."""
    path, whole = tmp_path / "image.ome.zarr", tmp_path / "whole.ome.zarr"
    shutil.copytree(unfinished, path)
    options = {"steps": STEPS, "tile": 64, "slices": "0:2"}
    generate(
        atlas_path, checkpoint_path, path, resume=True, workers=2, memory="60M", scratch=tmp_path / "scratch",
        snapshot_minutes=0.001, **options,
    )  # fmt: skip
    generate(atlas_path, checkpoint_path, whole, **options)
    assert np.array_equal(level0(path), level0(whole))


def test_an_output_that_is_there_is_not_touched_unasked(unfinished, atlas_path, checkpoint_path):
    with pytest.raises(InputError, match="exists already; resume it, overwrite it, or choose another name"):
        generate(atlas_path, checkpoint_path, unfinished, steps=STEPS, tile=64)
    with pytest.raises(InputError, match="choose either --resume or --overwrite"):
        generate(atlas_path, checkpoint_path, unfinished, steps=STEPS, tile=64, resume=True, overwrite=True)
    assert snapshots(unfinished)


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_an_output_that_is_not_ours_is_left_alone(tmp_path, toy, how):
    path = tmp_path / "image.ome.zarr"
    zarr.open_group(path, mode="w", attributes={"mine": True}).create_array("0", shape=(4,), dtype="u1")
    (path / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="not a generated image of teramind's, so it is left alone"):
        carry_out(toy.setup(path), path, **({"overwrite": False, "resume": False} | how))
    assert (path / "notes.txt").read_text() == "keep"


def test_overwriting_begins_anew(tmp_path, toy, toy_voxels):
    path = tmp_path / "image.ome.zarr"
    toy.interrupt(path, 40, identity={"another": "run"})
    report = carry_out(toy.setup(path), path, resume=False, overwrite=True)
    assert report.sessions == 1
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_a_second_process_is_refused_by_name(tmp_path, toy):
    path = tmp_path / "image.ome.zarr"
    child = toy.fork_run(path, seconds=0.05)
    try:
        while not snapshots(path):
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"process {child} on {socket.gethostname()}"):
            resume(toy, path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with OutputLock(path):  # a killed process holds nothing
        pass
