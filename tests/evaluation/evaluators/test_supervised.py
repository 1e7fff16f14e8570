"""The supervised baseline resumes after it was killed, and shows its progress."""

import itertools

import numpy as np
import pytest

from configs import stage1
from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.evaluation.evaluators import supervised
from invnext_jax.evaluation.feature_store import state_file
from invnext_jax.evaluation.feature_store.clips_in_memory import LabeledVideos
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.models import encoder as encoder_model

STEPS = 25


def train(saved=None):
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=2)
    rng = np.random.default_rng(2)
    video = rng.integers(256, size=(8, 2, 16, 16, 3), dtype=np.uint8)
    videos = LabeledVideos(video, {"shape": np.arange(8) % 3}, np.arange(8))
    settings = probe_config.get_config("tiny").supervised
    settings.update(steps=STEPS, batch_size=4)
    encoder = encoder_model.from_config(config)
    return supervised.train_supervised(
        encoder, videos, videos, tasks=["shape"], config=settings, seed=0, saved=saved
    )


def test_killed_training_continues_with_the_same_losses(tmp_path, monkeypatch, capsys):
    expected, curve = train()
    assert [point["step"] for point in curve] == [0, 10, 20, 24]
    assert curve[-1]["loss"] < curve[0]["loss"]
    real, saved = supervised.make_batches, StateFile(tmp_path / "supervised.npz", "key")

    def killed(*arguments):
        yield from itertools.islice(real(*arguments), 17)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state_file.SaveTimer.__init__, "__defaults__", (0.0,))
        patch.setattr(supervised, "make_batches", killed)
        train(saved)
    with np.load(saved.path) as stored:
        assert stored["step"] == 11
    capsys.readouterr()
    results, resumed = train(saved)
    assert resumed == curve
    assert results["shape"].train_top1 == expected["shape"].train_top1
    assert "25 of 25 steps, supervised, loss" in capsys.readouterr().out
