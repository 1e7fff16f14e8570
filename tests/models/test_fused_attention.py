"""Rotary positions and tiles of the fused attention kernels."""

import functools

import jax
import numpy as np
import pytest

from invnext_jax.models import attention, fused_attention


@pytest.mark.parametrize("chosen", ["naive", "splash"])
def test_rotary_positions_equal_complex_rotations(chosen):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 150, 2, 8), np.float32) for _ in "qkv")

    def rotate(x):
        frequencies = 100.0 ** (-np.arange(4) / 4)
        turns = np.exp(1j * np.arange(150)[:, None] * frequencies)[:, None]
        rotated = (x[..., :4] + 1j * x[..., 4:]) * turns
        return np.concatenate([rotated.real, rotated.imag], axis=-1).astype(np.float32)

    with attention.kernel("naive"):
        expected = attention.attend(rotate(q), rotate(k), v, 20)
    with attention.kernel(chosen):
        y = jax.jit(functools.partial(attention.attend, window=20, theta=100.0))(q, k, v)
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("n", "window", "shards", "length", "block"),
    [
        (8196, None, 1, 8320, 640),
        (8196, 64, 1, 8320, 128),
        (2048, None, 1, 2048, 512),
        (2052, None, 1, 2304, 768),
        (516, None, 1, 640, 640),
        (100, None, 1, 128, 128),
        (8196, None, 4, 9216, 768),
    ],
)
def test_splash_attention_pads_to_large_tiles(n, window, shards, length, block):
    assert fused_attention.splash_padded_length(n, window, shards) == length
    assert fused_attention.splash_block_size(length // shards, window) == block
