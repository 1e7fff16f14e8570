"""Steps of both stages on random clips: speed, memory, and the cost of sending new batches."""

import statistics
import time

import jax
import numpy as np

from benchmarks import synthetic_step
from benchmarks.gpu.kernels import CUDNN
from invnext_jax.planning import devices
from invnext_jax.training import mesh as mesh_lib


def measure_step(
    stage: str, size: str, *, clips: int, steps: int, overrides: dict | None = None
) -> dict:
    """Trains a few steps, with half of the clips as long as they do not fit into memory.

    Args:
      stage: "stage1" or "stage2".
      size: variant of the config.
      clips: clips per device.
      steps: number of steps. The first one is not timed, because it also loads the program.
      overrides: options by dotted name.

    Returns:
      A row of the table of steps, with the list of failed checks in "wrong".
    """
    while True:
        try:
            row = _run(stage, size, clips, steps, overrides or {})
            break
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if clips == 1 or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            clips //= 2
    name = f"{stage} {size}"
    row["wrong"] = []
    if not np.isfinite(row["loss"]).all():
        row["wrong"].append(f"{name}: the loss is not finite")
    if jax.default_backend() == "gpu" and not row["cudnn_calls"] and size != "tiny":
        row["wrong"].append(f"{name}: its program does not call cuDNN attention")
    return row


def _run(stage, size, clips, steps, overrides):
    config = synthetic_step.CONFIGS[stage].get_config(size)
    config.update({"batch_size": clips * jax.device_count(), "remat": "none"})
    config.update_from_flattened_dict(overrides)
    step = synthetic_step.make_step(config)
    losses, times = _time(step, steps)
    seconds = statistics.median(times)
    rate = step.flops / seconds / jax.device_count() / 1e12
    device = devices.find_device(jax.devices()[0].device_kind)
    memory = step.compiled.memory_analysis()
    return {
        "stage": stage,
        "size": size,
        "options": ", ".join(f"{name}={value}" for name, value in overrides.items()),
        "clips": clips,
        "seconds": float(f"{seconds:.4g}"),
        "clips_per_second": float(f"{config.batch_size / seconds:.4g}"),
        "tflops": float(f"{rate:.4g}"),
        "of_peak": device and round(rate * 1e12 / device.peak, 3),
        "gib": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30, 2),
        "new_batches": round(_time_new_batches(step, config, steps) / seconds, 3),
        "cudnn_calls": step.compiled.as_text().count(CUDNN),
        "compile_seconds": round(step.compile_seconds, 1),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
    }


def _time(step, steps):
    """Returns the losses, and the times of all steps but the first."""
    losses, times = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    return losses, times[1:] or times


def _time_new_batches(step, config, steps):
    """Returns the time per step if the host sends a batch for each step, as in training.

    The host sends the next batch while the devices compute, and reads the losses at the end.
    """
    mesh, host = mesh_lib.make_mesh(config.mesh), synthetic_step.make_batch(config)
    frozen, _, *rest = step.arguments
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        batch = mesh_lib.shard_batch(host, mesh)
        step.state, metrics = step.compiled(step.state, frozen, batch, *rest)
        losses.append(metrics["loss"])
    jax.block_until_ready(losses)
    return (time.perf_counter() - start) / steps
