"""SigLIP: the two-tower model that returns image-caption logits.

Shape key: b images, j captions, n words of a caption, d width, h w pixels, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


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
