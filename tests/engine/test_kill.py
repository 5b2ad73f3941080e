"""SIGKILL at any moment: the real scheduler, store, snapshots and writer around a toy in the network's place."""

import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import zarr

from teramind.engine.frame import Frame, Window
from teramind.engine.plan import Rectangle, TilePlan
from teramind.engine.session import Setup, carry_out
from teramind.engine.sink import Placement
from teramind.output.ome_zarr import OutputWriter

PATCH, TILE, STEPS = 8, 16, 5
HEIGHT, WIDTH = 60, 92
PLANES = (1, 2)
WINDOWS = [Window(-1, 0), Window(1, 2)]


class Positions:
    """In place of gene counts: a hash of where each pixel is."""

    def __init__(self, plan, windows):
        self.plan, self.windows = plan, windows

    def read(self, unit):
        y0, y1, x0, x1 = self.plan.compute_rectangle(unit)
        y, x = np.arange(y0 - 4, y1 + 4)[:, None], np.arange(x0 - 4, x1 + 4)
        hashed = (y * 7919 + x * 104729 + self.windows[unit.window].image_start * 1299709) % 1009
        return hashed[None, None].astype(np.uint16)


class Toy:
    """A 3 x 3 mean of the state plus the position's hash, which no two steps or tiles can take from elsewhere."""

    steps = STEPS
    state_dtype = np.dtype(np.float32)

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __call__(self, states, genes, step, _names):
        time.sleep(self.seconds)
        total = sum(states[..., 3 + dy : states.shape[-2] - 5 + dy, 3 + dx : states.shape[-1] - 5 + dx]
                    for dy in range(3) for dx in range(3))  # fmt: skip
        after = total / np.float32(9) + genes[..., 4:-4, 4:-4].astype(np.float32) / np.float32(700 + step)
        if step == STEPS - 1:
            return np.clip(after * 40, 0, 255).astype(np.uint8)
        return after


def noise(z, place):
    y, x = np.arange(place.y0, place.y1)[:, None], np.arange(place.x0, place.x1)
    field = np.sin(y * 0.7 + x * 1.3 + z).astype(np.float32)
    return np.broadcast_to(field, (*PLANES, *field.shape))


def toy_setup(path, seconds=0.0, roi=None, workers=1, **options):
    frame = Frame.of(HEIGHT, WIDTH, PATCH, roi)
    place = Placement(frame, WINDOWS, (0, 3))

    def create(identity, overwrite):
        return OutputWriter(
            path, shape=(1, 3, *frame.output.shape), pixel_size=(1, 1, 1), translation=(0, 0, 0), stains=["DAPI"],
            parameters=dict(identity), overwrite=overwrite,
        )  # fmt: skip

    plan = partial(
        TilePlan, *frame.plane.shape, patch=PATCH, tile=TILE, steps=STEPS, windows=2, output=frame.target,
        bounds=frame.bounds,
    )  # fmt: skip
    return Setup(
        plan=plan, create_output=create, denoisers=[Toy(seconds)] * workers, noise=noise, genes=Positions, place=place,
        planes=PLANES, skip=None, identity={"toy": 1, "roi": str(roi)}, **options,
    )  # fmt: skip


def voxels(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


def complete(path):
    return zarr.open_group(path, mode="r").attrs["teramind"]["complete"]


def run_and_kill(path, after, **options):
    """Carry a run on in a child process and kill it; whether it had ended by itself before."""
    child = os.fork()
    if child == 0:  # nothing but the run, and no clean-up of the test session it was forked from
        status = 1
        try:
            carry_out(toy_setup(path, **options), path, resume=True, overwrite=False)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "the run failed by itself"
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "image.ome.zarr"
    carry_out(toy_setup(path), path, resume=False, overwrite=False)
    return voxels(path)


def test_a_region_is_the_crop_and_workers_change_nothing(tmp_path, expected):
    """The toy shows what a network's rounding would hide: bit for bit."""
    path = tmp_path / "image.ome.zarr"
    carry_out(toy_setup(path, roi=Rectangle(10, 30, 20, 50), workers=4), path, resume=False, overwrite=False)
    assert np.array_equal(voxels(path), expected[:, :, 8:32, 16:56])


def test_against_the_whole_plane_at_once(expected):
    """Without tiles, plan or store: the toy on the padded plane."""
    for z, window in enumerate((0, 0, 1)):
        start = WINDOWS[window].image_start
        state = noise(start, Rectangle(0, 64, 0, 96))[None]
        y, x = np.arange(-4, 68)[:, None], np.arange(-4, 100)
        hashed = ((y * 7919 + x * 104729 + start * 1299709) % 1009)[None, None, None].astype(np.uint16)
        for step in range(STEPS):
            padded = np.pad(state, ((0, 0), (0, 0), (0, 0), (4, 4), (4, 4)), constant_values=-1)
            state = Toy()(padded, hashed, step, [""])
        assert np.array_equal(expected[0, z], state[0, 0, 0, :HEIGHT, :WIDTH])


@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spilled", [False, True])
def test_killed_at_random_moments_it_ends_with_the_same_voxels(tmp_path, expected, kills, spilled):
    random.seed(kills)
    options = {"seconds": 0.0005, "snapshot_seconds": 0.01, "workers": 2}
    if spilled:
        options["memory"] = 107_000  # what the rims may take, and four tiles
    killed = outputs = 0
    while killed < kills:
        path = tmp_path / f"{outputs}.ome.zarr"
        while not run_and_kill(path, random.uniform(0, 0.3), **options):
            killed += 1
        assert complete(path)
        assert np.array_equal(voxels(path), expected)
        assert sorted(entry.name for entry in path.iterdir()) == ["0", "teramind-report.json", "zarr.json"]
        outputs += 1
    assert outputs > 0
