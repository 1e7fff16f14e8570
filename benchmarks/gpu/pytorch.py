"""The PyTorch step on a GPU, with a chosen attention kernel, and which kernels really ran."""

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import pytorch_step, synthetic_step

# The first kernel is used where it supports the inputs. Only the later ones support the mask of
# local attention.
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
OTHERS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PREFIX = "aten::_scaled_dot_product_"


def measure_pytorch(
    stage: str, size: str, *, clips: int, steps: int, kernel: str, compiled: bool
) -> dict:
    """Trains a few steps in PyTorch.

    Args:
      stage: "stage1" or "stage2".
      size: variant of the config.
      clips: clips per step, as in the JAX step that it is compared with.
      steps: number of timed steps.
      kernel: preferred attention kernel, a key of `KERNELS`.
      compiled: whether to use `torch.compile(mode="max-autotune")`.

    Returns:
      A row of the table. "ran" has the number of forward calls of each attention kernel in a step.
    """
    config = synthetic_step.CONFIGS[stage].get_config(size)
    config.batch_size = clips
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")  # as in the JAX step: no TF32
    step = pytorch_step.PytorchStep(
        config,
        synthetic_step.make_batch(config)["video"],
        dtype=config.dtype,
        compiled=compiled,
        mode="max-autotune" if compiled else None,
        device=device,
    )
    with sdpa_kernel([KERNELS[kernel], *OTHERS], set_priority=True):
        step()
        step()
        times = [_time(step) for _ in range(steps)]
        ran = count_kernels(step)
    seconds = statistics.median(times)
    row = {"stage": stage, "size": size, "kernel": kernel, "compiled": compiled, "clips": clips}
    return row | {
        "seconds": float(f"{seconds:.4g}"),
        "ran": ", ".join(f"{name} {count}" for name, count in ran.items()),
        "torch": torch.__version__,
        "wrong": [],
    }


def _time(step):
    start = time.perf_counter()
    step()  # reads the loss, and so waits for the device
    return time.perf_counter() - start


def count_kernels(step) -> dict[str, int]:
    """Runs a step and returns the number of forward calls of each attention kernel."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    return {
        event.key.removeprefix(PREFIX): event.count
        for event in profiled.key_averages()
        if event.key.startswith(PREFIX) and not event.key.endswith("backward")
    }
