"""Writes clips of the embedded world as mp4 files with a manifest, captions and ground truths.

    python launch/make_world.py --out=data/world --split=train --videos=2000

The same command again goes on where it was stopped; a finished folder is left as it is.
"""

import os

from absl import app, flags

from invnext_jax import errors
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec

OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "train, val or test.")
VIDEOS = flags.DEFINE_integer("videos", None, "Number of clips.", required=True)
LEVEL = flags.DEFINE_string("level", "simple", "simple or full.")
SIZE = flags.DEFINE_integer("size", 32, "Pixels a side.")
FRAMES = flags.DEFINE_integer("frames", 8, "Frames a clip.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the world.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one a core.")


def main(argv):
    """Runs the command."""
    with errors.exit_on_user_error():
        if argv[1:]:
            raise errors.UserError(f"unknown arguments {argv[1:]}: write --flag=value")
        spec = WorldSpec(LEVEL.value, SIZE.value, FRAMES.value, SEED.value, SPLIT.value)
        workers = WORKERS.value or os.cpu_count() or 1
        manifest = write_world(spec, OUT.value, VIDEOS.value, workers=workers)
        print(f"{manifest}: {VIDEOS.value} clips")


if __name__ == "__main__":
    app.run(main)
