"""Registered evaluators."""

import shutil
from pathlib import Path

import pytest
from toy_evaluation import get_config

from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, results_file, tables
from invnext_jax.evaluation.evaluators import linear_probe, registry


def load_example():
    """Runs the example of docs/evaluation/evaluation.md, which registers an evaluator."""
    page = (Path(__file__).parents[3] / "docs/evaluation/evaluation.md").read_text()
    namespace = {}
    exec(page.split("```python\n")[1].split("```")[0], namespace)
    return namespace


def test_registered_evaluator_has_rows_and_a_table(folder, results, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EVALUATORS", dict(registry.EVALUATORS))
    example = load_example()["get_config"]()
    shutil.copytree(folder / "p", tmp_path / "p")
    config = get_config(folder, evaluators=example.evaluators)
    config.feature_norm = example.feature_norm
    again = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    rows = [row for row in again["rows"] if row["evaluator"] == "feature_norm"]
    assert [row["name"] for row in rows] == ["encoder", "random"]
    joined = tables.join_results([results_file.read_results(tmp_path / "p")])
    assert [table["title"] for table in joined["tables"]] == ["top-1, %", "norm"]
    table = joined["tables"][1]
    assert table["tasks"] == ["all videos"] and table["n"] == "24"
    shown = [(row["name"], row["input"], row["note"]) for row in table["rows"]]
    assert shown[1] == ("Stage 1", "mean", "frozen encoder; feature norm")
    assert table["rows"][1]["cells"]["all videos"]["text"] == f"{rows[0]['value']:.3g}"
    lines = tables.format_table(again).splitlines()
    assert any(line.split() == ["norm", "all", "videos"] for line in lines)
    config.feature_norm.order = 3
    with pytest.raises(UserError, match="config.feature_norm.order=3 must be 1 or 2"):
        evaluate.evaluate_checkpoint(config, tmp_path / "p")


def test_two_evaluators_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "EVALUATORS", dict(registry.EVALUATORS))
    with pytest.raises(ValueError, match="an evaluator 'linear_probe' is already registered"):
        registry.register(linear_probe.LinearProbe())
    evaluator = linear_probe.LinearProbe()
    evaluator.name = "../x"
    with pytest.raises(ValueError, match="must be an identifier"):
        registry.register(evaluator)
