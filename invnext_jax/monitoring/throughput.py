"""Measures the FLOP/s of a run relative to the device's peak and to a matrix product."""

import functools
import time
from collections.abc import Mapping, Sequence

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
    # The same precision as in the models, see `dot_general.select_precision`.
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    x = jax.jit(lambda: jnp.ones((size, size), dtype), out_shardings=put)()

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        product = functools.partial(jnp.matmul, precision=precision)
        return jax.lax.fori_loop(0, _PRODUCTS, lambda _, y: product(x, y) * (1.0 / size), x)

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

    MFU and the share are the time that the matrix products of a step would take at the full rate of
    their dtype, divided by the time of the step. Products in float32 are thus compared with the
    float32 rate.

    Args:
        flops: dict from the dtype of the products ("float32" and "bfloat16") to the model FLOPs of
            a step, summed over all devices. All 0 if unknown.
        devices: devices of the mesh.
        measure: whether to measure the ceiling, the FLOP/s of a large matrix product of each dtype,
            on GPUs and CPUs.
    """

    def __init__(self, flops: Mapping[str, float], devices: Sequence[jax.Device], *, measure: bool):
        first = next(d for d in devices if d.process_index == jax.process_index())
        self._flops = {dtype: count / len(devices) for dtype, count in flops.items()}
        self._device = find_device(first.device_kind)
        self._kind, self._ceilings = first.device_kind, {}
        if measure and first.platform in ("cpu", "gpu"):
            # The CPU devices of a process share its cores.
            shared = sum(d.process_index == first.process_index for d in devices)
            shared = shared if first.platform == "cpu" else 1
            for dtype in (name for name, count in flops.items() if count):
                self._ceilings[dtype] = measure_matmul_flops(first, dtype) / shared

    def describe(self) -> str:
        """Returns one line with the FLOPs of a step, the peak and the measured ceiling."""
        parts = [f"{sum(self._flops.values()) / 1e12:.4g} TFLOP per step and device"]
        if self._device is None:
            parts.append(f"no MFU: the peak of {self._kind!r} is unknown")
        else:
            parts.append(f"peak {self._device.peak / 1e12:.0f} TFLOP/s (dense bfloat16)")
            if self._flops.get("float32"):
                parts.append(f"{self._device.float32_peak / 1e12:.0f} TFLOP/s (float32)")
        for dtype, ceiling in self._ceilings.items():
            parts.append(f"measured ceiling {ceiling / 1e12:.4g} TFLOP/s ({dtype})")
        return ", ".join(parts)

    def compute_rates(self, steps_per_second: float) -> dict[str, float]:
        """Returns `tflops_per_device` and, if known, `mfu` and `ceiling_share` (0 to 1)."""
        total = sum(self._flops.values())
        if not total:
            return {}
        rates = {"tflops_per_device": total * steps_per_second / 1e12}
        if self._device is not None:
            rates["mfu"] = self._device.product_seconds(self._flops) * steps_per_second
        if self._ceilings:
            seconds = sum(self._flops[dtype] / rate for dtype, rate in self._ceilings.items())
            rates["ceiling_share"] = seconds * steps_per_second
        return rates
