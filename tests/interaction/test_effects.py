"""Effects of images whose nuclei are drawn, so that what is lost and gained is known."""

import math

import numpy as np
import pytest

from teramind import Atlas
from teramind.engine.plan import Rectangle
from teramind.evaluate.nuclei import Watershed
from teramind.evaluate.sources import GeneratedImage
from teramind.interaction.areas import Box, Everywhere
from teramind.interaction.effects import (
    CHANGED,
    EVERYWHERE,
    Comparison,
    Look,
    Measured,
    Scales,
    Zones,
    compare,
    summarise,
)
from teramind.output.ome_zarr import OutputWriter

PIXEL = 0.2
SIDE = (230, 150)
PLACES = [(30, 30), (30, 90), (90, 40), (100, 110), (160, 60), (200, 120)]


def drawn(places, radius=22):
    y, x = np.mgrid[: SIDE[0], : SIDE[1]]
    plane = np.full(SIDE, 10, np.uint8)
    for row, column in places:
        plane[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 180
    return plane


def write_image(path, planes):
    """``planes`` of the first stain; the second is flat."""
    image = np.stack([np.stack(planes), np.full((len(planes), *SIDE), 7, np.uint8)])
    with OutputWriter(
        path,
        shape=image.shape,
        pixel_size=(5, PIXEL, PIXEL),
        translation=(10, 0, 0),
        stains=["DAPI", "PolyT"],
        parameters={},
    ) as writer:
        writer.write_block(0, 0, 0, image)
    return path


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, make_atlas, counts):
    labels = np.zeros((3, 15, 10), np.uint16)
    labels[:, :8], labels[:, 8:] = 1, 2
    path = tmp_path_factory.mktemp("effects") / "atlas.zarr"
    return Atlas.open(make_atlas(path, counts, regions=(labels, {1: "dorsal", 2: "ventral"})))


def measured(path, atlas, planes, like=None):
    image = GeneratedImage(write_image(path, planes), atlas)
    scales = Scales(Watershed(), 0, 3.0)
    label = scales.calibrated(like.image if like else image, PIXEL)
    return Measured(image, scales.find(image, label, PIXEL)), scales


def test_what_is_lost_gained_and_kept(tmp_path, atlas):
    first, scales = measured(tmp_path / "a.ome.zarr", atlas, [drawn(PLACES)] * 3)
    planes = [drawn(PLACES), drawn(PLACES[1:]), drawn([*PLACES[:5], (200, 40)], radius=25)]
    second, _ = measured(tmp_path / "b.ome.zarr", atlas, planes, first)
    zones = Zones(atlas, Box(Rectangle(0, 64, 0, 64)))
    found, slices = compare(first, second, zones, scales)
    everywhere = found[EVERYWHERE]
    assert (everywhere.before.nuclei, everywhere.after.nuclei) == (18, 17)
    assert (everywhere.kept, everywhere.lost, everywhere.gained) == (16, 2, 1)
    # In the last slice five nuclei have grown; all nuclei together, without those that are gone, tell no more.
    small, large = (math.pi * (radius * PIXEL) ** 2 for radius in (22, 25))
    matched = [look["mean area of nuclei in both, um^2"] for look in everywhere.looks(["DAPI", "PolyT"])]
    assert matched == pytest.approx([small, (11 * small + 5 * large) / 16], rel=0.1)
    assert matched[1] - matched[0] == pytest.approx(5 * (large - small) / 16, rel=0.25)
    assert (found[CHANGED].before.nuclei, found[CHANGED].lost) == (3, 1)
    assert (found["ventral"].lost, found["ventral"].gained, found["dorsal"].lost) == (1, 1, 1)
    assert found["dorsal"].before.pixels == 3 * 128 * 150
    assert [len(one.before) for one in slices] == [6, 6, 6]
    expected = np.mean([np.square(a.astype(float) - drawn(PLACES)) for a in planes]) / 2  # the second stain is the same
    assert everywhere.difference == pytest.approx(math.sqrt(expected))
    looks = everywhere.before.quantities(["DAPI", "PolyT"])
    assert looks["mean PolyT, grey levels"] == 7
    assert looks["mean DAPI, grey levels"] == pytest.approx(drawn(PLACES).mean())
    assert looks["mean nuclear area, um^2"] == pytest.approx(math.pi * (22 * PIXEL) ** 2, rel=0.1)


def test_the_same_image_has_no_effect(tmp_path, atlas):
    first, scales = measured(tmp_path / "a.ome.zarr", atlas, [drawn(PLACES)] * 3)
    found, _ = compare(first, first, Zones(atlas, Everywhere()), scales)
    assert list(found) == [EVERYWHERE, "dorsal", "ventral"]
    for one in found.values():
        assert one.difference == one.lost == one.gained == 0


def comparison(before, after, squares=0.0):
    looks = [Look(nuclei, 30.0 * nuclei, 1000, np.array([grey])) for nuclei, grey in (before, after)]
    return {EVERYWHERE: Comparison(*looks, np.array([squares]), lost=before[0] - after[0])}


def test_an_effect_is_measured_by_the_noise_of_seeds():
    changed = [comparison((100 + s, 1e5), (90 + s, 1e5), 4000.0) for s in (-2, 0, 2)]
    unchanged = [comparison((98, 1e5), (98, 1e5), 1000.0)] * 2
    effects = {one.quantity: one for one in summarise(changed, unchanged, ["DAPI"])}
    nuclei = effects["nuclei"]
    assert (nuclei.before, nuclei.after, nuclei.effect, nuclei.seeds) == (100, 90, -10, 3)
    assert (nuclei.low, nuclei.high) == (-10, -10)
    assert nuclei.effect_size == pytest.approx(-5)
    assert nuclei.noise_floor == pytest.approx(4.302653 * 2 * math.sqrt(2))  # Student's t for two degrees of freedom
    assert not nuclei.beyond_noise
    assert effects["difference, grey levels (rms)"].effect == pytest.approx(2)
    assert effects["difference, grey levels (rms)"].noise_floor == pytest.approx(1)
    assert effects["difference, grey levels (rms)"].beyond_noise
    assert effects["nuclei lost"].effect == 10
    assert effects["mean nuclear area, um^2"].effect == 0


def test_one_seed_tells_no_noise():
    [nuclei, *_] = summarise([comparison((10, 1.0), (8, 1.0))], [], ["DAPI"])
    assert nuclei.effect == -2
    assert all(math.isnan(value) for value in (nuclei.low, nuclei.high, nuclei.noise_floor, nuclei.effect_size))
    assert not nuclei.beyond_noise
