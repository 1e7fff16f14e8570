"""Attention pools that no loss has trained are recognized."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.models.heads import AttentionPool, is_untrained_pool


def test_a_pool_is_untrained_until_a_bias_or_scale_changes():
    pool = AttentionPool(8, 2, jnp.float32)
    params = nn.meta.unbox(pool.init(jax.random.key(0), jnp.ones((1, 3, 4)))["params"])
    assert is_untrained_pool(params)
    assert not is_untrained_pool(None)
    params["proj"]["bias"] = params["proj"]["bias"].at[0].set(1e-6)
    assert not is_untrained_pool(params)
