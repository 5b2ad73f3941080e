"""From images to a report."""

import inspect
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import teramind
from teramind.cli import main
from teramind.errors import InputError
from teramind.evaluate import evaluate
from teramind.evaluate import measure as measure_module
from teramind.evaluate.baselines import BaselineImage, RidgeBaseline, training_pairs
from teramind.evaluate.command import add_arguments
from teramind.evaluate.conditioning import shuffle_genes
from teramind.evaluate.extras import required
from teramind.evaluate.nuclei import Watershed, find_nuclei, match_nuclei
from teramind.evaluate.report import ReportFolder
from teramind.evaluate.sources import AtlasImage, GeneratedImage, Rectangle

for module in ("skimage", "matplotlib", "jinja2"):
    pytest.importorskip(module)

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def sample(atlas, redrawn, tissue, tmp_path_factory):
    """seed -> path of a good sample."""
    folder = tmp_path_factory.mktemp("samples")
    paths = {}

    def get(seed):
        if seed not in paths:
            paths[seed] = tissue.write_output(folder / f"s{seed}.ome.zarr", redrawn(seed), atlas, seed=seed)
        return paths[seed]

    return get


@pytest.fixture(scope="module")
def other_brain(tissue, tmp_path_factory):
    """Another atlas of the same kinds of cells, to learn from."""
    scenes = [tissue.scene(330, (512, 512), 20 + seed) for seed in range(2)]
    images = np.stack([scene.draw(50 + seed) for seed, scene in enumerate(scenes)], axis=1)
    return tissue.write_atlas(tmp_path_factory.mktemp("brain") / "train.zarr", scenes, images)


@pytest.fixture(scope="module")
def full(sample, atlas, other_brain, scenes, redrawn, tissue, tmp_path_factory):
    """Everything at once, with a report: (evaluation, folder)."""
    folder = tmp_path_factory.mktemp("full")
    ceiling = tissue.write_atlas(folder / "ceiling.zarr", scenes, redrawn(9))
    found = evaluate(
        [sample(0), sample(1)], atlas, folder / "new" / "report", train=other_brain.path, ceiling=ceiling.path, **QUIET
    )
    return found, folder / "new" / "report"


def test_the_truth_itself_is_perfect(atlas, truth, tissue, tmp_path):
    output = tissue.write_output(tmp_path / "truth.ome.zarr", truth, atlas)
    found = evaluate(output, atlas, baselines=(), **QUIET)
    row = found.samples[0]
    assert row.nuclei["f1"] == 1
    assert row.nuclei["count_error"] == 0
    assert row.nuclei["area_distance"] == 0
    assert row.similarity["ssim"] == pytest.approx(1)
    assert row.similarity["psnr"] == math.inf
    assert row.distances["texture Fréchet distance"] == pytest.approx(0, abs=1e-6)
    assert row.seams == found.truth_seams
    assert found.truth["nuclei"] == pytest.approx(300, abs=6)
    as_json = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert as_json["rows"][0]["similarity"]["psnr"] is None
    assert as_json["rows"][0]["slices"]["1"]["f1"] == 1


def test_rows_are_in_the_order_that_they_should_be(full):
    rows = {row.name: row for row in full[0].rows}
    one, mean, ceiling = rows["sample, seed 0"], rows["mean of 2 samples"], rows["ceiling"]
    assert list(rows)[:3] == ["sample, seed 0", "sample, seed 1", "mean of 2 samples"]
    assert one.nuclei["f1"] > 0.95
    assert ceiling.nuclei["f1"] > 0.95
    for name in ("mean image", "ridge regression", "nearest patch"):
        assert rows[name].nuclei["f1"] < one.nuclei["f1"] - 0.3, name
        assert rows[name].distances["texture Fréchet distance"] > one.distances["texture Fréchet distance"], name
    assert rows["ridge regression"].similarity["psnr"] > rows["mean image"].similarity["psnr"]
    assert mean.similarity["psnr"] > one.similarity["psnr"] + 1
    assert rows["chance"].nuclei["f1"] < 0.5
    assert rows["chance"].nuclei["f1_deviation"] > 0


