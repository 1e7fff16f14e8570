"""With configs/eval/world.py, an oracle has high scores, and a blind encoder chance level."""

import numpy as np
import pytest
import toy_evaluation
from oracle_encoder import make_blind, make_oracle

from configs.eval import world
from invnext_jax.evaluation import evaluate, evaluation_data, pretrained
from invnext_jax.evaluation.evaluation_data import EvaluationData
from invnext_jax.evaluation.evaluators import registry

EVALUATORS = ("linear_probe", "knn", "few_shot", "attentive_probe")
TASKS = ("shape", "color", "motion")


@pytest.fixture
def config(tmp_path, monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)
    toy_evaluation.write_data(tmp_path / "data", train=96, val=32)
    config = toy_evaluation.shrink(world.get_config(), "", tmp_path / "data")
    config.update(evaluators=EVALUATORS, tasks=TASKS)
    config.knn.update(neighbors=(5,))
    config.attentive_probe.update(epochs=40.0, batch_size=16, learning_rates=(1e-2,))
    config.data.update(frames=toy_evaluation.FRAMES, size=toy_evaluation.SIZE)
    config.data.update(short_side=toy_evaluation.SIZE)
    return config


def measure(config, encoder, workdir, monkeypatch):
    monkeypatch.setattr(pretrained, "load_frozen", lambda *_, **__: encoder)
    rows = evaluate.evaluate_checkpoint(config, workdir)["rows"]
    assert {(row["evaluator"], row["task"]) for row in rows} == {
        (evaluator, task) for evaluator in EVALUATORS for task in TASKS
    }
    return rows


def test_oracle_scores_at_least_95_percent_on_every_task(config, tmp_path, monkeypatch):
    """The tokens of the oracle are the one-hot labels of the clip plus noise."""
    dataset = EvaluationData(evaluation_data.resolve(config, make_blind()), TASKS)
    parts = [dataset.videos(split) for split in ("train", "val")]
    clips = np.concatenate([part.video_bthwc for part in parts])
    labels = [np.concatenate([part.labels[task] for part in parts]) for task in TASKS]
    truth = np.concatenate([np.eye(8)[label_b] for label_b in labels], axis=1)
    truth = np.repeat(truth[:, None], toy_evaluation.FRAMES, axis=1)
    truth += np.random.default_rng(0).normal(0, 0.02, truth.shape)
    for row in measure(config, make_oracle(clips, truth), tmp_path / "oracle", monkeypatch):
        if row["evaluator"] in ("knn", "few_shot"):
            # Neighbors compare whole vectors, which also differ in the other two labels.
            chance = 1 / row["classes"]
            assert row["value"] > chance + 5 * (chance * (1 - chance) / row["n"]) ** 0.5
        else:
            assert row["value"] >= 0.95, row


@pytest.mark.parametrize("task", TASKS)
def test_neighbors_with_the_truth_of_one_task_score_at_least_95_percent(
    task, config, tmp_path, monkeypatch
):
    config.update(tasks=(task,), evaluators=("knn", "few_shot"))
    dataset = EvaluationData(evaluation_data.resolve(config, make_blind()), (task,))
    parts = [dataset.videos(split) for split in ("train", "val")]
    clips = np.concatenate([part.video_bthwc for part in parts])
    truth = np.eye(8)[np.concatenate([part.labels[task] for part in parts])]
    truth = np.repeat(truth[:, None], toy_evaluation.FRAMES, axis=1)
    encoder = make_oracle(clips, truth)
    monkeypatch.setattr(pretrained, "load_frozen", lambda *_, **__: encoder)
    rows = evaluate.evaluate_checkpoint(config, tmp_path / "oracle")["rows"]
    assert min(row["value"] for row in rows) >= 0.95


def test_blind_encoder_scores_chance_on_every_task(config, tmp_path, monkeypatch):
    encoder = make_blind(size=toy_evaluation.SIZE, frames=toy_evaluation.FRAMES)
    config.attentive_probe.epochs = 4.0
    for row in measure(config, encoder, tmp_path / "blind", monkeypatch):
        chance = 1 / row["classes"]
        assert row["value"] < chance + 3 * (chance * (1 - chance) / row["n"]) ** 0.5, row


def test_evaluators_and_options_of_the_config_are_valid():
    config = world.get_config()
    config.data.update(frames=8, size=32)
    for evaluator in registry.find_evaluators(config.evaluators):
        evaluator.check_config(config)
