"""The experiments of the benchmark, all of them, on a small brain with tiny networks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench" / "impute_brain.py"


@pytest.mark.slow
def test_all_experiments_on_a_toy(tmp_path):
    pytest.importorskip("matplotlib")
    words = [sys.executable, str(BENCH), "--toy", "--folder", str(tmp_path)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "scores.json").read_text())
    values = {tuple(key): np.mean(found) for *key, found in content["scores"]}
    experiments = {experiment for experiment, *_ in values}
    assert experiments == {"slices held out", "hole", "sagittal", "second panel"}
    for radius in (0.03, 0.04, 0.05):
        for metric in ("spearman", "f1", "composition"):
            assert 0 <= values["slices held out", "imputed", metric, radius] <= 1
        scores = {line: values["slices held out", line, "spearman", radius] for _, line, *_ in values if (
            "slices held out", line, "spearman", radius) in values}  # fmt: skip
        assert scores["shuffled rows"] < scores["imputed"] < scores["imputed, true types"] < scores["type means"]
    assert content["extra"][0][0] > 0.8  # of the vocabulary's genes are written
    for name in ("f1_density.png", "embedding.png", "volcano.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "better than the baseline" in said