def test_slices_and_regions_add_up(full):
    row = full[0].samples[0]
    assert set(row.slices) == {0, 1}
    assert sum(figures["nuclei"] for figures in row.slices.values()) == row.nuclei["count"]
    assert set(row.regions) == {"left", "right"}
    inside = sum(figures["true_nuclei"] for figures in row.regions.values())
    assert 0.9 * full[0].truth["nuclei"] < inside <= full[0].truth["nuclei"]  # the last bins are in no region
    assert all(30 > figures["psnr"] > 10 for figures in row.regions.values())


def test_notes_say_what_must_be_said(full):
    text = " ".join(full[0].notes)
    assert "FID and sFID were not computed" in text
    assert "not comparable with any published FID" in text
    assert "one-to-one by centroid, within 3 µm" in text
    assert re.search(r"is better than ridge regression in nuclei F1, number of nuclei, nuclear size and texture", text)
    assert re.search(r"gains \d\.\d\d dB over one sample", text)
    assert "learnt from" in text
    assert "32 squares" not in text
    assert "rests on 12 squares" in text  # 2 x 3 of 128 px in two slices, for 32 features


def test_seams_of_samples_are_none_and_those_of_stitching_show(full):
    row = full[0].samples[0]
    for grid in ("tile", "decoder patch", "encoder patch"):
        assert abs(row.seams[grid]["score"] - 1) < 4 * row.seams[grid]["error"]
    assert full[0].naive_seams["tile"]["score"] > 1.5


def test_the_report_is_whole_and_needs_nothing_else(full):
    found, folder = full
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    assert page.count("data:image/png;base64,") >= 6
    for row in found.rows:
        assert row.name in page
    assert "<script" not in page
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["kind"] == "teramind evaluation"


