"""Attention kernels compared with unfused attention, and the speed of a large matrix product.

Shape key: b clips, n queries, m keys, h heads, d width of a head.
"""

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.models import attention
from invnext_jax.monitoring import throughput

# (queries, keys, head width, attention window on each side) of the encoder, the giant teacher, the
# 1B encoder, and the predictor with global and local attention and in its last layer.
SHAPES = (
    *((1028, 1028, 64, None), (256, 256, 96, None), (1028, 1028, 88, None)),
    *((4100, 4100, 64, None), (4100, 4100, 64, 64), (3276, 4100, 64, None)),
)
# Used by the tests of this check, on CPUs.
TINY_SHAPES = (40, 40, 12, None), (20, 40, 12, None), (140, 140, 8, 8)
CUDNN = "__cudnn$fmha"
TOLERANCE = 2e-2  # of the largest value; bfloat16 has 8 bits


def check_kernels(tiny: bool, side: int) -> dict:
    """Checks all kernels and measures a bfloat16 product of two matrices with `side` rows."""
    rows = [check_kernel(*shape) for shape in (TINY_SHAPES if tiny else SHAPES)]
    wrong = [f"kernel {row['shape']} is off by {row['error']}" for row in rows if row["wrong"]]
    if jax.default_backend() == "gpu":
        wrong += [f"cuDNN is not used for {row['shape']}" for row in rows if not row["cudnn"]]
    product = throughput.measure_matmul_flops(jax.devices()[0], "bfloat16", side) / 1e12
    return {
        "kernels": rows,
        "matmul_tflops": float(f"{product:.4g}"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "wrong": wrong,
    }


def check_kernel(n: int, m: int, width: int, window: int | None) -> dict:
    """Compares output and gradients in bfloat16 with those of unfused attention in float32."""
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal((2, tokens, 4, width)), jnp.bfloat16)
        for tokens in (n, m, m, n)
    ]

    def product(q_bnhd, k_bmhd, v_bmhd, out_bnhd):
        y = attention.attend(q_bnhd, k_bmhd, v_bmhd, window)
        return jnp.vdot(y.astype(jnp.float32), out_bnhd.astype(jnp.float32)), y

    def run(arrays):
        value_and_grad = jax.jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))
        compiled = value_and_grad.lower(*arrays).compile()
        (_, y), gradients = compiled(*arrays)
        return [np.asarray(x, np.float32) for x in (y, *gradients)], CUDNN in compiled.as_text()

    with attention.kernel("naive"), jax.default_matmul_precision("highest"):
        expected, _ = run([x.astype(jnp.float32) for x in arrays])
    with attention.kernel("auto"):
        actual, cudnn = run(arrays)
    errors = [
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(actual, expected, strict=True)
    ]
    row = {"shape": f"{n} queries, {m} keys, width {width}, window {window}", "cudnn": cudnn}
    return row | {"error": round(max(errors), 5), "wrong": not max(errors) < TOLERANCE}
