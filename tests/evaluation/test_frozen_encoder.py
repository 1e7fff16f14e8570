"""Frozen encoders return the outputs of their modules and are deterministic."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from golden_cases import assert_near
from oracle_encoder import make_blind, make_oracle

from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.patches import normalize

SIZES = {
    **{"width": 16, "depth": 3, "heads": 2, "mlp_width": 32, "patch": 8, "size": 16},
    **{"frames": 3, "class_tokens": 4, "layer_scale": 1.0, "drop_path": 0.0},
    **{"pool_width": 12, "pool_heads": 2},
}


@pytest.fixture(scope="module")
def loaded():
    config = ml_collections.ConfigDict(
        {"encoder": SIZES, "dtype": "float32", "remat": "none", "init_gain": 1.0, "stage": ""}
    )
    tokens_bnd = jnp.zeros((1, 3, SIZES["width"]))
    pool = AttentionPool(SIZES["pool_width"], SIZES["pool_heads"], jnp.float32)
    return pretrained.LoadedEncoder(
        encoder_model.from_config(config),
        pretrained.init_encoder(config, 0),
        config,
        pool.init(jax.random.key(1), tokens_bnd)["params"],
    )


def make_clips(size, frames=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (2, frames, size, size, 3), dtype=np.uint8)


def apply(encoder, clips, layers=()):
    return jax.jit(encoder.apply, static_argnums=2)(encoder.params, clips, layers)


def test_tokens_layers_and_pool_are_those_of_the_module(loaded):
    encoder, clips = pretrained.freeze(loaded), make_clips(16)
    found = apply(encoder, clips, (2, 0, 2))
    module = encoder_model.from_config(loaded.config, taps=(1, 3))
    expected = module.apply({"params": loaded.params}, normalize(clips))
    assert_near(found.tokens_btnd.reshape(2, 12, 16), expected.tokens_bnd[:, 4:], 1e-5)
    assert_near(found.class_bkd, expected.tokens_bnd[:, :4], 1e-5)
    layers = found.layers_lbtnd.reshape(3, 2, 12, 16)
    for place, tap in enumerate((1, 0, 1)):
        assert_near(layers[place], expected.taps_lbnd[tap, :, 4:], 1e-5)
    assert_near(layers[0], found.tokens_btnd.reshape(2, 12, 16), 1e-5)
    pool = AttentionPool(12, 2, jnp.float32)
    assert_near(found.pooled_bd, pool.apply({"params": loaded.pool}, expected.tokens_bnd), 1e-5)
    assert (encoder.class_tokens, encoder.pool_width) == (True, 12)


def test_a_layer_that_does_not_exist_is_refused(loaded):
    with pytest.raises(ValueError, match="between 0 and 2"):
        apply(pretrained.freeze(loaded), make_clips(16), (3,))


def test_gradients_do_not_reach_the_parameters(loaded):
    encoder, clips = pretrained.freeze(loaded), make_clips(16)
    grads = jax.grad(lambda params: jnp.sum(encoder.apply(params, clips).tokens_btnd))(
        encoder.params
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_key_depends_on_parameters_pool_and_config(loaded):
    deeper = loaded.config.copy_and_resolve_references()
    deeper.encoder.frames = 4
    others = [
        loaded,
        loaded._replace(pool=None),
        loaded._replace(params=pretrained.init_encoder(loaded.config, 1)),
        loaded._replace(config=deeper),
    ]
    assert len({pretrained.freeze(other).key for other in others}) == 4
    assert pretrained.freeze(loaded).key == pretrained.freeze(loaded._replace()).key
    json.dumps(pretrained.freeze(loaded).record)


def test_random_initialization_depends_on_the_seed_and_has_no_pool(loaded):
    encoder = pretrained.freeze(loaded)
    keys = [encoder.with_random_params(seed).key for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert apply(encoder.with_random_params(0), make_clips(16)).pooled_bd is None


def test_empty_path_is_refused():
    with pytest.raises(UserError, match="config.checkpoint is empty"):
        pretrained.load_frozen("")


def test_oracle_sees_the_truth_of_a_clip_and_blind_sees_nothing():
    clips = make_clips(16, frames=4)
    truth = np.random.default_rng(1).normal(size=(2, 4, 5)).astype(np.float32)
    oracle, blind = make_oracle(clips, truth, patch=8), make_blind(size=16, frames=4)
    found = apply(oracle, clips[::-1])
    assert_near(found.tokens_btnd, np.repeat(truth[::-1][:, :, None], 4, axis=2), 1e-6)
    unknown = apply(oracle, make_clips(16, frames=4, seed=3))
    assert not np.any(unknown.tokens_btnd)
    tokens = apply(blind, clips).tokens_btnd
    assert np.ptp(np.asarray(tokens), axis=(0, 1, 2)).max() == 0
    assert dataclasses.replace(blind, width=blind.width).key == blind.key
