"""The comparison of cheaper image teachers with the full teacher, on random clips."""

import numpy as np
import pytest

from benchmarks import teacher_options


def test_an_option_that_changes_nothing_agrees_exactly(first, batch):
    config, _, params, frozen = first
    options = {"same": {}, "half": {"teacher.frames_share": 0.5}}
    rows = teacher_options.measure(config, params, frozen, [batch], options)
    same, half = rows["same"], rows["half"]
    for field in ("token_cosine", "pooled_cosine", "attention_correlation", "gradient_cosine"):
        assert same[field] == pytest.approx(1, abs=1e-5)
    assert same["teacher_flops"] == same["step_flops"] == 1 and half["teacher_flops"] == 0.5
    assert half["step_flops"] < 1 and half["cpu_time"] > 0
    # The encoded frames have the features of the full teacher.
    assert half["smallest_token_cosine"] == pytest.approx(1, abs=1e-5)
    assert half["attention_correlation"] < 0.99
    assert 0 < half["gradient_cosine"] < 0.9999 and rows["other keys"]["gradient_cosine"] < 1


def test_cosine_of_known_vectors():
    assert teacher_options.cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(0.96)
