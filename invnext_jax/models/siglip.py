"""SigLIP: the text tower, and the two-tower model that returns image-caption logits.

Shape key: b images, j captions, n words of a caption, d width, h w pixels, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.models.layers import (
    Dtype,
    dense,
    l2_normalize,
    layer_norm,
    small_normal,
)
from invnext_jax.models.scan import scan_blocks
from invnext_jax.models.vit import VisionBlock


class TextTower(nn.Module):
    """SigLIP's text transformer: learned positions, no causal mask, last-token pooling."""

    words: int
    length: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    out_width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, words_jn: jax.Array) -> jax.Array:
        """Encodes captions (int32 token ids padded to `length`) as unit vectors [j d]."""
        table = nn.Embed(self.words, self.width, embedding_init=small_normal, name="embed")
        position_nd = self.param("position", small_normal, (self.length, self.width), jnp.float32)
        x_jnd = table(words_jn) + position_nd[None]
        block = VisionBlock(self.heads, self.mlp_width, self.dtype, name="blocks")
        x_jnd, _ = scan_blocks(block, x_jnd, depth=self.depth)
        x_jd = layer_norm(1e-6, self.dtype, "norm")(x_jnd[:, -1])
        return l2_normalize(
            dense(self.out_width, ("embed", None), name="proj", dtype=self.dtype)(x_jd)
        )


class SigLip(nn.Module):
    """Image and text towers, and a learned scale and bias for the logits."""

    vision: nn.Module
    text: nn.Module
    scale: float
    bias: float

    def setup(self):
        """Creates the logarithm of the scale, and the bias."""
        constant = nn.initializers.constant
        self.log_scale = self.param("log_scale", constant(np.log(self.scale)), (), jnp.float32)
        self.logit_bias = self.param("logit_bias", constant(self.bias), (), jnp.float32)

    def __call__(self, images_bhwc: jax.Array, words_jn: jax.Array) -> jax.Array:
        """Returns the logits of all image-caption pairs, [b j]."""
        pooled_bd = self.vision(images_bhwc).pooled_bd
        scaled_bd, text_jd = jnp.exp(self.log_scale) * pooled_bd, self.text(words_jn)
        logits_bj = jnp.matmul(scaled_bd, text_jd.T, precision=jax.lax.Precision.HIGHEST)
        return logits_bj + self.logit_bias

    def encode_text(self, words_jn: jax.Array) -> jax.Array:
        """Encodes captions as unit vectors [j d]."""
        return self.text(words_jn)
