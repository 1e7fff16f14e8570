"""Converts labels of the first frame to the token grid, and predicted labels to pixels.

Positions are fractions of the frame in [0, 1]. In a frame that is 32 pixels wide, the center of the
first pixel is at 1 / 64.

Shape key: t frames, h w pixels, n tokens, k labels or objects, j points, s tokens, 2 = (x, y).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

SIGMA = 0.5  # standard deviation of the Gaussian around a point, in tokens
CUT = 3 * SIGMA
PEAKS = 5  # number of tokens whose weighted mean is the position of a point


def label_masks(
    ids_hw: np.ndarray, objects: Sequence[int], grid: tuple[int, int], patch: int
) -> np.ndarray:
    """Computes the fraction of each token that the background and each object cover.

    Args:
      ids_hw: object ids of a frame of any size. The frame is resized to the size of the token grid
        in pixels, with nearest-neighbor interpolation.
      objects: ids of the objects. All other ids are background.
      grid: rows and columns of the tokens.
      patch: height and width of a patch in pixels.

    Returns:
      float32 [n k]; the first label is the background.
    """
    places = (
        (np.arange(count * patch) + 0.5) / (count * patch) * size
        for count, size in zip(grid, ids_hw.shape, strict=True)
    )
    rows_h, columns_w = (np.floor(place).astype(int) for place in places)
    ids_hw = ids_hw[rows_h[:, None], columns_w[None]]
    masks_khw = np.stack([ids_hw == number for number in objects])
    masks_khw = np.concatenate([~masks_khw.any(axis=0, keepdims=True), masks_khw])
    pattern = "k (a p) (b q) -> (a b) k"
    return reduce(masks_khw.astype(np.float32), pattern, "mean", p=patch, q=patch)


def label_points(points_j2: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns a Gaussian on the token grid around each point, float32 [n j]."""
    rows, columns = grid
    center_n2 = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.5
    center_n2 = rearrange(center_n2, "a b c -> (a b) c")
    offset_nj2 = center_n2[:, None] - points_j2[None] * np.array([columns, rows])
    square_nj = np.square(offset_nj2).sum(axis=-1)
    heat_nj = np.exp(-square_nj / (2 * SIGMA**2))
    return np.where(square_nj < CUT**2, heat_nj, 0).astype(np.float32)


def read_points(labels_tnj: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Computes the positions of points as the weighted mean of the strongest tokens.

    Args:
      labels_tnj: propagated labels of `label_points`.
      grid: rows and columns of the tokens.

    Returns:
      float64 [t j 2]; (-1, -1) for points without a label.
    """
    peaks = min(PEAKS, labels_tnj.shape[1])
    place_tsj = np.argsort(-labels_tnj, axis=1, kind="stable")[:, :peaks]
    weight_tsj = np.take_along_axis(np.float64(labels_tnj), place_tsj, axis=1)
    total_tj = weight_tsj.sum(axis=1)
    position_tsj2 = np.stack(
        [(place_tsj % grid[1] + 0.5) / grid[1], (place_tsj // grid[1] + 0.5) / grid[0]], axis=-1
    )
    mean_tj2 = (position_tsj2 * weight_tsj[..., None]).sum(axis=1)
    mean_tj2 = mean_tj2 / np.where(total_tj > 0, total_tj, 1.0)[..., None]
    return np.where(total_tj[..., None] > 0, mean_tj2, -1.0)


def read_masks(labels_tnk: jax.Array, grid: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Resizes the scores of labels bilinearly and selects the largest one at each pixel.

    The function can be used inside `jax.jit`.

    Args:
      labels_tnk: propagated labels of `label_masks`.
      grid: rows and columns of the tokens.
      size: height and width of the result in pixels.

    Returns:
      int32 label ids [t h w]; 0 is the background.
    """

    def read(labels_nk):
        labels_hwk = rearrange(labels_nk, "(h w) k -> h w k", h=grid[0])
        large_hwk = jax.image.resize(
            labels_hwk,
            (*size, labels_hwk.shape[-1]),
            "linear",
            antialias=False,
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.argmax(large_hwk, axis=-1).astype(jnp.int32)

    return jax.lax.map(read, labels_tnk)
