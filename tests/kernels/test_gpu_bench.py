"""The GPU measurement's answers that need no GPU."""

import gpu
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main() == 2
    assert "no NVIDIA GPU here: nothing was measured" in capsys.readouterr().err


def test_no_speed_up_is_printed_over_red_parity(capsys):
    rows = [gpu.Row(name, 1.5, {"eager": 2.25, "compiled": None}, "70% of copy") for name in ("good", "bad")]
    gpu.print_table({"kernels": rows}, {"wrong_operation": "1e-1 > 1e-2"}, {"good": "right", "bad": "wrong_operation"})
    table = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "2.25" in table["good"]
    assert "2.25" not in table["bad"]
    assert "refused" in table["bad"]
    assert "PARITY" in table


def test_relative_error_counts_nan_as_wrong():
    expected = torch.ones(3)
    assert gpu.relative_error(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-3)
    assert not gpu.relative_error(torch.tensor([1, 1, float("nan")]), expected) <= 1


def test_convolutions_are_found_in_the_network():
    with torch.device("meta"):
        net = gpu.TeraMind(gpu.ModelConfig(genes=5, base_channels=8)).eval()
    with torch.no_grad(), gpu.Convolutions() as found:
        net(*gpu.meta_step(net.config, 64))
    # The last convolution: 8 channels of 2 slices to 2 stains of 2 slices, on the one decoder patch.
    assert found.patches[(16, 4, 3, 3, 64, 64)] == 1
