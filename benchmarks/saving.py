"""What a checkpoint costs the mid-size run: time of the loop, work in the background, host memory.

    python benchmarks/saving.py [--steps=3] [--saves=3] [--interval=100]

The peer is Orbax's own manager with the same state, without sums, policies and checks. The last
line is one JSON object. The share of step time counts what the loop waits for and, as if it all
came out of the steps' time, the processor time of the background divided by the cores.
"""

import contextlib
import json
import os
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

_STEPS = flags.DEFINE_integer("steps", 3, "Steps that are timed.")
_SAVES = flags.DEFINE_integer("saves", 3, "Saves that are timed.")
_INTERVAL = flags.DEFINE_integer("interval", 100, "Steps between saves, for the share.")
_WIDTH = flags.DEFINE_integer("width", 384, "Of the encoder.")
ROOT = pathlib.Path(__file__).parents[1]


def mid_size(manifest: str) -> ml_collections.FrozenConfigDict:
    """The tiny run's parts around an encoder of width 384 and depth 12, 8 frames of 112 pixels."""
    config = stage1.get_config("tiny")
    config.batch_size = 2
    config.total_steps = 1000
    config.data.update(manifest=manifest, size=112, short_side=128, workers=0)
    config.encoder.update(width=_WIDTH.value, depth=12, heads=6, mlp_width=4 * _WIDTH.value)
    config.encoder.update(patch=16, size=112)
    config.predictor.update(width=_WIDTH.value, depth=5, heads=6, mlp_width=2 * _WIDTH.value)
    config.decoder.update(width=768, depth=3)
    config.teacher.size = 56  # the tiny teacher's 7 by 7 patches are those of the encoder
    config.checkpoint.every_steps = 1000
    config.log.watchdog_minutes = 0.0
    return ml_collections.FrozenConfigDict(config)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def watch_memory() -> Iterator[list[int]]:
    """Within it, the list gets samples of `resident` every 5 ms."""
    samples, end = [resident()], threading.Event()

    def sample() -> None:
        while not end.wait(0.005):
            samples.append(resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def measure(save: Callable[[int], None], wait: Callable[[], None], first: int) -> dict[str, float]:
    """Medians over saves: seconds that the caller waits, seconds in all, processor, extra bytes."""
    rows = []
    for step in range(first, first + _SAVES.value):
        with watch_memory() as samples:
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
    """Measures."""
    del argv
    logging.set_verbosity(logging.WARNING)
    compilation.enable_cache()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = pathlib.Path(folder)
        world = [sys.executable, str(ROOT / "launch/make_world.py"), f"--out={base / 'world'}"]
        subprocess.run([*world, "--split=train", "--videos=8"], check=True, capture_output=True)
        run = train.prepare(mid_size(str(base / "world/train.csv")), base / "run", stack)
        batch = mesh_lib.shard_batch(next(run.data_iter), run.mesh)
        arguments = run.state, run.frozen, batch, run.root_key
        train_step = run.training.compile_step(run.mesh, *arguments)
        seconds, state = [], run.state
        for _ in range(_STEPS.value + 1):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(train_step(state, run.frozen, batch, run.root_key))
            seconds.append(time.perf_counter() - start)
        step_s = statistics.median(seconds[1:])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        ours = measure(
            lambda step: run.checkpointer.save(step, state, run.position),
            run.checkpointer.wait,
            first=1,
        )
        peer = stack.enter_context(ocp.CheckpointManager(base / "peer"))
        plain = measure(
            lambda step: peer.save(step, args=ocp.args.StandardSave(state)),
            peer.wait_until_finished,
            first=1,
        )
    cores = len(os.sched_getaffinity(0))
    interval = _INTERVAL.value * step_s
    result = {"state_bytes": size, "step_s": step_s, "interval_steps": _INTERVAL.value}
    for name, row in (("ours", ours), ("orbax", plain)):
        share = (row["blocked_s"] + row["cpu_s"] / cores) / interval
        ratio = row["extra_bytes"] / size
        print(
            f"{name:6} waits {row['blocked_s']:.3f} s, {row['total_s']:.2f} s in all, "
            f"{row['cpu_s']:.2f} s of processor, {ratio:.2f} x the state's bytes of memory; "
            f"{100 * share:.2f} % of {_INTERVAL.value} steps"
        )
        result[name] = {**row, "share": share, "memory_ratio": ratio}
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
