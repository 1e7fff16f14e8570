"""Rows of the evaluator temporal_context, and encoders without a predictor."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import toy_evaluation

from configs.eval.tasks import temporal_context as config_module
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data, inputs, pretrained
from invnext_jax.evaluation.evaluators.temporal_context import GAIN, TemporalContext
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache

WORLD = "world:simple/{}?videos={}&size=16&frames=2"


@pytest.fixture
def config():
    config = config_module.get_config("tiny")
    config.update(train_manifest=WORLD.format("train", 16), val_manifest=WORLD.format("val", 5))
    config.temporal_context.update(batch_size=4, epochs=2.0, warmup_epochs=0.5)
    config.data.workers = 0
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("context") / "stage2.safetensors"
    return toy_evaluation.write_stage2(path)


def test_the_gain_is_the_difference_of_both_losses_of_each_video(
    config, checkpoint, tmp_path, monkeypatch
):
    toy_evaluation.use_devices(monkeypatch, 1)
    encoder = pretrained.load_frozen(checkpoint)
    config = evaluation_data.resolve(config, encoder)
    dataset = evaluation_data.EvaluationData(config, ())
    cache = FeatureCache(tmp_path / "features")
    found = TemporalContext().evaluate(
        inputs.EvalInputs("encoder", dataset, lambda: encoder, cache), config
    )
    rows = {(row.task, row.input): row for row in found}
    assert len(rows) == len(found) == 6
    for task in ("latents", "pixels"):
        own, both, gain = (rows[task, what] for what in ("own frame", "all frames", GAIN))
        assert own.metric == both.metric == "prediction_loss"
        assert gain.metric == "prediction_gain"
        assert own.n == both.n == 5 and own.value > 0 and both.value > 0
        scores = own.scores.score_b - both.scores.score_b
        assert math.isclose(gain.value, scores.mean(), rel_tol=1e-5, abs_tol=1e-7)
        assert math.isclose(gain.standard_error, scipy.stats.sem(scores), rel_tol=1e-4)
        np.testing.assert_array_equal(gain.scores.index_b, np.arange(5))
    other = dataclasses.replace(encoder, loaded=None)
    skipped = inputs.EvalInputs("encoder", dataset, lambda: other, cache)
    assert TemporalContext().evaluate(skipped, config) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ()}, r"targets=\(\) must be one or more of 'latents', 'pixels'"),
        ({"targets": ("motion",)}, r"targets=\('motion',\) must be one or more of"),
        ({"learning_rate": 0.0}, r"learning_rates=\(0.0,\)"),
        ({"epochs": 0.0}, "config.temporal_context.epochs=0.0 must be positive"),
        ({"mask.fit": "crop"}, "mask.fit='crop' must be one of"),
    ],
)
def test_invalid_options_are_refused(config, options, sentence):
    config.temporal_context.update_from_flattened_dict(options)
    with pytest.raises(UserError, match=sentence):
        TemporalContext().check_config(config)
