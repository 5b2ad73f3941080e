import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from parity_data import Fixture, relative_error


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums in one order, whatever the machine; and small networks spend more time on waking threads than these save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parity():
    cache = {}
    return lambda name: cache.setdefault(name, Fixture(name))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the real MERSCOPE sample: beside the checkout, else the one in it; or a skip that says so."""
    beside = Path(os.environ.get("TERAMIND_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = beside if beside.is_dir() else Path(__file__).parents[1] / "examples"
    if not (folder / "merscope_liver").is_dir():
        pytest.skip(f"the real MERSCOPE sample is not at {folder}; set TERAMIND_SHARED_DATA to its parent folder")
    return folder


@pytest.fixture
def small_files_only():
    """Call it with a number of bytes: beyond that the system refuses to let any file grow, as a full disk would."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def deviation():
    return relative_error


@pytest.fixture(scope="session")
def interpreter():
    """A process in which Triton interprets kernels, on CPU tensors; it runs functions that can be imported.

    The interpreter has to be chosen before Triton is imported, and a process that has chosen it can compile nothing: so
    this process stays as users have it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
            # Starts the process. Torch's own poison: memory of torch.empty is filled with NaN, or the largest integer.
            pool.submit(torch.use_deterministic_algorithms, True).result()
        yield pool
