from __future__ import annotations

import argparse
import inspect
import os
import pty
import subprocess
import sys
import termios

import numpy as np
import pytest

from teramind.atlas import ingest
from teramind.atlas.store import Atlas
from teramind.cli import main

HEIGHT, WIDTH = 301, 203
TRANSFORM = np.diag([9.25, 9.25, 1.0])


@pytest.fixture
def region(tmp_path, folders):
    pixels = np.random.default_rng(0).integers(0, 4000, (HEIGHT, WIDTH)).astype(np.uint16)
    points = folders.points(0, 3001, WIDTH / 9.25, HEIGHT / 9.25)
    return folders.merscope(tmp_path / "region_0", points, {("DAPI", 0): pixels, ("PolyT", 0): pixels}, TRANSFORM)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    ingest.add_arguments(made)
    return made


@pytest.mark.parametrize("kind", sorted(ingest.READERS))
def test_options_and_parameters_have_the_same_names_and_defaults(kind):
    parameters = inspect.signature(ingest.READERS[kind]).parameters
    action = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = {option.dest: option for option in action.choices[kind]._actions if option.dest != "help"}
    assert set(options) == set(parameters)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert options[name].required, name
        else:
            assert options[name].default == parameter.default, name
        assert options[name].help, name


def test_the_command_writes_the_atlas_and_prints_the_report(tmp_path, region, capsys):
    output = tmp_path / "a.zarr"
    words = ["ingest", "merscope", str(region), "--stains", "DAPI", "PolyT", "--output", str(output)]
    assert main([*words, "--scale", "DAPI=10:900", "PolyT=0:4000"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no progress bar where nobody looks
    header, row, *notes = printed.out.splitlines()
    assert header.split("  ")[0] == "slice"
    read, kept, outside = (int(word.replace(",", "")) for word in row.split()[1:])
    atlas = Atlas.open(output)
    assert (read, kept + outside) == (3001, 3001)
    assert sum(atlas.metadata.slice_transcripts) == kept
    assert atlas.metadata.scaling == {"DAPI": (10, 900), "PolyT": (0, 4000)}
    assert "DAPI: raw 10 to 900 as 0 to 255" in notes
    assert any("plane 0 of 1" in note for note in notes)


def test_extents_are_microns_and_may_be_negative(tmp_path, region):
    output = tmp_path / "a.zarr"
    words = ["ingest", "merscope", str(region), "--stains", "DAPI", "--output", str(output)]
    assert main([*words, "--extent=-1:12.5,2:20", "--pixel-size", "0.125"]) == 0
    assert Atlas.open(output).shape == (1, 108, 144)


@pytest.mark.parametrize(
    "words",
    [["--extent", "5:9"], ["--extent", "a:b,c:d"], ["--scale", "DAPI=5"], ["--scale", "5:9"]],
    ids=" ".join,
)
def test_what_cannot_be_parsed_is_refused(tmp_path, region, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ingest", "merscope", str(region), "--stains", "DAPI", "--output", str(tmp_path / "a.zarr"), *words])
    assert caught.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_a_missing_stain_exits_with_2_and_one_line(tmp_path, region, capsys):
    output = tmp_path / "a.zarr"
    assert main(["ingest", "merscope", str(region), "--stains", "DAPI", "Nissl", "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Nissl" in printed.err
    assert "DAPI, PolyT" in printed.err
    assert not output.exists()


def run_on_small_disk(tmp_path, megabytes: float, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a full-able disk at ``tmp_path/disk``, in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    inner = f"mount -t tmpfs -o size={int(megabytes * 1024)}k tmpfs {tmp_path / 'disk'} && {script}"
    return subprocess.run(["unshare", "-Urm", "sh", "-c", inner], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("megabytes", [0.02, 0.1])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path, region, megabytes):
    disk = tmp_path / "disk"
    try:
        probe = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare, which gives a small disk of one's own, is not installed")
    if probe.returncode:
        pytest.skip("this system lets no user mount a small disk of his own")
    command = f"{sys.executable} -m teramind ingest merscope {region} --stains DAPI PolyT --output {disk}/a.zarr"
    done = run_on_small_disk(tmp_path, megabytes, f"{command}; code=$?; ls -A {disk}; exit $code")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""  # nothing is left on the disk
    assert done.stderr.count("\n") == 1
    assert f"the disk of {disk}/a.zarr is full" in done.stderr


def test_progress_is_shown_on_a_terminal(tmp_path, region):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    words = ["ingest", "merscope", str(region), "--stains", "DAPI", "--output", str(tmp_path / "a.zarr")]
    process = subprocess.Popen([sys.executable, "-m", "teramind", *words], stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux reports the closed terminal as an error
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait() == 0
    for phase in (b"region_0", b"counts", b"intensities", b"images"):
        assert phase in shown
