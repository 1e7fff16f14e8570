"""The loss of masked patches' pixels given their latents: by diffusion, or by plain regression.

Shape key: b clips, m masked tokens, n patches (of all clips, times the noise draws), p pixels of a
patch, d width.
"""

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


def draw_noise(t_key: jax.Array, noise_key: jax.Array, count: int, pixels: int) -> Noise:
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
    decode: Decode, start_np: jax.Array, latents_bmd: jax.Array, noise: Noise | None
) -> dict[str, jax.Array]:
    """The loss of the masked patches' pixels.

    Args:
      decode: the decoder.
      start_np: true pixels of the b*m masked patches.
      latents_bmd: predicted latents of the same patches.
      noise: for a diffusion decoder; None for one that gives the pixels at once.

    Returns:
      `pixels`, and for diffusion its parts `noise` (squared error) and `bound` (bits a channel).
    """
    latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
    if noise is None:
        return {"pixels": jnp.mean((decode(None, None, latents_nd) - start_np) ** 2)}
    noise_np, t_n = noise
    repeats = t_n.size // start_np.shape[0]
    start_np, latents_nd = (repeat(x, "n p -> (r n) p", r=repeats) for x in (start_np, latents_nd))
    noised_np = diffusion.add_noise(SCHEDULE, start_np, t_n, noise_np)
    output = decode(noised_np, t_n, latents_nd)
    terms = diffusion.loss_terms(SCHEDULE, output, start_np, noised_np, t_n, noise_np)
    noise_term, bound = jnp.mean(terms.squared_error), jnp.mean(terms.bound)
    return {"pixels": noise_term + bound, "noise": noise_term, "bound": bound}
