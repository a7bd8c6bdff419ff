"""The command that measures a model."""
import json
from pathlib import Path

import pytest
import tofu
from conftest import tiny

import evaluate


def test_published_llama2_logs_reproduce_the_papers_original_row(tofu_dir, tmp_path):
    """Table 2, forget10: Original has FQ 0.00 and MU 0.62; our check against numbers made by others."""
    logs = Path(tofu_dir).parent / "tofu_logs"
    if not logs.is_dir():
        pytest.skip("no published logs beside TOFU_DIR")
    evaluate.main(["--log", str(logs / "llama2-7b_full.json"), "--retrain", str(logs / "llama2-7b_retain90.json"),
                   "--out", str(tmp_path / "m.json")])
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["forget_quality"] < 1e-10 and metrics["model_utility"] == pytest.approx(0.62, abs=0.005)
    assert metrics["retain"] == pytest.approx({"probability": 0.99, "rouge": 0.98, "truth_ratio": 0.48}, abs=0.01)
    evaluate.main(["--log", str(logs / "llama2-7b_retain95.json"), "--retrain", str(logs / "llama2-7b_retain95.json"),
                   "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["forget_quality"] == pytest.approx(1)


def test_evaluate_command_on_a_model_and_on_its_own_log(toy_model_folder, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    evaluate.main(["--model", str(toy_model_folder), "--retrain", str(toy_model_folder), "--out", str(out),
                   "--max-new-tokens", "3"])
    metrics = json.loads(out.read_text())
    assert metrics["forget_quality"] == pytest.approx(1) and set(metrics["retain"]) == set(tofu.PARTS)
    again = tmp_path / "again.json"
    evaluate.main(["--log", str(tmp_path / "metrics.log.json"), "--out", str(again)])
    without = json.loads(again.read_text())
    for name in ("forget_quality", "forget_quality_halves"):
        assert without.pop(name) is None and metrics.pop(name)
    assert without == metrics
    assert "--retrain" in capsys.readouterr().out  # the screen says why there is no forget quality
