"""Baselines depend only on the frames and the temporal order that they may use."""

import numpy as np
import pytest

from invnext_jax.evaluation.evaluators import baselines
from invnext_jax.evaluation.metrics import intervals
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.scene import WorldSpec


@pytest.fixture(scope="module")
def tracks():
    spec = WorldSpec(size=32, frames=8, seed=0)
    clips = [render_clip(spec, i) for i in range(480)]
    boxes = [np.concatenate([c.boxes, c.visible[..., None]], axis=-1) for c in clips]
    return np.stack(boxes).astype(np.float32), np.array([c.motion for c in clips])


def forest(x, labels):
    return baselines.fit_forest(x[:360], labels[:360], x[360:], labels[360:], trees=60).top1


def test_bag_of_boxes_ignores_the_order_of_frames(tracks):
    boxes, _ = tracks
    shuffled = boxes[:, np.random.default_rng(0).permutation(8)]
    np.testing.assert_allclose(
        baselines.bag_of_boxes(boxes), baselines.bag_of_boxes(shuffled), atol=1e-6
    )


def test_bag_of_frames_ignores_the_order_of_frames():
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        baselines.bag_of_frames(video),
        baselines.bag_of_frames(video[:, ::-1]),
        atol=1e-6,
    )


def test_first_frame_ignores_other_frames():
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    other = video.copy()
    other[:, 1:] = 0
    np.testing.assert_array_equal(baselines.first_frame(video), baselines.first_frame(other))


def test_large_frames_are_averaged_over_blocks():
    video = np.random.default_rng(0).integers(0, 256, (1, 1, 70, 64, 3), dtype=np.uint8)
    small = baselines.first_frame(video).reshape(35, 32, 3)
    np.testing.assert_allclose(small[0, 0], video[0, 0, :2, :2].mean(axis=(0, 1)) / 255, rtol=1e-5)


def test_boxes_determine_the_motion_only_in_order(tracks):
    boxes, motion = tracks
    error = intervals.binomial_standard_error(1 / 8, 120)
    assert forest(baselines.first_box(boxes), motion) < 1 / 8 + 4 * error
    assert forest(baselines.bag_of_boxes(boxes), motion) < 0.6
    assert forest(baselines.ordered_boxes(boxes), motion) > 0.9


def test_boxes_are_those_of_the_videos(tmp_path):
    spec = WorldSpec(size=16, frames=4, split="val")
    write_world(spec, tmp_path, 3, progress=False)
    videos = [str(tmp_path / f"val/{number:06d}.mp4") for number in range(3)]
    found = baselines.load_boxes([videos[2], videos[0]])
    np.testing.assert_allclose(found[0, ..., :4], render_clip(spec, 2).boxes, atol=1e-3)
    assert baselines.load_boxes([str(tmp_path / "elsewhere/000000.mp4")]) is None
    for damage in (b"", b"PK\3\4", b"\x93NUMPY"):
        (tmp_path / "gt/val/000001.npz").write_bytes(damage)
        assert baselines.load_boxes(videos[:2]) is None
