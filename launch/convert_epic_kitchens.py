"""Writes manifests of EPIC-KITCHENS-100 for action anticipation: clips that end before an action.

    python launch/convert_epic_kitchens.py --annotations=epic/annotations --videos=epic/videos \
        --out=data/ek100

docs/evaluation/datasets.md describes the layout of the files. Evaluate with
configs/eval/ek100_anticipation.py.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.evaluation.truth import epic_kitchens

_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "Folder with EPIC_100_train.csv and EPIC_100_validation.csv.",
    required=True,
)
_VIDEOS = flags.DEFINE_string(
    "videos", None, "Folder with <participant>/videos/<video>.MP4.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
_CONTEXT = flags.DEFINE_float("context", 4.0, "Length of the clips in seconds.", lower_bound=0.1)
_ANTICIPATION = flags.DEFINE_float(
    "anticipation",
    1.0,
    "Seconds between the end of a clip and the start of its action.",
    lower_bound=0.0,
)
_FROM_END = flags.DEFINE_bool(
    "from_end",
    False,
    "Measure this time from the end of the action, as the released code of V-JEPA 2 does.",
)
_FPS = flags.DEFINE_float(
    "fps", None, "Frames per second of annotations without time stamps.", lower_bound=1.0
)


def main(argv: Sequence[str]) -> None:
    """Writes both manifests and prints their names."""
    del argv
    found = epic_kitchens.write_manifests(
        _ANNOTATIONS.value,
        _VIDEOS.value,
        _OUT.value,
        fps=_FPS.value,
        context=_CONTEXT.value,
        anticipation=_ANTICIPATION.value,
        from_end=_FROM_END.value,
    )
    print(f"Wrote {' and '.join(map(str, found.values()))}.")


if __name__ == "__main__":
    errors.run_command(main, local_paths=["annotations", "videos", "out"])
