"""What the engine's tests share.

A small atlas, and a small network fitted to it: its voxels stay off the clip, so that differences show. And a toy in
the network's place, around which everything else is real: it is fast, and shows bit for bit what is wrong.
"""

import os
import signal
import sys
import time
import traceback
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import atlases
import numpy as np
import pytest
import zarr
from scipy.ndimage import gaussian_filter

from teramind.engine.frame import Frame, Window
from teramind.engine.plan import TilePlan
from teramind.engine.session import Setup, carry_out
from teramind.engine.sink import Placement
from teramind.errors import Interrupted
from teramind.output.ome_zarr import OutputWriter

GENES = ["a", "b", "c"]
STAINS = ["DAPI", "PolyT"]
HEIGHT, WIDTH = 150, 230


def make_atlas(path, slices=3, height=HEIGHT, width=WIDTH, density=0.3, seed=0, overwrite=False):
    """Poisson counts, none in the right third of the plane; each stain is the blurred density of a gene."""
    bins = -(-height // 16), -(-width // 16)
    counts = np.random.default_rng(seed).poisson(density, (slices, *bins, len(GENES)))
    counts[:, :, bins[1] * 2 // 3 :] = 0
    images = np.empty((len(STAINS), slices, height, width), np.uint8)
    for stain, z in np.ndindex(*images.shape[:2]):
        blurred = gaussian_filter(np.kron(counts[z, ..., stain], np.ones((16, 16))), 6)[:height, :width]
        images[stain, z] = 40 + 150 * blurred.clip(0, 1.4)
    return atlases.write_atlas(
        path, counts, images, genes=GENES, stains=STAINS, slice_z=[10.0 * z for z in range(slices)],
        shape=(height, width), pixel_size=0.108, scaling=dict.fromkeys(STAINS, (0, 255)), provenance={},
        overwrite=overwrite,
    )  # fmt: skip


@pytest.fixture(scope="session")
def write_atlas():
    return make_atlas


@pytest.fixture(scope="session")
def atlas_path(tmp_path_factory):
    return make_atlas(tmp_path_factory.mktemp("atlas") / "atlas.zarr")


@pytest.fixture(scope="session")
def checkpoint_path():
    """Made as tests/data/README.md says."""
    return Path(__file__).parents[1] / "data" / "small.safetensors"


PATCH, TILE, STEPS = 8, 16, 5
TOY_HEIGHT, TOY_WIDTH = 60, 92
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

    def __init__(self, seconds=0.0, hook=None):
        self.seconds, self.hook, self.units = seconds, hook, count()

    def send(self, states, genes):
        return states, genes

    def fetch(self, result):
        return result

    def __call__(self, sent, step, _name):
        states, genes = sent
        time.sleep(self.seconds)
        if self.hook:
            self.hook(next(self.units))
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


def toy_setup(path, seconds=0.0, roi=None, workers=1, hook=None, identity=None, **options):
    """A run of the toy; ``hook`` is called with the number of each unit that is computed."""
    frame = Frame.of(TOY_HEIGHT, TOY_WIDTH, PATCH, roi)
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
        plan=plan, create_output=create, denoisers=[Toy(seconds, hook)] * workers, noise=noise, genes=Positions,
        place=place, planes=PLANES, skip=None, identity=identity or {"toy": 1, "roi": str(roi)}, **options,
    )  # fmt: skip


def voxels(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


def complete(path):
    return zarr.open_group(path, mode="r").attrs["teramind"]["complete"]


def run_and_kill(path, after, **options):
    """Carry a run on in a child process and kill it; whether it had ended by itself before."""
    child = fork_run(path, **options)
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


def fork_run(path, **options):
    """Begin or go on with a run of the toy in a child process; its number."""
    child = os.fork()
    if child == 0:  # nothing but the run, and no clean-up of the test session it was forked from
        status = 1
        try:
            carry_out(toy_setup(path, **options), path, resume=True, overwrite=False)
            status = 0
        except Interrupted as error:
            status = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def interrupt(path, unit, **options):
    """Run the toy in this process and send it SIGTERM at a unit."""

    def hook(number):
        if number == unit:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as error:
        carry_out(toy_setup(path, seconds=0.002, hook=hook, **options), path, resume=False, overwrite=False)
    return error.value


@pytest.fixture(scope="session")
def toy():
    """The toy's parts and helpers, see above."""
    return SimpleNamespace(
        setup=toy_setup, denoiser=Toy, noise=noise, windows=WINDOWS, steps=STEPS, height=TOY_HEIGHT, width=TOY_WIDTH,
        voxels=voxels, complete=complete, run_and_kill=run_and_kill,
        fork_run=fork_run, interrupt=interrupt,
    )  # fmt: skip


@pytest.fixture(scope="session")
def toy_voxels(tmp_path_factory):
    """What an uninterrupted run of the toy makes."""
    path = tmp_path_factory.mktemp("toy") / "image.ome.zarr"
    carry_out(toy_setup(path), path, resume=False, overwrite=False)
    return voxels(path)
