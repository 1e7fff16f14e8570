"""Decoders that map predicted latents to pixels: a conditional diffusion MLP or direct regression.

Each masked patch is decoded independently (paper section 3.2).

Shape key: n patches, z latent width, p pixels of a patch, d width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models.dot_general import check_dtype
from invnext_jax.models.layers import ACTIVATIONS, Dtype, dense, layer_norm

KINDS = ("diffusion", "linear", "mlp")  # values of `config.decoder.kind`
TIME_WIDTH = 256
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros


def timestep_embedding(t_n: jax.Array) -> jax.Array:
    """Returns cos and sin of t times 128 frequencies from 1 down to 1e-4: float32 [n 256]."""
    half = TIME_WIDTH // 2
    frequencies = jnp.asarray(10000.0 ** (-np.arange(half) / half), jnp.float32)
    angles = t_n[:, None].astype(jnp.float32) * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def modulate(x_nd: jax.Array, shift_nd: jax.Array, scale_nd: jax.Array) -> jax.Array:
    """Returns x (1 + scale) + shift."""
    return x_nd * (1 + scale_nd) + shift_nd


class AdaLayerNormBlock(nn.Module):
    """Residual MLP with adaptive LayerNorm, whose shift, scale and gate depend on the condition."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x_nd: jax.Array, condition_nd: jax.Array) -> jax.Array:
        """Maps [n d] to [n d]."""
        d = x_nd.shape[-1]
        adapt = dense(3 * d, ("embed", "mlp"), name="adapt", dtype=self.dtype, init=zeros)
        shift_nd, scale_nd, gate_nd = jnp.split(adapt(nn.silu(condition_nd)), 3, axis=-1)
        h_nd = modulate(layer_norm(1e-6, self.dtype, "norm")(x_nd), shift_nd, scale_nd)
        h_nd = dense(d, ("embed", "mlp"), name="fc1", dtype=self.dtype, init=xavier)(h_nd)
        h_nd = nn.silu(h_nd)
        h_nd = dense(d, ("mlp", "embed"), name="fc2", dtype=self.dtype, init=xavier)(h_nd)
        return x_nd + gate_nd * h_nd


class DiffusionDecoder(nn.Module):
    """Predicts noise and variance of a noised patch, given its latent and the timestep.

    The modulation and output layers are zero-initialized, so the initial prediction is zero.
    """

    pixels: int
    width: int
    depth: int
    dtype: Dtype = jnp.float32
    chunks: int = 1  # number of parts in which the loss decodes the patches sequentially

    @nn.compact
    def __call__(self, noised_np: jax.Array, t_n: jax.Array, latent_nz: jax.Array) -> jax.Array:
        """Predicts the noise and the variance for one denoising step.

        Args:
          noised_np: noised patches.
          t_n: int32 timesteps, 0 to 999.
          latent_nz: predicted latents, the condition.

        Returns:
          float32 [n, 2 * pixels]: the predicted noise, then the interpolation weight of the log
          variance (nominally from -1 to 1).
        """
        d = self.width

        def linear(name, features=d, init=xavier, axes=("embed", "mlp")):
            return dense(features, axes, name=name, dtype=self.dtype, init=init)

        small = nn.initializers.normal(0.02)
        time_nd = linear("time1", init=small)(timestep_embedding(t_n))
        time_nd = linear("time2", init=small)(nn.silu(time_nd))
        condition_nd = time_nd + linear("latent")(latent_nz)
        x_nd = linear("input", axes=(None, "embed"))(noised_np)
        for i in range(self.depth):
            x_nd = AdaLayerNormBlock(self.dtype, name=f"block{i}")(x_nd, condition_nd)
        adapt_nd = linear("adapt", 2 * d, init=zeros)(nn.silu(condition_nd))
        shift_nd, scale_nd = jnp.split(adapt_nd, 2, axis=-1)
        norm = nn.LayerNorm(1e-6, use_bias=False, use_scale=False, dtype=self.dtype)
        x_nd = modulate(norm(x_nd), shift_nd, scale_nd)
        out = linear("output", 2 * self.pixels, init=zeros, axes=("embed", None))
        return out(x_nd).astype(jnp.float32)


class PixelHead(nn.Module):
    """Regression of pixels (paper table 1c): linear, or an MLP of `depth` layers."""

    pixels: int
    width: int
    depth: int
    dtype: Dtype = jnp.float32
    chunks: int = 1  # number of parts in which the loss decodes the patches sequentially

    @nn.compact
    def __call__(self, latent_nz: jax.Array) -> jax.Array:
        """Maps [n z] to float32 [n p]."""
        for i in range(self.depth - 1):
            latent_nz = dense(self.width, ("embed", "mlp"), name=f"fc{i}", dtype=self.dtype)(
                latent_nz
            )
            latent_nz = ACTIVATIONS["gelu"](latent_nz)
        out = dense(self.pixels, ("embed", None), name="output", dtype=self.dtype)
        return out(latent_nz).astype(jnp.float32)


def decode(
    decoder: DiffusionDecoder | PixelHead,
    noised_np: jax.Array | None,
    t_n: jax.Array | None,
    latent_nz: jax.Array,
) -> jax.Array:
    """Runs a decoder of either kind.

    Args:
      decoder: the decoder.
      noised_np: noised patches; None for pixel regression.
      t_n: int32 timesteps; None for pixel regression.
      latent_nz: predicted latents.

    Returns:
      float32 [n, 2p] (noise, then variance) for a diffusion decoder, otherwise pixels [n p].
    """
    if isinstance(decoder, DiffusionDecoder):
        return decoder(noised_np, t_n, latent_nz)
    return decoder(latent_nz)


def check_config(config: Any) -> None:
    """Checks `config.decoder`; warns if its width is less than the number of values in a patch.

    Raises:
      UserError: the kind or the dtype is unknown, or a number is less than 1.
    """
    d, pixels = config.decoder, 3 * config.encoder.patch**2
    if d.kind not in KINDS:
        raise UserError(f"decoder.kind={d.kind!r} must be one of {', '.join(map(repr, KINDS))}")
    check_dtype("config.decoder.dtype", d.dtype)
    check_minimums(config, {f"decoder.{name}": 1 for name in ("chunks", "noise_draws", "width")})
    if d.kind == "diffusion" and d.width < pixels:
        logging.warning(
            "decoder.width=%d is less than the %d values of a patch, so it cannot represent their "
            "noise. Set it to at least the number of values",
            d.width,
            pixels,
        )


def unused_options(config: Any) -> dict[str, str]:
    """Returns the options of `config.decoder` that its kind does not use, with the reason."""
    kind = config.decoder.kind
    names = {"linear": ("depth", "width", "noise_draws"), "mlp": ("noise_draws",)}.get(kind, ())
    reason = f"config.decoder.kind={kind!r} does not read it: set the kind to 'diffusion'"
    return {f"decoder.{name}": reason for name in names}


def from_config(config: Any) -> DiffusionDecoder | PixelHead:
    """Builds the decoder of a run's config."""
    decoder, pixels = config.decoder, 3 * config.encoder.patch**2
    dtype = jnp.dtype(decoder.dtype)
    if decoder.kind == "diffusion":
        return DiffusionDecoder(pixels, decoder.width, decoder.depth, dtype, decoder.chunks)
    depth = 1 if decoder.kind == "linear" else decoder.depth
    return PixelHead(pixels, decoder.width, depth, dtype, decoder.chunks)
