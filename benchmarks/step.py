"""Our training steps against a PyTorch twin of the same shapes, interleaved in one run.

python -m benchmarks.step                # mid size, float32, both stages: what counts
python -m benchmarks.step --threads=1        # CPU time of one thread: steady on a busy machine
python -m benchmarks.step --grow             # how our cost grows with frames, batch and depth
python -m benchmarks.step --dtype=bfloat16 --compile_twin

The last line is one JSON object. A ratio above 1 means that ours is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

DEPTHS, BATCHES, FRAMES = (6, 12, 24), (1, 2, 4), (8, 16, 32, 64)
# Lets the process keep freed memory, ours and the twin's, see docs/performance.md.
KEPT_MEMORY = ":".join(
    f"glibc.malloc.{name}"
    for name in ("arena_max=1", "mmap_max=0", "trim_threshold=-1", "hugetlb=1")
)


def parse(arguments):
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage2"])
    parser.add_argument("--compile_twin", action="store_true", help="the twin by torch.compile")
    parser.add_argument("--no_twin", action="store_true")
    parser.add_argument("--grow", action="store_true", help="cost by frames, batch and depth")
    parser.add_argument("--only_compile", action="store_true", help="fill the cache of programs")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Prints what is measured, and a JSON object in the end."""
    flags = parse(arguments)
    # XLA takes as many threads as there are cores that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if flags.only_compile:
        make_steps(flags)
        return
    if not flags.grow:
        # The compiler's leftovers between large arrays would cost each later step some percent.
        command = [sys.executable, "-m", "benchmarks.step", *(arguments or sys.argv[1:])]
        subprocess.run([*command, "--only_compile"], check=True)
    print(json.dumps((grow if flags.grow else compare)(flags)))


def make_steps(flags):
    """Our step of each stage with its config, by name."""
    from benchmarks import ours
    from invnext_jax.training import compilation

    compilation.enable_cache()  # as training does
    made = {}
    for name in flags.stages:
        config = ours.mid_config(name)
        config.dtype = flags.dtype
        made[name] = ours.make_step(config), config
        step = made[name][0]
        tell(
            f"{name}: ours compiled in {step.compile_seconds:.1f} s, "
            f"{step.flops / 1e9:.1f} GFLOP a step"
        )
    return made


def compare(flags):
    """Rounds of everything in turn; medians of the ratios within a round, with their spread."""
    programs, flops = ceilings(flags), {}
    for name, (step, config) in make_steps(flags).items():
        programs[name], flops[name] = step, step.flops
        if not flags.no_twin:
            from benchmarks import ours, twin

            video = ours.batch_of(config)["video"]
            programs[f"{name}_torch"] = twin.Step(
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
        "seconds": {name: round(statistics.median(taken), 4) for name, taken in seconds.items()},
        "gflops": {
            name: round(MATMUL / min(seconds[name]) / 1e9, 1)
            for name in seconds
            if name.startswith("matmul")
        },
        "clock": "cpu" if flags.threads == 1 else "wall",
        **{name: getattr(flags, name) for name in ("dtype", "threads", "rounds", "compile_twin")},
    }


SIDE = 2048
WARM_UP = 8  # rounds until the process holds all the memory that it takes
MATMUL = 2.0 * SIDE**3  # floating point operations of the plain matrix product


def ceilings(flags):
    """A plain large matrix product of JAX and of PyTorch."""
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
    """Seconds of each program by round, after `WARM_UP` rounds that do not count."""
    clock = time.process_time if flags.threads == 1 else time.perf_counter
    seconds = {name: [] for name in programs}
    for number in range(1 - WARM_UP, flags.rounds + 1):
        for name, program in programs.items():
            start = clock()
            program()
            if number > 0:
                seconds[name].append(clock() - start)
        if number > 0:
            tell(
                f"round {number} of {flags.rounds}: "
                + ", ".join(f"{name} {taken[-1]:.3f} s" for name, taken in seconds.items())
            )
    return seconds


def divide(above, below):
    """Median of the ratios by round, and the least and the largest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return round(statistics.median(ratios), 3), [round(min(ratios), 3), round(max(ratios), 3)]


def grow(flags):
    """Seconds and GFLOP a step by frames, batch and depth, each with the rest as at mid size."""
    from benchmarks import ours

    rows = []
    for name in flags.stages:
        for field, values in (("frames", FRAMES), ("batch", BATCHES), ("depth", DEPTHS)):
            for value in values:
                config = ours.mid_config(name)
                config.dtype = flags.dtype
                if field == "frames":
                    config.data.frames = value
                elif field == "batch":
                    config.batch_size = value
                else:
                    config.encoder.depth = value
                step = ours.make_step(config)
                seconds = min(measure({name: step}, flags)[name])
                row = {"stage": name, field: value, "seconds": round(seconds, 3)}
                rows.append(row | {"gflop": round(step.flops / 1e9, 1)})
                tell(str(rows[-1]))
    return {"grow": rows, "dtype": flags.dtype, "threads": flags.threads}


def tell(sentence):
    """Progress, apart from the result."""
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:  # read as a process starts
        os.environ["GLIBC_TUNABLES"] = KEPT_MEMORY
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.step", *sys.argv[1:]])
    main()
