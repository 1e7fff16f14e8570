"""Evaluation of several checkpoints of a run."""

import ml_collections
import numpy as np
import pytest
from toy_evaluation import get_config

from invnext_jax.checkpointing import reader
from invnext_jax.errors import UserError
from invnext_jax.evaluation import (
    evaluate,
    nearest_neighbors,
    pretrained,
    results_file,
    video_scores,
)
from invnext_jax.evaluation.feature_store import extraction


@pytest.fixture
def fake_run(folder, monkeypatch):
    """A run with checkpoints of three steps. Returns the steps that were loaded."""
    loaded, load = [], pretrained.load_frozen

    def load_step(path, *, ema=False, step=None):
        loaded.append(step)
        return load(folder / "encoder.safetensors").with_random_params(step)

    monkeypatch.setattr(pretrained, "load_frozen", load_step)
    monkeypatch.setattr(pretrained, "list_steps", lambda _: [2, 4, 10])
    return loaded


def test_checkpoints_of_several_steps_have_separate_results(folder, tmp_path, fake_run):
    changes = {"evaluators": ("linear_probe", "box_baselines"), "steps": "all"}
    config = get_config(folder, tasks=("shape",), poolings=("mean",), **changes)
    results = evaluate.evaluate_checkpoint(config, tmp_path)
    assert fake_run == results["steps"] == [2, 4, 10]
    parts = [results_file.read_results(tmp_path / "steps" / str(step)) for step in fake_run]
    assert [part["step"] for part in parts] == fake_run
    places = [tmp_path, *(results_file.step_folder(tmp_path, step) for step in fake_run)]
    for found, place in zip([results, *parts], places, strict=True):
        nearest = nearest_neighbors.read_nearest_videos(place / found["neighbors"])
        assert nearest.neighbor_bk.shape == (24, nearest_neighbors.NEIGHBORS)
        for row in found["rows"]:
            scores = video_scores.read(place / row["scores"]["file"], row["scores"]["row"])
            np.testing.assert_allclose(scores.score_b.mean(), row["value"])
            assert len(scores.predicted_b) == 24
    assert parts[2]["key"] == results["key"] != parts[0]["key"]
    # Baselines and random initialization are measured once.
    assert {path.name for path in (tmp_path / "rows").glob("*.json")} == {
        *("linear_probe-random.json", "box_baselines-random.json")
    }
    alone = get_config(folder, tasks=("shape",), poolings=("mean",), **{**changes, "steps": "4"})
    again = evaluate.evaluate_checkpoint(alone, tmp_path / "alone")
    assert again["rows"][0]["value"] == parts[1]["rows"][0]["value"]
    assert again["tokens"]["encoder"] == parts[1]["tokens"]["encoder"]


def test_interrupted_evaluation_of_steps_continues(folder, tmp_path, fake_run, monkeypatch):
    changes = {"evaluators": ("linear_probe",), "controls": False, "tasks": ("shape",)}
    config = get_config(folder, poolings=("mean",), steps="2,4", **changes)
    evaluate.evaluate_checkpoint(config, tmp_path)
    config.steps = "all"
    extracted, run = [], extraction.run_extractor

    def count(*arguments, **options):
        extracted.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(extraction, "run_extractor", count)
    assert evaluate.evaluate_checkpoint(config, tmp_path)["step"] == 10
    assert len(extracted) == 2  # both splits, only for the last step


def test_steps_without_a_checkpoint_are_refused(folder, tmp_path, fake_run, monkeypatch):
    config = get_config(folder, steps="2,3")
    with pytest.raises(UserError, match="no checkpoint '3', only those of steps 2, 4, 10: use"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    config.steps = "first"
    with pytest.raises(UserError, match="no checkpoint 'first'"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    monkeypatch.setattr(pretrained, "list_steps", lambda _: [])
    with pytest.raises(UserError, match="steps='first' needs the workdir of a run"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    assert fake_run == []


@pytest.mark.parametrize("damaged", [(), (10, 8)])
def test_results_have_the_step_that_was_restored(folder, tmp_path, monkeypatch, damaged, capsys):
    """Step 4 is restored; a checkpoint of step 12 is written while it is measured."""
    params, config = pretrained.load_params(folder / "encoder.safetensors")
    found = reader.RunParameters(params, ml_collections.FrozenConfigDict(config), 4, damaged)
    monkeypatch.setattr(reader, "restore_run", lambda *_, **__: found)
    monkeypatch.setattr(pretrained, "list_steps", lambda _: [2, 4, 8, 10, 12])
    config = get_config(folder, checkpoint="runs/s1", evaluators=("knn",), tasks=("shape",))
    config.controls = False
    results = evaluate.evaluate_checkpoint(config, tmp_path)
    assert results["step"] == 4
    note = (
        "runs/s1 has damaged checkpoints, which were skipped (step 10, 8), so that the checkpoint "
        "of step 4 is evaluated."
    )
    assert results["notes"] == [note] * bool(damaged)
    assert (note in capsys.readouterr().out) == bool(damaged)
