"""The cue, and nothing else in the first two thirds, determines the motion of the last third."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

from invnext_jax.synthetic_world.scene import sample_labels, sample_scene
from invnext_jax.synthetic_world.spec import MOTIONS, SHAPES, WorldSpec

FRAMES = 9
CHANCE = 1 / len(MOTIONS)


@pytest.fixture(scope="module", params=[{}, {"object_size": 0.5, "speed": 2.0, "clutter": 3}])
def boxes(request):
    """Boxes [n t k 4] and verbs [n] of training and held-out clips."""
    found = []
    for split, count in (("train", 2500), ("val", 1000)):
        spec = WorldSpec("anticipation", frames=FRAMES, split=split, **request.param)
        scenes = [sample_scene(spec, index) for index in range(count)]
        found.append(np.stack([scene.boxes_tk4 for scene in scenes]))
        found.append(np.array([scene.labels["verb"] for scene in scenes]))
    return found


def accuracy(boxes, view):
    train, train_labels, held_out, labels = boxes
    forest = RandomForestClassifier(60, random_state=0)
    forest.fit(view(train).reshape(len(train), -1), train_labels)
    return np.mean(forest.predict(view(held_out).reshape(len(held_out), -1)) == labels)


def with_steps(boxes):
    return np.concatenate([boxes, np.diff(boxes, axis=1, append=boxes[:, -1:])], axis=-1)


@pytest.mark.parametrize(
    "view",
    [
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, FRAMES - 1],
        lambda boxes: with_steps(boxes[:, : FRAMES - FRAMES // 3]),
    ],
    ids=["first frame", "last frame", "context"],
)
def test_boxes_do_not_determine_the_future_motion(boxes, view):
    got = accuracy(boxes, view)
    assert got < CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / 1000)


def test_last_third_determines_the_future_motion(boxes):
    start = WorldSpec("anticipation", frames=FRAMES).context_frames - 1
    assert accuracy(boxes, lambda boxes: with_steps(boxes[:, start:, :1])) >= 0.9


def test_motion_changes_between_context_and_last_third():
    spec = WorldSpec("anticipation", frames=FRAMES)
    assert spec.context_frames == 6
    before = []
    for index in range(300):
        scene = sample_scene(spec, index)
        steps_t2 = (np.diff(scene.center_tk2[:, 0], axis=0) + 16) % 32 - 16
        angles_t = np.round(np.arctan2(steps_t2[:, 1], steps_t2[:, 0]) / (math.pi / 4)) % 8
        assert len(set(angles_t[:5])) == 1
        np.testing.assert_array_equal(angles_t[5:], scene.labels["verb"])
        before.append(angles_t[0] == scene.labels["verb"])
    assert abs(np.mean(before) - CHANCE) < 4 * math.sqrt(CHANCE * (1 - CHANCE) / 300)


def test_actions_are_pairs_of_verb_and_noun():
    spec = WorldSpec("anticipation", split="val")
    labels = [sample_labels(spec, index) for index in range(4000)]
    for row in labels[:50]:
        verb, noun = MOTIONS[row["verb"]], SHAPES[row["noun"]]
        assert spec.classes["action"][row["action"]] == f"{noun} moves {verb}"
    counts = np.bincount([row["action"] for row in labels], minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3
