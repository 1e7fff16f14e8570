"""The loss of masked patches' pixels given their latents: by diffusion, or by plain regression.

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
    """What the diffusion loss draws for each patch."""

    noise_np: jax.Array
    t_n: jax.Array


# (noised_np, t_n, latents_nd) -> [n, 2p], or for regression (None, None, latents_nd) -> [n p]
Decode = Callable[[jax.Array | None, jax.Array | None, jax.Array], jax.Array]


def sample_noise(t_key: jax.Array, noise_key: jax.Array, count: int, pixels: int) -> Noise:
    """Draws timesteps, evenly, and standard normal noise of `count` patches.

    Args:
      t_key: random key of the timesteps.
      noise_key: random key of the noise.
      count: a multiple of the number of masked patches; each is decoded as often.
      pixels: values of a patch.
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
    """The loss of the masked patches' pixels.

    Args:
      decode: the decoder.
      start_np: true pixels of the b*m masked patches.
      latents_bmd: predicted latents of the same patches.
      noise: for a diffusion decoder; None for one that gives the pixels at once.
      chunks: parts that are decoded one after the other, and once more in the backward pass: what
        the decoder remembers is that much smaller. The last part may be padded.

    Returns:
      `pixels`, and for diffusion its parts `noise` (squared error) and `bound` (bits a channel).
    """
    latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
    arrays = (start_np, latents_nd)
    if noise is not None:
        repeats = noise.t_n.size // start_np.shape[0]
        arrays = tuple(repeat(x, "n p -> (r n) p", r=repeats) for x in arrays)
        arrays += (noise.noise_np, noise.t_n)
    terms_of = functools.partial(_terms, decode)
    if chunks == 1:
        terms = terms_of(*arrays)
    else:
        terms = _in_chunks(terms_of, arrays, chunks)
    means = {name: jnp.mean(term_n) for name, term_n in terms.items()}
    return means if noise is None else {"pixels": means["noise"] + means["bound"], **means}


def _terms(decode, start_np, latents_nd, noise_np=None, t_n=None):
    """The terms [n] of every patch."""
    if t_n is None:
        return {"pixels": jnp.mean((decode(None, None, latents_nd) - start_np) ** 2, axis=1)}
    noised_np = diffusion.add_noise(SCHEDULE, start_np, t_n, noise_np)
    output = decode(noised_np, t_n, latents_nd)
    terms = diffusion.loss_terms(SCHEDULE, output, start_np, noised_np, t_n, noise_np)
    return {"noise": terms.squared_error, "bound": terms.bound}


def _in_chunks(terms_of, arrays, chunks):
    """`terms_of` of every `chunks`-th patch, and so on: each device has some of each chunk."""
    n = arrays[0].shape[0]
    chunks = min(chunks, n)
    spare = -n % chunks

    def cut(x):
        x = jnp.concatenate([x, x[:spare]])
        return jnp.swapaxes(x.reshape(-1, chunks, *x.shape[1:]), 0, 1)

    def one(parts):
        return terms_of(*parts)

    terms = jax.lax.map(jax.checkpoint(one), tuple(cut(x) for x in arrays))
    return {name: jnp.swapaxes(term, 0, 1).reshape(-1)[:n] for name, term in terms.items()}
