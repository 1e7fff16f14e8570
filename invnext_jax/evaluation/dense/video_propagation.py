"""Encodes a whole video and propagates the labels of its first frame, one video at a time.

Shape key: t frames, s frames of a window, r windows, h w pixels, c channels, n tokens of a frame,
d width, k labels.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense import first_frame
from invnext_jax.evaluation.dense.propagation import (
    MAX_TOKENS,
    PropagationOptions,
    propagate_labels,
)
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.truth.truth import BadTruth

LABELS = 4  # the number of labels is padded to a multiple of this to compile fewer programs


class VideoPropagation:
    """Propagates labels with the tokens of a frozen encoder.

    A video is encoded in windows of consecutive frames. Each frame is repeated to fill a time slot
    of the encoder, so that every frame has its own tokens. Videos are encoded one at a time, so the
    results do not depend on a batch size or the number of devices.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        frames: int,
        size: tuple[int, int] | None,
        layer: int | None,
        options: PropagationOptions,
    ):
        """Copies the parameters to the first device.

        Args:
          encoder: the encoder.
          frames: number of frames of the encoder's input.
          size: height and width to which frames are resized, rounded down to whole patches; None
            for the size of the videos.
          layer: layer whose tokens are used; None for the final tokens.
          options: see `PropagationOptions`.
        """
        self._encoder, self._size, self._layer = encoder, size, layer
        self._window, self._options = max(1, frames // encoder.tubelet), options
        self._params = jax.device_put(encoder.params, jax.local_devices()[0])
        self._run = jax.jit(self._propagate, static_argnames="grid")
        self._masks = jax.jit(first_frame.read_masks, static_argnames=("grid", "size"))

    @property
    def patch(self) -> int:
        """Height and width of a patch in pixels."""
        return self._encoder.patch

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows and columns of the tokens of a frame of the given height and width.

        Raises:
          BadTruth: the frame is smaller than a token, or has more than `MAX_TOKENS` tokens and is
            not resized.
        """
        height, width = self._size or size
        grid = height // self._encoder.patch, width // self._encoder.patch
        limit = math.inf if self._size else MAX_TOKENS
        if not 0 < math.prod(grid) <= limit:
            raise BadTruth(
                f"frames of {width} x {height} pixels have {math.prod(grid)} tokens, not 1 to "
                f"{limit}: set config.label_propagation.height and width",
                "wrong format",
            )
        return grid

    def propagate(self, video_thwc: np.ndarray, labels_nk: np.ndarray) -> np.ndarray:
        """Propagates labels.

        Args:
          video_thwc: uint8 video of any length.
          labels_nk: float32 labels of frame 0 on the grid of `grid`.

        Returns:
          float32 labels [t n k].

        Raises:
          UserError: the tokens of the encoder are not finite.
        """
        frames, labels = len(video_thwc), labels_nk.shape[1]
        missing = -frames % self._window
        video_thwc = np.concatenate([video_thwc, np.repeat(video_thwc[-1:], missing, axis=0)])
        padded_nk = np.pad(labels_nk, ((0, 0), (0, -labels % LABELS)))
        found_tnk = self._run(
            self._params, video_thwc, padded_nk, grid=self.grid(video_thwc.shape[1:3])
        )
        found_tnk = np.asarray(found_tnk)[:frames, :, :labels]
        if not np.isfinite(found_tnk).all():
            raise UserError(
                "label_propagation: the tokens of the encoder are not finite: check the checkpoint"
            )
        return found_tnk

    def read_masks(self, labels_tnk: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Converts labels to masks of the given height and width; see `first_frame.read_masks`."""
        frames, _, labels = labels_tnk.shape
        # The added labels are 0, so they are never selected.
        pad = ((0, -frames % self._window), (0, 0), (0, -labels % LABELS))
        found_thw = self._masks(np.pad(labels_tnk, pad), grid=self.grid(size), size=tuple(size))
        return np.asarray(found_thw)[:frames]

    def _propagate(self, params: Any, video_thwc, labels_nk, *, grid: tuple[int, int]) -> jax.Array:
        windows_rshwc = rearrange(video_thwc, "(r s) h w c -> r s h w c", s=self._window)
        encode = functools.partial(self._encode, params, grid=grid)
        tokens_rsnd = jax.lax.map(encode, windows_rshwc)
        tokens_tnd = rearrange(tokens_rsnd, "r s n d -> (r s) n d")
        return propagate_labels(tokens_tnd, labels_nk, grid, self._options)

    def _encode(self, params: Any, video_shwc, *, grid: tuple[int, int]) -> jax.Array:
        size = tuple(self._encoder.patch * count for count in grid)
        if video_shwc.shape[1:3] != size:
            shape = (len(video_shwc), *size, video_shwc.shape[-1])
            video_shwc = jax.image.resize(video_shwc.astype(jnp.float32), shape, "linear")
            video_shwc = jnp.clip(jnp.round(video_shwc), 0, 255).astype(jnp.uint8)
        repeated = repeat(video_shwc, "s h w c -> 1 (s r) h w c", r=self._encoder.tubelet)
        layers = () if self._layer is None else (self._layer,)
        out = self._encoder.apply(params, repeated, layers)
        return out.layers_lbtnd[0, 0] if layers else out.tokens_btnd[0]