def test_a_report_replaces_a_report_and_nothing_else(atlas, sample, tmp_path):
    for name, content in (("report.json", "{}"), ("thesis.txt", "years of work")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(content)
        with pytest.raises(InputError, match="is no report of teramind's"):
            evaluate(sample(0), atlas, tmp_path / name, **QUIET)
        assert (tmp_path / name / name).read_text() == content
    (tmp_path / "old").mkdir()
    ReportFolder(tmp_path / "old").close()  # an empty folder is nothing to lose
    (tmp_path / "old" / "report.json").write_text('{"kind": "teramind evaluation"}')
    evaluate(sample(0), atlas, tmp_path / "old", baselines=(), slices="0:1", roi="0:256,0:256", **QUIET)
    assert (tmp_path / "old" / "report.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "report.json", "thesis.txt"]


def test_a_full_disk_leaves_no_report_and_is_said(atlas, sample, tmp_path, small_files_only, capsys):
    words = ["evaluate", sample(0), atlas.path, "--report", tmp_path / "report", "--baselines", "--slices", "0:1"]
    with small_files_only(20_000):
        assert main([str(word) for word in words]) == 2
    assert f"too large: '{tmp_path}/report/report.html'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_a_window_and_its_margin_is_read_at_once(atlas, sample, other_brain, monkeypatch):
    sides = []
    for kind in (AtlasImage, GeneratedImage, BaselineImage):

        def read(image, z, place, _read=kind.read):
            sides.append(max(place.shape))
            return _read(image, z, place)

        monkeypatch.setattr(kind, "read", read)
    monkeypatch.setattr(measure_module, "_CALIBRATION_SIDE", 256)
    evaluate(sample(0), atlas, train=other_brain.path, window=256, slices="0:1", **QUIET)
    margin = Watershed().margin_um / atlas.pixel_size + 16  # to the next multiple of that
    assert 256 < max(sides) <= 256 + margin < max(atlas.shape)


def test_a_failure_leaves_no_report(atlas, sample, tmp_path):
    with pytest.raises(InputError, match="GFP"):
        evaluate(sample(0), atlas, tmp_path / "report", nuclear_stain="GFP", **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_windows_of_any_size_find_the_same(atlas, sample):
    large, small = (
        evaluate(sample(0), atlas, baselines=("mean",), window=window, **QUIET).to_json() for window in (2048, 256)
    )
    for found in (large, small):
        found.pop("settings")
        for row in found["rows"]:
            row.get("similarity", {}).pop("ms_ssim", None)  # by definition a mean over windows
            row["distances"] = None  # squares begin at the windows' corners
            for figures in row["stains"].values():
                figures.pop("ms_ssim")
        found["naive_seams"] = None  # made window by window
        found["notes"] = None
    assert _rounded(large) == _rounded(small)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 9) if isinstance(value, float) else value


def test_a_region_has_the_figures_of_its_crop(atlas, sample, redrawn, tissue, tmp_path):
    crop = redrawn(0)[:, 1:, 64:256, 128:384]
    part = tissue.write_output(tmp_path / "part.ome.zarr", crop, atlas, y0=64, x0=128, z0=1)
    by_output = evaluate(part, atlas, baselines=(), **QUIET).samples[0]
    by_option = evaluate(sample(0), atlas, baselines=(), roi="64:256,128:384", slices=(1, 2), **QUIET).samples[0]
    assert by_output.similarity == by_option.similarity
    assert by_output.nuclei == by_option.nuclei
    assert by_output.regions == by_option.regions


def test_without_a_training_atlas_each_half_learns_from_the_other(atlas, sample):
    found = evaluate(sample(0), atlas, baselines=("ridge", "mean"), **QUIET)
    notes = {row.note for row in found.of_kind("baseline")}
    assert notes == {"each half of the atlas learnt from the other half"}
    ridge, mean = found.of_kind("baseline")
    assert ridge.similarity["psnr"] > mean.similarity["psnr"] - 0.5  # two windows are little to learn from


def test_shuffled_genes_give_the_f1_of_chance(atlas, other_brain, truth, tissue):
    """A model that uses its genes, on true and on shuffled ones: nuclei are at their places, or anywhere."""
    genes = np.arange(6)
    train = AtlasImage(other_brain, ["DAPI"])
    pairs = training_pairs(other_brain, train, genes, place=Rectangle(0, 512, 0, 512), patch=64, windows=99, seed=0)
    ridge = RidgeBaseline()
    ridge.fit(pairs)
    extent = Rectangle(0, 336, 0, 400)
    f1 = {}
    true = _nuclei(truth[0, 0], tissue, extent)
    for name, genes_from in (("true", atlas), ("shuffled", shuffle_genes(atlas, 5))):
        image = BaselineImage([((0, 400), ridge)], genes_from, genes).read(0, extent)[0]
        f1[name] = match_nuclei(true, _nuclei(image, tissue, extent), 3.0).f1
    moved = (true + np.array([30.0, 41.0])) % np.array([336 * 0.4, 400 * 0.4])
    chance = match_nuclei(true, moved, 3.0).f1
    assert f1["true"] > chance + 0.15
    assert f1["shuffled"] < chance + 0.08


def _nuclei(image, tissue, place):
    label = Watershed().calibrate([image.astype(np.float32)], tissue.pixel_size)
    return find_nuclei(image, label, tissue.pixel_size, place, place).places


def test_other_genes_are_noticed(atlas, redrawn, tissue, tmp_path):
    path = tissue.write_output(tmp_path / "a.ome.zarr", redrawn(0), shuffle_genes(atlas, 0))
    found = evaluate(path, atlas, baselines=(), roi="0:256,0:256", slices="0:1", **QUIET)
    assert any("genes were shuffled: their fingerprints differ" in note for note in found.notes)


def test_a_control_from_shuffled_genes_is_shown_beside_chance(atlas, sample, truth, tissue, tmp_path):
    """In place of an image from shuffled genes: the tissue displaced."""
    shuffled = np.roll(truth, (112, 208), axis=(2, 3))
    path = tissue.write_output(tmp_path / "shuffled.ome.zarr", shuffled, shuffle_genes(atlas, 0))
    found = evaluate(sample(0), atlas, baselines=(), shuffled=path, **QUIET)
    [control], [chance] = found.of_kind("control"), found.of_kind("chance")
    assert control.nuclei["f1"] == pytest.approx(chance.nuclei["f1"], abs=0.1)
    assert any(f"the image from shuffled genes has {control.nuclei['f1']:.2f}" in note for note in found.notes)
    assert control.name == "genes shuffled"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baselines": ("mean", "forest")}, "no baseline 'forest'"),
        ({"match_radius": 0}, "within 0 um"),
        ({"window": 300}, "windows of 300 px"),
        ({"nuclear_stain": "Hoechst"}, "Hoechst, but the images share DAPI, PolyT"),
        ({"inception": "absent.pt"}, "no file absent.pt"),
        ({"train": "absent.zarr"}, "no atlas absent.zarr"),
        ({"train": "the atlas itself"}, "the atlas that is evaluated"),
        ({"ceiling": "absent.zarr"}, "absent.zarr is not an OME-Zarr image"),
        ({"segmentation": "cellpose"}, "needs the file of its weights"),
    ],
)
def test_options_that_cannot_be_are_said(atlas, sample, changed, message):
    if changed.get("train") == "the atlas itself":
        changed = {"train": atlas.path}
    with pytest.raises(InputError, match=message):
        evaluate(sample(0), atlas, **changed, **QUIET)


