"""The product of a linear layer: as it stands, of flat tokens, or of frozen layers in 8 bits.

In 8 bits weights are scaled by output channel and inputs by token, symmetrically, where they are
used: what is stored stays float32. Sums are int32, or float32 for floats. There is no gradient.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError

# Name -> type, its largest number, type of the sums.
FORMATS = {
    "int8": (jnp.int8, 127, jnp.int32),
    "float8": (jnp.float8_e4m3fn, 448, jnp.float32),
}
# `with rounding("int8"):` around the tracing chooses for every `layers.dense`; "" rounds nothing.
quantization = jax.make_user_context("")


def check_config(config: Any) -> None:
    """Checks `config.quantize_frozen`.

    Raises:
      UserError: an unknown format.
    """
    known = ("", *FORMATS)
    if config.quantize_frozen not in known:
        raise UserError(f"config.quantize_frozen={config.quantize_frozen!r} must be one of {known}")


def select_dot_general() -> Callable[..., jax.Array]:
    """`jax.lax.dot_general`, or what stands in for it here."""
    if quantization.value:
        return functools.partial(quantized_dot_general, quantization.value)
    mesh = jax.sharding.get_abstract_mesh()
    one_cpu = jax.default_backend() == "cpu" and not mesh.empty and mesh.size == 1
    return flat_dot_general if one_cpu else jax.lax.dot_general


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None
) -> jax.Array:
    """The same product of two matrices, whose gradients are products of matrices too.

    Over several axes XLA's CPU compiler transposes what it sums over, which costs a copy for each
    gradient of a kernel. Not so on a mesh: tokens split by clip and place cannot be joined.
    """
    (x_axes, kernel_axes), _ = dimensions
    free, inner = x.shape[: -len(x_axes)], math.prod(kernel.shape[: len(kernel_axes)])

    @functools.partial(jax.checkpoint, prevent_cse=False)  # keeps no flat copies beside the factors
    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.dot(x.reshape(-1, inner), kernel.reshape(inner, -1), precision=precision)

    return multiply(x, kernel).reshape(*free, *kernel.shape[len(kernel_axes) :])


def quantized_dot_general(
    form: str, x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None
) -> jax.Array:
    """The product of inputs and a kernel, both rounded to 8 bits.

    Args:
      form: one of `FORMATS`.
      x: inputs; the axes that are summed over come last.
      kernel: weights; the axes that are summed over come first.
      dimensions: as of `jax.lax.dot_general`, without batch axes.
      precision: means nothing here.

    Returns:
      The product in the type of `x`.
    """
    del precision
    (x_axes, kernel_axes), _ = dimensions
    x_rounded, x_scale = _round(form, x, x_axes)
    kernel_rounded, kernel_scale = _round(form, kernel, kernel_axes)
    sums = FORMATS[form][2]
    y = jax.lax.dot_general(x_rounded, kernel_rounded, dimensions, preferred_element_type=sums)
    x_scale = jnp.expand_dims(x_scale, range(x_scale.ndim, y.ndim))
    kernel_scale = jnp.expand_dims(kernel_scale, range(y.ndim - kernel_scale.ndim))
    return (y.astype(jnp.float32) * x_scale * kernel_scale).astype(x.dtype)


def _round(form: str, x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The numbers in 8 bits, and the scale of each vector along `axes`."""
    dtype, largest, _ = FORMATS[form]
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / largest
    x = x / jnp.where(scale > 0, scale, 1.0)
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.round(x)
    return x.astype(dtype), jnp.squeeze(scale, axes)
