"""``teramind info``: the facts, their text, and the overview."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from teramind.atlas import overview
from teramind.atlas.info import as_text, describe_atlas
from teramind.atlas.overview import draw_overview
from teramind.atlas.store import Atlas
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.cli import EXIT_BAD_INPUT, run_command


def test_the_facts_are_those_of_the_sample(atlas, sample):
    facts = describe_atlas(atlas)
    assert facts["shape_px"] == [1205, 2069]
    assert facts["shape_mm"] == pytest.approx([0.13014, 0.223452])
    assert facts["slice_z_um"] == [5, 105, 205]
    assert facts["genes"] == sample.genes
    assert facts["transcripts"] == sample.counts.sum(dtype=int) == sum(facts["slice_transcripts"])
    assert facts["gene_transcripts"] == sample.counts.sum((0, 1, 2), dtype=int).tolist()
    assert facts["stored_counts"] == np.count_nonzero(sample.counts)
    assert facts["store_bytes"] == sum(file.stat().st_size for file in atlas.path.rglob("*") if file.is_file())
    assert 1 < facts["bytes_a_count"] < 4
    assert facts["scaling"] == {"DAPI": (10.0, 2000.0), "PolyT": (0.0, 1.5)}
    assert facts["provenance"] == {"vendor": "none", "rows": 12}


def test_the_text_says_it_all(atlas, sample):
    text = as_text(describe_atlas(atlas))
    most = max(range(len(sample.genes)), key=lambda gene: sample.counts[..., gene].sum(dtype=int))
    for words in (
        "3, z 5 µm to 205 µm",
        "1,205 x 2,069 px (y, x), 0.1301 x 0.2235 mm",
        "31: Gene0, Gene1",
        "DAPI (raw 10 to 2000 shown as 0 to 255); PolyT (raw 0 to 1.5 shown as 0 to 255)",
        "3: isocortex, thalamus, fiber tracts",
        f"{sample.counts.sum(dtype=int):,} in {np.count_nonzero(sample.counts):,} counts",
        "bytes a stored count",
        f"    1       105 {sample.counts[1].sum(dtype=int):13,}",
        f"most frequent genes\n{sample.genes[most]}",
        "vendor       none\nrows         12",
    ):
        assert words in text


def test_json_is_for_machines(atlas, capsys):
    assert run_command("info", [str(atlas.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(describe_atlas(atlas)))


def test_an_atlas_with_little_in_it(tmp_path, capsys):
    arguments: dict[str, Any] = {"genes": ["Th", "Drd1"], "stains": [], "slice_z": [0.0], "shape": (20, 30)}
    with AtlasWriter(tmp_path / "a.zarr", **arguments, pixel_size=0.2, scaling=None, provenance={}) as writer:
        writer.append_counts(0, csr_array((4, 2), dtype=np.uint16))
    assert run_command("info", [str(tmp_path / "a.zarr"), "--overview", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert "0 in 0 counts" in text
    assert "images       none" in text
    assert "2 genes have no transcript" in text
    Image.open(tmp_path / "a.png").verify()


def write_one_transcript(path: Path, shape: tuple[int, int], slices: int, y: int, x: int) -> Atlas:
    """An atlas with a single transcript, at (y, x) px of the last slice."""
    rows, columns = -(-shape[0] // 16), -(-shape[1] // 16)
    arguments: dict[str, Any] = {"genes": ["Th"], "stains": [], "slice_z": list(range(slices)), "shape": shape}
    with AtlasWriter(path, **arguments, pixel_size=0.1, scaling=None, provenance={}) as writer:
        for index in range(slices):
            for top in range(0, rows, STRIP_BINS):
                bins = min(STRIP_BINS, rows - top) * columns
                place = (y // 16 - top) * columns + x // 16
                here = int(index == slices - 1 and 0 <= place < bins)
                one = (np.ones(here, np.uint16), (np.full(here, place), np.zeros(here, int)))
                writer.append_counts(index, csr_array(one, shape=(bins, 1)))
    return Atlas.open(path)


@pytest.mark.parametrize(
    ("shape", "slices", "y", "x"),
    [
        ((203, 333), 1, 100, 320),  # a bin is drawn as many pixels
        ((40_000, 31_111), 1, 39_999, 7),  # two bins a pixel, several strips
        ((9_999, 60_000), 5, 1_024, 59_990),  # many bins a pixel, several panels
    ],
)
def test_the_overview_shows_a_transcript_in_its_place(tmp_path, monkeypatch, shape, slices, y, x):
    monkeypatch.setattr(overview, "_GRID_OPACITY", 0.0)
    atlas = write_one_transcript(tmp_path / "a.zarr", shape, slices, y, x)
    panels = overview._Panels.fit(atlas)
    assert max(panels.side) <= 1600
    pixels = np.asarray(draw_overview(atlas)).astype(int)
    left, top = panels.corner(slices - 1)
    panel = pixels[top : top + panels.side[0], left : left + panels.side[1]]
    bright = np.argwhere((panel == overview._COLOR_STOPS[-1]).all(axis=-1))
    assert len(bright) > 0
    centre_y, centre_x = (bright.mean(axis=0) + 0.5) * panels.px_a_pixel
    within = max(16, panels.px_a_pixel)
    assert abs(centre_y - y) <= within
    assert abs(centre_x - x) <= within
    for other in range(slices - 1):
        left, top = panels.corner(other)
        assert (pixels[top : top + panels.side[0], left : left + panels.side[1]] == (0, 0, 4)).all()


def test_grid_lines_lie_at_round_coordinates():
    assert overview._grid(73_728, 80.0) == list(range(0, 73_728, 5_000))
    assert overview._grid(507, 1.0) == [0, 100, 200, 300, 400, 500]
    assert overview._grid(10, 1.0) == [0]


def test_the_overview_holds_a_strip_at_a_time(tmp_path, monkeypatch):
    atlas = write_one_transcript(tmp_path / "a.zarr", (40_000, 31_111), 1, 5, 5)
    windows = []
    read = Atlas.count_window
    monkeypatch.setattr(Atlas, "count_window", lambda self, *window: windows.append(window) or read(self, *window))
    draw_overview(atlas)
    assert max(y1 - y0 for _, _, y0, y1, _, _ in windows) <= 2 * 1024
    assert windows[-1][3] >= 40_000


def test_a_checkpoint_is_described_by_its_reader(tmp_path, capsys, monkeypatch):
    reader = types.ModuleType("teramind.model.checkpoint")
    reader.describe = lambda path: f"weights of {path.name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "teramind.model.checkpoint", reader)
    assert importlib.import_module("teramind.model.checkpoint") is reader
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"")
    assert run_command("info", [str(weights)]) == 0
    assert capsys.readouterr().out == "weights of net.safetensors\n"
    assert run_command("info", [str(weights), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["description"] == "weights of net.safetensors"
    assert run_command("info", [str(weights), "--overview", "x.png"]) == EXIT_BAD_INPUT
    assert "is no atlas" in capsys.readouterr().err


def test_what_cannot_be_shown_is_said_in_one_line(atlas, tmp_path, capsys):
    assert run_command("info", [str(tmp_path / "none.zarr")]) == EXIT_BAD_INPUT
    assert "there is no atlas" in capsys.readouterr().err
    assert run_command("info", [str(tmp_path)]) == EXIT_BAD_INPUT
    assert "is not a teramind atlas" in capsys.readouterr().err
    assert run_command("info", [str(atlas.path), "--overview", str(tmp_path / "no" / "a.png")]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "there is no folder" in error
    assert error.count("\n") == 1
