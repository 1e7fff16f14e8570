"""The class `VideoEncoder`, which computes features of video files with a trained encoder.

Shape key: b videos, t frames, h w pixels, c channels, n tokens, d width.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from invnext_jax.data.clips import ClipSampler, ClipTransform, read_clips
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.evaluation.clip_settings import check_default_clip
from invnext_jax.models.heads import UNTRAINED_POOL, AttentionPool, is_untrained_pool
from invnext_jax.models.patches import normalize


class VideoEncoder:
    """A frozen encoder that maps video files to features. It is compiled once for each clip size.

    Attributes:
      encoder: encoder module.
      params: parameters of the encoder, on the device.
      config: config that describes the encoder.
    """

    def __init__(self, path: str | Path):
        """Loads the weights.

        Args:
          path: workdir of a run, a .safetensors file written by `launch/export.py` or
            `launch/import_weights.py`, or a folder in the published layout.

        Raises:
          UserError: the path has no weights or no encoder.
        """
        loaded = pretrained.load_encoder(path)
        e = loaded.config.encoder
        self.encoder, self.config = loaded.encoder, loaded.config
        self.params = jax.device_put({"encoder": loaded.params, "pool": loaded.pool})
        self._has_untrained_pool = is_untrained_pool(loaded.pool)  # until the warning is logged
        pool = AttentionPool(e.get("pool_width"), e.get("pool_heads"), loaded.encoder.dtype)

        @jax.jit
        def tokens(params, video_bthwc):
            out = self.encoder.apply({"params": params["encoder"]}, normalize(video_bthwc))
            return out.tokens_bnd

        @jax.jit
        def pooled(params, video_bthwc):
            return pool.apply({"params": params["pool"]}, tokens(params, video_bthwc))

        self._tokens, self._pooled = tokens, pooled

    def __call__(
        self,
        path: str | os.PathLike,
        *,
        frames: int | None = None,
        size: int | None = None,
        pooled: bool = False,
        start: float | None = None,
        end: float | None = None,
    ) -> np.ndarray:
        """Computes the features of one video, from the center crop of evenly spaced frames.

        Args:
          path: a video file, local or `protocol://...`.
          frames: number of frames; None for the number in the encoder's config. Position embeddings
            are resized if needed.
          size: height and width of the frames in pixels, a multiple of the patch size; None for the
            size in the config.
          pooled: whether to return one vector instead of tokens.
          start: start time in seconds; None for the beginning of the video.
          end: end time in seconds; None for the end of the video.

        Returns:
          float32 [frames * (size / patch)^2, width] in the order time, row, column, without class
          tokens; [pool_width] if `pooled`.

        Raises:
          UserError: the size is not a multiple of the patch size; the weights have no pool; or
            `frames` or `size` is None, and the clip has too many patches.
          BadVideo: the file cannot be decoded.
        """
        video_thwc = self.read(path, frames=frames, size=size, start=start, end=end)
        return self.encode(video_thwc[None], pooled=pooled)[0]

    def read(
        self,
        path: str | os.PathLike,
        *,
        frames: int | None = None,
        size: int | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> np.ndarray:
        """Reads the clip that `__call__` encodes with the same arguments, uint8 [t h w c]."""
        is_default = frames is None or size is None
        frames = self.encoder.frames if frames is None else frames
        size = self.encoder.size if size is None else size
        if frames < 1 or size < 1:
            raise UserError(f"{frames=} and {size=} must be positive")
        if is_default:
            check_default_clip(frames, size, self.encoder.patch, "set frames and size")
        path = os.fsdecode(path)
        if os.path.exists(path):  # a local file may be called "world:cup.mp4"
            path = os.path.abspath(path)
        record = VideoRecord(0, path, "", start, end, {})
        sampler = ClipSampler(ClipTransform(), frames, size, [None])
        return read_clips(record, sampler, short_side=size)[0]

    def encode(self, video_bthwc: np.ndarray, *, pooled: bool = False) -> np.ndarray:
        """Computes the features of clips in memory.

        Args:
          video_bthwc: uint8 RGB clips with any number of frames; height and width are multiples of
            the patch size.
          pooled: whether to return one vector per clip instead of tokens.

        Returns:
          float32 [b n d] without class tokens, or [b pool_width].

        Raises:
          UserError: see `__call__`.
        """
        found = getattr(video_bthwc, "dtype", type(video_bthwc).__name__)
        shape = list(getattr(video_bthwc, "shape", ()))
        if found != np.uint8 or len(shape) != 5 or shape[-1] != 3:
            raise UserError(
                f"the clips are {found} {shape}, but must be an array of uint8 "
                "[clips, frames, height, width, 3] with values from 0 to 255"
            )
        patch, (height, width) = self.encoder.patch, video_bthwc.shape[2:4]
        if height % patch or width % patch:
            raise UserError(
                f"{height} x {width} pixels must be divisible by the patch size {patch}"
            )
        if pooled and self.params["pool"] is None:
            raise UserError(
                "the weights have no pool: export them with --parts=encoder,pool, or leave "
                "pooled=True out"
            )
        if pooled:
            if self._has_untrained_pool:
                logging.warning("the pooled features are not meaningful: %s", UNTRAINED_POOL)
                self._has_untrained_pool = False
            return np.asarray(self._pooled(self.params, jnp.asarray(video_bthwc)))
        tokens_bnd = self._tokens(self.params, jnp.asarray(video_bthwc))
        return np.asarray(tokens_bnd[:, self.encoder.class_tokens :])
