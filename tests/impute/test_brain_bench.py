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
    layouts = {tuple(key): np.mean(found) for *key, found in content["layouts"]}
    for line in ("imputed", "drawn anew"):
        assert layouts["slices held out", line, "copies"] < layouts["slices held out", line, "chance_copies"] + 0.03
        assert layouts["slices held out", line, "density_error"] < 0.3
    assert layouts["slices held out", "baseline", "copies"] == 1
    assert layouts["hole", "imputed", "count_ratio"] == layouts["hole", "baseline", "count_ratio"]
    produced, kept, *_ = content["extra"][0]
    assert produced > 0.8  # of the vocabulary's genes are written, by a network tuned to a panel without a third
    assert kept > 0.2  # of the lacking genes' counts
    for name in ("f1_density.png", "embedding.png", "volcano.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "better than the baseline" in said


def test_what_was_in_the_hole_is_shown_to_no_network(monkeypatch):
    sys.path.insert(0, str(BENCH.parent))
    pytest.importorskip("matplotlib")
    import impute_brain

    shown = []
    monkeypatch.setattr(impute_brain, "train_all", lambda cells, *_: shown.append(cells))
    experiments = impute_brain.Experiments(21, impute_brain.Scale("tiny", brain=0.5), impute_brain.Results())
    (cells,) = shown
    truth = experiments.slices[impute_brain.BROKEN]
    own = cells[cells.sections == truth.sections[0]]
    assert len(own) == len(truth) - experiments.in_hole.sum() < len(truth)
    assert not experiments.disc.contains(own.positions[:, :2]).any()
    assert set(cells.sections) == {
        part.sections[0] for index, part in enumerate(experiments.slices) if index not in impute_brain.HELD_OUT
    }
