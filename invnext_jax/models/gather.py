"""Moving tokens, with backward passes that neither scatter nor sum slowly: picking, repeating.

Shape key: b batch, n tokens, k picked tokens, d width, i parts.
"""

import functools

import jax
import jax.numpy as jnp


def unstack(x_bnid: jax.Array) -> list[jax.Array]:
    """Takes the third axis apart: [b n i d] -> i times [b n d], without moving an axis."""
    return [part[:, :, 0] for part in jnp.split(x_bnid, x_bnid.shape[2], axis=2)]


@jax.custom_vjp
def gather_tokens(x_bnd: jax.Array, index_bk: jax.Array) -> jax.Array:
    """Picks tokens: [b n d], [b k] -> [b k d]; the indices of a clip are distinct.

    Because they are, the gradient is a gather too: a scatter is many times slower.
    """
    return jnp.take_along_axis(x_bnd, index_bk[:, :, None], axis=1)


def _gather_forward(x_bnd, index_bk):
    return gather_tokens(x_bnd, index_bk), (index_bk, jnp.zeros((x_bnd.shape[1], 0)))


def _gather_backward(saved, gradient_bkd):
    index_bk, like_n = saved
    return _spread(gradient_bkd, index_bk, like_n.shape[0]), None


gather_tokens.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def gather_rows(table_nd: jax.Array, index_bk: jax.Array) -> jax.Array:
    """Picks the same table's rows for every clip: [n d], [b k] -> [b k d]; see `gather_tokens`."""
    return table_nd[index_bk]


def _rows_forward(table_nd, index_bk):
    return gather_rows(table_nd, index_bk), (index_bk, jnp.zeros((table_nd.shape[0], 0)))


def _rows_backward(saved, gradient_bkd):
    index_bk, like_n = saved
    return _sum_first(_spread(gradient_bkd, index_bk, like_n.shape[0])), None


gather_rows.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat(x: jax.Array, times: int) -> jax.Array:
    """The same array `times` times, along a new first axis."""
    return jnp.broadcast_to(x[None], (times, *x.shape))


def _repeat_forward(x, times):
    return repeat(x, times), None


def _repeat_backward(times, saved, gradient):
    del times, saved
    return (_sum_first(gradient),)


repeat.defvjp(_repeat_forward, _repeat_backward)


def _sum_first(x: jax.Array) -> jax.Array:
    """The sum over the first axis, as a product: 20 times as fast as XLA's sum on CPUs."""
    return jnp.einsum("b,b...->...", jnp.ones(x.shape[0], x.dtype), x, precision="highest")


def _spread(x_bkd: jax.Array, index_bk: jax.Array, n: int) -> jax.Array:
    """Puts token k of a clip into place index[k] of n, zeros elsewhere."""
    found_bnk = jnp.arange(n)[None, :, None] == index_bk[:, None, :]
    place_bn = jnp.argmax(found_bnk, axis=2)
    x_bnd = jnp.take_along_axis(x_bkd, place_bn[:, :, None], axis=1)
    return jnp.where(jnp.any(found_bnk, axis=2)[:, :, None], x_bnd, 0.0)
