"""Measures the speed of a run: clips per second, wait for data, and FLOP/s.

FLOP/s are compared with the device's peak and with a matrix product.
"""

import functools
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.planning.devices import find_device

_MEASURE_SECONDS = 0.5  # upper bound on the time to measure the ceiling
_PRODUCTS = 5  # number of products in one program, so that the launch overhead is negligible
# Measurements of a host, in this order. Except for the decode rate, a higher value is worse.
QUANTITIES = ("step_seconds", "data_wait", "decode_rate", "dropped_videos", "failed_reads")


class StepTimer:
    """Measures clips per second and the share of time spent waiting for data."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._data_wait = 0.0
        self._step = None

    def add_data_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._data_wait += seconds

    def exclude(self, seconds: float) -> None:
        """Excludes a time from the current measurement."""
        self._start += seconds

    def restart(self, step: int) -> None:
        """Starts a new measurement after `step` steps."""
        self._start, self._data_wait, self._step = time.perf_counter(), 0.0, step

    def measure(self, step: int) -> dict[str, float]:
        """Ends the measurement after `step` steps and starts the next one.

        Returns:
          A dict with `clips_per_second` and `data_wait`, the share of time from 0 to 1.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        steps = step - self._step
        rates = {
            "clips_per_second": steps * self._batch_size / seconds,
            "data_wait": min(self._data_wait / seconds, 1.0),
        }
        self.restart(step)
        return rates


class HostTimer:
    """Measures the times of this host between logged steps.

    Its measurements end when a step is dispatched. Those of `StepTimer` end when the metrics of the
    step are read.
    """

    def __init__(self):
        self._decoded = (0, 0.0)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts a new measurement after `step` steps."""
        self._start, self._step, self._data_wait = time.perf_counter(), step, 0.0

    def add_data_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._data_wait += seconds

    def exclude(self, seconds: float) -> None:
        """Excludes a time from the current measurement."""
        self._start += seconds

    def measure(
        self, step: int, counts: Mapping[str, int], decoded: tuple[int, float]
    ) -> np.ndarray:
        """Ends the measurement after `step` steps and starts the next one.

        Args:
          step: number of the step that was just dispatched.
          counts: dropped videos and failed reads of this host so far.
          decoded: number of clips that this host has decoded so far, and the busy time in seconds
              (see `OrderedPool.work_done`).

        Returns:
          The measurements listed in `QUANTITIES`, float32 [5]. `data_wait` is a fraction of the
          time. The decode rate is the number of clips per second that the workers would deliver
          if they never waited; NaN if no clip was decoded.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        clips, busy = (new - old for new, old in zip(decoded, self._decoded, strict=True))
        rate = clips / busy if clips > 0 and busy > 0 else np.nan
        share = min(self._data_wait / seconds, 1.0)
        own = [counts.get(name, 0) for name in QUANTITIES[3:]]
        values = (seconds / max(step - self._step, 1), share, rate, *own)
        self._decoded = decoded
        self.restart(step)
        return np.array(values, np.float32)


def own_record(values: np.ndarray) -> dict[str, float]:
    """Returns the step time and the decode rate from a result of `HostTimer.measure`.

    Used in single-process runs, in which the record already contains the other numbers.
    """
    record = {
        name: float(values[QUANTITIES.index(name)]) for name in ("step_seconds", "decode_rate")
    }
    return {name: value for name, value in record.items() if not np.isnan(value)}


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
