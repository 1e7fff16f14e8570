"""Pixels to patches and back: normalisation, cutting, and the two orders of a patch's values.

Shape key: b batch, t frames, h w pixels, c channels, y x grid rows and columns, n tokens,
m masked tokens, p pixels of a patch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
Grid = tuple[int, int, int]  # frames, rows, columns


def normalize(video_bthwc: jax.Array) -> jax.Array:
    """Turns uint8 clips into float32 ones with ImageNet's mean and deviation."""
    mean, std = (v.reshape(1, 1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (video_bthwc.astype(jnp.float32) / 255.0 - mean) / std


def denormalize(video_bthwc: jax.Array) -> jax.Array:
    """The inverse of `normalize`: uint8, cut to its range."""
    mean, std = (v.reshape(1, 1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return jnp.clip(jnp.round((video_bthwc * std + mean) * 255.0), 0, 255).astype(jnp.uint8)


def clip_grid(video_bthwc: jax.Array, patch: int) -> Grid:
    """Frames, rows and columns of patches of a clip."""
    _, t, h, w, _ = video_bthwc.shape
    return t, h // patch, w // patch


def patchify(video_bthwc: jax.Array, patch: int) -> jax.Array:
    """Cuts every frame into patches: [b, t*y*x, p] in the order row, column, channel."""
    pattern = "b t (y r) (x q) c -> b (t y x) (r q c)"
    return rearrange(video_bthwc, pattern, r=patch, q=patch)


def patch_targets(video_bthwc: jax.Array, masked_bm: jax.Array, patch: int) -> jax.Array:
    """Pixels of the masked patches, [b*m, p] in the order channel, row, column.

    The reference reads patches with the channel fastest and reconstructs them with it slowest.
    """
    patches_bnp = patchify(video_bthwc, patch)
    patches_bmp = jnp.take_along_axis(patches_bnp, masked_bm[:, :, None], axis=1)
    return rearrange(patches_bmp, "b m (q c) -> (b m) (c q)", c=video_bthwc.shape[-1])


def paste_patches(video_bthwc: jax.Array, masked_bm: jax.Array, patches_np: jax.Array) -> jax.Array:
    """Puts patches, in the order of `patch_targets`, into the masked places of a clip."""
    b, _, h, _, c = video_bthwc.shape
    patch = int((patches_np.shape[-1] // c) ** 0.5)
    patches_bmp = rearrange(patches_np, "(b m) (c q) -> b m (q c)", b=b, c=c)
    rows_bm = jnp.arange(b)[:, None]
    tokens_bnp = patchify(video_bthwc, patch).at[rows_bm, masked_bm].set(patches_bmp)
    pattern = "b (t y x) (r q c) -> b t (y r) (x q) c"
    return rearrange(tokens_bnp, pattern, y=h // patch, t=video_bthwc.shape[1], r=patch, c=c)
