import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from teramind.atlas.phantom import Phantom
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.nuclei import Nuclei, Watershed, find_nuclei, match_nuclei, measure
from teramind.evaluate.nuclei.backends import segmenter
from teramind.evaluate.nuclei.segment import otsu
from teramind.evaluate.nuclei.table import reduced, reduction
from teramind.evaluate.sources import Extent

pytest.importorskip("skimage")


def segmented(image, pixel_size, **parameters):
    plane = image.astype(np.float32)
    return measure(Watershed(**parameters).calibrate([plane], pixel_size)(plane), plane, pixel_size)


@pytest.mark.parametrize("markers", ["distance", "both"])
@pytest.mark.parametrize("threshold", ["otsu", "local"])
def test_discs_are_found_in_number_place_and_size(scenes, truth, tissue, threshold, markers):
    nuclei = segmented(truth[0, 0], tissue.pixel_size, threshold=threshold, markers=markers)
    matches = match_nuclei(scenes[0].places, nuclei.places, 1.0)
    # One threshold for all loses the dimmest of those that stand alone, and is there to be chosen all the same.
    assert matches.f1 > (0.99 if threshold == "local" else 0.95)
    error = nuclei.area[matches.found] / scenes[0].areas[matches.truth] - 1
    # The blur of the edge moves it inwards on the dim side of a threshold; half height takes most of that back.
    assert abs(np.median(error)) < (0.04 if threshold == "local" else 0.12)


@pytest.mark.parametrize("gap", [1.0, 0.85])
def test_touching_discs_are_separated(tissue, gap):
    scene = tissue.scene(150, tissue.shape, seed=3, gap=gap)
    nuclei = segmented(scene.draw(0)[0], tissue.pixel_size)
    assert match_nuclei(scene.places, nuclei.places, 2.0).f1 > 0.97


def test_brightness_and_background_leave_the_number_alone(truth, tissue):
    there = segmented(truth[0, 0], tissue.pixel_size)
    dim = segmented((truth[0, 0] * 0.4 + 30).astype(np.uint8), tissue.pixel_size)
    slope = np.linspace(0, 40, tissue.shape[1])
    uneven = segmented((truth[0, 0] * 0.8 + slope).clip(0, 255).astype(np.uint8), tissue.pixel_size)
    for nuclei in (dim, uneven):
        assert match_nuclei(there.places, nuclei.places, 1.0).f1 > 0.98
        assert np.median(nuclei.area) == pytest.approx(np.median(there.area), rel=0.08)


@pytest.mark.parametrize("level", [0, 12, 200])
def test_noise_has_no_nuclei(level):
    noise = np.random.default_rng(0).normal(level, 4, (300, 300)).clip(0, 255)
    assert len(segmented(noise, 0.4)) == 0
    assert len(segmented(np.full((50, 60), level), 0.4)) == 0


