"""What accelerators can do: dense bfloat16 peaks, memory, bandwidths; a ceiling measured here."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_SECONDS = 0.5  # at most, for the measured ceiling
_PRODUCTS = 5  # one after the other in a program, so that starting it does not count


class Device(NamedTuple):
    """One accelerator as the plan and the log see it.

    Attributes:
        peak: dense bfloat16 FLOP/s, without sparsity.
        memory: bytes of its memory.
        bandwidth: bytes/s of that memory.
        link: bytes/s that one device sends to its neighbours of a node or slice, one direction.
        node: devices joined by such links; beyond it `network` holds.
        network: bytes/s of one device to other nodes, one direction.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    node: int
    network: float


_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12
# From the data sheets of NVIDIA (A100, H100 SXM, H200, B200, L40S; a network card of 200 or
# 400 Gbit/s for each GPU) and Google's pages "TPU v4", "v5e", "v5p", "v6e" (interchip links: all of
# a chip, one direction).
DEVICES = {
    "a100": Device(312 * _TFLOPS, 80 * _GB, 2.04 * _TB, 300 * _GB, 8, 25 * _GB),
    "h100": Device(989 * _TFLOPS, 80 * _GB, 3.35 * _TB, 450 * _GB, 8, 50 * _GB),
    "h200": Device(989 * _TFLOPS, 141 * _GB, 4.8 * _TB, 450 * _GB, 8, 50 * _GB),
    "b200": Device(2250 * _TFLOPS, 180 * _GB, 7.7 * _TB, 900 * _GB, 8, 50 * _GB),
    "l40s": Device(362 * _TFLOPS, 48 * _GB, 0.864 * _TB, 32 * _GB, 8, 25 * _GB),
    "v4": Device(275 * _TFLOPS, 32 * _GB, 1.2 * _TB, 300 * _GB, 4096, 6 * _GB),
    "v5e": Device(197 * _TFLOPS, 16 * _GB, 0.82 * _TB, 200 * _GB, 256, 6 * _GB),
    "v5p": Device(459 * _TFLOPS, 95 * _GB, 2.765 * _TB, 600 * _GB, 8960, 6 * _GB),
    "v6e": Device(918 * _TFLOPS, 32 * _GB, 1.64 * _TB, 448 * _GB, 256, 12 * _GB),
}
_KINDS = {  # part of `jax.Device.device_kind`, in lower case -> name in `DEVICES`; first hit counts
    "h200": "h200",
    "h100 pcie": "",  # other peaks than the SXM module's
    "h100 nvl": "",
    "h100": "h100",
    "b200": "b200",
    "l40s": "l40s",
    "a100": "a100",
    "tpu v4 lite": "",
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


def find_device(kind: str) -> Device | None:
    """What is known of a `jax.Device.device_kind`, or None."""
    for part, name in _KINDS.items():
        if part in kind.lower():
            return DEVICES.get(name)
    return None


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
