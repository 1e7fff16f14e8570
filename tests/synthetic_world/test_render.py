import dataclasses
import time

import numpy as np
import pytest

from invnext_jax.synthetic_world import render
from invnext_jax.synthetic_world import scene as scene_lib
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.scene import WorldSpec, sample_scene

SPECS = [
    WorldSpec(),
    WorldSpec(size=48, frames=5),
    WorldSpec(level="full", size=48),
    WorldSpec(level="anticipation", frames=6),
    WorldSpec(object_size=0.5, speed=2.0, clutter=4),
    WorldSpec(level="full", size=48, clutter=5),
]


@pytest.mark.parametrize("spec", SPECS)
def test_arrays_have_documented_shapes_and_types(spec):
    clip = render_clip(spec, 5)
    t, s, k = spec.frames, spec.size, spec.max_objects
    actual = {
        name: (a.shape, a.dtype.name) for name, a in vars(clip).items() if hasattr(a, "dtype")
    }
    assert actual == {
        "video": ((t, s, s, 3), "uint8"),
        "depth": ((t, s, s), "float16"),
        "boxes": ((t, k, 4), "float32"),
        "visible": ((t, k), "int32"),
        "ids": ((t, s, s), "int8"),
    }
    if spec.level != "anticipation":
        assert {clip.shape, clip.color, clip.motion} <= set(clip.labels.values())
    assert len(clip.image_captions) >= 3 and clip.video_caption


@pytest.mark.parametrize("spec", SPECS)
def test_clips_are_a_pure_function_of_spec_and_index(spec):
    one, _, other = (render_clip(spec, index) for index in (4, 9, 4))
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name))


def test_whole_shape_is_visible_in_every_frame():
    # Shapes wrap around the border, so the number of visible pixels hardly changes.
    for index in range(200):
        visible_t = render_clip(WorldSpec(), index).visible[:, 0]
        assert visible_t.min() > 25
        assert visible_t.max() - visible_t.min() <= 0.25 * visible_t.max() + 4


@pytest.mark.parametrize("level", ["simple", "full"])
def test_boxes_hold_exactly_the_visible_pixels(level):
    spec = WorldSpec(level=level, size=64)
    checked = 0
    for index in range(60):
        clip, scene = render_clip(spec, index), sample_scene(spec, index)
        for t, box_4 in enumerate(clip.boxes[:, 0]):
            alone = len(scene.kinds) == 1
            # Skip shapes at the border: the box covers only the larger of their two parts.
            inside = 2 / 64 < box_4.min() and box_4.max() < 62 / 64
            if not (alone and inside):
                continue
            ys, xs = np.nonzero(clip.ids[t] == 1)
            pixels_4 = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            # Tips of less than half a pixel are invisible, and digits fade over half a cell of 8.
            slack = 2.0 if level == "simple" else 1 + (box_4[3] - box_4[1]) * 64 / 10
            assert np.abs(pixels_4 - 64 * box_4).max() <= slack
            checked += 1
    assert checked > 20


def test_nearer_objects_occlude_farther_ones():
    spec, hidden = WorldSpec(level="full", size=48), 0
    for index in range(80):
        clip, scene = render_clip(spec, index), sample_scene(spec, index)
        cover = [render._coverage(spec, scene, k) > 0.5 for k in range(len(scene.kinds))]
        for t in range(spec.frames):
            for y, x in np.argwhere(np.sum(cover, axis=0)[t] > 1)[:20]:
                present = [k for k in range(len(cover)) if cover[k][t, y, x]]
                nearest = min(present, key=lambda k: scene.depth_tk[t, k])
                assert clip.ids[t, y, x] == nearest + 1
                assert clip.depth[t, y, x] == np.float16(scene.depth_tk[t, nearest])
                hidden += 1
    assert hidden > 100


def test_depth_without_objects_is_that_of_the_ground():
    clip = render_clip(WorldSpec(level="full", size=48), 1)
    ground = np.where(clip.ids == 0, clip.depth, np.nan)
    assert np.nanmin(ground) > 3.4 and np.nanmax(ground) <= 9
    assert (np.nanmean(ground, axis=2)[:, 0] > np.nanmean(ground, axis=2)[:, -1]).all()
    assert set(np.unique(clip.ids)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(clip.visible[:, 0], (clip.ids == 1).sum((1, 2)))


def test_backgrounds_differ_from_clip_to_clip():
    spec = WorldSpec(level="full", size=32)
    corners = {render_clip(spec, index).video[0, 0, :4].tobytes() for index in range(40)}
    assert len(corners) == 40


def test_outlines_fill_their_box_and_differ():
    line_n = np.linspace(-1, 1, 41, dtype=np.float32)
    inside = {}
    for name, outline in render.OUTLINES.items():
        mask_vu = outline(line_n[None, :], line_n[:, None]) >= -1e-6
        assert mask_vu.any(0).all() and mask_vu.any(1).all(), name
        inside[name] = mask_vu
    names = list(inside)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = (inside[one] & inside[other]).sum() / (inside[one] | inside[other]).sum()
            assert both < 0.8, (one, other)


def test_simple_clips_render_fast_enough_for_training():
    render_clip(WorldSpec(), 0)
    best = float("inf")
    for start in range(0, 150, 30):
        begin = time.process_time()
        for index in range(start, start + 30):
            render_clip(WorldSpec(), index)
        best = min(best, (time.process_time() - begin) / 30)
    assert 1 / best > 500


def test_clutter_and_size_do_not_change_the_path_of_the_main_object():
    for level in ("simple", "full"):
        for index in range(20):
            plain = sample_scene(WorldSpec(level=level, size=48), index)
            other = WorldSpec(level=level, size=48, object_size=0.5, clutter=3)
            changed = sample_scene(other, index)
            np.testing.assert_array_equal(changed.center_tk2[:, 0], plain.center_tk2[:, 0])
            np.testing.assert_allclose(changed.half_tk2[:, 0], plain.half_tk2[:, 0] / 2)
            assert len(changed.kinds) == 4 and changed.labels == plain.labels


def test_distractors_of_the_simple_level_are_behind_the_shape():
    spec = WorldSpec(clutter=6)
    for index in range(40):
        clip = render_clip(spec, index)
        alone = render_clip(WorldSpec(), index)
        np.testing.assert_array_equal(clip.visible[:, 0], alone.visible[:, 0])
        assert (clip.ids > 1).any()


def test_cue_is_visible_in_the_first_third_only():
    spec = WorldSpec(level="anticipation", frames=9)
    for index in range(30):
        clip = render_clip(spec, index)
        assert (clip.visible[:3, 1] >= 9).all() and not clip.visible[3:, 1].any()
        assert not clip.boxes[3:, 1].any()
        pixels = clip.video[0][clip.ids[0] == 2].astype(float)
        color = np.median(pixels, axis=0)
        cues = np.abs(scene_lib.CUE_RGB - color).sum(axis=1)
        assert cues.argmin() == clip.labels["verb"]
