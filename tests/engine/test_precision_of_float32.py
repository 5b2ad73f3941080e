from contextlib import ExitStack

import pytest
import torch

from teramind.engine.denoise import full_float32

BACKENDS = torch.backends.cuda.matmul, torch.backends.cudnn


@pytest.fixture(params=[True, False])
def allowed(request):
    before = [backend.allow_tf32 for backend in BACKENDS]
    for backend in BACKENDS:
        backend.allow_tf32 = request.param
    yield request.param
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.allow_tf32 = value


def test_float32_on_a_gpu_is_never_tf32_and_the_setting_comes_back(allowed):
    with full_float32(torch.device("cuda")):
        assert not any(backend.allow_tf32 for backend in BACKENDS)
    assert all(backend.allow_tf32 == allowed for backend in BACKENDS)


def test_it_stays_off_while_another_thread_needs_it(allowed):
    """The workers of two GPUs come and go in any order; each is a context of its own."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(full_float32(torch.device("cuda:0")))
    second.enter_context(full_float32(torch.device("cuda:1")))
    first.close()
    assert not any(backend.allow_tf32 for backend in BACKENDS)
    second.close()
    assert all(backend.allow_tf32 == allowed for backend in BACKENDS)


def test_a_cpu_changes_nothing(allowed):
    with full_float32(torch.device("cpu")):
        assert all(backend.allow_tf32 == allowed for backend in BACKENDS)
