"""Rows of the evaluator temporal_context, and encoders without a predictor."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import scipy.stats
import toy_evaluation

from configs.eval.tasks import temporal_context as config_module
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data, inputs, pretrained
from invnext_jax.evaluation.evaluators import temporal_context
from invnext_jax.evaluation.evaluators.temporal_context import CLIP_MEAN, GAIN, TemporalContext
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.models.patches import clip_grid, normalize, patchify
from invnext_jax.objectives import masks

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
    assert len(rows) == len(found) == 8
    for task in ("latents", "pixels"):
        names = ("own frame", "all frames", CLIP_MEAN, GAIN)
        own, both, mean, gain = (rows[task, what] for what in names)
        assert own.metric == both.metric == mean.metric == "prediction_loss"
        assert mean.value > 0 and mean.n == 5
        assert gain.metric == "prediction_gain"
        assert own.n == both.n == 5 and own.value > 0 and both.value > 0
        scores = own.scores.score_b - both.scores.score_b
        assert math.isclose(gain.value, scores.mean(), rel_tol=1e-5, abs_tol=1e-7)
        assert math.isclose(gain.standard_error, scipy.stats.sem(scores), rel_tol=1e-4)
        np.testing.assert_array_equal(gain.scores.index_b, np.arange(5))
    other = dataclasses.replace(encoder, loaded=None)
    skipped = inputs.EvalInputs("encoder", dataset, lambda: other, cache)
    assert TemporalContext().evaluate(skipped, config) == []


def test_the_loss_of_the_clip_mean_is_the_variance_of_masked_pixels(
    config, checkpoint, tmp_path, monkeypatch
):
    toy_evaluation.use_devices(monkeypatch, 1)
    config.val_manifest = WORLD.format("val", 4)  # one batch
    encoder = pretrained.load_frozen(checkpoint)
    config = evaluation_data.resolve(config, encoder)
    dataset = evaluation_data.EvaluationData(config, ())
    found = inputs.EvalInputs("encoder", dataset, lambda: encoder, FeatureCache(tmp_path))
    loss_b = temporal_context._measure_clip_mean(found, config, "pixels")
    video_bthwc = normalize(dataset.videos("val").video_bthwc)
    patches_bnp = np.asarray(patchify(video_bthwc, encoder.patch))
    settings = temporal_context._mask_settings(config.temporal_context)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    expected = []
    for _, masked_bm in masks.sample_masks(key, 4, clip_grid(video_bthwc, encoder.patch), settings):
        masked_bmp = np.stack([x[m] for x, m in zip(patches_bnp, masked_bm, strict=True)])
        expected.append(masked_bmp.var(axis=1).mean(axis=-1))
    np.testing.assert_allclose(loss_b, np.mean(expected, axis=0), rtol=1e-4)


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
