"""Images of clips: masks, sampled reconstructions, and features as colors.

A strip shows the frames of one clip side by side.

Shape key: b clips, t frames, h w pixels, c channels, y x grid rows and columns, n tokens,
s patches of a frame, k visible, m masked tokens, p pixels of a patch, d width.
"""

import base64
import io
from typing import Any

import jax
import numpy as np
from einops import rearrange, repeat
from PIL import Image

from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.patches import (
    clip_grid,
    normalize,
)

HIDDEN = np.array([226, 230, 235], np.uint8)  # color of a masked patch
OUTLINE = np.array([255, 255, 255], np.uint8)
MAX_FRAMES, FRAME_SIDE, GAP = 8, 96, 3


def grid_tokens(config: Any, params: Any, video_bthwc: np.ndarray) -> np.ndarray:
    """Computes the final grid tokens of unmasked clips: [b t y x d]."""
    encoder = encoder_model.from_config(config)
    run = jax.jit(lambda params, x: encoder.apply({"params": params}, normalize(x)).tokens_bnd)
    tokens_bnd = np.asarray(run(params, video_bthwc))[:, encoder.class_tokens :]
    t, y, x = clip_grid(video_bthwc, encoder.patch)
    return rearrange(tokens_bnd, "b (t y x) d -> b t y x d", t=t, y=y, x=x)


def color_features(tokens_tyxd: np.ndarray, size: int) -> np.ndarray:
    """Maps the first three principal components of a clip's tokens to red, green and blue.

    Args:
      tokens_tyxd: tokens of a clip.
      size: height and width of the returned frames, to which the colors are interpolated.

    Returns:
      Frames, uint8 [t size size 3].
    """
    t, y, x, _ = tokens_tyxd.shape
    x_nd = rearrange(tokens_tyxd, "t y x d -> (t y x) d").astype(np.float64)
    x_nd = x_nd - x_nd.mean(axis=0, keepdims=True)
    _, _, axes_kd = np.linalg.svd(x_nd, full_matrices=False)
    axes_kd = axes_kd[:3]
    # The sign of a component is arbitrary, so the largest weight is made positive.
    largest = np.take_along_axis(axes_kd, np.abs(axes_kd).argmax(axis=1)[:, None], axis=1)
    z_nk = x_nd @ (axes_kd * np.sign(largest)).T
    low, high = np.percentile(z_nk, (1, 99), axis=0)
    z_nk = np.clip((z_nk - low[None]) / np.maximum(high - low, 1e-9)[None], 0, 1)
    z_tyxk = rearrange(z_nk, "(t y x) k -> t y x k", t=t, y=y, x=x)
    frames = [Image.fromarray((frame * 255).astype(np.uint8)) for frame in z_tyxk]
    return np.stack([np.asarray(f.resize((size, size), Image.Resampling.BICUBIC)) for f in frames])


def hide_patches(video_thwc: np.ndarray, visible_tyx: np.ndarray) -> np.ndarray:
    """Returns the clip with masked patches in gray."""
    visible_thw = _enlarge(visible_tyx, video_thwc.shape[1] // visible_tyx.shape[1])
    return np.where(visible_thw[..., None], video_thwc, HIDDEN)


def outline_patches(video_thwc: np.ndarray, visible_tyx: np.ndarray) -> np.ndarray:
    """Returns the enlarged clip with a white outline around each visible patch."""
    factor = enlargement_factor(video_thwc)
    large = repeat(video_thwc, "t h w c -> t (h p) (w q) c", p=factor, q=factor)
    side = large.shape[1] // visible_tyx.shape[1]
    row = np.arange(large.shape[1]) % side
    edge_hw = np.isin(row, (0, side - 1))[:, None] | np.isin(row, (0, side - 1))[None]
    framed_thw = _enlarge(visible_tyx, side) & edge_hw[None, : large.shape[1], : large.shape[2]]
    return np.where(framed_thw[..., None], OUTLINE, large)


def _enlarge(visible_tyx: np.ndarray, factor: int) -> np.ndarray:
    return repeat(visible_tyx, "t y x -> t (y p) (x q)", p=factor, q=factor)


def enlargement_factor(video_thwc: np.ndarray) -> int:
    """Returns the integer factor that enlarges a frame to about `FRAME_SIDE` pixels."""
    return max(1, FRAME_SIDE // video_thwc.shape[1])


def to_data_uri(video_thwc: np.ndarray, lossless: bool = True) -> str:
    """Encodes at most `MAX_FRAMES` evenly spaced frames as a PNG or JPEG data URI."""
    t = video_thwc.shape[0]
    frames_thwc = video_thwc[np.linspace(0, t - 1, min(t, MAX_FRAMES)).round().astype(int)]
    factor = enlargement_factor(frames_thwc)
    frames_thwc = repeat(frames_thwc, "t h w c -> t (h p) (w q) c", p=factor, q=factor)
    gap = np.full((*frames_thwc.shape[:2], GAP, 3), 255, np.uint8)
    wide = rearrange(np.concatenate([frames_thwc, gap], axis=2), "t h w c -> h (t w) c")[:, :-GAP]
    out = io.BytesIO()
    file_format = "png" if lossless else "jpeg"
    Image.fromarray(np.ascontiguousarray(wide)).save(out, format=file_format, optimize=True)
    return f"data:image/{file_format};base64," + base64.b64encode(out.getvalue()).decode("ascii")
