"""Depth head of Video-Depth-Anything: a dense prediction transformer (DPT) with temporal modules.

Sources: DPT (arXiv 2103.13413), Video-Depth-Anything (arXiv 2501.12375, section 3.1). Four layers
of a frozen encoder are converted to feature maps at strides of 1/4, 1/2, 1 and 2 patches, which
are fused from coarse to fine. Without temporal modules, the head is DPT applied to each frame.

Shape key: l layers, b batch, t frames, n tokens of a frame, d width, h w map, c channels, i images
(batch and frames).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.evaluation.heads.temporal_module import TemporalModule
from invnext_jax.models.dot_general import select_precision
from invnext_jax.models.layers import Dtype

STRIDES = (0.25, 0.5, 1, 2)  # strides of the four feature maps in patches


def tapped_layers(depth: int) -> tuple[int, ...]:
    """Returns the four layers that the head reads, counted from 0.

    They are (2, 5, 8, 11) for 12 layers and (4, 11, 17, 23) for 24, as in Video-Depth-Anything. For
    other depths, they are the last layers of the four quarters of the encoder.

    Raises:
      ValueError: the encoder has fewer than four layers.
    """
    if depth < len(STRIDES):
        raise ValueError(f"{depth=} must be at least {len(STRIDES)}")
    if depth == 24:
        return 4, 11, 17, 23
    return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


def resize_corners(x_ihwc: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images bilinearly with aligned corners (`align_corners` in PyTorch).

    Args:
      x_ihwc: float images.
      size: new height and width.

    Returns:
      float32 [i h w c].
    """
    scales, shifts = [], []
    for old, new in zip(x_ihwc.shape[1:3], size, strict=True):
        # Pixel i of the output is at the position i * (old - 1) / (new - 1) of the input.
        scale = (new - 1) / (old - 1) if min(old, new) > 1 else float(new)
        scales.append(scale)
        shifts.append(0.5 - 0.5 * scale if min(old, new) > 1 else 0.0)
    shape = (x_ihwc.shape[0], *size, x_ihwc.shape[-1])
    return jax.image.scale_and_translate(
        x_ihwc.astype(jnp.float32),
        shape,
        (1, 2),
        jnp.asarray(scales),
        jnp.asarray(shifts),
        "linear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    )


def _conv(channels: int, kernel: int, name: str, dtype: Dtype, **options: Any) -> nn.Conv:
    """Returns a padded convolution: the output size is the input size, divided by the stride."""
    options = {"precision": select_precision(dtype), "padding": kernel // 2, **options}
    return nn.Conv(channels, (kernel, kernel), dtype=dtype, name=name, **options)


class Reassemble(nn.Module):
    """Projects tokens to a feature map and resizes it with a learned convolution.

    Attributes:
      channels: channels of the map.
      stride: stride of the map in patches, one of `STRIDES`.
      dtype: dtype of the convolutions.
    """

    channels: int
    stride: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_ihwd: jax.Array) -> jax.Array:
        """Maps [i h w d] to [i h/stride w/stride c]."""
        x = _conv(self.channels, 1, "project", self.dtype)(x_ihwd)
        if self.stride < 1:
            factor = round(1 / self.stride)
            return nn.ConvTranspose(
                self.channels,
                (factor, factor),
                (factor, factor),
                padding="VALID",
                dtype=self.dtype,
                precision=select_precision(self.dtype),
                name="resize",
            )(x)
        if self.stride > 1:
            return _conv(self.channels, 3, "resize", self.dtype, strides=int(self.stride))(x)
        return x


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x_ihwc: jax.Array) -> jax.Array:
        """Maps float32 [i h w c] to float32 [i h w c]."""
        y = _conv(x_ihwc.shape[-1], 3, "conv1", self.dtype)(nn.relu(x_ihwc))
        y = _conv(x_ihwc.shape[-1], 3, "conv2", self.dtype)(nn.relu(y))
        return x_ihwc + y.astype(jnp.float32)


