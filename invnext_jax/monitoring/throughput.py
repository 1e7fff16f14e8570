"""What accelerators can do: dense bfloat16 peaks, memory, bandwidths; a ceiling measured here."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from invnext_jax.planning.devices import find_device

_SECONDS = 0.5  # at most, for the measured ceiling
_PRODUCTS = 5  # one after the other in a program, so that starting it does not count


def measure_ceiling(device: jax.Device, dtype: str, size: int | None = None) -> float:
    """FLOP/s of a large matrix product on one device, the best of some; takes below a second.

    Args:
        device: where it is measured.
        dtype: of the factors.
        size: rows and columns; None: 8192, on a CPU 1024.
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
        began = time.perf_counter()
        jax.block_until_ready(multiply(x))
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() - start > _SECONDS:
            break
    return 2.0 * _PRODUCTS * size**3 / best


class Throughput:
    """Turns steps a second into FLOP/s and shares of what the device can do.

    Args:
        flops: model FLOPs of a step, over all devices; 0 if unknown.
        devices: those of the mesh.
        dtype: of the matrix products.
        measure: whether the ceiling of a large matrix product is measured, for GPUs and CPUs.
    """

    def __init__(self, flops: float, devices: Sequence[jax.Device], dtype: str, *, measure: bool):
        first = next(d for d in devices if d.process_index == jax.process_index())
        self._flops = flops / len(devices)
        self._device = find_device(first.device_kind)
        self._kind, self._ceiling = first.device_kind, None
        if flops and measure and first.platform in ("cpu", "gpu"):
            self._ceiling = measure_ceiling(first, dtype)
            if first.platform == "cpu":  # the devices that a CPU is split into share its cores
                self._ceiling /= sum(d.process_index == first.process_index for d in devices)

    def describe(self) -> str:
        """A sentence on what the figures are compared with."""
        parts = [f"{self._flops / 1e12:.4g} TFLOP a step and device"]
        if self._device is None:
            parts.append(f"the peak of {self._kind!r} is not known, so there is no MFU")
        else:
            parts.append(f"peak {self._device.peak / 1e12:.0f} TFLOP/s (dense bfloat16)")
        if self._ceiling is not None:
            parts.append(f"measured ceiling {self._ceiling / 1e12:.4g} TFLOP/s")
        return ", ".join(parts)

    def rates(self, steps_per_second: float) -> dict[str, float]:
        """The record of a log: TFLOP/s of a device, `mfu` and `ceiling_share` as shares of 1."""
        if not self._flops:
            return {}
        speed = self._flops * steps_per_second
        found = {"tflops_per_device": speed / 1e12}
        if self._device is not None:
            found["mfu"] = speed / self._device.peak
        if self._ceiling is not None:
            found["ceiling_share"] = speed / self._ceiling
        return found