def test_samples_must_be_samples_of_one_thing(atlas, sample, truth, tissue, tmp_path):
    with pytest.raises(InputError, match="give one or more"):
        evaluate([], atlas, **QUIET)
    with pytest.raises(InputError, match="samples of different seeds"):
        evaluate([sample(0), sample(0)], atlas, **QUIET)
    part = tissue.write_output(tmp_path / "part.ome.zarr", truth[:, :1], atlas, seed=7)
    with pytest.raises(InputError, match="cover the same"):
        evaluate([sample(0), part], atlas, **QUIET)


def test_an_empty_image_is_bad_and_not_a_crash(atlas, truth, tissue, tmp_path):
    black = tissue.write_output(tmp_path / "black.ome.zarr", np.zeros_like(truth), atlas)
    found = evaluate(black, atlas, tmp_path / "report", baselines=(), slices="0:1", **QUIET)
    row = found.samples[0]
    assert (row.nuclei["count"], row.nuclei["f1"]) == (0, 0)
    assert math.isnan(row.nuclei["area_distance"])
    assert math.isnan(row.seams["tile"]["score"])


def test_the_command_is_the_function(atlas, sample, tmp_path, capsys):
    words = ["evaluate", sample(0), sample(1), atlas.path, "--report", tmp_path / "report", "--no-progress",
             "--baselines", "mean", "--roi", "0:256,0:256", "--slices", "0:1"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "mean of 2 samples" in text
    assert f"report: {tmp_path}/report/report.html" in text
    assert main([str(word) for word in [*words[:4], *words[6:], "--json"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]][-2:] == ["mean image", "chance"]
    assert main(["evaluate", str(sample(0)), str(tmp_path / "absent.zarr")]) == 2


def test_the_commands_options_are_those_of_the_function():
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args(["a", "b"]))
    given.pop("json")
    expected = {name: value.default for name, value in inspect.signature(evaluate).parameters.items()}
    assert given == expected | {"output": ["a"], "atlas": "b"}


def test_the_package_can_be_called(atlas):
    """Importing a module of the package binds its name over the function's."""
    assert teramind.evaluate is sys.modules["teramind.evaluate"]
    with pytest.raises(InputError, match="give one or more"):
        teramind.evaluate([], atlas, progress=False)


def test_a_missing_library_is_said_before_any_work(monkeypatch, sample, atlas, tmp_path):
    for module in ("skimage", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=r"which is not installed: pip install 'teramind\[evaluate\]'"):
            evaluate(sample(0), atlas, tmp_path / "report", **QUIET)
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError, match="evaluation needs scikit-image"):
        required("skimage")


def test_importing_the_command_loads_no_plotting():
    code = "import sys, teramind.evaluate.command; assert not {'matplotlib', 'skimage', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_of_the_report_show_something(full):
    import base64
    import io

    page = (full[1] / "report.html").read_text(encoding="utf-8")
    for data in re.findall(r"data:image/png;base64,([^\"]+)", page):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 5
