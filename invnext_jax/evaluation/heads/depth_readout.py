"""Depth heads: learned queries, as in InternVideo-Next (appendix A.3) and 4DS, and a linear layer.

Shape key: b batch, t time slots of the encoder, n tokens of a time slot, d width of the tokens,
q queries, p outputs of a query, f frames, h w pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.evaluation.heads.attention_readout import EPS, AttentionReadout, fan_in_normal
from invnext_jax.models.layers import Dtype, dense, layer_norm


def output_patch(patch: int, frames: int = 1) -> tuple[int, int, int]:
    """Returns the size of the depth patch that a query predicts.

    Args:
      patch: patch size p of the encoder, in pixels.
      frames: frames of an output patch: 1 for (1, p, p), 2 for (2, p/2, p/2) as in 4DS. A patch of
        two frames gives twice as many queries with half as many outputs.

    Raises:
      ValueError: another number of frames, or an odd patch size with two frames.
    """
    if frames not in (1, 2) or patch % frames:
        raise ValueError(f"{frames=} must be 1, or 2 with an even patch size, not {patch}")
    return frames, patch // frames, patch // frames


class DepthReadout(nn.Module):
    """Predicts depth maps with one learned query for each output patch.

    Attributes:
      video: frames, height and width of the depth maps.
      patch: frames, height and width of an output patch; each must divide that of `video`.
      width: width of the queries, 1536 in the paper.
      heads: attention heads.
      dtype: dtype of the matrix products, except the last one.
    """

    video: tuple[int, int, int]
    patch: tuple[int, int, int]
    width: int = 1536
    heads: int = 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_btnd: jax.Array) -> jax.Array:
        """Predicts depth; no activation function is applied to the output.

        Args:
          x_btnd: float tokens of a frozen encoder, without class tokens.

        Returns:
          float32 [b f h w], in the unit of the training targets.

        Raises:
          ValueError: the output patch does not divide the video.
        """
        if any(size % part for size, part in zip(self.video, self.patch, strict=True)):
            raise ValueError(f"patch={self.patch} must divide video={self.video}")
        f, h, w = (size // part for size, part in zip(self.video, self.patch, strict=True))
        pf, ph, pw = self.patch
        readout = AttentionReadout(
            pf * ph * pw, self.width, self.heads, f * h * w, self.dtype, name="readout"
        )
        return rearrange(
            readout(x_btnd),
            "b (f h w) (pf ph pw) -> b (f pf) (h ph) (w pw)",
            **{"f": f, "h": h, "w": w, "pf": pf, "ph": ph, "pw": pw},
        )


class LinearDepthReadout(nn.Module):
    """Predicts the depth of each patch from its own token, with a LayerNorm and a linear layer.

    It needs fewer steps than `DepthReadout`, whose queries must learn where their patch is.

    Attributes:
      grid: rows and columns of the tokens.
      patch: frames, height and width of the patch of a token.
    """

    grid: tuple[int, int]
    patch: tuple[int, int, int]

    @nn.compact
    def __call__(self, x_btnd: jax.Array) -> jax.Array:
        """Predicts depth, float32 [b f h w]; see `DepthReadout`."""
        pf, ph, pw = self.patch
        x_btnd = layer_norm(EPS, jnp.float32, "norm")(x_btnd)
        out_btnp = dense(
            pf * ph * pw, ("embed", None), name="readout", dtype=jnp.float32, init=fan_in_normal
        )(x_btnd)
        return rearrange(
            out_btnp,
            "b t (h w) (pf ph pw) -> b (t pf) (h ph) (w pw)",
            **{"h": self.grid[0], "pf": pf, "ph": ph, "pw": pw},
        )
