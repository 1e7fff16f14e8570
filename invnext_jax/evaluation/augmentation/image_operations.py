"""Image operations on uint8 clips, with the same results as Pillow.

All functions take and return uint8 [t h w c] unless stated otherwise. Statistics such as
histograms are computed for each frame.

Shape key: t frames, h w pixels, c channels (RGB), v the 256 values of a channel.
"""

import jax
import jax.numpy as jnp

# Color of pixels that a geometric operation moves into the frame: the mean of ImageNet.
FILL = (124, 116, 104)


def invert(video_thwc: jax.Array) -> jax.Array:
    """Inverts the values v to 255 - v."""
    return 255 - video_thwc


def auto_contrast(video_thwc: jax.Array) -> jax.Array:
    """Stretches the values of each channel of a frame to the range 0 to 255."""
    low, high = (f(video_thwc, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    low, high = low.astype(jnp.int32), high.astype(jnp.int32)
    stretched = (video_thwc.astype(jnp.int32) - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, video_thwc).astype(jnp.uint8)


def equalize(video_thwc: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel of a frame."""
    t, h, w, c = video_thwc.shape
    index_thwc = video_thwc.astype(jnp.int32)
    frame, channel = jnp.arange(t)[:, None, None, None], jnp.arange(c)[None, None, None]
    count_tcv = jnp.zeros((t, c, 256), jnp.int32).at[frame, channel, index_thwc].add(1)
    largest = jnp.max(video_thwc, axis=(1, 2)).astype(jnp.int32)[..., None]
    step = (h * w - jnp.take_along_axis(count_tcv, largest, axis=-1)) // 255
    below_tcv = jnp.cumsum(count_tcv, axis=-1) - count_tcv
    table_tcv = jnp.minimum((below_tcv + step // 2) // jnp.maximum(step, 1), 255)
    table_tcv = jnp.where(step > 0, table_tcv, jnp.arange(256)[None, None])
    return table_tcv[frame, channel, index_thwc].astype(jnp.uint8)


def posterize(video_thwc: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the `bits` most significant bits of each value, an int from 0 to 8."""
    dropped = 8 - bits.astype(jnp.int32)
    return ((video_thwc.astype(jnp.int32) >> dropped) << dropped).astype(jnp.uint8)


def solarize(video_thwc: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values that are at least `threshold`, an int from 0 to 256."""
    return jnp.where(video_thwc.astype(jnp.int32) < threshold, video_thwc, 255 - video_thwc)


def solarize_add(video_thwc: jax.Array, amount: jax.Array) -> jax.Array:
    """Adds `amount`, an int, to the values below 128."""
    brighter = jnp.minimum(video_thwc.astype(jnp.int32) + amount, 255).astype(jnp.uint8)
    return jnp.where(video_thwc < 128, brighter, video_thwc)


def adjust_color(video_thwc: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the saturation: 0 returns gray, 1 the input, larger factors stronger colors."""
    return _blend(jnp.broadcast_to(_gray(video_thwc), video_thwc.shape), video_thwc, factor)


def adjust_contrast(video_thwc: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the contrast: 0 returns the mean gray value of each frame, 1 the input."""
    mean = jnp.mean(_gray(video_thwc).astype(jnp.float32), axis=(1, 2), keepdims=True)
    return _blend(jnp.broadcast_to(jnp.floor(mean + 0.5), video_thwc.shape), video_thwc, factor)


def adjust_brightness(video_thwc: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the values by `factor`."""
    return _blend(jnp.zeros_like(video_thwc), video_thwc, factor)


def adjust_sharpness(video_thwc: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the sharpness: 0 smooths, 1 returns the input. Border pixels do not change."""
    x, h, w = video_thwc.astype(jnp.float32), video_thwc.shape[1], video_thwc.shape[2]
    total = sum(x[:, i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3))
    smooth = jnp.floor((total + 4 * x[:, 1:-1, 1:-1]) / 13 + 0.5)
    return _blend(x.at[:, 1:-1, 1:-1].set(smooth), video_thwc, factor)


def transform(video_thwc: jax.Array, matrix: jax.Array, fill: tuple[int, ...] = FILL) -> jax.Array:
    """Resamples all frames with one affine map, by bilinear interpolation.

    Args:
      video_thwc: uint8 clip.
      matrix: float32 [2, 3]. It maps (x, y, 1) of the output to x, y of the input, in pixels from
        the top left corner; the center of the first pixel is at 0.5.
      fill: color of output pixels that lie outside the input.
    """
    h, w = video_thwc.shape[1:3]
    x_hw, y_hw = jnp.meshgrid(jnp.arange(w) + 0.5, jnp.arange(h) + 0.5)
    x_hw, y_hw = (row[0] * x_hw + row[1] * y_hw + row[2] for row in matrix)
    inside_hw = (x_hw >= 0) & (x_hw < w) & (y_hw >= 0) & (y_hw < h)
    x_hw, y_hw = x_hw - 0.5, y_hw - 0.5
    left_hw, top_hw = jnp.floor(x_hw), jnp.floor(y_hw)
    right_share, bottom_share = (
        (a - b)[None, ..., None] for a, b in ((x_hw, left_hw), (y_hw, top_hw))
    )

    def pixels(row, column):
        row, column = (jnp.clip(i, 0, n - 1).astype(jnp.int32) for i, n in ((row, h), (column, w)))
        return video_thwc[:, row, column].astype(jnp.float32)

    top, bottom = (
        (1 - right_share) * pixels(row, left_hw) + right_share * pixels(row, left_hw + 1)
        for row in (top_hw, top_hw + 1)
    )
    value = (1 - bottom_share) * top + bottom_share * bottom
    color = jnp.asarray(fill, jnp.float32)[None, None, None]
    # 1e-3 compensates for rounding errors below integers; Pillow computes in float64.
    value = jnp.where(inside_hw[None, ..., None], value + 1e-3, color)
    return jnp.clip(value, 0, 255).astype(jnp.uint8)


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the matrix, float32 [2, 3], of a counterclockwise rotation around the center."""
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    rows = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    return jnp.stack([jnp.stack(row) for row in rows])


def _gray(video_thwc: jax.Array) -> jax.Array:
    """Returns the luma (ITU-R BT.601) as int32 [t h w 1], in Pillow's fixed point."""
    weights = jnp.asarray([19595, 38470, 7471], jnp.int32)[None, None, None]
    total = jnp.sum(video_thwc.astype(jnp.int32) * weights, axis=-1, keepdims=True)
    return (total + 0x8000) >> 16


def _blend(a: jax.Array, b: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns a + factor * (b - a), limited to 0 to 255 and rounded down."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.clip(a + factor * (b - a), 0, 255).astype(jnp.uint8)
