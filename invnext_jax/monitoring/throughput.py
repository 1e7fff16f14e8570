"""FLOP/s of a run, relative to the device's peak and to a measured matrix product."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from invnext_jax.planning.devices import find_device

_MEASURE_SECONDS = 0.5  # upper bound on the time to measure the ceiling
_PRODUCTS = 5  # number of products in one program, so that the launch overhead is negligible


def measure_matmul_flops(device: jax.Device, dtype: str, size: int | None = None) -> float:
    """Measures the FLOP/s of a large matrix product on one device, in less than a second.

    Args:
        device: the device to measure.
        dtype: dtype of the matrices.
        size: number of rows and columns. If None, 1024 on a CPU and 8192 on other devices.

    Returns:
        The highest FLOP/s of up to ten measurements.
    """
    size = size or (1024 if device.platform == "cpu" else 8192)
    put = jax.sharding.SingleDeviceSharding(device)
    x = jax.jit(lambda: jnp.ones((size, size), dtype), out_shardings=put)()

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _PRODUCTS, lambda _, y: (x @ y) * (1.0 / size), x)

    jax.block_until_ready(multiply(x))  # compiles
    best, start = float("inf"), time.perf_counter()
    for _ in range(10):
        before = time.perf_counter()
        jax.block_until_ready(multiply(x))
        best = min(best, time.perf_counter() - before)
        if time.perf_counter() - start > _MEASURE_SECONDS:
            break
    return 2.0 * _PRODUCTS * size**3 / best


class Throughput:
    """Converts steps per second to FLOP/s, MFU and the share of the measured ceiling.

    Args:
        flops: model FLOPs of a step, summed over all devices. 0 if unknown.
        devices: devices of the mesh.
        dtype: dtype of the matrix products.
        measure: whether to measure the FLOP/s of a large matrix product, the ceiling, on GPUs and
            CPUs.
    """

    def __init__(self, flops: float, devices: Sequence[jax.Device], dtype: str, *, measure: bool):
        first = next(d for d in devices if d.process_index == jax.process_index())
        self._flops = flops / len(devices)
        self._device = find_device(first.device_kind)
        self._kind, self._ceiling = first.device_kind, None
        if flops and measure and first.platform in ("cpu", "gpu"):
            self._ceiling = measure_matmul_flops(first, dtype)
            if first.platform == "cpu":  # the CPU devices of a process share its cores
                self._ceiling /= sum(d.process_index == first.process_index for d in devices)

    def describe(self) -> str:
        """Returns one line with the FLOPs of a step, the peak and the measured ceiling."""
        parts = [f"{self._flops / 1e12:.4g} TFLOP per step and device"]
        if self._device is None:
            parts.append(f"no MFU: the peak of {self._kind!r} is unknown")
        else:
            parts.append(f"peak {self._device.peak / 1e12:.0f} TFLOP/s (dense bfloat16)")
        if self._ceiling is not None:
            parts.append(f"measured ceiling {self._ceiling / 1e12:.4g} TFLOP/s")
        return ", ".join(parts)

    def compute_rates(self, steps_per_second: float) -> dict[str, float]:
        """Returns `tflops_per_device` and, if known, `mfu` and `ceiling_share` (0 to 1)."""
        if not self._flops:
            return {}
        speed = self._flops * steps_per_second
        rates = {"tflops_per_device": speed / 1e12}
        if self._device is not None:
            rates["mfu"] = speed / self._device.peak
        if self._ceiling is not None:
            rates["ceiling_share"] = speed / self._ceiling
        return rates
