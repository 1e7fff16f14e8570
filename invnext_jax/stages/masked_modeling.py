"""What both stages share: what is drawn anew in a step, and what their models do with it.

Shape key: b batch, t frames, h w pixels, c channels, k visible tokens, m masked tokens (or those of
them that are predicted), n patches (of all clips, times the noise draws), p pixels of a patch,
d width.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.models import decoder
from invnext_jax.models.layers import scale_kernels
from invnext_jax.models.patches import extract_patch_pixels
from invnext_jax.objectives import masks, reconstruction


class Draws(NamedTuple):
    """What is drawn for a batch.

    Attributes:
      keep_bk: the visible places.
      masked_bm: all others.
      noise: of each predicted patch, if the diffusion decoder is trained.
      chosen_bm: which of `masked_bm` are predicted, by index; None: all of them.
    """

    keep_bk: jax.Array
    masked_bm: jax.Array
    noise: reconstruction.Noise | None = None
    chosen_bm: jax.Array | None = None

    @property
    def predicted_bm(self) -> jax.Array:
        """The masked places that are predicted."""
        if self.chosen_bm is None:
            return self.masked_bm
        return jnp.take_along_axis(self.masked_bm, self.chosen_bm, axis=1)


class DecodingModel(nn.Module):
    """What the models of both stages do with the pixel decoder, their field `decoder`."""

    def decode(
        self, noised_np: jax.Array | None, t_n: jax.Array | None, latents_nd: jax.Array
    ) -> jax.Array:
        """Model output of each patch: [n, 2p] of the diffusion decoder, else pixels [n p]."""
        return decoder.decode(self.decoder, noised_np, t_n, latents_nd)

    def init_decoder(self, draws: Draws, latents_bmd: jax.Array | None) -> None:
        """Runs the decoder, if there is one, for initialisation."""
        if self.decoder is not None:
            latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
            self.decode(*(draws.noise or (None, None)), latents_nd)


def groups_of_terms(config: Any, of_term: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Top-level groups of the parameter tree: what the losses that are on use, and the pool.

    Args:
      config: of the run.
      of_term: the groups that each loss uses.
    """
    on = (names for term, names in of_term.items() if config.loss[term])
    return tuple(dict.fromkeys(("encoder", "pool", *itertools.chain.from_iterable(on))))


def complete(
    config: Any, mask: masks.Mask, t_key: jax.Array, noise_key: jax.Array, choice_key: jax.Array
) -> Draws:
    """Draws what goes with a mask: which of its places are predicted, and noise for these.

    Args:
      config: of the run.
      mask: (keep_bk, masked_bm).
      t_key: random key of the timesteps.
      noise_key: random key of the noise.
      choice_key: random key of the choice.
    """
    draws, share = Draws(*mask), config.mask.predicted
    if share < 1:
        draws = draws._replace(chosen_bm=masks.sample_predicted(choice_key, draws.masked_bm, share))
    if not (config.loss["pixels"] and config.decoder.kind == "diffusion"):
        return draws
    n, pixels = draws.predicted_bm.size * config.decoder.noise_draws, 3 * config.encoder.patch**2
    return draws._replace(noise=reconstruction.sample_noise(t_key, noise_key, n, pixels))


def init_params(config: Any, model: nn.Module, key: jax.Array) -> Any:
    """Initial parameters, boxed with their logical axes; call it inside jit or eval_shape."""
    data, patch = config.data, config.encoder.patch
    video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
    index_bn = jnp.arange(data.frames * (data.size // patch) ** 2)[None]
    n = index_bn.size - 1
    noise = reconstruction.Noise(jnp.zeros((n, 3 * patch**2)), jnp.zeros((n,), jnp.int32))
    params = model.init(key, video_bthwc, Draws(index_bn[:, :1], index_bn[:, 1:], noise))["params"]
    return scale_kernels(params, config.init_gain, without=("patch_embed", "decoder"))


def run_features(
    model: nn.Module,
    params: Any,
    video_bthwc: jax.Array,
    draws: Draws,
    rngs: dict[str, jax.Array] | None = None,
) -> Any:
    """What the model says about clips under a mask; no drop path without `rngs`."""
    inputs = video_bthwc, draws.keep_bk, draws.masked_bm, draws.chosen_bm
    return model.apply({"params": params}, *inputs, rngs=rngs, method="features")


def pixel_terms(
    model: nn.Module, params: Any, latents_bmd: jax.Array, video_bthwc: jax.Array, draws: Draws
) -> dict[str, jax.Array]:
    """The loss of the predicted patches' pixels; see `reconstruction.loss_terms`."""
    start_np = extract_patch_pixels(video_bthwc, draws.predicted_bm, model.encoder.patch)
    decode = functools.partial(model.apply, {"params": params}, method="decode")
    chunks = model.decoder.chunks
    return reconstruction.loss_terms(decode, start_np, latents_bmd, draws.noise, chunks)
