"""Matrix products of linear layers, optionally in 8 bits, and the precision of all products.

8-bit products have no gradient, so they are only for frozen layers. Both operands are quantized
symmetrically at each use. The kernel has one scale per output channel, and the inputs have one
scale per token. The stored parameters stay float32. Products have int32 outputs for int8. For
float8, their outputs have the dtype of the inputs, and accelerators add in float32.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models.sharding import target_platform

DTYPES = ("float32", "bfloat16")  # values of `config.dtype` and `config.decoder.dtype`
# Name -> dtype, largest value of that dtype, dtype of the product (None: that of the inputs).
QUANTIZED_FORMATS = {
    "int8": (jnp.int8, 127, jnp.int32),
    "float8": (jnp.float8_e4m3fn, 448, None),
}
AUTO = "auto"  # value of `config.quantize_frozen` that selects the format of the device
_INT8_TPUS = ("v5", "v6")  # parts of the `device_kind` of TPUs whose int8 products are fast
_FLOAT8_CAPABILITY = 8.9  # compute capability of the first GPUs with float8 products
# `with quantization("int8"):` during tracing quantizes every `layers.dense`; "" disables it.
quantization = jax.make_user_context("")


def select_precision(dtype: Any) -> jax.lax.Precision | None:
    """Returns the precision of matrix products for operands of the given dtype.

    By default, accelerators round float32 operands: TPUs to bfloat16, NVIDIA GPUs to TF32. The
    highest precision multiplies them without rounding. CPUs never round.

    Args:
      dtype: dtype of the operands.

    Returns:
      The highest precision for float32, and None, the default, for other dtypes.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def check_dtype(name: str, dtype: str) -> None:
    """Checks an option for the dtype of matrix products.

    Args:
      name: name of the option, for the error message.
      dtype: value of the option.

    Raises:
      UserError: the dtype is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UserError(f"{name}={dtype!r} must be {' or '.join(map(repr, DTYPES))}")


def check_config(config: Any) -> None:
    """Checks `config.dtype` and `config.quantize_frozen`.

    Raises:
      UserError: the dtype or the format is unknown.
    """
    check_dtype("config.dtype", config.dtype)
    known = ("", AUTO, *QUANTIZED_FORMATS)
    if config.quantize_frozen not in known:
        raise UserError(f"config.quantize_frozen={config.quantize_frozen!r} must be one of {known}")


def select_format(device: jax.Device) -> str:
    """Returns the 8-bit format whose products are fast on a device; "" if there is none.

    float8 on GPUs since compute capability 8.9, on which XLA's int8 products are slow; int8 on TPUs
    v5e, v5p and v6e. Older GPUs and TPUs and all CPUs have no format.
    """
    kind = device.device_kind.lower()
    if device.platform == "tpu":
        return "int8" if any(name in kind for name in _INT8_TPUS) else ""
    capability = str(getattr(device, "compute_capability", ""))
    if not capability and "nvidia h" in kind:  # a described H100 or H200; see planning/targets.py
        capability = "9.0"
    is_number = re.fullmatch(r"\d+\.\d+", capability)  # AMD's capabilities are names
    return "float8" if is_number and float(capability) >= _FLOAT8_CAPABILITY else ""


def select_dot_general() -> Callable[..., jax.Array]:
    """Returns the function that multiplies the inputs of a linear layer by its kernel.

    It has the signature of `jax.lax.dot_general`, without batch axes.
    """
    name = select_format(jax.devices()[0]) if quantization.value == AUTO else quantization.value
    if name:
        return functools.partial(quantized_dot_general, name)
    mesh = jax.sharding.get_abstract_mesh()
    if target_platform() == "tpu":
        return separate_dot_general
    one_cpu = target_platform() == "cpu" and not mesh.empty and mesh.size == 1
    return flat_dot_general if one_cpu else jax.lax.dot_general


def separate_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None
) -> jax.Array:
    """Computes `jax.lax.dot_general` with one product for each part of the output.

    The parts are the first of two output axes, such as queries, keys and values. TPUs would store
    the output of a single product with the parts between tokens and channels, and copy it.
    """
    (x_axes, kernel_axes), _ = dimensions
    multiply = functools.partial(
        jax.lax.dot_general, dimension_numbers=dimensions, precision=precision
    )
    first = len(kernel_axes)
    if kernel.ndim - first < 2:
        return multiply(x, kernel)
    parts = jnp.unstack(kernel, axis=first)
    return jnp.stack([multiply(x, part) for part in parts], axis=x.ndim - len(x_axes))


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None
) -> jax.Array:
    """Computes `jax.lax.dot_general` as a product of two matrices.

    The gradients are then matrix products too. For sums over several axes, XLA's CPU compiler
    transposes the operands, which costs a copy for each kernel gradient. This function is not used
    on a mesh of several devices, where the clip and token axes cannot be merged.
    """
    (x_axes, kernel_axes), _ = dimensions
    free, inner = x.shape[: -len(x_axes)], math.prod(kernel.shape[: len(kernel_axes)])

    @functools.partial(jax.checkpoint, prevent_cse=False)  # does not save the flattened copies
    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.dot(x.reshape(-1, inner), kernel.reshape(inner, -1), precision=precision)

    return multiply(x, kernel).reshape(*free, *kernel.shape[len(kernel_axes) :])


def quantized_dot_general(
    format_name: str, x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None
) -> jax.Array:
    """Multiplies inputs by a kernel after quantizing both to 8 bits.

    Args:
      format_name: one of `QUANTIZED_FORMATS`.
      x: inputs; the axes that are summed over are the last ones.
      kernel: weights; the axes that are summed over are the first ones.
      dimensions: dimension numbers of `jax.lax.dot_general`, without batch axes.
      precision: ignored.

    Returns:
      The product in the dtype of `x`.
    """
    del precision
    (x_axes, kernel_axes), _ = dimensions
    x_quantized, x_scale = _quantize(format_name, x, x_axes)
    kernel_quantized, kernel_scale = _quantize(format_name, kernel, kernel_axes)
    sum_dtype = QUANTIZED_FORMATS[format_name][2] or x.dtype
    y = jax.lax.dot_general(
        x_quantized, kernel_quantized, dimensions, preferred_element_type=sum_dtype
    )
    x_scale = jnp.expand_dims(x_scale, range(x_scale.ndim, y.ndim))
    kernel_scale = jnp.expand_dims(kernel_scale, range(y.ndim - kernel_scale.ndim))
    return (y.astype(jnp.float32) * x_scale * kernel_scale).astype(x.dtype)


def _quantize(format_name: str, x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns `x` in 8 bits and one scale for each vector along `axes`."""
    dtype, largest, _ = QUANTIZED_FORMATS[format_name]
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / largest
    x = x / jnp.where(scale > 0, scale, 1.0)
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.round(x)
    return x.astype(dtype), jnp.squeeze(scale, axes)
