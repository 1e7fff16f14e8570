"""Pixel loss of masked patches given their latents, by diffusion or by regression.

Shape key: b clips, m masked tokens, n patches (of all clips, times the noise draws), p pixels of a
patch, d width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from invnext_jax.objectives import diffusion

SCHEDULE = diffusion.cosine_schedule(1000)


class Noise(NamedTuple):
    """Random numbers of the diffusion loss.

    Attributes:
      noise_np: standard normal noise.
      t_n: int32 timesteps.
    """

    noise_np: jax.Array
    t_n: jax.Array


# (noised_np, t_n, latents_nd) -> [n, 2p], or for regression (None, None, latents_nd) -> [n p]
Decode = Callable[[jax.Array | None, jax.Array | None, jax.Array], jax.Array]


def sample_noise(t_key: jax.Array, noise_key: jax.Array, count: int, pixels: int) -> Noise:
    """Draws uniform timesteps and standard normal noise for `count` patches.

    Args:
      t_key: random key of the timesteps.
      noise_key: random key of the noise.
      count: number of noised patches; a multiple of the number of masked patches, because each
        masked patch is decoded equally often.
      pixels: number of pixel values of a patch.
    """
    t_n = jax.random.randint(t_key, (count,), 0, len(SCHEDULE.betas))
    return Noise(jax.random.normal(noise_key, (count, pixels)), t_n)


def loss_terms(
    decode: Decode,
    start_np: jax.Array,
    latents_bmd: jax.Array,
    noise: Noise | None,
    chunks: int = 1,
) -> dict[str, jax.Array]:
    """Computes the pixel loss of the masked patches.

    Args:
      decode: the decoder.
      start_np: pixels of the b*m masked patches.
      latents_bmd: predicted latents of the same patches.
      noise: timesteps and noise for a diffusion decoder; None for pixel regression.
      chunks: number of parts of the batch that are decoded sequentially. They are recomputed in the
        backward pass, which reduces the memory of the decoder's activations.

    Returns:
      A dict with the loss `pixels` and, for diffusion, its two terms: `noise` (squared error) and
      `bound` (bits per pixel value).
    """
    latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
    arrays = (start_np, latents_nd)
    if noise is not None:
        repeats = noise.t_n.size // start_np.shape[0]
        arrays = tuple(repeat(x, "n p -> (r n) p", r=repeats) for x in arrays)
        arrays += (noise.noise_np, noise.t_n)
    patch_terms = functools.partial(_patch_terms, decode)
    if chunks == 1:
        terms = patch_terms(*arrays)
    else:
        terms = _map_chunks(patch_terms, arrays, chunks)
    means = {name: jnp.mean(term_n) for name, term_n in terms.items()}
    return means if noise is None else {"pixels": means["noise"] + means["bound"], **means}


def _patch_terms(decode, start_np, latents_nd, noise_np=None, t_n=None):
    """Returns the loss terms of each patch, [n]."""
    if t_n is None:
        return {"pixels": jnp.mean((decode(None, None, latents_nd) - start_np) ** 2, axis=1)}
    noised_np = diffusion.add_noise(SCHEDULE, start_np, t_n, noise_np)
    output = decode(noised_np, t_n, latents_nd)
    terms = diffusion.loss_terms(SCHEDULE, output, start_np, noised_np, t_n, noise_np)
    return {"noise": terms.squared_error, "bound": terms.bound}


def _map_chunks(function, arrays, chunks):
    """Applies a function of arrays [n ...] to the patches, one chunk at a time.

    Chunk i consists of patches i, i + chunks, i + 2 * chunks, ..., so that it spans all devices.
    """
    n = arrays[0].shape[0]
    chunks = min(chunks, n)
    padding = -n % chunks

    def split(x):
        x = jnp.concatenate([x, x[:padding]])
        return jnp.swapaxes(x.reshape(-1, chunks, *x.shape[1:]), 0, 1)

    def apply(chunk):
        return function(*chunk)

    terms = jax.lax.map(jax.checkpoint(apply), tuple(split(x) for x in arrays))
    return {name: jnp.swapaxes(term, 0, 1).reshape(-1)[:n] for name, term in terms.items()}
