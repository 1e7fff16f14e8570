"""Functions that gather, broadcast and hide tokens; gradients avoid scatters and slow sums.

Shape key: b batch, n tokens, k gathered tokens, d width, i parts.
"""

import functools

import jax
import jax.numpy as jnp


def unstack(x_bnid: jax.Array) -> list[jax.Array]:
    """Splits the third axis without a transpose: [b n i d] -> i arrays of shape [b n d]."""
    return [part[:, :, 0] for part in jnp.split(x_bnid, x_bnid.shape[2], axis=2)]


@jax.custom_vjp
def gather_tokens(x_bnd: jax.Array, index_bk: jax.Array) -> jax.Array:
    """Gathers tokens: [b n d], [b k] -> [b k d]; the indices of a clip must be distinct.

    Distinct indices allow the gradient to be computed by a gather, which is many times faster than
    a scatter.
    """
    return jnp.take_along_axis(x_bnd, index_bk[:, :, None], axis=1)


def _gather_forward(x_bnd, index_bk):
    return gather_tokens(x_bnd, index_bk), (index_bk, jnp.zeros((x_bnd.shape[1], 0)))


def _gather_backward(saved, gradient_bkd):
    index_bk, like_n = saved
    return _ungather(gradient_bkd, index_bk, like_n.shape[0]), None


gather_tokens.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def gather_rows(table_nd: jax.Array, index_bk: jax.Array) -> jax.Array:
    """Gathers rows of a table for each clip: [n d], [b k] -> [b k d]; see `gather_tokens`."""
    return table_nd[index_bk]


def _rows_forward(table_nd, index_bk):
    return gather_rows(table_nd, index_bk), (index_bk, jnp.zeros((table_nd.shape[0], 0)))


def _rows_backward(saved, gradient_bkd):
    index_bk, like_n = saved
    return _sum_leading_axis(_ungather(gradient_bkd, index_bk, like_n.shape[0])), None


gather_rows.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def broadcast_leading(x: jax.Array, times: int) -> jax.Array:
    """Returns `times` copies of an array along a new first axis."""
    return jnp.broadcast_to(x[None], (times, *x.shape))


def _broadcast_forward(x, times):
    return broadcast_leading(x, times), None


def _broadcast_backward(times, saved, gradient):
    del times, saved
    return (_sum_leading_axis(gradient),)


broadcast_leading.defvjp(_broadcast_forward, _broadcast_backward)


def _sum_leading_axis(x: jax.Array) -> jax.Array:
    """Sums over the first axis by a matrix product, 20 times faster than `jnp.sum` on CPUs."""
    return jnp.einsum("b,b...->...", jnp.ones(x.shape[0], x.dtype), x, precision="highest")


def _ungather(x_bkd: jax.Array, index_bk: jax.Array, n: int) -> jax.Array:
    """Returns [b n d] with token k of each clip at position index[k] and zeros elsewhere."""
    match_bnk = jnp.arange(n)[None, :, None] == index_bk[:, None, :]
    source_bn = jnp.argmax(match_bnk, axis=2)
    x_bnd = jnp.take_along_axis(x_bkd, source_bn[:, :, None], axis=1)
    return jnp.where(jnp.any(match_bnk, axis=2)[:, :, None], x_bnd, 0.0)


def hide_tokens(
    tokens_bnd: jax.Array, seen_bk: jax.Array | None, mask_token_d: jax.Array
) -> jax.Array:
    """Replaces class tokens, and visible tokens where `seen_bk` is False, with the mask token.

    Returns the tokens unchanged if `seen_bk` is None.
    """
    if seen_bk is None:
        return tokens_bnd
    seen_bn = jnp.pad(seen_bk, ((0, 0), (tokens_bnd.shape[1] - seen_bk.shape[1], 0)))
    return jnp.where(seen_bn[..., None], tokens_bnd, mask_token_d)
