"""Compares an evaluation with the bare forward passes that it needs.

    python -m benchmarks.evaluation [--rounds=3] [--train=64] [--val=32] [--quick]

The evaluation is a linear probe and nearest neighbors, as `launch/evaluate.py` runs them: it reads
mp4 files, extracts features and fits the probes. The bare passes run the same encoder as often on
one batch in memory. Both use the compiled programs of an unmeasured first round. They alternate, so
that other load on the machine affects both equally. The last line is a JSON object; `ratio` is the
median over the rounds of the ratio of the CPU times, and `wall_ratio` that of the wall times.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from configs import stage1
from configs.eval.tasks import linear_probe
from invnext_jax.checkpointing import run_metadata
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.features import FeatureOptions
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.spec import WorldSpec
from invnext_jax.weights import export

FRAMES, BATCH = 8, 8


def write_encoder(path: Path, size: int, width: int, depth: int) -> Path:
    """Writes an encoder with random parameters for clips of `FRAMES` frames."""
    config = stage1.get_config("tiny")
    config.encoder.update(width=width, depth=depth, heads=width // 64, mlp_width=4 * width)
    config.encoder.update(size=size, frames=FRAMES, patch=16)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(path, {"encoder": pretrained.init_encoder(config, seed=0)}, about)
    return path


def make_bare_passes(checkpoint: Path, videos: list[int], size: int) -> Callable[[], None]:
    """Returns a function that encodes a batch in memory as often as an evaluation does."""
    encoder = pretrained.load_frozen(str(checkpoint))
    run = jax.jit(extraction.make_extractor(encoder, FeatureOptions()))
    params = jax.device_put(encoder.params)
    shape = (BATCH, FRAMES, size, size, 3)
    video_bthwc = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batches = sum(-(-count // BATCH) for count in videos)

    def run_passes() -> None:
        for _ in range(batches):
            jax.block_until_ready(run(params, video_bthwc, np.ones(BATCH, bool)))

    return run_passes


def make_evaluation(checkpoint: Path, folder: Path, manifests: list[Path]) -> Callable[[], None]:
    """Returns a function that evaluates the encoder in a new workdir."""
    config = linear_probe.get_config("tiny")
    config.update(checkpoint=str(checkpoint), controls=False, batch_size=BATCH)
    config.update(evaluators=("linear_probe", "knn"), tasks=("shape", "motion"))
    config.update(train_manifest=str(manifests[0]), val_manifest=str(manifests[1]))

    def run_evaluation() -> None:
        evaluate.evaluate_checkpoint(config, tempfile.mkdtemp(dir=folder))

    return run_evaluation


def measure(function: Callable[[], None]) -> tuple[float, float]:
    """Returns the CPU seconds of this process and its children, and the wall seconds."""

    def cpu_seconds() -> float:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    cpu, wall = cpu_seconds(), time.perf_counter()
    function()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=64, help="training videos")
    parser.add_argument("--val", type=int, default=32, help="held-out videos")
    parser.add_argument("--size", type=int, default=112, help="height and width in pixels")
    parser.add_argument("--width", type=int, default=384, help="width of the encoder")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the encoder")
    parser.add_argument("--quick", action="store_true", help="smoke test with tiny sizes")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(rounds=1, train=16, val=8, size=32, width=64, depth=1)
    return arguments


def main() -> None:
    """Measures alternating rounds and prints the ratios."""
    arguments = parse_arguments()
    flags.FLAGS.mark_as_parsed()  # grain reads absl flags
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        sizes = arguments.size, arguments.width, arguments.depth
        checkpoint = write_encoder(folder / "encoder.safetensors", *sizes)
        counts = {"train": arguments.train, "val": arguments.val}
        manifests = [
            write_world(
                WorldSpec(size=arguments.size, frames=FRAMES, split=split),
                folder / "world",
                count,
                progress=False,
            )
            for split, count in counts.items()
        ]
        bare = make_bare_passes(checkpoint, list(counts.values()), arguments.size)
        evaluation = make_evaluation(checkpoint, folder, manifests)
        for function in (bare, evaluation):
            measure(function)
        rounds = []
        for number in range(arguments.rounds):
            functions = (bare, evaluation) if number % 2 == 0 else (evaluation, bare)
            found = {function.__name__: measure(function) for function in functions}
            rounds.append((found["run_passes"], found["run_evaluation"]))
            (bare_cpu, bare_wall), (cpu, wall) = rounds[-1]
            print(
                f"round {number + 1}: bare {bare_cpu:.1f} s CPU, {bare_wall:.1f} s; "
                f"evaluation {cpu:.1f} s CPU, {wall:.1f} s"
            )
    ratios = {
        name: round(statistics.median(other[i] / own[i] for own, other in rounds), 3)
        for i, name in enumerate(("ratio", "wall_ratio"))
    }
    print(json.dumps({**ratios, **vars(arguments), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
