"""The GPU measurement's answers that need no GPU."""

import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch
from gpu_sections import Ceiling, Convolutions, Parity, Row, Shape, convolutions, meta_step, norm_error

from teramind import ModelConfig, TeraMind

BENCH = Path(gpu.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no NVIDIA GPU here: nothing was measured" in capsys.readouterr().err


def test_no_speed_up_is_shown_without_green_parity(tmp_path, monkeypatch):
    def section():
        yield Ceiling("copy", 4e12)
        yield Ceiling("bfloat16", 8e14)
        for operation, wrong in (("right", ""), ("wrong", "1e-1 > 1e-2")):
            yield Parity(operation, wrong)
        for operation in ("right", "wrong", "unknown"):
            yield Row(f"row {operation}", 1.5, operation, flops=6e11, bytes=3e9, ratios={"eager": 2.25})
        raise RuntimeError("after all of these")

    monkeypatch.setitem(gpu.SECTIONS, "step", section)
    grad, cudnn = torch.is_grad_enabled(), torch.backends.cudnn.benchmark
    try:
        with pytest.raises(RuntimeError):
            gpu.run_section("step", tmp_path / "step.jsonl")
    finally:
        torch.set_grad_enabled(grad)
        torch.backends.cudnn.benchmark = cudnn
    text = gpu.table(gpu.read_found(tmp_path))  # what was found before it failed
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("  row")}
    assert "2.25" in lines["right"]
    assert "400.0     50%   2.00     50%" in lines["right"]
    assert "refused  PARITY" not in lines["right"]
    assert "refused" in lines["wrong"]
    assert "PARITY RED" in lines["wrong"]
    assert "refused" in lines["unknown"]
    assert "PARITY NOT KNOWN" in lines["unknown"]
    assert "PARITY IS RED: wrong: 1e-1 > 1e-2" in text


def test_a_brain_is_projected_from_green_parity_alone():
    row = Row("step of a 256-px unit, tile 1024, bfloat16, CUDA graph", 4.0, "network")
    results = gpu.Results({}, {"network": ""}, {"step": [row]})
    assert "49 h on this device" in gpu.table(results)
    assert "on this device" not in gpu.table(results._replace(parity={"network": "wrong"}))


def test_sections_are_cut_off_and_their_failures_told(tmp_path, capfd):
    gpu.start_section("nothing of this name", tmp_path / "a.jsonl", 60)
    gpu.start_section("step", tmp_path / "b.jsonl", 0.01)
    told = capfd.readouterr().out
    assert "FAILED" in told
    assert "step: 0 s CUT OFF" in told


def test_it_works_from_a_checkout_that_is_not_installed(tmp_path):
    """Without the package's compiled part and zarr."""
    code = (
        "import sys; sys.modules['zarr'] = None\n"
        f"sys.path.insert(0, {str(BENCH.parent)!r})\n"
        "sys.meta_path = [one for one in sys.meta_path if 'editable' not in type(one).__module__]\n"
        "import gpu, teramind\n"
        "teramind.__path__ = [path for path in teramind.__path__ if 'site-packages' not in path]\n"
        "import teramind.kernels.gather, teramind.diffusion.sampling\n"
        "sys.exit('teramind._core' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_nan_is_no_small_error():
    expected = torch.ones(3)
    assert norm_error(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-3)
    assert not norm_error(torch.tensor([1, 1, float("nan")]), expected) <= 1


@torch.no_grad()
def test_convolutions_are_found_in_the_network(monkeypatch):
    with torch.device("meta"):
        net = TeraMind(ModelConfig(genes=5, base_channels=8)).eval()
    with Convolutions() as found:
        net(*meta_step(net.config, 64))
    # The last one: 8 channels of 2 slices to 2 stains of 2 slices, on the one decoder patch.
    assert found.images[Shape(16, 4, 3, 64, 64, doubles=False)] == 1
    # The last block that doubles the resolution.
    assert found.images[Shape(32, 32, 4, 32, 32, doubles=True)] == 1
    # Channels that 5 genes make are filled up: 64 + 5 to 72, of 2 slices.
    assert found.images[Shape(144, 128, 3, 8, 8, doubles=False)] == 8
    monkeypatch.setattr("gpu_sections.measure_convolution", lambda shape, images: shape.flops * images / 1e9)
    monkeypatch.setattr("gpu_sections.TILE", 256)
    *rows, together = convolutions()
    assert len(rows) == 10
    assert together.milliseconds == pytest.approx(sum(row.milliseconds for row in rows))
    assert together.flops == pytest.approx(sum(row.flops for row in rows))
