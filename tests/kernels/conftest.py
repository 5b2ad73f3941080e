"""Runs kernels where they can run: in Triton's interpreter always, on a GPU where there is one."""

import pytest
import torch

PLACES = ["interpreter", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(params=PLACES)
def run_triton(request):
    """``run_triton(operation, *args, **kwargs)``: on its kernels, outputs poisoned; the results on the CPU."""
    if request.param == "interpreter":
        pool = request.getfixturevalue("interpreter")
        device = "cpu"

        def call(operation, *args, **kwargs):
            return pool.submit(operation, *args, **kwargs).result()
    else:
        request.getfixturevalue("_poisoned")
        device = "cuda"

        def call(operation, *args, **kwargs):
            return operation(*args, **kwargs)

    def run(operation, *args, **kwargs):
        if "device" in kwargs:
            kwargs["device"] = device
        moved = moved_to(device, (args, kwargs))
        return moved_to("cpu", call(operation, *moved[0], implementation="triton", **moved[1]))

    run.place = request.param
    return run


@pytest.fixture
def _poisoned():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def moved_to(device, values):
    """Every tensor within tuples, lists and dicts, moved with its strides."""
    if isinstance(values, torch.Tensor):
        return values.detach() if values.device.type == device else values.to(device)
    if isinstance(values, dict):
        return {key: moved_to(device, value) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(moved_to(device, value) for value in values)
    return values


def wide(values):
    """Every floating-point tensor in float64."""
    if isinstance(values, torch.Tensor):
        return values.double() if values.is_floating_point() else values
    if isinstance(values, (tuple, list)):
        return type(values)(map(wide, values))
    return values


@pytest.fixture
def in_float64():
    return wide


@pytest.fixture
def assert_near():
    """Compare with a float64 reference: every element within ``tolerance`` of max(1, |expected|)."""

    def check(actual, expected, tolerance):
        assert actual.shape == expected.shape
        error = (actual.double() - expected).abs() / expected.abs().clamp(min=1)
        wrong = ~(error <= tolerance)  # a NaN is wrong
        first = wrong.nonzero()[:5].tolist()
        assert not wrong.any(), f"{int(wrong.sum())} wrong, largest {error.max()}, first at {first}"

    return check


@pytest.fixture
def random():
    """``random(*shape)``: standard normals of a generator that starts anew in each test; never zeros."""
    generator = torch.Generator().manual_seed(20250301)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)
