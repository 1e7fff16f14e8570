"""Invalid evaluations of a sweep are refused before any training."""

import contextlib

import ml_collections
import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps import evaluation_checks
from invnext_jax.sweeps.arms import Arm, Step, chain
from invnext_jax.sweeps.expansion import expand
from invnext_jax.sweeps.sweep_file import Sweep

STAGE1 = "configs/stage1.py:tiny"
PROBE = "configs/eval/tasks/linear_probe.py:tiny"


def expand_arm(tmp_path, evaluation):
    steps = (*chain(stage1=STAGE1), evaluation)
    return expand(Sweep("test", (Arm("a", steps),), {}), tmp_path / "sweep")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("color", "colour")}, "config.tasks contains 'colour', but .* has no column"),
        ({"val_manifest": "other.csv"}, "have no label_<task> column in common"),
        ({"val_manifest": "train.csv"}, "is also in config.train_manifest"),
        ({"features.views": 2}, "config.features.views=2 must be 1 or 3"),
        ({"knn.neighbors": (0,), "evaluators": ("knn",)}, "config.knn.neighbors"),
    ],
)
def test_invalid_evaluations_are_found_before_any_training(tmp_path, changes, sentence):
    for name, label in (("train", "color"), ("val", "color"), ("other", "sound")):
        rows = "".join(f"{name}{i}.mp4,mine,{i % 2}\n" for i in range(4))
        (tmp_path / f"{name}.csv").write_text(f"path,source,label_{label}\n{rows}")
    manifests = {"train_manifest": "train.csv", "val_manifest": "val.csv"}
    given = {"data.root": str(tmp_path), "tasks": ("color",), "controls": False, **manifests}
    expand_arm(tmp_path, Step("probe", PROBE, given))
    given |= {"tasks": ()} if "val_manifest" in changes else {}
    with pytest.raises(UserError, match=sentence):
        expand_arm(tmp_path, Step("probe", PROBE, given | changes))


def test_options_of_evaluators_are_checked_with_the_frames_of_the_training(tmp_path):
    evaluation = "configs/eval/tasks/anticipation.py:tiny"
    for frames, is_valid in ((8, True), (9, False)):  # the encoder has 8 frames
        step = Step("later", evaluation, {"anticipation.context_frames": frames})
        if is_valid:
            expand_arm(tmp_path, step)
        else:
            with pytest.raises(UserError, match="context_frames=9 must be between 0 and"):
                expand_arm(tmp_path, step)


@pytest.mark.parametrize("steps", ["", "all", "2,4"])
def test_arms_that_share_a_training_keep_the_same_checkpoints(steps):
    kept = {"every_steps": 1, "keep_last": 1, "keep_best": 0, "best_metric": "", "best_mode": "min"}
    checkpoints = [kept | {"keep_every_steps": every, "other": every} for every in (1, 2)]
    trainings = [
        ml_collections.ConfigDict({"checkpoint": checkpoint}) for checkpoint in checkpoints
    ]
    config = ml_collections.ConfigDict({"steps": steps})
    evaluation_checks.check_kept("b", config, trainings[0], trainings[0])
    expected = contextlib.nullcontext()
    if steps:
        message = "arm 'b' sets checkpoint.keep_every_steps=2 .* an arm that has .*_steps=1: set"
        expected = pytest.raises(UserError, match=message)
    with expected:
        evaluation_checks.check_kept("b", config, trainings[1], trainings[0])
