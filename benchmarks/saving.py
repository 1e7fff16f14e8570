"""Measures the cost of saving a checkpoint: blocked time, background work and host memory.

    python benchmarks/saving.py [--steps=3] [--saves=3] [--interval=100]

The baseline is Orbax's checkpoint manager with the same state, without this package's checksums,
policies and checks. The last line is a JSON object. The reported fraction of the step time assumes
that training loses all of the blocked time, and the background CPU time divided by the number of
cores.
"""

import contextlib
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import app, flags, logging

from configs import stage1
from invnext_jax import train
from invnext_jax.training import compilation
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.workers.process_worker import count_cores

_STEPS = flags.DEFINE_integer("steps", 3, "Number of steps to time.")
_SAVES = flags.DEFINE_integer("saves", 3, "Number of saves to time.")
_INTERVAL = flags.DEFINE_integer("interval", 100, "Steps between saves, for the reported fraction.")
_WIDTH = flags.DEFINE_integer("width", 384, "Width of the encoder.")
ROOT = pathlib.Path(__file__).parents[1]


def mid_size_config(manifest: str) -> ml_collections.FrozenConfigDict:
    """Returns the tiny config with encoder width 384 and depth 12, and 8 frames of 112 pixels."""
    config = stage1.get_config("tiny")
    config.batch_size = 2
    config.total_steps = 1000
    config.data.update(manifest=manifest, size=112, short_side=128, workers=0)
    config.encoder.update(width=_WIDTH.value, depth=12, heads=6, mlp_width=4 * _WIDTH.value)
    config.encoder.update(patch=16, size=112)
    config.predictor.update(width=_WIDTH.value, depth=5, heads=6, mlp_width=2 * _WIDTH.value)
    config.decoder.update(width=768, depth=3)
    config.teacher.size = 56  # 7 x 7 patches of 8 pixels; the encoder has the same grid
    config.checkpoint.every_steps = 1000
    config.log.watchdog_minutes = 0.0
    return ml_collections.FrozenConfigDict(config)


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def sample_memory() -> Iterator[list[int]]:
    """Appends `resident_bytes()` to the yielded list every 5 ms inside the `with` block."""
    samples, end = [resident_bytes()], threading.Event()

    def sample() -> None:
        while not end.wait(0.005):
            samples.append(resident_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def measure(save: Callable[[int], None], wait: Callable[[], None], first: int) -> dict[str, float]:
    """Returns medians over saves: blocked, total and CPU seconds, and additional memory bytes."""
    rows = []
    for step in range(first, first + _SAVES.value):
        with sample_memory() as samples:
            start, busy = time.perf_counter(), time.process_time()
            save(step)
            blocked = time.perf_counter() - start
            wait()
            rows.append(
                {
                    "blocked_s": blocked,
                    "total_s": time.perf_counter() - start,
                    "cpu_s": time.process_time() - busy,
                    "extra_bytes": max(samples) - samples[0],
                }
            )
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main(argv: Sequence[str]) -> None:
    """Runs both measurements and prints them."""
    del argv
    logging.set_verbosity(logging.WARNING)
    compilation.enable_cache()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = pathlib.Path(folder)
        world = [sys.executable, str(ROOT / "launch/make_world.py"), f"--out={base / 'world'}"]
        subprocess.run([*world, "--split=train", "--videos=8"], check=True, capture_output=True)
        run = train.prepare(mid_size_config(str(base / "world/train.csv")), base / "run", stack)
        batch = mesh_lib.shard_batch(next(run.data_iter), run.mesh)
        arguments = run.frozen, batch, run.root_key, run.schedule
        train_step = run.training.compile_step(run.mesh, run.state, *arguments)
        seconds, state = [], run.state
        for _ in range(_STEPS.value + 1):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(train_step(state, *arguments))
            seconds.append(time.perf_counter() - start)
        step_s = statistics.median(seconds[1:])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        package = measure(
            lambda step: run.checkpointer.save(step, state, run.position),
            run.checkpointer.wait,
            first=1,
        )
        manager = stack.enter_context(ocp.CheckpointManager(base / "orbax"))
        orbax = measure(
            lambda step: manager.save(step, args=ocp.args.StandardSave(state)),
            manager.wait_until_finished,
            first=1,
        )
    cores = count_cores()
    interval = _INTERVAL.value * step_s
    result = {"state_bytes": size, "step_s": step_s, "interval_steps": _INTERVAL.value}
    for name, row in (("invnext_jax", package), ("orbax", orbax)):
        share = (row["blocked_s"] + row["cpu_s"] / cores) / interval
        ratio = row["extra_bytes"] / size
        print(
            f"{name:11} blocks {row['blocked_s']:.3f} s, {row['total_s']:.2f} s in total, "
            f"{row['cpu_s']:.2f} s of CPU time, {ratio:.2f} x the state's size in extra memory; "
            f"{100 * share:.2f} % of {_INTERVAL.value} steps"
        )
        result[name] = {**row, "share": share, "memory_ratio": ratio}
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
