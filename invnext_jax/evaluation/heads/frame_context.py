"""Predictors that see all frames of a clip, or only the frame of the patch that they predict.

Both get the same context, the visible patches encoded frame by frame, so that a token contains no
information about other frames. The difference between their losses is what other frames contribute.

Shape key: b clips, t frames, h w pixels, c channels, n patches of a clip, s patches of a frame,
k visible patches, m masked patches, d width, p pixels of a patch or width of the target.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.models import predictor
from invnext_jax.models.encoder import Encoder
from invnext_jax.models.gather import gather_tokens
from invnext_jax.models.layers import dense, l2_normalize
from invnext_jax.models.patches import clip_grid, patchify
from invnext_jax.objectives.masks import Mask

TARGETS = ("latents", "pixels")


class Context(NamedTuple):
    """Inputs and targets of a predictor for one mask.

    Attributes:
      tokens_btkd: encoded visible patches of each frame.
      keep_btk: int32 positions of these patches in their frame, ascending.
      masked_btm: int32 positions of the other patches of the frame, ascending.
      target_btmp: float32 targets of the masked patches.
    """

    tokens_btkd: jax.Array
    keep_btk: jax.Array
    masked_btm: jax.Array
    target_btmp: jax.Array


def encode_context(
    encoder: Encoder, params: Any, video_bthwc: jax.Array, mask: Mask, target: str
) -> Context:
    """Encodes the visible patches of each frame on their own, and computes the targets.

    Args:
      encoder: the encoder module.
      params: its parameters.
      video_bthwc: normalized float clips.
      mask: a mask with the same number of visible patches in each frame.
      target: "latents" (unit vectors of the encoder's tokens for the whole clip) or "pixels"
        (normalized pixels).
    """
    grid = clip_grid(video_bthwc, encoder.patch)
    keep_btk, masked_btm = (rearrange(part, "b (t k) -> b t k", t=grid[0]) for part in mask)
    params = {"params": params}

    def encode(keep_bk: jax.Array) -> jax.Array:
        tokens_bkd = encoder.apply(params, video_bthwc, keep_bk).tokens_bnd
        return tokens_bkd[:, encoder.class_tokens :]

    tokens_btkd = jax.vmap(encode, in_axes=1, out_axes=1)(keep_btk)
    if target == "latents":
        whole_bnd = encoder.apply(params, video_bthwc).tokens_bnd[:, encoder.class_tokens :]
        target_bnp = l2_normalize(whole_bnd)
    else:
        target_bnp = patchify(video_bthwc, encoder.patch)
    target_bmp = gather_tokens(target_bnp, mask[1])
    first_t11 = jnp.arange(grid[0])[:, None, None] * grid[1] * grid[2]
    first_1t1 = rearrange(first_t11, "t 1 1 -> 1 t 1")
    return Context(
        tokens_btkd,
        keep_btk - first_1t1,
        masked_btm - first_1t1,
        rearrange(target_bmp, "b (t m) p -> b t m p", t=grid[0]),
    )


class ContextPredictor(nn.Module):
    """The predictor of a checkpoint's config with a linear output layer.

    Attributes:
      predictor: module without class tokens.
      width: width of the target.
      side: patches on a side of a frame.
      all_frames: whether the predictor sees all frames, or only that of the predicted patch.
    """

    predictor: nn.Module
    width: int
    side: int
    all_frames: bool

    @nn.compact
    def __call__(self, context: Context) -> jax.Array:
        """Returns the predictions, float32 [b t m p]."""
        b, t, _, _ = context.tokens_btkd.shape
        keep, masked, frames = context.keep_btk, context.masked_btm, 1
        pattern = "b t k ... -> (b t) k ..."
        if self.all_frames:
            first_1t1 = jnp.arange(t)[None, :, None] * self.side**2
            keep, masked, frames = keep + first_1t1, masked + first_1t1, t
            pattern = "b t k ... -> b (t k) ..."
        parts = (rearrange(part, pattern) for part in (context.tokens_btkd, keep, masked))
        latents_bmd = self.predictor(*parts, (frames, self.side, self.side))
        output = dense(self.width, ("embed", None), name="output", dtype=jnp.float32)
        return rearrange(output(latents_bmd), "(b f) (t m) p -> b (f t) m p", b=b, t=frames)


def make_predictor(config: Any, width: int, *, all_frames: bool) -> ContextPredictor:
    """Makes a predictor with the sizes of a run's config.

    Args:
      config: the config of a run, with sections "encoder" and "predictor".
      width: width of the target.
      all_frames: see `ContextPredictor`.
    """
    module = predictor.from_config(config).clone(class_tokens=0)
    side = config.encoder.size // config.encoder.patch
    return ContextPredictor(module, width, side, all_frames)


def prediction_losses(predicted_btmp: jax.Array, context: Context, target: str) -> jax.Array:
    """Returns the loss of each clip, float32 [b].

    It is 2 - 2 * cosine similarity for latents, and the mean squared error for pixels.
    """
    target_btmp = context.target_btmp
    if target == "latents":
        cosine_btm = jnp.sum(l2_normalize(predicted_btmp) * target_btmp, axis=-1)
        return jnp.mean(2 - 2 * cosine_btm, axis=(1, 2))
    return jnp.mean((predicted_btmp - target_btmp) ** 2, axis=(1, 2, 3))
