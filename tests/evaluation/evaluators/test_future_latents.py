"""Predicted latents are those of the checkpoint's predictor, and depend on the context only."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import oracle_encoder
import pytest
from golden_cases import assert_near

from configs import stage1, stage2
from configs.eval.tasks import anticipation as anticipation_config
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.evaluation.evaluators import future_latents
from invnext_jax.models.patches import normalize
from invnext_jax.stages import registry
from invnext_jax.stages.masked_modeling import MaskSample, run_features
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.weights import export

GRID = future_latents.TimeGrid(context=3, slots=6, predicted=range(4, 6))
PATCHES = 4  # patches of a frame


def small_config(stage="stage2"):
    config = {"stage1": stage1, "stage2": stage2}[stage].get_config("tiny")
    config.encoder.update(width=32, depth=1, heads=2, mlp_width=32, size=16, frames=6)
    config.predictor.update(width=48, depth=2, heads=2, mlp_width=32)
    config.data.update(size=16, frames=6)
    if stage == "stage1":
        config.decoder.kind = "linear"
        config.loss.update(align_tokens=0.0, align_pooled=0.0)
    return config


def write_checkpoint(folder, config, parts=None):
    stage = registry.find_stage(config)
    init = jax.jit(lambda key: stage.init_params(config, stage.make_model(config), key))
    params = mesh_lib.unbox(init(jax.random.key(0)))
    kept = {name: params[name] for name in parts or params}
    path = folder / "model.safetensors"
    export.write_export(path, kept, {"config": run_metadata.config_to_json(config)})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("future"), small_config())


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return pretrained.load_frozen(checkpoint)


def clips(frames=6, b=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (b, frames, 16, 16, 3), dtype=np.uint8)


def apply(encoder, video):
    return np.asarray(jax.jit(encoder.apply)(encoder.params, video).tokens_btnd)


def test_predictions_are_those_of_the_stage_under_the_same_mask(encoder, checkpoint):
    """Compares with the forward pass of Stage 2, in which the later slots are masked."""
    config = small_config()
    params = jax.tree.map(np.asarray, export.open_export(checkpoint)[0])
    model = registry.find_stage(config).make_model(config)
    keep_bk = np.tile(np.arange(3 * PATCHES), (3, 1))
    masked_bm = np.tile(np.arange(3 * PATCHES, 6 * PATCHES), (3, 1))
    sample = MaskSample(jnp.asarray(keep_bk), jnp.asarray(masked_bm))

    @jax.jit
    def run(video_bthwc):
        features = run_features(model, params, video_bthwc, sample)
        tokens = model.encoder.apply({"params": params["encoder"]}, video_bthwc, sample.keep_bk)
        return features.predicted_bmd, tokens.tokens_bnd[:, model.encoder.class_tokens :]

    expected, context = run(normalize(clips()))
    expected = expected.reshape(3, 3, PATCHES, 32)[:, 1:]
    future = future_latents.make_future_encoder(encoder, GRID, unit_tokens=False)
    found = apply(future, clips())
    assert found.shape == (3, 5, PATCHES, 32)
    assert_near(found[:, 3:], expected, 1e-5)
    assert_near(found[:, :3], context.reshape(3, 3, PATCHES, 32), 1e-5)
    assert np.abs(found[:, 3:] - found[:, :3].mean(axis=1, keepdims=True)).max() > 0.1


def test_later_frames_have_no_influence(encoder):
    future, other = future_latents.make_future_encoder(encoder, GRID), clips()
    other[:, GRID.context :] = 0
    found = apply(future, clips())
    np.testing.assert_array_equal(found, apply(future, other))
    np.testing.assert_array_equal(found, apply(future, clips()[:, :3]))
    assert np.abs(found - found[::-1]).max() > 0.1


def test_the_context_reaches_the_predictions(encoder):
    future, other = future_latents.make_future_encoder(encoder, GRID), clips()
    other[:, 0] = 255 - other[:, 0]
    assert np.abs(apply(future, clips()) - apply(future, other))[:, 3:].max() > 1e-4


def test_all_tokens_have_the_norm_of_their_width(encoder):
    found = apply(future_latents.make_future_encoder(encoder, GRID), clips())
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 32**0.5, rtol=1e-3)


def test_stage_1_predicts_without_a_head_and_narrow_tokens_are_padded(tmp_path):
    encoder = pretrained.load_frozen(write_checkpoint(tmp_path, small_config("stage1")))
    assert encoder.loaded.predictor.head is None
    future = future_latents.make_future_encoder(encoder, GRID)
    found = apply(future, clips())
    assert future.width == 48 and found.shape == (3, 5, PATCHES, 48)
    assert not found[:, :3, :, 32:].any() and found[:, 3:, :, 32:].any()


def test_checkpoints_without_predictor_and_other_encoders_give_the_context(tmp_path, encoder):
    path = write_checkpoint(tmp_path, small_config(), ("encoder", "pool"))
    settings = anticipation_config.get_config("tiny").anticipation
    settings.update(context_frames=3)
    alone = pretrained.load_frozen(path)
    for subject in (alone, encoder.with_random_params(0)):
        assert subject.loaded.predictor is None
        grid = future_latents.make_grid(settings, subject, 6)
        assert grid == future_latents.TimeGrid(3, 6, range(0))
    future = future_latents.make_future_encoder(alone, GRID._replace(predicted=range(0)))
    with_predictions = apply(future_latents.make_future_encoder(encoder, GRID), clips())
    assert_near(apply(future, clips()), with_predictions[:, :3], 1e-6)
    blind = oracle_encoder.make_blind(size=16)
    grid = future_latents.make_grid(settings, blind, 6)
    assert grid == future_latents.TimeGrid(3, 3, range(0))
    assert apply(future_latents.make_future_encoder(blind, grid), clips()).shape == (3, 3, 4, 8)


def test_grid_follows_the_options_and_the_checkpoint(encoder):
    settings = anticipation_config.get_config("tiny").anticipation
    settings.update(context_frames=3)
    assert future_latents.make_grid(settings, encoder, 6).predicted == range(3, 6)
    settings.update(gap_frames=1, predicted_frames=1)
    assert future_latents.make_grid(settings, encoder, 6).predicted == range(4, 5)
    settings.update(grid_frames=8, gap_frames=0, context_frames=0)
    assert future_latents.make_grid(settings, encoder, 6) == (6, 8, range(6, 7))
    settings.update(grid_frames=0)
    with pytest.raises(UserError, match="time grid has 6 frames, but .*context_frames=6.*need 7"):
        future_latents.make_grid(settings, encoder, 6)


def test_context_must_consist_of_whole_slots():
    settings = ml_collections.ConfigDict({"context_frames": 3})
    blind = dataclasses.replace(oracle_encoder.make_blind(), tubelet=2)
    with pytest.raises(UserError, match="context_frames=3 must be divisible by .* 2 frames"):
        future_latents.make_grid(settings, blind, 8)


def test_parameters_of_another_predictor_are_refused(tmp_path):
    config = small_config()
    path = write_checkpoint(tmp_path, config)
    params = jax.tree.map(np.asarray, export.open_export(path)[0])
    config.predictor.width = 64
    export.write_export(path, params, {"config": run_metadata.config_to_json(config)})
    with pytest.raises(UserError, match="does not match the configured model"):
        pretrained.load_frozen(path)


def test_keys_depend_on_the_predictor_and_on_the_grid(encoder):
    keys = [
        future_latents.make_future_encoder(encoder, grid, unit_tokens=unit).key
        for grid, unit in ((GRID, True), (GRID, False), (GRID._replace(slots=7), True))
    ]
    changed = encoder.loaded.predictor._replace(
        params=jax.tree.map(lambda x: x + 1, encoder.loaded.predictor.params)
    )
    other = dataclasses.replace(encoder, loaded=encoder.loaded._replace(predictor=changed))
    keys.append(future_latents.make_future_encoder(other, GRID).key)
    assert len(set(keys)) == 4
