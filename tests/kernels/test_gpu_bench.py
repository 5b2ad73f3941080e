"""The GPU measurement's answers that need no GPU, and that its sections run, at tiny sizes on the CPU."""

import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

with mock.patch.dict(os.environ, TERAMIND_GPU_BENCH_DRY="1"):
    import gpu
    import gpu_sections
    from gpu_sections import Ceiling, Convolutions, Parity, Row, Shape, convolutions, norm_error, step_inputs

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
    monkeypatch.setattr(gpu, "prepare_process", lambda: None)
    with pytest.raises(RuntimeError):
        gpu.run_section("step", tmp_path / "step.jsonl")
    text = gpu.table(gpu.read_found(tmp_path / "step.jsonl"))  # what was found before it failed
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
    row = Row("step of a 256-px unit, tile 1024, bfloat16, CUDA graph", 4.0, "network bfloat16")
    parity = {"network bfloat16": "", "network float32": "wrong"}  # each type stands on its own
    results = gpu.Results({}, parity, {"step": [row]})
    assert "49 h on this device" in gpu.table(results)
    for parity in ({"network bfloat16": "wrong"}, {"network float32": ""}):
        assert "on this device" not in gpu.table(results._replace(parity=parity))


def test_sections_are_cut_off_and_their_failures_told(tmp_path, capfd):
    assert not gpu.start_section("nothing of this name", tmp_path / "a.jsonl", 60)
    assert gpu.start_section("step", tmp_path / "b.jsonl", 0.01)
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
    config = ModelConfig(genes=5, base_channels=8)
    with torch.device("meta"):
        net = TeraMind(config).eval()
    with Convolutions() as found:
        net(*step_inputs(64, "meta", config))
    # The last one: 8 channels of 2 slices to 2 stains of 2 slices, on the one decoder patch.
    assert found.images[Shape(16, 4, 3, 64, 64, doubles=False)] == 1
    # The last block that doubles the resolution.
    assert found.images[Shape(32, 32, 4, 32, 32, doubles=True)] == 1
    # Channels that 5 genes make are filled up: 64 + 5 to 72, of 2 slices.
    assert found.images[Shape(144, 128, 3, 8, 8, doubles=False)] == 8
    assert found.calls[Shape(16, 4, 3, 64, 64, doubles=False)] == 1
    monkeypatch.setattr("gpu_sections.measure_convolution", lambda shape, images, _: shape.flops * images / 1e9)
    *rows, searched, together = convolutions()
    assert len(rows) == 10
    # All of them, and not only those that are told, decide what is reachable.
    assert together.milliseconds == searched.milliseconds > sum(row.milliseconds for row in rows) / 4  # units of a tile
    assert together.flops == pytest.approx(together.milliseconds * 1e9)
    assert together.note == f"{sum(row.flops for row in rows) / together.flops / 4:.0%} in those above"


@pytest.mark.parametrize(
    ("section", "count"), [("ceilings", 3), ("convolutions", 12), ("step", 10), ("kernels", 26), ("profile", 0)]
)
@torch.no_grad()
def test_sections_run(section, count):
    found = list(gpu.SECTIONS[section]())
    assert len(found) == count
    assert all(one.rate > 0 for one in found if isinstance(one, Ceiling))
    assert all(math.isfinite(one.milliseconds) and "NOT FINITE" not in one.note for one in found[3:])


@torch.no_grad()
def test_parity_is_checked_and_a_wrong_kernel_is_red(monkeypatch):
    assert gpu_sections.parity_of_network("pyramid", torch.float32) == Parity("network float32", "")
    monkeypatch.setattr(gpu_sections, "ONE_PASS", 1e-12)
    assert "pyramid, torch.float32, kernels" in gpu_sections.parity_of_network("pyramid", torch.float32).wrong
    assert gpu_sections.parity_of_case(13) == Parity("adaptive_norm", "")
    monkeypatch.setitem(gpu_sections.TOLERANCE, torch.float32, 0)
    assert "AdaLN, 8 px, torch.float32: " in gpu_sections.parity_of_case(13).wrong


@pytest.mark.slow
def test_a_dry_run_goes_through_all_of_it(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path / "out")}
    done = subprocess.run([sys.executable, BENCH, "--dry"], capture_output=True, text=True, check=True, env=environment)
    assert "FAILED" not in done.stdout
    for told in ("fused element-wise kernels: ", "attention kernels: ", "the best step: x", " h on 8 A100s, scaled"):
        assert told in done.stdout
        assert told in (tmp_path / "out" / "table.txt").read_text()
