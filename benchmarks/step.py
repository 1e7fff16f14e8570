"""Compares the training step with a PyTorch step of the same shapes, interleaved in one run.

python -m benchmarks.step                    # mid size, float32, both stages: the main result
python -m benchmarks.step --threads=1        # CPU time of one thread: less noise on a busy machine
python -m benchmarks.step --grow             # cost against number of frames, batch size and depth
python -m benchmarks.step --dtype=bfloat16 --compile_twin

The last line is a JSON object. A ratio above 1 means that the JAX step is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

DEPTHS, BATCHES, FRAMES = (6, 12, 24), (1, 2, 4), (8, 16, 32, 64)
# Makes glibc keep freed memory, for both frameworks; see docs/performance.md.
KEEP_MEMORY = ":".join(
    f"glibc.malloc.{name}"
    for name in ("arena_max=1", "mmap_max=0", "trim_threshold=-1", "hugetlb=1")
)


def parse(arguments):
    """Parses the command-line flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage2"])
    parser.add_argument(
        "--compile_twin", action="store_true", help="use torch.compile for the PyTorch step"
    )
    parser.add_argument("--no_twin", action="store_true", help="skip the PyTorch step")
    parser.add_argument(
        "--grow", action="store_true", help="measure cost by frames, batch size and depth"
    )
    parser.add_argument(
        "--only_compile", action="store_true", help="compile the steps into the cache and exit"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the benchmark and prints its result as JSON in the last line."""
    flags = parse(arguments)
    # XLA starts one thread per core that the process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if flags.only_compile:
        make_steps(flags)
        return
    if not flags.grow:
        # Compile in another process, because a heap fragmented by the compiler slows down each
        # step.
        command = [sys.executable, "-m", "benchmarks.step", *(arguments or sys.argv[1:])]
        subprocess.run([*command, "--only_compile"], check=True)
    print(json.dumps((grow if flags.grow else compare)(flags)))


def make_steps(flags):
    """Returns the compiled step and the config of each stage, by name."""
    from benchmarks import synthetic_step
    from invnext_jax.training import compilation

    compilation.enable_cache()  # training enables it too
    steps = {}
    for name in flags.stages:
        config = synthetic_step.mid_config(name)
        config.dtype = flags.dtype
        step = synthetic_step.make_step(config)
        steps[name] = step, config
        log(
            f"{name}: compiled in {step.compile_seconds:.1f} s, "
            f"{step.flops / 1e9:.1f} GFLOP per step"
        )
    return steps


def compare(flags):
    """Runs all programs once per round; returns the median and range of the per-round ratios."""
    programs, flops = matmuls(flags), {}
    for name, (step, config) in make_steps(flags).items():
        programs[name], flops[name] = step, step.flops
        if not flags.no_twin:
            from benchmarks import pytorch_step
            from benchmarks.synthetic_step import make_batch

            video = make_batch(config)["video"]
            programs[f"{name}_torch"] = pytorch_step.PytorchStep(
                config, video, dtype=flags.dtype, compiled=flags.compile_twin
            )
    seconds = measure(programs, flags)
    ratios = {}
    for name in flags.stages:
        if not flags.no_twin:
            ratios[f"{name}_vs_torch"] = divide(seconds[f"{name}_torch"], seconds[name])
        work = [flops[name] / MATMUL * matmul for matmul in seconds["matmul_jax"]]
        ratios[f"{name}_of_ceiling"] = divide(work, seconds[name])
    return {
        "ratios": {name: median for name, (median, _) in ratios.items()},
        "spread": {name: spread for name, (_, spread) in ratios.items()},
        "seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "gflops": {
            name: round(MATMUL / min(seconds[name]) / 1e9, 1)
            for name in seconds
            if name.startswith("matmul")
        },
        "clock": "cpu" if flags.threads == 1 else "wall",
        **{name: getattr(flags, name) for name in ("dtype", "threads", "rounds", "compile_twin")},
    }


SIDE = 2048
WARM_UP = 8  # number of rounds until the heap stops growing
MATMUL = 2.0 * SIDE**3  # FLOPs of one matrix product


def matmuls(flags):
    """Returns two functions that compute a large matrix product, in JAX and in PyTorch."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((SIDE, SIDE), flags.dtype)
    multiply = jax.jit(jnp.matmul)
    programs = {"matmul_jax": lambda: multiply(x, x).block_until_ready()}
    if not flags.no_twin:
        import torch

        torch.set_num_threads(flags.threads)
        y = torch.ones(SIDE, SIDE, dtype=getattr(torch, flags.dtype))
        programs["matmul_torch"] = lambda: y @ y
    return programs


def measure(programs, flags):
    """Returns the seconds of each program in each round, after `WARM_UP` rounds."""
    clock = time.process_time if flags.threads == 1 else time.perf_counter
    seconds = {name: [] for name in programs}
    for number in range(1 - WARM_UP, flags.rounds + 1):
        for name, program in programs.items():
            start = clock()
            program()
            if number > 0:
                seconds[name].append(clock() - start)
        if number > 0:
            log(
                f"round {number} of {flags.rounds}: "
                + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items())
            )
    return seconds


def divide(numerators, denominators):
    """Returns the median, minimum and maximum over rounds of numerator / denominator."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return round(statistics.median(ratios), 3), [round(min(ratios), 3), round(max(ratios), 3)]


def grow(flags):
    """Returns seconds and GFLOP per step for several frame counts, batch sizes and depths."""
    from benchmarks import synthetic_step

    rows = []
    for name in flags.stages:
        for field, values in (("frames", FRAMES), ("batch", BATCHES), ("depth", DEPTHS)):
            for value in values:
                config = synthetic_step.mid_config(name)
                config.dtype = flags.dtype
                if field == "frames":
                    config.data.frames = value
                elif field == "batch":
                    config.batch_size = value
                else:
                    config.encoder.depth = value
                step = synthetic_step.make_step(config)
                seconds = min(measure({name: step}, flags)[name])
                row = {"stage": name, field: value, "seconds": round(seconds, 3)}
                rows.append(row | {"gflop": round(step.flops / 1e9, 1)})
                log(str(rows[-1]))
    return {"grow": rows, "dtype": flags.dtype, "threads": flags.threads}


def log(text):
    """Prints progress to standard error; the result goes to standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:  # glibc reads it only when a process starts
        os.environ["GLIBC_TUNABLES"] = KEEP_MEMORY
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.step", *sys.argv[1:]])
    main()
