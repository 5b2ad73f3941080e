import pytest
import torch

from teramind.engine.denoise import full_float32


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_has_no_tf32_on_a_gpu_and_settings_come_back(monkeypatch, allowed):
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", allowed)
    with pytest.raises(KeyError), full_float32(torch.device("cuda")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
