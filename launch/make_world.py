"""Writes clips of the synthetic world as mp4 files with a manifest, captions and ground truth.

    python launch/make_world.py --out=data/world --split=train --videos=2000

With --anticipation_videos, clips of the level "anticipation" are also written, to OUT/anticipation.
Repeating the command resumes an interrupted run and leaves a finished folder unchanged. A larger
number of videos adds clips. A smaller number or other options are errors.
"""

import dataclasses
import os
from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.spec import ANTICIPATION, WorldSpec
from invnext_jax.workers import process_worker as workers

_OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Split: train, val or test.")
_VIDEOS = flags.DEFINE_integer("videos", None, "Number of clips.", required=True)
_LEVEL = flags.DEFINE_string("level", "simple", "Level of the world: simple, full or anticipation.")
_SIZE = flags.DEFINE_integer("size", 32, "Side of a frame in pixels.")
_FRAMES = flags.DEFINE_integer("frames", 8, "Frames per clip.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the world.")
_OBJECT_SIZE = flags.DEFINE_float("object_size", 1.0, "Factor on the size of the main object.")
_SPEED = flags.DEFINE_float("speed", 1.0, "Factor on the speed of the main object.")
_CLUTTER = flags.DEFINE_integer(
    "clutter", None, "Number of distractors; the default is 0, or 0 to 2 on the full level."
)
_ANTICIPATION_VIDEOS = flags.DEFINE_integer(
    "anticipation_videos", 0, "Number of clips of the level anticipation in OUT/anticipation."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Number of processes; 0: one per CPU core.", lower_bound=0
)


def main(argv: Sequence[str]) -> None:
    """Writes the clips and prints the paths of the manifests."""
    del argv
    spec = WorldSpec(
        level=_LEVEL.value,
        size=_SIZE.value,
        frames=_FRAMES.value,
        seed=_SEED.value,
        split=_SPLIT.value,
        object_size=_OBJECT_SIZE.value,
        speed=_SPEED.value,
        clutter=_CLUTTER.value,
    )
    processes = _WORKERS.value or workers.count_cores()
    worlds = [(spec, _OUT.value, _VIDEOS.value)]
    if _ANTICIPATION_VIDEOS.value:
        spec = dataclasses.replace(spec, level=ANTICIPATION)
        worlds.append((spec, os.path.join(_OUT.value, ANTICIPATION), _ANTICIPATION_VIDEOS.value))
    for spec, folder, videos in worlds:
        manifest = write_world(spec, folder, videos, workers=processes)
        print(f"{manifest}: {videos} clips")


if __name__ == "__main__":
    errors.run_command(main, local_paths=["out"])
