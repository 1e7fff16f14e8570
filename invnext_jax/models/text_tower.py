"""Text towers: the text transformers of SigLIP, SigLIP 2 and CLIP.

Shape key: j captions, n tokens of a caption, d width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.models.layers import Dtype, dense, l2_normalize, layer_norm, small_normal
from invnext_jax.models.scan import scan_blocks
from invnext_jax.models.vit import VisionBlock

HIGHEST_ID = -1  # value of `TextTower.end_token`


class TextTower(nn.Module):
    """Text transformer with learned position embeddings, pooled to the output of one token.

    The default values are those of SigLIP, which has no causal mask and uses the last token, even
    if it is padding. CLIP has a causal mask and uses the end token.

    Attributes:
      words: size of the vocabulary.
      length: number of tokens of a caption, including padding.
      width: width of the tokens.
      depth: number of blocks.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      out_width: width of the output.
      dtype: dtype of the matrix products.
      eps: epsilon of all LayerNorms.
      activation: one of `layers.ACTIVATIONS`.
      causal: whether a token attends only to itself and earlier tokens.
      end_token: id of the end token, whose first occurrence is used. `HIGHEST_ID`: the first token
        with the highest id of the caption, as in CLIP's release. None: the last token is used.
      out_bias: whether the last linear layer has a bias.
    """

    words: int
    length: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    out_width: int
    dtype: Dtype = jnp.float32
    eps: float = 1e-6
    activation: str = "gelu_tanh"
    causal: bool = False
    end_token: int | None = None
    out_bias: bool = True

    @nn.compact
    def __call__(self, words_jn: jax.Array) -> jax.Array:
        """Encodes captions (int32 token ids padded to `length`) as unit vectors [j d]."""
        table = nn.Embed(self.words, self.width, embedding_init=small_normal, name="embed")
        position_nd = self.param("position", small_normal, (self.length, self.width), jnp.float32)
        x_jnd = table(words_jn) + position_nd[None]
        block = VisionBlock(
            self.heads,
            self.mlp_width,
            self.dtype,
            self.eps,
            self.activation,
            causal=self.causal,
            name="blocks",
        )
        x_jnd, _ = scan_blocks(block, x_jnd, depth=self.depth)
        x_jd = jnp.take_along_axis(x_jnd, self._find_end(words_jn)[:, None, None], axis=1)[:, 0]
        x_jd = layer_norm(self.eps, self.dtype, "norm")(x_jd)
        project = dense(
            self.out_width,
            ("embed", None),
            name="proj",
            dtype=self.dtype,
            use_bias=self.out_bias,
        )
        return l2_normalize(project(x_jd))

    def _find_end(self, words_jn: jax.Array) -> jax.Array:
        """Returns the position of the token whose output is used, int32 [j]."""
        if self.end_token is None:
            return jnp.full(words_jn.shape[0], words_jn.shape[1] - 1)
        is_id = self.end_token != HIGHEST_ID
        return jnp.argmax(words_jn == self.end_token if is_id else words_jn, axis=1)
