"""Position embeddings: sin-cos tables, resizing of tables, and rotary embeddings.

Shape key: b batch, n tokens, h heads, e head width, d width, t frames, y x grid rows and columns.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.models.patches import Grid
from invnext_jax.models.sharding import with_logical_axes


@functools.lru_cache(maxsize=8)  # it takes 0.1 s for large models, which are traced several times
def sincos_table(width: int, grid: Grid, class_tokens: int) -> np.ndarray:
    """Returns sin-cos embeddings of every position of a clip, and zeros for the class tokens.

    The first quarter of the channels encodes time; the rest encodes the column, then the row.

    Args:
      width: number of channels; must be divisible by 16, so that each axis gets an even number.
      grid: frames, rows and columns.
      class_tokens: number of leading rows of zeros.

    Returns:
      float32 [class_tokens + t*y*x, width], positions in the order time, row, column; read-only.
    """
    if width % 16:
        raise ValueError(f"{width=} of a position table must be divisible by 16")
    t, y, x = (axis.reshape(-1) for axis in np.indices(grid))
    spatial = 3 * width // 8
    encodings = [
        _sincos_encoding(width // 4, t),
        _sincos_encoding(spatial, x),
        _sincos_encoding(spatial, y),
    ]
    table_nd = np.concatenate(encodings, axis=1)
    table_nd = np.concatenate([np.zeros((class_tokens, width)), table_nd]).astype(np.float32)
    table_nd.flags.writeable = False
    return table_nd


def _sincos_encoding(width: int, positions_n: np.ndarray) -> np.ndarray:
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = positions_n[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def interleaved_sincos_table(width: int, count: int) -> np.ndarray:
    """Returns sin-cos embeddings of indices, float32 [count, width], as in VideoMAE.

    Even channels 2i are the sine and odd channels 2i + 1 the cosine of index * 10000^(-2i/width).
    """
    exponents = np.arange(width) // 2 * 2 / width
    angles_nd = np.arange(count)[:, None] * 10000.0 ** -exponents[None]
    is_even = np.arange(width)[None] % 2 == 0
    return np.where(is_even, np.sin(angles_nd), np.cos(angles_nd)).astype(np.float32)


def resize_table(
    table_nd: jax.Array,
    grid: Grid,
    new_grid: Grid,
    class_tokens: int,
    *,
    antialias: bool = False,
) -> jax.Array:
    """Resizes a position table: linear in time and bicubic in space; keeps the class-token rows.

    Args:
      table_nd: [class_tokens + t*y*x, d], the table for `grid`.
      grid: frames, rows and columns of the table.
      new_grid: frames, rows and columns of the result.
      class_tokens: number of leading rows that belong to class tokens.
      antialias: whether to resize rows and columns with antialiasing.
    """
    if grid == new_grid:
        return table_nd
    t, y, x = grid
    weights = [resize_matrix(t, new_grid[0], "linear")]
    for old, new in zip(grid[1:], new_grid[1:], strict=True):
        weights.append(resize_matrix(old, new, "cubic-pytorch", antialias=antialias))
    table_tyxd = rearrange(table_nd[class_tokens:], "(t y x) d -> t y x d", t=t, y=y, x=x)
    highest = jax.lax.Precision.HIGHEST
    table_tyxd = jnp.einsum("Tt,Yy,Xx,tyxd->TYXd", *weights, table_tyxd, precision=highest)
    grid_nd = rearrange(table_tyxd, "t y x d -> (t y x) d")
    return jnp.concatenate([table_nd[:class_tokens], grid_nd])


def resize_matrix(old: int, new: int, method: str, *, antialias: bool = False) -> jax.Array:
    """Returns the matrix [new, old] with which `jax.image.resize` multiplies an axis.

    Args:
      old: size of the axis.
      new: size of the resized axis.
      method: method of `jax.image.resize`. "linear" and "cubic-pytorch" are PyTorch's bilinear and
        bicubic interpolation, which the published models use.
      antialias: whether to widen the kernel if the size shrinks.
    """
    return jax.image.resize(jnp.eye(old), (new, old), method, antialias=antialias)


def apply_rotary(x_bnhe: jax.Array, theta: float) -> jax.Array:
    """Rotates channel pairs (i, i + e/2) by the token's position times theta^(-2i/e).

    Args:
      x_bnhe: queries or keys; the rotation is computed in float32.
      theta: base of the wavelengths.
    """
    angles = _rotary_angles(x_bnhe.shape[1], x_bnhe.shape[3], theta)[None, :, None]
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    low, high = jnp.split(x_bnhe.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return rotated.astype(x_bnhe.dtype)


def apply_rotary_tokens_last(x_bhen: jax.Array, theta: float) -> jax.Array:
    """Computes the same as `apply_rotary` for arrays [b h e n].

    It needs fewer passes over the array on TPUs.
    """
    e, n = x_bhen.shape[2:]
    angles = np.tile(_rotary_angles(n, e, theta).T, (2, 1))[None, None]
    sign = np.where(np.arange(e)[:, None] < e // 2, -1, 1)
    cos = jnp.asarray(np.cos(angles), jnp.float32)
    sin = jnp.asarray(np.sin(angles) * sign, jnp.float32)
    low, high = jnp.split(x_bhen, 2, axis=2)
    swapped = jnp.concatenate([high, low], axis=2).astype(jnp.float32)
    return (x_bhen.astype(jnp.float32) * cos + swapped * sin).astype(x_bhen.dtype)


def _rotary_angles(n: int, e: int, theta: float) -> np.ndarray:
    """Returns the angles [n, e/2] by which `apply_rotary` turns the pairs."""
    return np.arange(n)[:, None] * theta ** (-np.arange(0, e, 2) / e)


def apply_axial_rotary(x_bnhe: jax.Array, grid: Grid) -> jax.Array:
    """Rotates queries or keys by their position in a clip, as V-JEPA 2 does.

    The channels are three groups of equal, even width for time, row and column; up to five
    channels at the end are not rotated. Channels 2i and 2i + 1 form a pair. As in the released
    model, channel j of a group of width g turns by position * 10000^(-2 (j mod g/2) / g), so that
    the channels of a pair have different frequencies.

    Args:
      x_bnhe: queries or keys of all tokens in raster order; the rotation is computed in float32.
        Tokens after those of the grid are not rotated.
      grid: time slots, rows and columns.
    """
    group = x_bnhe.shape[3] // 3 // 2 * 2
    exponents = np.tile(np.arange(group // 2), 2) / (group / 2) if group else np.zeros(0)
    angles_ne = np.concatenate(
        [axis.reshape(-1, 1) * 10000.0 ** -exponents[None] for axis in np.indices(grid)], axis=1
    )
    angles_ne = np.pad(angles_ne, ((0, x_bnhe.shape[1] - angles_ne.shape[0]), (0, 0)))
    cos = jnp.asarray(np.cos(angles_ne), jnp.float32)[None, :, None, :]
    sin = jnp.asarray(np.sin(angles_ne), jnp.float32)[None, :, None, :]
    rotated, rest = x_bnhe[..., : 3 * group].astype(jnp.float32), x_bnhe[..., 3 * group :]
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    turned = rearrange(jnp.stack([-odd, even], axis=-1), "b n h p two -> b n h (p two)")
    return jnp.concatenate([(rotated * cos + turned * sin).astype(x_bnhe.dtype), rest], axis=-1)


class PositionTable(nn.Module):
    """A learned position table, initialized to `sincos_table` and resized to the clip's grid."""

    width: int
    grid: Grid  # grid of the parameter
    class_tokens: int

    @nn.compact
    def __call__(self, grid: Grid) -> jax.Array:
        """Returns the embeddings of a clip with patch grid `grid`: float32 [class + n, d]."""
        table = sincos_table(self.width, self.grid, self.class_tokens)
        table_nd = self.param(
            "table", with_logical_axes(lambda _: jnp.asarray(table), (None, "embed"))
        )
        # The table is replicated, because gathering rows of a sharded one would need communication.
        table_nd = nn.with_logical_constraint(table_nd, (None, None))
        return resize_table(table_nd, self.grid, grid, self.class_tokens)