class Fusion(nn.Module):
    """Adds a finer map to the fused map, refines the sum and resizes it."""

    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_ihwc: jax.Array, finer_ihwc: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Fuses two maps.

        Args:
          x_ihwc: float32 map, fused from the coarser layers.
          finer_ihwc: float32 map of the same shape; None for the coarsest layer.
          size: height and width of the result.
        """
        if finer_ihwc is not None:
            x_ihwc = x_ihwc + ResidualUnit(self.dtype, name="unit1")(finer_ihwc)
        x_ihwc = ResidualUnit(self.dtype, name="unit2")(x_ihwc)
        x_ihwc = resize_corners(x_ihwc, size)
        return _conv(x_ihwc.shape[-1], 1, "project", self.dtype)(x_ihwc).astype(jnp.float32)


class DptHead(nn.Module):
    """Depth maps from four layers of a frozen encoder.

    Attributes:
      grid: rows and columns of patches of a frame.
      patch: patch size of the encoder in pixels.
      channels: channels of the feature maps of the four layers.
      width: channels of the fused maps.
      temporal: whether the four temporal modules are used.
      heads: attention heads of the temporal modules.
      groups: groups of their GroupNorms; they must divide `width` and the last two `channels`.
      dtype: dtype of the convolutions and matrix products, except the last two convolutions.
    """

    grid: tuple[int, int]
    patch: int = 14
    channels: Sequence[int] = (256, 512, 1024, 1024)
    width: int = 256
    temporal: bool = True
    heads: int = 8
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, layers_lbtnd: Sequence[jax.Array]) -> jax.Array:
        """Predicts depth.

        Args:
          layers_lbtnd: float tokens [b t n d] of four layers, the earliest layer first, without
            class tokens.

        Returns:
          Non-negative float32 [b t h w], at the resolution of the frames.

        Raises:
          ValueError: the number of layers is not four.
        """
        if len(layers_lbtnd) != len(STRIDES):
            raise ValueError(f"the head needs {len(STRIDES)} layers, not {len(layers_lbtnd)}")
        t = layers_lbtnd[0].shape[1]
        maps = self._feature_maps(layers_lbtnd)
        sizes = [x.shape[1:3] for x in maps]
        sizes = [(2 * sizes[0][0], 2 * sizes[0][1]), *sizes]
        x = None
        for i in reversed(range(len(maps))):
            fusion = Fusion(self.dtype, name=f"fusion{i}")
            x = fusion(maps[i], None, sizes[i]) if x is None else fusion(x, maps[i], sizes[i])
            if i >= 2:
                x = self._over_time(x, t, f"fused_time{i}")
        x = _conv(self.width // 2, 3, "conv1", self.dtype)(x)
        x = resize_corners(x, (self.patch * self.grid[0], self.patch * self.grid[1]))
        x = nn.relu(_conv(32, 3, "conv2", jnp.float32)(x))
        # With a bias of 0, the initial output of the last ReLU could be 0 everywhere, and so could
        # the gradient.
        x = nn.relu(_conv(1, 1, "depth", jnp.float32, bias_init=nn.initializers.ones)(x))
        return rearrange(x, "(b t) h w 1 -> b t h w", t=t)

    def _feature_maps(self, layers_lbtnd: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the four float32 maps [i h w c] of equal width, from fine to coarse."""
        h, w = self.grid
        maps = []
        for i, x_btnd in enumerate(layers_lbtnd):
            x = rearrange(x_btnd, "b t (h w) d -> (b t) h w d", h=h, w=w)
            x = Reassemble(self.channels[i], STRIDES[i], self.dtype, name=f"reassemble{i}")(x)
            if i >= 2:
                x = self._over_time(x, x_btnd.shape[1], f"layer_time{i}")
            x = _conv(self.width, 3, f"neck{i}", self.dtype, use_bias=False)(x)
            maps.append(x.astype(jnp.float32))
        return maps

    def _over_time(self, x_ihwc: jax.Array, frames: int, name: str) -> jax.Array:
        """Applies a temporal module to a map [i h w c], if the head has them; returns float32."""
        x_ihwc = x_ihwc.astype(jnp.float32)
        if not self.temporal:
            return x_ihwc
        module = TemporalModule(self.heads, self.groups, self.dtype, name=name)
        y = module(rearrange(x_ihwc, "(b t) h w c -> b t h w c", t=frames))
        return rearrange(y, "b t h w c -> (b t) h w c")
