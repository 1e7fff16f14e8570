"""Normalizes clips and converts them to and from patches, with two orders of the pixels.

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


def normalize(
    video_bthwc: jax.Array, mean: np.ndarray = IMAGENET_MEAN, std: np.ndarray = IMAGENET_STD
) -> jax.Array:
    """Normalizes uint8 clips with a mean and standard deviation per channel; returns float32.

    The statistics are for values in [0, 1]. The defaults are those of ImageNet.
    """
    mean, std = (np.asarray(v, np.float32).reshape(1, 1, 1, 1, 3) for v in (mean, std))
    return (video_bthwc.astype(jnp.float32) / 255.0 - mean) / std


def denormalize(video_bthwc: jax.Array) -> jax.Array:
    """Inverts `normalize`; rounds and clips to uint8."""
    mean, std = (v.reshape(1, 1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return jnp.clip(jnp.round((video_bthwc * std + mean) * 255.0), 0, 255).astype(jnp.uint8)


def clip_grid(video_bthwc: jax.Array, patch: int) -> Grid:
    """Returns the grid of a clip: the numbers of frames, of patch rows and of patch columns."""
    _, t, h, w, _ = video_bthwc.shape
    return t, h // patch, w // patch


def patchify(video_bthwc: jax.Array, patch: int) -> jax.Array:
    """Splits every frame into patches in raster order.

    Returns:
      [b, t*y*x, p]; the pixels of a patch are in the order row, column, channel.
    """
    pattern = "b t (y r) (x q) c -> b (t y x) (r q c)"
    return rearrange(video_bthwc, pattern, r=patch, q=patch)


def crop_to_patches(images_bhwc: jax.Array, patch: int) -> jax.Array:
    """Crops the right and bottom pixels that do not fill a patch, like a strided convolution."""
    rows, columns = (side // patch for side in images_bhwc.shape[1:3])
    return images_bhwc[:, : rows * patch, : columns * patch]


def extract_patch_pixels(video_bthwc: jax.Array, masked_bm: jax.Array, patch: int) -> jax.Array:
    """Returns the pixels of the masked patches, [b*m, p], in the order channel, row, column.

    As in the reference, this order differs from that of `patchify`, which the encoder uses.
    """
    patches_bnp = patchify(video_bthwc, patch)
    patches_bmp = jnp.take_along_axis(patches_bnp, masked_bm[:, :, None], axis=1)
    return rearrange(patches_bmp, "b m (q c) -> (b m) (c q)", c=video_bthwc.shape[-1])


def insert_patch_pixels(
    video_bthwc: jax.Array, masked_bm: jax.Array, patches_np: jax.Array
) -> jax.Array:
    """Inverts `extract_patch_pixels`: writes patches to the masked positions of clips."""
    b, _, h, _, c = video_bthwc.shape
    patch = int((patches_np.shape[-1] // c) ** 0.5)
    patches_bmp = rearrange(patches_np, "(b m) (c q) -> b m (q c)", b=b, c=c)
    rows_bm = jnp.arange(b)[:, None]
    tokens_bnp = patchify(video_bthwc, patch).at[rows_bm, masked_bm].set(patches_bmp)
    pattern = "b (t y x) (r q c) -> b t (y r) (x q) c"
    return rearrange(tokens_bnp, pattern, y=h // patch, t=video_bthwc.shape[1], r=patch, c=c)
