"""The results of demo runs replace the tables of docs/demo.md."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate_demo():
    spec = importlib.util.spec_from_file_location(
        "generate_demo", ROOT / "docs/scripts/generate_demo.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_results(folder, stage, offset):
    folder.mkdir(parents=True)
    rows = [
        {
            **{"evaluator": evaluator, "name": name, "input": what, "task": "shape", "n": 50},
            **{"metric": "top1", "value": value + offset, "standard_error": 0.01, "classes": 8},
        }
        for evaluator, name, what, value in (
            ("linear_probe", "encoder", "frames", 0.5 if stage == "stage1" else 0.7),
            ("linear_probe", "random", "frames", 0.3),
            ("attentive_probe", "encoder", "mean query, best on val", 0.9),
            ("pixel_baselines", "bag_of_frames", "pixels", 0.2),
        )
    ]
    results = {
        **{"format": 2, "stage": stage, "rows": rows, "tokens": {}, "title": stage, "notes": []},
        "run": {"config": {"supervised": {"steps": 0}}},
    }
    (folder / "results.json").write_text(json.dumps(results))


def write_metrics(folder):
    folder.mkdir(parents=True)
    records = [
        {
            **{"step": step, "loss": 1 / step, "conditioning_gap": step / 1e4, "target_rank": 3.0},
            **{"target_position_share": 0.1, "prediction_rank": 2.0, "position_loss": 0.5},
        }
        for step in (1, 50, 100)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_tables_have_the_mean_and_the_deviation_over_seeds(tmp_path, monkeypatch, generate_demo):
    for number, offset in enumerate((0.0, 0.02)):
        for stage, name in (("stage1", "1"), ("stage2", "2")):
            write_results(tmp_path / f"demo{number}" / f"e{name}", stage, offset)
            write_metrics(tmp_path / f"demo{number}" / f"s{name}")
    page = tmp_path / "page.md"
    page.write_text(generate_demo.PAGE.read_text())
    monkeypatch.setattr(generate_demo, "PAGE", page)
    generate_demo.main([str(tmp_path / "demo0"), str(tmp_path / "demo1")])
    text = page.read_text()
    assert "| **top-1, %** | shape |" in text
    assert "linear probe, frame means | 51.0 ± 1.4 |" in text
    assert "best on val" not in text.split("<!-- results -->")[1].split("<!-- end")[0]
    assert "| step | 1 | 100 |\n|---|---|---|\n| seed 0 | 0.0001 | 0.0100 |" in text
    assert "| seed | loss at step 50 | 50 | 100 |" in text
