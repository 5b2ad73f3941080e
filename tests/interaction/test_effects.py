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
from teramind.interaction.screen import corrected, screen_row
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
    changed = [comparison((100 + s, 1e5), (70 + s, 1e5), 4000.0) for s in (-2, 0, 2)]
    unchanged = [comparison((98, 1e5), (98, 1e5), 1000.0)] * 2
    effects = {one.quantity: one for one in summarise(changed, unchanged, ["DAPI"])}
    nuclei = effects["nuclei"]
    assert (nuclei.before, nuclei.after, nuclei.effect, nuclei.seeds) == (100, 70, -30, 3)
    t = 4.302653  # Student's for two degrees of freedom
    reach = t * math.sqrt(90) / 3  # seeds agree to the nucleus: what is left is the counting error of the 90 lost
    assert (nuclei.low, nuclei.high) == pytest.approx((-30 - reach, -30 + reach))
    assert nuclei.effect_size == pytest.approx(-15)
    assert nuclei.noise_floor == pytest.approx(t * 2 * math.sqrt(2 / 3))
    assert nuclei.beyond_noise
    rms = effects["difference, grey levels (rms)"]
    assert (rms.effect, rms.two_seeds) == pytest.approx((2, 1))
    assert rms.beyond_noise is None
    assert math.isnan(rms.noise_floor)
    assert effects["nuclei lost"].effect == 30
    assert effects["mean nuclear area, um^2"].effect == 0


def test_one_seed_tells_no_noise():
    [nuclei, *_] = summarise([comparison((10, 1.0), (8, 1.0))], [], ["DAPI"])
    assert nuclei.effect == -2
    assert all(math.isnan(value) for value in (nuclei.low, nuclei.high, nuclei.noise_floor, nuclei.effect_size))
    assert not nuclei.beyond_noise


def counted(before, lost, gained):
    looks = [Look(nuclei, 30.0 * nuclei, 1000, np.array([1e5])) for nuclei in (before, before - lost + gained)]
    return {EVERYWHERE: Comparison(*looks, np.array([1.0]), lost=lost, gained=gained)}


def share_beyond(generator, spread, lost, gained, seeds=3, runs=400):
    """How often nuclei are beyond noise, of images with 200 nuclei; and the p of each run."""
    found, chances = 0, []
    for _ in range(runs):
        befores = np.rint(generator.normal(200, spread, seeds)).astype(int)
        pairs = [counted(before, *generator.poisson((lost, gained))) for before in befores.tolist()]
        nuclei = summarise(pairs, [], ["DAPI"])[0]
        found += nuclei.beyond_noise
        chances.append(nuclei.p)
    return found / runs, np.array(chances)


@pytest.mark.parametrize("spread", [0, 3])
def test_nuclei_that_come_and_go_are_no_effect(spread):
    """With equal counts without the change, too."""
    share, chances = share_beyond(np.random.default_rng(0), spread, 2, 2)
    assert share <= 0.05
    assert (chances < 0.05).mean() <= 0.06


def test_a_real_loss_is_found():
    """A tenth of the nuclei, where seeds differ by 1.5 %: three seeds find it mostly, five always."""
    generator = np.random.default_rng(1)
    assert share_beyond(generator, 3, 20, 0)[0] > 0.8
    assert share_beyond(generator, 3, 20, 0, seeds=5)[0] > 0.98


def test_one_nucleus_is_nothing_however_well_seeds_agree():
    [nuclei, *_] = summarise([counted(200, 1, 0)] * 3, [], ["DAPI"])
    assert nuclei.effect == -1
    assert not nuclei.beyond_noise


def test_the_spread_with_the_change_counts():
    """Alike without the change, and as unlike with it as nothing else: no effect."""
    [nuclei, *_] = summarise([counted(200, lost, 0) for lost in (60, 5, 40)], [], ["DAPI"])
    assert nuclei.noise_floor > 35
    assert not nuclei.beyond_noise


def test_no_fewer_than_no_nuclei_are_lost():
    effects = {one.quantity: one for one in summarise([counted(9, lost, 0) for lost in (0, 0, 3)], [], ["DAPI"])}
    assert effects["nuclei lost"].low == 0


def test_a_screen_is_corrected_for_its_genes():
    """Of 200 genes without effect some have a small p, and hardly any a small q; one with an effect keeps it."""
    generator = np.random.default_rng(2)

    def row(gene, lost, gained):
        befores = np.rint(generator.normal(200, 3, 5)).astype(int).tolist()
        pairs = [counted(before, *generator.poisson((lost, gained))) for before in befores]
        return screen_row(gene, summarise(pairs, [], ["DAPI"]), CHANGED)

    rows = corrected([row(f"g{number}", 3, 3) for number in range(200)] + [row("real", 80, 0)])
    silent = [one for one in rows if one.gene != "real"]
    assert sum(one.nuclei_p < 0.05 for one in silent) >= 1
    assert sum(one.nuclei_q < 0.05 for one in silent) <= 1
    assert rows[-1].gene == "real"
    assert rows[-1].nuclei_q < 0.05