@pytest.mark.parametrize(("pixel_size", "shape"), [(0.4, (336, 400)), (0.2, (300, 340))])
def test_blocks_find_what_the_whole_finds(pixel_size, shape, tissue):
    """Some nuclei lie across every border; every one is owned once."""
    radius = (2.4 / pixel_size, 3.6 / pixel_size)
    scene = tissue.scene(60, shape, seed=5, radius=radius)
    image = scene.draw(1)[0]
    segmentation, factor = Watershed(), reduction(pixel_size)
    label = segmentation.calibrate([reduced(image, factor)], pixel_size * factor)
    extent = Extent((0, 1), Rectangle(1000, 1000 + shape[0], 64, 64 + shape[1]))
    whole = find_nuclei(image, label, pixel_size, extent.place, extent.place)
    drawn = (np.stack([scene.y + 1000, scene.x + 64], axis=1) + 0.5) * pixel_size
    assert match_nuclei(drawn, whole.places, 1.0).f1 > 0.99
    margin = -(-int(segmentation.margin_um / pixel_size) // 16) * 16
    parts = []
    for _, core in extent.windows(96):
        padded = extent.padded(core, margin)
        pixels = image[padded.y0 - 1000 : padded.y1 - 1000, padded.x0 - 64 : padded.x1 - 64]
        parts.append(find_nuclei(pixels, label, pixel_size, padded, core))
    together = Nuclei.joined(parts)
    order, theirs = np.lexsort((together.x, together.y)), np.lexsort((whole.x, whole.y))
    np.testing.assert_allclose(together.places[order], whole.places[theirs])
    np.testing.assert_allclose(together.area[order], whole.area[theirs])
    np.testing.assert_allclose(together.intensity[order], whole.intensity[theirs])


@pytest.mark.parametrize("pixel_size", [0.4, 0.25])
def test_nuclei_of_a_phantom_that_stand_alone_are_found(pixel_size):
    phantom = Phantom(seed=3, size=640, slices=1, pixel_size=pixel_size)
    nuclei = segmented(phantom.image_window(0, 1, 0, 640, 0, 640)[0, 0], pixel_size)
    cells = phantom.cells(0, 0, 640, 0, 640)
    drawn = np.stack([cells["nucleus_y"], cells["nucleus_x"]], axis=1) * pixel_size
    area = np.pi * cells["nucleus_major"] * cells["nucleus_minor"] * pixel_size**2
    cut = area > 0
    drawn, area = drawn[cut], area[cut]
    apart = np.linalg.norm(drawn[:, None] - drawn, axis=2) + 99 * np.eye(len(drawn))
    inside = (drawn.min(axis=1) > 4) & (drawn.max(axis=1) < 640 * pixel_size - 4)
    alone = (apart.min(axis=1) > 8) & (area > 12) & inside
    matches = match_nuclei(drawn[alone], nuclei.places, 2.0)
    assert alone.sum() > 20
    assert len(matches.truth) / alone.sum() > 0.93
    # What is found was drawn: the dense parts hide nuclei from any segmentation, but nothing is invented.
    assert len(match_nuclei(drawn, nuclei.places, 3.0).found) / len(nuclei) > 0.95


def test_a_phantom_drawn_anew_is_found_again():
    first, second = (Phantom(seed=5, size=512, slices=1, morphology_seed=seed) for seed in (None, 9))
    nuclei = [segmented(one.image_window(0, 1, 0, 512, 0, 512)[0, 0], 0.4) for one in (first, second)]
    assert len(nuclei[1]) == pytest.approx(len(nuclei[0]), rel=0.08)
    assert match_nuclei(nuclei[0].places, nuclei[1].places, 3.0).f1 > 0.8


def test_otsu_equals_scikit_image():
    from skimage.filters import threshold_otsu

    values = np.concatenate([np.random.default_rng(0).normal(m, 9, 4000) for m in (60, 140)]).clip(0, 255).astype(int)
    level, dark, bright = otsu(np.bincount(values, minlength=256).astype(float), 1.0)
    assert level == threshold_otsu(values) + 1  # theirs is the last value below, ours the border above it
    assert dark == pytest.approx(60.5, abs=1)
    assert bright == pytest.approx(140.5, abs=1)
    assert otsu(np.eye(1, 256, 30)[0], 1.0) == (0, 0, 0)


def test_parameters_that_cannot_be_are_said():
    with pytest.raises(InputError, match="'mean'"):
        Watershed(threshold="mean")
    with pytest.raises(InputError, match="'random'"):
        Watershed(markers="random")
    with pytest.raises(InputError, match="30 to 20"):
        Watershed(min_diameter_um=30)


class FakeCellpose:
    """Labels what is bright, and notes how it was asked."""

    asked: list = []  # noqa: RUF012

    def __init__(self, pretrained_model):
        self.weights = pretrained_model

    def eval(self, image, **options):
        self.asked.append(options)
        return (image > 50).astype(np.uint16), None, None


@pytest.mark.parametrize(("version", "options"), [("3.1.1", {"channels": [0, 0]}), ("4.0.6", {})])
def test_cellpose_is_asked_in_the_way_of_its_version(monkeypatch, tmp_path, version, options):
    monkeypatch.setitem(sys.modules, "cellpose", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cellpose.models", SimpleNamespace(CellposeModel=FakeCellpose))
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)
    (tmp_path / "cyto3").touch()
    found = segmenter("cellpose", tmp_path / "cyto3")
    plane = np.zeros((20, 20), np.float32)
    plane[5:15, 5:15] = 100
    assert len(measure(found.calibrate([], 0.5)(plane), plane, 0.5)) == 1
    assert FakeCellpose.asked[-1] == {"diameter": 14.0, **options}
    assert found.describe() == {"name": "cellpose", "version": version, "weights": "cyto3", "diameter_um": 7.0}


def test_segmenters_that_are_not_there_are_said(tmp_path):
    with pytest.raises(InputError, match="needs the file of its weights"):
        segmenter("instanseg")
    with pytest.raises(InputError, match="choose watershed"):
        segmenter("stardist")
    with pytest.raises(InputError, match="the watershed has no weights"):
        segmenter("watershed", tmp_path)
    if "cellpose" not in sys.modules:
        with pytest.raises(InputError, match="cellpose is not installed"):
            segmenter("cellpose", tmp_path)


class FakeInstanSeg:
    """Gives nuclei and cells, in this order."""

    def __init__(self, model, verbosity):
        assert isinstance(model, torch.jit.ScriptModule)
        assert verbosity == 0

    def eval_small_image(self, image, pixel_size, return_image_tensor):
        assert image.shape == (1, 20, 20)
        assert (pixel_size, return_image_tensor) == (0.5, False)
        nuclei = torch.from_numpy(image > 50).int()
        return torch.stack([nuclei, torch.ones_like(nuclei)], dim=1)


def test_instanseg_gives_nuclei(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "instanseg", SimpleNamespace(InstanSeg=FakeInstanSeg))
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.1.2")
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "instanseg.pt"))
    found = segmenter("instanseg", tmp_path / "instanseg.pt")
    plane = np.zeros((20, 20), np.float32)
    plane[5:15, 5:15] = 100
    nuclei = measure(found.calibrate([], 0.5)(plane), plane, 0.5)
    assert nuclei.area.tolist() == [25.0]
    assert found.describe() == {"name": "instanseg", "version": "0.1.2", "weights": "instanseg.pt"}
