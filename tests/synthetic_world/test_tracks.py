import numpy as np
import pytest

from invnext_jax.synthetic_world import tracks
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.scene import sample_scene
from invnext_jax.synthetic_world.spec import WorldSpec

SPECS = [WorldSpec(size=48), WorldSpec("full", 64, clutter=2), WorldSpec("anticipation", clutter=1)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.level)
def test_points_start_visible_and_stay_on_their_object(spec):
    shown, checked = [], 0
    for index in range(20):
        clip = render_clip(spec, index)
        found = tracks.sample_points(spec, index, clip.ids, 12)
        assert found.points_nt2.shape == (12, spec.frames, 2)
        assert (found.points_nt2 >= 0).all() and (found.points_nt2 < 1).all()
        assert not found.occluded_nt[:, 0].any()
        scene = sample_scene(spec, index)
        pixels_nt2 = (found.points_nt2 * spec.size).astype(int)
        for n in range(12):
            objects = clip.ids[np.arange(spec.frames), pixels_nt2[n, :, 1], pixels_nt2[n, :, 0]]
            np.testing.assert_array_equal(found.occluded_nt[n], objects != objects[0])
        # A single object is never hidden, apart from its blurred edge.
        if len(scene.kinds) == 1:
            shown.append(1 - found.occluded_nt.mean())
        checked += 1
    assert checked == 20
    assert not shown or np.mean(shown) > 0.85


def test_points_of_a_translated_shape_move_with_its_center():
    spec = WorldSpec(size=64)
    scene = sample_scene(spec, 3)
    start = scene.center_tk2[0, 0] + [[1.0, -2.0], [0.0, 3.0]]
    found = tracks.follow(scene, 64, np.array([0, 0]), start % 64)
    steps = (found - found[:, :1] + 32) % 64 - 32
    expected = (scene.center_tk2[:, 0] - scene.center_tk2[:1, 0] + 32) % 64 - 32
    np.testing.assert_allclose(steps, np.broadcast_to(expected, steps.shape), atol=1e-3)


def test_points_turn_and_grow_with_their_object():
    spec = WorldSpec("full", 64, clutter=1)
    scene = sample_scene(spec, 1)
    corner = {"square": (1.0, 1.0), "triangle": (1.0, 1.0), "disc": (1.0, 0.0)}[scene.kinds[1]]
    angle_t, half_t = scene.angle_tk[:, 1], scene.half_tk2[:, 1, 0]
    turned = (corner[0] + 1j * corner[1]) * np.exp(1j * angle_t) * half_t
    offset_t2 = np.stack([turned.real, turned.imag], axis=1)
    path_t2 = (scene.center_tk2[:, 1] + offset_t2) % 64
    found = tracks.follow(scene, 64, np.array([1]), path_t2[:1])
    distance = np.abs((found[0] - path_t2 + 32) % 64 - 32)
    assert distance.max() < 1e-3


def test_points_may_start_in_a_later_frame():
    spec = SPECS[1]
    hidden_at_first = 0
    for index in range(20):
        ids_thw = render_clip(spec, index).ids
        found = tracks.sample_points(spec, index, ids_thw, 8, start=3)
        assert not found.occluded_nt[:, 3].any()
        hidden_at_first += found.occluded_nt[:, 0].any()
    assert hidden_at_first > 0
    # The same points, followed from the first frame.
    objects = np.array([0, 1])
    start = sample_scene(spec, 5).center_tk2[0, :2] + 1.5
    forward = tracks.follow(sample_scene(spec, 5), 64, objects, start)
    again = tracks.follow(sample_scene(spec, 5), 64, objects, forward[:, 3], start=3)
    np.testing.assert_allclose((again - forward + 32) % 64, 32, atol=1e-3)
    with pytest.raises(ValueError, match="no object is visible in frame 2"):
        tracks.sample_points(spec, 5, np.zeros_like(ids_thw), 8, start=2)


def test_tracks_depend_only_on_spec_and_index():
    spec = SPECS[1]
    clip = render_clip(spec, 5)
    one, other = (tracks.sample_points(spec, 5, clip.ids, 8) for _ in range(2))
    np.testing.assert_array_equal(one.points_nt2, other.points_nt2)
    assert len(np.unique(one.points_nt2[:, 0], axis=0)) == 8
