"""Converts the front camera of Waymo Open (version 2) to images and boxes for the evaluation.

    python launch/convert_waymo.py --folder=waymo/validation --out=data/waymo/val

To resume an interrupted conversion, repeat the command.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.dataset_prep import waymo

_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder of a split, with camera_image and camera_box.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
_SHORT_SIDE = flags.DEFINE_integer(
    "short_side", 448, "Shorter side of the images in pixels; 0 copies the original files."
)


def main(argv: Sequence[str]) -> None:
    """Converts the segments and prints the file of boxes."""
    del argv
    print(waymo.convert(_FOLDER.value, _OUT.value, short_side=_SHORT_SIDE.value))


if __name__ == "__main__":
    errors.run_command(main, local_paths=["folder", "out"])
