"""Contrastive alignment of a frozen video encoder with a text tower: module, temperature and loss.

This is the vision side of locked-image tuning (LiT, arXiv 2111.07991), as in the small CLIP models
of InternVideo2: only the attention pool and the projection are trained.

Shape key: b videos, n tokens, d width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import Dtype, dense, l2_normalize, layer_norm
from invnext_jax.objectives import contrastive

LOSSES = ("info_nce", "sigmoid")
MIN_TEMPERATURE = 0.01
# Initial bias of the logits in the sigmoid loss, as in SigLIP: most pairs are negative.
_SIGMOID_BIAS = -10.0


class TextAlignment(nn.Module):
    """Maps features or tokens of videos to unit vectors in the space of the text tower.

    Attributes:
      width: width of the shared space.
      pool_width: width of the output of the attention pool; 0 if the inputs are pooled features.
      pool_heads: attention heads of the pool.
      dtype: dtype of the matrix products.
    """

    width: int
    pool_width: int = 0
    pool_heads: int = 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [b n d] with a pool, or features [b d] without it, to float32 [b width]."""
        x = x.astype(jnp.float32)
        if self.pool_width:
            x = AttentionPool(self.pool_width, self.pool_heads, self.dtype, name="pool")(x)
        x_bd = layer_norm(1e-5, jnp.float32, "norm")(x)
        # The usual standard deviation of 0.02 is too small for narrow features.
        init = nn.initializers.normal(x_bd.shape[-1] ** -0.5)
        project = dense(self.width, ("embed", None), name="proj", dtype=self.dtype, init=init)
        return l2_normalize(project(x_bd))


def init_scale(loss: str, temperature: float) -> dict[str, np.ndarray]:
    """Returns the initial scale parameters of the logits, float32 scalars.

    Args:
      loss: one of `LOSSES`. "sigmoid" also has a bias.
      temperature: initial temperature, positive.
    """
    params = {"log_temperature": np.float32(np.log(temperature))}
    if loss == "sigmoid":
        params["bias"] = np.float32(_SIGMOID_BIAS)
    return params


def inverse_temperature(params: Any) -> jax.Array:
    """Returns 1 / temperature, at most 1 / `MIN_TEMPERATURE`.

    The limit does not stop the gradient (straight-through), so that the temperature can increase
    again.
    """
    log_t = params["log_temperature"]
    limited = jnp.maximum(log_t, np.log(MIN_TEMPERATURE).astype(np.float32))
    return jnp.exp(-(log_t + jax.lax.stop_gradient(limited - log_t)))


def alignment_loss(
    params: Any,
    video_bd: jax.Array,
    text_bd: jax.Array,
    video_id_b: jax.Array,
    text_id_b: jax.Array,
) -> jax.Array:
    """Computes the loss of a batch of pairs; the kind of loss follows from `params`.

    Args:
      params: see `init_scale`.
      video_bd: unit vectors of the videos, float32.
      text_bd: unit vectors of the captions, float32.
      video_id_b: see `contrastive.info_nce`.
      text_id_b: see `contrastive.info_nce`.
    """
    scale = inverse_temperature(params)
    if "bias" not in params:
        return contrastive.info_nce(video_bd, text_bd, scale, video_id_b, text_id_b)
    logits_bb = scale * jnp.matmul(video_bd, text_bd.T, precision=jax.lax.Precision.HIGHEST)
    labels_bb = contrastive.match_pairs(video_id_b, text_id_b)
    return contrastive.sigmoid_loss(logits_bb + params["bias"], labels_bb)
