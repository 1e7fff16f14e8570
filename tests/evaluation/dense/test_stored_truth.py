"""Rows in memory and stored tokens are those of the truth and of the encoder."""

import numpy as np
import pytest
from oracle_encoder import make_inputs, make_oracle, resolve

from configs.eval.tasks import depth as depth_config
from invnext_jax.evaluation.dense import head_fitting
from invnext_jax.evaluation.dense.stored_truth import TruthInMemory
from invnext_jax.evaluation.dense.truth_clips import TruthClips
from invnext_jax.evaluation.truth.truth import BadTruth

WORLD = "simple?videos=6&size=16&frames=2"


class Numbers:
    """Rows with their number; odd rows are bad. It counts the reads."""

    name, videos, video_names = "numbers", np.arange(6), list("abcdef")

    def __init__(self):
        self.reads = []

    def __len__(self):
        return 6

    def load(self, row):
        self.reads.append(row)
        if row % 2:
            raise BadTruth(f"row {row}", "missing")
        return {"x": np.full(1000, row, np.float64)}


def test_rows_are_read_once_up_to_the_size_limit():
    numbers = Numbers()
    truth = TruthInMemory(numbers, max_gb=16.5e-6)  # two rows
    for _ in range(2):
        for row in (0, 2, 4):
            assert (truth.load(row)["x"] == row).all()
        for row in (1, 3):
            with pytest.raises(BadTruth, match=f"row {row}"):
                truth.load(row)
    assert numbers.reads == [0, 2, 4, 1, 3, 4]


def test_another_training_row_replaces_a_bad_one():
    clips = TruthClips(Numbers(), rows=[1, 4], names=["x"])
    batch = clips.batch(0, 2, seed=0)
    clips.close()
    assert (batch["x"] == 4).all()
    assert list(clips.skipped.reasons) == [1]


def test_stored_tokens_are_those_of_the_clip_of_each_row(tmp_path):
    config = depth_config.get_config("tiny")
    probe = make_oracle(np.zeros((1, 2, 16, 16, 3), np.uint8), np.zeros((1, 2, 3)))
    config = resolve(config, probe, WORLD)
    plain = {split: make_inputs(config, probe, tmp_path).dataset for split in ("train", "val")}
    videos = {
        split: [dataset.open_truth(config.depth, split).load(row)["video"] for row in range(6)]
        for split, dataset in plain.items()
    }
    both = np.stack(videos["train"] + videos["val"])
    code_mtd = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
    inputs = make_inputs(config, make_oracle(both, code_mtd), tmp_path / "oracle")
    truths, source = head_fitting.open_truths(inputs, config.depth)
    assert source == "tokens"
    for split, codes in (("train", code_mtd[:6]), ("val", code_mtd[6:])):
        for row in range(6):
            found = truths[split].load(row)
            np.testing.assert_array_equal(found["video"], videos[split][row])
            np.testing.assert_allclose(found["tokens"], np.repeat(codes[row][:, None], 4, axis=1))
    _, source = head_fitting.open_truths(inputs, config.depth, several_layers=True)
    assert source == "video"
