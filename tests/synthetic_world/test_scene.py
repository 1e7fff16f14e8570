import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import scene as scene_lib
from invnext_jax.synthetic_world.scene import WorldSpec, sample_scene

LEVELS = ("simple", "full")
# The two levels with default options, and the extreme values of each option.
VARIANTS = {
    "simple": {},
    "full": {"level": "full"},
    "small": {"object_size": 0.4},
    "large": {"object_size": 1.4},
    "at low speed": {"speed": 0.25},
    "at high speed": {"speed": 3.0},
    "cluttered": {"clutter": 8},
    "full, small, fast and cluttered": {
        "level": "full",
        "object_size": 0.4,
        "speed": 3.0,
        "clutter": 8,
    },
}


def scenes(level, split, count, **options):
    spec = WorldSpec(level=level, split=split, **options)
    return [sample_scene(spec, index) for index in range(count)]


@pytest.fixture(scope="module", params=VARIANTS)
def tracks(request):
    """The level and, for each split, boxes [n t 4] of the main object and motion labels [n]."""
    options = {"level": "simple", **VARIANTS[request.param]}
    tracks = [options["level"]]
    for split, count in (("train", 2500), ("val", 1000)):
        split_scenes = scenes(split=split, count=count, **options)
        tracks.append(np.stack([scene.boxes_tk4[:, 0] for scene in split_scenes]))
        tracks.append(np.array([scene.labels["motion"] for scene in split_scenes]))
    return tracks


def accuracy(tracks, view):
    """Returns held-out accuracy of a random forest on `view` of a track, and its standard error."""
    _, train, train_labels, held_out, labels = tracks
    forest = RandomForestClassifier(60, random_state=0)
    forest.fit(np.stack([view(boxes_t4) for boxes_t4 in train]), train_labels)
    right = forest.predict(np.stack([view(boxes_t4) for boxes_t4 in held_out])) == labels
    return right.mean(), math.sqrt(0.25 / len(labels))


@pytest.mark.parametrize("frame", [0, 4, -1])
def test_box_of_one_frame_does_not_determine_motion(tracks, frame):
    got, _ = accuracy(tracks, lambda boxes_t4: boxes_t4[frame])
    chance = 1 / (8 if tracks[0] == "simple" else 10)
    assert got < chance + 3 * math.sqrt(chance * (1 - chance) / len(tracks[4]))


def test_unordered_frames_do_not_determine_time_direction(tracks):
    def unordered(boxes_t4):
        by_x = boxes_t4[np.lexsort(boxes_t4.T[[0, 1, 2, 3]])]
        by_y = boxes_t4[np.lexsort(boxes_t4.T[[1, 0, 3, 2]])]
        return np.concatenate([by_x.ravel(), by_y.ravel()])

    got, error = accuracy(tracks, unordered)
    assert got < 0.5 + 3 * error


def test_ordered_track_determines_motion(tracks):
    def ordered(boxes_t4):
        return np.concatenate([boxes_t4.ravel(), np.diff(boxes_t4, axis=0).ravel()])

    assert accuracy(tracks, ordered)[0] >= 0.9


@pytest.mark.parametrize("level", LEVELS)
def test_labels_are_uniform_and_independent(level):
    sampled = scenes(level, "train", 4000)
    classes = WorldSpec(level=level).classes
    for task, names in classes.items():
        counts = np.bincount([scene.labels[task] for scene in sampled], minlength=len(names))
        assert stats.chisquare(counts).pvalue > 1e-3
    for one, other in itertools.combinations(classes, 2):
        table = np.zeros((len(classes[one]), len(classes[other])))
        for scene in sampled:
            table[scene.labels[one], scene.labels[other]] += 1
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_shapes_move_at_least_half_a_patch_per_frame_in_their_direction():
    for scene in scenes("simple", "train", 300):
        steps_t2 = np.diff(scene.center_tk2[:, 0], axis=0)
        steps_t2 = (steps_t2 + 16) % 32 - 16  # around the border
        assert (np.hypot(*steps_t2.T) > 4 - 1e-3).all()
        angles_t = np.arctan2(steps_t2[:, 1], steps_t2[:, 0]) / (math.pi / 4) % 8
        off_t = np.abs(angles_t - scene.labels["motion"])
        assert (np.minimum(off_t, 8 - off_t) < 1e-3).all()


@pytest.mark.parametrize(
    ("motion", "change"),
    [
        ("left", [-1, -1, 0]),
        ("down", [1, 1, 1]),
        ("closer", [1, 1, 2]),
        ("left then right", [-1, 1, 0]),
        ("up then down", [-1, 1, 1]),
    ],
)
def test_motions_of_full_level_match_their_names(motion, change):
    early, late, axis = change
    path_t3 = scene_lib._motion_path(motion, 8)
    steps_t3 = np.diff(path_t3, axis=0)
    assert np.sign(steps_t3[0, axis]) == early and np.sign(steps_t3[-1, axis]) == late
    assert not np.delete(path_t3, axis, axis=1).any()


def test_scenes_depend_only_on_spec_and_index():
    spec = WorldSpec(level="full", seed=3)
    late_first = [sample_scene(spec, index) for index in (7, 2, 7)]
    for one, other in ((late_first[0], late_first[2]), (late_first[1], sample_scene(spec, 2))):
        for field in dataclasses.fields(one):
            np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name))


def test_splits_seeds_and_indices_give_different_scenes():
    specs = [WorldSpec(), WorldSpec(split="val"), WorldSpec(split="test"), WorldSpec(seed=1)]
    starts = [sample_scene(spec, i).center_tk2[0, 0, 0] for spec in specs for i in range(50)]
    assert len(set(starts)) == len(starts)


def test_splits_share_no_digit_image():
    rows = [{scene.digit for scene in scenes("full", split, 300)} for split in scene_lib.SPLITS]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "hard"}, "hard"),
        ({"split": "dev"}, "dev"),
        ({"size": 8}, "size=8"),
        ({"frames": 1}, "frames=1"),
        ({"seed": -1}, "seed=-1"),
        ({"level": "full", "frames": 7}, "even"),
        ({"level": "anticipation", "frames": 5}, "at least 6 frames"),
        ({"object_size": 0.3}, "object_size=0.3"),
        ({"object_size": math.nan}, "object_size=nan"),
        ({"speed": 4.0}, "speed=4.0"),
        ({"clutter": -1}, "clutter=-1"),
    ],
)
def test_invalid_specs_are_errors(fields, message):
    with pytest.raises(UserError, match=message):
        WorldSpec(**fields)


def test_negative_index_is_an_error():
    with pytest.raises(UserError, match="-1"):
        sample_scene(WorldSpec(), -1)


@pytest.mark.parametrize(
    "options",
    [{"clutter": 1.5}, {"clutter": 9999}, {"speed": None}, {"object_size": "1"}, {"seed": -1}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match="must be"):
        WorldSpec(**options)
