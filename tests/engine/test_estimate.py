import json

import pytest

from teramind import InputError, generate
from teramind.cli import main
from teramind.engine.estimate import estimate


def test_counts_are_those_of_the_run(tmp_path, atlas_path, checkpoint_path):
    options = {"steps": 4, "tile": 64, "roi": "0:128,0:192", "border": "constant", "slices": "0:2"}
    expected = estimate(atlas_path, checkpoint_path, devices=4, tiles=2, **options)
    report = generate(atlas_path, checkpoint_path, tmp_path / "x.ome.zarr", **options)
    assert expected.units == report.units
    assert expected.voxels == report.voxels
    assert report.peak_state_bytes <= expected.state_bytes
    assert report.peak_output_buffer_bytes <= expected.buffer_bytes
    assert report.output_bytes <= expected.output_bytes
    assert expected.scratch_bytes == 0
    # the machine may be busy in one of the two
    assert report.computing / 4 < expected.seconds[1] < report.computing * 4
    assert expected.seconds[1] / 4 <= expected.seconds[4] < expected.seconds[1]


def test_scratch_and_memory_follow_the_limit(atlas_path, checkpoint_path):
    ample = estimate(atlas_path, checkpoint_path, steps=4, tile=64, tiles=1)
    tight = estimate(atlas_path, checkpoint_path, steps=4, tile=64, tiles=1, memory=ample.state_bytes - 100_000)
    assert tight.scratch_bytes == 100_000
    assert tight.memory_bytes == ample.memory_bytes - 100_000


def test_skipped_tiles_take_no_time(atlas_path, checkpoint_path):
    nothing = estimate(atlas_path, checkpoint_path, steps=4, tile=64, tiles=1, skip_below=10**9)
    assert nothing.units == 0
    assert nothing.seconds == {1: 0, 8: 0}


def test_the_command(atlas_path, checkpoint_path, capsys):
    words = ["estimate", str(atlas_path), "--checkpoint", str(checkpoint_path), "--steps", "4", "--tile", "64"]
    assert main([*words, "--devices", "2", "--tiles", "1", "--roi", "0:64,0:64"]) == 0
    said = capsys.readouterr().out
    for word in ("on 1 x cpu", "on 2 x cpu", "memory", "scratch", "snapshots", "output"):
        assert word in said
    assert main([*words, "--tiles", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["seconds"]) == {"1", "8"}
    assert values["voxels"] == 2 * 3 * 150 * 230


def test_what_cannot_be_estimated(atlas_path, checkpoint_path):
    with pytest.raises(InputError, match="there is no option tiel"):
        estimate(atlas_path, checkpoint_path, tiel=64)
    with pytest.raises(InputError, match="0 tiles"):
        estimate(atlas_path, checkpoint_path, tiles=0)
