"""Checks and measurements that need a GPU: `make gpu-check`, or python -m benchmarks.gpu_check.

It compares the attention kernels with the unfused attention, trains both stages at full size for a
few steps, and measures clips per second, model FLOPs utilization and memory. It also checks that
the compiled program calls cuDNN's attention. It writes docs/performance-gpu.md, prints a JSON
object as its last line, and exits with status 1 if a check fails. The clips are random, so it needs
only jax, flax, optax, einops, numpy and ml_collections.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import synthetic_step
from invnext_jax.models import attention
from invnext_jax.monitoring import throughput
from invnext_jax.planning import devices

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "performance-gpu.md"
# (queries, keys, head width, attention window on each side) of the encoder, the giant teacher, the
# 1B encoder, and the predictor with global and local attention and in its last layer.
SHAPES = (
    *((1028, 1028, 64, None), (256, 256, 96, None), (1028, 1028, 88, None)),
    *((4100, 4100, 64, None), (4100, 4100, 64, 64), (3276, 4100, 64, None)),
)
CUDNN = "__cudnn$fmha"


def parse(arguments):
    """Parses the command-line flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage2"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--batch", type=int, default=32, help="clips per device; halved until they fit"
    )
    parser.add_argument("--remat", default="none", help="none, dots or full")
    parser.add_argument(
        "--side", type=int, default=8192, help="rows and columns of the matrix product"
    )
    parser.add_argument("--out", type=pathlib.Path, default=PAGE)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs all checks, writes the page, and exits with status 1 if a check failed."""
    flags = parse(arguments)
    wrong = []
    kernels = [check_kernel(*shape) for shape in SHAPES]
    on_gpu = jax.default_backend() == "gpu"
    wrong += [f"kernel {row['shape']} is off by {row['error']}" for row in kernels if row["wrong"]]
    if on_gpu:
        wrong += [f"cuDNN is not used for {row['shape']}" for row in kernels if not row["cudnn"]]
    ceiling = throughput.measure_matmul_flops(jax.devices()[0], "bfloat16", flags.side) / 1e12
    log(f"matrix product: {ceiling:.1f} TFLOP/s")
    rows = []
    for size in flags.sizes:
        for stage in flags.stages:
            row = check_stage(stage, size, flags, ceiling)
            log(str(row))
            rows.append(row)
            name = f"{stage} {size}"
            if row.get("failed") or not np.isfinite(row["loss"]).all():
                wrong.append(f"{name}: {row.get('failed') or 'the loss is not finite'}")
            elif on_gpu and not row["cudnn_calls"] and size != "tiny":
                wrong.append(f"{name}: its program does not call cuDNN attention")
    result = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "matmul_tflops": round(ceiling, 1),
        "peak_tflops": peak(),
        "kernels": kernels,
        "steps": rows,
        "wrong": wrong,
    }
    flags.out.write_text(page(result))
    log(f"wrote {flags.out}")
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


def check_kernel(n, m, width, window):
    """Compares output and gradients in bfloat16 with those of unfused attention in float32."""
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal((2, tokens, 4, width)), jnp.bfloat16)
        for tokens in (n, m, m, n)
    ]

    def product(q, k, v, out):
        y = attention.attend(q, k, v, window)
        return jnp.vdot(y.astype(jnp.float32), out.astype(jnp.float32)), y

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
    row |= {"error": round(max(errors), 5), "wrong": not max(errors) < 2e-2}
    log(str(row))
    return row


def peak():
    """Returns the peak dense bfloat16 TFLOP/s of this device, or None if unknown."""
    device = devices.find_device(jax.devices()[0].device_kind)
    return device and device.peak / 1e12


def check_stage(stage, size, flags, ceiling):
    """Trains a few steps, halving the batch size until it fits in memory."""
    clips = flags.batch
    while True:
        try:
            return run_stage(stage, size, clips, flags, ceiling)
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if clips > 1 and "RESOURCE_EXHAUSTED" in str(error):
                log(f"{stage} {size}: {clips} clips per device do not fit")
                clips //= 2
                continue
            return {"stage": stage, "size": size, "failed": str(error).splitlines()[0][:300]}


def run_stage(stage, size, clips, flags, ceiling):
    """Trains `flags.steps` steps and returns one row of the table."""
    config = synthetic_step.CONFIGS[stage].get_config(size)
    config.batch_size = clips * jax.device_count()
    config.remat = flags.remat
    step = synthetic_step.make_step(config)
    losses, times = [], []
    for _ in range(flags.steps):
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    # The first step also loads the program.
    seconds = statistics.median(times[1:] or times)
    rate = step.flops / seconds / jax.device_count() / 1e12
    memory = step.compiled.memory_analysis()
    return {
        "stage": stage,
        "size": size,
        "clips": clips,
        "remat": flags.remat,
        "seconds": round(seconds, 4),
        "clips_per_second": round(config.batch_size / seconds, 1),
        "tflops": float(f"{rate:.4g}"),
        "of_peak": peak() and round(rate / peak(), 3),
        "of_ceiling": round(rate / ceiling, 3),
        "gib": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30, 2),
        "cudnn_calls": step.compiled.as_text().count(CUDNN),
        "compile_seconds": round(step.compile_seconds, 1),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
    }


def page(result):
    """Formats docs/performance-gpu.md."""
    columns = "stage size clips remat seconds clips_per_second tflops of_peak of_ceiling gib"
    columns = [*columns.split(), "cudnn_calls", "compile_seconds", "loss"]
    lines = [
        "# Performance on a GPU",
        "",
        "Written by `make gpu-check`; [performance.md](performance.md) explains the columns.",
        "",
        f"{result['devices']} x {result['device']}, jax {result['jax']}. A large bfloat16 "
        f"matrix product reaches {result['matmul_tflops']} TFLOP/s; the peak of the data sheet is "
        f"{result['peak_tflops'] or 'unknown'}.",
        "",
        table(columns, result["steps"]),
        "",
        "Largest relative error of output and gradients of attention in bfloat16, compared with "
        "float32 without a fused kernel:",
        "",
        table(["shape", "cudnn", "error", "wrong"], result["kernels"]),
        "",
        *([f"Failed: {sentence}" for sentence in result["wrong"]] or ["All checks passed."]),
        "",
    ]
    return "\n".join(lines)


def table(columns, rows):
    """Formats dicts as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [
            str(row.get(name, row.get("failed", "") if name == "clips" else "")) for name in columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


log = functools.partial(print, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
