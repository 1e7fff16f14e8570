"""Cost of a small training step over the number of frames, on one or several simulated devices.

python -m benchmarks.long_video                # one device
python -m benchmarks.long_video --sequence=4   # the tokens of each clip are split over four devices

With several devices, both values of `config.sequence_attention` are measured. The last line is a
JSON object.
"""

import argparse
import json
import os
import sys
import time

FRAMES = (8, 16, 32, 64, 128)


def main() -> None:
    """Runs the benchmark and prints its result as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence", type=int, default=1, help="number of devices")
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage2"])
    parser.add_argument("--frames", nargs="+", type=int, default=FRAMES)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = str(flags.sequence)
    choices = ("gather", "all_to_all") if flags.sequence > 1 else ("gather",)
    rows = []
    for stage in flags.stages:
        for frames in flags.frames:
            for choice in choices:
                rows.append(measure(stage, frames, flags.sequence, choice, flags.rounds))
                print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows))


def measure(stage: str, frames: int, devices: int, choice: str, rounds: int) -> dict:
    """Returns the cost of a step: seconds of CPU time, bytes of memory, and sent bytes by kind."""
    from benchmarks import synthetic_step
    from invnext_jax.planning import collectives, program

    step = synthetic_step.make_step(small_config(stage, frames, devices, choice))
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    sent: dict[str, int] = {}
    text = step.compiled.as_text()
    for found in collectives.read_collectives(program.read_program(text), devices):
        sent[found.kind] = sent.get(found.kind, 0) + found.sent_bytes
    return {
        "stage": stage,
        "frames": frames,
        "devices": devices,
        "sequence_attention": choice,
        "seconds": round(min(seconds[1:]), 3),
        "temporary_mb": round(step.compiled.memory_analysis().temp_size_in_bytes / 1e6, 1),
        "sent_mb": {kind: round(size / 1e6, 2) for kind, size in sorted(sent.items())},
    }


def small_config(stage: str, frames: int, devices: int, choice: str):
    """Returns a config of width 64 with 64 tokens per frame and one clip per step."""
    from benchmarks import synthetic_step

    config = synthetic_step.mid_config(stage)
    config.batch_size, config.scan_unroll = 1, 1
    config.data.frames = frames
    config.encoder.update(width=64, depth=2, heads=4, mlp_width=256, pool_heads=4)
    config.predictor.update(width=64, depth=2, heads=4, mlp_width=256)
    config.decoder.update(depth=1, width=64)
    config.teacher.update(width=64, depth=2, heads=4, mlp_width=256, taps=2)
    config.mesh.sequence, config.sequence_attention = devices, choice
    return config


if __name__ == "__main__":
    main()
